//! LD_ABS and LD_IND: loads from an skb at an offset, in network byte order.
//!
//! As `bpf_skb_load_helper_*` and `bpf_internal_load_pointer_neg_helper`: negative offsets count from
//! the network header (SKF_NET_OFF) or the link layer's (SKF_LL_OFF). -1 stands for a load outside,
//! which ends the function with 0.

use crate::env::{Env, HelperResult};
use crate::fault::{Fault, Kind};
use crate::space;

const SKF_NET_OFF: i64 = -0x10_0000;
const SKF_LL_OFF: i64 = -0x20_0000;
const OUTSIDE: u64 = -1i64 as u64;

/// `context` must be the run's own.
pub fn load(env: &mut Env, context: u64, offset: i32, size: u64) -> HelperResult {
    if context != space::CONTEXT {
        return Err(Fault::because(Kind::Read, "LD_ABS without the context in r6"));
    }
    let packet = env.packet;
    let offset = i64::from(offset);
    let (start, lowest) = if offset >= 0 {
        (packet.data as i64 + offset, packet.data)
    } else if offset >= SKF_NET_OFF {
        (packet.network as i64 + offset - SKF_NET_OFF, packet.hard_start)
    } else if offset >= SKF_LL_OFF {
        (packet.mac as i64 + offset - SKF_LL_OFF, packet.hard_start)
    } else {
        return Ok(OUTSIDE);
    };
    let start = start as u64;
    if start < lowest || start + size > packet.data_end {
        return Ok(OUTSIDE);
    }
    // SAFETY: between the buffer's start and the packet's end, as just checked.
    let byte = |i: u64| u64::from(unsafe { *((start + i) as *const u8) });
    Ok((0..size).fold(0, |value, i| value << 8 | byte(i)))
}
