//! ayatest loads BPF objects with aya, so that tests meet a loader nobody here wrote.
//!
//! It prints one JSON line for each object (load, info) or each chain (chain). Exit code 0 means
//! that the tool did its work; an object that the loader or the kernel refused is a result, and its
//! text is in "error". Exit code 1 means that the tool could not do its work.

mod bpffs;
mod chain;
mod info;
mod load;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: ayatest chain [options] SPEC.json
       ayatest load [options] OBJ...
       ayatest info OBJ...
options:
  --map NAME=PINPATH           use the map pinned at PINPATH for the object's map NAME
  --slot-map NAME              with --max-entries: the map whose max_entries is set before the load
  --max-entries N              (default: what the object says)
  --attach-type-from-section   accepted and without effect: the loader always does so
";

/// The library and its version, as Cargo.lock holds it.
pub const LOADER: &str = concat!("aya v", env!("AYA_VERSION"));

/// The command line's options, the same for every object of a call.
#[derive(Default)]
pub struct Options {
    pub map_pins: BTreeMap<String, PathBuf>,
    pub slot_map: Option<String>,
    pub max_entries: Option<u32>,
}

fn main() -> ExitCode {
    // A panic inside aya is caught and reported as the loader's error; its own line would only
    // mix with the JSON of a caller that joins the streams.
    std::panic::set_hook(Box::new(|_| {}));
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("ayatest: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<String>) -> Result<(), String> {
    let Some((command, rest)) = args.split_first() else {
        print!("{USAGE}");
        return Err("a command is needed: chain, load or info".into());
    };
    if command == "-h" || command == "--help" {
        print!("{USAGE}");
        return Ok(());
    }
    let (options, paths) = parse_options(rest)?;
    if paths.is_empty() {
        return Err(format!("{command}: a file is needed"));
    }
    match command.as_str() {
        "info" => paths.iter().try_for_each(|path| info::print(path)),
        "load" => {
            let pins = bpffs::PrivateBpffs::mount()?;
            load::check_pins(&options)?;
            paths
                .iter()
                .enumerate()
                .try_for_each(|(number, path)| load::print(path, &options, &pins.folder(number)?))
        }
        "chain" if paths.len() == 1 => {
            let pins = bpffs::PrivateBpffs::mount()?;
            load::check_pins(&options)?;
            chain::print(&paths[0], options, &pins.folder(0)?)
        }
        "chain" => Err(format!(
            "chain: one SPEC.json is needed, {} files given",
            paths.len()
        )),
        other => Err(format!("no command {other:?}: chain, load or info")),
    }
}

fn parse_options(args: &[String]) -> Result<(Options, Vec<String>), String> {
    let mut options = Options::default();
    let mut paths = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if !arg.starts_with("--") {
            paths.push(arg.clone());
            continue;
        }
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--attach-type-from-section" => {}
            "--map" => {
                let text = value()?;
                let (name, path) = text
                    .split_once('=')
                    .ok_or_else(|| format!("--map {text}: NAME=PINPATH is needed"))?;
                options.map_pins.insert(name.into(), path.into());
            }
            "--slot-map" => options.slot_map = Some(value()?.clone()),
            "--max-entries" => {
                let text = value()?;
                let number = text
                    .parse()
                    .map_err(|_| format!("--max-entries {text}: not a 32-bit number"))?;
                options.max_entries = Some(number);
            }
            _ => return Err(format!("no option {arg}")),
        }
    }
    if options.slot_map.is_some() != options.max_entries.is_some() {
        return Err("--slot-map and --max-entries belong together".into());
    }
    Ok((options, paths))
}

/// Writes one line of JSON to stdout.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), String> {
    println!(
        "{}",
        serde_json::to_string(value).map_err(|e| e.to_string())?
    );
    Ok(())
}

/// Reads a file, or says which one could not be read.
pub fn read(path: impl AsRef<std::path::Path>) -> Result<Vec<u8>, String> {
    let path = path.as_ref();
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}
