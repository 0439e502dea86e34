//! Laying a packet out for a program, and reading it back.

use crate::context;
use crate::env::{Context, Env, Packet};
use crate::space;

/// XDP's headroom, and what the kernel's test run gives a frame: a page less head- and tailroom.
const XDP_HEADROOM: u64 = 256;
const XDP_FRAME: u64 = 4096;
const SHARED_INFO: u64 = 320;
const XDP_LINEAR: usize = (XDP_FRAME - XDP_HEADROOM - SHARED_INFO) as usize;
/// Room below an skb's frame, of which programs see `SKB_HEADROOM` as the buffer's head.
const SKB_ROOM: u64 = 4096;
const SKB_HEADROOM: u64 = 64;
const ETHERNET: usize = 14;
/// Bytes before the data that hold zeros at the start.
const CLEARED: u64 = 256;

/// Where a frame of `len` bytes lies.
#[inline]
pub fn geometry(context: Context, len: usize) -> Packet {
    match context {
        Context::Xdp => {
            let linear = len.min(XDP_LINEAR);
            let data = space::PACKET + XDP_HEADROOM;
            Packet {
                hard_start: space::PACKET,
                data_meta: data,
                data,
                data_end: data + linear as u64,
                hard_end: space::PACKET + XDP_FRAME - SHARED_INFO,
                mac: data,
                network: data + linear.min(ETHERNET) as u64,
                rest: (len - linear) as u32,
                changed: false,
            }
        }
        Context::Skb | Context::SkbL3 => {
            let mac = space::PACKET + SKB_ROOM;
            let network = mac + len.min(ETHERNET) as u64;
            let data = if context == Context::Skb { mac } else { network };
            Packet {
                hard_start: mac - SKB_HEADROOM,
                data_meta: data,
                data,
                data_end: mac + len as u64,
                hard_end: space::PACKET + space::PACKET_MAX as u64 - SKB_ROOM,
                mac,
                network,
                rest: 0,
                changed: false,
            }
        }
        Context::Plain => Packet::default(),
    }
}

/// Put frame and context in place; `initial` receives the context's bytes.
#[inline]
pub fn set_up(env: &mut Env, frame: &[u8], given: &[u8], initial: &mut Vec<u8>) {
    let packet = geometry(env.context, frame.len());
    env.packet = packet;
    let length = context::length(env.context).unwrap_or(given.len());
    initial.resize(length, 0);
    context::build(env.context, given, &packet, frame, initial);
    env.context_len = length;
    // SAFETY: the low window is mapped; the frame's place is inside by `geometry` and FRAME_MAX.
    unsafe {
        std::ptr::copy_nonoverlapping(initial.as_ptr(), space::CONTEXT as *mut u8, length);
        if env.context != Context::Plain {
            std::ptr::write_bytes((packet.mac - CLEARED) as *mut u8, 0, CLEARED as usize);
            let linear = frame.len() - packet.rest as usize;
            std::ptr::copy_nonoverlapping(frame.as_ptr(), packet.mac as *mut u8, linear);
        }
    }
}

/// The frame as it comes out without a change: an skb's from its data.
#[inline]
pub fn unchanged(context: Context, frame: &[u8]) -> &[u8] {
    match context {
        Context::Xdp | Context::Skb => frame,
        Context::SkbL3 => &frame[frame.len().min(ETHERNET)..],
        Context::Plain => &[],
    }
}

/// Bytes of the low window.
///
/// # Safety
/// `start..end` must lie in the frame buffer, and the world must be active.
#[inline]
pub unsafe fn bytes<'a>(start: u64, end: u64) -> &'a [u8] {
    if start >= end {
        return &[];
    }
    std::slice::from_raw_parts(start as *const u8, (end - start) as usize)
}
