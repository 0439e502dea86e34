//! Why a run ended without a verdict.

/// What went wrong, by the names of `_ubpf.pyi`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Read,
    Write,
    Jump,
    Limit,
    Stack,
    Unmodelled,
    Crash,
    Load,
}

impl Kind {
    /// The name in `_ubpf.pyi`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Jump => "jump",
            Kind::Limit => "limit",
            Kind::Stack => "stack",
            Kind::Unmodelled => "unmodelled",
            Kind::Crash => "crash",
            Kind::Load => "load",
        }
    }
}

/// A fault; the engine fills in packet, program and pc.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub address: u64,
    pub size: u32,
    pub what: String,
}

impl Fault {
    /// An access of a helper or instruction that is not allowed.
    pub fn at(kind: Kind, address: u64, size: usize) -> Box<Fault> {
        Box::new(Fault { kind, address, size: size as u32, what: String::new() })
    }

    /// Something that this emulator does not model; `what` names it.
    pub fn unmodelled(what: impl Into<String>) -> Box<Fault> {
        Box::new(Fault { kind: Kind::Unmodelled, address: 0, size: 0, what: what.into() })
    }

    /// A fault with words, as "jump" or "stack".
    pub fn because(kind: Kind, what: impl Into<String>) -> Box<Fault> {
        Box::new(Fault { kind, address: 0, size: 0, what: what.into() })
    }
}
