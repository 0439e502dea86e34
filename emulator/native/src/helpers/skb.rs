//! Helpers on an skb's bytes, length, type and hash (net/core/filter.c).
//!
//! The skb is what a test run makes: linear, not cloned, CHECKSUM_NONE, no transport header set.

use super::args::{error, readable, size, skb, writable};
use super::recorded::given;
use super::vlan::is_vlan;
use crate::context::{get, put, skb as field};
use crate::env::{Env, HelperResult};
use crate::fault::Fault;
use crate::maps::errno::{EFAULT, EINVAL, ENOMEM, ENOTSUPP, EOPNOTSUPP};
use crate::space::PACKET;

const BPF_F_RECOMPUTE_CSUM: u64 = 1;
const BPF_F_INVALIDATE_HASH: u64 = 2;
/// SKB_MAX_ALLOC: four pages less skb_shared_info.
pub const SKB_MAX: u64 = 16384 - 320;
pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86DD;

/// `skb->protocol`, as a number.
pub fn protocol() -> u16 {
    u16::from_be(get(field::PROTOCOL) as u16)
}

pub fn set_protocol(protocol: u16) {
    put(field::PROTOCOL, u32::from(protocol.to_be()));
}

pub fn clear_hash(env: &mut Env) {
    env.scratch.hash = None;
    put(field::HASH, 0);
}

/// `bpf_skb_store_bytes(skb, offset, from, len, flags)`. The skb has no checksum to be recomputed.
pub fn store(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_skb_store_bytes")?;
    let bytes = readable(env, a[2], size(a[3]))?;
    if a[4] & !(BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH) != 0 {
        return Ok(error(EINVAL));
    }
    let offset = u64::from(a[1] as u32);
    let len = env.packet.data_end - env.packet.data;
    if offset > i32::MAX as u64 || offset + bytes.len() as u64 > len {
        return Ok(error(EFAULT));
    }
    let start = (env.packet.data + offset - PACKET) as usize;
    let place = env.frame_buffer()[start..start + bytes.len()].as_mut_ptr();
    // SAFETY: `place` was sliced to the length; the source may be the packet itself.
    unsafe { std::ptr::copy(bytes.as_ptr(), place, bytes.len()) };
    if a[4] & BPF_F_INVALIDATE_HASH != 0 {
        clear_hash(env);
    }
    Ok(0)
}

/// `bpf_skb_load_bytes(skb, offset, to, len)`.
pub fn load(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_skb_load_bytes")?;
    let out = writable(env, a[2], size(a[3]))?;
    let offset = a[1] as u32;
    let start = (offset <= i32::MAX as u32).then_some(env.packet.data + u64::from(offset));
    Ok(copy_out(env, start, out))
}

/// `bpf_skb_load_bytes_relative(skb, offset, to, len, start_header)`.
pub fn load_relative(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_skb_load_bytes_relative")?;
    let out = writable(env, a[2], size(a[3]))?;
    let offset = a[1] as u32;
    let start = match a[4] as u32 {
        0 => Some(env.packet.mac),
        1 => Some(env.packet.network),
        _ => None,
    };
    let start = start.filter(|_| offset <= 0xFFFF).map(|start| start + u64::from(offset));
    Ok(copy_out(env, start, out))
}

/// Copy from the packet up to its end; zeros and EFAULT where it is too short.
fn copy_out(env: &mut Env, start: Option<u64>, out: &mut [u8]) -> u64 {
    let Some(start) = start.filter(|start| start + out.len() as u64 <= env.packet.data_end) else {
        out.fill(0);
        return error(EFAULT);
    };
    let start = (start - PACKET) as usize;
    out.copy_from_slice(&env.frame_buffer()[start..start + out.len()]);
    0
}

/// `bpf_skb_pull_data(skb, len)`: all is linear already.
pub fn pull(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_skb_pull_data")?;
    let enough = u64::from(a[1] as u32) <= env.packet.data_end - env.packet.data;
    Ok(if enough { 0 } else { error(ENOMEM) })
}

