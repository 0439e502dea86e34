//! The keys of hash-like maps: a table from key to slot number, without a random seed.

const EMPTY: u32 = 0;

/// Open addressing with linear probing; deletion moves entries back, so that no tombstones stay.
#[derive(Clone)]
pub struct KeyIndex {
    key_size: usize,
    /// Keys by slot; grows with the highest slot in use.
    keys: Vec<u8>,
    /// Slot + 1, or EMPTY.
    table: Vec<u32>,
    len: usize,
}

impl KeyIndex {
    pub fn new(key_size: usize) -> Self {
        KeyIndex { key_size, keys: Vec::new(), table: vec![EMPTY; 16], len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, key: &[u8]) -> Option<u32> {
        let mask = self.table.len() - 1;
        let mut place = hash(key) as usize & mask;
        loop {
            match self.table[place] {
                EMPTY => return None,
                slot if same(self.key(slot - 1), key) => return Some(slot - 1),
                _ => place = (place + 1) & mask,
            }
        }
    }

    /// `key` must not be in the table, nor `slot`.
    pub fn insert(&mut self, key: &[u8], slot: u32) {
        if (self.len + 1) * 2 > self.table.len() {
            self.grow();
        }
        let at = slot as usize * self.key_size;
        if self.keys.len() < at + self.key_size {
            self.keys.resize(at + self.key_size, 0);
        }
        self.keys[at..at + self.key_size].copy_from_slice(key);
        self.place(hash(key), slot);
        self.len += 1;
    }

    pub fn remove(&mut self, key: &[u8]) -> Option<u32> {
        let mask = self.table.len() - 1;
        let mut hole = hash(key) as usize & mask;
        let slot = loop {
            match self.table[hole] {
                EMPTY => return None,
                slot if same(self.key(slot - 1), key) => break slot - 1,
                _ => hole = (hole + 1) & mask,
            }
        };
        let mut next = hole;
        loop {
            next = (next + 1) & mask;
            let entry = self.table[next];
            if entry == EMPTY {
                break;
            }
            let home = hash(self.key(entry - 1)) as usize & mask;
            // An entry may fill the hole if its home is not between the hole and itself.
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.table[hole] = entry;
                hole = next;
            }
        }
        self.table[hole] = EMPTY;
        self.len -= 1;
        Some(slot)
    }

    pub fn key(&self, slot: u32) -> &[u8] {
        &self.keys[slot as usize * self.key_size..][..self.key_size]
    }

    /// Slots in use, ascending.
    pub fn slots(&self) -> Vec<u32> {
        let mut found: Vec<u32> =
            self.table.iter().filter(|entry| **entry != EMPTY).map(|entry| entry - 1).collect();
        found.sort_unstable();
        found
    }

    fn place(&mut self, hash: u64, slot: u32) {
        let mask = self.table.len() - 1;
        let mut place = hash as usize & mask;
        while self.table[place] != EMPTY {
            place = (place + 1) & mask;
        }
        self.table[place] = slot + 1;
    }

    fn grow(&mut self) {
        let bigger = vec![EMPTY; self.table.len() * 2];
        let old = std::mem::replace(&mut self.table, bigger);
        for entry in old.into_iter().filter(|entry| *entry != EMPTY) {
            let hash = hash(self.key(entry - 1));
            self.place(hash, entry - 1);
        }
    }
}

/// A multiply-and-rotate hash over words of eight bytes, its high bits mixed down.
#[inline]
fn hash(key: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut state = key.len() as u64;
    let mut words = key.chunks_exact(8);
    for bytes in &mut words {
        state = (state.rotate_left(5) ^ word(bytes)).wrapping_mul(FACTOR);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        state = (state.rotate_left(5) ^ part(rest)).wrapping_mul(FACTOR);
    }
    state ^ (state >> 32)
}

/// Whether keys of one length are equal. Keys were just written, mostly, to the end of a page: what
/// memcmp does with vector registers is ten times slower there.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    let (mut left, mut right) = (a.chunks_exact(8), b.chunks_exact(8));
    for (a, b) in (&mut left).zip(&mut right) {
        if word(a) != word(b) {
            return false;
        }
    }
    part(left.remainder()) == part(right.remainder())
}

#[inline]
fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// Fewer than eight bytes as a number that differs for different bytes (of one length).
#[inline]
fn part(bytes: &[u8]) -> u64 {
    let half = |at: usize| {
        u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")))
    };
    match bytes.len() {
        0 => 0,
        4 => half(0),
        len @ 5.. => half(0) | half(len - 4) << 32,
        len => {
            let byte = |at: usize| u64::from(bytes[at]);
            byte(0) | byte(len / 2) << 8 | byte(len - 1) << 16
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn agrees_with_a_tree() {
        let (mut index, mut tree) = (KeyIndex::new(5), BTreeMap::new());
        let mut state = 1u64;
        let mut free: Vec<u32> = (0..400).rev().collect();
        for _ in 0..20_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let mut key = [0u8; 5];
            key[1..3].copy_from_slice(&((state >> 40) as u16 % 300).to_le_bytes());
            let known = tree.get(&key).copied();
            assert_eq!(index.get(&key), known);
            match known {
                Some(slot) if state >> 63 == 1 => {
                    assert_eq!(index.remove(&key), Some(slot));
                    tree.remove(&key);
                    free.push(slot);
                }
                None => {
                    let slot = free.pop().expect("300 keys in 400 slots");
                    index.insert(&key, slot);
                    tree.insert(key, slot);
                }
                Some(_) => {}
            }
            assert_eq!(index.len(), tree.len());
        }
        let mut slots: Vec<u32> = tree.values().copied().collect();
        slots.sort_unstable();
        assert_eq!(index.slots(), slots);
    }
}
