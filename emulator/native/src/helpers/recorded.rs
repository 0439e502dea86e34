//! Helpers that answer as recorded, and are not modelled otherwise.

use super::args::{context, error, size, writable};
use super::{name, unmodelled};
use crate::env::{Env, HelperResult};
use crate::fault::Fault;
use crate::maps::errno::EINVAL;

fn used_up(name: &str) -> Box<Fault> {
    Fault::unmodelled(format!("bpf_{name}: the recorded answers are used up"))
}

/// The next recorded integer, if any answer is recorded under this name (without `bpf_`).
#[inline]
pub fn given(env: &mut Env, name: &str) -> Option<HelperResult> {
    env.answers.int(name).map(|answer| answer.map_err(|_| used_up(name)))
}

fn bytes(env: &mut Env, name: &str) -> Option<Result<Vec<u8>, Box<Fault>>> {
    env.answers.bytes(name).map(|answer| answer.map_err(|_| used_up(name)))
}

/// Helpers without other effects than their result.
pub fn integer(env: &mut Env, id: u32, a: [u64; 5]) -> HelperResult {
    let full = name(id);
    let answer = full.strip_prefix("bpf_").and_then(|name| given(env, name));
    answer.unwrap_or_else(|| Err(unmodelled(env, id, a)))
}

/// `bpf_get_current_comm(buffer, size)`.
pub fn comm(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let out = writable(env, a[0], size(a[1]))?;
    let text = bytes(env, "get_current_comm").unwrap_or_else(|| Err(unmodelled(env, 16, a)))?;
    let Some(room) = out.len().checked_sub(1) else { return Ok(error(EINVAL)) };
    let len = text.iter().position(|byte| *byte == 0).unwrap_or(text.len()).min(room);
    out[..len].copy_from_slice(&text[..len]);
    out[len..].fill(0);
    Ok(0)
}

/// Helpers that fill a structure: the recorded bytes are the result (s64), then what is written.
pub fn into(env: &mut Env, id: u32, address: u64, len: u64) -> HelperResult {
    let out = writable(env, address, size(len))?;
    let full = name(id);
    let answer = bytes(env, &full[4..]).unwrap_or_else(|| Err(unmodelled(env, id, [0; 5])))?;
    let (result, content) = answer.split_at(answer.len().min(8));
    let len = content.len().min(out.len());
    out[..len].copy_from_slice(&content[..len]);
    let mut number = [0; 8];
    number[..result.len()].copy_from_slice(result);
    Ok(u64::from_le_bytes(number))
}

/// `bpf_check_mtu(ctx, ifindex, mtu_len, len_diff, flags)`: bytes 8 to 12 of the answer are the MTU.
pub fn check_mtu(env: &mut Env, a: [u64; 5]) -> HelperResult {
    context(a[0])?;
    into(env, 163, a[2], 4)
}
