//! Reading memory by address: the program's own, and what a recording gives (`World.add_memory`).
//! Anything else is not mapped: an error, and zeros, as in the kernel.

use super::args::{error, size, writable};
use crate::env::{Context, Env, HelperResult};
use crate::maps::errno::{EFAULT, ERANGE};
use crate::space;

/// `len` bytes at any address, if they are modelled.
pub fn fetch(env: &Env, address: u64, len: usize) -> Option<&[u8]> {
    if len == 0 {
        return Some(&[]);
    }
    if let Ok(bytes) = env.read(address, len) {
        return Some(bytes);
    }
    // Only a plain context is what the kernel has there; others are views of its structures.
    let end = address.checked_add(len as u64)?;
    if env.context == Context::Plain
        && address >= space::CONTEXT
        && end <= space::CONTEXT + env.context_len as u64
    {
        // SAFETY: inside the context area, which is mapped while a world exists.
        return Some(unsafe { std::slice::from_raw_parts(address as *const u8, len) });
    }
    let after = env.memory.partition_point(|(start, _)| *start <= address);
    let (start, bytes) = env.memory.get(after.checked_sub(1)?)?;
    let offset = usize::try_from(address - start).ok()?;
    bytes.get(offset..offset.checked_add(len)?)
}

/// Bytes up to a zero byte, which is not among them, or up to `most`.
pub fn fetch_string(env: &Env, address: u64, most: usize) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    while text.len() < most {
        match fetch(env, address.checked_add(text.len() as u64)?, 1)?[0] {
            0 => return Some(text),
            byte => text.push(byte),
        }
    }
    Some(text)
}

/// The error for an address where nothing is. The kinds for kernel memory do not even try addresses
/// of user space or non-canonical ones (copy_from_kernel_nofault_allowed on x86-64).
fn nothing(address: u64, kernel: bool) -> u64 {
    const KERNEL: u64 = 0xFFFF_8000_0000_0000;
    error(if kernel && address < KERNEL { ERANGE } else { EFAULT })
}

/// `bpf_probe_read*(dst, size, src)`; `kernel`: the kind that reads kernel memory only.
pub fn read(env: &mut Env, a: [u64; 5], kernel: bool) -> HelperResult {
    let out = writable(env, a[0], size(a[1]))?;
    match fetch(env, a[2], out.len()) {
        Some(bytes) => {
            // The two may overlap.
            // SAFETY: both ranges were checked and are as long as `out`.
            unsafe { std::ptr::copy(bytes.as_ptr(), out.as_mut_ptr(), out.len()) };
            Ok(0)
        }
        None => {
            out.fill(0);
            Ok(nothing(a[2], kernel))
        }
    }
}

/// `bpf_probe_read*_str(dst, size, src)`: the length with the zero byte, cut to the size.
pub fn read_str(env: &mut Env, a: [u64; 5], kernel: bool) -> HelperResult {
    let out = writable(env, a[0], size(a[1]))?;
    let Some(room) = out.len().checked_sub(1) else { return Ok(0) };
    match fetch_string(env, a[2], room) {
        Some(text) => {
            out[..text.len()].copy_from_slice(&text);
            out[text.len()] = 0;
            Ok(text.len() as u64 + 1)
        }
        None => {
            out.fill(0);
            Ok(nothing(a[2], kernel))
        }
    }
}
