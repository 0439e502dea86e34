//! Turning linked kernel code into code that uBPF takes, with a table back to the original pcs.
//!
//! uBPF knows no pseudo loads, LD_ABS, kfuncs, nor tail calls that return to a caller. What is put in
//! their place here calls helpers of `ids`, which the engine serves; jumps and calls are aimed anew.
//! (Older uBPF wanted an exit behind functions that end in a jump back; the one in Cargo.toml does not.)

use crate::insn::{self, Insn};
use crate::maps;

/// Helper numbers of the engine itself, far above the kernel's.
pub mod ids {
    pub const TAIL_CALL: u32 = 12;
    /// Tail call from a function other than the first: r5 holds r10; 1 in r0 where the target ran.
    pub const TAIL_CALL_SUB: u32 = 0x4000_0001;
    /// What that target returned.
    pub const TAIL_RESULT: u32 = 0x4000_0002;
    /// LD_ABS and LD_IND: context in r1, offset in r2; -1 where outside the packet.
    pub const LOAD_BYTE: u32 = 0x4000_0003;
    pub const LOAD_HALF: u32 = 0x4000_0004;
    pub const LOAD_WORD: u32 = 0x4000_0005;
    /// Kernel functions, plus their BTF number.
    pub const KFUNC: u32 = 0x5000_0000;
}

/// Helpers that call a function of the program; r5, which none of them has, gets r10.
const CALLING: [i32; 3] = [164, 181, 209];

/// `info` of an instruction: it counts as executed (it is one of the original's).
pub const COUNTS: u8 = 1;
/// It writes memory (or does both, as atomics).
pub const WRITES: u8 = 2;
/// It needs more than counting: the first instruction, calls of local functions.
pub const RARE: u8 = 4;
/// It is a call of a local function.
pub const CALLS: u8 = 8;

/// Code for uBPF.
pub struct Rewritten {
    pub insns: Vec<Insn>,
    /// pc here -> pc in the given code (inserted instructions: the one that they serve).
    pub old: Vec<u32>,
    /// Flags by pc here.
    pub info: Vec<u8>,
    /// Functions taken as callbacks: (pc in the given code, pc here).
    pub callbacks: Vec<(u32, u32)>,
    /// Frames that the deepest chain of local calls needs; `u32::MAX` for recursion.
    pub frames: u32,
    /// By pc of the given code: 0 second half of a 64-bit load, 1 instruction, 2 conditional jump.
    pub kinds: Vec<u8>,
}

/// What rewriting needs of the world.
pub struct Surroundings<'a> {
    /// World's map index by index in the code.
    pub maps: &'a [u32],
    /// Address of a value of a map at an offset (LDDW src 2).
    pub value_address: &'a dyn Fn(u32, u32) -> Option<u64>,
    /// Whether LD_ABS has a packet to load from.
    pub socket_buffer: bool,
}

struct Builder {
    insns: Vec<Insn>,
    old: Vec<u32>,
    info: Vec<u8>,
    /// (pc here, target in the given code)
    fixups: Vec<(usize, usize)>,
}

impl Builder {
    fn push(&mut self, insn: Insn, old: usize, counts: bool) -> usize {
        let mut info = if counts { COUNTS } else { 0 };
        if let Some(writes) = insn.memory_access() {
            info |= if writes { WRITES } else { 0 };
        }
        self.insns.push(insn);
        self.old.push(old as u32);
        self.info.push(info);
        self.insns.len() - 1
    }

    fn push_wide(&mut self, dst: u8, value: u64, old: usize) {
        self.push(Insn::new(insn::LDDW, dst, 0, 0, value as u32 as i32), old, true);
        self.push(Insn::new(0, 0, 0, 0, (value >> 32) as u32 as i32), old + 1, false);
    }
}