/// `bpf_skb_change_tail(skb, len, flags)`.
pub fn change_tail(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_skb_change_tail")?;
    let mut packet = env.packet;
    let len = u64::from(a[1] as u32);
    let behind = |header: u64| header.checked_sub(packet.data).filter(|offset| *offset > 0);
    let transport = env.scratch.transport.and_then(behind);
    let least = transport.or(behind(packet.network)).unwrap_or(0);
    if a[2] != 0 || len > SKB_MAX || len < least {
        return Ok(error(EINVAL));
    }
    if env.scratch.encapsulated {
        return Ok(error(ENOTSUPP));
    }
    let end = packet.data + len;
    if end > packet.hard_end {
        return Ok(error(ENOMEM));
    }
    if end > packet.data_end {
        let gained = (packet.data_end - PACKET) as usize..(end - PACKET) as usize;
        env.frame_buffer()[gained].fill(0);
    }
    packet.data_end = end;
    env.set_packet(packet);
    if get(field::GSO_SIZE) != 0 {
        put(field::GSO_SIZE, 0);
        put(field::GSO_SEGS, 0);
    }
    Ok(0)
}

/// The kernel grows an skb's headroom by multiples of this (NET_SKB_PAD).
const HEAD_STEP: u64 = 64;

/// Give the packet `len` zero bytes in front.
///
/// Where the headroom does not suffice the kernel makes the skb anew and moves the offsets of its
/// headers by what it gains, also that of a transport header that was never set (0xFFFF): that then
/// counts as set, one byte before the old head.
pub fn grow_head(env: &mut Env, len: u64) -> Result<(), Box<Fault>> {
    let mut packet = env.packet;
    if packet.data - PACKET < len {
        return Err(Fault::unmodelled("an skb with that many bytes put in front of it"));
    }
    packet.data -= len;
    packet.data_meta = packet.data;
    if packet.data < packet.hard_start {
        env.scratch.transport.get_or_insert(packet.hard_start - 1);
        let gained = (packet.hard_start - packet.data).next_multiple_of(HEAD_STEP);
        packet.hard_start = (packet.hard_start - gained).max(PACKET);
    }
    let start = (packet.data - PACKET) as usize;
    env.frame_buffer()[start..start + len as usize].fill(0);
    env.set_packet(packet);
    Ok(())
}

/// `bpf_skb_change_head(skb, len, flags)`: the new start is the MAC header.
pub fn change_head(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_skb_change_head")?;
    let more = u64::from(a[1] as u32);
    let len = env.packet.data_end - env.packet.data;
    if a[2] != 0 || len + more > SKB_MAX {
        return Ok(error(EINVAL));
    }
    grow_head(env, more)?;
    env.packet.mac = env.packet.data;
    env.scratch.mac_len = env.packet.network - env.packet.mac;
    Ok(0)
}

/// `skb_protocol(skb, true)`: what is in the tags in the bytes. The kernel looks for them where the
/// MAC header's length says, and behind an Ethernet header where that is 0. 0: there is none.
fn inner_protocol(env: &mut Env) -> u16 {
    const VLAN_HLEN: u64 = 4;
    const DEPTH_MAX: usize = 8;
    let mut kind = protocol();
    if !is_vlan(kind) {
        return kind;
    }
    let mut offset = match env.scratch.mac_len {
        0 => 14,
        len if len < VLAN_HLEN => return 0,
        len => len - VLAN_HLEN,
    };
    let (data, end) = (env.packet.data - PACKET, env.packet.data_end - PACKET);
    for _ in 1..DEPTH_MAX {
        let start = data + offset;
        if start + VLAN_HLEN > end {
            return 0;
        }
        let tag = &env.frame_buffer()[start as usize..][..VLAN_HLEN as usize];
        kind = u16::from_be_bytes([tag[2], tag[3]]);
        if !is_vlan(kind) {
            return kind;
        }
        offset += VLAN_HLEN;
    }
    0
}

/// `bpf_skb_change_type(skb, type)`.
pub fn change_type(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_skb_change_type")?;
    const PACKET_OTHERHOST: u32 = 3;
    if get(field::PKT_TYPE) > PACKET_OTHERHOST || a[1] as u32 > PACKET_OTHERHOST {
        return Ok(error(EINVAL));
    }
    put(field::PKT_TYPE, a[1] as u32);
    Ok(0)
}

