//! Hash-like maps: which key has which slot, as kernel/bpf/hashtab.c and lpm_trie.c decide it.
//!
//! Where the kernel's hash map is preallocated it replaces the value of a known key by putting a
//! spare element in its place, so that a pointer from an earlier lookup keeps the old value until
//! the element is used again. The same is done here (with one spare, not one per CPU), for all
//! kinds but the per-CPU ones, which the kernel updates in place. The kernel takes free elements in
//! an order that depends on CPUs; here the one freed last is taken first.

use super::errno::{E2BIG, EEXIST, EINVAL, ENOENT, ENOSPC};
use super::index::KeyIndex;
use super::lpm::Prefixes;
use super::lru::{Order, Slots};

/// Flags of an update.
pub const BPF_NOEXIST: u64 = 1;
pub const BPF_EXIST: u64 = 2;
pub const BPF_F_LOCK: u64 = 4;

#[derive(Clone)]
pub enum Keys {
    Hashed(KeyIndex),
    Prefixes(Prefixes),
}

impl Keys {
    pub fn len(&self) -> usize {
        match self {
            Keys::Hashed(index) => index.len(),
            Keys::Prefixes(trie) => trie.len(),
        }
    }

    /// Of exactly this key.
    pub fn exact(&self, key: &[u8]) -> Option<u32> {
        match self {
            Keys::Hashed(index) => index.get(key),
            Keys::Prefixes(trie) => trie.exact(key),
        }
    }

    pub fn key(&self, slot: u32) -> &[u8] {
        match self {
            Keys::Hashed(index) => index.key(slot),
            Keys::Prefixes(trie) => trie.key(slot),
        }
    }

    pub fn slots(&self) -> Vec<u32> {
        match self {
            Keys::Hashed(index) => index.slots(),
            Keys::Prefixes(trie) => trie.slots(),
        }
    }

    fn insert(&mut self, key: &[u8], slot: u32) {
        match self {
            Keys::Hashed(index) => index.insert(key, slot),
            Keys::Prefixes(trie) => trie.insert(key, slot),
        }
    }

    fn remove(&mut self, key: &[u8]) -> Option<u32> {
        match self {
            Keys::Hashed(index) => index.remove(key),
            Keys::Prefixes(trie) => trie.remove(key),
        }
    }
}

/// Where an update's value goes.
pub enum Place {
    /// A slot that had no value for this key.
    New(u32),
    /// The value of a known key is overwritten in place.
    Same(u32),
}

#[derive(Clone)]
pub struct Table {
    pub keys: Keys,
    slots: Slots,
    /// None where known keys are updated in place.
    spare: Option<u32>,
    order: Option<Order>,
    max_entries: usize,
    /// Highest slot ever used, plus one.
    pub high: u32,
}

impl Table {
    /// How many slots a table of this size needs.
    pub fn slots_needed(max_entries: usize) -> usize {
        max_entries + 1
    }

    pub fn new(keys: Keys, max_entries: usize, in_place: bool, lru: bool) -> Self {
        let mut slots = Slots::new(Self::slots_needed(max_entries) as u32);
        let spare = if in_place { None } else { slots.take() };
        let order = lru.then(Order::new);
        let high = u32::from(!in_place);
        Table { keys, slots, spare, order, max_entries, high }
    }

    /// As a program's lookup does it, which counts as a use.
    #[inline]
    pub fn lookup(&mut self, key: &[u8]) -> Option<u32> {
        let slot = match &self.keys {
            Keys::Hashed(index) => index.get(key)?,
            Keys::Prefixes(trie) => trie.longest(key)?,
        };
        if let Some(order) = &mut self.order {
            order.touch(slot);
        }
        Some(slot)
    }

    /// As user space's lookup does it.
    pub fn peek(&self, key: &[u8]) -> Option<u32> {
        match &self.keys {
            Keys::Hashed(index) => index.get(key),
            Keys::Prefixes(trie) => trie.longest(key),
        }
    }

