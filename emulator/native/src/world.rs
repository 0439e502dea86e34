//! `World`: one side of a comparison, its maps and programs.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyIndexError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::batch::{self, Batch};
use crate::context;
use crate::engine::Settings;
use crate::env::{Context, Env, Packet};
use crate::fault::Fault;
use crate::helpers::{Answer, Answers, PacketState};
use crate::maps::{AddError, MapSpec, Maps, Saved, Slot};
use crate::packets::{Chosen, Packets};
use crate::program::Program;
use crate::rewrite::Surroundings;
use crate::space::{self, Active, Space};

static JIT_ALLOWED: AtomicBool = AtomicBool::new(false);

/// This process is a child that may crash: let worlds run the JIT.
#[pyfunction]
pub fn allow_jit() {
    JIT_ALLOWED.store(true, Ordering::Relaxed);
}

/// One side of a comparison: maps, programs, memory.
#[pyclass(module = "bpfchain.emulator._ubpf")]
pub struct World {
    /// Boxed: runs keep pointers to it.
    env: Box<Env>,
    programs: Vec<Program>,
    limit: u64,
    saved: Vec<Saved>,
}

// SAFETY: the raw pointers inside (uBPF machines, emulated memory) belong to this world alone and are
// used under `space::Active` by one thread at a time; pyo3's borrow rules keep `&mut self` exclusive.
unsafe impl Send for World {}
unsafe impl Sync for World {}

fn os_error(errno: i32) -> PyErr {
    let message = std::io::Error::from_raw_os_error(errno).to_string();
    let message = message.split(" (os error").next().unwrap_or_default().to_string();
    PyOSError::new_err((errno, message))
}

fn runtime(message: String) -> PyErr {
    PyRuntimeError::new_err(message)
}

fn parse_context(name: &str) -> PyResult<Context> {
    match name {
        "xdp" => Ok(Context::Xdp),
        "skb" => Ok(Context::Skb),
        "skb-l3" => Ok(Context::SkbL3),
        "plain" => Ok(Context::Plain),
        _ => Err(PyValueError::new_err(format!("no context '{name}': xdp, skb, skb-l3 or plain"))),
    }
}

impl World {
    fn enter(&self) -> PyResult<Active> {
        self.env.space.activate().map_err(runtime)
    }

    fn check_map(&self, map: u32) -> PyResult<()> {
        if map < self.env.maps.count() {
            return Ok(());
        }
        Err(PyIndexError::new_err(format!("map {map} of {}", self.env.maps.count())))
    }

    fn check_program(&self, program: u32) -> PyResult<()> {
        if (program as usize) < self.programs.len() {
            return Ok(());
        }
        Err(PyIndexError::new_err(format!("program {program} of {}", self.programs.len())))
    }

    fn check_contexts(&self, context: Context, inputs: &Chosen) -> PyResult<()> {
        for given in inputs.contexts() {
            let fits = match context::length(context) {
                Some(len) => given.len() == len,
                None => given.len() <= space::CONTEXT_MAX,
            };
            if !fits {
                let message = match context::length(context) {
                    Some(len) => format!("a context of {} bytes where it has {len}", given.len()),
                    None => format!(
                        "a context of {} bytes, more than {}",
                        given.len(),
                        space::CONTEXT_MAX
                    ),
                };
                return Err(PyValueError::new_err(message));
            }
        }
        Ok(())
    }
}

fn no_call(_: &mut Env, _: u64, _: [u64; 5], _: u64) -> Result<u64, Box<Fault>> {
    Err(Fault::unmodelled("a callback outside a run"))
}

