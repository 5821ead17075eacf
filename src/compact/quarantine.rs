//! Slices that could not be turned into Parquet: kept with their bytes and the reason, counted, listed, replayable.
//!
//! One file a slice: a line of JSON, then the record as it stood in the log (header and payload).

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::{Hour, Sequence};
use crate::vfs::{Vfs, read_all, write_durable};
use crate::wal::files;

/// The first line of a quarantined slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    pub sequence: Sequence,
    pub database: String,
    pub table: String,
    /// Hours since the epoch.
    pub hour: Hour,
    pub rows: u64,
    pub plan: u64,
    pub reason: String,
    /// Bytes of the record behind this line.
    pub bytes: u64,
}

/// One file of the quarantine.
#[derive(Clone, Debug)]
pub struct Found {
    pub path: PathBuf,
    pub entry: Quarantined,
}

/// Writes one slice durably; a slice that is there already stays as it is.
///
/// # Errors
/// Of the filesystem.
pub fn put(vfs: &dyn Vfs, dir: &Path, q: &Quarantined, record: &[u8]) -> io::Result<()> {
    let dir = dir.join(files::QUARANTINE);
    let mut table: String = crate::batch::escape_table(&q.table).chars().take(100).collect();
    if table != q.table {
        // Cut or escaped, it may be that of another table.
        table = format!("{table}-{:08x}", crc32fast::hash(q.table.as_bytes()));
    }
    let name = format!("{:020}-{}-{table}-{}.slice", q.sequence, q.database, q.hour);
    if vfs.open(&dir.join(&name), false).is_ok() {
        // Whoever wrote it may have ended before the sync of its name.
        return vfs.sync_dir(&dir);
    }
    let mut line = serde_json::to_vec(q).map_err(io::Error::other)?;
    line.push(b'\n');
    write_durable(vfs, &dir, &name, &[&line, record])
}

/// Everything in the quarantine of the log in `dir`, in order of sequences.
///
/// # Errors
/// Of the filesystem, or a file that is not a quarantined slice (named).
pub fn list(vfs: &dyn Vfs, dir: &Path) -> io::Result<Vec<Found>> {
    let dir = dir.join(files::QUARANTINE);
    let mut out = Vec::new();
    let entries = match vfs.list(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(out),
        x => x?,
    };
    for e in entries.into_iter().filter(|e| e.name.ends_with(".slice")) {
        let path = dir.join(&e.name);
        let (entry, _) = read(vfs, &path)?;
        out.push(Found { path, entry });
    }
    Ok(out)
}

/// One slice: its line and the record's bytes.
///
/// # Errors
/// Of the filesystem, or a file that is not a quarantined slice (named).
pub fn read(vfs: &dyn Vfs, path: &Path) -> io::Result<(Quarantined, Vec<u8>)> {
    let bytes = read_all(&*vfs.open(path, false)?)?;
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: not a quarantined slice: {why}", path.display()));
    let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| bad("expected a line of JSON first".into()))?;
    let (line, rest) = bytes.split_at(end);
    let entry = serde_json::from_slice(line).map_err(|e| bad(e.to_string()))?;
    Ok((entry, rest.get(1..).unwrap_or_default().to_vec()))
}
