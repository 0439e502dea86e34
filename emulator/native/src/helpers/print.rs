//! Helpers on text: printing, formatting, parsing, comparing.

use super::args::{error, readable, size, string, writable};
use super::format::{format, Peek};
use super::probe::{fetch, fetch_string};
use super::text;
use crate::env::{Env, HelperResult};
use crate::fault::Fault;
use crate::maps::errno::EINVAL;

/// Room for the text of a trace line, and for the arguments of one.
const MAX_TEXT: usize = 1024;
const MAX_ARGS: usize = 12;

struct Memory<'a>(&'a Env);

impl Peek for Memory<'_> {
    fn string(&mut self, address: u64) -> Option<Vec<u8>> {
        fetch_string(self.0, address, MAX_TEXT)
    }

    fn bytes(&mut self, address: u64, size: usize) -> Option<Vec<u8>> {
        fetch(self.0, address, size).map(<[u8]>::to_vec)
    }
}

/// The text, or the error as r0.
fn formatted(env: &Env, text: &[u8], args: &[u64]) -> Result<Vec<u8>, u64> {
    format(text, args, &mut Memory(env)).map_err(|number| number as u64)
}

fn trace(env: &mut Env, text: &[u8], args: &[u64]) -> HelperResult {
    let Some(end) = text.iter().position(|byte| *byte == 0) else { return Ok(error(EINVAL)) };
    match formatted(env, &text[..end], args) {
        Ok(line) => {
            env.event("printk", None, &line[..line.len().min(MAX_TEXT - 1)]);
            Ok(line.len() as u64)
        }
        Err(error) => Ok(error),
    }
}

/// `bpf_trace_printk(format, size, ...)` with three values.
pub fn printk(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let text = readable(env, a[0], size(a[1]))?;
    trace(env, text, &a[2..])
}

/// The values that `bpf_trace_vprintk` and `bpf_snprintf` get: None for a size they do not take.
fn values(env: &Env, address: u64, len: u64) -> Result<Option<Vec<u64>>, Box<Fault>> {
    let len = size(len);
    let bytes = readable(env, address, len)?;
    if len % 8 != 0 || len > MAX_ARGS * 8 {
        return Ok(None);
    }
    let word = |word: &[u8]| u64::from_ne_bytes(word.try_into().expect("eight bytes"));
    Ok(Some(bytes.chunks_exact(8).map(word).collect()))
}

/// `bpf_trace_vprintk(format, size, data, data_len)`.
pub fn vprintk(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let text = readable(env, a[0], size(a[1]))?;
    match values(env, a[2], a[3])? {
        Some(values) => trace(env, text, &values),
        None => Ok(error(EINVAL)),
    }
}

/// `bpf_snprintf(str, str_size, format, data, data_len)`: the length with the zero byte.
pub fn snprintf(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let out = writable(env, a[0], size(a[1]))?;
    let text = string(env, a[2])?;
    let Some(values) = values(env, a[3], a[4])? else { return Ok(error(EINVAL)) };
    match formatted(env, &text, &values) {
        Ok(text) => {
            if let Some(room) = out.len().checked_sub(1) {
                let len = text.len().min(room);
                out[..len].copy_from_slice(&text[..len]);
                out[len] = 0;
            }
            Ok(text.len() as u64 + 1)
        }
        Err(error) => Ok(error),
    }
}

/// `bpf_strtol` and `bpf_strtoul(buf, buf_len, flags, res)`.
pub fn strtol(env: &mut Env, a: [u64; 5], signed: bool) -> HelperResult {
    let text = readable(env, a[0], size(a[1]))?.to_vec();
    let out = writable(env, a[3], 8)?;
    out.fill(0);
    let parsed = if signed { text::strtol(&text, a[2]) } else { text::strtoul(&text, a[2]) };
    match parsed {
        Ok((value, read)) => {
            out.copy_from_slice(&value.to_ne_bytes());
            Ok(read as u64)
        }
        Err(error) => Ok(error as u64),
    }
}

/// `bpf_strncmp(s1, s1_size, s2)`.
pub fn strncmp(env: &mut Env, a: [u64; 5]) -> HelperResult {
    let left = readable(env, a[0], size(a[1]))?;
    let right = string(env, a[2])?;
    Ok(text::strncmp(left, &right) as u64)
}
