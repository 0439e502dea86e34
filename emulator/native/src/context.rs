//! Layouts of `struct xdp_md` and `struct __sk_buff`, and what programs may read and write of them.
//!
//! Offsets are those of the uapi header, which are ABI; the access rules are those of
//! `xdp_is_valid_access`, `tc_cls_act_is_valid_access`, `cg_skb_is_valid_access`, `lwt_is_valid_access`
//! and `sk_filter_is_valid_access` in net/core/filter.c.

use crate::env::{Context, Env, Packet};
use crate::space;

/// Offsets in `struct xdp_md`.
pub mod xdp {
    pub const DATA: usize = 0;
    pub const DATA_END: usize = 4;
    pub const DATA_META: usize = 8;
    pub const INGRESS_IFINDEX: usize = 12;
    pub const SIZE: usize = 24;
}

/// Offsets in `struct __sk_buff`.
pub mod skb {
    pub const LEN: usize = 0;
    pub const PKT_TYPE: usize = 4;
    pub const MARK: usize = 8;
    pub const QUEUE_MAPPING: usize = 12;
    pub const PROTOCOL: usize = 16;
    pub const VLAN_PRESENT: usize = 20;
    pub const VLAN_TCI: usize = 24;
    pub const VLAN_PROTO: usize = 28;
    pub const PRIORITY: usize = 32;
    pub const IFINDEX: usize = 40;
    pub const TC_INDEX: usize = 44;
    pub const CB: usize = 48;
    pub const HASH: usize = 68;
    pub const TC_CLASSID: usize = 72;
    pub const DATA: usize = 76;
    pub const DATA_END: usize = 80;
    pub const FAMILY: usize = 88;
    pub const DATA_META: usize = 140;
    pub const FLOW_KEYS: usize = 144;
    pub const TSTAMP: usize = 152;
    pub const WIRE_LEN: usize = 160;
    pub const GSO_SEGS: usize = 164;
    pub const SK: usize = 168;
    pub const GSO_SIZE: usize = 176;
    pub const TSTAMP_TYPE: usize = 180;
    pub const HWTSTAMP: usize = 184;
    pub const SIZE: usize = 192;
}

/// Write one u32 field of the context.
#[inline]
pub fn put(offset: usize, value: u32) {
    // SAFETY: the context area is mapped while any world exists, and offsets are constants inside it.
    unsafe { ((space::CONTEXT as usize + offset) as *mut u32).write(value) };
}

/// Read one u32 field of the context.
#[inline]
pub fn get(offset: usize) -> u32 {
    // SAFETY: as in `put`.
    unsafe { ((space::CONTEXT as usize + offset) as *const u32).read() }
}

/// Set the context's data pointers, and an skb's length, from `env.packet`.
#[inline]
pub fn set_pointers(env: &mut Env) {
    let packet = &env.packet;
    match env.context {
        Context::Xdp => {
            put(xdp::DATA, packet.data as u32);
            put(xdp::DATA_END, packet.data_end as u32);
            put(xdp::DATA_META, packet.data_meta as u32);
        }
        Context::Skb | Context::SkbL3 => {
            put(skb::LEN, (packet.data_end - packet.data) as u32);
            put(skb::DATA, packet.data as u32);
            put(skb::DATA_END, packet.data_end as u32);
            put(skb::DATA_META, packet.data_meta as u32);
        }
        Context::Plain => {}
    }
}

/// What a program may do with bytes of its context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Allowed,
    /// The kernel's verifier refuses it.
    Refused,
    /// The kernel allows it; this emulator has nothing there.
    Unmodelled(&'static str),
}

fn allowed_if(condition: bool) -> Access {
    if condition {
        Access::Allowed
    } else {
        Access::Refused
    }
}

/// Whether a program may access `size` bytes at `offset` of its context.
pub fn access(context: Context, offset: usize, size: usize, write: bool) -> Access {
    match context {
        Context::Xdp => allowed_if(!write && size == 4 && offset % 4 == 0),
        Context::Skb => skb_access(offset, size, write, &TC_WRITES, false),
        Context::SkbL3 => skb_access(offset, size, write, &L3_WRITES, true),
        Context::Plain if write => Access::Unmodelled("write to a context without layout"),
        Context::Plain => Access::Allowed,
    }
}

/// Fields that tc programs may write, `cb` and `tstamp` aside.
const TC_WRITES: [usize; 5] =
    [skb::MARK, skb::QUEUE_MAPPING, skb::PRIORITY, skb::TC_INDEX, skb::TC_CLASSID];
