//! Loads the links of a chain, fills the slots and runs packets through the head.

use std::collections::BTreeSet;
use std::path::Path;

use aya::maps::{MapData, ProgramArray};
use aya::programs::{Program, ProgramFd, TestRun, TestRunOptions};
use aya::Ebpf;
use serde::{Deserialize, Serialize};

use crate::load::{load_programs, open, with_causes};
use crate::{info, print_json, read, Options, LOADER};

#[derive(Deserialize)]
struct Entry {
    program: String,
    slot: u32,
}

#[derive(Deserialize)]
struct Link {
    object: String,
    #[serde(default)]
    entries: Vec<Entry>,
    #[serde(default)]
    only: bool,
    #[serde(skip)]
    data: Vec<u8>,
}

/// SPEC.json. Objects are relative to its folder, packets are hexadecimal.
#[derive(Deserialize)]
struct Spec {
    slots_map: String,
    max_entries: u32,
    links: Vec<Link>,
    #[serde(default)]
    packets: Vec<String>,
}

/// What chain prints. Verdicts are signed, as the hooks' codes are.
#[derive(Serialize)]
struct ChainResult {
    loader: &'static str,
    programs_loaded: usize,
    verdicts: Vec<i32>,
    error: Option<String>,
}

/// Runs the chain of a SPEC.json and prints the result.
pub fn print(path: &str, mut options: Options, pins: &Path) -> Result<(), String> {
    let mut spec: Spec =
        serde_json::from_slice(&read(path)?).map_err(|e| format!("{path}: {e}"))?;
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    let mut seen = BTreeSet::new();
    for (i, link) in spec.links.iter_mut().enumerate() {
        link.data =
            read(folder.join(&link.object)).map_err(|e| format!("{path}: links[{i}]: {e}"))?;
        for entry in &link.entries {
            if !seen.insert(entry.slot) {
                return Err(format!(
                    "{path}: links[{i}]: slot {} is given twice",
                    entry.slot
                ));
            }
        }
    }
    if !seen.contains(&0) {
        return Err(format!(
            "{path}: no entry has slot 0, so the chain has no head"
        ));
    }
    let packets = spec
        .packets
        .iter()
        .enumerate()
        .map(|(i, text)| {
            unhex(text).ok_or_else(|| format!("{path}: packets[{i}]: not hexadecimal"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    // The first object that has the map makes and pins it, the others find it there.
    options
        .map_pins
        .entry(spec.slots_map.clone())
        .or_insert_with(|| pins.join("slots"));
    let mut result = ChainResult {
        loader: LOADER,
        programs_loaded: 0,
        verdicts: vec![],
        error: None,
    };
    result.error = run(&spec, &packets, &options, pins, &mut result).err();
    print_json(&result)
}

fn run(
    spec: &Spec,
    packets: &[Vec<u8>],
    options: &Options,
    pins: &Path,
    result: &mut ChainResult,
) -> Result<(), String> {
    let mut slots: Option<ProgramArray<MapData>> = None;
    let mut links: Vec<Ebpf> = Vec::new();
    for (i, link) in spec.links.iter().enumerate() {
        let place = format!("links[{i}] {}", link.object);
        check_definition(spec, link, options).map_err(|e| format!("{place}: {e}"))?;
        let mut ebpf = open(&link.data, options, pins).map_err(|e| format!("{place}: {e}"))?;
        let names: Vec<&str> = link
            .entries
            .iter()
            .map(|entry| entry.program.as_str())
            .collect();
        for name in &names {
            if ebpf.program(name).is_none() {
                let mut held: Vec<_> = ebpf.programs().map(|(held, _)| held).collect();
                held.sort_unstable();
                let held = held.join(", ");
                return Err(format!(
                    "{place}: no program {name} in the object, it holds: {held}"
                ));
            }
        }
        let keep = link.only.then_some(names.as_slice());
        let (loaded, errors) = load_programs(&mut ebpf, &link.data, keep);
        result.programs_loaded += loaded.len();
        if !errors.is_empty() {
            return Err(format!("{place}: {}", errors.join("; ")));
        }
        if slots.is_none() {
            if let Some(map) = ebpf.take_map(&spec.slots_map) {
                let array = ProgramArray::try_from(map);
                slots = Some(array.map_err(|e| format!("{place}: {}", with_causes(&e)))?);
            }
        }
        links.push(ebpf);
    }
    for (i, link) in spec.links.iter().enumerate().rev() {
        for entry in link.entries.iter().rev() {
            let place = format!("links[{i}] {}: slot {}", link.object, entry.slot);
            let program = links[i]
                .program(&entry.program)
                .expect("checked at the load");
            let fd = program_fd(program).map_err(|e| format!("{place}: {e}"))?;
            match slots.as_mut() {
                Some(array) => array
                    .set(entry.slot, &fd, 0)
                    .map_err(|e| format!("{place}: {}", with_causes(&e)))?,
                // A chain of one unpatched link needs no array.
                None if spec.links.len() == 1 && entry.slot == 0 => {}
                None => return Err(format!("{place}: no object has a map {}", spec.slots_map)),
            }
        }
    }
    let head = spec
        .links
        .iter()
        .zip(&links)
        .find_map(|(link, ebpf)| {
            let entry = link.entries.iter().find(|entry| entry.slot == 0)?;
            ebpf.program(&entry.program)
        })
        .expect("checked with the spec");
    for (i, packet) in packets.iter().enumerate() {
        let verdict = test_run(head, packet).map_err(|e| format!("packets[{i}]: {e}"))?;
        result.verdicts.push(verdict);
    }
    Ok(())
}

/// aya takes a pinned map as it is; that its definition fits the object's is checked here.
fn check_definition(spec: &Spec, link: &Link, options: &Options) -> Result<(), String> {
    let Ok(Ok(object)) = std::panic::catch_unwind(|| aya_obj::Object::parse(&link.data)) else {
        return Ok(()); // the load says what is wrong
    };
    let overridden = options.slot_map.as_deref() == Some(&spec.slots_map);
    for map in info::maps(&object) {
        let entries = if overridden {
            options.max_entries
        } else {
            Some(map.max_entries)
        };
        if map.name == spec.slots_map && entries != Some(spec.max_entries) {
            return Err(format!(
                "map {}: max_entries {} instead of the chain's {}",
                map.name, map.max_entries, spec.max_entries
            ));
        }
    }
    Ok(())
}

fn program_fd(program: &Program) -> Result<ProgramFd, String> {
    let fd = program.fd().map_err(|e| with_causes(&e))?;
    fd.try_clone().map_err(|e| e.to_string())
}

fn test_run(program: &Program, packet: &[u8]) -> Result<i32, String> {
    let options = TestRunOptions {
        data_in: Some(packet),
        ..TestRunOptions::default()
    };
    let run = match program {
        Program::Xdp(p) => p.test_run(options),
        Program::SchedClassifier(p) => p.test_run(options),
        Program::SocketFilter(p) => p.test_run(options),
        Program::CgroupSkb(p) => p.test_run(options),
        Program::FlowDissector(p) => p.test_run(options),
        other => {
            return Err(format!(
                "aya runs no packets for {:?} programs",
                other.prog_type()
            ))
        }
    };
    let run = run.map_err(|e| with_causes(&e))?;
    Ok(run.return_value as i32)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok())
        .collect()
}
