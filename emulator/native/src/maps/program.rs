//! What programs do with maps by helpers. The caller has checked the pointers.
//!
//! `Err(Unmodelled)`: the helper does nothing for this kind of map here, or the kernel's verifier
//! does not let a program call it for that kind.

use super::errno::{E2BIG, EEXIST, EINVAL, ENOENT, EPERM};
use super::hash::{Place, BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST};
use super::kind::Kind;
use super::ring::Ring;
use super::{number, Map, Maps, Store, HANDLE};
use crate::space::Space;

pub struct Unmodelled;

impl Map {
    /// The CPU whose value counts: those of other kinds are of all CPUs.
    #[inline]
    fn cpu(&self, cpu: usize) -> usize {
        if self.kind.percpu() {
            cpu
        } else {
            0
        }
    }
}

impl Maps {
    #[inline]
    pub(crate) fn get(&self, map: u32) -> Option<&Map> {
        self.maps.get(map as usize)
    }

    /// The address of the key's value as seen from `cpu`, the handle of an inner map, or 0.
    #[inline]
    pub fn find(&mut self, map: u32, key: &[u8], cpu: usize) -> Result<u64, Unmodelled> {
        let cpus = self.cpus;
        let map = &mut self.maps[map as usize];
        let cpu = map.cpu(cpu);
        match &mut map.store {
            Store::Array(values) => {
                let index = number(key);
                let entries = map.spec.max_entries as usize;
                if index >= entries {
                    return Ok(0);
                }
                let offset = (cpu * entries + index) * map.stride;
                values.touch(offset, map.value_size);
                Ok(map.base + offset as u64)
            }
            Store::Table(table) => Ok(table.lookup(key).map_or(0, |slot| {
                let cpus = if map.kind.percpu() { cpus } else { 1 };
                map.base + ((slot as usize * cpus + cpu) * map.stride) as u64
            })),
            Store::Inner(inner) => Ok(inner
                .get(number(key))
                .copied()
                .flatten()
                .map_or(0, |map| HANDLE + u64::from(map))),
            Store::InnerTable(table, inner) => {
                Ok(table.lookup(key).map_or(0, |slot| HANDLE + u64::from(inner[slot as usize])))
            }
            Store::Targets(targets) if map.kind == Kind::Devmap => {
                let index = number(key);
                let found = targets.get(index).is_some_and(Option::is_some);
                Ok(if found { map.base + (index * map.stride) as u64 } else { 0 })
            }
            _ => Err(Unmodelled),
        }
    }

    /// Update the value for `cpu`; the result is 0 or a negative error number.
    pub fn set(
        &mut self,
        space: &mut Space,
        map: u32,
        key: &[u8],
        value: &[u8],
        flags: u64,
        cpu: usize,
    ) -> Result<i64, Unmodelled> {
        if self.maps[map as usize].spec.readonly {
            return Ok(-EPERM);
        }
        let cpus = self.cpus;
        let map = &mut self.maps[map as usize];
        let cpu = map.cpu(cpu);
        match &mut map.store {
            Store::Array(values) => {
                let index = number(key);
                let entries = map.spec.max_entries as usize;
                if let Some(error) = array_error(map.kind, index, entries, flags) {
                    return Ok(error);
                }
                let offset = (cpu * entries + index) * map.stride;
                values.touch(offset, map.value_size);
                put(space, map.base + offset as u64, value);
                Ok(0)
            }
            Store::Table(table) if map.kind != Kind::DevmapHash => {
                let place = match table.update(key, flags) {
                    Err(error) => return Ok(error),
                    Ok(place) => place,
                };
                let per_slot = if map.kind.percpu() { cpus } else { 1 };
                let at = |slot: u32, cpu: usize| {
                    map.base + ((slot as usize * per_slot + cpu) * map.stride) as u64
                };
                let slot = match place {
                    Place::Same(slot) => slot,
                    Place::New(slot) => {
                        // The kernel zeroes the other CPUs' values of a new element.
                        for other in (0..per_slot).filter(|other| *other != cpu) {
                            space.bytes_mut(at(slot, other), map.stride).fill(0);
                        }
                        slot
                    }
                };
                put(space, at(slot, cpu), value);
                Ok(0)
            }
            _ => Err(Unmodelled),
        }
    }