#[pymethods]
impl World {
    #[new]
    #[pyo3(signature = (*, seed=0, instruction_limit=1_000_000, cpus=1))]
    fn new(seed: u64, instruction_limit: u32, cpus: u32) -> PyResult<Self> {
        if cpus == 0 || cpus > 1024 {
            return Err(PyValueError::new_err(format!("{cpus} CPUs: 1 to 1024")));
        }
        if instruction_limit == 0 {
            return Err(PyValueError::new_err("an instruction limit of 0"));
        }
        let env = Env {
            space: Space::new().map_err(runtime)?,
            maps: Maps::new(cpus),
            answers: Answers::default(),
            memory: Vec::new(),
            cpus,
            seed,
            context: Context::Plain,
            context_len: 0,
            packet: Packet::default(),
            random_state: 0,
            now: 0,
            events: crate::env::Events::default(),
            frame: 0,
            stack_top: 0,
            stack_floor: 0,
            scratch: PacketState::default(),
            call: no_call,
        };
        Ok(World {
            env: Box::new(env),
            programs: Vec::new(),
            limit: u64::from(instruction_limit),
            saved: Vec::new(),
        })
    }

    #[pyo3(signature = (label, r#type, key_size, value_size, max_entries, flags=0, inner=None, readonly=false))]
    #[allow(clippy::too_many_arguments)]
    fn add_map(
        &mut self,
        label: String,
        r#type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
        inner: Option<u32>,
        readonly: bool,
    ) -> PyResult<u32> {
        let _active = self.enter()?;
        let spec = MapSpec {
            label,
            kind: r#type,
            key_size,
            value_size,
            max_entries,
            flags,
            inner,
            readonly,
        };
        let env = &mut *self.env;
        env.maps.add(&mut env.space, spec).map_err(|error| match error {
            AddError::Invalid(message) => PyValueError::new_err(message),
            AddError::Memory(message) => PyMemoryError::new_err(message),
        })
    }

    #[pyo3(signature = (map, key, value, flags=0))]
    fn map_update(&mut self, map: u32, key: &[u8], value: &[u8], flags: u64) -> PyResult<()> {
        self.check_map(map)?;
        let _active = self.enter()?;
        let env = &mut *self.env;
        env.maps.update(&mut env.space, map, key, value, flags).map_err(os_error)
    }

