//! The side directory and the quarantine: what they hold of rows, for all commands.
//!
//! A side segment may be all that is left of acknowledged rows, and so may a slice of the quarantine. What was set aside of damaged and
//! torn places is evidence: rows that were lost, or that nothing on disk shows to have been acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::compact::quarantine;
use crate::format::file_header::FileKind;
use crate::format::manifest::{PlanOutput, PlanSchema};
use crate::format::payload::PayloadView;
use crate::format::record::{RecordHeader, RecordKind};
use crate::limits::{RECORD_ALIGN, RECORD_HEADER_BYTES};
use crate::types::{Hour, Sequence};
use crate::vfs::{Vfs, read_all};
use crate::wal::files;
use crate::wal::manifest::ManifestState;
use crate::wal::reader::read_header;
use crate::wal::side::read_side;

/// A side segment: the records of a file that cannot be published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SideLine {
    /// Relative to the log's directory.
    pub file: String,
    pub bytes: u64,
    /// `waits` (its rows are nowhere else, or in the log), `missing` (the manifest names it, it is not there), `done` (its output is
    /// committed), `unfinished` (its plan is still open, the log has its rows), `stray` (no entry of the manifest names it).
    pub state: &'static str,
    pub plan: u64,
    pub output: u32,
    pub database: Option<String>,
    pub table: Option<String>,
    pub hour: Option<Hour>,
    /// By the plan.
    pub rows: Option<u64>,
    pub first_seq: Option<Sequence>,
    pub last_seq: Option<Sequence>,
}

/// A file of the side directory that is no side segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptLine {
    pub file: String,
    pub bytes: u64,
    /// Whole write records in it.
    pub records: u64,
    pub first_seq: Option<Sequence>,
    pub last_seq: Option<Sequence>,
}

/// Output and schema of a side segment by its key.
fn of_plan(state: &ManifestState, plan: u64, output: u32) -> Option<(&PlanOutput, &PlanSchema)> {
    state.deferred_file(plan, output)
}

fn state_of(state: &ManifestState, plan: u64, output: u32) -> &'static str {
    if state.deferred.contains_key(&(plan, output)) {
        return "waits";
    }
    if state.committed_late.contains(&(plan, output)) {
        return "done";
    }
    match state.plans.get(&plan) {
        Some(p) if p.commits.contains_key(&output) => "done",
        Some(p) if !p.shipped => "unfinished",
        _ => "stray",
    }
}

fn entries(vfs: &dyn Vfs, dir: &Path) -> io::Result<Vec<crate::vfs::DirEntry>> {
    match vfs.list(dir) {
        // A copy need not have it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        x => Ok(x?.into_iter().filter(|e| !e.is_dir).collect()),
    }
}

/// The side segments of the log in `dir`, those that should be there included, by plan and output.
///
/// # Errors
/// When the directory cannot be listed.
pub fn side_lines(vfs: &dyn Vfs, dir: &Path, state: &ManifestState) -> io::Result<Vec<SideLine>> {
    let there: BTreeMap<(u64, u32), u64> =
        entries(vfs, &dir.join(files::SIDE))?.into_iter().filter_map(|e| Some((files::parse_deferred(&e.name)?, e.len))).collect();
    let keys: BTreeSet<(u64, u32)> = there.keys().chain(state.deferred.keys()).copied().collect();
    let mut out = Vec::new();
    for (plan, output) in keys {
        let known = of_plan(state, plan, output);
        let bytes = there.get(&(plan, output)).copied();
        let file = format!("{}/{}", files::SIDE, files::deferred_name(plan, output));
        let first = || read_header(vfs, &dir.join(&file), FileKind::Segment).ok()?.1.ok().map(|(h, _)| h.first_sequence);
        out.push(SideLine {
            state: if bytes.is_some() { state_of(state, plan, output) } else { "missing" },
            bytes: bytes.unwrap_or(0),
            plan,
            output,
            database: known.map(|(_, s)| s.database.clone()),
            table: known.map(|(_, s)| s.table.clone()),
            hour: known.map(|(o, _)| o.hour),
            rows: known.map(|(o, _)| o.rows),
            first_seq: known.map(|(o, _)| o.first_sequence).or_else(first),
            last_seq: known.map(|(o, _)| o.last_sequence),
            file,
        });
    }
    Ok(out)
}

/// Every other file of the side directory, with the records in it that can be read.
///
/// # Errors
/// When the directory cannot be listed.
pub fn kept_lines(vfs: &dyn Vfs, dir: &Path) -> io::Result<Vec<KeptLine>> {
    let mut out = Vec::new();
    for e in entries(vfs, &dir.join(files::SIDE))?.into_iter().filter(|e| files::parse_deferred(&e.name).is_none()) {
        let mut line = KeptLine { file: format!("{}/{}", files::SIDE, e.name), bytes: e.len, records: 0, first_seq: None, last_seq: None };
        let bytes = vfs.open(&dir.join(&line.file), false).and_then(|f| read_all(&*f)).unwrap_or_default();
        each_record(&bytes, &mut |h, _| {
            line.records += 1;
            line.first_seq = Some(line.first_seq.map_or(h.sequence, |f| f.min(h.sequence)));
            line.last_seq = Some(line.last_seq.map_or(h.sequence, |l| l.max(h.sequence)));
        });
        out.push(line);
    }
    Ok(out)
}

