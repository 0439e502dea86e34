//! Formatting as `bpf_trace_printk`, `bpf_trace_vprintk` and `bpf_snprintf` do it
//! (bpf_bprintf_prepare in kernel/bpf/helpers.c, then lib/vsprintf.c).

use crate::maps::errno::EINVAL;

/// Reads up to so many bytes at an address that a conversion (`%s`, `%pI4`) points to; None where
/// there is nothing that the kernel could read.
pub trait Peek {
    fn string(&mut self, address: u64) -> Option<Vec<u8>>;
    fn bytes(&mut self, address: u64, size: usize) -> Option<Vec<u8>>;
}

#[derive(Default)]
struct Field {
    zero: bool,
    plus: bool,
    minus: bool,
    space: bool,
    width: usize,
}

/// The text, or the negative error number: EINVAL for a format that the kernel does not take, or
/// that wants more than `args`. `format` ends before its zero byte.
pub fn format(format: &[u8], args: &[u64], peek: &mut dyn Peek) -> Result<Vec<u8>, i64> {
    let mut out = Vec::new();
    let mut args = args.iter();
    let mut at = 0;
    let byte = |at: usize| format.get(at).copied().unwrap_or(0);
    while at < format.len() {
        let c = format[at];
        if !(c.is_ascii_graphic() || c == b' ' || (9..=13).contains(&c)) {
            return Err(-EINVAL);
        }
        at += 1;
        if c != b'%' {
            out.push(c);
            continue;
        }
        if byte(at) == b'%' {
            out.push(b'%');
            at += 1;
            continue;
        }
        let arg = *args.next().ok_or(-EINVAL)?;
        let mut field = Field::default();
        loop {
            match byte(at) {
                b'0' => field.zero = true,
                b'+' => field.plus = true,
                b'-' => field.minus = true,
                b' ' => field.space = true,
                _ => break,
            }
            at += 1;
        }
        while byte(at).is_ascii_digit() {
            field.width = (field.width * 10 + usize::from(byte(at) - b'0')).min(4096);
            at += 1;
        }
        match byte(at) {
            b'p' => at = pointer(&mut out, format, at + 1, arg, &field, peek)?,
            b's' => {
                at += 1;
                pad(&mut out, &peek.string(arg).unwrap_or_default(), &field);
            }
            b'c' => {
                at += 1;
                pad(&mut out, &[arg as u8], &field);
            }
            _ => {
                let longs = (at..at + 2).take_while(|at| byte(*at) == b'l').count();
                at += longs;
                integer(&mut out, byte(at), longs > 0, arg, &field)?;
                at += 1;
            }
        }
    }
    Ok(out)
}

/// After `%p`; returns the place after the conversion.
fn pointer(
    out: &mut Vec<u8>,
    format: &[u8],
    at: usize,
    arg: u64,
    field: &Field,
    peek: &mut dyn Peek,
) -> Result<usize, i64> {
    let byte = |at: usize| format.get(at).copied().unwrap_or(0);
    let (first, second) = (byte(at), byte(at + 1));
    match (first, second) {
        (b'k' | b'u', b's') => {
            pad(out, &peek.string(arg).unwrap_or_default(), field);
            Ok(at + 2)
        }
        (b'i' | b'I', b'4') => {
            let bytes = peek.bytes(arg, 4).unwrap_or_else(|| vec![0; 4]);
            let text = match first {
                b'i' => format!("{:03}.{:03}.{:03}.{:03}", bytes[0], bytes[1], bytes[2], bytes[3]),
                _ => format!("{}.{}.{}.{}", bytes[0], bytes[1], bytes[2], bytes[3]),
            };
            pad(out, text.as_bytes(), field);
            Ok(at + 2)
        }
        (b'i' | b'I', b'6') => {
            let bytes = peek.bytes(arg, 16).unwrap_or_else(|| vec![0; 16]);
            let words: Vec<String> =
                bytes.chunks(2).map(|word| format!("{:02x}{:02x}", word[0], word[1])).collect();
            let joint = if first == b'I' { ":" } else { "" };
            pad(out, words.join(joint).as_bytes(), field);
            Ok(at + 2)
        }
        // Symbols are not known here: %pB, %ps and %pS print an address without one.
        (b'B' | b's' | b'S', _) => {
            pad(out, format!("{arg:#x}").as_bytes(), field);
            Ok(at + 1)
        }
        (b'K' | b'x', _) => {
            pad(out, format!("{arg:016x}").as_bytes(), field);
            Ok(at + 1)
        }
        // The kernel prints a hash of the address, with a key that differs at every boot.
        (c, _) if c == 0 || c.is_ascii_whitespace() || c == 11 || c.is_ascii_punctuation() => {
            pad(out, format!("{arg:016x}").as_bytes(), field);
            Ok(at)
        }
        _ => Err(-EINVAL),
    }
}

