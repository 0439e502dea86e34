//! Records for user space: ring buffers and perf event arrays.

use super::args::{context, error, map, readable, size};
use super::unmodelled;
use crate::env::{Context, Env, HelperResult};
use crate::fault::{Fault, Kind};
use crate::maps::errno::{E2BIG, EAGAIN, EFAULT, EINVAL, EOPNOTSUPP};
use crate::maps::ring::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use crate::space::HIGH;

const INDEX_MASK: u64 = 0xFFFF_FFFF;
const CONTEXT_MASK: u64 = 0xFFFFF << 32;

/// `bpf_perf_event_output(ctx, map, flags, data, size)`. Every slot of the array is thought to have
/// an event of its CPU, as libbpf sets it up.
pub fn perf_output(env: &mut Env, a: [u64; 5]) -> HelperResult {
    context(a[0])?;
    let map = map(env, a[1])?;
    let Some(entries) = env.maps.perf_entries(map) else { return Err(unmodelled(env, 25, a)) };
    let data = readable(env, a[3], size(a[4]))?;
    let plain = env.context == Context::Plain;
    let known = if plain { INDEX_MASK } else { INDEX_MASK | CONTEXT_MASK };
    if a[2] & !known != 0 {
        return Ok(error(EINVAL));
    }
    let packet = &env.packet;
    let whole = packet.data_end - packet.data + u64::from(packet.rest);
    let more = (a[2] & CONTEXT_MASK) >> 32;
    if more > whole {
        return Ok(error(EFAULT));
    }
    if more > packet.data_end - packet.data {
        return Err(Fault::unmodelled("bpf_perf_event_output (with bytes of fragments)"));
    }
    let cpu = env.answers.cpu;
    let index = if a[2] & INDEX_MASK == INDEX_MASK { cpu } else { a[2] & INDEX_MASK };
    if index >= u64::from(entries) {
        return Ok(error(E2BIG));
    }
    if index != cpu {
        return Ok(error(EOPNOTSUPP));
    }
    let mut payload = (index as u32).to_le_bytes().to_vec();
    payload.extend_from_slice(data);
    if more > 0 {
        payload.extend_from_slice(readable(env, packet.data, more as usize)?);
    }
    env.event("perf", Some(map), &payload);
    Ok(0)
}

/// Let the readers catch up, once a packet.
fn drain(env: &mut Env) {
    if !env.scratch.drained {
        env.scratch.drained = true;
        env.maps.consume();
    }
}

/// `bpf_ringbuf_output(ringbuf, data, size, flags)`.
pub fn ringbuf_output(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let map = map(env, a[0])?;
    if !env.maps.is_ring(map) {
        return Err(unmodelled(env, 130, a));
    }
    let data = readable(env, a[1], size(a[2]))?;
    if a[3] & !(BPF_RB_NO_WAKEUP | BPF_RB_FORCE_WAKEUP) != 0 {
        return Ok(error(EINVAL));
    }
    drain(env);
    let Some(record) = env.maps.ring_reserve(&mut env.space, map, data.len() as u64) else {
        return Ok(error(EAGAIN));
    };
    crate::maps::program::put(&mut env.space, record, data);
    show(env, map, record, false);
    Ok(0)
}

/// `bpf_ringbuf_reserve(ringbuf, size, flags)`.
pub fn reserve(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let map = map(env, a[0])?;
    if !env.maps.is_ring(map) {
        return Err(unmodelled(env, 131, a));
    }
    if a[2] != 0 {
        return Ok(0);
    }
    drain(env);
    Ok(env.maps.ring_reserve(&mut env.space, map, a[1]).unwrap_or(0))
}

/// `bpf_ringbuf_submit(data, flags)`, `bpf_ringbuf_discard(data, flags)`.
pub fn commit(env: &mut Env, a: [u64; 5], discard: bool) -> HelperResult {
    match env.maps.ring_of(a[0]).filter(|_| a[0] >= HIGH) {
        Some(map) if show(env, map, a[0], discard) => Ok(0),
        _ => Err(Fault::at(Kind::Read, a[0], 8)),
    }
}

/// Commit a record, and note those that a reader now sees. False: it is not reserved.
fn show(env: &mut Env, map: u32, record: u64, discard: bool) -> bool {
    let Some(seen) = env.maps.ring_commit(&mut env.space, map, record, discard) else {
        return false;
    };
    for (address, len) in seen {
        let bytes = env.space.bytes(address, len as usize).to_vec();
        env.event("ringbuf", Some(map), &bytes);
    }
    true
}

/// `bpf_ringbuf_query(ringbuf, question)`.
pub fn query(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let map = map(env, a[0])?;
    drain(env);
    env.maps.ring_query(map, a[1]).ok_or_else(|| unmodelled(env, 134, a))
}
