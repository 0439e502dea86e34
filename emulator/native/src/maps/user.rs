//! What user space does with maps by bpf(2). Errors are error numbers, positive.

use super::errno::{E2BIG, EEXIST, EINVAL, ENOENT, EOPNOTSUPP};
use super::hash::{Place, BPF_EXIST, BPF_NOEXIST};
use super::kind::Kind;
use super::program::{array_error, put};
use super::{number, Map, Maps, Slot, Store};
use crate::space::Space;

fn positive(error: i64) -> i32 {
    error.unsigned_abs() as i32
}

impl Maps {
    fn checked(&self, map: u32, key: &[u8]) -> Result<&Map, i32> {
        let map = self.get(map).ok_or(positive(ENOENT))?;
        if key.len() == map.key_size {
            Ok(map)
        } else {
            Err(positive(EINVAL))
        }
    }

    /// BPF_MAP_UPDATE_ELEM. Per-CPU kinds take one value for all CPUs, or one for each of them in
    /// multiples of eight bytes.
    pub fn update(
        &mut self,
        space: &mut Space,
        map: u32,
        key: &[u8],
        value: &[u8],
        flags: u64,
    ) -> Result<(), i32> {
        let checked = self.checked(map, key)?;
        let each = checked.kind.percpu() && value.len() == checked.stride * self.cpus;
        if value.len() != checked.value_size && !each {
            return Err(positive(EINVAL));
        }
        let cpus = if checked.kind.percpu() { self.cpus } else { 1 };
        if matches!(checked.store, Store::Queue(_)) {
            let pushed = self.push(map, value, flags).unwrap_or(-EINVAL);
            return if pushed == 0 { Ok(()) } else { Err(positive(pushed)) };
        }
        let map = &mut self.maps[map as usize];
        let (size, stride) = (map.value_size, map.stride);
        let of = |cpu: usize| if each { &value[cpu * stride..][..size] } else { value };
        match &mut map.store {
            Store::Array(values) => {
                let (index, entries) = (number(key), map.spec.max_entries as usize);
                if map.kind == Kind::PercpuArray && flags > BPF_EXIST {
                    return Err(positive(EINVAL));
                }
                if let Some(error) = array_error(map.kind, index, entries, flags) {
                    return Err(positive(error));
                }
                for cpu in 0..cpus {
                    let offset = (cpu * entries + index) * stride;
                    values.touch(offset, size);
                    put(space, map.base + offset as u64, of(cpu));
                }
            }
            Store::Table(table) => {
                if map.kind == Kind::DevmapHash && value[..4] == [0; 4] {
                    return Err(positive(EINVAL));
                }
                let (Place::New(slot) | Place::Same(slot)) =
                    table.update(key, flags).map_err(positive)?;
                for cpu in 0..cpus {
                    put(space, map.base + ((slot as usize * cpus + cpu) * stride) as u64, of(cpu));
                }
            }
            Store::Targets(targets) => {
                let index = number(key);
                if flags > BPF_EXIST {
                    return Err(positive(EINVAL));
                }
                let there = targets.get_mut(index).ok_or(positive(E2BIG))?;
                // A device or CPU is always thought to be there, but not a socket.
                match (map.kind, there.is_some(), flags) {
                    (Kind::Xskmap, true, BPF_NOEXIST) => return Err(positive(EEXIST)),
                    (Kind::Xskmap, false, BPF_EXIST) => return Err(positive(ENOENT)),
                    (Kind::Devmap | Kind::Cpumap, _, BPF_NOEXIST) => return Err(positive(EEXIST)),
                    _ => {}
                }
                let mut target = [0; 8];
                target[..size].copy_from_slice(value);
                // Device 0, and a queue of no length, empty the entry.
                let empty = map.kind != Kind::Xskmap && target[..4] == [0; 4];
                *there = (!empty).then_some(target);
                if map.kind == Kind::Devmap {
                    put(space, map.base + (index * stride) as u64, &target);
                }
            }
            Store::Nothing if map.kind == Kind::PerfEventArray => {
                if number(key) >= map.spec.max_entries as usize {
                    return Err(positive(E2BIG));
                }
            }
            _ => return Err(positive(EOPNOTSUPP)),
        }
        Ok(())
    }

