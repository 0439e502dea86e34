//! The native engine of bpfchain's emulator: real uBPF with kernel-like contexts, maps and helpers.
//!
//! `space` is memory, `env` what helpers see, `rewrite` makes kernel code uBPF's, `program` holds the
//! machines, `engine` and `hooks` run them, `batch` many packets; `world` and `packets` are Python's side.

use pyo3::prelude::*;

mod batch;
mod context;
mod engine;
mod env;
mod fault;
mod frame;
mod helpers;
mod hooks;
mod insn;
mod legacy;
mod maps;
mod packets;
mod program;
mod rewrite;
mod space;
mod vm;
mod world;

/// Of the uBPF bindings that Cargo.toml pins.
const UBPF_VERSION: &str = "1.0.693";

#[pymodule]
fn _ubpf(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("VERSION", UBPF_VERSION)?;
    module.add_class::<packets::Packets>()?;
    module.add_class::<batch::Fault>()?;
    module.add_class::<batch::Batch>()?;
    module.add_class::<world::World>()?;
    module.add_function(wrap_pyfunction!(world::allow_jit, module)?)?;
    Ok(())
}
