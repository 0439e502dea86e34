//! Recorded answers of helpers whose result no emulator can know.

use std::collections::HashMap;

/// One recorded answer.
#[derive(Clone, Debug)]
pub enum Answer {
    Int(u64),
    /// What the helper writes where it is asked to, or an integer of up to eight bytes.
    Bytes(Vec<u8>),
    /// Used up one a call; starts anew with every batch.
    Sequence(Vec<Vec<u8>>),
}

/// Names that may be recorded: helpers without `bpf_`, and settings of the emulator.
///
/// Those of the first group give an integer. In the second, `get_current_comm` is the name, and of
/// the others the first eight bytes are the result (s64) and the rest what is written into the
/// structure that the program passed.
const NAMES: [&str; 36] = [
    "get_prandom_u32",
    "get_smp_processor_id",
    "get_numa_node_id",
    "get_current_pid_tgid",
    "get_current_uid_gid",
    "get_current_task",
    "get_cgroup_classid",
    "get_route_realm",
    "get_hash_recalc",
    "get_socket_cookie",
    "get_socket_uid",
    "get_netns_cookie",
    "skb_under_cgroup",
    "skb_cgroup_id",
    "skb_cgroup_classid",
    "skb_ancestor_cgroup_id",
    "get_current_cgroup_id",
    "get_current_ancestor_cgroup_id",
    "current_task_under_cgroup",
    "get_func_ip",
    "get_attach_cookie",
    "get_func_arg_cnt",
    "get_retval",
    "get_stackid",
    "ktime_get_ns",
    "ktime_get_boot_ns",
    "ktime_get_coarse_ns",
    "ktime_get_tai_ns",
    "jiffies64",
    "get_current_comm",
    "fib_lookup",
    "check_mtu",
    "skb_get_tunnel_key",
    "skb_get_tunnel_opt",
    "get_ns_current_pid_tgid",
    "ktime_step_ns",
];

/// Nanoseconds that virtual time advances at every question for it.
const STEP: u64 = 100;

pub struct Answers {
    values: HashMap<&'static str, (Answer, usize)>,
    pub step: u64,
    /// The CPU that programs run on, if it is the same all the time.
    pub cpu: u64,
}

impl Default for Answers {
    fn default() -> Self {
        Answers { values: HashMap::new(), step: STEP, cpu: 0 }
    }
}

/// What a sequence gives when it is over.
pub struct UsedUp;

impl Answers {
    /// Replace all answers. Err: a name that cannot be recorded, or that needs another form.
    pub fn set(&mut self, values: Vec<(String, Answer)>) -> Result<(), String> {
        let mut made = Answers::default();
        for (name, answer) in values {
            let known = NAMES.iter().find(|known| **known == name);
            let known =
                known.ok_or_else(|| format!("no recorded answer can be used for {name}"))?;
            match (*known, &answer) {
                ("ktime_step_ns", Answer::Int(step)) => made.step = *step,
                ("ktime_step_ns", _) => return Err("ktime_step_ns must be an integer".to_string()),
                ("get_smp_processor_id", Answer::Int(cpu)) => made.cpu = *cpu,
                _ => {}
            }
            made.values.insert(known, (answer, 0));
        }
        *self = made;
        Ok(())
    }

    /// A batch begins.
    pub fn restart(&mut self) {
        self.values.values_mut().for_each(|(_, used)| *used = 0);
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The next answer as an integer.
    pub fn int(&mut self, name: &str) -> Option<Result<u64, UsedUp>> {
        Some(self.next(name)?.map(|next| match next {
            Next::Int(value) => value,
            Next::Bytes(bytes) => integer(bytes),
        }))
    }

    /// The next answer as bytes; an integer as its eight.
    pub fn bytes(&mut self, name: &str) -> Option<Result<Vec<u8>, UsedUp>> {
        Some(self.next(name)?.map(|next| match next {
            Next::Int(value) => value.to_ne_bytes().to_vec(),
            Next::Bytes(bytes) => bytes.to_vec(),
        }))
    }

    fn next(&mut self, name: &str) -> Option<Result<Next<'_>, UsedUp>> {
        if self.values.is_empty() {
            return None;
        }
        let (answer, used) = self.values.get_mut(name)?;
        Some(match answer {
            Answer::Int(value) => Ok(Next::Int(*value)),
            Answer::Bytes(bytes) => Ok(Next::Bytes(bytes)),
            Answer::Sequence(all) => {
                *used += 1;
                all.get(*used - 1).map(|bytes| Next::Bytes(bytes)).ok_or(UsedUp)
            }
        })
    }
}

enum Next<'a> {
    Int(u64),
    Bytes(&'a [u8]),
}

fn integer(bytes: &[u8]) -> u64 {
    let mut value = [0; 8];
    let len = bytes.len().min(8);
    value[..len].copy_from_slice(&bytes[..len]);
    u64::from_le_bytes(value)
}
