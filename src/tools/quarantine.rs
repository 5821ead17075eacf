//! `arc quarantine list|show`: slices that could not be turned into Parquet.

use std::io;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::rows::Rows;
use super::{ToolError, entries};
use crate::compact::quarantine::{Quarantined, read};
use crate::format::payload::PayloadView;
use crate::format::record::RecordHeader;
use crate::limits::RECORD_HEADER_BYTES;
use crate::types::{Sequence, hour_of};
use crate::vfs::Vfs;
use crate::wal::files;

/// Bytes of an undecodable record that are shown.
const SHOWN: usize = 256;

/// The quarantine of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Quarantine {
    pub slices: Vec<Line>,
    pub rows: u64,
    pub bytes: u64,
    /// Files that are no quarantined slice, or cannot be read.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    pub file: String,
    #[serde(flatten)]
    pub entry: Quarantined,
}

/// One slice with what can be said of its record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Slice {
    #[serde(flatten)]
    pub line: Line,
    /// Its rows as `arc wal dump` prints them.
    pub decoded: Option<Vec<Value>>,
    /// Why they cannot be decoded.
    pub error: Option<String>,
    /// The first bytes of the record, where its rows cannot be decoded.
    pub hex: Option<String>,
}

/// Everything in the quarantine of the log in `dir`, in order of sequences.
///
/// # Errors
/// [`ToolError`]; a single bad file is a problem of the result.
pub fn list(vfs: &dyn Vfs, dir: &Path) -> Result<Quarantine, ToolError> {
    let mut q = Quarantine::default();
    each(vfs, dir, "", &mut |found| match found {
        Ok((line, _)) => {
            q.rows += line.entry.rows;
            q.bytes += line.entry.bytes;
            q.slices.push(line);
        }
        Err(e) => q.problems.push(e),
    })?;
    Ok(q)
}

/// The slices of one sequence, and the files of that sequence that are none.
///
/// # Errors
/// [`ToolError`]
pub fn show(vfs: &dyn Vfs, dir: &Path, sequence: Sequence) -> Result<(Vec<Slice>, Vec<String>), ToolError> {
    let (mut slices, mut problems) = (Vec::new(), Vec::new());
    each(vfs, dir, &format!("{sequence:020}-"), &mut |found| match found {
        Ok((line, record)) => {
            let (decoded, error) = match decode(&line.entry, &record) {
                Ok(rows) => (Some(rows), None),
                Err(e) => (None, Some(e)),
            };
            let hex = decoded.is_none().then(|| record.iter().take(SHOWN).map(|b| format!("{b:02x}")).collect());
            slices.push(Slice { line, decoded, error, hex });
        }
        Err(e) => problems.push(e),
    })?;
    Ok((slices, problems))
}

pub(super) type Found = Result<(Line, Vec<u8>), String>;

pub(super) fn each(vfs: &dyn Vfs, dir: &Path, prefix: &str, f: &mut dyn FnMut(Found)) -> Result<(), ToolError> {
    entries(vfs, dir)?;
    let dir = dir.join(files::QUARANTINE);
    let all = match vfs.list(&dir) {
        // A copy need not have it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        x => x.map_err(ToolError::io(dir.display().to_string()))?,
    };
    for e in all.into_iter().filter(|e| e.name.starts_with(prefix) && e.name.ends_with(".slice")) {
        match read(vfs, &dir.join(&e.name)) {
            Ok((entry, record)) => f(Ok((Line { file: e.name, entry }, record))),
            Err(x) if x.kind() == io::ErrorKind::InvalidData => f(Err(x.to_string())),
            Err(x) => f(Err(format!("{}: {x}", dir.join(&e.name).display()))),
        }
    }
    Ok(())
}

/// The rows of the slice's table and hour; all rows of a record that was set aside whole, because no table could be told.
fn decode(entry: &Quarantined, record: &[u8]) -> Result<Vec<Value>, String> {
    let header = RecordHeader::parse(record).ok_or("expected a record header, found none")?;
    let len = header.payload_len as usize;
    let payload = record.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + len);
    let payload = payload.ok_or_else(|| format!("expected {len} bytes of payload, found {}", record.len() - RECORD_HEADER_BYTES))?;
    let found = crc32fast::hash(payload);
    if found != header.payload_crc {
        return Err(format!("expected payload CRC {:08x}, found {found:08x}", header.payload_crc));
    }
    let p = PayloadView::parse(payload).map_err(|e| format!("payload {e}"))?;
    let batch = p.to_batch()?;
    let mut rows = Vec::new();
    let mut line = String::new();
    let known = batch.tables().iter().any(|t| t.table == entry.table);
    for t in batch.tables().iter().filter(|t| !known || t.table == entry.table) {
        let of = Rows::new(batch.database(), t);
        for (i, _) in t.time.iter().enumerate().filter(|(_, t)| !known || hour_of(**t) == entry.hour) {
            line.clear();
            of.put(&mut line, header.sequence, i);
            rows.push(serde_json::from_str(&line).map_err(|e| format!("row {i}: {e}"))?);
        }
    }
    Ok(rows)
}
