//! The memory that emulated programs see, at the same fixed addresses in every world.
//!
//! Two windows. The *low* one (contexts, packets, stacks, scratch) lies below 4 GiB, because context
//! fields hold 32-bit data pointers; its contents are made anew for every packet, so all worlds of a
//! process share it. The *high* one holds map values and ring buffer records; every world has its own,
//! which is moved to the fixed address when the world is entered and parked elsewhere while another
//! world runs. Programs of two worlds thus get identical pointers. One world runs at a time: `Active`
//! is the lock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// First address of the low window; below it nothing is mapped, so a stack that runs over faults.
pub const LOW: u64 = 0xE000_0000;
/// Stacks grow down from `STACK_TOP` to `LOW`: 33 tail calls from subprograms need 8 frames each.
pub const STACK_TOP: u64 = LOW + 0x4_0000;
/// The context given in r1.
pub const CONTEXT: u64 = STACK_TOP + 0x1000;
/// Longest context (plain ones are raw bytes of the recording).
pub const CONTEXT_MAX: usize = 0x8000;
/// Where the frame buffer begins (XDP's `data_hard_start`, an skb's `head`).
pub const PACKET: u64 = LOW + 0x5_0000;
/// Size of the frame buffer with head- and tailroom.
pub const PACKET_MAX: usize = 0x2_0000;
/// Helpers may put things here that programs read (`bpf_sock`, ...); zeroed per packet by who uses it.
pub const SCRATCH: u64 = LOW + 0x7_0000;
/// Size of the scratch area.
pub const SCRATCH_SIZE: usize = 0x1_0000;
const LOW_SIZE: usize = 0x8_0000;

/// First address of the high window (64 GiB: free under ASLR on x86-64 and arm64, also with 39 bits).
pub const HIGH: u64 = 0x10_0000_0000;
const HIGH_FIRST: usize = 1 << 20;
const HIGH_MAX: usize = 32 << 30;
/// What one last-level page table maps.
const TABLE: usize = 2 << 20;

/// A part of the high window that programs may touch: `count` slots of `stride` bytes, of each of
/// which the first `size` bytes are valid. An access must stay within one slot.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub stride: u32,
    pub size: u32,
    pub writable: bool,
    /// Whether programs may touch it now (ring buffer records: while reserved).
    pub live: bool,
}

impl Region {
    /// Whether `len` bytes at `address` lie inside one slot.
    #[inline]
    pub fn holds(&self, address: u64, len: u64) -> bool {
        if address < self.start || address >= self.end {
            return false;
        }
        let offset = address - self.start;
        let within = if offset < u64::from(self.stride) {
            offset
        } else if offset <= u64::from(u32::MAX) {
            u64::from(offset as u32 % self.stride)
        } else {
            offset % u64::from(self.stride)
        };
        within + len <= u64::from(self.size)
    }
}

/// Where a world's high window is mapped now.
struct Placement {
    host: AtomicUsize,
    size: AtomicUsize,
}

/// Holds the fixed addresses; the world entered last stays there until another one is.
static WINDOW: Mutex<Option<Arc<Placement>>> = Mutex::new(None);
static LOW_READY: Mutex<bool> = Mutex::new(false);

/// Proof that this world is at the fixed addresses. Dropping it lets other worlds in.
pub struct Active {
    _guard: MutexGuard<'static, Option<Arc<Placement>>>,
}

/// One world's high window, and what of it programs may touch.
pub struct Space {
    placement: Arc<Placement>,
    used: usize,
    regions: Vec<Region>,
    last: std::cell::Cell<usize>,
}

fn os_error(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}

/// Map `size` bytes at exactly `address`, never over something else.
fn map_at(address: u64, size: usize, protection: i32) -> Result<(), String> {
    // SAFETY: MAP_FIXED_NOREPLACE changes no existing mapping.
    let got = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            size,
            protection,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if got == libc::MAP_FAILED {
        return Err(os_error(&format!(
            "cannot map {size} bytes at {address:#x} for emulated memory"
        )));
    }
    if got as u64 != address {
        // Kernels before 4.17 take the flag for a hint.
        unsafe { libc::munmap(got, size) };
        return Err(format!("cannot map {size} bytes at {address:#x}: the address is taken"));
    }
    Ok(())
}

fn map_low() -> Result<(), String> {
    let mut ready = LOW_READY.lock().unwrap_or_else(|e| e.into_inner());
    if !*ready {
        map_at(LOW, LOW_SIZE, libc::PROT_READ | libc::PROT_WRITE)?;
        *ready = true;
    }
    Ok(())
}

impl Placement {
    fn move_to(&self, target: u64) -> Result<(), String> {
        let (host, size) = (self.host.load(Ordering::Relaxed), self.size.load(Ordering::Relaxed));
        // SAFETY: `target` was just mapped by us as a placeholder of `size` bytes; `host` is ours.
        let got = unsafe {
            libc::mremap(
                host as *mut libc::c_void,
                size,
                size,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                target as *mut libc::c_void,
            )
        };
        if got == libc::MAP_FAILED {
            return Err(os_error("cannot move emulated memory"));
        }
        self.host.store(target as usize, Ordering::Relaxed);
        Ok(())
    }

