//! Running programs: a packet's run, tail calls, functions that helpers call, faults.
//!
//! One run at a time in a process (`space::Active` is the lock), so what uBPF's callbacks (`hooks`)
//! need is a global.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};

use crate::env::{Env, HelperResult, FRAME};
use crate::fault::{Fault, Kind};
use crate::maps::{self, Slot};
use crate::program::{Program, Trace, ARGUMENTS};
use crate::rewrite::FUNCTION;
use crate::space;
use crate::vm::Jitted;

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
    pub pc: usize,
    pub previous: usize,
    pub executed: u64,
    pub limit: u64,
    pub registers: *const u64,
    pub coverage: bool,
    pub jit: bool,
    /// Lowest r10 that the running program may have.
    pub floor: u64,
    pub env: *mut Env,
    pub programs: *mut Vec<Program>,
    pub trace: *const Trace,
    pub fallen: Option<Fallen>,
    /// Program that a tail call wants run next.
    pub next: Option<u32>,
    pub marker: Option<i32>,
    pub tail_calls: u32,
    pub tail_result: u64,
    /// Set once a nested run has stopped, so that the outer ones do too.
    pub stopped: Option<Stop>,
    /// What registers hold at the start.
    pub fill: u64,
    /// Lowest stack address that this packet's programs may have written.
    pub lowest: u64,
}

pub struct Global(UnsafeCell<Run>);
// SAFETY: only used while holding `space::Active`.
unsafe impl Sync for Global {}

impl Global {
    #[inline]
    pub fn get(&self) -> *mut Run {
        self.0.get()
    }
}

pub static RUN: Global = Global(UnsafeCell::new(Run {
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
    let run = unsafe { &mut *RUN.get() };
    run.env = env;
    run.programs = programs;
    run.limit = settings.limit;
    run.coverage = settings.coverage;
    run.jit = settings.jit;
    run.fill = u64::from(settings.fill) * 0x0101_0101_0101_0101;
    run.lowest = space::LOW;
}

/// Forget what was borrowed for the batch.
pub fn end() {
    // SAFETY: as in `begin`.
    let run = unsafe { &mut *RUN.get() };
    run.env = std::ptr::null_mut();
    run.programs = std::ptr::null_mut();
    run.trace = std::ptr::null();
    run.registers = std::ptr::null();
}

/// Run `program` on the packet that `env` holds.
pub fn run(program: u32) -> Told {
    // SAFETY: the caller holds `Active` and has called `begin`.
    unsafe {
        let run = RUN.get();
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
pub unsafe fn fall(run: *mut Run, fault: Box<Fault>) -> Stop {
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
        let run = RUN.get();
        let trace = &*(*run).trace;
        let program = &mut (&mut *(*run).programs)[trace.program as usize];
        let pc = function.wrapping_sub(FUNCTION);
        let found = program.trampolines.iter_mut().find(|t| u64::from(t.function) == pc);
        let Some(trampoline) = found else {
            return Err(Fault::because(
                Kind::Jump,
                format!("callback {function:#x} is no function"),
            ));
        };
        let top = frame.wrapping_sub(FRAME);
        if top < (*run).floor || top >= env.stack_top {
            return Err(Fault::because(
                Kind::Stack,
                "callback nested deeper than the kernel allows",
            ));
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
pub unsafe fn tail_call(run: *mut Run, args: &[u64; 5]) -> Result<u64, Stop> {
    match tail_target(run, args)? {
        Some(Slot::Program(index)) => (*run).next = Some(index),
        Some(Slot::Marker(tag)) => (*run).marker = Some(tag),
        Some(Slot::Empty) | None => return Ok(NOT_TAKEN),
    }
    Ok(0)
}

/// From another function: the target takes the function's frame, and returns to its caller.
pub unsafe fn tail_call_sub(run: *mut Run, args: &[u64; 5]) -> Result<u64, Stop> {
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
