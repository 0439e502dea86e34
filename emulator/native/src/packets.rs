//! `Packets`: the inputs of batches, made once and run by several worlds.

use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Longest frame (an skb of 64 KiB with its Ethernet header).
pub const FRAME_MAX: usize = 65_535 + 14;

/// Frames, contexts and times; `order` chooses among them.
pub struct Inputs {
    bytes: Vec<u8>,
    frames: Vec<(usize, usize)>,
    contexts: Vec<Vec<u8>>,
    times: Vec<u64>,
}

/// Inputs of a batch, made once and run by several worlds.
#[pyclass(frozen, module = "bpfchain.emulator._ubpf")]
pub struct Packets {
    inputs: Arc<Inputs>,
    order: Arc<[u32]>,
}

/// What a batch keeps of its inputs.
#[derive(Clone)]
pub struct Chosen {
    inputs: Arc<Inputs>,
    order: Arc<[u32]>,
}

impl Chosen {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Index in the `Packets` first made: what the packet's random numbers depend on.
    #[inline]
    pub fn origin(&self, index: usize) -> u32 {
        self.order[index]
    }

    #[inline]
    pub fn frame(&self, index: usize) -> &[u8] {
        let (start, end) = self.inputs.frames[self.order[index] as usize];
        &self.inputs.bytes[start..end]
    }

    #[inline]
    pub fn context(&self, index: usize) -> &[u8] {
        match self.inputs.contexts.as_slice() {
            [] => &[],
            [one] => one,
            each => &each[self.order[index] as usize],
        }
    }

    /// Whether the packet at `index` is one and the same input in both.
    #[inline]
    pub fn same(&self, other: &Chosen, index: usize) -> bool {
        Arc::ptr_eq(&self.inputs, &other.inputs) && self.order[index] == other.order[index]
    }

    pub fn contexts(&self) -> &[Vec<u8>] {
        &self.inputs.contexts
    }

    #[inline]
    pub fn time(&self, index: usize) -> u64 {
        self.inputs.times.get(self.order[index] as usize).copied().unwrap_or(0)
    }
}

#[derive(FromPyObject)]
enum Contexts<'py> {
    One(Bound<'py, PyBytes>),
    Each(Vec<Bound<'py, PyBytes>>),
}

#[pymethods]
impl Packets {
    #[new]
    #[pyo3(signature = (data, contexts=None, times=None))]
    fn new(
        data: Vec<Bound<'_, PyBytes>>,
        contexts: Option<Contexts<'_>>,
        times: Option<Vec<u64>>,
    ) -> PyResult<Self> {
        let count = data.len();
        if u32::try_from(count).is_err() {
            return Err(PyValueError::new_err("more than 2^32 packets"));
        }
        let mut bytes = Vec::with_capacity(data.iter().map(|frame| frame.as_bytes().len()).sum());
        let mut frames = Vec::with_capacity(count);
        for (index, frame) in data.iter().enumerate() {
            let frame = frame.as_bytes();
            if frame.len() > FRAME_MAX {
                let message =
                    format!("packet {index} has {} bytes, more than {FRAME_MAX}", frame.len());
                return Err(PyValueError::new_err(message));
            }
            frames.push((bytes.len(), bytes.len() + frame.len()));
            bytes.extend_from_slice(frame);
        }
        let contexts = match contexts {
            None => Vec::new(),
            Some(Contexts::One(one)) if one.as_bytes().is_empty() => Vec::new(),
            Some(Contexts::One(one)) => vec![one.as_bytes().to_vec()],
            Some(Contexts::Each(each)) => {
                if each.len() != count {
                    let message = format!("{} contexts for {count} packets", each.len());
                    return Err(PyValueError::new_err(message));
                }
                each.iter().map(|one| one.as_bytes().to_vec()).collect()
            }
        };
        let times = times.unwrap_or_default();
        if !times.is_empty() && times.len() != count {
            return Err(PyValueError::new_err(format!(
                "{} times for {count} packets",
                times.len()
            )));
        }
        Ok(Packets {
            inputs: Arc::new(Inputs { bytes, frames, contexts, times }),
            order: (0..count as u32).collect(),
        })
    }

    fn __len__(&self) -> usize {
        self.order.len()
    }

    fn select(&self, indexes: Vec<usize>) -> PyResult<Self> {
        let order: Option<Arc<[u32]>> =
            indexes.iter().map(|index| self.order.get(*index).copied()).collect();
        let order = order.ok_or_else(|| PyIndexError::new_err("no such packet"))?;
        Ok(Packets { inputs: Arc::clone(&self.inputs), order })
    }
}

impl Packets {
    pub fn chosen(&self) -> Chosen {
        Chosen { inputs: Arc::clone(&self.inputs), order: Arc::clone(&self.order) }
    }
}
