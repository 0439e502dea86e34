//! Which parts of an array's values were ever reached, so that saving, restoring and comparing a
//! large array costs what was used of it.
//!
//! Programs get the address of a value from a helper or from LDDW only, and uBPF's accesses stay
//! within one value, so it is enough to note the values that were handed out or written.

use std::cell::Cell;

use crate::space::Space;

const CHUNK: usize = 4096;

#[derive(Clone)]
pub struct Values {
    pub base: u64,
    pub bytes: usize,
    touched: Vec<u64>,
    /// The address stands in a program's code: all of it may have been written.
    direct: Cell<bool>,
}

/// Contents at one time: chunks by number.
#[derive(Clone)]
pub struct Chunks(Vec<(usize, Vec<u8>)>);

impl Values {
    pub fn new(base: u64, bytes: usize) -> Self {
        let chunks = bytes.div_ceil(CHUNK);
        Values { base, bytes, touched: vec![0; chunks.div_ceil(64)], direct: Cell::new(false) }
    }

    /// `size` bytes at `offset` may be written from now on.
    #[inline]
    pub fn touch(&mut self, offset: usize, size: usize) {
        let (first, last) = (offset / CHUNK, (offset + size.max(1) - 1) / CHUNK);
        self.touched[first / 64] |= 1 << (first % 64);
        for chunk in first + 1..=last {
            self.touched[chunk / 64] |= 1 << (chunk % 64);
        }
    }

    pub fn make_direct(&self) {
        self.direct.set(true);
    }

    fn is_touched(&self, chunk: usize) -> bool {
        self.direct.get() || self.touched[chunk / 64] >> (chunk % 64) & 1 == 1
    }

    fn chunks(&self) -> impl Iterator<Item = usize> + '_ {
        let count = self.bytes.div_ceil(CHUNK);
        let direct = self.direct.get();
        let words = self.touched.iter().enumerate();
        let touched = words.filter(move |(_, word)| direct || **word != 0);
        touched
            .flat_map(|(at, _)| at * 64..at * 64 + 64)
            .filter(move |chunk| *chunk < count && self.is_touched(*chunk))
    }

    fn place(&self, chunk: usize) -> (u64, usize) {
        let offset = chunk * CHUNK;
        (self.base + offset as u64, CHUNK.min(self.bytes - offset))
    }

    /// Offsets of parts (start, length) outside which everything is zero.
    pub fn parts(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.chunks().map(|chunk| (chunk * CHUNK, self.place(chunk).1))
    }

    pub fn save(&self, space: &Space) -> Chunks {
        let one = |chunk| {
            let (address, len) = self.place(chunk);
            (chunk, space.bytes(address, len).to_vec())
        };
        Chunks(self.chunks().map(one).collect())
    }

    pub fn restore(&mut self, space: &mut Space, saved: &Chunks) {
        let mut kept = saved.0.iter().map(|(chunk, _)| *chunk).peekable();
        let now: Vec<usize> = self.chunks().collect();
        for chunk in now {
            while kept.next_if(|saved| *saved < chunk).is_some() {}
            if kept.peek() != Some(&chunk) {
                let (address, len) = self.place(chunk);
                space.bytes_mut(address, len).fill(0);
            }
        }
        for (chunk, bytes) in &saved.0 {
            let (address, len) = self.place(*chunk);
            let place = space.bytes_mut(address, len);
            // Writing would make a page of our own of one that may still be shared or unmade.
            if place != bytes {
                place.copy_from_slice(bytes);
            }
        }
    }

    /// Whether the bytes differ; `other` is as long.
    pub fn differs(&self, space: &Space, other: &Values, other_space: &Space) -> bool {
        let both = |chunk: usize| {
            let ((here, len), (there, _)) = (self.place(chunk), other.place(chunk));
            space.bytes(here, len) != other_space.bytes(there, len)
        };
        self.chunks().any(both)
            || other.chunks().any(|chunk| !self.is_touched(chunk) && both(chunk))
    }
}
