//! The contents of all maps: saved, restored, listed and compared.

use super::errno::{ENOENT, EOPNOTSUPP};
use super::values::Chunks;
use super::{Map, Maps, Slot, Store};
use crate::space::Space;

/// Keys and values, sorted.
pub type Items = Vec<(Vec<u8>, Vec<u8>)>;

/// All contents at one time. Costs what is in use, not what could be.
pub struct Saved(Vec<Content>);

struct Content {
    store: Store,
    chunks: Option<Chunks>,
    /// Values of the slots of a table that were ever used.
    values: Vec<u8>,
}

impl Maps {
    pub fn save(&self, space: &Space) -> Saved {
        let one = |map: &Map| Content {
            store: map.store.clone(),
            chunks: match &map.store {
                Store::Array(values) => Some(values.save(space)),
                _ => None,
            },
            values: match self.used(map) {
                0 => Vec::new(),
                used => space.bytes(map.base, used).to_vec(),
            },
        };
        Saved(self.maps.iter().map(one).collect())
    }

    /// Maps that were made after the save are left as they are.
    pub fn restore(&mut self, space: &mut Space, saved: &Saved) {
        for (map, content) in self.maps.iter_mut().zip(&saved.0) {
            match (&mut map.store, &content.chunks) {
                (Store::Array(values), Some(chunks)) => values.restore(space, chunks),
                (store, _) => {
                    if let Store::Ring(ring) = store {
                        space.region_mut(ring.region).live = false;
                    }
                    *store = content.store.clone();
                    if !content.values.is_empty() {
                        space
                            .bytes_mut(map.base, content.values.len())
                            .copy_from_slice(&content.values);
                    }
                    if let (Store::Targets(targets), true) = (&*store, map.base != 0) {
                        for (index, target) in targets.iter().enumerate() {
                            let address = map.base + (index * map.stride) as u64;
                            space.bytes_mut(address, 8).copy_from_slice(&target.unwrap_or([0; 8]));
                        }
                    }
                }
            }
        }
    }

    /// Bytes from the map's base that a table has ever used.
    fn used(&self, map: &Map) -> usize {
        match &map.store {
            Store::Table(table) => {
                let cpus = if map.kind.percpu() { self.cpus } else { 1 };
                table.high as usize * cpus * map.stride
            }
            _ => 0,
        }
    }

    /// Sorted by key. Arrays: only entries that differ from zero. Queue and stack: keys are
    /// positions (four bytes), 0 is the next one. Maps of maps and prog arrays: the value is the
    /// index of the map or program (a marker's tag). Ring buffers and perf event arrays hold
    /// nothing that stays; kinds that are not modelled are EOPNOTSUPP.
    pub fn items(&self, space: &Space, map: u32) -> Result<Items, i32> {
        let map = self.get(map).ok_or(ENOENT as i32)?;
        let mut items: Items = match &map.store {
            Store::Array(_) => {
                let places = self.nonzero(space, map);
                places.map(|at| (key_of(at), self.value_of(space, map, at))).collect()
            }
            Store::Table(table) => table
                .keys
                .slots()
                .into_iter()
                .map(|slot| {
                    (table.keys.key(slot).to_vec(), self.value_of(space, map, slot as usize))
                })
                .collect(),
            Store::InnerTable(table, inner) => table
                .keys
                .slots()
                .into_iter()
                .map(|slot| (table.keys.key(slot).to_vec(), key_of(inner[slot as usize] as usize)))
                .collect(),
            Store::Inner(inner) => {
                let set = inner.iter().enumerate().filter_map(|(at, map)| map.map(|map| (at, map)));
                set.map(|(at, map)| (key_of(at), key_of(map as usize))).collect()
            }
            Store::Slots(slots) => slots
                .iter()
                .enumerate()
                .filter_map(|(at, slot)| match slot {
                    Slot::Empty => None,
                    Slot::Program(program) => Some((key_of(at), key_of(*program as usize))),
                    Slot::Marker(tag) => Some((key_of(at), tag.to_ne_bytes().to_vec())),
                })
                .collect(),
            Store::Targets(targets) => targets
                .iter()
                .enumerate()
                .filter_map(|(at, target)| target.map(|target| (at, target)))
                .map(|(at, target)| (key_of(at), target[..map.value_size].to_vec()))
                .collect(),
            Store::Queue(values) => {
                let values = values.iter().cloned();
                let next_first: Vec<Vec<u8>> = match map.kind {
                    super::Kind::Queue => values.collect(),
                    _ => values.rev().collect(),
                };
                next_first.into_iter().enumerate().map(|(at, value)| (key_of(at), value)).collect()
            }
            Store::Ring(_) => Vec::new(),
            Store::Nothing if map.kind == super::Kind::PerfEventArray => Vec::new(),
            Store::Nothing => return Err(EOPNOTSUPP as i32),
        };
        items.sort();
        Ok(items)
    }

    /// Indexes of array entries of which some CPU's value is not zero, ascending.
    fn nonzero(&self, space: &Space, map: &Map) -> impl Iterator<Item = usize> {
        let mut found = std::collections::BTreeSet::new();
        if let Store::Array(values) = &map.store {
            let entries = map.spec.max_entries as usize;
            for (start, len) in values.parts() {
                let bytes = space.bytes(map.base + start as u64, len);
                if bytes.iter().all(|byte| *byte == 0) {
                    continue;
                }
                for at in start / map.stride..(start + len).div_ceil(map.stride) {
                    let value = space.bytes(map.base + (at * map.stride) as u64, map.value_size);
                    if value.iter().any(|byte| *byte != 0) {
                        found.insert(at % entries);
                    }
                }
            }
        }
        found.into_iter()
    }

    /// Whether the contents differ; maps of different sizes do. The other world may be parked.
    pub fn differs(
        &self,
        space: &Space,
        map: u32,
        other: &Maps,
        other_space: &Space,
        other_map: u32,
    ) -> bool {
        let (Some(a), Some(b)) = (self.get(map), other.get(other_map)) else { return true };
        let shape = |map: &Map| (map.kind, map.key_size, map.value_size, map.spec.max_entries);
        if shape(a) != shape(b) || (a.kind.percpu() && self.cpus != other.cpus) {
            return true;
        }
        match (&a.store, &b.store) {
            (Store::Array(x), Store::Array(y)) => x.differs(space, y, other_space),
            (Store::Table(x), Store::Table(y)) => {
                let cpus = if a.kind.percpu() { self.cpus } else { 1 };
                let differ = |slot: u32| {
                    let key = x.keys.key(slot);
                    let Some(twin) = y.keys.exact(key) else { return true };
                    y.keys.key(twin) != key
                        || (0..cpus).any(|cpu| {
                            let at = |slot: u32| ((slot as usize * cpus + cpu) * a.stride) as u64;
                            space.bytes(a.base + at(slot), a.value_size)
                                != other_space.bytes(b.base + at(twin), b.value_size)
                        })
                };
                x.keys.len() != y.keys.len() || x.keys.slots().into_iter().any(differ)
            }
            (Store::Targets(x), Store::Targets(y)) => x != y,
            (Store::Queue(x), Store::Queue(y)) => x != y,
            (Store::Ring(x), Store::Ring(y)) => x.query(3) != y.query(3),
            (Store::Nothing, Store::Nothing) => false,
            _ => self.items(space, map) != other.items(other_space, other_map),
        }
    }
}

fn key_of(index: usize) -> Vec<u8> {
    (index as u32).to_ne_bytes().to_vec()
}
