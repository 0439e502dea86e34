//! Helpers on XDP frames (net/core/filter.c).

use super::args::{error, readable, size, writable, xdp};
use crate::env::{Env, HelperResult};
use crate::fault::Fault;
use crate::maps::errno::{EACCES, EFAULT, EINVAL};
use crate::space::PACKET;

/// sizeof(struct xdp_frame), kept free at the start of the headroom.
const XDP_FRAME: u64 = 40;
const ETH_HLEN: u64 = 14;
/// Most bytes of metadata that skb_shared_info can tell (255; before Linux 6.8 it was 32).
const META_MAX: u64 = 255;

/// An `int` argument added to an address.
fn moved(address: u64, offset: u64) -> u64 {
    address.wrapping_add_signed(i64::from(offset as i32))
}

/// `bpf_xdp_adjust_head(ctx, offset)`: the metadata moves along.
pub fn adjust_head(env: &mut Env, a: [u64; 5]) -> HelperResult {
    xdp(env, a[0], "bpf_xdp_adjust_head")?;
    let mut packet = env.packet;
    let meta = packet.data - packet.data_meta;
    let data = moved(packet.data, a[1]);
    if data < packet.hard_start + XDP_FRAME + meta || data > packet.data_end - ETH_HLEN {
        return Ok(error(EINVAL));
    }
    let data_meta = moved(packet.data_meta, a[1]);
    if meta > 0 {
        let from = (packet.data_meta - PACKET) as usize;
        let to = (data_meta - PACKET) as usize;
        env.frame_buffer().copy_within(from..from + meta as usize, to);
    }
    packet.data_meta = data_meta;
    packet.data = data;
    env.set_packet(packet);
    Ok(0)
}

/// `bpf_xdp_adjust_meta(ctx, offset)`.
pub fn adjust_meta(env: &mut Env, a: [u64; 5]) -> HelperResult {
    xdp(env, a[0], "bpf_xdp_adjust_meta")?;
    let mut packet = env.packet;
    let meta = moved(packet.data_meta, a[1]);
    if meta < packet.hard_start + XDP_FRAME || meta > packet.data {
        return Ok(error(EINVAL));
    }
    let len = packet.data - meta;
    if len % 4 != 0 || len > META_MAX {
        return Ok(error(EACCES));
    }
    packet.data_meta = meta;
    env.set_packet(packet);
    Ok(0)
}

/// `bpf_xdp_adjust_tail(ctx, offset)`: what is gained is zero.
pub fn adjust_tail(env: &mut Env, a: [u64; 5]) -> HelperResult {
    xdp(env, a[0], "bpf_xdp_adjust_tail")?;
    let mut packet = env.packet;
    if packet.rest > 0 {
        return Err(Fault::unmodelled("bpf_xdp_adjust_tail (of a frame with fragments)"));
    }
    let end = moved(packet.data_end, a[1]);
    if end > packet.hard_end || end < packet.data + ETH_HLEN {
        return Ok(error(EINVAL));
    }
    if end > packet.data_end {
        let gained = (packet.data_end - PACKET) as usize..(end - PACKET) as usize;
        env.frame_buffer()[gained].fill(0);
    }
    packet.data_end = end;
    env.set_packet(packet);
    Ok(0)
}

/// `bpf_xdp_get_buff_len(ctx)`.
pub fn length(env: &mut Env, a: [u64; 5]) -> HelperResult {
    xdp(env, a[0], "bpf_xdp_get_buff_len")?;
    Ok(env.packet.data_end - env.packet.data + u64::from(env.packet.rest))
}

/// Where the bytes lie, or the error as r0.
fn place(env: &Env, offset: u64, len: usize, name: &str) -> Result<Result<u64, u64>, Box<Fault>> {
    let offset = u64::from(offset as u32);
    if offset > 0xFFFF || len > 0xFFFF {
        return Ok(Err(error(EFAULT)));
    }
    let linear = env.packet.data_end - env.packet.data;
    let end = offset + len as u64;
    if end > linear + u64::from(env.packet.rest) {
        return Ok(Err(error(EINVAL)));
    }
    if end > linear {
        return Err(Fault::unmodelled(format!("{name} (bytes of fragments)")));
    }
    Ok(Ok(env.packet.data + offset))
}

/// `bpf_xdp_load_bytes(ctx, offset, buf, len)`.
pub fn load(env: &mut Env, a: [u64; 5]) -> HelperResult {
    xdp(env, a[0], "bpf_xdp_load_bytes")?;
    let out = writable(env, a[2], size(a[3]))?;
    match place(env, a[1], out.len(), "bpf_xdp_load_bytes")? {
        Err(error) => Ok(error),
        Ok(address) => {
            out.copy_from_slice(readable(env, address, out.len())?);
            Ok(0)
        }
    }
}

/// `bpf_xdp_store_bytes(ctx, offset, buf, len)`.
pub fn store(env: &mut Env, a: [u64; 5]) -> HelperResult {
    xdp(env, a[0], "bpf_xdp_store_bytes")?;
    let bytes = readable(env, a[2], size(a[3]))?;
    match place(env, a[1], bytes.len(), "bpf_xdp_store_bytes")? {
        Err(error) => Ok(error),
        Ok(address) => {
            writable(env, address, bytes.len())?.copy_from_slice(bytes);
            Ok(0)
        }
    }
}
