//! What uBPF calls during a run: helpers, memory checks, every instruction, errors.
//!
//! All of it returns or leaves by `bpfchain_stop`; no panic passes through C.

use std::ffi::{c_int, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::context;
use crate::engine::{fall, tail_call, tail_call_sub, Run, Stop, RUN};
use crate::env::FRAME;
use crate::fault::{Fault, Kind};
use crate::legacy;
use crate::program::Trace;
use crate::rewrite::{ids, CALLS, COUNTS, RARE, WRITES};
use crate::space;
use crate::vm::Callbacks;

extern "C" {
    fn bpfchain_stop(code: c_int) -> !;
}

/// For `Vm::load`.
pub const CALLBACKS: Callbacks = Callbacks { dispatch, bounds, step };

unsafe fn serve(run: *mut Run, id: u32, args: [u64; 5]) -> Result<u64, Stop> {
    match id {
        ids::TAIL_CALL => return tail_call(run, &args),
        ids::TAIL_CALL_SUB => return tail_call_sub(run, &args),
        ids::TAIL_RESULT => return Ok((*run).tail_result),
        _ => {}
    }
    let env = &mut *(*run).env;
    env.frame = if (*run).registers.is_null() { 0 } else { *(*run).registers.add(10) };
    let result = match id {
        ids::LOAD_BYTE => legacy::load(env, args[0], args[1] as i32, 1),
        ids::LOAD_HALF => legacy::load(env, args[0], args[1] as i32, 2),
        ids::LOAD_WORD => legacy::load(env, args[0], args[1] as i32, 4),
        id if id >= ids::KFUNC => {
            Err(Fault::unmodelled(format!("kernel function {}", id - ids::KFUNC)))
        }
        id => crate::helpers::call(env, id, args),
    };
    result.map_err(|fault| match (*run).stopped {
        Some(stop) => stop,
        None => fall(run, fault),
    })
}

/// uBPF calls helpers here.
unsafe extern "C" fn dispatch(
    r1: u64,
    r2: u64,
    r3: u64,
    r4: u64,
    r5: u64,
    id: u32,
    _cookie: *mut c_void,
) -> u64 {
    let run = RUN.get();
    let code = match catch_unwind(AssertUnwindSafe(|| serve(run, id, [r1, r2, r3, r4, r5]))) {
        Ok(Ok(value)) => return value,
        Ok(Err(stop)) => stop as c_int,
        Err(panic) => {
            drop(panic);
            fall(run, Fault::because(Kind::Crash, format!("helper {id} of the emulator panicked")));
            Stop::Fault as c_int
        }
    };
    bpfchain_stop(code)
}

/// uBPF asks here whether it may touch memory.
unsafe extern "C" fn bounds(trace: *mut c_void, address: u64, size: u64) -> bool {
    let run = RUN.get();
    let frame = *(*run).registers.add(10);
    let end = address + size; // uBPF has looked for overflow
    if address >= frame - FRAME && end <= frame {
        return true;
    }
    let env = (*run).env;
    if address >= (*env).packet.data && end <= (*env).packet.data_end {
        return true;
    }
    allowed(run, trace.cast::<Trace>(), frame, address, size)
}

#[inline(never)]
unsafe fn allowed(run: *mut Run, trace: *const Trace, frame: u64, address: u64, size: u64) -> bool {
    let env = &mut *(*run).env;
    let write = *(*trace).info.add((*run).pc) & WRITES != 0;
    env.frame = frame;
    let context_end = space::CONTEXT + env.context_len as u64;
    let fault = if address >= space::CONTEXT && address < context_end {
        match context::access(
            env.context,
            (address - space::CONTEXT) as usize,
            size as usize,
            write,
        ) {
            context::Access::Allowed if address + size <= context_end => return true,
            context::Access::Unmodelled(what) => Fault::unmodelled(what),
            _ => Fault::at(if write { Kind::Write } else { Kind::Read }, address, size as usize),
        }
    } else if env.allows(address, size, write) {
        return true;
    } else if env
        .memory
        .iter()
        .any(|(start, bytes)| address >= *start && address - start < bytes.len() as u64)
    {
        Fault::unmodelled("direct load of recorded memory")
    } else {
        Fault::at(if write { Kind::Write } else { Kind::Read }, address, size as usize)
    };
    fall(run, fault);
    false
}

/// uBPF calls this before every instruction.
unsafe extern "C" fn step(
    trace: *mut c_void,
    pc: c_int,
    registers: *const u64,
    _stack: *const u8,
    _stack_len: usize,
    _register_mask: u64,
    _stack_mask: *const u8,
) {
    let run = RUN.get();
    let trace = trace.cast::<Trace>();
    let pc = pc as usize;
    let info = *(*trace).info.add(pc);
    (*run).pc = pc;
    (*run).registers = registers;
    let executed = (*run).executed + u64::from(info & COUNTS);
    (*run).executed = executed;
    if executed > (*run).limit || info & RARE != 0 {
        unusual(run, trace, info, registers);
    }
    if (*run).coverage {
        let previous = (*run).previous;
        let cover = (*trace).cover;
        *cover.add(pc) |= 1;
        *cover.add(previous) |= 2 << u8::from(pc != previous + 1);
    }
    (*run).previous = pc;
}

#[cold]
#[inline(never)]
unsafe fn unusual(run: *mut Run, trace: *const Trace, info: u8, registers: *const u64) {
    if (*run).executed > (*run).limit {
        (*run).executed = (*run).limit;
        let what = format!("more than {} instructions", (*run).limit);
        let stop = fall(run, Fault::because(Kind::Limit, what));
        bpfchain_stop(stop as c_int);
    }
    if info & CALLS != 0 {
        if *registers.add(10) - FRAME < (*run).floor {
            let stop = fall(run, Fault::because(Kind::Stack, "calls nested deeper than 8 frames"));
            bpfchain_stop(stop as c_int);
        }
    } else if (*run).previous == (*trace).start {
        // uBPF starts with whatever lay on the host's stack in its registers.
        let registers = registers.cast_mut();
        for register in [0, 2, 3, 4, 5, 6, 7, 8, 9] {
            *registers.add(register) = (*run).fill;
        }
    }
}

/// The shim calls this for each of uBPF's error messages. Only one kind comes without a refused access
/// before it: an address that runs over the end of the address space.
///
/// # Safety
/// Called by uBPF during a run only.
#[no_mangle]
pub unsafe extern "C" fn bpfchain_on_error() {
    let run = RUN.get();
    if (*run).env.is_null() || (*run).trace.is_null() || (*run).fallen.is_some() {
        return;
    }
    let trace = &*(*run).trace;
    let program = &(&(*(*run).programs))[trace.program as usize];
    let Some(insn) =
        (*run).pc.checked_sub(trace.prologue).and_then(|pc| program.code.insns.get(pc))
    else {
        return;
    };
    let Some(write) = insn.memory_access() else { return };
    let base = *(*run).registers.add(usize::from(if write { insn.dst } else { insn.src }));
    let address = base.wrapping_add_signed(i64::from(insn.off));
    let size = [4, 2, 1, 8][usize::from(insn.op >> 3 & 3)];
    fall(run, Fault::at(if write { Kind::Write } else { Kind::Read }, address, size));
}
