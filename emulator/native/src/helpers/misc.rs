//! Time, randomness, CPU, locks and loops.

use super::args::{error, writable};
use super::names::name;
use super::recorded::given;
use crate::env::{Env, HelperResult};
use crate::maps::errno::{E2BIG, EINVAL};

/// Most iterations of `bpf_loop`.
const BPF_MAX_LOOPS: u64 = 8 << 20;

/// All clocks are one: the packet's time, and a step more at every question.
#[inline]
pub fn time(env: &mut Env, id: u32) -> HelperResult {
    if !env.answers.is_empty() {
        if let Some(answer) = given(env, &name(id)[4..]) {
            return answer;
        }
    }
    let now = env.now;
    env.now += env.answers.step;
    Ok(now)
}

/// In ticks of 4 ms (HZ = 250).
pub fn jiffies(env: &mut Env) -> HelperResult {
    if let Some(answer) = given(env, "jiffies64") {
        return answer;
    }
    let now = env.now;
    env.now += env.answers.step;
    Ok(now / 4_000_000)
}

pub fn random(env: &mut Env) -> HelperResult {
    match given(env, "get_prandom_u32") {
        Some(answer) => answer,
        None => Ok(env.random() & 0xFFFF_FFFF),
    }
}

pub fn cpu(env: &mut Env) -> HelperResult {
    given(env, "get_smp_processor_id").unwrap_or(Ok(0))
}

pub fn node(env: &mut Env) -> HelperResult {
    given(env, "get_numa_node_id").unwrap_or(Ok(0))
}

/// Nothing else runs, so that locks are always free. That every lock is unlocked is the verifier's.
pub fn spin_lock(env: &mut Env, a: [u64; 5]) -> HelperResult {
    writable(env, a[0], 4).map(|_| 0)
}

/// `bpf_loop(count, callback, ctx, flags)`: the callback gets index and ctx, and ends it by 1. The
/// kernel puts the loop into the program's code where flags are 0: then the count is not cut to 32
/// bits, and the error is 32 bits long.
pub fn repeat(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let count = a[0];
    if a[3] != 0 {
        return Ok(error(EINVAL));
    }
    if count > BPF_MAX_LOOPS {
        return Ok(error(E2BIG) & 0xFFFF_FFFF);
    }
    for index in 0..count {
        if env.call_function(a[1], [index, a[2], 0, 0, 0], a[4])? != 0 {
            return Ok(index + 1);
        }
    }
    Ok(count)
}
