//! The Parquet encodings that this server writes: PLAIN, RLE/bit-packed hybrid, DELTA_BINARY_PACKED,
//! BYTE_STREAM_SPLIT.
//!
//! Pure: values in, bytes appended. Which readers know which of them: docs/reading.md.

use crate::format::bytes::Writer as _;

/// Shortest run worth leaving bit-packing for: a run costs a header here and another for the literals behind it.
const MIN_RUN: usize = 32;
/// Values of a DELTA_BINARY_PACKED block, in four miniblocks.
const BLOCK: usize = 128;
const MINIBLOCK: usize = 32;

/// Values of 8 bytes each, little-endian.
pub(super) fn put_plain<T: Copy>(out: &mut Vec<u8>, values: &[T], f: impl Fn(T) -> [u8; 8]) {
    let from = out.len();
    out.resize(from + values.len() * 8, 0);
    if let Some(dst) = out.get_mut(from..) {
        for (d, s) in dst.as_chunks_mut::<8>().0.iter_mut().zip(values) {
            *d = f(*s);
        }
    }
}

/// BYTE_STREAM_SPLIT: all first bytes of the little-endian values, then all second ones, and so on.
pub(super) fn put_split(out: &mut Vec<u8>, values: &[f64]) {
    out.reserve(values.len() * 8);
    for place in 0..8 {
        out.extend(values.iter().map(|v| (v.to_bits() >> (8 * place)) as u8));
    }
}

/// Bits needed for values up to `max`.
pub(super) fn width_of(max: u32) -> u8 {
    (u32::BITS - max.leading_zeros()) as u8
}

/// `width` bits of each value, least significant first.
fn put_packed(out: &mut Vec<u8>, values: impl Iterator<Item = u32>, width: u8) {
    let (mut acc, mut bits) = (0u64, 0u32);
    for v in values {
        acc |= u64::from(v) << bits;
        bits += u32::from(width);
        if bits >= 32 {
            out.extend_from_slice(&(acc as u32).to_le_bytes());
            acc >>= 32;
            bits -= 32;
        }
    }
    while bits > 0 {
        out.push(acc as u8);
        acc >>= 8;
        bits = bits.saturating_sub(8);
    }
}

fn put_packed_wide(out: &mut Vec<u8>, values: &[u64], width: u32) {
    let (mut acc, mut bits) = (0u128, 0u32);
    for v in values {
        acc |= u128::from(*v) << bits;
        bits += width;
        if bits >= 64 {
            out.extend_from_slice(&(acc as u64).to_le_bytes());
            acc >>= 64;
            bits -= 64;
        }
    }
    while bits > 0 {
        out.push(acc as u8);
        acc >>= 8;
        bits = bits.saturating_sub(8);
    }
}

/// RLE/bit-packed hybrid of `width` bits (1 to 32), without a length in front.
pub(super) fn put_hybrid(out: &mut Vec<u8>, values: &[u32], width: u8) {
    let mut literal = 0usize;
    let mut at = 0usize;
    let mut run_end = 0usize;
    while at < values.len() {
        let rest = values.get(at..).unwrap_or_default();
        let first = rest.first().copied().unwrap_or(0);
        // Literals stand in groups of eight, so runs are looked for at those steps only.
        if at >= run_end && rest.len() >= MIN_RUN && rest.iter().take(8).all(|v| *v == first) {
            let run = rest.iter().take_while(|v| **v == first).count();
            if run >= MIN_RUN {
                put_literals(out, values.get(literal..at).unwrap_or_default(), width);
                out.put_varint((run as u64) << 1);
                let bytes = first.to_le_bytes();
                out.extend_from_slice(bytes.get(..usize::from(width).div_ceil(8)).unwrap_or_default());
                at += run;
                literal = at;
                continue;
            }
            run_end = at + run;
        }
        at += 8.min(rest.len());
    }
    put_literals(out, values.get(literal..).unwrap_or_default(), width);
}

fn put_literals(out: &mut Vec<u8>, values: &[u32], width: u8) {
    if values.is_empty() {
        return;
    }
    let groups = values.len().div_ceil(8);
    out.put_varint((groups as u64) << 1 | 1);
    let padding = groups * 8 - values.len();
    put_packed(out, values.iter().copied().chain(std::iter::repeat_n(0, padding)), width);
}

