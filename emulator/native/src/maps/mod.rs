//! Maps with the kernel's semantics, their values in emulated memory at stable addresses.
//!
//! A map's values are slots of one stride, so that bounds are arithmetic. Nothing here depends on
//! addresses or random seeds: iteration is by slot number.
//!
//! Known differences from the kernel: LRU is exact (see `lru`), free slots are reused in one order
//! (see `hash`), BPF_F_LOCK is accepted also where a value holds no lock, ring buffers have a reader
//! that keeps up (see `ring`), and every slot of a perf event array has an event.

pub mod errno;
pub mod hash;
pub mod index;
pub mod kind;
pub mod lpm;
pub mod lru;
pub mod program;
pub mod ring;
pub mod state;
pub mod user;
pub mod values;

use crate::space::Space;
use hash::{Keys, Table};
use index::KeyIndex;
use kind::Kind;
use lpm::Prefixes;
use ring::Ring;
use std::collections::VecDeque;
use values::Values;

pub use state::Saved;

/// What LDDW of a map gives to programs: this plus the map's index.
pub const HANDLE: u64 = 0x4D41_5000_0000_0000;

/// The map of a handle; whether there is such a map is not checked.
#[inline]
pub fn of_handle(handle: u64) -> Option<u32> {
    let index = handle.wrapping_sub(HANDLE);
    (index < 1 << 32).then_some(index as u32)
}

/// The arguments of BPF_MAP_CREATE that count.
#[derive(Clone, Debug)]
pub struct MapSpec {
    pub label: String,
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    /// The template of a map of maps.
    pub inner: Option<u32>,
    /// To programs.
    pub readonly: bool,
}

/// Why a map was not made.
pub enum AddError {
    /// The kernel refuses it.
    Invalid(String),
    /// It is larger than the emulator takes.
    Memory(String),
}

/// An entry of a prog array.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    Empty,
    Program(u32),
    Marker(i32),
}

/// Most bytes of values of all maps of a world.
const MOST_BYTES: u64 = 1 << 30;

pub(crate) struct Map {
    pub spec: MapSpec,
    pub kind: Kind,
    pub key_size: usize,
    pub value_size: usize,
    /// Distance of values; per-CPU kinds have one value a CPU.
    pub stride: usize,
    pub base: u64,
    pub store: Store,
}

#[derive(Clone)]
pub(crate) enum Store {
    /// Values by index (per-CPU: all of CPU 0, then all of CPU 1 ...).
    Array(Values),
    /// Values by slot (per-CPU: the slot's values of all CPUs side by side).
    Table(Table),
    /// Inner maps by slot of the table.
    InnerTable(Table, Vec<u32>),
    Inner(Vec<Option<u32>>),
    Slots(Vec<Slot>),
    /// Devices, CPUs, sockets: what user space put there, by index.
    Targets(Vec<Option<[u8; 8]>>),
    Queue(VecDeque<Vec<u8>>),
    Ring(Ring),
    /// Perf event arrays, and kinds that are not modelled.
    Nothing,
}

pub struct Maps {
    pub(crate) cpus: usize,
    pub(crate) maps: Vec<Map>,
    bytes: u64,
}

impl Maps {
    pub fn new(cpus: u32) -> Maps {
        Maps { cpus: cpus.max(1) as usize, maps: Vec::new(), bytes: 0 }
    }

    pub fn count(&self) -> u32 {
        self.maps.len() as u32
    }

    pub fn label(&self, map: u32) -> &str {
        &self.maps[map as usize].spec.label
    }