    /// Delete a key; the result is 0 or a negative error number.
    pub fn remove(&mut self, map: u32, key: &[u8]) -> Result<i64, Unmodelled> {
        let map = &mut self.maps[map as usize];
        match &mut map.store {
            _ if map.spec.readonly => Ok(-EPERM),
            Store::Array(_) => Ok(-EINVAL),
            Store::Table(table) if map.kind != Kind::DevmapHash => {
                Ok(table.delete(key).err().unwrap_or(0))
            }
            _ => Err(Unmodelled),
        }
    }

    /// Queue and stack: put a value in.
    pub fn push(&mut self, map: u32, value: &[u8], flags: u64) -> Result<i64, Unmodelled> {
        let map = &mut self.maps[map as usize];
        let Store::Queue(items) = &mut map.store else { return Err(Unmodelled) };
        if flags & BPF_NOEXIST != 0 || flags > BPF_EXIST {
            return Ok(-EINVAL);
        }
        if items.len() == map.spec.max_entries as usize {
            if flags != BPF_EXIST {
                return Ok(-E2BIG);
            }
            items.pop_front();
        }
        items.push_back(value.to_vec());
        Ok(0)
    }

    /// Queue and stack: the next value, which stays or goes. `out` is zeroed where there is none.
    pub fn pop(&mut self, map: u32, out: &mut [u8], stays: bool) -> Result<i64, Unmodelled> {
        let map = &mut self.maps[map as usize];
        let Store::Queue(items) = &mut map.store else { return Err(Unmodelled) };
        let next = if map.kind == Kind::Queue { items.front() } else { items.back() };
        let Some(value) = next else {
            out.fill(0);
            return Ok(-ENOENT);
        };
        out.copy_from_slice(value);
        match (stays, map.kind) {
            (true, _) => {}
            (false, Kind::Queue) => drop(items.pop_front()),
            (false, _) => drop(items.pop_back()),
        }
        Ok(0)
    }

    /// Whether `bpf_redirect_map` finds something; Err for maps that it does not take.
    pub fn has_target(&self, map: u32, key: u32) -> Result<bool, Unmodelled> {
        let map = &self.maps[map as usize];
        match &map.store {
            Store::Targets(targets) => Ok(targets.get(key as usize).is_some_and(Option::is_some)),
            Store::Table(table) if map.kind == Kind::DevmapHash => {
                Ok(table.peek(&key.to_ne_bytes()).is_some())
            }
            _ => Err(Unmodelled),
        }
    }

    /// Keys of the entries that `bpf_for_each_map_elem` visits, in its order here: ascending slots,
    /// and for arrays all indexes.
    pub fn visited(&self, map: u32) -> Result<Vec<Vec<u8>>, Unmodelled> {
        let map = &self.maps[map as usize];
        match &map.store {
            Store::Array(_) => {
                Ok((0..map.spec.max_entries).map(|index| index.to_ne_bytes().to_vec()).collect())
            }
            Store::Table(table) if !matches!(map.kind, Kind::LpmTrie | Kind::DevmapHash) => {
                Ok(table.keys.slots().iter().map(|slot| table.keys.key(*slot).to_vec()).collect())
            }
            _ => Err(Unmodelled),
        }
    }

    /// As `find`, without counting as a use of an LRU map's entry.
    pub fn find_unused(&mut self, map: u32, key: &[u8], cpu: usize) -> Result<u64, Unmodelled> {
        let entry = &self.maps[map as usize];
        if let Store::Table(table) = &entry.store {
            let cpu = entry.cpu(cpu);
            let cpus = if entry.kind.percpu() { self.cpus } else { 1 };
            return Ok(table.peek(key).map_or(0, |slot| {
                entry.base + ((slot as usize * cpus + cpu) * entry.stride) as u64
            }));
        }
        self.find(map, key, cpu)
    }
}

