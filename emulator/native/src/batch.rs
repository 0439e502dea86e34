//! `Batch`: runs of one program on many packets, and their results.

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::context;
use crate::engine::{self, End, Fallen, Settings};
use crate::env::{Context, Env, Event, Events};
use crate::frame;
use crate::helpers;
use crate::packets::Chosen;
use crate::program::Program;
use crate::space;

/// Why a run ended without a verdict.
#[pyclass(frozen, get_all, module = "bpfchain.emulator._ubpf")]
#[derive(Clone, PartialEq, Eq)]
pub struct Fault {
    packet: usize,
    program: u32,
    kind: String,
    pc: i32,
    address: u64,
    size: u32,
    what: String,
}

#[pymethods]
impl Fault {
    fn __repr__(&self) -> String {
        format!(
            "Fault(packet={}, program={}, kind={:?}, pc={}, address={:#x}, size={}, what={:?})",
            self.packet, self.program, self.kind, self.pc, self.address, self.size, self.what
        )
    }
}

/// What of a packet's output is kept. Bytes lie in `Outputs::bytes` from `start`: frame, metadata,
/// context.
#[derive(Clone, Copy, Default)]
struct Record {
    start: usize,
    /// `None`: the frame came out as `frame::unchanged`.
    frame: Option<u32>,
    metadata: u32,
    /// Whether the context's bytes are kept; else it came out as it was made.
    context: bool,
    /// The first of its events, and how many there are.
    first_event: usize,
    events: u32,
}

/// Results of a batch.
#[pyclass(frozen, module = "bpfchain.emulator._ubpf")]
pub struct Batch {
    inputs: Chosen,
    context: Context,
    verdicts: Vec<u64>,
    ended: Vec<i32>,
    instructions: Vec<u32>,
    tail_calls: Vec<u32>,
    faults: Vec<Fault>,
    records: Vec<Record>,
    bytes: Vec<u8>,
    events: Events,
    labels: Vec<String>,
}

/// `Batch.ended` of a packet without a marker, and of one that faulted.
const NO_MARKER: i32 = -1;
const FAULTED: i32 = -2;

/// Run `program` on all packets. The world must be active.
pub fn run_batch(
    env: &mut Env,
    programs: &mut Vec<Program>,
    program: u32,
    inputs: Chosen,
    settings: &Settings,
) -> Batch {
    let count = inputs.len();
    env.context = programs[program as usize].context;
    env.events = Events::default();
    env.answers.restart();
    engine::begin(env, programs, settings);
    let mut batch = Batch {
        context: env.context,
        verdicts: Vec::with_capacity(count),
        ended: Vec::with_capacity(count),
        instructions: Vec::with_capacity(count),
        tail_calls: Vec::with_capacity(count),
        faults: Vec::new(),
        records: Vec::with_capacity(count),
        bytes: Vec::new(),
        events: Events::default(),
        labels: (0..env.maps.count()).map(|map| env.maps.label(map).to_string()).collect(),
        inputs,
    };
    let mut initial = Vec::new();
    for index in 0..count {
        let data = batch.inputs.frame(index);
        frame::set_up(env, data, batch.inputs.context(index), &mut initial);
        env.scratch.reset();
        env.now = batch.inputs.time(index);
        let origin = u64::from(batch.inputs.origin(index)) + 1;
        env.random_state = env.seed ^ origin.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        let first_event = env.events.entries.len();
        let told = engine::run(program);
        let finished = match told.end {
            End::Fault(_) => Ok(()),
            End::Verdict(_) | End::Marker(_) => helpers::finish(env),
        };
        let (verdict, ended) = match (told.end, finished) {
            (End::Fault(fallen), _) => {
                batch.faults.push(fault(index, fallen));
                (0, FAULTED)
            }
            (_, Err(fault)) => {
                batch.faults.push(self::fault(index, Fallen { fault, program, pc: -1 }));
                (0, FAULTED)
            }
            (End::Marker(tag), Ok(())) => (0, tag),
            (End::Verdict(verdict), Ok(())) => (verdict, NO_MARKER),
        };
        batch.verdicts.push(verdict);
        batch.ended.push(ended);
        batch.instructions.push(told.instructions);
        batch.tail_calls.push(told.tail_calls);
        // SAFETY: the world is active, and helpers keep the packet inside the frame buffer.
        let record = unsafe { keep(env, data, &initial, first_event, &mut batch.bytes) };
        batch.records.push(record);
    }
    engine::end();
    batch.events = std::mem::take(&mut env.events);
    batch
}