/// Whole write records among any bytes, wherever they stand.
pub(super) fn each_record(bytes: &[u8], f: &mut dyn FnMut(&RecordHeader, &[u8])) {
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|r| r.len() >= RECORD_HEADER_BYTES) {
        let record = RecordHeader::parse(rest).and_then(|h| {
            let payload = rest.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES.checked_add(h.payload_len as usize)?)?;
            (crc32fast::hash(payload) == h.payload_crc).then_some((h, payload))
        });
        match record {
            Some((h, payload)) => {
                if h.kind == RecordKind::Write {
                    f(&h, payload);
                }
                at += h.record_len();
            }
            None => at += RECORD_ALIGN,
        }
    }
}

/// Which rows of a record a file outside of the log's segments stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Database and table; all of the record's tables without it.
    pub(super) table: Option<(String, String)>,
    /// All hours without it.
    pub(super) hour: Option<Hour>,
}

impl Wanted {
    pub(super) fn is_table(&self, database: &str, table: &str) -> bool {
        self.table.as_ref().is_none_or(|(d, t)| d == database && t == table)
    }
}

/// A record outside of the log's segments.
#[derive(Clone, Debug)]
pub(super) struct Outside {
    /// Relative to the log's directory.
    pub(super) file: Arc<str>,
    pub(super) header: RecordHeader,
    /// Where the payload begins in the file.
    pub(super) at: u64,
    pub(super) wanted: Wanted,
}

impl Outside {
    /// The payload, read again; None when the file has gone or changed.
    pub(super) fn payload(&self, vfs: &dyn Vfs, dir: &Path) -> Option<Vec<u8>> {
        let f = vfs.open(&dir.join(&*self.file), false).ok()?;
        let mut payload = vec![0; self.header.payload_len as usize];
        let n = crate::vfs::read_full(&*f, &mut payload, self.at).ok()?;
        (n == payload.len() && crc32fast::hash(&payload) == self.header.payload_crc).then_some(payload)
    }
}

/// Records outside of the segments by sequence.
pub(super) type BySequence = BTreeMap<Sequence, Vec<Outside>>;

/// Records that only side segments and the quarantine may hold; and why some cannot be read.
pub(super) fn outside(vfs: &dyn Vfs, dir: &Path, state: &ManifestState) -> io::Result<(BySequence, Vec<String>)> {
    let (mut records, mut problems) = (BySequence::new(), Vec::new());
    // Without a manifest nothing tells which of them are needed: all are shown, as far as the log does not have their sequences.
    let known = state.epoch > 0;
    for line in side_lines(vfs, dir, state)? {
        match line.state {
            "missing" => {
                problems.push(format!("{}: expected the side segment with {} rows, found no such file", line.file, line.rows.unwrap_or(0)))
            }
            "waits" => {}
            _ if known => continue,
            _ => {}
        }
        let side = match read_side(vfs, &dir.join(&line.file)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            x => x?,
        };
        for b in &side.bad {
            problems.push(format!("{} offset {}: expected {}, found {}", line.file, b.from, b.expected, b.found));
        }
        let file: Arc<str> = line.file.as_str().into();
        let wanted = Wanted { table: line.database.zip(line.table), hour: line.hour };
        for header in &side.records {
            let at = header.offset + RECORD_HEADER_BYTES as u64;
            let r = Outside { file: Arc::clone(&file), header: *header, at, wanted: wanted.clone() };
            records.entry(header.sequence).or_default().push(r);
        }
    }
    for e in entries(vfs, &dir.join(files::QUARANTINE))?.into_iter().filter(|e| e.name.ends_with(".slice")) {
        let file = format!("{}/{}", files::QUARANTINE, e.name);
        let path = dir.join(&file);
        match quarantine::read(vfs, &path) {
            Ok((q, record)) => {
                let whole = RecordHeader::parse(&record).filter(|h| record.len() >= RECORD_HEADER_BYTES + h.payload_len as usize);
                let Some(header) = whole else {
                    problems.push(format!("{file}: expected the record of sequence {}, found none", q.sequence));
                    continue;
                };
                let at = e.len - record.len() as u64 + RECORD_HEADER_BYTES as u64;
                let all = q.table == "unknown";
                let wanted = Wanted { table: (!all).then_some((q.database, q.table)), hour: (!all).then_some(q.hour) };
                records.entry(q.sequence).or_default().push(Outside { file: file.into(), header, at, wanted });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => problems.push(e.to_string()),
        }
    }
    Ok((records, problems))
}

/// Rows of the table and hour that the record has.
pub(super) fn rows_of(p: &PayloadView<'_>, wanted: &Wanted) -> u64 {
    let tables = p.index.tables.iter().filter(|t| wanted.is_table(&p.index.database, &t.table));
    tables.flat_map(|t| &t.hours).filter(|(h, _)| wanted.hour.is_none_or(|w| w == *h)).map(|(_, n)| u64::from(*n)).sum()
}
