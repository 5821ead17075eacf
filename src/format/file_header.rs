//! The header of a segment or manifest file: two identical copies, each in a block of its own.
//!
//! `wal-format.md` section "File header". Major and minor version stand right behind the magic and can be read without
//! trusting anything else.

use super::bytes::{Reader, Writer};
use crate::limits::{BLOCK, FILE_HEADER_BYTES};
use crate::types::{LogId, Sequence};

/// First eight bytes of a segment. The tail is no text, so that a transfer in text mode breaks it.
pub const SEGMENT_MAGIC: [u8; 8] = *b"ARCWAL\x1a\xf5";
/// First eight bytes of a manifest.
pub const MANIFEST_MAGIC: [u8; 8] = *b"ARCMAN\x1a\xf5";
pub const FORMAT_MAJOR: u16 = 1;
pub const FORMAT_MINOR: u16 = 1;
/// Bytes of the header proper; its CRC is the last four. The rest of the block is zero.
pub const HEADER_LEN: usize = 256;
/// Feature bits this reader knows. A reader may ignore unknown compatible bits, never unknown incompatible ones.
pub const KNOWN_INCOMPATIBLE: u64 = ENTRIES_OF_1_1;
/// Incompatible feature of format 1.1: the manifest may hold entries that a reader of 1.0 does not know. Every manifest written by this
/// version has it, so that a reader of 1.0 refuses the log by its header and changes nothing. Segments do not need it.
pub const ENTRIES_OF_1_1: u64 = 1;

const CRC_AT: usize = HEADER_LEN - 4;

/// Where a segment ended, as its successor declares it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeclaredEnd {
    pub id: u64,
    pub salt: u64,
    /// File offset behind the last group.
    pub end: u64,
    pub last_sequence: Sequence,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    Segment,
    Manifest,
}

impl FileKind {
    pub fn magic(self) -> [u8; 8] {
        match self {
            Self::Segment => SEGMENT_MAGIC,
            Self::Manifest => MANIFEST_MAGIC,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileHeader {
    pub kind: FileKind,
    pub minor: u16,
    pub compatible: u64,
    pub incompatible: u64,
    pub log: LogId,
    /// From 1; equals the number in the file's name.
    pub id: u64,
    /// Sequence of the first record to be written to this file.
    pub first_sequence: Sequence,
    /// Random per generation of the file: every record carries it.
    pub salt: u64,
    /// How often the log had been opened when this header was written.
    pub epoch: u64,
    /// Length of the whole file in bytes, fixed.
    pub file_len: u64,
    /// None only in the first file of a log.
    pub predecessor: Option<DeclaredEnd>,
}

/// Why a header copy was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// Shorter than [`HEADER_LEN`].
    Short,
    /// All zero: never written.
    Zero,
    Magic([u8; 8]),
    /// A format this reader does not know.
    Version {
        major: u16,
        minor: u16,
    },
    /// Incompatible feature bits this reader does not know.
    Features(u64),
    Crc {
        expected: u32,
        found: u32,
    },
    /// The CRC is right but a field is not.
    Field(&'static str),
}

impl std::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Short => write!(f, "shorter than {HEADER_LEN} bytes"),
            Self::Zero => f.write_str("all zero"),
            Self::Magic(m) => write!(f, "unknown magic {m:02x?}"),
            Self::Version { major, minor } => {
                write!(f, "format {major}.{minor}, this reader knows {FORMAT_MAJOR}.x: use a newer arc")
            }
            Self::Features(bits) => write!(f, "unknown incompatible features {bits:#x}: use a newer arc"),
            Self::Crc { expected, found } => write!(f, "CRC {found:08x}, expected {expected:08x}"),
            Self::Field(what) => write!(f, "bad field: expected {what}"),
        }
    }
}

