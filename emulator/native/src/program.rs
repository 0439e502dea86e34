//! A loaded program: its machines, and the tables that its runs are told by.

use std::ffi::c_void;

use crate::env::Context;
use crate::hooks;
use crate::insn::{self, Insn};
use crate::rewrite::{self, Rewritten, Surroundings, COUNTS};
use crate::space;
use crate::vm::{Jitted, Vm};

/// Entries before the code's in `info` and `cover`, where a trampoline's instructions are counted.
const PAD: usize = 8;
/// Where a trampoline finds the callback's arguments.
pub const ARGUMENTS: u64 = space::CONTEXT + space::CONTEXT_MAX as u64;

/// What the engine's callbacks need of the machine that runs; its address is their context.
pub struct Trace {
    /// Flags (`rewrite::COUNTS` ...) by the machine's pc.
    pub info: *const u8,
    /// What was executed, by the machine's pc: 1 executed, 2 went on to the next, 4 elsewhere.
    pub cover: *mut u8,
    /// "Previous pc" at the start; the entry there is nobody's.
    pub start: usize,
    /// Instructions before the program's own.
    pub prologue: usize,
    pub program: u32,
}

/// A machine for the interpreter, with its trace.
pub struct Machine {
    pub trace: Box<Trace>,
    pub vm: Vm,
}

/// A function that helpers call, behind instructions that load its arguments.
pub struct Trampoline {
    /// First pc of the function in the given code.
    pub function: u32,
    pub machine: Machine,
    code: Vec<Insn>,
    compiled: Option<(Vm, Jitted)>,
}

pub struct Program {
    pub context: Context,
    /// Frames of its deepest chain of calls; `u32::MAX` for recursion.
    pub frames: u32,
    pub machine: Machine,
    pub trampolines: Vec<Trampoline>,
    pub code: Rewritten,
    compiled: Option<(Vm, Jitted)>,
    // Behind `machine` and `trampolines`, which point into them.
    _info: Box<[u8]>,
    cover: *mut [u8],
}

fn machine(code: &[Insn], trace: Trace, trampoline: bool) -> Result<Machine, String> {
    let mut trace = Box::new(trace);
    let context: *mut Trace = &mut *trace;
    let vm = Vm::load(code, hooks::CALLBACKS, context.cast::<c_void>(), trampoline)?;
    Ok(Machine { trace, vm })
}

/// Load r1..r5 from the argument block that r1 points to, call the function, exit.
fn trampoline(program: &[Insn], target: usize) -> (Vec<Insn>, usize) {
    let mut code: Vec<Insn> =
        (0..5).rev().map(|i| Insn::new(0x79, i + 1, 1, 8 * i16::from(i), 0)).collect();
    let prologue = code.len() + 2;
    let distance = prologue + target - code.len() - 1;
    code.push(Insn::new(insn::CALL, 0, insn::CALL_LOCAL, 0, distance as i32));
    code.push(Insn::exit());
    code.extend_from_slice(program);
    (code, prologue)
}

/// Compiled code starts with the host's values in its registers; programs must not see them.
fn clean(code: &[Insn]) -> Vec<Insn> {
    let registers = [0, 2, 3, 4, 5, 6, 7, 8, 9];
    let mut out: Vec<Insn> = registers.iter().map(|r| Insn::mov_imm(*r, 0)).collect();
    out.extend_from_slice(code);
    out
}