fn fault(packet: usize, fallen: Fallen) -> Fault {
    let Fallen { fault, program, pc } = fallen;
    Fault {
        packet,
        program,
        kind: fault.kind.name().to_string(),
        pc,
        address: fault.address,
        size: fault.size,
        what: fault.what,
    }
}

/// Whether bytes are equal. Empty slices are told apart first: their pointers point nowhere, and a
/// memcmp with masked loads takes a hundred nanoseconds to find that nothing is to be read there.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && (a.is_empty() || a == b)
}

/// Keep what of a packet's output differs from its input.
#[inline]
unsafe fn keep(
    env: &Env,
    data: &[u8],
    initial: &[u8],
    first_event: usize,
    out: &mut Vec<u8>,
) -> Record {
    let packet = &env.packet;
    let after = frame::bytes(packet.data, packet.data_end);
    let rest = &data[data.len() - packet.rest as usize..];
    let events = (env.events.entries.len() - first_event) as u32;
    let mut record = Record { start: out.len(), first_event, events, ..Record::default() };
    let before = frame::unchanged(env.context, data);
    if !same(after, &before[..before.len() - rest.len()]) {
        out.extend_from_slice(after);
        out.extend_from_slice(rest);
        record.frame = Some((after.len() + rest.len()) as u32);
    }
    if packet.data_meta != packet.data {
        let metadata = frame::bytes(packet.data_meta, packet.data);
        out.extend_from_slice(metadata);
        record.metadata = metadata.len() as u32;
    }
    let context = std::slice::from_raw_parts(space::CONTEXT as *const u8, initial.len());
    if !same(context, initial) {
        out.extend_from_slice(context);
        record.context = true;
    }
    record
}

impl Batch {
    fn check(&self, index: usize) -> PyResult<()> {
        if index < self.records.len() {
            return Ok(());
        }
        Err(PyIndexError::new_err(format!("packet {index} of {}", self.records.len())))
    }

    fn frame_of(&self, index: usize) -> &[u8] {
        let record = &self.records[index];
        match record.frame {
            Some(len) => &self.bytes[record.start..record.start + len as usize],
            None => frame::unchanged(self.context, self.inputs.frame(index)),
        }
    }

    fn metadata_of(&self, index: usize) -> &[u8] {
        let record = &self.records[index];
        let start = record.start + record.frame.unwrap_or(0) as usize;
        &self.bytes[start..start + record.metadata as usize]
    }

    /// The context that was kept; `None` where it came out as it was made.
    fn kept_context(&self, index: usize) -> Option<&[u8]> {
        let record = &self.records[index];
        let start = record.start + (record.frame.unwrap_or(0) + record.metadata) as usize;
        let len = context::length(self.context).unwrap_or(self.inputs.context(index).len());
        record.context.then(|| &self.bytes[start..start + len])
    }

    fn context_of(&self, index: usize) -> Vec<u8> {
        if let Some(kept) = self.kept_context(index) {
            return kept.to_vec();
        }
        let (frame, given) = (self.inputs.frame(index), self.inputs.context(index));
        let len = context::length(self.context).unwrap_or(given.len());
        let mut out = vec![0; len];
        let packet = frame::geometry(self.context, frame.len());
        context::build(self.context, given, &packet, frame, &mut out);
        out
    }

    fn label(&self, event: &Event) -> &str {
        self.labels.get(event.map as usize).map_or("", String::as_str)
    }

    fn same_events(&self, mine: &[Event], other: &Batch, others: &[Event]) -> bool {
        mine.len() == others.len()
            && mine.iter().zip(others).all(|(a, b)| {
                a.kind == b.kind
                    && self.label(a) == other.label(b)
                    && same(&self.events.bytes[a.start..a.end], &other.events.bytes[b.start..b.end])
            })
    }

    fn fault_of(&self, index: usize) -> Option<&Fault> {
        self.faults.binary_search_by_key(&index, |fault| fault.packet).ok().map(|i| &self.faults[i])
    }

