//! Internet checksums as the kernel computes them (include/net/checksum.h, net/core/filter.c).
//!
//! Words are read in the machine's byte order, which the result does not depend on.

/// Add with end-around carry.
pub fn add(sum: u32, more: u32) -> u32 {
    let (sum, carry) = sum.overflowing_add(more);
    sum + u32::from(carry)
}

pub fn sub(sum: u32, less: u32) -> u32 {
    add(sum, !less)
}

/// To 16 bits, not inverted (`csum_from32to16`).
pub fn from32to16(sum: u32) -> u16 {
    let sum = (sum & 0xFFFF) + (sum >> 16);
    ((sum & 0xFFFF) + (sum >> 16)) as u16
}

/// The checksum field for a sum (`csum_fold`).
pub fn fold(sum: u32) -> u16 {
    !from32to16(sum)
}

/// The value of a checksum field as a sum (`csum_unfold`).
pub fn unfold(field: u16) -> u32 {
    u32::from(field)
}

/// `csum_partial`: sums of 16-bit words, an odd last byte as if a zero followed. The kernel's 32-bit
/// results differ between architectures in how far carries are folded; this is x86-64's.
pub fn partial(data: &[u8], seed: u32) -> u32 {
    let mut sum = u64::from(seed);
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_ne_bytes(word.try_into().expect("four bytes")));
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
    }
    while sum >> 32 != 0 {
        sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    }
    sum as u32
}

/// `bpf_csum_diff` of two blocks. Since Linux 6.13 the result is folded to 16 bits on all
/// architectures, and sizes need not be multiples of four; before, x86 gave 32 bits of the same sum.
pub fn diff(from: &[u8], to: &[u8], seed: u32) -> u32 {
    let sum = match (from.is_empty(), to.is_empty()) {
        (true, true) => seed,
        (true, false) => partial(to, seed),
        (false, true) => !partial(from, !seed),
        (false, false) => sub(partial(to, seed), partial(from, 0)),
    };
    u32::from(from32to16(sum))
}

/// `csum_replace_by_diff`: what the field becomes.
pub fn replace_by_diff(field: u16, diff: u32) -> u16 {
    fold(add(diff, !unfold(field)))
}

/// `csum_replace2`.
pub fn replace2(field: u16, from: u16, to: u16) -> u16 {
    !add16(add16(!field, !from), to)
}

/// `csum_replace4`.
pub fn replace4(field: u16, from: u32, to: u32) -> u16 {
    fold(add(sub(!unfold(field), from), to))
}

fn add16(sum: u16, more: u16) -> u16 {
    let (sum, carry) = sum.overflowing_add(more);
    sum + u16::from(carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of RFC 1071's kind: replaced words must give what summing anew gives.
    #[test]
    fn replacing_agrees_with_summing_anew() {
        let mut header =
            *b"\x45\x00\x00\x54\x12\x34\x40\x00\x40\x01\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02";
        let before = fold(partial(&header, 0));
        let old = u32::from_ne_bytes(header[12..16].try_into().unwrap());
        let new = u32::from_ne_bytes([192, 168, 7, 9]);
        header[12..16].copy_from_slice(&new.to_ne_bytes());
        let after = fold(partial(&header, 0));
        assert_eq!(replace4(before, old, new), after);
        let difference = diff(&old.to_ne_bytes(), &new.to_ne_bytes(), 0);
        assert_eq!(replace_by_diff(before, difference), after);
        let ttl = |bytes: &[u8]| u16::from_ne_bytes(bytes[8..10].try_into().unwrap());
        let old = ttl(&header);
        header[8] -= 1;
        assert_eq!(replace2(after, old, ttl(&header)), fold(partial(&header, 0)));
    }
}