impl Program {
    pub fn load(
        index: u32,
        context: Context,
        code: &[u8],
        functions: &[u32],
        around: &Surroundings,
    ) -> Result<Program, String> {
        let rewritten = rewrite::rewrite(code, functions, around)?;
        let len = rewritten.insns.len();
        let mut info = vec![0u8; PAD + len + 1].into_boxed_slice();
        info[PAD..PAD + len].copy_from_slice(&rewritten.info);
        let cover = Box::into_raw(vec![0u8; PAD + len + 1].into_boxed_slice());
        let trace = |prologue: usize| Trace {
            // SAFETY: the prologue is no longer than PAD.
            info: unsafe { info.as_ptr().add(PAD - prologue) },
            cover: unsafe { cover.cast::<u8>().add(PAD - prologue) },
            start: len + prologue,
            prologue,
            program: index,
        };
        let build = || -> Result<(Machine, Vec<Trampoline>), String> {
            let machine = self::machine(&rewritten.insns, trace(0), false)?;
            let mut trampolines = Vec::new();
            for &(function, target) in &rewritten.callbacks {
                let (code, prologue) = trampoline(&rewritten.insns, target as usize);
                let machine = self::machine(&code, trace(prologue), true)?;
                trampolines.push(Trampoline { function, machine, code, compiled: None });
            }
            Ok((machine, trampolines))
        };
        let built = build();
        match built {
            Ok((machine, trampolines)) => {
                info[PAD - 7] = rewrite::RARE; // a trampoline's first instruction
                Ok(Program {
                    context,
                    frames: rewritten.frames,
                    machine,
                    trampolines,
                    code: rewritten,
                    compiled: None,
                    _info: info,
                    cover,
                })
            }
            Err(message) => {
                // SAFETY: from Box::into_raw above; no machine is left that points to it.
                drop(unsafe { Box::from_raw(cover) });
                Err(translate(&message, &rewritten))
            }
        }
    }

    /// Compiled code of the program, made at the first call.
    pub fn jitted(&mut self) -> Result<Jitted, String> {
        if let Some((_, function)) = &self.compiled {
            return Ok(*function);
        }
        let code = clean(&self.code.insns);
        let vm = Vm::load(&code, hooks::CALLBACKS, std::ptr::null_mut(), false)?;
        let function = vm.compile()?;
        self.compiled = Some((vm, function));
        Ok(function)
    }

    /// The pc in the given code of a machine's pc.
    pub fn old_pc(&self, trace: &Trace, pc: usize) -> i32 {
        match pc.checked_sub(trace.prologue).and_then(|pc| self.code.old.get(pc)) {
            Some(old) => *old as i32,
            None => -1,
        }
    }

    /// Per instruction of the given code: executed (conditional jumps: not taken), and taken.
    pub fn coverage(&self) -> (Vec<u8>, Vec<u8>) {
        let len = self.code.kinds.len();
        let (mut first, mut second) = (vec![0u8; len], vec![0u8; len]);
        // SAFETY: the slice is ours, and nothing runs while this borrow lasts.
        let cover = unsafe { &(&(*self.cover))[PAD..] };
        for (pc, old) in self.code.old.iter().enumerate() {
            if self.code.info[pc] & COUNTS == 0 {
                continue;
            }
            let old = *old as usize;
            if self.code.kinds[old] == 2 {
                first[old] |= cover[pc] >> 1 & 1;
                second[old] |= cover[pc] >> 2 & 1;
            } else {
                first[old] |= cover[pc] & 1;
            }
        }
        (first, second)
    }
}

impl Trampoline {
    /// Compiled code of the trampoline, made at the first call.
    pub fn jitted(&mut self) -> Result<Jitted, String> {
        if let Some((_, function)) = &self.compiled {
            return Ok(*function);
        }
        let code = clean(&self.code);
        let vm = Vm::load(&code, hooks::CALLBACKS, std::ptr::null_mut(), true)?;
        let function = vm.compile()?;
        self.compiled = Some((vm, function));
        Ok(function)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: from Box::into_raw in `load`; the machines do not run any more.
        drop(unsafe { Box::from_raw(self.cover) });
    }
}

/// uBPF's messages name pcs of the rewritten code.
fn translate(message: &str, code: &Rewritten) -> String {
    let Some((before, after)) = message.rsplit_once("PC ") else {
        return format!("uBPF refuses the code: {message}");
    };
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    match digits.parse::<usize>().ok().and_then(|pc| code.old.get(pc)) {
        Some(old) => format!("uBPF refuses the code: {before}pc {old}{}", &after[digits.len()..]),
        None => format!("uBPF refuses the code: {message}"),
    }
}