fn integer(
    out: &mut Vec<u8>,
    conversion: u8,
    long: bool,
    arg: u64,
    field: &Field,
) -> Result<(), i64> {
    let signed = if long { arg as i64 } else { i64::from(arg as i32) };
    let unsigned = if long { arg } else { u64::from(arg as u32) };
    let (sign, digits) = match conversion {
        b'd' | b'i' => {
            let sign = match (signed < 0, field.plus, field.space) {
                (true, _, _) => "-",
                (_, true, _) => "+",
                (_, _, true) => " ",
                _ => "",
            };
            (sign, signed.unsigned_abs().to_string())
        }
        b'u' => ("", unsigned.to_string()),
        b'x' => ("", format!("{unsigned:x}")),
        b'X' => ("", format!("{unsigned:X}")),
        _ => return Err(-EINVAL),
    };
    let fill = field.width.saturating_sub(sign.len() + digits.len());
    let zeros = if field.zero && !field.minus { fill } else { 0 };
    let text = format!("{sign}{}{digits}", "0".repeat(zeros));
    pad(out, text.as_bytes(), field);
    Ok(())
}

fn pad(out: &mut Vec<u8>, text: &[u8], field: &Field) {
    let spaces = vec![b' '; field.width.saturating_sub(text.len())];
    if field.minus {
        out.extend([text, &spaces].concat());
    } else {
        out.extend([&spaces, text].concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Text;
    impl Peek for Text {
        fn string(&mut self, address: u64) -> Option<Vec<u8>> {
            (address == 7).then(|| b"seven".to_vec())
        }
        fn bytes(&mut self, address: u64, size: usize) -> Option<Vec<u8>> {
            (address == 7).then(|| (1..=size as u8).collect())
        }
    }

    fn of(text: &str, args: &[u64]) -> Result<String, i64> {
        format(text.as_bytes(), args, &mut Text).map(|out| String::from_utf8(out).unwrap())
    }

    #[test]
    fn conversions() {
        let all = u64::MAX;
        assert_eq!(
            of("%d %u %x %lld %llu %lx", &[all, all, all, all, all, all]).unwrap(),
            "-1 4294967295 ffffffff -1 18446744073709551615 ffffffffffffffff"
        );
        assert_eq!(
            of("%04d|%-4d|%4x|%+d", &[(-5i64) as u64, 5, 10, 3]).unwrap(),
            "-005|5   |   a|+3"
        );
        assert_eq!(of("%s,%s %c%%", &[7, 8, 65]).unwrap(), "seven, A%");
        assert_eq!(of("%pI4 %pi4", &[7, 7]).unwrap(), "1.2.3.4 001.002.003.004");
        assert_eq!(of("%pI6", &[7]).unwrap(), "0102:0304:0506:0708:090a:0b0c:0d0e:0f10");
        assert_eq!(of("%px", &[0x1234]).unwrap(), "0000000000001234");
    }

    #[test]
    fn refused() {
        for (text, args) in [
            ("%d", 0),
            ("%#x", 1),
            ("%.3d", 1),
            ("%f", 1),
            ("%pA", 1),
            ("%hd", 1),
            ("\u{e4}", 0),
            ("%", 1),
        ] {
            assert_eq!(of(text, &vec![1; args]), Err(-EINVAL), "{text}");
        }
    }
}