    fn same_fault(&self, index: usize, other: &Batch) -> bool {
        match (self.fault_of(index), other.fault_of(index)) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                // Programs and pcs of two worlds are not comparable.
                (&a.kind, a.address, a.size, &a.what) == (&b.kind, b.address, b.size, &b.what)
            }
            _ => false,
        }
    }

    fn same_input(&self, index: usize, other: &Batch) -> bool {
        self.context == other.context
            && (self.inputs.same(&other.inputs, index)
                || (same(self.inputs.frame(index), other.inputs.frame(index))
                    && same(self.inputs.context(index), other.inputs.context(index))))
    }

    fn same_frame(&self, index: usize, other: &Batch) -> bool {
        let both_unchanged =
            self.records[index].frame.is_none() && other.records[index].frame.is_none();
        (both_unchanged && self.same_input(index, other))
            || same(self.frame_of(index), other.frame_of(index))
    }

    fn same_context(&self, index: usize, other: &Batch) -> bool {
        match (self.kept_context(index), other.kept_context(index)) {
            (Some(a), Some(b)) => a == b,
            (None, None) if self.same_input(index, other) => true,
            _ => self.context_of(index) == other.context_of(index),
        }
    }
}

/// Dimensions of `Batch.differences`, in order.
const DIMENSIONS: [&str; 7] =
    ["verdict", "ended", "fault", "packet", "metadata", "context", "events"];

fn words<T: Copy, const N: usize>(values: &[T], bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| bytes(*value)).collect()
}

#[pymethods]
impl Batch {
    #[getter]
    fn verdicts<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &words(&self.verdicts, u64::to_le_bytes))
    }

    #[getter]
    fn ended<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &words(&self.ended, i32::to_le_bytes))
    }

    #[getter]
    fn instructions<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &words(&self.instructions, u32::to_le_bytes))
    }

    #[getter]
    fn tail_calls<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &words(&self.tail_calls, u32::to_le_bytes))
    }

    #[getter]
    fn faults(&self) -> Vec<Fault> {
        self.faults.clone()
    }

    fn __len__(&self) -> usize {
        self.records.len()
    }

    fn packet<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.check(index)?;
        Ok(PyBytes::new(py, self.frame_of(index)))
    }

    fn metadata<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.check(index)?;
        Ok(PyBytes::new(py, self.metadata_of(index)))
    }

    fn context<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.check(index)?;
        Ok(PyBytes::new(py, &self.context_of(index)))
    }

    fn events<'py>(
        &self,
        py: Python<'py>,
        index: usize,
    ) -> PyResult<Vec<(&'static str, String, Bound<'py, PyBytes>)>> {
        self.check(index)?;
        let Record { first_event, events, .. } = self.records[index];
        let entries = &self.events.entries[first_event..first_event + events as usize];
        Ok(entries
            .iter()
            .map(|event| {
                let payload = PyBytes::new(py, &self.events.bytes[event.start..event.end]);
                (event.kind, self.label(event).to_string(), payload)
            })
            .collect())
    }

    #[pyo3(signature = (other, limit=100, ignore=Vec::new()))]
    fn differences(
        &self,
        other: &Batch,
        limit: usize,
        ignore: Vec<String>,
    ) -> PyResult<Vec<(usize, &'static str)>> {
        if self.records.len() != other.records.len() {
            let message =
                format!("batches of {} and {} packets", self.records.len(), other.records.len());
            return Err(PyValueError::new_err(message));
        }
        if let Some(unknown) = ignore.iter().find(|name| !DIMENSIONS.contains(&name.as_str())) {
            return Err(PyValueError::new_err(format!("no dimension '{unknown}'")));
        }
        let look = |dimension: usize| !ignore.iter().any(|name| name == DIMENSIONS[dimension]);
        let look: [bool; 7] = std::array::from_fn(look);
        let mut found = Vec::new();
        let (mut mine, mut others) = (0, 0);
        for index in 0..self.records.len() {
            let mine_end = mine + self.records[index].events as usize;
            let others_end = others + other.records[index].events as usize;
            let (a, b) =
                (&self.events.entries[mine..mine_end], &other.events.entries[others..others_end]);
            (mine, others) = (mine_end, others_end);
            let judged = self.ended[index] == NO_MARKER && other.ended[index] == NO_MARKER;
            let same = |dimension: usize| match dimension {
                0 => !judged || self.verdicts[index] == other.verdicts[index],
                1 => self.ended[index] == other.ended[index],
                2 => self.same_fault(index, other),
                3 => self.same_frame(index, other),
                4 => same(self.metadata_of(index), other.metadata_of(index)),
                5 => self.same_context(index, other),
                _ => self.same_events(a, other, b),
            };
            if let Some(first) = (0..7).find(|dimension| look[*dimension] && !same(*dimension)) {
                if found.len() == limit {
                    break;
                }
                found.push((index, DIMENSIONS[first]));
            }
        }
        Ok(found)
    }
}