    fn map_lookup<'py>(
        &mut self,
        py: Python<'py>,
        map: u32,
        key: &[u8],
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        self.check_map(map)?;
        let _active = self.enter()?;
        let env = &mut *self.env;
        let value = env.maps.lookup(&mut env.space, map, key).map_err(os_error)?;
        Ok(value.map(|value| PyBytes::new(py, &value)))
    }

    fn map_delete(&mut self, map: u32, key: &[u8]) -> PyResult<()> {
        self.check_map(map)?;
        let _active = self.enter()?;
        let env = &mut *self.env;
        env.maps.delete(&mut env.space, map, key).map_err(os_error)
    }

    fn map_items<'py>(
        &self,
        py: Python<'py>,
        map: u32,
    ) -> PyResult<Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>> {
        self.check_map(map)?;
        let _active = self.enter()?;
        let items = self.env.maps.items(&self.env.space, map).map_err(os_error)?;
        Ok(items
            .iter()
            .map(|(key, value)| (PyBytes::new(py, key), PyBytes::new(py, value)))
            .collect())
    }

    fn map_differs(&self, map: u32, other: &World, other_map: u32) -> PyResult<bool> {
        self.check_map(map)?;
        other.check_map(other_map)?;
        let _active = self.enter()?;
        let (mine, others) = (&self.env, &other.env);
        Ok(mine.maps.differs(&mine.space, map, &others.maps, &others.space, other_map))
    }

    fn set_program(&mut self, map: u32, key: u32, program: u32) -> PyResult<()> {
        self.check_map(map)?;
        self.check_program(program)?;
        self.env.maps.set_slot(map, key, Slot::Program(program)).map_err(os_error)
    }

    fn set_marker(&mut self, map: u32, key: u32, tag: i32) -> PyResult<()> {
        self.check_map(map)?;
        if tag < 0 {
            return Err(PyValueError::new_err(format!("tag {tag}: tags are not negative")));
        }
        self.env.maps.set_slot(map, key, Slot::Marker(tag)).map_err(os_error)
    }

    fn set_inner(&mut self, map: u32, key: &[u8], inner: u32) -> PyResult<()> {
        self.check_map(map)?;
        self.check_map(inner)?;
        self.env.maps.set_inner(map, key, inner).map_err(os_error)
    }

    fn add_program(
        &mut self,
        label: String,
        context: &str,
        code: &[u8],
        maps: Vec<u32>,
        functions: Vec<u32>,
    ) -> PyResult<u32> {
        let context = parse_context(context)?;
        for map in &maps {
            self.check_map(*map)?;
        }
        let index =
            u32::try_from(self.programs.len()).map_err(|_| runtime("too many programs".into()))?;
        let env = &self.env;
        let around = Surroundings {
            maps: &maps,
            value_address: &|map, offset| env.maps.value_address(map, offset),
            socket_buffer: matches!(context, Context::Skb | Context::SkbL3),
        };
        let loaded = Program::load(index, context, code, &functions, &around);
        let program =
            loaded.map_err(|why| PyValueError::new_err(format!("program {label}: {why}")))?;
        self.programs.push(program);
        Ok(index)
    }

    fn answers(&mut self, values: &Bound<'_, PyDict>) -> PyResult<()> {
        let mut answers = Vec::new();
        for (name, value) in values {
            let name: String = name.extract()?;
            let answer = if let Ok(number) = value.extract::<u64>() {
                Answer::Int(number)
            } else if let Ok(number) = value.extract::<i64>() {
                Answer::Int(number as u64)
            } else if let Ok(bytes) = value.downcast::<PyBytes>() {
                Answer::Bytes(bytes.as_bytes().to_vec())
            } else {
                let each: Vec<Bound<'_, PyBytes>> = value.extract()?;
                Answer::Sequence(each.iter().map(|one| one.as_bytes().to_vec()).collect())
            };
            answers.push((name, answer));
        }
        self.env.answers.set(answers).map_err(PyValueError::new_err)
    }

    fn add_memory(&mut self, address: u64, data: &[u8]) {
        self.env.memory.push((address, data.to_vec()));
        self.env.memory.sort_by_key(|(address, _)| *address);
    }

    #[pyo3(signature = (program, packets, *, fill=0, jit=false, coverage=true))]
    fn run_batch(
        &mut self,
        py: Python<'_>,
        program: u32,
        packets: &Packets,
        fill: u8,
        jit: bool,
        coverage: bool,
    ) -> PyResult<Batch> {
        self.check_program(program)?;
        if jit && !JIT_ALLOWED.load(Ordering::Relaxed) {
            let message = "the JIT checks nothing and may crash: run it in a child process that calls allow_jit()";
            return Err(runtime(message.into()));
        }
        let inputs = packets.chosen();
        self.check_contexts(self.programs[program as usize].context, &inputs)?;
        let settings = Settings { limit: self.limit, coverage: coverage && !jit, jit, fill };
        // What the closure takes along is Send by the promise made for World.
        let world: &mut World = self;
        py.detach(move || {
            let active = world.env.space.activate()?;
            let batch =
                batch::run_batch(&mut world.env, &mut world.programs, program, inputs, &settings);
            drop(active);
            Ok(batch)
        })
        .map_err(runtime)
    }

    fn coverage<'py>(
        &self,
        py: Python<'py>,
        program: u32,
    ) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        self.check_program(program)?;
        let (first, second) = self.programs[program as usize].coverage();
        Ok((PyBytes::new(py, &first), PyBytes::new(py, &second)))
    }

    fn save(&mut self) -> PyResult<usize> {
        let _active = self.enter()?;
        let saved = self.env.maps.save(&self.env.space);
        self.saved.push(saved);
        Ok(self.saved.len() - 1)
    }

    fn restore(&mut self, handle: usize) -> PyResult<()> {
        let _active = self.enter()?;
        let Some(saved) = self.saved.get(handle) else {
            return Err(PyIndexError::new_err(format!("no saved state {handle}")));
        };
        let env = &mut *self.env;
        env.maps.restore(&mut env.space, saved);
        Ok(())
    }
}
