//! Ring buffers: positions and records (kernel/bpf/ringbuf.c). The reader is modelled as one that
//! keeps up: before a packet's first use of a ring, all that earlier packets committed is consumed.
//!
//! A reserved record is zero here; the kernel leaves in it what was in the buffer.

/// Flags and questions.
pub const BPF_RB_NO_WAKEUP: u64 = 1;
pub const BPF_RB_FORCE_WAKEUP: u64 = 2;
const HEADER: u64 = 8;
const MAX_RECORD: u64 = (u32::MAX / 4) as u64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reserved,
    Committed,
    Discarded,
}

#[derive(Clone, Copy)]
struct Record {
    address: u64,
    len: u64,
    end: u64,
    state: State,
}

#[derive(Clone)]
pub struct Ring {
    /// Address of the buffer, which is mapped twice as long, as a record may lie over its end.
    base: u64,
    size: u64,
    producer: u64,
    consumer: u64,
    /// From the oldest one that is still reserved.
    records: Vec<Record>,
    pub region: usize,
}

impl Ring {
    pub fn new(base: u64, size: u64, region: usize) -> Self {
        Ring { base, size, producer: 0, consumer: 0, records: Vec::new(), region }
    }

    /// The address of a new record, or None where the kernel gives a null pointer.
    pub fn reserve(&mut self, len: u64) -> Option<u64> {
        if len > MAX_RECORD {
            return None;
        }
        let whole = (len + HEADER).next_multiple_of(8);
        let end = self.producer + whole;
        // One byte less than the ring holds: a full one must not look empty.
        if whole > self.size || end - self.consumer > self.size - 1 {
            return None;
        }
        let address = self.base + (self.producer & (self.size - 1)) + HEADER;
        self.records.push(Record { address, len, end, state: State::Reserved });
        self.producer = end;
        Some(address)
    }

    /// Submit or discard the record; returns the records (address, length) that a reader sees by
    /// it, in their order. None: there is no reserved record at this address.
    pub fn commit(&mut self, address: u64, discard: bool) -> Option<Vec<(u64, u64)>> {
        let found =
            self.records.iter_mut().find(|r| r.address == address && r.state == State::Reserved)?;
        found.state = if discard { State::Discarded } else { State::Committed };
        let done = self.records.iter().take_while(|r| r.state != State::Reserved).count();
        let seen = self.records.drain(..done).filter(|r| r.state == State::Committed);
        Some(seen.map(|r| (r.address, r.len)).collect())
    }

    /// What lies from the first to the last reserved record, to which a program has access.
    pub fn reserved(&self) -> Option<(u64, u64)> {
        let open = || self.records.iter().filter(|r| r.state == State::Reserved);
        let start = open().map(|r| r.address).min()?;
        let end = open().map(|r| r.address + r.len).max()?;
        Some((start, end))
    }

    /// The reader reads all that it can.
    pub fn consume(&mut self) {
        self.consumer = match self.records.first() {
            Some(record) => record.end - (record.len + HEADER).next_multiple_of(8),
            None => self.producer,
        };
    }

    /// `bpf_ringbuf_query`: available data, ring size, the reader's and the writer's position.
    pub fn query(&self, question: u64) -> u64 {
        match question {
            0 => self.producer - self.consumer,
            1 => self.size,
            2 => self.consumer,
            3 => self.producer,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_seen_in_the_order_of_reservation() {
        let mut ring = Ring::new(0x1000, 4096, 0);
        let (a, b) = (ring.reserve(8).unwrap(), ring.reserve(4).unwrap());
        assert_eq!((a, b), (0x1008, 0x1018));
        assert_eq!(ring.commit(b, false), Some(vec![]));
        assert_eq!(ring.commit(a, false), Some(vec![(a, 8), (b, 4)]));
        assert_eq!(ring.commit(a, false), None);
        assert_eq!(ring.query(0), 32);
    }

    #[test]
    fn a_full_ring_reserves_nothing() {
        let mut ring = Ring::new(0, 4096, 0);
        assert_eq!(ring.reserve(4096 - 8), None);
        let all = ring.reserve(4096 - 16).unwrap();
        assert_eq!(ring.reserve(0), None);
        ring.commit(all, true).unwrap();
        ring.consume();
        // Over the end of the buffer.
        assert_eq!(ring.reserve(100), Some(4096 - 8 + 8));
        ring.consume();
        assert_eq!(ring.query(2), 4088);
    }
}
