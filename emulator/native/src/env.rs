//! What helpers see of the running program: memory, maps, packet, time, randomness, events.

use crate::fault::{Fault, Kind};
use crate::helpers::Answers;
use crate::maps::Maps;
use crate::space::{self, Space};

/// What a helper gives back: r0, or why the run ends here.
pub type HelperResult = Result<u64, Box<Fault>>;

/// What a program's context is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Context {
    /// `struct xdp_md`.
    Xdp,
    /// `struct __sk_buff`, data from the Ethernet header (tc).
    Skb,
    /// `struct __sk_buff`, data from the network header (cgroup_skb, lwt, socket filter).
    SkbL3,
    /// Raw bytes, all readable and none writable.
    Plain,
}

/// The frame that the program works on, as guest addresses (`PACKET` .. `PACKET + PACKET_MAX`):
/// `hard_start <= data_meta <= data <= data_end <= hard_end`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet {
    /// Start of the buffer (XDP: `data_hard_start`; skb: `head`).
    pub hard_start: u64,
    pub data_meta: u64,
    pub data: u64,
    pub data_end: u64,
    /// How far `data_end` may grow.
    pub hard_end: u64,
    /// The MAC header (skb: `skb_mac_header`).
    pub mac: u64,
    /// The network header (skb: `skb_network_header`).
    pub network: u64,
    /// Bytes of the frame beyond `data_end` that programs do not see (XDP frames over 3,520 bytes: the
    /// kernel keeps them in fragments); they follow `data_end` in the output.
    pub rest: u32,
    /// Whether data pointers in the context must be set anew (helpers set it after a change; see
    /// `Env::set_packet`).
    pub changed: bool,
}

/// One effect of a helper, in order. Payload bytes are in `Events::bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// "perf", "ringbuf", "printk", "redirect", "redirect_map", ...
    pub kind: &'static str,
    /// Index of the map, -1 where there is none.
    pub map: i32,
    pub start: usize,
    pub end: usize,
}

/// Events of a batch; the engine keeps where each packet's begin.
#[derive(Default, Debug)]
pub struct Events {
    pub entries: Vec<Event>,
    pub bytes: Vec<u8>,
}

/// A world's state as helpers see it. Fields with "per packet" are set by the engine before each run.
pub struct Env {
    pub space: Space,
    pub maps: Maps,
    /// Recorded answers of helpers (the engine calls `answers.restart()` at the start of a batch).
    pub answers: Answers,
    /// Memory for probe_read kinds: (address, bytes), sorted by address.
    pub memory: Vec<(u64, Vec<u8>)>,
    pub cpus: u32,
    /// The world's seed.
    pub seed: u64,
    /// Per packet: what the context is, and how long it is. It lies at `space::CONTEXT`.
    pub context: Context,
    pub context_len: usize,
    /// Per packet: the frame.
    pub packet: Packet,
    /// Per packet: state of the random generator, made of the world's seed and the packet's index in
    /// the `Packets` it was first put into. Use `random`.
    pub random_state: u64,
    /// Per packet: base of virtual time, ns. Helpers may advance it.
    pub now: u64,
    /// Filled during a batch.
    pub events: Events,
    /// Per packet: r10 of the frame that called the helper (interpreter), 0 where unknown (JIT).
    pub frame: u64,
    /// Per packet: r10 of the outermost frame: the stack ends here.
    pub stack_top: u64,
    /// Lowest stack address that a frame may use (checks under the JIT).
    pub stack_floor: u64,
    /// Per packet: state of helpers (redirect target, spin lock held, reserved records ...).
    pub scratch: crate::helpers::PacketState,
    /// Calls a function of the running program; set by the engine.
    pub call: fn(&mut Env, u64, [u64; 5], u64) -> HelperResult,
}

/// Frame size that the kernel allows a function.
pub const FRAME: u64 = 512;

impl Env {
    /// The next 64 random bits of this packet (splitmix64).
    #[inline]
    pub fn random(&mut self) -> u64 {
        self.random_state = self.random_state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random_state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Call a function of the program (`function` is the value of its LDDW) with r1..r5, on a frame
    /// below `frame` (the fifth argument of the calling helper, put there by the loader: see
    /// `native-contract.md`). Gives its r0.
    #[inline]
    pub fn call_function(&mut self, function: u64, args: [u64; 5], frame: u64) -> HelperResult {
        (self.call)(self, function, args, frame)
    }

    /// Note an effect.
    #[inline]
    pub fn event(&mut self, kind: &'static str, map: Option<u32>, payload: &[u8]) {
        let start = self.events.bytes.len();
        self.events.bytes.extend_from_slice(payload);
        let map = map.map_or(-1, |index| index as i32);
        self.events.entries.push(Event { kind, map, start, end: start + payload.len() });
    }

    /// `len` bytes of memory that the program may read, for a helper's argument.
    pub fn read(&self, address: u64, len: usize) -> Result<&[u8], Box<Fault>> {
        if !self.allows(address, len as u64, false) {
            return Err(Fault::at(Kind::Read, address, len));
        }
        // SAFETY: `allows` checked that it is emulated memory, mapped while the world is active.
        Ok(unsafe { std::slice::from_raw_parts(address as *const u8, len) })
    }

    /// `len` bytes of memory that the program may write, for a helper's argument.
    #[allow(clippy::mut_from_ref)]
    pub fn write(&mut self, address: u64, len: usize) -> Result<&mut [u8], Box<Fault>> {
        if !self.allows(address, len as u64, true) {
            return Err(Fault::at(Kind::Write, address, len));
        }
        // SAFETY: as in `read`; the borrow of self is exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(address as *mut u8, len) })
    }

    /// Whether the program may touch the bytes with plain loads and stores: its stack, its packet,
    /// map values, ring buffer records. The context is not among them (`allows_context`), as its
    /// fields have rules of their own.
    #[inline]
    pub fn allows(&self, address: u64, len: u64, write: bool) -> bool {
        let Some(end) = address.checked_add(len) else { return false };
        if address >= space::HIGH {
            return self.space.allows(address, len, write);
        }
        let floor = if self.frame == 0 { self.stack_floor } else { self.frame - FRAME };
        if address >= floor && end <= self.stack_top {
            return true;
        }
        if address >= self.packet.data_meta
            && end <= self.packet.data_end
            && address >= space::PACKET
        {
            // Metadata and frame are two regions to the verifier.
            return address >= self.packet.data || end <= self.packet.data;
        }
        address >= space::SCRATCH && end <= space::SCRATCH + self.scratch.scratch_used() && !write
    }

    /// Set new bounds of the frame, and the context's data pointers with them. Bytes are not moved.
    pub fn set_packet(&mut self, packet: Packet) {
        self.packet = packet;
        self.packet.changed = true;
        crate::context::set_pointers(self);
    }

    /// All bytes of the frame buffer from `hard_start` (helpers that move bytes; unchecked by rules for
    /// programs). `offset` counts from `space::PACKET`.
    pub fn frame_buffer(&mut self) -> &mut [u8] {
        // SAFETY: mapped by `Space::new`; the borrow of self is exclusive.
        unsafe { std::slice::from_raw_parts_mut(space::PACKET as *mut u8, space::PACKET_MAX) }
    }
}