/// Errors of an array's update by a program, in the kernel's order.
pub(super) fn array_error(kind: Kind, index: usize, entries: usize, flags: u64) -> Option<i64> {
    if flags & !BPF_F_LOCK > BPF_EXIST {
        Some(-EINVAL)
    } else if index >= entries {
        Some(-E2BIG)
    } else if flags & BPF_NOEXIST != 0 {
        Some(-EEXIST)
    } else if flags & BPF_F_LOCK != 0 && kind == Kind::PercpuArray {
        // Per-CPU values hold no locks.
        Some(-EINVAL)
    } else {
        None
    }
}

/// Copy a value into map memory, which `value` may itself lie in.
pub(crate) fn put(space: &mut Space, address: u64, value: &[u8]) {
    let place = space.bytes_mut(address, value.len()).as_mut_ptr();
    // SAFETY: `place` has room for the value's length; `ptr::copy` allows that they overlap.
    unsafe { std::ptr::copy(value.as_ptr(), place, value.len()) };
}

/// Questions and what only one kind of map does.
impl Maps {
    #[inline]
    pub fn key_size(&self, map: u32) -> usize {
        self.maps[map as usize].key_size
    }

    #[inline]
    pub fn value_size(&self, map: u32) -> usize {
        self.maps[map as usize].value_size
    }

    pub fn kind_name(&self, map: u32) -> String {
        self.maps[map as usize].kind.name()
    }

    pub fn is_percpu(&self, map: u32) -> bool {
        self.maps[map as usize].kind.percpu()
    }

    pub fn is_devmap(&self, map: u32) -> bool {
        matches!(self.maps[map as usize].kind, Kind::Devmap | Kind::DevmapHash)
    }

    pub fn is_ring(&self, map: u32) -> bool {
        self.maps[map as usize].kind == Kind::Ringbuf
    }

    /// max_entries of a perf event array; None: the map is none.
    pub fn perf_entries(&self, map: u32) -> Option<u32> {
        let map = &self.maps[map as usize];
        (map.kind == Kind::PerfEventArray).then_some(map.spec.max_entries)
    }

    fn ring(&mut self, map: u32) -> Option<&mut Ring> {
        match &mut self.maps[map as usize].store {
            Store::Ring(ring) => Some(ring),
            _ => None,
        }
    }

    /// The readers of all ring buffers read what they can.
    pub fn consume(&mut self) {
        for map in &mut self.maps {
            if let Store::Ring(ring) = &mut map.store {
                ring.consume();
            }
        }
    }

    /// The ring buffer that an address lies in.
    pub fn ring_of(&self, address: u64) -> Option<u32> {
        let inside = |map: &Map| {
            map.kind == Kind::Ringbuf
                && address.wrapping_sub(map.base) < u64::from(map.spec.max_entries) * 2
        };
        self.maps.iter().position(inside).map(|at| at as u32)
    }

    /// The address of a new record of zeros; None where there is no room.
    pub fn ring_reserve(&mut self, space: &mut Space, map: u32, len: u64) -> Option<u64> {
        let ring = self.ring(map)?;
        let address = ring.reserve(len)?;
        space.bytes_mut(address, len as usize).fill(0);
        show_reserved(space, ring);
        Some(address)
    }

    /// See `Ring::commit`.
    pub fn ring_commit(
        &mut self,
        space: &mut Space,
        map: u32,
        address: u64,
        discard: bool,
    ) -> Option<Vec<(u64, u64)>> {
        let ring = self.ring(map)?;
        let seen = ring.commit(address, discard)?;
        show_reserved(space, ring);
        Some(seen)
    }

    pub fn ring_query(&mut self, map: u32, question: u64) -> Option<u64> {
        self.ring(map).map(|ring| ring.query(question))
    }
}

/// Programs may touch what is reserved: exactly the record where there is one, all from the first to
/// the last where there are several.
fn show_reserved(space: &mut Space, ring: &Ring) {
    let region = space.region_mut(ring.region);
    match ring.reserved() {
        Some((start, end)) => {
            let size = (end - start) as u32;
            (region.start, region.end) = (start, end);
            (region.stride, region.size) = (size.max(1), size);
            region.live = true;
        }
        None => region.live = false,
    }
}
