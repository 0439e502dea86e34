//! Longest-prefix match over keys of `struct bpf_lpm_trie_key`: a length in bits, then data.

use super::index::KeyIndex;

/// Longest key that the kernel makes a trie for.
const KEY_MAX: usize = 4 + 256;

/// The prefixes of a trie by slot. A prefix is found by its significant bits; the bits after them
/// stay as the key that made it had them, as in the kernel, where user space can read them back.
#[derive(Clone)]
pub struct Prefixes {
    /// Keys with the insignificant bits cleared.
    index: KeyIndex,
    /// Keys as given, by slot.
    given: Vec<Vec<u8>>,
    /// Lengths in use and how many prefixes there are of each, the longest first.
    lengths: Vec<(u32, u32)>,
    most_bits: usize,
}

impl Prefixes {
    pub fn new(key_size: usize) -> Self {
        Prefixes {
            index: KeyIndex::new(key_size),
            given: Vec::new(),
            lengths: Vec::new(),
            most_bits: (key_size - 4) * 8,
        }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// None: longer than the trie's data.
    #[inline]
    pub fn bits(&self, key: &[u8]) -> Option<usize> {
        let bits = u32::from_ne_bytes(key[..4].try_into().expect("four bytes")) as usize;
        (bits <= self.most_bits).then_some(bits)
    }

    /// The longest prefix of `key`, not longer than `key` says it is itself.
    pub fn longest(&self, key: &[u8]) -> Option<u32> {
        let bits = self.bits(key)?;
        let mut buffer = [0; KEY_MAX];
        let candidate = &mut buffer[..key.len()];
        candidate.copy_from_slice(key);
        let fitting = self.lengths.iter().filter(|(length, _)| *length as usize <= bits);
        fitting.map(|(length, _)| *length as usize).find_map(|bits| {
            cut(candidate, bits);
            self.index.get(candidate)
        })
    }

    /// The prefix with exactly `key`'s length and bits.
    pub fn exact(&self, key: &[u8]) -> Option<u32> {
        let mut buffer = [0; KEY_MAX];
        self.index.get(self.normal(key, &mut buffer)?)
    }

    /// `key` has been checked by `bits`, and is not in.
    pub fn insert(&mut self, key: &[u8], slot: u32) {
        let mut buffer = [0; KEY_MAX];
        let (Some(bits), Some(normal)) = (self.bits(key), self.normal(key, &mut buffer)) else {
            return;
        };
        self.index.insert(normal, slot);
        let bits = bits as u32;
        match self.lengths.binary_search_by(|(length, _)| bits.cmp(length)) {
            Ok(at) => self.lengths[at].1 += 1,
            Err(at) => self.lengths.insert(at, (bits, 1)),
        }
        if self.given.len() <= slot as usize {
            self.given.resize(slot as usize + 1, Vec::new());
        }
        self.given[slot as usize].clear();
        self.given[slot as usize].extend_from_slice(key);
    }

    pub fn remove(&mut self, key: &[u8]) -> Option<u32> {
        let mut buffer = [0; KEY_MAX];
        let bits = self.bits(key)? as u32;
        let normal = self.normal(key, &mut buffer)?;
        let slot = self.index.remove(normal)?;
        if let Ok(at) = self.lengths.binary_search_by(|(length, _)| bits.cmp(length)) {
            self.lengths[at].1 -= 1;
            if self.lengths[at].1 == 0 {
                self.lengths.remove(at);
            }
        }
        Some(slot)
    }

    /// As it was given.
    pub fn key(&self, slot: u32) -> &[u8] {
        &self.given[slot as usize]
    }

    pub fn slots(&self) -> Vec<u32> {
        self.index.slots()
    }

    fn normal<'a>(&self, key: &[u8], buffer: &'a mut [u8; KEY_MAX]) -> Option<&'a [u8]> {
        let bits = self.bits(key)?;
        let normal = &mut buffer[..key.len()];
        normal.copy_from_slice(key);
        cut(normal, bits);
        Some(normal)
    }
}

/// Set the length to `bits`, and clear what follows so many bits of the data.
fn cut(key: &mut [u8], bits: usize) {
    key[..4].copy_from_slice(&(bits as u32).to_ne_bytes());
    let data = &mut key[4..];
    let whole = bits / 8;
    if whole < data.len() {
        data[whole] &= (0xFF00u16 >> (bits % 8)) as u8;
        data[whole + 1..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bits: u32, data: [u8; 4]) -> Vec<u8> {
        [bits.to_ne_bytes(), data].concat()
    }

    #[test]
    fn the_longest_that_fits_wins() {
        let mut trie = Prefixes::new(8);
        trie.insert(&key(0, [9, 9, 9, 9]), 0);
        trie.insert(&key(8, [10, 1, 1, 1]), 1);
        trie.insert(&key(20, [10, 0, 0x1F, 0]), 2);
        let find = |bits, data| trie.longest(&key(bits, data));
        assert_eq!(find(32, [10, 0, 0x10, 5]), Some(2));
        assert_eq!(find(32, [10, 0, 0x20, 5]), Some(1));
        assert_eq!(find(19, [10, 0, 0x10, 5]), Some(1));
        assert_eq!(find(32, [11, 0, 0, 0]), Some(0));
        assert_eq!(find(33, [10, 0, 0, 0]), None);
        assert_eq!(trie.exact(&key(8, [10, 7, 7, 7])), Some(1));
        assert_eq!(trie.exact(&key(9, [10, 0, 0, 0])), None);
        assert_eq!(trie.key(1), key(8, [10, 1, 1, 1]));
        assert_eq!(trie.remove(&key(8, [10, 0, 0, 0])), Some(1));
        assert_eq!(trie.longest(&key(32, [10, 0, 0x20, 5])), Some(0));
    }
}
