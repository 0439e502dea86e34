//! Loads the programs of one object with aya.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

use aya::programs::Program;
use aya::{Btf, Ebpf, EbpfLoader};
use serde::Serialize;

use crate::info::section_names;
use crate::{print_json, read, Options, LOADER};

/// How much of an error is kept: its head and the last lines of the verifier's log.
const LONGEST_TEXT: usize = 8000;

pub const NO_PROGRAM: &str = "no program was loaded: the object holds none that the loader sees";

#[derive(Serialize)]
struct LoadResult<'a> {
    loader: &'a str,
    object: &'a str,
    programs: Vec<String>,
    error: Option<String>,
}

/// Loads one object alone and prints what came of it.
pub fn print(path: &str, options: &Options, pins: &Path) -> Result<(), String> {
    let data = read(path)?;
    let (programs, error) = match open(&data, options, pins) {
        Err(text) => (Vec::new(), Some(text)),
        Ok(mut ebpf) => {
            let (loaded, errors) = load_programs(&mut ebpf, &data, None);
            (loaded, (!errors.is_empty()).then(|| errors.join("; ")))
        }
    };
    print_json(&LoadResult {
        loader: LOADER,
        object: path,
        programs,
        error,
    })
}

/// Refuses pins that do not exist: aya would make the map and pin it there.
pub fn check_pins(options: &Options) -> Result<(), String> {
    for (name, path) in &options.map_pins {
        if !path.exists() {
            return Err(format!("--map {name}={}: no such pin", path.display()));
        }
    }
    Ok(())
}

/// Parses an object, makes its maps, relocates; no program is loaded yet. Maps that the object
/// pins by name go to `pins`.
pub fn open(data: &[u8], options: &Options, pins: &Path) -> Result<Ebpf, String> {
    caught(|| {
        let mut loader = EbpfLoader::new();
        loader
            .default_map_pin_directory(pins)
            .allow_unsupported_maps();
        for (name, path) in &options.map_pins {
            loader.map_pin_path(name, path.as_path());
        }
        if let (Some(name), Some(number)) = (&options.slot_map, options.max_entries) {
            loader.map_max_entries(name, number);
        }
        loader.load(data).map_err(|e| with_causes(&e))
    })
}

/// Loads every program, or those named in `keep`. Returns the names loaded and what went wrong,
/// both in the order of the names.
pub fn load_programs(
    ebpf: &mut Ebpf,
    data: &[u8],
    keep: Option<&[&str]>,
) -> (Vec<String>, Vec<String>) {
    let sections = section_names(data);
    let mut programs: Vec<_> = ebpf
        .programs_mut()
        .filter(|(name, _)| keep.is_none_or(|keep| keep.contains(name)))
        .map(|(name, program)| (name.to_owned(), program))
        .collect();
    programs.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut loaded, mut errors) = (Vec::new(), Vec::new());
    if programs.is_empty() {
        errors.push(NO_PROGRAM.into());
    }
    for (name, program) in programs {
        let section = sections.get(&name).map_or("", String::as_str);
        match caught(|| load_program(program, section)) {
            Ok(()) => loaded.push(name),
            Err(text) => errors.push(format!("program {name}: {}", shortened(&text))),
        }
    }
    (loaded, errors)
}

fn load_program(program: &mut Program, section: &str) -> Result<(), String> {
    // aya wants the hook's name for what attaches by BTF, and it does not keep the section's name.
    let hook = section.split_once('/').map_or("", |(_, rest)| rest);
    let btf = || Btf::from_sys_fs().map_err(|e| with_causes(&e));
    let done = match program {
        Program::BtfTracePoint(p) => p.load(hook, &btf()?),
        Program::FEntry(p) => p.load(hook, &btf()?),
        Program::FExit(p) => p.load(hook, &btf()?),
        Program::Lsm(p) => p.load(hook, &btf()?),
        Program::LsmCgroup(p) => p.load(hook, &btf()?),
        Program::Iter(p) => p.load(hook, &btf()?),
        Program::Extension(_) => return Err("ayatest has no target program for freplace".into()),
        Program::KProbe(p) => p.load(),
        Program::UProbe(p) => p.load(),
        Program::TracePoint(p) => p.load(),
        Program::SocketFilter(p) => p.load(),
        Program::Xdp(p) => p.load(),
        Program::SkMsg(p) => p.load(),
        Program::SkSkb(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        Program::CgroupSkb(p) => p.load(),
        Program::CgroupSysctl(p) => p.load(),
        Program::CgroupSockopt(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::CgroupDevice(p) => p.load(),
        Program::LircMode2(p) => p.load(),
        Program::PerfEvent(p) => p.load(),
        Program::RawTracePoint(p) => p.load(),
        Program::FlowDissector(p) => p.load(),
        Program::SkLookup(p) => p.load(),
        Program::SkReuseport(p) => p.load(),
        Program::ReusePortSocketFilter(p) => p.load(),
    };
    done.map_err(|e| with_causes(&e))
}

/// An error with the errors behind it, which aya's own text leaves out.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}

/// Runs a piece of aya and turns a panic (it has `todo!()` on some inputs) into an error.
fn caught<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no text");
        Err(format!("panic in aya: {text}"))
    })
}

fn shortened(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= LONGEST_TEXT {
        return text.to_owned();
    }
    let half = LONGEST_TEXT / 2;
    let head: String = characters[..half].iter().collect();
    let tail: String = characters[characters.len() - half..].iter().collect();
    format!("{head}\n[...]\n{tail}")
}
