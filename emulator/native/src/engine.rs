//! Running programs: uBPF's callbacks, tail calls, callbacks of helpers, faults.
//!
//! One run at a time in a process (`space::Active` is the lock), so what uBPF's callbacks need is a
//! global. Everything here that uBPF calls returns or leaves by `stop`; no panic passes through C.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::context;
use crate::env::{Env, HelperResult, FRAME};
use crate::fault::{Fault, Kind};
use crate::legacy;
use crate::maps::{self, Slot};
use crate::program::{Program, Trace, ARGUMENTS};
use crate::rewrite::{ids, CALLS, COUNTS, FUNCTION, RARE, WRITES};
use crate::space;
use crate::vm::{Callbacks, Jitted};

extern "C" {
    fn bpfchain_interpret(
        vm: *const libubpf_sys::ubpf_vm,
        mem: *mut c_void,
        mem_len: usize,
        result: *mut u64,
        stack_top: *mut u8,
    ) -> c_int;
    fn bpfchain_jit(
        function: Jitted,
        mem: *mut c_void,
        mem_len: usize,
        result: *mut u64,
        stack_top: *mut u8,
    ) -> c_int;
    fn bpfchain_stop(code: c_int) -> !;
}

/// Tail calls that a run may make (the kernel's MAX_TAIL_CALL_CNT).
const TAIL_CALLS: u32 = 33;
/// Frames that a program may have (the kernel's MAX_CALL_FRAMES).
const FRAMES: u64 = 8;
/// r0 of a tail call that did not happen; any but 0 does (programs cannot read it).
const NOT_TAKEN: u64 = 2;

/// Why a run stopped, as told through the shim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// `Run::fault` says why.
    Fault = 1,
    /// A tail call ran a marker.
    Marker = 2,
}

/// A fault and where it was.
pub struct Fallen {
    pub fault: Box<Fault>,
    pub program: u32,
    pub pc: i32,
}

/// State of the run under way.
pub struct Run {
    // Touched at every instruction.
    pc: usize,
    previous: usize,
    executed: u64,
    limit: u64,
    registers: *const u64,
    coverage: bool,
    jit: bool,
    /// Lowest r10 that the running program may have.
    floor: u64,
    env: *mut Env,
    programs: *mut Vec<Program>,
    trace: *const Trace,
    fallen: Option<Fallen>,
    /// Program that a tail call wants run next.
    next: Option<u32>,
    marker: Option<i32>,
    tail_calls: u32,
    tail_result: u64,
    /// Set once a nested run has stopped, so that the outer ones do too.
    stopped: Option<Stop>,
    /// What registers hold at the start.
    fill: u64,
    /// Lowest stack address that this packet's programs may have written.
    lowest: u64,
}

struct Global(UnsafeCell<Run>);
// SAFETY: only used while holding `space::Active`.
unsafe impl Sync for Global {}

static RUN: Global = Global(UnsafeCell::new(Run {
    pc: 0,
    previous: 0,
    executed: 0,
    limit: 0,
    registers: std::ptr::null(),
    coverage: false,
    jit: false,
    floor: 0,
    env: std::ptr::null_mut(),
    programs: std::ptr::null_mut(),
    trace: std::ptr::null(),
    fallen: None,
    next: None,
    marker: None,
    tail_calls: 0,
    tail_result: 0,
    stopped: None,
    fill: 0,
    lowest: space::STACK_TOP,
}));

/// For `Vm::load`.
pub const CALLBACKS: Callbacks = Callbacks { dispatch, bounds, step };

/// How a packet's run ended.
pub enum End {
    Verdict(u64),
    Marker(i32),
    Fault(Fallen),
}

/// What a packet's run told.
pub struct Told {
    pub end: End,
    pub instructions: u32,
    pub tail_calls: u32,
}

/// What all packets of a batch have in common.
pub struct Settings {
    pub limit: u64,
    pub coverage: bool,
    pub jit: bool,
    pub fill: u8,
}

/// Prepare for a batch: the stack gets the fill.
pub fn begin(env: &mut Env, programs: &mut Vec<Program>, settings: &Settings) {
    env.call = call_function;
    // SAFETY: the caller holds `Active`; the pointers are used until the batch's end only.
    let run = unsafe { &mut *RUN.0.get() };
    run.env = env;
    run.programs = programs;
    run.limit = settings.limit;
    run.coverage = settings.coverage;
    run.jit = settings.jit;
    run.fill = u64::from(settings.fill) * 0x0101_0101_0101_0101;
    run.lowest = space::LOW;
}