    /// Make a map; returns its index. The world must be active.
    pub fn add(&mut self, space: &mut Space, mut spec: MapSpec) -> Result<u32, AddError> {
        if let Some(why) = kind::refused(&spec) {
            return Err(AddError::Invalid(why));
        }
        if spec.inner.is_some_and(|inner| inner >= self.count()) {
            return Err(AddError::Invalid(format!(
                "map {}: there is no such inner map",
                spec.label
            )));
        }
        spec.readonly |= spec.flags & kind::BPF_F_RDONLY_PROG != 0;
        let kind = Kind::of(spec.kind);
        let entries = spec.max_entries as usize;
        let value_size = spec.value_size as usize;
        let mut map = Map {
            kind,
            key_size: spec.key_size as usize,
            value_size,
            stride: value_size.next_multiple_of(8),
            base: 0,
            store: Store::Nothing,
            spec,
        };
        let cpus = if kind.percpu() { self.cpus } else { 1 };
        match kind {
            Kind::Array | Kind::PercpuArray => {
                let bytes = self.take(space, &mut map, entries * cpus)?;
                map.store = Store::Array(Values::new(map.base, bytes));
            }
            Kind::Hash | Kind::PercpuHash | Kind::LruHash | Kind::LruPercpuHash => {
                self.take(space, &mut map, Table::slots_needed(entries) * cpus)?;
                let keys = Keys::Hashed(KeyIndex::new(map.key_size));
                map.store = Store::Table(Table::new(keys, entries, kind.percpu(), kind.lru()));
            }
            Kind::DevmapHash => {
                self.take(space, &mut map, Table::slots_needed(entries))?;
                let keys = Keys::Hashed(KeyIndex::new(map.key_size));
                map.store = Store::Table(Table::new(keys, entries, false, false));
            }
            Kind::LpmTrie => {
                self.take(space, &mut map, Table::slots_needed(entries))?;
                let keys = Keys::Prefixes(Prefixes::new(map.key_size));
                map.store = Store::Table(Table::new(keys, entries, false, false));
            }
            Kind::HashOfMaps => {
                let keys = Keys::Hashed(KeyIndex::new(map.key_size));
                map.store = Store::InnerTable(Table::new(keys, entries, true, false), Vec::new());
            }
            Kind::ArrayOfMaps => map.store = Store::Inner(self.many(&map, entries)?),
            Kind::ProgArray => {
                map.store =
                    Store::Slots(vec![Slot::Empty; self.many::<Slot>(&map, entries)?.len()]);
            }
            Kind::Devmap | Kind::Cpumap | Kind::Xskmap => {
                // Programs may look at a devmap's values.
                if kind == Kind::Devmap {
                    map.stride = 8;
                    self.take(space, &mut map, entries)?;
                }
                map.store = Store::Targets(self.many(&map, entries)?);
            }
            Kind::Queue | Kind::Stack => {
                self.account(&map, (entries as u64) * map.stride as u64)?;
                map.store = Store::Queue(VecDeque::new());
            }
            Kind::Ringbuf => {
                self.account(&map, entries as u64)?;
                let buffer = space.take(entries * 2, 4096).map_err(AddError::Memory)?;
                let region =
                    space.add_region(buffer, 1, entries as u32 * 2, entries as u32 * 2, true);
                space.region_mut(region).live = false;
                map.base = buffer;
                map.store = Store::Ring(Ring::new(buffer, entries as u64, region));
            }
            Kind::PerfEventArray | Kind::Other(_) => {}
        }
        self.maps.push(map);
        Ok(self.count() - 1)
    }

    fn account(&mut self, map: &Map, bytes: u64) -> Result<(), AddError> {
        let total = self.bytes.saturating_add(bytes);
        if total > MOST_BYTES {
            return Err(AddError::Memory(format!(
                "map {} with {} entries of {} bytes: the emulator holds at most 1 GiB of values",
                map.spec.label, map.spec.max_entries, map.spec.value_size
            )));
        }
        self.bytes = total;
        Ok(())
    }

    /// `count` empty entries that are no values in emulated memory.
    fn many<T: Clone>(&mut self, map: &Map, count: usize) -> Result<Vec<Option<T>>, AddError> {
        self.account(map, count as u64 * 16)?;
        Ok(vec![None; count])
    }

    /// Memory for `count` values of the map, which programs may touch.
    fn take(&mut self, space: &mut Space, map: &mut Map, count: usize) -> Result<usize, AddError> {
        let bytes = count as u64 * map.stride as u64;
        self.account(map, bytes)?;
        map.base = space.take(bytes as usize, 4096).map_err(AddError::Memory)?;
        let writable = !map.spec.readonly && !matches!(map.kind, Kind::Devmap | Kind::DevmapHash);
        let (stride, size) = (map.stride as u32, map.value_size as u32);
        space.add_region(map.base, count as u64, stride, size, writable);
        Ok(bytes as usize)
    }

    /// The address that LDDW of a map's value gives: arrays of one entry have it.
    pub fn value_address(&self, map: u32, offset: u32) -> Option<u64> {
        let map = self.maps.get(map as usize)?;
        match &map.store {
            Store::Array(values)
                if map.kind == Kind::Array
                    && map.spec.max_entries == 1
                    && (offset as usize) < map.value_size =>
            {
                values.make_direct();
                Some(map.base + u64::from(offset))
            }
            _ => None,
        }
    }

    /// The entry of a prog array, Empty out of range; None: the map is none.
    #[inline]
    pub fn slot(&self, map: u32, key: u32) -> Option<Slot> {
        match &self.maps.get(map as usize)?.store {
            Store::Slots(slots) => Some(slots.get(key as usize).copied().unwrap_or(Slot::Empty)),
            _ => None,
        }
    }
}

/// A four-byte key.
#[inline]
pub(crate) fn number(key: &[u8]) -> usize {
    u32::from_ne_bytes([key[0], key[1], key[2], key[3]]) as usize
}
