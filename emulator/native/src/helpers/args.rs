//! Checked access to what a helper's arguments point to.

use crate::env::{Context, Env};
use crate::fault::{Fault, Kind};
use crate::maps::of_handle;
use crate::space;

type Checked<T> = Result<T, Box<Fault>>;

/// `len` bytes that the program may read. They are emulated memory, which stays mapped while the
/// world is active; the slice must not be used after something else was written there.
#[inline]
pub fn readable<'a>(env: &Env, address: u64, len: usize) -> Checked<&'a [u8]> {
    if len == 0 {
        return Ok(&[]);
    }
    let bytes = env.read(address, len)?;
    // SAFETY: `read` checked the range; the memory is not freed during a run.
    Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr(), len) })
}

/// `len` bytes that the program may write; the same holds as for `readable`.
#[inline]
pub fn writable<'a>(env: &mut Env, address: u64, len: usize) -> Checked<&'a mut [u8]> {
    if len == 0 {
        return Ok(&mut []);
    }
    let bytes = env.write(address, len)?;
    // SAFETY: as in `readable`.
    Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr(), len) })
}

/// A size argument as the helpers take it: u32. Larger ones are no memory anyway.
pub fn size(argument: u64) -> usize {
    argument as u32 as usize
}

/// A string that ends at a zero byte, without it (`ARG_PTR_TO_CONST_STR`).
pub fn string(env: &Env, address: u64) -> Checked<Vec<u8>> {
    let mut text = Vec::new();
    loop {
        match readable(env, address.wrapping_add(text.len() as u64), 1)?[0] {
            0 => return Ok(text),
            byte => text.push(byte),
        }
    }
}

/// The map of a handle argument.
#[inline]
pub fn map(env: &Env, handle: u64) -> Checked<u32> {
    match of_handle(handle) {
        Some(map) if map < env.maps.count() => Ok(map),
        _ => Err(Fault::at(Kind::Read, handle, 8)),
    }
}

/// The helper got the program's context.
#[inline]
pub fn context(address: u64) -> Checked<()> {
    if address == space::CONTEXT {
        Ok(())
    } else {
        Err(Fault::at(Kind::Read, address, 8))
    }
}

/// The context argument of a helper for XDP.
#[inline]
pub fn xdp(env: &Env, address: u64, name: &str) -> Checked<()> {
    context(address)?;
    match env.context {
        Context::Xdp => Ok(()),
        _ => Err(Fault::unmodelled(format!("{name} outside XDP"))),
    }
}

/// The context argument of a helper for an skb.
#[inline]
pub fn skb(env: &Env, address: u64, name: &str) -> Checked<()> {
    context(address)?;
    match env.context {
        Context::Skb | Context::SkbL3 => Ok(()),
        _ => Err(Fault::unmodelled(format!("{name} without an skb"))),
    }
}

/// A negative error number as r0.
#[inline]
pub fn error(number: i64) -> u64 {
    (-number) as u64
}
