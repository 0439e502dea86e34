//! `bpf_skb_vlan_push` and `bpf_skb_vlan_pop`: the outer tag is in the skb, not in its bytes
//! (skb_vlan_push and skb_vlan_pop in net/core/skbuff.c).

use super::args::{error, skb};
use super::skb::{grow_head, protocol, set_protocol};
use crate::context::{get, put, skb as field};
use crate::env::{Context, Env, HelperResult};
use crate::fault::Fault;
use crate::maps::errno::ENOMEM;
use crate::space::PACKET;

const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88A8;
const VLAN_HLEN: u64 = 4;
const ADDRESSES: usize = 12;

fn tc(env: &Env, address: u64, name: &str) -> Result<(), Box<Fault>> {
    skb(env, address, name)?;
    match env.context {
        Context::Skb => Ok(()),
        _ => Err(Fault::unmodelled(format!("{name} outside tc"))),
    }
}

pub fn is_vlan(protocol: u16) -> bool {
    matches!(protocol, ETH_P_8021Q | ETH_P_8021AD)
}

fn set_tag(protocol: u16, tci: u16) {
    put(field::VLAN_PRESENT, 1);
    put(field::VLAN_TCI, u32::from(tci));
    put(field::VLAN_PROTO, u32::from(protocol.to_be()));
}

/// `bpf_skb_vlan_push(skb, vlan_proto, vlan_tci)`: a tag that the skb has goes into the bytes.
pub fn push(env: &mut Env, a: [u64; 5]) -> HelperResult {
    tc(env, a[0], "bpf_skb_vlan_push")?;
    let wanted = u16::from_be(a[1] as u16);
    let wanted = if is_vlan(wanted) { wanted } else { ETH_P_8021Q };
    if get(field::VLAN_PRESENT) != 0 {
        let (proto, tci) = (get(field::VLAN_PROTO) as u16, get(field::VLAN_TCI) as u16);
        grow_head(env, VLAN_HLEN)?;
        let start = (env.packet.data - PACKET) as usize;
        let frame = &mut env.frame_buffer()[start..];
        frame.copy_within(4..4 + ADDRESSES, 0);
        frame[12..14].copy_from_slice(&proto.to_ne_bytes());
        frame[14..16].copy_from_slice(&tci.to_be_bytes());
        env.packet.mac -= VLAN_HLEN;
        env.packet.network -= VLAN_HLEN;
        set_protocol(u16::from_be(proto));
    }
    set_tag(wanted, a[2] as u16);
    Ok(0)
}

/// `bpf_skb_vlan_pop(skb)`: the next tag in the bytes, if any, becomes the skb's.
pub fn pop(env: &mut Env, a: [u64; 5]) -> HelperResult {
    tc(env, a[0], "bpf_skb_vlan_pop")?;
    if get(field::VLAN_PRESENT) != 0 {
        put(field::VLAN_PRESENT, 0);
        put(field::VLAN_TCI, 0);
        put(field::VLAN_PROTO, 0);
    } else {
        if !is_vlan(protocol()) {
            return Ok(0);
        }
        if take(env).is_none() {
            return Ok(error(ENOMEM));
        }
    }
    let next = protocol();
    if !is_vlan(next) {
        return Ok(0);
    }
    match take(env) {
        Some(tci) => set_tag(next, tci),
        None => return Ok(error(ENOMEM)),
    }
    Ok(0)
}

/// Take the tag out of the bytes; None where they are too short.
fn take(env: &mut Env) -> Option<u16> {
    let mut packet = env.packet;
    if packet.data_end - packet.data < 18 {
        return None;
    }
    let start = (packet.data - PACKET) as usize;
    let frame = &mut env.frame_buffer()[start..];
    let tci = u16::from_be_bytes([frame[14], frame[15]]);
    let inner = u16::from_be_bytes([frame[16], frame[17]]);
    // Below 0x600 it is a length; what follows tells which kind of frame (802.3 or 802.2).
    let raw = u16::from_be_bytes([frame[18], frame[19]]);
    let inner = match inner {
        0x600.. => inner,
        _ if raw == 0xFFFF => 1,
        _ => 4,
    };
    frame.copy_within(0..ADDRESSES, 4);
    packet.data += VLAN_HLEN;
    packet.data_meta = packet.data;
    packet.mac += VLAN_HLEN;
    packet.network = packet.network.max(packet.data + 14);
    env.set_packet(packet);
    env.scratch.mac_len = packet.network - packet.mac;
    set_protocol(inner);
    Some(tci)
}
