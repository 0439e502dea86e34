//! What aya's parser reads in an object; nothing is loaded.

use std::collections::{BTreeMap, HashSet};

use aya_obj::maps::PinningType;
use aya_obj::Object;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use serde::Serialize;

use crate::{print_json, read, LOADER};

#[derive(Serialize)]
struct ProgramInfo {
    name: String,
    section: String,
    r#type: String,
    attach_type: String,
    attach_to: String,
    instructions: usize,
}

#[derive(Serialize)]
pub struct MapInfo {
    pub name: String,
    pub r#type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub pinned: bool,
}

#[derive(Serialize)]
struct InfoResult<'a> {
    loader: &'a str,
    object: &'a str,
    programs: Vec<ProgramInfo>,
    maps: Vec<MapInfo>,
    error: Option<String>,
}

/// Prints what an object holds.
pub fn print(path: &str) -> Result<(), String> {
    let data = read(path)?;
    let mut result = InfoResult {
        loader: LOADER,
        object: path,
        programs: vec![],
        maps: vec![],
        error: None,
    };
    match std::panic::catch_unwind(|| parse(&data)) {
        Ok(Ok((programs, maps))) => (result.programs, result.maps) = (programs, maps),
        Ok(Err(text)) => result.error = Some(format!("parse: {text}")),
        Err(_) => result.error = Some("parse: panic in aya".into()),
    }
    print_json(&result)
}

fn parse(data: &[u8]) -> Result<(Vec<ProgramInfo>, Vec<MapInfo>), String> {
    let mut object = Object::parse(data).map_err(|e| crate::load::with_causes(&e))?;
    let sections = section_names(data);
    let text_sections: HashSet<usize> = object.functions.keys().map(|key| key.0).collect();
    // Linking counts the subprograms in, as the kernel would be given them.
    object
        .relocate_calls(&text_sections)
        .map_err(|e| crate::load::with_causes(&e))?;
    let mut programs: Vec<_> = object
        .programs
        .iter()
        .map(|(name, program)| {
            // Debug text is `Xdp { frags: false, attach_type: Interface }` or a bare word.
            let text = format!("{:?}", program.section);
            let (kind, fields) = text.split_once(' ').unwrap_or((&text, ""));
            let section = sections.get(name).cloned().unwrap_or_default();
            ProgramInfo {
                name: name.clone(),
                r#type: kind.to_owned(),
                attach_type: fields.trim_matches(|c| "{} ".contains(c)).to_owned(),
                attach_to: section
                    .split_once('/')
                    .map_or(String::new(), |(_, to)| to.to_owned()),
                section,
                instructions: object.functions[&program.function_key()].instructions.len(),
            }
        })
        .collect();
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((programs, maps(&object)))
}

/// The maps that an object defines, in the order of their names.
pub fn maps(object: &Object) -> Vec<MapInfo> {
    let mut maps: Vec<_> = object
        .maps
        .iter()
        .map(|(name, map)| MapInfo {
            name: name.clone(),
            r#type: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: map.max_entries(),
            flags: map.map_flags(),
            pinned: map.pinning() == PinningType::ByName,
        })
        .collect();
    maps.sort_by(|a, b| a.name.cmp(&b.name));
    maps
}

/// The section of every named symbol: aya keeps a program's kind, not its section's name.
pub fn section_names(data: &[u8]) -> BTreeMap<String, String> {
    let Ok(file) = object::File::parse(data) else {
        return BTreeMap::new(); // aya says what is wrong with it
    };
    file.symbols()
        .filter_map(|symbol| {
            let section = file.section_by_index(symbol.section_index()?).ok()?;
            Some((
                symbol.name().ok()?.to_owned(),
                section.name().ok()?.to_owned(),
            ))
        })
        .collect()
}