    /// BPF_MAP_LOOKUP_ELEM; None where there is no such key. Queue and stack: the next value.
    pub fn lookup(
        &mut self,
        space: &mut Space,
        map: u32,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, i32> {
        let found = self.checked(map, key)?;
        match &found.store {
            Store::Array(_) => {
                let index = number(key);
                Ok((index < found.spec.max_entries as usize)
                    .then(|| self.value_of(space, found, index)))
            }
            Store::Table(table) => {
                Ok(table.peek(key).map(|slot| self.value_of(space, found, slot as usize)))
            }
            Store::Inner(inner) => {
                Ok(inner.get(number(key)).copied().flatten().map(|map| map.to_ne_bytes().to_vec()))
            }
            Store::InnerTable(table, inner) => {
                Ok(table.peek(key).map(|slot| inner[slot as usize].to_ne_bytes().to_vec()))
            }
            Store::Targets(targets) => {
                let target = targets.get(number(key)).copied().flatten();
                Ok(target.map(|target| target[..found.value_size].to_vec()))
            }
            Store::Slots(slots) => Ok(slots.get(number(key)).and_then(|slot| match slot {
                Slot::Empty => None,
                Slot::Program(program) => Some(program.to_ne_bytes().to_vec()),
                Slot::Marker(tag) => Some(tag.to_ne_bytes().to_vec()),
            })),
            Store::Queue(items) => {
                let next = if found.kind == Kind::Queue { items.front() } else { items.back() };
                Ok(next.cloned())
            }
            Store::Ring(_) | Store::Nothing => Err(positive(EOPNOTSUPP)),
        }
    }

    /// All CPUs' values of an index or slot (per-CPU kinds in multiples of eight bytes).
    pub(super) fn value_of(&self, space: &Space, map: &Map, place: usize) -> Vec<u8> {
        if !map.kind.percpu() {
            return space.bytes(map.base + (place * map.stride) as u64, map.value_size).to_vec();
        }
        let entries = map.spec.max_entries as usize;
        let mut all = Vec::with_capacity(self.cpus * map.stride);
        for cpu in 0..self.cpus {
            let at = match &map.store {
                Store::Array(_) => cpu * entries + place,
                _ => place * self.cpus + cpu,
            };
            all.extend_from_slice(space.bytes(map.base + (at * map.stride) as u64, map.value_size));
            all.resize((cpu + 1) * map.stride, 0);
        }
        all
    }

    /// BPF_MAP_DELETE_ELEM.
    pub fn delete(&mut self, space: &mut Space, map: u32, key: &[u8]) -> Result<(), i32> {
        self.checked(map, key)?;
        let map = &mut self.maps[map as usize];
        match &mut map.store {
            Store::Array(_) | Store::Queue(_) => Err(positive(EINVAL)),
            Store::Table(table) | Store::InnerTable(table, _) => {
                table.delete(key).map_err(positive)
            }
            Store::Targets(targets) => {
                let index = number(key);
                *targets.get_mut(index).ok_or(positive(EINVAL))? = None;
                if map.kind == Kind::Devmap {
                    put(space, map.base + (index * map.stride) as u64, &[0; 8]);
                }
                Ok(())
            }
            Store::Inner(inner) => {
                let there = inner.get_mut(number(key)).ok_or(positive(E2BIG))?;
                there.take().map(|_| ()).ok_or(positive(ENOENT))
            }
            Store::Slots(slots) => {
                let slot = slots.get_mut(number(key)).ok_or(positive(E2BIG))?;
                if *slot == Slot::Empty {
                    return Err(positive(ENOENT));
                }
                *slot = Slot::Empty;
                Ok(())
            }
            Store::Ring(_) | Store::Nothing => Err(positive(EOPNOTSUPP)),
        }
    }

    /// Put the map `inner` into a map of maps. EINVAL: it is not made like the template.
    pub fn set_inner(&mut self, map: u32, key: &[u8], inner: u32) -> Result<(), i32> {
        let outer = self.checked(map, key)?;
        let template = outer.spec.inner.and_then(|index| self.get(index));
        let (Some(template), Some(given)) = (template, self.get(inner)) else {
            return Err(positive(EINVAL));
        };
        // bpf_map_meta_equal: arrays must also be as long, unless made with BPF_F_INNER_MAP.
        const BPF_F_INNER_MAP: u32 = 1 << 12;
        let same = given.spec.kind == template.spec.kind
            && given.key_size == template.key_size
            && given.value_size == template.value_size
            && given.spec.flags == template.spec.flags
            && (given.kind != Kind::Array
                || given.spec.flags & BPF_F_INNER_MAP != 0
                || given.spec.max_entries == template.spec.max_entries);
        if !same {
            return Err(positive(EINVAL));
        }
        match &mut self.maps[map as usize].store {
            Store::Inner(entries) => {
                *entries.get_mut(number(key)).ok_or(positive(E2BIG))? = Some(inner);
            }
            Store::InnerTable(table, entries) => {
                let (Place::New(slot) | Place::Same(slot)) =
                    table.update(key, 0).map_err(positive)?;
                if entries.len() <= slot as usize {
                    entries.resize(slot as usize + 1, 0);
                }
                entries[slot as usize] = inner;
            }
            _ => return Err(positive(EINVAL)),
        }
        Ok(())
    }

    /// Put a program or marker into a prog array.
    pub fn set_slot(&mut self, map: u32, key: u32, slot: Slot) -> Result<(), i32> {
        let map = self.maps.get_mut(map as usize).ok_or(positive(ENOENT))?;
        let Store::Slots(slots) = &mut map.store else { return Err(positive(EINVAL)) };
        *slots.get_mut(key as usize).ok_or(positive(E2BIG))? = slot;
        Ok(())
    }
}