impl FileHeader {
    /// One copy: [`HEADER_LEN`] bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b: Vec<u8> = Vec::with_capacity(HEADER_LEN);
        b.put_slice(&self.kind.magic());
        b.put_u16(FORMAT_MAJOR);
        b.put_u16(self.minor);
        b.put_u32(HEADER_LEN as u32);
        b.put_u64(self.compatible);
        b.put_u64(self.incompatible);
        b.put_slice(&self.log.0);
        b.put_u64(self.id);
        b.put_u64(self.first_sequence);
        b.put_u64(self.salt);
        b.put_u64(self.epoch);
        b.put_u64(self.file_len);
        let p = self.predecessor.unwrap_or(DeclaredEnd { id: 0, salt: 0, end: 0, last_sequence: 0 });
        b.put_u64(p.id);
        b.put_u64(p.salt);
        b.put_u64(p.end);
        b.put_u64(p.last_sequence);
        b.resize(CRC_AT, 0);
        let crc = crc32fast::hash(&b);
        b.put_u32(crc);
        let mut out = [0u8; HEADER_LEN];
        out.copy_from_slice(&b);
        out
    }

    /// Both copies with the rest of their blocks: [`FILE_HEADER_BYTES`] bytes.
    pub fn encode_file(&self) -> Vec<u8> {
        let one = self.encode();
        let mut out = Vec::with_capacity(FILE_HEADER_BYTES);
        for _ in 0..2 {
            out.put_slice(&one);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out
    }

    /// Parses one copy.
    ///
    /// # Errors
    /// [`HeaderError`]
    pub fn parse(bytes: &[u8], kind: FileKind) -> Result<Self, HeaderError> {
        let Some(b) = bytes.get(..HEADER_LEN) else { return Err(HeaderError::Short) };
        if b.iter().all(|x| *x == 0) {
            return Err(HeaderError::Zero);
        }
        let mut r = Reader::new(b);
        let short = |_| HeaderError::Short;
        let magic: [u8; 8] = r.array("magic").map_err(short)?;
        if magic != kind.magic() {
            return Err(HeaderError::Magic(magic));
        }
        let major = r.u16("major").map_err(short)?;
        let minor = r.u16("minor").map_err(short)?;
        let expected = crc32fast::hash(b.get(..CRC_AT).unwrap_or_default());
        let found = b.get(CRC_AT..).and_then(|t| t.try_into().ok()).map_or(0, u32::from_le_bytes);
        // A flipped bit in the version must not read as a newer format; a newer format keeps the CRC where it is.
        if expected != found {
            return Err(HeaderError::Crc { expected, found });
        }
        if major != FORMAT_MAJOR {
            return Err(HeaderError::Version { major, minor });
        }
        let len = r.u32("header length").map_err(short)?;
        let compatible = r.u64("compatible").map_err(short)?;
        let incompatible = r.u64("incompatible").map_err(short)?;
        if incompatible & !KNOWN_INCOMPATIBLE != 0 {
            return Err(HeaderError::Features(incompatible & !KNOWN_INCOMPATIBLE));
        }
        let log = LogId(r.array("log uuid").map_err(short)?);
        let mut u = || r.u64("field").map_err(short);
        let (id, first_sequence, salt, epoch, file_len) = (u()?, u()?, u()?, u()?, u()?);
        let p = DeclaredEnd { id: u()?, salt: u()?, end: u()?, last_sequence: u()? };
        if len as usize != HEADER_LEN {
            return Err(HeaderError::Field("header length 256"));
        }
        if id == 0 || first_sequence == 0 {
            return Err(HeaderError::Field("id and first sequence from 1"));
        }
        if file_len < FILE_HEADER_BYTES as u64 {
            return Err(HeaderError::Field("a file length of at least two blocks"));
        }
        let none = p == DeclaredEnd { id: 0, salt: 0, end: 0, last_sequence: 0 };
        if !none && (p.id == 0 || p.id >= id || p.last_sequence >= first_sequence) {
            return Err(HeaderError::Field("a predecessor before this file"));
        }
        Ok(Self {
            kind,
            minor,
            compatible,
            incompatible,
            log,
            id,
            first_sequence,
            salt,
            epoch,
            file_len,
            predecessor: if none { None } else { Some(p) },
        })
    }

    /// Parses both copies of `head`, the first [`FILE_HEADER_BYTES`] of a file: the first good one, and what is wrong with each
    /// bad one.
    ///
    /// # Errors
    /// What is wrong with either copy, when neither is good.
    pub fn parse_file(head: &[u8], kind: FileKind) -> Result<(Self, [Option<HeaderError>; 2]), [HeaderError; 2]> {
        let one = Self::parse(head.get(..BLOCK.min(head.len())).unwrap_or_default(), kind);
        let two = Self::parse(head.get(BLOCK..).unwrap_or_default(), kind);
        match (one, two) {
            (Ok(a), b) => Ok((a, [None, b.err()])),
            (Err(e), Ok(b)) => Ok((b, [Some(e), None])),
            (Err(a), Err(b)) => Err([a, b]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> FileHeader {
        FileHeader {
            kind: FileKind::Segment,
            minor: 0,
            compatible: 0,
            incompatible: 0,
            log: LogId([7; 16]),
            id: 3,
            first_sequence: 100,
            salt: 0xdead_beef,
            epoch: 2,
            file_len: 1 << 20,
            predecessor: Some(DeclaredEnd { id: 2, salt: 5, end: 12288, last_sequence: 99 }),
        }
    }

    #[test]
    fn round_trip_and_every_bit_flip_is_refused() {
        let h = sample();
        let b = h.encode();
        assert_eq!(FileHeader::parse(&b, FileKind::Segment), Ok(h));
        for bit in 0..HEADER_LEN * 8 {
            let mut m = b;
            m[bit / 8] ^= 1 << (bit % 8);
            assert!(FileHeader::parse(&m, FileKind::Segment).is_err(), "bit {bit}");
        }
        assert!(FileHeader::parse(&b, FileKind::Manifest).is_err());
    }

    #[test]
    fn the_second_copy_stands_in_for_the_first() {
        let mut f = sample().encode_file();
        assert_eq!(f.len(), FILE_HEADER_BYTES);
        f[20] ^= 1;
        let (h, bad) = FileHeader::parse_file(&f, FileKind::Segment).unwrap();
        assert_eq!(h, sample());
        assert!(bad[0].is_some() && bad[1].is_none());
        f[BLOCK + 20] ^= 1;
        assert!(FileHeader::parse_file(&f, FileKind::Segment).is_err());
    }

    #[test]
    fn a_newer_major_and_unknown_features_are_named() {
        let recrc = |b: &mut [u8; HEADER_LEN]| {
            let crc = crc32fast::hash(&b[..CRC_AT]);
            b[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        };
        let mut b = sample().encode();
        b[8] = 2;
        recrc(&mut b);
        assert_eq!(FileHeader::parse(&b, FileKind::Segment), Err(HeaderError::Version { major: 2, minor: 0 }));
        let mut b = sample().encode();
        b[24] = 4;
        recrc(&mut b);
        assert_eq!(FileHeader::parse(&b, FileKind::Segment), Err(HeaderError::Features(4)));
    }

    /// What a CRC vouches for may still be what no writer of this format writes.
    #[test]
    fn a_header_that_no_writer_makes_is_refused_by_the_field() {
        type Change<'a> = &'a dyn Fn(&mut FileHeader);
        let p = sample().predecessor.unwrap();
        let of = |change: Change<'_>| {
            let mut h = sample();
            change(&mut h);
            FileHeader::parse(&h.encode(), FileKind::Segment).map(|_| ())
        };
        let (from_1, length, before) =
            ("id and first sequence from 1", "a file length of at least two blocks", "a predecessor before this file");
        let cases: [(Change<'_>, &str); 7] = [
            (&|h| h.id = 0, from_1),
            (&|h| h.first_sequence = 0, from_1),
            (&|h| h.file_len = FILE_HEADER_BYTES as u64 - 1, length),
            (&|h| h.predecessor = Some(DeclaredEnd { id: 0, ..p }), before),
            (&|h| h.predecessor = Some(DeclaredEnd { id: 3, ..p }), before),
            (&|h| h.predecessor = Some(DeclaredEnd { id: 4, ..p }), before),
            (&|h| h.predecessor = Some(DeclaredEnd { last_sequence: 100, ..p }), before),
        ];
        for (i, (change, expected)) in cases.into_iter().enumerate() {
            assert_eq!(of(change), Err(HeaderError::Field(expected)), "case {i}");
        }
        assert_eq!(of(&|h| h.file_len = FILE_HEADER_BYTES as u64), Ok(()));
        let mut b = sample().encode();
        b[13] = 0;
        let crc = crc32fast::hash(&b[..CRC_AT]);
        b[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        let e = FileHeader::parse(&b, FileKind::Segment).unwrap_err();
        assert_eq!(e.to_string(), "bad field: expected header length 256");
    }
}