    /// Find the slot for a new value, or the negative error number.
    ///
    /// LRU kinds never are full. The kernel takes the new element before it looks for the key, so
    /// that an update of a known key in a full map may evict another one; here it does not.
    pub fn update(&mut self, key: &[u8], flags: u64) -> Result<Place, i64> {
        let trie = matches!(self.keys, Keys::Prefixes(_));
        let locks = !trie && self.order.is_none() && self.spare.is_some();
        let flags_allowed = if locks { flags & !BPF_F_LOCK } else { flags };
        if flags_allowed > BPF_EXIST {
            return Err(-EINVAL);
        }
        if let Keys::Prefixes(trie) = &self.keys {
            trie.bits(key).ok_or(-EINVAL)?;
        }
        let Some(old) = self.keys.exact(key) else {
            if flags_allowed == BPF_EXIST {
                return Err(-ENOENT);
            }
            return self.fresh(key).map(Place::New);
        };
        if flags_allowed == BPF_NOEXIST {
            return Err(-EEXIST);
        }
        if let Some(order) = &mut self.order {
            order.touch(old);
        }
        let Some(new) = self.spare.filter(|_| flags & BPF_F_LOCK == 0) else {
            return Ok(Place::Same(old));
        };
        self.spare = Some(old);
        self.keys.remove(key);
        self.keys.insert(key, new);
        self.high = self.high.max(new + 1);
        if let Some(order) = &mut self.order {
            order.remove(old);
            order.add(new);
        }
        Ok(Place::New(new))
    }

    fn fresh(&mut self, key: &[u8]) -> Result<u32, i64> {
        if self.keys.len() == self.max_entries {
            match self.order.as_ref().and_then(Order::oldest) {
                Some(oldest) => {
                    let evicted = self.keys.key(oldest).to_vec();
                    self.drop_slot(&evicted);
                }
                None if matches!(self.keys, Keys::Prefixes(_)) => return Err(-ENOSPC),
                None => return Err(-E2BIG),
            }
        }
        let slot = self.slots.take().ok_or(-E2BIG)?;
        self.high = self.high.max(slot + 1);
        self.keys.insert(key, slot);
        if let Some(order) = &mut self.order {
            order.add(slot);
        }
        Ok(slot)
    }

    pub fn delete(&mut self, key: &[u8]) -> Result<(), i64> {
        if let Keys::Prefixes(trie) = &self.keys {
            trie.bits(key).ok_or(-EINVAL)?;
        }
        self.drop_slot(key).then_some(()).ok_or(-ENOENT)
    }

    fn drop_slot(&mut self, key: &[u8]) -> bool {
        let Some(slot) = self.keys.remove(key) else { return false };
        if let Some(order) = &mut self.order {
            order.remove(slot);
        }
        self.slots.give(slot);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(max_entries: usize, lru: bool) -> Table {
        Table::new(Keys::Hashed(KeyIndex::new(1)), max_entries, false, lru)
    }

    fn put(table: &mut Table, key: u8, flags: u64) -> Result<u32, i64> {
        table.update(&[key], flags).map(|(Place::New(slot) | Place::Same(slot))| slot)
    }

    #[test]
    fn errors_of_a_hash_map() {
        let mut map = table(2, false);
        assert_eq!(put(&mut map, 1, BPF_EXIST), Err(-ENOENT));
        let first = put(&mut map, 1, BPF_NOEXIST).unwrap();
        assert_eq!(put(&mut map, 1, BPF_NOEXIST), Err(-EEXIST));
        assert_eq!(put(&mut map, 1, 3), Err(-EINVAL));
        put(&mut map, 2, 0).unwrap();
        assert_eq!(put(&mut map, 3, 0), Err(-E2BIG));
        assert_ne!(put(&mut map, 1, BPF_EXIST).unwrap(), first);
        assert_eq!(put(&mut map, 1, BPF_EXIST | BPF_F_LOCK).unwrap(), map.peek(&[1]).unwrap());
        assert_eq!(map.delete(&[1]), Ok(()));
        assert_eq!(map.delete(&[1]), Err(-ENOENT));
        put(&mut map, 3, 0).unwrap();
    }

    #[test]
    fn an_lru_map_drops_what_was_not_used() {
        let mut map = table(3, true);
        (1..=3).for_each(|key| {
            put(&mut map, key, 0).unwrap();
        });
        map.lookup(&[1]);
        map.peek(&[2]);
        put(&mut map, 3, 0).unwrap();
        put(&mut map, 4, 0).unwrap();
        let found: Vec<bool> = (1..=4).map(|key| map.peek(&[key]).is_some()).collect();
        assert_eq!(found, [true, false, true, true]);
    }
}
