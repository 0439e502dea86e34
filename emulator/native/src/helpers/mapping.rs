//! Helpers on maps: lookup, update, delete, push, pop, peek, iteration.

use super::args::{error, map, readable, writable};
use super::unmodelled;
use crate::env::{Env, HelperResult};
use crate::fault::Fault;
use crate::maps::errno::EINVAL;
use crate::space;

/// The CPU that a map's per-CPU values are those of.
#[inline]
fn cpu(env: &Env) -> usize {
    env.answers.cpu.min(u64::from(env.cpus.max(1)) - 1) as usize
}

#[inline]
pub fn lookup(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let map = map(env, a[0])?;
    let key = readable(env, a[1], env.maps.key_size(map))?;
    let cpu = cpu(env);
    env.maps.find(map, key, cpu).map_err(|_| unmodelled(env, 1, a))
}

pub fn lookup_percpu(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let map = map(env, a[0])?;
    let key = readable(env, a[1], env.maps.key_size(map))?;
    if !env.maps.is_percpu(map) {
        return Err(unmodelled(env, 195, a));
    }
    if a[2] as u32 >= env.cpus {
        return Ok(0);
    }
    env.maps.find(map, key, a[2] as u32 as usize).map_err(|_| unmodelled(env, 195, a))
}

pub fn update(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let map = map(env, a[0])?;
    let key = readable(env, a[1], env.maps.key_size(map))?;
    let value = readable(env, a[2], env.maps.value_size(map))?;
    let cpu = cpu(env);
    let done = env.maps.set(&mut env.space, map, key, value, a[3], cpu);
    done.map(|result| result as u64).map_err(|_| unmodelled(env, 2, a))
}

pub fn delete(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let map = map(env, a[0])?;
    let key = readable(env, a[1], env.maps.key_size(map))?;
    env.maps.remove(map, key).map(|result| result as u64).map_err(|_| unmodelled(env, 3, a))
}

pub fn push(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let map = map(env, a[0])?;
    let value = readable(env, a[1], env.maps.value_size(map))?;
    env.maps.push(map, value, a[2]).map(|result| result as u64).map_err(|_| unmodelled(env, 87, a))
}

/// `stays`: peek.
pub fn pop(env: &mut Env, a: [u64; 5], stays: bool) -> HelperResult {
    let map = map(env, a[0])?;
    let size = env.maps.value_size(map);
    let out = writable(env, a[1], size)?;
    let id = if stays { 89 } else { 88 };
    env.maps.pop(map, out, stays).map(|result| result as u64).map_err(|_| unmodelled(env, id, a))
}

/// `bpf_for_each_map_elem(map, callback, ctx, flags)`: the callback gets map, key, value, ctx, and
/// ends the walk by 1. Keys lie in the scratch area meanwhile. The kernel's order of hash elements
/// depends on a seed of each map; here it is that of slots.
pub fn for_each(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let map = map(env, a[0])?;
    if a[3] != 0 {
        return Ok(error(EINVAL));
    }
    let keys = env.maps.visited(map).map_err(|_| unmodelled(env, 164, a))?;
    let place = env.scratch.scratch;
    let size = env.maps.key_size(map).next_multiple_of(8);
    if place + size as u64 > space::SCRATCH_SIZE as u64 {
        return Err(Fault::unmodelled("bpf_for_each_map_elem (with long keys, nested)"));
    }
    let address = space::SCRATCH + place;
    let (mut calls, cpu) = (0, cpu(env));
    for key in keys {
        let value = env.maps.find_unused(map, &key, cpu).map_err(|_| unmodelled(env, 164, a))?;
        if value == 0 {
            continue; // the callback deleted it
        }
        // SAFETY: the scratch area is mapped while a world exists, and has room for the key.
        unsafe { std::ptr::copy_nonoverlapping(key.as_ptr(), address as *mut u8, key.len()) };
        env.scratch.scratch = place + size as u64;
        calls += 1;
        let result = env.call_function(a[1], [a[0], address, value, a[2], 0], a[4]);
        env.scratch.scratch = place;
        if result? as u32 != 0 {
            break;
        }
    }
    Ok(calls)
}
