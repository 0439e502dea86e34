//! eBPF instructions: encoding, and the opcodes that the loader must know.

/// One 8-byte instruction slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Insn {
    pub op: u8,
    pub dst: u8,
    pub src: u8,
    pub off: i16,
    pub imm: i32,
}

pub const LDDW: u8 = 0x18;
pub const CALL: u8 = 0x85;
pub const CALLX: u8 = 0x8d;
pub const EXIT: u8 = 0x95;
pub const JA: u8 = 0x05;
pub const JA32: u8 = 0x06;
pub const JCOND: u8 = 0xe5;

/// `src` of a call.
pub const CALL_HELPER: u8 = 0;
pub const CALL_LOCAL: u8 = 1;
pub const CALL_KFUNC: u8 = 2;

const CLASS: u8 = 0x07;
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU64: u8 = 0x07;
const MODE: u8 = 0xe0;
const MODE_ABS: u8 = 0x20;
const MODE_IND: u8 = 0x40;
const MODE_MEM: u8 = 0x60;
const MODE_ATOMIC: u8 = 0xc0;

impl Insn {
    pub const fn new(op: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
        Insn { op, dst, src, off, imm }
    }

    /// `dst = src` (64 bits).
    pub const fn mov(dst: u8, src: u8) -> Insn {
        Insn::new(0xbf, dst, src, 0, 0)
    }

    /// `dst = imm` (64 bits, sign-extended).
    pub const fn mov_imm(dst: u8, imm: i32) -> Insn {
        Insn::new(0xb7, dst, 0, 0, imm)
    }

    pub const fn call_helper(id: i32) -> Insn {
        Insn::new(CALL, 0, CALL_HELPER, 0, id)
    }

    pub const fn exit() -> Insn {
        Insn::new(EXIT, 0, 0, 0, 0)
    }

    pub fn decode(bytes: &[u8]) -> Insn {
        Insn {
            op: bytes[0],
            dst: bytes[1] & 0x0f,
            src: bytes[1] >> 4,
            off: i16::from_le_bytes([bytes[2], bytes[3]]),
            imm: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    pub fn encode(self) -> [u8; 8] {
        let (off, imm) = (self.off.to_le_bytes(), self.imm.to_le_bytes());
        let registers = self.dst | self.src << 4;
        [self.op, registers, off[0], off[1], imm[0], imm[1], imm[2], imm[3]]
    }

    /// A jump with a target: `Some(distance)` in slots from the next instruction.
    pub fn jump(self) -> Option<i64> {
        match self.op {
            JA32 => Some(i64::from(self.imm)),
            CALL | CALLX | EXIT => None,
            op if op & CLASS == JMP || op & CLASS == JMP32 => Some(i64::from(self.off)),
            _ => None,
        }
    }

    /// A jump that may fall through.
    pub fn is_conditional(self) -> bool {
        self.jump().is_some() && self.op != JA && self.op != JA32
    }

    /// `LD_ABS` or `LD_IND`: (size in bytes, whether indirect).
    pub fn legacy_load(self) -> Option<(u8, bool)> {
        if self.op & CLASS != LD || !matches!(self.op & MODE, MODE_ABS | MODE_IND) {
            return None;
        }
        let size = match self.op & 0x18 {
            0x00 => 4,
            0x08 => 2,
            0x10 => 1,
            _ => return None,
        };
        Some((size, self.op & MODE == MODE_IND))
    }

    /// Whether it loads from or stores to memory, and whether it writes.
    pub fn memory_access(self) -> Option<bool> {
        match self.op & CLASS {
            LDX => Some(false),
            ST | STX => Some(true),
            _ => None,
        }
    }

    /// Of a load-acquire or store-release (imm 0x100, 0x110) the plain load or store: nothing runs
    /// beside a program here, so that order between memories says nothing.
    pub fn ordered(self) -> Option<Insn> {
        if self.op & (CLASS | MODE) != STX | MODE_ATOMIC {
            return None;
        }
        let size = self.op & 0x18;
        match self.imm {
            0x100 => Some(Insn { op: LDX | MODE_MEM | size, imm: 0, ..self }),
            0x110 => Some(Insn { op: STX | MODE_MEM | size, imm: 0, ..self }),
            _ => None,
        }
    }

    /// What uBPF has no code for, named, where it would not say so itself in these words.
    pub fn unsupported(self) -> Option<&'static str> {
        if self.op == CALLX {
            return Some("callx (indirect call)");
        }
        if self.op == JCOND {
            return Some("may_goto");
        }
        if self.op == ALU64 | 0xb8 && self.off == 1 {
            return Some("addr_space_cast");
        }
        if self.op & CLASS == STX && self.op & MODE == MODE_ATOMIC {
            match (self.imm, self.op & 0x18) {
                _ if self.ordered().is_some() => return None,
                (_, 0x08) => return Some("16-bit atomic operation"),
                (_, 0x10) => return Some("8-bit atomic operation"),
                _ => {}
            }
        }
        if self.op & CLASS == LDX && self.op & MODE == 0x20 {
            return Some("arena load");
        }
        if matches!(self.op & CLASS, ST | STX) && self.op & MODE == 0x20 {
            return Some("arena store");
        }
        None
    }
}
