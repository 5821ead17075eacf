//! Reading side segments: the records of an output that cannot be published.

use std::io;
use std::path::Path;

use super::reader::{FileBytes, HeaderCopies, header_of, read_file, salt_without_header};
use crate::format::file_header::FileKind;
use crate::format::record::{RecordHeader, RecordKind};
use crate::format::scan::{Found, Scanner};
use crate::limits::FILE_HEADER_BYTES;
use crate::vfs::Vfs;

/// A place of a side segment that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPlace {
    pub from: u64,
    pub to: u64,
    pub expected: String,
    pub found: String,
}

/// A side segment as far as it can be read.
#[derive(Debug)]
pub struct SideSegment {
    pub bytes: Vec<u8>,
    pub header: HeaderCopies,
    /// Of the header or, where both copies are lost, of the first record.
    pub salt: u64,
    /// Write records whose CRCs are right, in the order of the file.
    pub records: Vec<RecordHeader>,
    /// In the order of the file: whatever is not a record is damage, because nothing in it is rounded.
    pub bad: Vec<BadPlace>,
}

impl SideSegment {
    /// The payload of one of [`Self::records`].
    pub fn payload(&self, r: &RecordHeader) -> &[u8] {
        Scanner::payload(&self.bytes, r)
    }
}

/// Reads the side segment at `path`. It is not mapped: a block that cannot be read must not end the process.
///
/// # Errors
/// When the file cannot be opened; damage is in the result.
pub fn read_side(vfs: &dyn Vfs, path: &Path) -> io::Result<SideSegment> {
    let file = vfs.open(path, false)?;
    let header = header_of(&*file, FileKind::Segment);
    let mut read = FileBytes::default();
    read_file(&*file, &mut read)?;
    let len = read.bytes.len() as u64;
    let salt = header.as_ref().map_or_else(|_| salt_without_header(&read).unwrap_or(0), |(h, _)| h.salt);
    let mut bad = Vec::new();
    let mut declared = len;
    match &header {
        Ok((h, _)) => {
            declared = h.file_len;
            if len < declared {
                bad.push(place(len, declared, format!("{declared} bytes"), format!("{len} bytes: it was cut short")));
            }
        }
        Err([a, b]) => bad.push(place(0, FILE_HEADER_BYTES as u64, "a segment header".into(), format!("{a}; second copy: {b}"))),
    }
    let mut records = Vec::new();
    for found in Scanner::new(&read.bytes, salt, FILE_HEADER_BYTES as u64, declared.min(len)) {
        match found {
            Found::Record(r) if r.kind == RecordKind::Write => records.push(r),
            Found::Record(r) => {
                let to = r.offset + r.record_len() as u64;
                bad.push(place(r.offset, to, "a write record".into(), format!("a {} record", r.kind.name())));
            }
            Found::Bad { from, to, why } => {
                let unreadable = read.unreadable.iter().any(|u| (from..to).contains(u));
                let found = if unreadable { format!("an I/O error while reading ({})", why.found()) } else { why.found() };
                bad.push(place(from, to, why.expected(), found));
            }
        }
    }
    if len > declared {
        bad.push(place(declared, len, format!("{declared} bytes"), format!("{len} bytes: {} too many", len - declared)));
    }
    Ok(SideSegment { bytes: read.bytes, header, salt, records, bad })
}

fn place(from: u64, to: u64, expected: String, found: String) -> BadPlace {
    BadPlace { from, to, expected, found }
}