/// Run `program` on the packet that `env` holds.
pub fn run(program: u32) -> Told {
    // SAFETY: the caller holds `Active` and has called `begin`.
    unsafe {
        let run = RUN.0.get();
        let lowest = (*run).lowest;
        let fill = (*run).fill as u8;
        std::ptr::write_bytes(lowest as *mut u8, fill, (space::STACK_TOP - lowest) as usize);
        (*run).lowest = space::STACK_TOP;
        (*run).executed = 0;
        (*run).tail_calls = 0;
        (*run).marker = None;
        (*run).stopped = None;
        let end = match run_chain(run, program, space::STACK_TOP) {
            Ok(verdict) => End::Verdict(verdict),
            Err(_) => match ((*run).fallen.take(), (*run).marker) {
                (Some(fallen), _) => End::Fault(fallen),
                (None, Some(tag)) => End::Marker(tag),
                (None, None) => unreachable!("a run stopped without saying why"),
            },
        };
        let instructions = if (*run).jit { 0 } else { (*run).executed as u32 };
        Told { end, instructions, tail_calls: (*run).tail_calls }
    }
}

/// Note a fault of the running program; the first one stands.
unsafe fn fall(run: *mut Run, fault: Box<Fault>) -> Stop {
    if (*run).fallen.is_none() {
        let trace = &*(*run).trace;
        let program = &(&(*(*run).programs))[trace.program as usize];
        let pc = if (*run).jit { -1 } else { program.old_pc(trace, (*run).pc) };
        (*run).fallen = Some(Fallen { fault, program: trace.program, pc });
    }
    Stop::Fault
}

/// Run a program and those that it tail-calls, their outermost frame below `top`.
unsafe fn run_chain(run: *mut Run, program: u32, top: u64) -> Result<u64, Stop> {
    let mut current = program;
    loop {
        (*run).next = None;
        let program = &mut (&mut *(*run).programs)[current as usize];
        (*run).trace = &*program.machine.trace;
        let frames = u64::from(program.frames).min(FRAMES);
        let env = (*run).env;
        (*env).stack_top = top;
        (*env).stack_floor = top.saturating_sub(frames * FRAME);
        (*run).floor = top - (FRAMES - 1) * FRAME;
        if (*env).stack_floor < space::LOW || ((*run).jit && u64::from(program.frames) > FRAMES) {
            let what = "calls nested deeper than the kernel allows";
            return Err(fall(run, Fault::because(Kind::Stack, what)));
        }
        (*run).lowest = (*run).lowest.min((*env).stack_floor);
        let jitted = if (*run).jit { Some(program.jitted()) } else { None };
        let verdict = execute(run, &program.machine, jitted, space::CONTEXT, 0, top)?;
        if let Some(next) = (*run).next.take() {
            current = next;
            continue;
        }
        if (*run).marker.is_some() {
            return Err(Stop::Marker);
        }
        return Ok(verdict);
    }
}

unsafe fn execute(
    run: *mut Run,
    machine: *const crate::program::Machine,
    jitted: Option<Result<Jitted, String>>,
    mem: u64,
    mem_len: usize,
    top: u64,
) -> Result<u64, Stop> {
    let trace: *const Trace = &*(*machine).trace;
    (*run).trace = trace;
    (*run).previous = (*trace).start;
    let mut verdict = 0;
    let (mem, top) = (mem as *mut c_void, top as *mut u8);
    let code = match jitted {
        None => bpfchain_interpret((*machine).vm.raw(), mem, mem_len, &mut verdict, top),
        Some(Ok(function)) => {
            (*(*run).env).frame = 0;
            (*run).registers = std::ptr::null();
            bpfchain_jit(function, mem, mem_len, &mut verdict, top)
        }
        Some(Err(message)) => return Err(fall(run, Fault::because(Kind::Load, message))),
    };
    match code {
        0 => Ok(verdict),
        2 => Err(Stop::Marker),
        _ => {
            if (*run).fallen.is_none() {
                fall(run, Fault::because(Kind::Crash, "uBPF stopped without a reason"));
            }
            Err(Stop::Fault)
        }
    }
}

/// What a nested run must put back.
struct Saved {
    pc: usize,
    previous: usize,
    registers: *const u64,
    floor: u64,
    trace: *const Trace,
    frame: u64,
    stack_top: u64,
    stack_floor: u64,
}

unsafe fn save(run: *mut Run) -> Saved {
    let env = (*run).env;
    Saved {
        pc: (*run).pc,
        previous: (*run).previous,
        registers: (*run).registers,
        floor: (*run).floor,
        trace: (*run).trace,
        frame: (*env).frame,
        stack_top: (*env).stack_top,
        stack_floor: (*env).stack_floor,
    }
}

unsafe fn put_back(run: *mut Run, saved: Saved) {
    let env = (*run).env;
    (*run).pc = saved.pc;
    (*run).previous = saved.previous;
    (*run).registers = saved.registers;
    (*run).floor = saved.floor;
    (*run).trace = saved.trace;
    (*env).frame = saved.frame;
    (*env).stack_top = saved.stack_top;
    (*env).stack_floor = saved.stack_floor;
}

