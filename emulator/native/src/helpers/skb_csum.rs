//! Helpers on checksums in packets and of data (net/core/filter.c).

use super::args::{error, readable, size, skb};
use super::csum;
use crate::env::{Env, HelperResult};
use crate::maps::errno::{EACCES, EFAULT, EINVAL, ENOTSUPP};
use crate::space::PACKET;

const FIELD_MASK: u64 = 0xF;
const PSEUDO_HDR: u64 = 1 << 4;
const MARK_MANGLED_0: u64 = 1 << 5;
const MARK_ENFORCE: u64 = 1 << 6;
/// Since Linux 6.16.
const BPF_F_IPV6: u64 = 1 << 7;
/// What a UDP checksum of zero is written as.
const MANGLED_0: u16 = 0xFFFF;
/// SKB_MAX_CSUM_LEVEL
const MAX_LEVEL: u8 = 3;

/// The field's place in the frame buffer, or the error as r0.
fn field(env: &Env, offset: u64) -> Result<usize, u64> {
    let offset = u64::from(offset as u32);
    let fits = env.packet.data + offset + 2 <= env.packet.data_end;
    if offset > 0xFFFF || offset & 1 == 1 || !fits {
        return Err(error(EFAULT));
    }
    Ok((env.packet.data + offset - PACKET) as usize)
}

/// What the field becomes; None: the sizes or values are refused.
fn replaced(old: u16, from: u64, to: u64, flags: u64) -> Option<u16> {
    match flags & FIELD_MASK {
        0 if from == 0 => Some(csum::replace_by_diff(old, to as u32)),
        2 => Some(csum::replace2(old, from as u16, to as u16)),
        4 => Some(csum::replace4(old, from as u32, to as u32)),
        _ => None,
    }
}

/// `bpf_l3_csum_replace(skb, offset, from, to, flags)`.
pub fn l3_replace(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_l3_csum_replace")?;
    if a[4] & !FIELD_MASK != 0 {
        return Ok(error(EINVAL));
    }
    let at = match field(env, a[1]) {
        Ok(at) => at,
        Err(error) => return Ok(error),
    };
    let place = &mut env.frame_buffer()[at..at + 2];
    match replaced(u16::from_ne_bytes([place[0], place[1]]), a[2], a[3], a[4]) {
        Some(new) => {
            place.copy_from_slice(&new.to_ne_bytes());
            Ok(0)
        }
        None => Ok(error(EINVAL)),
    }
}

/// `bpf_l4_csum_replace(skb, offset, from, to, flags)`. The pseudo header matters for checksums that
/// hardware does, which the skb here has none of.
pub fn l4_replace(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_l4_csum_replace")?;
    let known = FIELD_MASK | PSEUDO_HDR | MARK_MANGLED_0 | MARK_ENFORCE | BPF_F_IPV6;
    if a[4] & !known != 0 {
        return Ok(error(EINVAL));
    }
    let at = match field(env, a[1]) {
        Ok(at) => at,
        Err(error) => return Ok(error),
    };
    let place = &mut env.frame_buffer()[at..at + 2];
    let old = u16::from_ne_bytes([place[0], place[1]]);
    let marks = a[4] & MARK_MANGLED_0 != 0;
    if marks && a[4] & MARK_ENFORCE == 0 && old == 0 {
        return Ok(0);
    }
    let new = match a[4] & FIELD_MASK {
        // Two bytes are replaced as four, for the pseudo header's sake; the sum is the same.
        2 => {
            Some(csum::replace4(old, u64::from(a[2] as u16) as u32, u64::from(a[3] as u16) as u32))
        }
        _ => replaced(old, a[2], a[3], a[4]),
    };
    let Some(new) = new else { return Ok(error(EINVAL)) };
    let new = if marks && new == 0 { MANGLED_0 } else { new };
    place.copy_from_slice(&new.to_ne_bytes());
    Ok(0)
}

/// `bpf_csum_diff(from, from_size, to, to_size, seed)`.
pub fn diff(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let from = readable(env, a[0], size(a[1]))?;
    let to = readable(env, a[2], size(a[3]))?;
    Ok(u64::from(csum::diff(from, to, a[4] as u32)))
}

/// `bpf_csum_update(skb, csum)`: only for CHECKSUM_COMPLETE.
pub fn update(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_csum_update")?;
    Ok(error(ENOTSUPP))
}

/// `bpf_csum_level(skb, level)`.
pub fn level(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_csum_level")?;
    let level = &mut env.scratch.csum_level;
    match a[1] {
        0 => return Ok(level.map_or(error(EACCES), u64::from)),
        1 => *level = Some(level.map_or(0, |level| (level + 1).min(MAX_LEVEL))),
        2 => *level = level.and_then(|level| level.checked_sub(1)),
        3 => *level = None,
        _ => return Ok(error(EINVAL)),
    }
    Ok(0)
}
