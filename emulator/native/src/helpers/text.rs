//! `bpf_strtol`, `bpf_strtoul` and `bpf_strncmp` on bytes (kernel/bpf/helpers.c, lib/kstrtox.c).

use crate::maps::errno::{EINVAL, ERANGE};

/// The number's size without sign, whether it is negative, and how many bytes were read.
fn integer(text: &[u8], flags: u64) -> Result<(u64, bool, i64), i64> {
    let mut base = flags & 0x1F;
    if text.is_empty() || !matches!(base, 0 | 8 | 10 | 16) || flags > 0x1F {
        return Err(-EINVAL);
    }
    let spaces = text.iter().take_while(|c| **c == b' ' || (9..=13).contains(*c)).count();
    let negative = text.get(spaces) == Some(&b'-');
    let start = spaces + usize::from(negative);
    // What the kernel copies for parsing; a zero byte ends it as any other that is no digit does.
    let rest = &text[start..text.len().min(start + 63)];
    if rest.is_empty() {
        return Err(-EINVAL);
    }
    let is = |at: usize, wanted: fn(&u8) -> bool| rest.get(at).is_some_and(wanted);
    let prefix = is(0, |c| *c == b'0') && is(1, |c| c.eq_ignore_ascii_case(&b'x'));
    if base == 0 {
        base = match (is(0, |c| *c == b'0'), prefix && is(2, u8::is_ascii_hexdigit)) {
            (true, true) => 16,
            (true, false) => 8,
            _ => 10,
        };
    }
    let skipped = if base == 16 && prefix { 2 } else { 0 };
    let (mut value, mut digits, mut overflow) = (0u64, 0, false);
    for c in &rest[skipped..] {
        let Some(digit) = (*c as char).to_digit(base as u32) else { break };
        overflow |= value > (u64::MAX - u64::from(digit)) / base;
        value = value.wrapping_mul(base).wrapping_add(u64::from(digit));
        digits += 1;
    }
    match (overflow, digits) {
        (true, _) => Err(-ERANGE),
        (_, 0) => Err(-EINVAL),
        _ => Ok((value, negative, (start + skipped + digits) as i64)),
    }
}

/// The value and the number of bytes read, or the negative error number.
pub fn strtol(text: &[u8], flags: u64) -> Result<(u64, i64), i64> {
    let (value, negative, read) = integer(text, flags)?;
    if negative && value <= 1 << 63 {
        Ok((value.wrapping_neg(), read))
    } else if !negative && value < 1 << 63 {
        Ok((value, read))
    } else {
        Err(-ERANGE)
    }
}

pub fn strtoul(text: &[u8], flags: u64) -> Result<(u64, i64), i64> {
    match integer(text, flags)? {
        (_, true, _) => Err(-EINVAL),
        (value, false, read) => Ok((value, read)),
    }
}

/// -1, 0 or 1. Both end at a zero byte, `right` at its end as well.
pub fn strncmp(left: &[u8], right: &[u8]) -> i64 {
    for (at, a) in left.iter().enumerate() {
        let b = right.get(at).copied().unwrap_or(0);
        match a.cmp(&b) {
            std::cmp::Ordering::Equal if *a == 0 => return 0,
            std::cmp::Ordering::Equal => {}
            other => return other as i64,
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(strtol(b" -42x", 0), Ok((-42i64 as u64, 4)));
        assert_eq!(strtol(b"0x1f", 0), Ok((31, 4)));
        assert_eq!(strtol(b"0x1f", 16), Ok((31, 4)));
        assert_eq!(strtol(b"0x1f", 10), Ok((0, 1)));
        assert_eq!(strtol(b"017", 0), Ok((15, 3)));
        assert_eq!(strtol(b"-9223372036854775808", 10), Ok((1 << 63, 20)));
        assert_eq!(strtol(b"9223372036854775808", 10), Err(-ERANGE));
        assert_eq!(strtoul(b"18446744073709551615", 10), Ok((u64::MAX, 20)));
        assert_eq!(strtoul(b"18446744073709551616", 10), Err(-ERANGE));
        assert_eq!(strtoul(b"-1", 10), Err(-EINVAL));
        for (text, flags) in [(&b"x"[..], 0), (b"", 0), (b"-", 0), (b"1", 7), (b"1", 1 << 5)] {
            assert_eq!(strtol(text, flags), Err(-EINVAL), "{text:?} {flags}");
        }
    }

    #[test]
    fn comparing() {
        assert_eq!(strncmp(b"abc\0zz", b"abc\0yy"), 0);
        assert_eq!(strncmp(b"abd", b"abc"), 1);
        assert_eq!(strncmp(b"ab", b"abc"), 0);
        assert_eq!(strncmp(b"ab\0", b"abc"), -1);
    }
}