/// Definition levels of a nullable column for `rows` rows: their length, then the levels. `bits`: set = not NULL,
/// beginning at bit 0; None when all are.
pub(super) fn put_levels(out: &mut Vec<u8>, rows: usize, bits: Option<&[u8]>) {
    let mut levels = Vec::with_capacity(16 + rows / 8);
    match bits {
        None => {
            levels.put_varint((rows as u64) << 1);
            levels.push(1);
        }
        Some(b) if b.iter().all(|b| *b == 0) => {
            levels.put_varint((rows as u64) << 1);
            levels.push(0);
        }
        Some(b) => {
            let bytes = rows.div_ceil(8);
            levels.put_varint((bytes as u64) << 1 | 1);
            levels.extend_from_slice(b.get(..bytes).unwrap_or_default());
        }
    }
    out.put_u32(levels.len() as u32);
    out.extend_from_slice(&levels);
}

/// DELTA_BINARY_PACKED of 64-bit integers.
pub(super) fn put_delta(out: &mut Vec<u8>, values: &[i64]) {
    out.put_varint(BLOCK as u64);
    out.put_varint((BLOCK / MINIBLOCK) as u64);
    out.put_varint(values.len() as u64);
    let Some(first) = values.first() else {
        out.put_signed(0);
        return;
    };
    out.put_signed(*first);
    let mut last = *first;
    let mut deltas = [0i64; BLOCK];
    for block in values.get(1..).unwrap_or_default().chunks(BLOCK) {
        let mut min = i64::MAX;
        for (d, v) in deltas.iter_mut().zip(block) {
            *d = v.wrapping_sub(last);
            min = min.min(*d);
            last = *v;
        }
        out.put_signed(min);
        let mut relative = [0u64; BLOCK];
        for (r, d) in relative.iter_mut().zip(&deltas).take(block.len()) {
            *r = d.wrapping_sub(min) as u64;
        }
        // Miniblocks behind the last value have width 0 and no bytes; one that is begun is filled with zeros.
        let minis = relative.as_chunks::<MINIBLOCK>().0;
        let widths = minis.iter().map(|m| u64::BITS - m.iter().fold(0, |a, b| a | b).leading_zeros());
        out.extend(widths.clone().map(|w| w as u8));
        for (m, w) in minis.iter().zip(widths) {
            put_packed_wide(out, m, w);
        }
    }
}

/// Length and bytes of each string of `bytes`, where they lie end to end.
pub(super) fn put_strings(out: &mut Vec<u8>, lengths: &[u32], bytes: &[u8]) {
    let mut at = 0usize;
    for l in lengths {
        let end = at + *l as usize;
        out.extend_from_slice(&l.to_le_bytes());
        out.extend_from_slice(bytes.get(at..end).unwrap_or_default());
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader of the hybrid, written from the format's description.
    fn read_hybrid(mut b: &[u8], width: u8, n: usize) -> Vec<u32> {
        let mut out = Vec::new();
        let varint = |b: &mut &[u8]| {
            let (mut v, mut s) = (0u64, 0);
            loop {
                let x = b[0];
                *b = &b[1..];
                v |= u64::from(x & 0x7f) << s;
                s += 7;
                if x & 0x80 == 0 {
                    return v;
                }
            }
        };
        while out.len() < n {
            let h = varint(&mut b);
            if h & 1 == 0 {
                let bytes = usize::from(width).div_ceil(8);
                let mut v = [0u8; 4];
                v[..bytes].copy_from_slice(&b[..bytes]);
                b = &b[bytes..];
                out.extend(std::iter::repeat_n(u32::from_le_bytes(v), (h >> 1) as usize));
            } else {
                for i in 0..(h >> 1) as usize * 8 {
                    let v = (0..usize::from(width)).fold(0u32, |v, k| {
                        let bit = i * usize::from(width) + k;
                        v | u32::from(b[bit / 8] >> (bit % 8) & 1) << k
                    });
                    out.push(v);
                }
                b = &b[(h >> 1) as usize * usize::from(width)..];
            }
        }
        assert!(b.is_empty());
        out.truncate(n);
        out
    }

    #[test]
    fn hybrid_of_runs_and_literals_reads_back() {
        for width in [1u8, 2, 7, 8, 10, 17, 31, 32] {
            let mask = if width == 32 { u32::MAX } else { (1 << width) - 1 };
            for n in [0usize, 1, 7, 8, 9, 31, 32, 33, 100, 1000] {
                let mixed: Vec<u32> =
                    (0..n as u32).map(|i| if i % 200 < 120 { i / 200 } else { i.wrapping_mul(2_654_435_761) } & mask).collect();
                let constant = vec![mask; n];
                for v in [mixed, constant] {
                    let mut out = Vec::new();
                    put_hybrid(&mut out, &v, width);
                    assert_eq!(read_hybrid(&out, width, n), v, "width {width}, {n} values");
                }
            }
        }
    }
}
