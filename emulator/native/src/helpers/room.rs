//! `bpf_skb_adjust_room` and `bpf_skb_change_proto`: room between headers (net/core/filter.c).

use super::args::{error, skb};
use super::skb::{clear_hash, grow_head, protocol, set_protocol, ETH_P_IP, ETH_P_IPV6, SKB_MAX};
use crate::context::{get, skb as field};
use crate::env::{Context, Env, HelperResult};
use crate::fault::Fault;
use crate::maps::errno::{EALREADY, EFAULT, EINVAL, ENOMEM, ENOTSUPP};
use crate::space::PACKET;

const FIXED_GSO: u64 = 1;
const ENCAP_L3_IPV4: u64 = 1 << 1;
const ENCAP_L3_IPV6: u64 = 1 << 2;
const ENCAP_L4_GRE: u64 = 1 << 3;
const ENCAP_L4_UDP: u64 = 1 << 4;
const NO_CSUM_RESET: u64 = 1 << 5;
const ENCAP_L2_ETH: u64 = 1 << 6;
const DECAP_L3_IPV4: u64 = 1 << 7;
const DECAP_L3_IPV6: u64 = 1 << 8;
const ENCAP_L2_SHIFT: u64 = 56;
const KNOWN: u64 = 0x1FF | 0xFF << ENCAP_L2_SHIFT;
const ETH_HLEN: u64 = 14;

fn base_len(protocol: u16) -> Option<u64> {
    match protocol {
        ETH_P_IP => Some(20),
        ETH_P_IPV6 => Some(40),
        _ => None,
    }
}

fn tc(env: &Env, address: u64, name: &str) -> Result<(), Box<Fault>> {
    skb(env, address, name)?;
    match env.context {
        Context::Skb => Ok(()),
        _ => Err(Fault::unmodelled(format!("{name} outside tc"))),
    }
}

/// Make `len` zero bytes at `offset` from the start, moving what is before them down.
///
/// A cut packet may end before the offset. The kernel moves the bytes behind its end as well, which
/// are whatever lies there in memory.
fn push(env: &mut Env, offset: u64, len: u64) -> Result<(), Box<Fault>> {
    if offset > env.packet.data_end - env.packet.data {
        return Err(Fault::unmodelled("room behind the end of an skb"));
    }
    grow_head(env, len)?;
    let start = (env.packet.data - PACKET) as usize;
    let (offset, size) = (offset as usize, len as usize);
    let buffer = env.frame_buffer();
    buffer.copy_within(start + size..start + size + offset, start);
    buffer[start + offset..start + offset + size].fill(0);
    env.packet.mac -= len;
    move_network(env, env.packet.network - len);
    Ok(())
}

/// Cut `len` bytes out at `offset` from the start, moving what is before them up.
fn pop(env: &mut Env, offset: u64, len: u64) -> bool {
    let mut packet = env.packet;
    if offset + len > packet.data_end - packet.data {
        return false;
    }
    let start = (packet.data - PACKET) as usize;
    env.frame_buffer().copy_within(start..start + offset as usize, start + len as usize);
    packet.data += len;
    packet.data_meta = packet.data;
    packet.mac += len;
    env.set_packet(packet);
    move_network(env, packet.network + len);
    true
}

/// The transport header moves along where it is the same.
fn move_network(env: &mut Env, network: u64) {
    if env.scratch.transport == Some(env.packet.network) {
        env.scratch.transport = Some(network);
    }
    env.packet.network = network;
}

/// `bpf_skb_change_proto(skb, proto, flags)`: from IPv4 to IPv6 and back, headers' sizes only.
pub fn change_proto(env: &mut Env, a: [u64; 5]) -> HelperResult {
    tc(env, a[0], "bpf_skb_change_proto")?;
    if a[2] != 0 {
        return Ok(error(EINVAL));
    }
    let offset = env.packet.network - env.packet.mac;
    let to = u16::from_be(a[1] as u16);
    let done = match (protocol(), to) {
        (ETH_P_IP, ETH_P_IPV6) => {
            push(env, offset, 20)?;
            true
        }
        (ETH_P_IPV6, ETH_P_IP) => pop(env, offset, 20),
        _ => return Ok(error(ENOTSUPP)),
    };
    if !done {
        return Ok(error(ENOMEM));
    }
    set_protocol(to);
    clear_hash(env);
    Ok(0)
}

