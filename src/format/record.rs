//! The 64-byte header in front of each record's payload. `wal-format.md` section "Record header".
//!
//! A record can be found and judged without any file header or name: it carries the salt of the file's generation,
//! its own offset, its length and its own CRC.

use super::bytes::{Reader, Writer};
use crate::limits::{BLOCK, MAX_PAYLOAD, RECORD_ALIGN, RECORD_HEADER_BYTES};
use crate::types::Sequence;

/// First four bytes of a record, little-endian.
pub const RECORD_MAGIC: u32 = 0xf543_52a7;
const CRC_AT: usize = RECORD_HEADER_BYTES - 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// One request; consumes a sequence.
    Write = 1,
    /// A witness that all through `durable_floor` is durable; carries the last sequence, no payload.
    Mark = 2,
    /// Zeros up to the end of a group's last block; carries the last sequence.
    Pad = 3,
    /// One manifest entry as JSON; consumes a sequence of the manifest.
    Entry = 16,
    /// Idempotency keys of released segments; consumes a sequence of the manifest.
    Keys = 17,
}

impl RecordKind {
    pub fn from_u8(v: u8) -> Option<Self> {
        Some(match v {
            1 => Self::Write,
            2 => Self::Mark,
            3 => Self::Pad,
            16 => Self::Entry,
            17 => Self::Keys,
            _ => return None,
        })
    }

    /// Whether a record of this kind has a sequence of its own.
    pub fn numbered(self) -> bool {
        !matches!(self, Self::Mark | Self::Pad)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Mark => "mark",
            Self::Pad => "pad",
            Self::Entry => "entry",
            Self::Keys => "keys",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    pub kind: RecordKind,
    /// Bytes of payload, without alignment.
    pub payload_len: u32,
    /// CRC-32 (IEEE) of the payload.
    pub payload_crc: u32,
    pub salt: u64,
    /// File offset of this header.
    pub offset: u64,
    pub sequence: Sequence,
    /// The highest sequence known to be durable when this record was written.
    pub durable_floor: Sequence,
    /// Microseconds since the Unix epoch.
    pub receive_time_us: i64,
}

impl RecordHeader {
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut b: Vec<u8> = Vec::with_capacity(RECORD_HEADER_BYTES);
        b.put_u32(RECORD_MAGIC);
        b.put_u8(self.kind as u8);
        b.put_u8(0);
        b.put_u16(0);
        b.put_u32(self.payload_len);
        b.put_u32(self.payload_crc);
        b.put_u64(self.salt);
        b.put_u64(self.offset);
        b.put_u64(self.sequence);
        b.put_u64(self.durable_floor);
        b.put_u64(self.receive_time_us as u64);
        b.put_u32(0);
        let crc = crc32fast::hash(&b);
        b.put_u32(crc);
        let mut out = [0u8; RECORD_HEADER_BYTES];
        out.copy_from_slice(&b);
        out
    }

    /// Parses the header at the start of `bytes`; None unless every field is in range and the CRC is right.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let b = bytes.get(..RECORD_HEADER_BYTES)?;
        let mut r = Reader::new(b);
        if r.u32("magic").ok()? != RECORD_MAGIC {
            return None;
        }
        let crc = u32::from_le_bytes(b.get(CRC_AT..)?.try_into().ok()?);
        if crc32fast::hash(b.get(..CRC_AT)?) != crc {
            return None;
        }
        let kind = RecordKind::from_u8(r.u8("kind").ok()?)?;
        let (flags, reserved) = (r.u8("flags").ok()?, r.u16("reserved").ok()?);
        let payload_len = r.u32("payload length").ok()?;
        let payload_crc = r.u32("payload crc").ok()?;
        let mut u = || r.u64("field").ok();
        let (salt, offset, sequence, durable_floor, receive) = (u()?, u()?, u()?, u()?, u()?);
        let tail = r.u32("reserved").ok()?;
        if flags != 0 || reserved != 0 || tail != 0 || payload_len as usize > MAX_PAYLOAD || durable_floor > sequence {
            return None;
        }
        if !offset.is_multiple_of(RECORD_ALIGN as u64) {
            return None;
        }
        Some(Self { kind, payload_len, payload_crc, salt, offset, sequence, durable_floor, receive_time_us: receive as i64 })
    }

    /// Bytes from this header to the next: header, payload, alignment.
    pub fn record_len(&self) -> usize {
        record_len(self.payload_len as usize)
    }
}

/// Bytes of a record with a payload of `payload_len` bytes.
pub fn record_len(payload_len: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_len).next_multiple_of(RECORD_ALIGN)
}

/// Bytes of the pad that ends a group at a block boundary, when the group's records end at `end`: 0 when `end` is one.
/// A gap too small for a record header takes one more block.
pub fn pad_len(end: u64) -> usize {
    let gap = (end.next_multiple_of(BLOCK as u64) - end) as usize;
    if gap == 0 || gap >= RECORD_HEADER_BYTES { gap } else { gap + BLOCK }
}

/// Appends a pad of `len` bytes (from [`pad_len`]) that stands at file offset `offset`.
pub fn put_pad(out: &mut Vec<u8>, len: usize, offset: u64, salt: u64, sequence: Sequence, floor: Sequence, now_us: i64) {
    if len < RECORD_HEADER_BYTES {
        return;
    }
    let payload = len - RECORD_HEADER_BYTES;
    let from = out.len();
    out.resize(from + len, 0);
    let crc = crc32fast::hash(out.get(from + RECORD_HEADER_BYTES..).unwrap_or_default());
    let h = RecordHeader {
        kind: RecordKind::Pad,
        payload_len: payload as u32,
        payload_crc: crc,
        salt,
        offset,
        sequence,
        durable_floor: floor,
        receive_time_us: now_us,
    };
    if let Some(dst) = out.get_mut(from..from + RECORD_HEADER_BYTES) {
        dst.copy_from_slice(&h.encode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Write,
            payload_len: 10,
            payload_crc: 1,
            salt: 2,
            offset: 8192,
            sequence: 9,
            durable_floor: 8,
            receive_time_us: -5,
        }
    }

    #[test]
    fn round_trip_and_every_bit_flip_is_refused() {
        let b = sample().encode();
        assert_eq!(RecordHeader::parse(&b), Some(sample()));
        for bit in 0..RECORD_HEADER_BYTES * 8 {
            let mut m = b;
            m[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::parse(&m), None, "bit {bit}");
        }
    }

    #[test]
    fn a_header_that_no_writer_makes_is_no_header() {
        let with = |at: usize, value: u8| {
            let mut b = sample().encode();
            b[at] = value;
            let crc = crc32fast::hash(&b[..CRC_AT]);
            b[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
            RecordHeader::parse(&b)
        };
        assert!(with(16, 3).is_some(), "another salt");
        // Kind, flags, both reserved fields, an offset off the alignment, a floor above the sequence, a length over the limit.
        for (at, value) in [(4, 4), (5, 1), (6, 1), (7, 1), (56, 1), (24, 4), (40, 10), (11, 0x80)] {
            assert_eq!(with(at, value), None, "byte {at}");
        }
    }

    #[test]
    fn pads_end_at_a_block_and_hold_a_header() {
        for end in (0..BLOCK as u64 * 2).step_by(RECORD_ALIGN) {
            let n = pad_len(end);
            assert!((end + n as u64).is_multiple_of(BLOCK as u64));
            assert!(n == 0 || n >= RECORD_HEADER_BYTES);
            assert!(n < BLOCK + RECORD_HEADER_BYTES);
        }
    }
}