/// `Env::call`: a helper calls a function of the running program.
fn call_function(env: &mut Env, function: u64, args: [u64; 5], frame: u64) -> HelperResult {
    // SAFETY: helpers run inside a run only.
    unsafe {
        let run = RUN.0.get();
        let trace = &*(*run).trace;
        let program = &mut (&mut *(*run).programs)[trace.program as usize];
        let pc = function.wrapping_sub(FUNCTION);
        let found = program.trampolines.iter_mut().find(|t| u64::from(t.function) == pc);
        let Some(trampoline) = found else {
            return Err(Fault::because(Kind::Jump, format!("callback {function:#x} is no function")));
        };
        let top = frame.wrapping_sub(FRAME);
        if top < (*run).floor || top >= env.stack_top {
            return Err(Fault::because(Kind::Stack, "callback nested deeper than the kernel allows"));
        }
        (ARGUMENTS as *mut [u64; 5]).write(args);
        let saved = save(run);
        let jitted = if (*run).jit { Some(trampoline.jitted()) } else { None };
        let outcome = execute(run, &trampoline.machine, jitted, ARGUMENTS, 40, top);
        put_back(run, saved);
        outcome.map_err(|stop| {
            (*run).stopped = Some(stop);
            // `serve` sees `stopped` and does not look at this one.
            Fault::because(Kind::Crash, "a callback stopped")
        })
    }
}

/// Tail call, as the kernel's: whether the target is to run, or `None` where the program goes on.
unsafe fn tail_target(run: *mut Run, args: &[u64; 5]) -> Result<Option<Slot>, Stop> {
    let env = &*(*run).env;
    let jump = |what: &str| Err(fall(run, Fault::because(Kind::Jump, what)));
    if args[0] != space::CONTEXT {
        return jump("tail call with a context that is not the run's own");
    }
    let slot = maps::of_handle(args[1]).and_then(|map| env.maps.slot(map, args[2] as u32));
    let Some(slot) = slot else {
        return jump("tail call through something that is no prog array");
    };
    if slot == Slot::Empty || (*run).tail_calls >= TAIL_CALLS {
        return Ok(None);
    }
    if let Slot::Program(index) = slot {
        let programs = &*(*run).programs;
        let current = (*(*run).trace).program as usize;
        match programs.get(index as usize) {
            None => return jump("tail call to a program that does not exist"),
            Some(target) if target.context != programs[current].context => {
                return jump("tail call to a program of another type");
            }
            Some(_) => {}
        }
    }
    (*run).tail_calls += 1;
    Ok(Some(slot))
}

/// From the first function: 0 makes uBPF unwind, and `run_chain` goes on with the target.
unsafe fn tail_call(run: *mut Run, args: &[u64; 5]) -> Result<u64, Stop> {
    match tail_target(run, args)? {
        Some(Slot::Program(index)) => (*run).next = Some(index),
        Some(Slot::Marker(tag)) => (*run).marker = Some(tag),
        Some(Slot::Empty) | None => return Ok(NOT_TAKEN),
    }
    Ok(0)
}

/// From another function: the target takes the function's frame, and returns to its caller.
unsafe fn tail_call_sub(run: *mut Run, args: &[u64; 5]) -> Result<u64, Stop> {
    match tail_target(run, args)? {
        Some(Slot::Program(index)) => {
            let saved = save(run);
            let result = run_chain(run, index, args[4]);
            put_back(run, saved);
            (*run).tail_result = result?;
            Ok(1)
        }
        Some(Slot::Marker(tag)) => {
            (*run).marker = Some(tag);
            Err(Stop::Marker)
        }
        Some(Slot::Empty) | None => Ok(NOT_TAKEN),
    }
}

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
    let run = RUN.0.get();
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
    let run = RUN.0.get();
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
        match context::access(env.context, (address - space::CONTEXT) as usize, size as usize, write) {
            context::Access::Allowed if address + size <= context_end => return true,
            context::Access::Unmodelled(what) => Fault::unmodelled(what),
            _ => Fault::at(if write { Kind::Write } else { Kind::Read }, address, size as usize),
        }
    } else if env.allows(address, size, write) {
        return true;
    } else if env.memory.iter().any(|(start, bytes)| {
        address >= *start && address - start < bytes.len() as u64
    }) {
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
    let run = RUN.0.get();
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
    let run = RUN.0.get();
    if (*run).env.is_null() || (*run).trace.is_null() || (*run).fallen.is_some() {
        return;
    }
    let trace = &*(*run).trace;
    let program = &(&(*(*run).programs))[trace.program as usize];
    let Some(insn) = (*run).pc.checked_sub(trace.prologue).and_then(|pc| program.code.insns.get(pc))
    else {
        return;
    };
    let Some(write) = insn.memory_access() else { return };
    let base = *(*run).registers.add(usize::from(if write { insn.dst } else { insn.src }));
    let address = base.wrapping_add_signed(i64::from(insn.off));
    let size = [4, 2, 1, 8][usize::from(insn.op >> 3 & 3)];
    fall(run, Fault::at(if write { Kind::Write } else { Kind::Read }, address, size));
}
