//! Reading files of a log with `pread`, for recovery and tools: an unreadable block is a finding, never a crash.

use std::io;
use std::path::Path;

use crate::format::file_header::{FileHeader, FileKind, HeaderError};
use crate::format::record::RecordHeader;
use crate::format::scan::{Found, Known, Label, Scanner, Verdict, judge};
use crate::limits::{BLOCK, FILE_HEADER_BYTES, RECORD_ALIGN};
use crate::vfs::{File, Vfs, read_full};

/// A file's bytes, with what could not be read replaced by zeros.
#[derive(Debug, Default)]
pub struct FileBytes {
    pub bytes: Vec<u8>,
    /// Offsets of blocks that gave an I/O error.
    pub unreadable: Vec<u64>,
}

impl FileBytes {
    /// Whether there are only zeros behind the headers, all of which could be read. Bytes of an earlier generation of the file do not count:
    /// what stands behind an appended group must not be able to pass for another one.
    pub(super) fn is_untouched(&self) -> bool {
        self.unreadable.is_empty() && self.bytes.get(FILE_HEADER_BYTES..).is_some_and(|b| b.iter().all(|b| *b == 0))
    }
}

/// How often a block is read before it counts as unreadable: a device or a network may fail once.
const TRIES: usize = 3;

fn read_block(f: &dyn File, block: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut last = read_full(f, block, offset);
    for _ in 1..TRIES {
        if last.is_ok() {
            break;
        }
        last = read_full(f, block, offset);
    }
    last
}

/// Reads the first `len` bytes of `f` into `into` (reused between files).
///
/// # Errors
/// Only when the length cannot be had or memory bounds are exceeded; a block that cannot be read is noted.
pub fn read_file(f: &dyn File, into: &mut FileBytes) -> io::Result<()> {
    let len = usize::try_from(f.len()?).map_err(|_| io::Error::other("file too large"))?;
    into.unreadable.clear();
    into.bytes.clear();
    into.bytes.resize(len, 0);
    const STEP: usize = 1 << 20;
    let mut at = 0usize;
    while at < len {
        let n = STEP.min(len - at);
        let Some(dst) = into.bytes.get_mut(at..at + n) else { break };
        match read_full(f, dst, at as u64) {
            Ok(got) if got == n => {}
            Ok(_) => break,
            Err(_) => {
                for (i, block) in dst.chunks_mut(BLOCK).enumerate() {
                    let offset = (at + i * BLOCK) as u64;
                    if read_block(f, block, offset).is_err() {
                        block.fill(0);
                        into.unreadable.push(offset);
                    }
                }
            }
        }
        at += n;
    }
    Ok(())
}

/// The first good copy of a file's header and what is wrong with the others.
pub type HeaderCopies = Result<(FileHeader, [Option<HeaderError>; 2]), [HeaderError; 2]>;

/// The header of a file, read on its own, with the file's length.
///
/// # Errors
/// Of opening the file; bad headers are the inner error.
pub fn read_header(vfs: &dyn Vfs, path: &Path, kind: FileKind) -> io::Result<(u64, HeaderCopies)> {
    let f = vfs.open(path, false)?;
    Ok((f.len()?, header_of(&*f, kind)))
}

/// The header of an open file.
pub fn header_of(f: &dyn File, kind: FileKind) -> HeaderCopies {
    let mut head = vec![0u8; FILE_HEADER_BYTES];
    let mut n = 0;
    for block in head.chunks_mut(BLOCK) {
        n += read_block(f, block, n as u64).unwrap_or(BLOCK);
    }
    head.truncate(n.min(FILE_HEADER_BYTES));
    FileHeader::parse_file(&head, kind)
}

/// Scans and judges the records of one file of this kind.
pub fn scan(file: &FileBytes, kind: FileKind, salt: u64, known: Known) -> Verdict {
    let to = known.declared.map_or(file.bytes.len() as u64, |d| d.0.min(file.bytes.len() as u64));
    let found: Vec<Found> = Scanner::new(&file.bytes, salt, FILE_HEADER_BYTES as u64, to).only(kind).collect();
    judge(known, &found)
}

/// [`scan`] of a segment that a live server may be appending to: `bytes` was read while groups were written, so that a group may
/// be there in part, or be absent although one behind it is there.
///
/// Groups are written in the order of their offsets. Whatever stands in front of a record that the first read has seen is
/// complete in a second one, so when the two differ, the second is judged, up to the last record that the first has seen.
///
/// # Errors
/// As [`read_file`].
pub fn scan_growing(f: &dyn File, bytes: &mut FileBytes, salt: u64, known: Known) -> io::Result<Verdict> {
    let v = scan(bytes, FileKind::Segment, salt, known);
    if v.findings.is_empty() {
        return Ok(v);
    }
    let mut again = FileBytes::default();
    read_file(f, &mut again)?;
    if again.bytes == bytes.bytes {
        return Ok(v);
    }
    let kept = v.records.iter().map(|r| r.offset + r.record_len() as u64);
    let refused = v.findings.iter().filter(|f| matches!(f.label, Label::BehindTorn | Label::Repeated)).map(|f| f.to);
    let seen = kept.chain(refused).max().unwrap_or(FILE_HEADER_BYTES as u64);
    again.bytes.truncate(usize::try_from(seen).unwrap_or(usize::MAX));
    *bytes = again;
    Ok(scan(bytes, FileKind::Segment, salt, known))
}

/// The salt of a file whose header is lost: that of the first record that vouches for itself and its place.
pub fn salt_without_header(file: &FileBytes) -> Option<u64> {
    let mut at = FILE_HEADER_BYTES;
    while let Some(rest) = file.bytes.get(at..) {
        if rest.len() < crate::limits::RECORD_HEADER_BYTES {
            return None;
        }
        if let Some(h) = RecordHeader::parse(rest)
            && h.offset == at as u64
        {
            return Some(h.salt);
        }
        at += BLOCK;
    }
    None
}

/// Where bytes behind `end`, the last group of a file with this salt, begin that neither zeros nor records explain: a recycled file holds
/// what an older generation left, and groups behind a declared end are findings of their own.
pub fn unexplained(file: &FileBytes, end: u64, salt: u64) -> Option<u64> {
    let from = usize::try_from(end).ok()?;
    let rest = file.bytes.get(from..)?;
    let first = rest.iter().position(|b| *b != 0)?;
    let is_record = |i: usize| rest.get(i..).and_then(RecordHeader::parse).is_some_and(|h| h.salt != salt || h.offset == (from + i) as u64);
    let explained = (first / RECORD_ALIGN * RECORD_ALIGN..rest.len()).step_by(RECORD_ALIGN).any(is_record);
    (!explained).then_some(end + first as u64)
}
