//! Kinds of maps: numbers and names of the kernel, and the sizes that it accepts.

/// `enum bpf_map_type`, as far as maps of that kind do something here; all else is [`Kind::Other`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Hash,
    Array,
    ProgArray,
    PerfEventArray,
    PercpuHash,
    PercpuArray,
    LruHash,
    LruPercpuHash,
    LpmTrie,
    ArrayOfMaps,
    HashOfMaps,
    Devmap,
    Cpumap,
    Xskmap,
    Queue,
    Stack,
    DevmapHash,
    Ringbuf,
    /// Can be made, and is unmodelled as soon as a program uses it.
    Other(u32),
}

/// Flags at making a map.
pub const BPF_F_NO_PREALLOC: u32 = 1;
pub const BPF_F_RDONLY_PROG: u32 = 1 << 7;

/// Names of map kinds in messages, by number.
const NAMES: [&str; 34] = [
    "unspecified map",
    "hash map",
    "array map",
    "prog array map",
    "perf event array map",
    "per-CPU hash map",
    "per-CPU array map",
    "stack trace map",
    "cgroup array map",
    "LRU hash map",
    "LRU per-CPU hash map",
    "LPM trie map",
    "array of maps",
    "hash of maps",
    "devmap",
    "sockmap",
    "cpumap",
    "xskmap",
    "sockhash map",
    "cgroup storage map",
    "reuseport sockarray map",
    "per-CPU cgroup storage map",
    "queue map",
    "stack map",
    "socket storage map",
    "devmap hash",
    "struct_ops map",
    "ring buffer map",
    "inode storage map",
    "task storage map",
    "bloom filter map",
    "user ring buffer map",
    "cgroup local storage map",
    "arena map",
];

impl Kind {
    pub fn of(number: u32) -> Kind {
        match number {
            1 => Kind::Hash,
            2 => Kind::Array,
            3 => Kind::ProgArray,
            4 => Kind::PerfEventArray,
            5 => Kind::PercpuHash,
            6 => Kind::PercpuArray,
            9 => Kind::LruHash,
            10 => Kind::LruPercpuHash,
            11 => Kind::LpmTrie,
            12 => Kind::ArrayOfMaps,
            13 => Kind::HashOfMaps,
            14 => Kind::Devmap,
            16 => Kind::Cpumap,
            17 => Kind::Xskmap,
            22 => Kind::Queue,
            23 => Kind::Stack,
            25 => Kind::DevmapHash,
            27 => Kind::Ringbuf,
            other => Kind::Other(other),
        }
    }

    pub fn number(self) -> u32 {
        match self {
            Kind::Hash => 1,
            Kind::Array => 2,
            Kind::ProgArray => 3,
            Kind::PerfEventArray => 4,
            Kind::PercpuHash => 5,
            Kind::PercpuArray => 6,
            Kind::LruHash => 9,
            Kind::LruPercpuHash => 10,
            Kind::LpmTrie => 11,
            Kind::ArrayOfMaps => 12,
            Kind::HashOfMaps => 13,
            Kind::Devmap => 14,
            Kind::Cpumap => 16,
            Kind::Xskmap => 17,
            Kind::Queue => 22,
            Kind::Stack => 23,
            Kind::DevmapHash => 25,
            Kind::Ringbuf => 27,
            Kind::Other(number) => number,
        }
    }

    /// For messages: "stack trace map", "map of kind 40".
    pub fn name(self) -> String {
        match NAMES.get(self.number() as usize) {
            Some(name) => (*name).to_string(),
            None => format!("map of kind {}", self.number()),
        }
    }

    pub fn percpu(self) -> bool {
        matches!(self, Kind::PercpuHash | Kind::PercpuArray | Kind::LruPercpuHash)
    }

    pub fn lru(self) -> bool {
        matches!(self, Kind::LruHash | Kind::LruPercpuHash)
    }

    /// Keys are indexes of four bytes.
    pub fn indexed(self) -> bool {
        matches!(
            self,
            Kind::Array
                | Kind::PercpuArray
                | Kind::ProgArray
                | Kind::PerfEventArray
                | Kind::ArrayOfMaps
                | Kind::Devmap
                | Kind::Cpumap
                | Kind::Xskmap
        )
    }
}

/// KMALLOC_MAX_SIZE less what the kernel puts in front of a key and value: about 4 MiB. Arrays take
/// larger values.
const MAX_ELEMENT: u32 = (1 << 22) - 512;

/// Why the kernel refuses to make such a map (EINVAL or E2BIG).
pub fn refused(spec: &super::MapSpec) -> Option<String> {
    let kind = Kind::of(spec.kind);
    let name = format!("map {}: {}", spec.label, kind.name());
    let wrong = |what: String| Some(format!("{name} {what}"));
    let (key, value) = (spec.key_size, spec.value_size);
    let entries = spec.max_entries;
    if kind.indexed() && key != 4 {
        return wrong(format!("with a key size of {key} bytes, not 4"));
    }
    if entries == 0 && !matches!(kind, Kind::PerfEventArray | Kind::Other(_)) {
        return wrong("with max_entries 0".to_string());
    }
    let values: &[u32] = match kind {
        Kind::ProgArray | Kind::PerfEventArray | Kind::ArrayOfMaps | Kind::HashOfMaps => &[4],
        Kind::Xskmap => &[4],
        Kind::Devmap | Kind::DevmapHash | Kind::Cpumap => &[4, 8],
        Kind::Ringbuf => &[0],
        Kind::Other(_) => return None,
        _ => &[],
    };
    if !values.is_empty() && !values.contains(&value) {
        return wrong(format!("with a value size of {value} bytes"));
    }
    let keys = match kind {
        Kind::LpmTrie => 5..=260,
        Kind::Queue | Kind::Stack | Kind::Ringbuf => 0..=0,
        Kind::DevmapHash => 4..=4,
        _ => 1..=u32::MAX,
    };
    if !keys.contains(&key) {
        return wrong(format!("with a key size of {key} bytes"));
    }
    if kind == Kind::LpmTrie && spec.flags & BPF_F_NO_PREALLOC == 0 {
        return wrong("without BPF_F_NO_PREALLOC".to_string());
    }
    if kind == Kind::Ringbuf && !(entries.is_power_of_two() && entries % 4096 == 0) {
        return wrong(format!("of {entries} bytes, no power of two of whole pages"));
    }
    if matches!(kind, Kind::ArrayOfMaps | Kind::HashOfMaps) && spec.inner.is_none() {
        return wrong("without an inner map".to_string());
    }
    if kind.lru() && spec.flags & BPF_F_NO_PREALLOC != 0 {
        return wrong("with BPF_F_NO_PREALLOC".to_string());
    }
    if kind != Kind::Ringbuf && value == 0 {
        return wrong("with a value size of 0 bytes".to_string());
    }
    let largest = if kind == Kind::Array { i32::MAX as u32 } else { MAX_ELEMENT };
    if key.saturating_add(value) > largest {
        return wrong(format!("with keys and values of {key} and {value} bytes"));
    }
    if kind.percpu() && value.next_multiple_of(8) > 32768 {
        return wrong(format!("with a value size of {value} bytes, above 32768"));
    }
    None
}
