//! The order of use of an LRU map's slots: exact, where the kernel only approximates it.
//!
//! The kernel keeps reference bits, moves elements in batches between an active and an inactive
//! list, and has free lists per CPU, so which element it evicts depends on sizes and CPUs.

const NONE: u32 = u32::MAX;

#[derive(Clone)]
pub struct Order {
    /// (towards the most recent, towards the least recent), by slot.
    links: Vec<(u32, u32)>,
    newest: u32,
    oldest: u32,
}

impl Order {
    pub fn new() -> Self {
        Order { links: Vec::new(), newest: NONE, oldest: NONE }
    }

    /// Put a slot that is not in the order in front.
    pub fn add(&mut self, slot: u32) {
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, (NONE, NONE));
        }
        self.links[slot as usize] = (NONE, self.newest);
        match self.newest {
            NONE => self.oldest = slot,
            newest => self.links[newest as usize].0 = slot,
        }
        self.newest = slot;
    }

    pub fn remove(&mut self, slot: u32) {
        let (newer, older) = self.links[slot as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].1 = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].0 = newer,
        }
    }

    /// The slot was used.
    pub fn touch(&mut self, slot: u32) {
        if self.newest != slot {
            self.remove(slot);
            self.add(slot);
        }
    }

    pub fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }
}

/// Free slots of a map: the last one freed first, then those never used, ascending.
#[derive(Clone)]
pub struct Slots {
    freed: Vec<u32>,
    fresh: u32,
    limit: u32,
}

impl Slots {
    pub fn new(limit: u32) -> Self {
        Slots { freed: Vec::new(), fresh: 0, limit }
    }

    pub fn take(&mut self) -> Option<u32> {
        if let Some(slot) = self.freed.pop() {
            return Some(slot);
        }
        (self.fresh < self.limit).then(|| {
            self.fresh += 1;
            self.fresh - 1
        })
    }

    pub fn give(&mut self, slot: u32) {
        self.freed.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_one_not_touched() {
        let mut order = Order::new();
        (0..4).for_each(|slot| order.add(slot));
        order.touch(0);
        order.touch(3);
        order.remove(2);
        assert_eq!(order.oldest(), Some(1));
        order.remove(1);
        assert_eq!(order.oldest(), Some(0));
        order.remove(0);
        order.remove(3);
        assert_eq!(order.oldest(), None);
    }

    #[test]
    fn the_last_freed_slot_is_taken_first() {
        let mut slots = Slots::new(3);
        assert_eq!([slots.take(), slots.take()], [Some(0), Some(1)]);
        slots.give(0);
        assert_eq!([slots.take(), slots.take(), slots.take()], [Some(0), Some(2), None]);
    }
}