/// Rewrite `code`. `functions` are the first pcs of all functions, ascending from 0.
pub fn rewrite(code: &[u8], functions: &[u32], around: &Surroundings) -> Result<Rewritten, String> {
    if code.is_empty() || code.len() % 8 != 0 {
        return Err(format!("code of {} bytes: not whole instructions", code.len()));
    }
    let given: Vec<Insn> = code.chunks_exact(8).map(Insn::decode).collect();
    check_functions(functions, given.len())?;
    let mut out = Builder {
        insns: Vec::with_capacity(given.len() + 16),
        old: Vec::with_capacity(given.len() + 16),
        info: Vec::with_capacity(given.len() + 16),
        fixups: Vec::new(),
    };
    let mut place = vec![0usize; given.len()];
    let mut kinds = vec![0u8; given.len()];
    let mut callbacks = Vec::new();
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut function = 0;
    let mut pc = 0;
    while pc < given.len() {
        if functions.get(function + 1).is_some_and(|start| *start as usize == pc) {
            function += 1;
        }
        let insn = given[pc];
        place[pc] = out.insns.len();
        kinds[pc] = if insn.is_conditional() { 2 } else { 1 };
        if let Some(what) = insn.unsupported() {
            return Err(format!("{what} at pc {pc}: uBPF has no such instruction"));
        }
        if insn.op == insn::LDDW {
            let second = *given
                .get(pc + 1)
                .filter(|second| second.op == 0)
                .ok_or_else(|| format!("incomplete 64-bit load at pc {pc}"))?;
            place[pc + 1] = usize::MAX;
            let value = wide_value(insn, second, pc, around)?;
            if insn.src == 4 {
                let target = pc as i64 + 1 + i64::from(insn.imm);
                let callee = functions
                    .iter()
                    .position(|start| i64::from(*start) == target)
                    .ok_or_else(|| format!("function address at pc {pc} is no function's"))?;
                callbacks.push((functions[callee], 0));
                edges.push((function as u32, callee as u32));
                out.push_wide(insn.dst, FUNCTION + target as u64, pc);
            } else {
                out.push_wide(insn.dst, value, pc);
            }
            pc += 2;
            continue;
        }
        if let Some((size, indirect)) = insn.legacy_load() {
            if !around.socket_buffer {
                return Err(format!(
                    "LD_ABS at pc {pc}: only programs with an skb context have it"
                ));
            }
            push_legacy_load(&mut out, insn, size, indirect, pc);
        } else if insn.op == insn::CALL {
            push_call(&mut out, insn, pc, function, functions, &mut edges)?;
        } else {
            let at = out.push(insn.ordered().unwrap_or(insn), pc, true);
            if let Some(distance) = insn.jump() {
                out.fixups.push((at, target_of(pc, distance, given.len())?));
            }
        }
        pc += 1;
    }
    aim(&mut out, &place)?;
    out.info[0] |= RARE;
    callbacks.sort_unstable();
    callbacks.dedup();
    for callback in &mut callbacks {
        callback.1 = place[callback.0 as usize] as u32;
    }
    Ok(Rewritten {
        frames: deepest(functions.len(), &edges),
        insns: out.insns,
        old: out.old,
        info: out.info,
        callbacks,
        kinds,
    })
}

/// Base of the numbers that stand for functions in LDDW src 4.
pub const FUNCTION: u64 = 0x4655_4E00_0000_0000;

fn check_functions(functions: &[u32], len: usize) -> Result<(), String> {
    if functions.first() != Some(&0) {
        return Err("the first function must start at 0".into());
    }
    if !functions.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err("starts of functions must ascend".into());
    }
    if functions.last().is_some_and(|last| *last as usize >= len) {
        return Err("a function starts behind the code".into());
    }
    Ok(())
}

fn target_of(pc: usize, distance: i64, len: usize) -> Result<usize, String> {
    let target = pc as i64 + 1 + distance;
    if target < 0 || target >= len as i64 {
        return Err(format!("jump out of the code at pc {pc}"));
    }
    Ok(target as usize)
}

fn wide_value(insn: Insn, second: Insn, pc: usize, around: &Surroundings) -> Result<u64, String> {
    let map = || {
        around.maps.get(insn.imm as u32 as usize).copied().ok_or_else(|| {
            format!("64-bit load at pc {pc} names map {} of {}", insn.imm, around.maps.len())
        })
    };
    match insn.src {
        0 | 3 => Ok(u64::from(insn.imm as u32) | u64::from(second.imm as u32) << 32),
        1 | 5 => Ok(maps::HANDLE + u64::from(map()?)),
        2 | 6 => {
            let (map, offset) = (map()?, second.imm as u32);
            (around.value_address)(map, offset).ok_or_else(|| {
                format!("64-bit load at pc {pc}: map {map} has no value at offset {offset}")
            })
        }
        4 => Ok(0),
        src => Err(format!("64-bit load at pc {pc} of unknown kind {src}")),
    }
}