/// Fields that cgroup_skb programs may write; lwt and socket filters may write fewer of these.
const L3_WRITES: [usize; 2] = [skb::MARK, skb::PRIORITY];
const CB_END: usize = skb::HASH;

fn skb_access(offset: usize, size: usize, write: bool, writes: &[usize], l3: bool) -> Access {
    if offset % size != 0 || offset + size > skb::SIZE {
        return Access::Refused;
    }
    let field = offset & !3;
    match field {
        _ if (skb::CB..CB_END).contains(&offset) => allowed_if(offset + size <= CB_END),
        skb::DATA | skb::DATA_END => allowed_if(!write && size == 4),
        skb::DATA_META => allowed_if(!write && size == 4 && !l3),
        skb::FLOW_KEYS | 148 => Access::Unmodelled("__sk_buff flow_keys"),
        skb::TSTAMP | 156 => allowed_if(offset == skb::TSTAMP && size == 8),
        skb::SK | 172 if offset == skb::SK && size == 8 && !write => {
            Access::Unmodelled("__sk_buff sk")
        }
        skb::SK | 172 => Access::Refused,
        skb::HWTSTAMP | 188 => allowed_if(offset == skb::HWTSTAMP && size == 8 && !write),
        skb::TSTAMP_TYPE => allowed_if(offset == skb::TSTAMP_TYPE && size == 1 && !write),
        skb::FAMILY..skb::DATA_META if l3 => Access::Unmodelled("__sk_buff socket fields"),
        skb::FAMILY..skb::DATA_META => Access::Refused,
        skb::TC_CLASSID | skb::WIRE_LEN if l3 => Access::Refused,
        _ if write => allowed_if(size == 4 && writes.contains(&offset)),
        _ => allowed_if(size <= 4),
    }
}

/// Length that the context of a kind has, `None` where it is as long as it is given.
pub fn length(context: Context) -> Option<usize> {
    match context {
        Context::Xdp => Some(xdp::SIZE),
        Context::Skb | Context::SkbL3 => Some(skb::SIZE),
        Context::Plain => None,
    }
}

fn set(out: &mut [u8], offset: usize, value: u32) {
    out[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

/// Make the initial context for a frame in `out`, which is as long as the context. `given` is the
/// recording's, empty for what the kernel's test run has by itself (ingress_ifindex 1 for XDP,
/// ifindex 1 for an skb: the loopback device).
pub fn build(context: Context, given: &[u8], packet: &Packet, frame: &[u8], out: &mut [u8]) {
    if context == Context::Plain {
        out.copy_from_slice(given);
        return;
    }
    if given.is_empty() {
        out.fill(0);
    } else {
        out.copy_from_slice(given);
    }
    if context == Context::Xdp {
        set(out, xdp::DATA, packet.data as u32);
        set(out, xdp::DATA_END, packet.data_end as u32);
        set(out, xdp::DATA_META, packet.data_meta as u32);
        if given.is_empty() {
            set(out, xdp::INGRESS_IFINDEX, 1);
        }
        return;
    }
    let len = (packet.data_end - packet.data) as u32;
    set(out, skb::LEN, len);
    set(out, skb::DATA, packet.data as u32);
    set(out, skb::DATA_END, packet.data_end as u32);
    set(out, skb::DATA_META, packet.data_meta as u32);
    set(out, skb::PKT_TYPE, packet_type(frame));
    set(out, skb::PROTOCOL, u32::from(protocol(frame)));
    out[skb::FLOW_KEYS..skb::TSTAMP].fill(0);
    out[skb::SK..skb::GSO_SIZE].fill(0);
    if out[skb::IFINDEX..skb::IFINDEX + 4] == [0; 4] {
        set(out, skb::IFINDEX, 1);
    }
    if !given.is_empty() && out[skb::WIRE_LEN..skb::WIRE_LEN + 4] == [0; 4] {
        set(out, skb::WIRE_LEN, len);
    }
}

/// As eth_type_trans on a loopback device, whose addresses are zero.
fn packet_type(frame: &[u8]) -> u32 {
    match frame {
        [0, 0, 0, 0, 0, 0, ..] => 0,
        [first, ..] if first & 1 != 0 => 2,
        _ => 3,
    }
}

/// `skb->protocol` in network byte order, as eth_type_trans gives it.
fn protocol(frame: &[u8]) -> u16 {
    let Some(bytes) = frame.get(12..14) else { return 0 };
    let kind = u16::from_be_bytes([bytes[0], bytes[1]]);
    if kind >= 0x600 {
        kind.to_be()
    } else if frame.get(14..16) == Some(&[0xff, 0xff]) {
        1u16.to_be()
    } else {
        4u16.to_be()
    }
}