/// `bpf_get_hash_recalc(skb)`: the kernel's hash of the flow has a random key; this one has none. As
/// there, it stays until it is made invalid.
pub fn get_hash(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_get_hash_recalc")?;
    if let Some(answer) = given(env, "get_hash_recalc") {
        return answer;
    }
    if env.scratch.hash.is_none() && get(field::HASH) != 0 {
        env.scratch.hash = Some(get(field::HASH));
    }
    let hash = match env.scratch.hash {
        Some(hash) => hash,
        None => flow_hash(env),
    };
    env.scratch.hash = Some(hash);
    put(field::HASH, hash);
    Ok(u64::from(hash))
}

/// Of addresses, protocol and ports; never zero.
fn flow_hash(env: &mut Env) -> u32 {
    let start = (env.packet.network - PACKET) as usize;
    let end = (env.packet.data_end - PACKET) as usize;
    let protocol = protocol();
    let bytes = &env.frame_buffer()[start.min(end)..end];
    let part = |from: usize, len: usize| bytes.get(from..from + len).unwrap_or(&[]);
    let (addresses, next, transport) = match protocol {
        ETH_P_IP => {
            let header = usize::from(part(0, 1).first().copied().unwrap_or(0) & 15) * 4;
            (part(12, 8), part(9, 1), header)
        }
        ETH_P_IPV6 => (part(8, 32), part(6, 1), 40),
        _ => (&[][..], &[][..], 0),
    };
    let ports = match next.first() {
        Some(6 | 17 | 132) => part(transport, 4),
        _ => &[],
    };
    let mut hash = 0x811C_9DC5u32 ^ u32::from(protocol);
    for byte in addresses.iter().chain(next).chain(ports) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    hash.max(1)
}

/// `bpf_set_hash_invalid(skb)`.
pub fn set_hash_invalid(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_set_hash_invalid")?;
    clear_hash(env);
    Ok(0)
}

/// `bpf_set_hash(skb, hash)`.
pub fn set_hash(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_set_hash")?;
    env.scratch.hash = Some(a[1] as u32);
    put(field::HASH, a[1] as u32);
    Ok(0)
}

/// `bpf_skb_ecn_set_ce(skb)`: 1 where the packet now says that congestion was experienced.
pub fn ecn_set_ce(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_skb_ecn_set_ce")?;
    let protocol = inner_protocol(env);
    let header = match protocol {
        ETH_P_IP => 20,
        ETH_P_IPV6 => 40,
        _ => return Ok(0),
    };
    let (start, end) = (env.packet.network - PACKET, env.packet.data_end - PACKET);
    if start + header > end {
        return Ok(0);
    }
    let ip = &mut env.frame_buffer()[start as usize..][..header as usize];
    if protocol == ETH_P_IPV6 {
        if ip[1] >> 4 & 3 == 0 {
            return Ok(0);
        }
        ip[1] |= 3 << 4;
        return Ok(1);
    }
    match ip[1] & 3 {
        0 => return Ok(0),
        3 => return Ok(1),
        old => {
            // IP_ECN_set_ce adds to the checksum, so that its zero may be either of the two.
            let add: u16 = if old == 1 { 0xFFFD } else { 0xFFFE };
            let sum = u16::from_be_bytes([ip[10], ip[11]]).wrapping_add(add);
            let new = sum + u16::from(sum < add);
            ip[10..12].copy_from_slice(&new.to_be_bytes());
        }
    }
    ip[1] |= 3;
    Ok(1)
}

/// `bpf_skb_set_tstamp(skb, tstamp, type)`.
pub fn set_tstamp(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_skb_set_tstamp")?;
    if !matches!(protocol(), ETH_P_IP | ETH_P_IPV6) {
        return Ok(error(EOPNOTSUPP));
    }
    match (a[2] as u32, a[1]) {
        (0, _) | (1..=2, 1..) => {}
        _ => return Ok(error(EINVAL)),
    }
    put(field::TSTAMP, a[1] as u32);
    put(field::TSTAMP + 4, (a[1] >> 32) as u32);
    put(field::TSTAMP_TYPE, a[2] as u32);
    Ok(0)
}