    /// Move out of the way. To an address aligned as page tables are: the kernel then moves whole
    /// tables instead of single pages.
    fn park(&self) -> Result<(), String> {
        let size = self.size.load(Ordering::Relaxed);
        let room = size + TABLE;
        // SAFETY: an anonymous mapping wherever the kernel likes; what is cut off is its own.
        let target = unsafe {
            let hole = libc::mmap(
                std::ptr::null_mut(),
                room,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            if hole == libc::MAP_FAILED {
                return Err(os_error("no address space to park emulated memory"));
            }
            let start = hole as usize;
            let target = start.next_multiple_of(TABLE);
            if target > start {
                libc::munmap(hole, target - start);
            }
            if start + room > target + size {
                libc::munmap((target + size) as *mut libc::c_void, start + room - target - size);
            }
            target as u64
        };
        self.move_to(target)
    }

    fn enter(&self) -> Result<(), String> {
        map_at(HIGH, self.size.load(Ordering::Relaxed), libc::PROT_NONE)?;
        self.move_to(HIGH)
    }
}

impl Space {
    /// A new, empty window; it is at a parked address until entered.
    pub fn new() -> Result<Space, String> {
        map_low()?;
        // SAFETY: an anonymous mapping wherever the kernel likes.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                HIGH_FIRST,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if host == libc::MAP_FAILED {
            return Err(os_error("no memory for maps"));
        }
        let placement =
            Placement { host: AtomicUsize::new(host as usize), size: AtomicUsize::new(HIGH_FIRST) };
        Ok(Space {
            placement: Arc::new(placement),
            used: 4096,
            regions: Vec::new(),
            last: std::cell::Cell::new(0),
        })
    }

    /// Put this world at the fixed addresses, parking the one that is there.
    pub fn activate(&self) -> Result<Active, String> {
        let mut guard = WINDOW.lock().unwrap_or_else(|e| e.into_inner());
        let here = guard.as_ref().is_some_and(|other| Arc::ptr_eq(other, &self.placement));
        if !here {
            if let Some(other) = guard.take() {
                other.park()?;
            }
            self.placement.enter()?;
            *guard = Some(Arc::clone(&self.placement));
        }
        Ok(Active { _guard: guard })
    }

    /// Take `size` bytes aligned to `align` (a power of two) from the high window; they are zero and
    /// never move. The world must be active. No program may touch them until `add_region` says so.
    pub fn take(&mut self, size: usize, align: usize) -> Result<u64, String> {
        let start = self.used.next_multiple_of(align.max(8));
        let end = start
            .checked_add(size)
            .filter(|end| *end <= HIGH_MAX)
            .ok_or("map memory is used up")?;
        let mapped = self.placement.size.load(Ordering::Relaxed);
        if end > mapped {
            let wanted = end.next_multiple_of(HIGH_FIRST).max((mapped * 2).min(HIGH_MAX));
            // SAFETY: grows our own mapping in place; without MREMAP_MAYMOVE it cannot move.
            let got = unsafe { libc::mremap(HIGH as *mut libc::c_void, mapped, wanted, 0) };
            if got == libc::MAP_FAILED {
                return Err(os_error(&format!("cannot grow map memory to {wanted} bytes")));
            }
            self.placement.size.store(wanted, Ordering::Relaxed);
        }
        self.used = end;
        Ok(HIGH + start as u64)
    }

    /// Let programs touch `count` slots of `stride` bytes from `start`, `size` valid bytes in each.
    /// Returns an index for `region_mut`. Regions must be added in ascending order of address (which
    /// `take` gives).
    pub fn add_region(
        &mut self,
        start: u64,
        count: u64,
        stride: u32,
        size: u32,
        writable: bool,
    ) -> usize {
        let end = start + count * u64::from(stride);
        debug_assert!(self.regions.last().is_none_or(|last| last.end <= start));
        self.regions.push(Region { start, end, stride, size, writable, live: true });
        self.regions.len() - 1
    }

    /// The region that `add_region` gave the index of, to change what programs may do with it.
    pub fn region_mut(&mut self, index: usize) -> &mut Region {
        &mut self.regions[index]
    }

    /// Whether a program may touch `len` bytes of the high window at `address`.
    #[inline]
    pub fn allows(&self, address: u64, len: u64, write: bool) -> bool {
        let found = match self.regions.get(self.last.get()) {
            Some(region) if address >= region.start && address < region.end => Some(region),
            _ => self.find(address),
        };
        found.is_some_and(|r| r.live && (r.writable || !write) && r.holds(address, len))
    }

    fn find(&self, address: u64) -> Option<&Region> {
        let index = self.regions.partition_point(|region| region.end <= address);
        self.last.set(index);
        self.regions.get(index)
    }

    /// `len` bytes at `address` of the high window, also while parked. Panics outside what was taken.
    pub fn bytes(&self, address: u64, len: usize) -> &[u8] {
        let offset = self.offset(address, len);
        // SAFETY: inside the mapping, which outlives the borrow of self.
        unsafe {
            let host = self.placement.host.load(Ordering::Relaxed) as *const u8;
            std::slice::from_raw_parts(host.add(offset), len)
        }
    }

    /// As `bytes`, to write.
    pub fn bytes_mut(&mut self, address: u64, len: usize) -> &mut [u8] {
        let offset = self.offset(address, len);
        // SAFETY: as in `bytes`; the borrow of self is exclusive.
        unsafe {
            let host = self.placement.host.load(Ordering::Relaxed) as *mut u8;
            std::slice::from_raw_parts_mut(host.add(offset), len)
        }
    }

    fn offset(&self, address: u64, len: usize) -> usize {
        let offset = address.wrapping_sub(HIGH) as usize;
        assert!(offset <= self.used && len <= self.used - offset, "address outside map memory");
        offset
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let mut guard = WINDOW.lock().unwrap_or_else(|e| e.into_inner());
        if guard.as_ref().is_some_and(|other| Arc::ptr_eq(other, &self.placement)) {
            *guard = None;
        }
        let host = self.placement.host.load(Ordering::Relaxed);
        // SAFETY: ours, and nobody else's after this.
        unsafe {
            libc::munmap(host as *mut libc::c_void, self.placement.size.load(Ordering::Relaxed))
        };
    }
}
