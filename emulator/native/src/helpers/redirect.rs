//! Helpers that name where a packet goes. The event is the call: whether the packet goes there
//! depends on the verdict, which is compared as well.

use super::args::{error, map, readable, size, skb};
use super::unmodelled;
use crate::env::{Context, Env, HelperResult};
use crate::fault::Fault;
use crate::maps::errno::EINVAL;

const XDP_ABORTED: u64 = 0;
const XDP_REDIRECT: u64 = 4;
const TC_ACT_SHOT: u64 = 2;
const TC_ACT_REDIRECT: u64 = 7;
const BPF_F_INGRESS: u64 = 1;
const BPF_F_BROADCAST: u64 = 8;
const BPF_F_EXCLUDE_INGRESS: u64 = 16;
/// sizeof(struct bpf_redir_neigh)
const NEIGH_SIZE: usize = 20;

const HEAD: usize = 12;

/// What all these events begin with.
fn payload(ifindex: u64, flags: u64) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    bytes[..4].copy_from_slice(&(ifindex as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// `bpf_redirect(ifindex, flags)`.
pub fn redirect(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let (allowed, refused, taken) = match env.context {
        Context::Xdp => (0, XDP_ABORTED, XDP_REDIRECT),
        Context::Skb | Context::SkbL3 => (BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_REDIRECT),
        Context::Plain => return Err(Fault::unmodelled("bpf_redirect without a packet")),
    };
    if a[1] & !allowed != 0 {
        return Ok(refused);
    }
    env.event("redirect", None, &payload(a[0], a[1]));
    Ok(taken)
}

/// `bpf_redirect_peer(ifindex, flags)`.
pub fn peer(env: &mut Env, a: [u64; 5]) -> HelperResult {
    if a[1] != 0 {
        return Ok(TC_ACT_SHOT);
    }
    env.event("redirect_peer", None, &payload(a[0], a[1]));
    Ok(TC_ACT_REDIRECT)
}

/// `bpf_redirect_neigh(ifindex, params, plen, flags)`.
pub fn neigh(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let params = readable(env, a[1], size(a[2]))?;
    if (!params.is_empty() && params.len() < NEIGH_SIZE) || a[3] != 0 {
        return Ok(TC_ACT_SHOT);
    }
    let given = params.len().min(NEIGH_SIZE);
    let mut bytes = [0; HEAD + NEIGH_SIZE];
    bytes[..HEAD].copy_from_slice(&payload(a[0], a[3]));
    bytes[HEAD..HEAD + given].copy_from_slice(&params[..given]);
    env.event("redirect_neigh", None, &bytes[..HEAD + given]);
    Ok(TC_ACT_REDIRECT)
}

/// `bpf_redirect_map(map, key, flags)`.
pub fn by_map(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let map = map(env, a[0])?;
    let extra = if env.maps.is_devmap(map) { BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS } else { 0 };
    // The kernel takes the key as u32 for the lookup.
    let found = env.maps.has_target(map, a[1] as u32).map_err(|_| unmodelled(env, 51, a))?;
    let result = if a[2] & !(3 | extra) != 0 {
        XDP_ABORTED
    } else if !found && a[2] & BPF_F_BROADCAST == 0 {
        a[2] & 3
    } else {
        XDP_REDIRECT
    };
    let mut bytes = [0; 24];
    for (place, word) in bytes.chunks_exact_mut(8).zip([a[1], a[2], result]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    env.event("redirect_map", Some(map), &bytes);
    Ok(result)
}

/// `bpf_clone_redirect(skb, ifindex, flags)`: the device is thought to be there and to take it.
pub fn clone(env: &mut Env, a: [u64; 5]) -> HelperResult {
    skb(env, a[0], "bpf_clone_redirect")?;
    if a[2] & !BPF_F_INGRESS != 0 {
        return Ok(error(EINVAL));
    }
    let len = (env.packet.data_end - env.packet.data) as usize;
    let mut bytes = payload(a[1], a[2]).to_vec();
    bytes.extend_from_slice(readable(env, env.packet.data, len)?);
    env.event("clone_redirect", None, &bytes);
    Ok(0)
}