/// As the kernel's `bpf_gen_ld_abs`: a load outside the packet ends the function with 0.
fn push_legacy_load(out: &mut Builder, insn: Insn, size: u8, indirect: bool, pc: usize) {
    let id = match size {
        1 => ids::LOAD_BYTE,
        2 => ids::LOAD_HALF,
        _ => ids::LOAD_WORD,
    };
    if indirect {
        out.push(Insn::mov(2, insn.src), pc, true);
        out.push(Insn::new(0x07, 2, 0, 0, insn.imm), pc, false); // r2 += imm
    } else {
        out.push(Insn::mov_imm(2, insn.imm), pc, true);
    }
    out.push(Insn::mov(1, 6), pc, false);
    out.push(Insn::call_helper(id as i32), pc, false);
    out.push(Insn::new(0x75, 0, 0, 2, 0), pc, false); // if r0 s>= 0 goto +2
    out.push(Insn::mov_imm(0, 0), pc, false);
    out.push(Insn::exit(), pc, false);
}

fn push_call(
    out: &mut Builder,
    insn: Insn,
    pc: usize,
    function: usize,
    functions: &[u32],
    edges: &mut Vec<(u32, u32)>,
) -> Result<(), String> {
    match insn.src {
        insn::CALL_HELPER if insn.imm == ids::TAIL_CALL as i32 && function > 0 => {
            out.push(Insn::mov(5, 10), pc, false);
            out.push(Insn::call_helper(ids::TAIL_CALL_SUB as i32), pc, true);
            out.push(Insn::new(0x55, 0, 0, 2, 1), pc, false); // if r0 != 1 goto +2
            out.push(Insn::call_helper(ids::TAIL_RESULT as i32), pc, false);
            out.push(Insn::exit(), pc, false);
        }
        insn::CALL_HELPER => {
            if CALLING.contains(&insn.imm) {
                out.push(Insn::mov(5, 10), pc, false);
            }
            if insn.imm < 0 || insn.imm as u32 >= ids::TAIL_CALL_SUB {
                return Err(format!("call of helper {} at pc {pc}: no such helper", insn.imm));
            }
            out.push(insn, pc, true);
        }
        insn::CALL_LOCAL => {
            let target = pc as i64 + 1 + i64::from(insn.imm);
            let callee = functions
                .iter()
                .position(|start| i64::from(*start) == target)
                .ok_or_else(|| format!("call at pc {pc} goes to no function's start"))?;
            edges.push((function as u32, callee as u32));
            let at = out.push(insn, pc, true);
            out.info[at] |= RARE | CALLS;
            out.fixups.push((at, target as usize));
        }
        insn::CALL_KFUNC => {
            let id = ids::KFUNC + (insn.imm as u32 & 0x0fff_ffff);
            out.push(Insn::call_helper(id as i32), pc, true);
        }
        src => return Err(format!("call at pc {pc} of unknown kind {src}")),
    }
    Ok(())
}

/// Set the distances of jumps and local calls.
fn aim(out: &mut Builder, place: &[usize]) -> Result<(), String> {
    for &(at, target) in &out.fixups {
        if place[target] == usize::MAX {
            return Err(format!("jump into a 64-bit load at pc {}", out.old[at]));
        }
        let distance = place[target] as i64 - at as i64 - 1;
        let insn = &mut out.insns[at];
        if insn.op == insn::CALL || insn.op == insn::JA32 {
            insn.imm = distance as i32;
            continue;
        }
        match i16::try_from(distance) {
            Ok(near) => insn.off = near,
            // The jump with a 32-bit distance takes any.
            Err(_) if insn.op == insn::JA => {
                *insn = Insn::new(insn::JA32, 0, 0, 0, distance as i32);
            }
            Err(_) => return Err(format!("jump at pc {}: too far after rewriting", out.old[at])),
        }
    }
    Ok(())
}

/// Length of the longest path from the first function; `u32::MAX` where calls form a ring.
fn deepest(count: usize, edges: &[(u32, u32)]) -> u32 {
    let mut depth = vec![0u32; count];
    depth[0] = 1;
    for round in 0..=count {
        let mut changed = false;
        for &(from, to) in edges {
            let (from, to) = (from as usize, to as usize);
            if depth[from] != 0 && depth[to] < depth[from] + 1 {
                depth[to] = depth[from] + 1;
                changed = true;
            }
        }
        if !changed {
            return depth.into_iter().max().unwrap_or(1);
        }
        if round == count {
            break;
        }
    }
    u32::MAX
}
