//! The kernel's helper functions, as far as they are modelled.
//!
//! Every pointer argument is checked against what the program may touch; a bad one is a fault with
//! address and size. A helper that is not modelled is a fault that names it, never a made-up answer.
//!
//! Payloads of events (numbers little-endian as on all machines that this runs on):
//! - "perf", "ringbuf": the record; perf: the flags' index (u32) first, packet bytes last.
//! - "printk": the text. "trace" kinds have no others.
//! - "redirect", "redirect_peer": ifindex (u32), flags (u64); "redirect_neigh": then its parameters.
//! - "redirect_map": key (u64), flags (u64), result (u64).
//! - "clone_redirect": ifindex (u32), flags (u64), the packet.

mod answers;
mod args;
mod csum;
mod format;
mod mapping;
mod misc;
mod names;
mod print;
mod probe;
mod recorded;
mod records;
mod redirect;
mod room;
mod skb;
mod skb_csum;
mod text;
mod vlan;
mod xdp;

pub use answers::{Answer, Answers};
pub use names::name;

use crate::env::{Env, HelperResult};
use crate::fault::Fault;
use crate::maps::of_handle;

/// State of helpers that lasts for one packet.
#[derive(Default)]
pub struct PacketState {
    /// Bytes of the scratch area in use: keys that callbacks see.
    scratch: u64,
    /// The readers of ring buffers have caught up with earlier packets.
    drained: bool,
    /// The flow hash, once it was asked for or set.
    hash: Option<u32>,
    /// `skb->csum_level` where `ip_summed` is CHECKSUM_UNNECESSARY; else it is CHECKSUM_NONE.
    csum_level: Option<u8>,
    /// `skb->encapsulation`.
    encapsulated: bool,
    /// `skb->transport_header`, once a helper set it.
    transport: Option<u64>,
    /// `skb->mac_len`, which a test run leaves at 0 until a helper sets it.
    mac_len: u64,
}

impl PacketState {
    /// Bytes of the scratch area that the program may read now.
    #[inline]
    pub fn scratch_used(&self) -> u64 {
        self.scratch
    }

    /// A packet begins.
    #[inline]
    pub fn reset(&mut self) {
        *self = PacketState::default();
    }
}

/// Run helper `id` (all but tail_call). The result is r0.
pub fn call(env: &mut Env, id: u32, a: [u64; 5]) -> HelperResult {
    match id {
        1 => mapping::lookup(env, a),
        2 => mapping::update(env, a),
        3 => mapping::delete(env, a),
        87 => mapping::push(env, a),
        88 => mapping::pop(env, a, false),
        89 => mapping::pop(env, a, true),
        164 => mapping::for_each(env, a),
        195 => mapping::lookup_percpu(env, a),
        5 | 125 | 160 | 208 => misc::time(env, id),
        7 => misc::random(env),
        8 => misc::cpu(env),
        42 => misc::node(env),
        93 | 94 => misc::spin_lock(env, a),
        118 => misc::jiffies(env),
        181 => misc::repeat(env, a),
        105 => print::strtol(env, a, true),
        106 => print::strtol(env, a, false),
        182 => print::strncmp(env, a),
        6 => print::printk(env, a),
        177 => print::vprintk(env, a),
        165 => print::snprintf(env, a),
        4 | 112 | 113 => probe::read(env, a, id == 113),
        45 | 114 | 115 => probe::read_str(env, a, id == 115),
        25 => records::perf_output(env, a),
        130 => records::ringbuf_output(env, a),
        131 => records::reserve(env, a),
        132 => records::commit(env, a, false),
        133 => records::commit(env, a, true),
        134 => records::query(env, a),
        23 => redirect::redirect(env, a),
        155 => redirect::peer(env, a),
        152 => redirect::neigh(env, a),
        51 => redirect::by_map(env, a),
        13 => redirect::clone(env, a),
        44 => xdp::adjust_head(env, a),
        54 => xdp::adjust_meta(env, a),
        65 => xdp::adjust_tail(env, a),
        188 => xdp::length(env, a),
        189 => xdp::load(env, a),
        190 => xdp::store(env, a),
        9 => skb::store(env, a),
        26 => skb::load(env, a),
        68 => skb::load_relative(env, a),
        39 => skb::pull(env, a),
        38 => skb::change_tail(env, a),
        43 => skb::change_head(env, a),
        32 => skb::change_type(env, a),
        34 => skb::get_hash(env, a),
        41 => skb::set_hash_invalid(env, a),
        48 => skb::set_hash(env, a),
        97 => skb::ecn_set_ce(env, a),
        192 => skb::set_tstamp(env, a),
        31 => room::change_proto(env, a),
        50 => room::adjust_room(env, a),
        18 => vlan::push(env, a),
        19 => vlan::pop(env, a),
        10 => skb_csum::l3_replace(env, a),
        11 => skb_csum::l4_replace(env, a),
        28 => skb_csum::diff(env, a),
        40 => skb_csum::update(env, a),
        135 => skb_csum::level(env, a),
        16 => recorded::comm(env, a),
        69 => recorded::into(env, id, a[1], a[2]),
        20 => recorded::into(env, id, a[1], a[2]),
        29 => recorded::into(env, id, a[1], a[2]),
        120 => recorded::into(env, id, a[2], a[3]),
        163 => recorded::check_mtu(env, a),
        _ => recorded::integer(env, id, a),
    }
}

/// The fault of a helper that is not modelled, with the kind of the map that it was given.
fn unmodelled(env: &Env, id: u32, a: [u64; 5]) -> Box<Fault> {
    let map = a.iter().find_map(|arg| of_handle(*arg).filter(|map| *map < env.maps.count()));
    match map {
        Some(map) => Fault::unmodelled(format!("{} ({})", name(id), env.maps.kind_name(map))),
        None => Fault::unmodelled(name(id)),
    }
}

/// After a run that ended well. Records that were reserved and neither submitted nor discarded, which
/// the kernel's verifier does not let happen, are lost.
pub fn finish(_env: &mut Env) -> Result<(), Box<Fault>> {
    Ok(())
}