/// `bpf_skb_adjust_room(skb, len_diff, mode, flags)`.
pub fn adjust_room(env: &mut Env, a: [u64; 5]) -> HelperResult {
    tc(env, a[0], "bpf_skb_adjust_room")?;
    let (difference, mode, flags) = (a[1] as i32, a[2] as u32, a[3]);
    let (shrink, len) = (difference < 0, u64::from(difference.unsigned_abs()));
    if flags & !KNOWN != 0 {
        return Ok(error(EINVAL));
    }
    if len > 0xFFF {
        return Ok(error(EFAULT));
    }
    let Some(base) = base_len(protocol()) else { return Ok(error(ENOTSUPP)) };
    let mut offset = env.packet.network - env.packet.mac;
    match mode {
        0 => offset += base,
        1 => {}
        _ => return Ok(error(ENOTSUPP)),
    }
    let mut least = base;
    let decap = flags & (DECAP_L3_IPV4 | DECAP_L3_IPV6);
    if decap != 0 {
        if !shrink {
            return Ok(error(EINVAL));
        }
        least = match decap {
            DECAP_L3_IPV4 => 20,
            DECAP_L3_IPV6 => 40,
            _ => return Ok(error(EINVAL)),
        };
    }
    let whole = env.packet.data_end - env.packet.data;
    // Unsigned arithmetic, as the network header may lie behind the end of a cut packet.
    let current = (env.packet.data_end as u32).wrapping_sub(env.packet.network as u32);
    let bad = if shrink {
        len as u32 >= current || u64::from(current - len as u32) < least
    } else {
        whole + len > SKB_MAX
    };
    if bad {
        return Ok(error(ENOTSUPP));
    }
    let refused =
        if shrink { narrow(env, offset, len, flags) } else { widen(env, offset, len, flags)? };
    if let Some(number) = refused {
        return Ok(error(number));
    }
    if flags & NO_CSUM_RESET == 0 {
        env.scratch.csum_level = None;
    }
    Ok(0)
}

/// Whether the skb is one of several segments. A test run sets their size and no type, and of those
/// without a type the kernel changes no headers.
fn is_gso() -> bool {
    get(field::GSO_SIZE) != 0
}

/// The error, if any.
fn widen(env: &mut Env, offset: u64, len: u64, flags: u64) -> Result<Option<i64>, Box<Fault>> {
    if is_gso() {
        return Ok(Some(ENOTSUPP));
    }
    let inner_mac = flags >> ENCAP_L2_SHIFT;
    let encap = flags & (ENCAP_L3_IPV4 | ENCAP_L3_IPV6);
    if encap != 0 {
        if encap == ENCAP_L3_IPV4 | ENCAP_L3_IPV6
            || flags & (ENCAP_L4_GRE | ENCAP_L4_UDP) == ENCAP_L4_GRE | ENCAP_L4_UDP
            || (flags & ENCAP_L2_ETH != 0 && inner_mac < ETH_HLEN)
        {
            return Ok(Some(EINVAL));
        }
        if env.scratch.encapsulated {
            return Ok(Some(EALREADY));
        }
        if inner_mac > len {
            return Ok(Some(EINVAL));
        }
    }
    let mac_len = env.packet.network - env.packet.mac;
    push(env, offset, len)?;
    if encap != 0 {
        env.scratch.encapsulated = true;
        env.packet.network = env.packet.data + mac_len;
        if flags & (ENCAP_L4_GRE | ENCAP_L4_UDP) != 0 {
            let header = if encap == ENCAP_L3_IPV6 { 40 } else { 20 };
            env.scratch.transport = Some(env.packet.network + header);
        }
        match (protocol(), encap) {
            (ETH_P_IP, ENCAP_L3_IPV6) => set_protocol(ETH_P_IPV6),
            (ETH_P_IPV6, ENCAP_L3_IPV4) => set_protocol(ETH_P_IP),
            _ => {}
        }
    }
    Ok(None)
}

fn narrow(env: &mut Env, offset: u64, len: u64, flags: u64) -> Option<i64> {
    if flags & !(FIXED_GSO | DECAP_L3_IPV4 | DECAP_L3_IPV6 | NO_CSUM_RESET) != 0 {
        return Some(EINVAL);
    }
    if is_gso() {
        return Some(ENOTSUPP);
    }
    if !pop(env, offset, len) {
        return Some(ENOMEM);
    }
    match (protocol(), flags & (DECAP_L3_IPV4 | DECAP_L3_IPV6)) {
        (ETH_P_IP, DECAP_L3_IPV6) => set_protocol(ETH_P_IPV6),
        (ETH_P_IPV6, DECAP_L3_IPV4) => set_protocol(ETH_P_IP),
        _ => {}
    }
    None
}
