//! `arc wal verify`: what a recovery would find, without doing it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::lake::{self, LakeReport};
use super::quarantine;
use super::side::{KeptLine, SideLine, Wanted, kept_lines, rows_of, side_lines};
use super::{MOST_LOOKS, ToolError, entries, pause};
use crate::format::file_header::FileKind;
use crate::format::payload::PayloadView;
use crate::format::record::RecordHeader;
use crate::format::scan::Known;
use crate::limits::{BLOCK, RECORD_HEADER_BYTES};
use crate::types::{LogId, Sequence};
use crate::vfs::Vfs;
use crate::wal::files;
use crate::wal::manifest::{ManifestState, load};
use crate::wal::reader::{FileBytes, header_of, read_file, read_header, scan, unexplained};
use crate::wal::recover::{ManifestSummary, Progress, Report, inspect};
use crate::wal::side::read_side;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedSegment {
    pub id: u64,
    /// The name of its file, which has the id in hexadecimal.
    pub file: String,
    pub first_seq: Sequence,
    pub last_seq: Sequence,
    pub end: u64,
    /// As in [`crate::wal::recover::SegmentReport::label`].
    pub label: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedFinding {
    /// A row of the decision table; `header_copy` (one of a file's two header copies is bad), `payload` (the bytes are those that were
    /// written, and cannot be decoded), `deferred` (a side segment is not as it was written, or is not there), `stray` (a side segment that
    /// no entry of the manifest names), `quarantine` (a slice that cannot be read) or `behind_end` (bytes behind the last group).
    pub label: &'static str,
    /// 0 = the manifest, or a side segment named in `expected`.
    pub segment: u64,
    /// The file that the offset is in, relative to the log's directory.
    pub file: String,
    pub offset: u64,
    pub expected: String,
    pub found: String,
    #[serde(skip)]
    problem: bool,
}

/// Sequences that were acknowledged and cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub first: Sequence,
    pub last: Sequence,
}

/// Rows of the records that a recovery would keep, whether they are in Parquet already or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableRows {
    pub database: String,
    pub table: String,
    pub rows: u64,
    /// Those above the shipped watermark.
    pub unshipped_rows: u64,
    /// Rows that wait in side segments for their file: the log itself may have released them.
    pub side_rows: u64,
}

/// As the manifest says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ManifestMarks {
    pub planned: Sequence,
    pub shipped: Sequence,
    pub released: Sequence,
}

/// What `arc wal verify --json` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub log_uuid: Option<String>,
    /// `clean`, `torn`, `damaged` or `refused`. Torn is clean as far as exit codes go; the lake is not part of it.
    pub verdict: &'static str,
    pub segments: Vec<VerifiedSegment>,
    pub findings: Vec<VerifiedFinding>,
    pub would_recover_through: Sequence,
    pub tables: Vec<TableRows>,
    /// Why a server would not start here.
    pub refusals: Vec<String>,
    pub missing: Vec<Missing>,
    /// Side segments.
    pub side: Vec<SideLine>,
    /// Other files of the side directory.
    pub kept: Vec<KeptLine>,
    pub quarantined_rows: u64,
    pub watermarks: ManifestMarks,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lake: Option<LakeReport>,
}

impl Verified {
    /// Whether there is nothing for a person to look at.
    pub fn clean(&self) -> bool {
        self.refusals.is_empty() && !self.findings.iter().any(|f| f.problem) && self.lake.as_ref().is_none_or(LakeReport::clean)
    }
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    Log(Progress),
    Lake(Progress),
}

type Counts = BTreeMap<(Arc<str>, Arc<str>), (u64, u64)>;

/// One look at the log.
struct Look {
    report: Report,
    counts: Counts,
    extra: Extra,
}

/// What a recovery does not look at.
#[derive(Default)]
struct Extra {
    log: Option<LogId>,
    findings: Vec<VerifiedFinding>,
    side: Vec<SideLine>,
    kept: Vec<KeptLine>,
    /// Rows that wait in side segments, by database and table.
    side_rows: BTreeMap<(Arc<str>, Arc<str>), u64>,
    /// Rows in the quarantine.
    quarantined: u64,
}

/// Looks at the log in `dir`, and at the lake `lake`.
///
/// A live server changes the directory meanwhile. Within segments the scanner sees to it that nothing half written counts;
/// refusals, and anything found while the listing changed, may come of files that were made, replaced or released during the
/// look, so they are believed only when a second look finds the same.
///
/// # Errors
/// [`ToolError`]; whatever is wrong inside the files is in the result.
pub fn verify(vfs: &dyn Vfs, dir: &Path, lake: Option<&Path>, progress: &mut dyn FnMut(Stage)) -> Result<Verified, ToolError> {
    let look = settled(vfs, dir, progress)?;
    let checked = match (lake, look.report.log, &look.report.manifest) {
        (Some(root), Some(log), Some(_)) => Some(check_lake(vfs, dir, root, log, &look.report.state, progress)?),
        (Some(root), _, _) => {
            // Without a manifest nothing in the lake can be judged: the refusal says so. A mistyped path is still told.
            vfs.list(root).map_err(ToolError::io(format!("lake {}", root.display())))?;
            None
        }
        _ => None,
    };
    let mut v = summary(look);
    v.lake = checked;
    Ok(v)
}

fn settled(vfs: &dyn Vfs, dir: &Path, progress: &mut dyn FnMut(Stage)) -> Result<Look, ToolError> {
    let mut previous: Option<Vec<String>> = None;
    let mut look_number = 0;
    loop {
        let last = look_number + 1 == MOST_LOOKS;
        let before = entries(vfs, dir)?;
        match look_once(vfs, dir, progress) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !last => {}
            Err(e) => return Err(ToolError::io(dir.display().to_string())(e)),
            Ok(mut look) => {
                let problems = look.problems();
                let quiet = look.report.refusals.is_empty() && entries(vfs, dir)? == before;
                let again = previous.as_ref().is_some_and(|p| problems.iter().all(|x| p.contains(x)));
                if problems.is_empty() || quiet || again {
                    return Ok(look);
                }
                if last {
                    // Never the same twice: what two looks do not share was a file on the move.
                    look.keep_only(&previous.unwrap_or_default());
                    return Ok(look);
                }
                previous = Some(problems);
            }
        }
        pause(look_number);
        look_number += 1;
    }
}

fn look_once(vfs: &dyn Vfs, dir: &Path, progress: &mut dyn FnMut(Stage)) -> io::Result<Look> {
    // Records are counted as they are met. A manifest that cannot be read is a matter of the report.
    let shipped = load(vfs, dir).ok().flatten().map_or(0, |m| m.state.shipped);
    let mut counts = Counts::new();
    let mut extra = Extra::default();
    let report = inspect(
        vfs,
        dir,
        // The columns as well: the CRC says that the bytes are those that were written, not that they can be read.
        &mut |v| match PayloadView::parse(v.payload).map_err(|e| e.to_string()).and_then(|p| p.to_batch().map(|_| p)) {
            Ok(p) => {
                for t in p.index.tables {
                    let (rows, unshipped) = counts.entry((Arc::clone(&p.index.database), t.table)).or_default();
                    *rows += u64::from(t.rows);
                    *unshipped += if v.header.sequence > shipped { u64::from(t.rows) } else { 0 };
                }
            }
            Err(found) => extra.findings.push(VerifiedFinding {
                label: "payload",
                segment: v.segment,
                file: files::segment_name(v.segment),
                offset: v.header.offset,
                expected: format!("a payload of version 1 in sequence {}", v.header.sequence),
                found,
                problem: true,
            }),
        },
        &mut |p| progress(Stage::Log(p)),
    )?;
    extra.log = report.log;
    for s in &report.segments {
        header_copies(vfs, &s.path, FileKind::Segment, s.id, &mut extra.findings)?;
        extra.findings.extend(s.behind.map(|offset| behind_end(s.id, report.file_name(s.id), offset)));
    }
    if let Some(m) = &report.manifest {
        header_copies(vfs, &m.path, FileKind::Manifest, 0, &mut extra.findings)?;
        manifest(vfs, m, &mut extra)?;
    }
    side_segments(vfs, dir, &report.state, &mut extra)?;
    quarantined(vfs, dir, &mut extra)?;
    extra.kept = kept_lines(vfs, dir)?;
    extra.findings.extend(report.notes.iter().map(|note| VerifiedFinding {
        label: "unused",
        segment: 0,
        file: String::new(),
        offset: 0,
        expected: "a log with nothing missing, as it is".into(),
        found: note.clone(),
        problem: false,
    }));
    Ok(Look { report, counts, extra })
}

/// Checks the side segments: those of deferred outputs hold rows that the log itself may have released.
fn side_segments(vfs: &dyn Vfs, dir: &Path, state: &ManifestState, look: &mut Extra) -> io::Result<()> {
    for line in side_lines(vfs, dir, state)? {
        let (file, waits) = (line.file.clone(), matches!(line.state, "waits" | "missing"));
        let what = match (&line.table, line.rows) {
            (Some(t), Some(n)) => format!("{n} rows of {}/{t}", line.database.as_deref().unwrap_or_default()),
            _ => "records".into(),
        };
        let mut find = |label, offset, expected, found, problem| {
            look.findings.push(VerifiedFinding { label, segment: 0, file: file.clone(), offset, expected, found, problem });
        };
        let side = match read_side(vfs, &dir.join(&line.file)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Its commit comes before its removal: a live server may have done both since the manifest was read.
                let still = |m: &ManifestState| m.deferred.contains_key(&(line.plan, line.output));
                if waits && !matches!(load(vfs, dir), Ok(Some(m)) if !still(&m.state)) {
                    find("deferred", 0, format!("a side segment with {what}"), "no such file".into(), true);
                }
                look.side.push(line);
                continue;
            }
            x => x?,
        };
        if line.state == "stray" {
            find("stray", 0, "an entry of the manifest that names this side segment".into(), "none".into(), true);
        }
        for b in &side.bad {
            find("deferred", b.from, b.expected.clone(), b.found.clone(), waits);
        }
        if let Ok((h, bad)) = &side.header {
            if h.id != line.plan || look.log.is_some_and(|log| log != h.log) {
                let found = format!("plan {} of log {}", h.id, h.log);
                find("deferred", 0, format!("a header of plan {} of this log", line.plan), found, waits);
            }
            for (i, why) in bad.iter().enumerate().filter_map(|(i, b)| Some((i, b.as_ref()?))) {
                find("header_copy", (i * BLOCK) as u64, "a copy of the header".into(), why.to_string(), true);
            }
        }
        let wanted = Wanted { table: line.database.clone().zip(line.table.clone()), hour: line.hour };
        let mut rows = 0;
        for r in &side.records {
            let parsed = PayloadView::parse(side.payload(r)).map_err(|e| e.to_string());
            match parsed.and_then(|p| p.to_batch().map(|_| p)) {
                Ok(p) => rows += rows_of(&p, &wanted),
                Err(e) => find("payload", r.offset, format!("a payload of version 1 in sequence {}", r.sequence), e, true),
            }
        }
        if waits {
            let key = (line.database.as_deref().unwrap_or_default().into(), line.table.as_deref().unwrap_or_default().into());
            look.side_rows.entry(key).and_modify(|n| *n += rows).or_insert(rows);
            // Places that are named already explain it.
            if let Some(expected) = line.rows.filter(|n| *n != rows && side.bad.is_empty()) {
                find("deferred", 0, format!("{expected} rows"), format!("{rows} rows"), true);
            }
        }
        look.side.push(line);
    }
    Ok(())
}

/// Checks that the records of the quarantine are those that were written to it. What cannot be decoded is there for that reason.
fn quarantined(vfs: &dyn Vfs, dir: &Path, look: &mut Extra) -> io::Result<()> {
    let mut check = |found: quarantine::Found| {
        let (file, expected, found) = match found {
            Err(e) => (files::QUARANTINE.to_owned(), "a quarantined slice".to_owned(), e),
            Ok((line, record)) => {
                let header = RecordHeader::parse(&record);
                let payload = header.and_then(|h| record.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + h.payload_len as usize));
                match (header, payload) {
                    (Some(h), Some(p)) if crc32fast::hash(p) == h.payload_crc => {
                        look.quarantined += line.entry.rows;
                        return;
                    }
                    _ => {}
                }
                let expected = format!("the whole record of sequence {}", line.entry.sequence);
                (format!("{}/{}", files::QUARANTINE, line.file), expected, "a damaged one".into())
            }
        };
        look.findings.push(VerifiedFinding { label: "quarantine", segment: 0, file, offset: 0, expected, found, problem: true });
    };
    quarantine::each(vfs, dir, "", &mut check).map_err(|e| match e {
        ToolError::Io { source, .. } => source,
        e => io::Error::other(e.to_string()),
    })
}

/// Judges every place of the manifest, as a start does and says nothing of: pads, the tail, and what is behind it.
fn manifest(vfs: &dyn Vfs, m: &ManifestSummary, look: &mut Extra) -> io::Result<()> {
    let mut bytes = FileBytes::default();
    let header = match vfs.open(&m.path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        x => {
            let f = x?;
            read_file(&*f, &mut bytes)?;
            header_of(&*f, FileKind::Manifest)
        }
    };
    let Ok((h, _)) = header else { return Ok(()) };
    let known = Known { first_sequence: h.first_sequence, declared: None, floor: h.first_sequence - 1 };
    let v = scan(&bytes, FileKind::Manifest, h.salt, known);
    let file = m.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for f in &v.findings {
        look.findings.push(VerifiedFinding {
            label: f.label.name(),
            segment: 0,
            file: file.clone(),
            offset: f.from,
            expected: f.expected.clone(),
            found: f.found.clone(),
            problem: f.label.is_damage(),
        });
    }
    look.findings.extend(unexplained(&bytes, v.end, h.salt).map(|offset| behind_end(0, file, offset)));
    Ok(())
}

/// Bytes behind the last group that neither zeros nor an older generation explain. A group of which nothing arrived whole may have left
/// them, so that they are no damage.
fn behind_end(segment: u64, file: String, offset: u64) -> VerifiedFinding {
    let (expected, found) = ("zeros, or what an older generation left".into(), "other bytes, in which no record can be read".into());
    VerifiedFinding { label: "behind_end", segment, file, offset, expected, found, problem: false }
}

/// Names a bad header copy whose twin is good: a server starts with it, and would not without the twin.
fn header_copies(vfs: &dyn Vfs, path: &Path, kind: FileKind, segment: u64, out: &mut Vec<VerifiedFinding>) -> io::Result<()> {
    let copies = match read_header(vfs, path, kind) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        x => x?.1,
    };
    for (i, bad) in copies.map(|(_, bad)| bad).unwrap_or_default().into_iter().enumerate() {
        if let Some(why) = bad {
            out.push(VerifiedFinding {
                label: "header_copy",
                segment,
                file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                offset: (i * BLOCK) as u64,
                expected: "a copy of the header".into(),
                found: why.to_string(),
                problem: true,
            });
        }
    }
    Ok(())
}

impl Look {
    fn findings(&self) -> Vec<VerifiedFinding> {
        let manifest = self.report.manifest.as_ref().and_then(|m| m.path.file_name());
        let manifest = manifest.map_or_else(|| "manifest".to_owned(), |n| n.to_string_lossy().into_owned());
        let found = self.report.findings.iter().map(|f| VerifiedFinding {
            label: f.finding.label.name(),
            segment: f.segment,
            file: if f.segment == 0 { manifest.clone() } else { self.report.file_name(f.segment) },
            offset: f.finding.from,
            expected: f.finding.expected.clone(),
            found: f.finding.found.clone(),
            problem: f.finding.label.is_damage(),
        });
        found.chain(self.extra.findings.iter().cloned()).collect()
    }

    /// Everything that makes the log not clean, as texts to compare looks by.
    fn problems(&self) -> Vec<String> {
        let found = self.findings().into_iter().filter(|f| f.problem).map(|f| format!("{f:?}"));
        self.report.refusals.iter().cloned().chain(found).collect()
    }

    /// Drops the problems that `shared` lacks.
    fn keep_only(&mut self, shared: &[String]) {
        self.report.refusals.retain(|r| shared.contains(r));
        let findings = self.findings();
        let keep: Vec<bool> = findings.iter().map(|f| !f.problem || shared.contains(&format!("{f:?}"))).collect();
        let (mut of_report, mut of_extra) = (keep.iter(), keep.iter().skip(self.report.findings.len()));
        self.report.findings.retain(|_| of_report.next().is_none_or(|k| *k));
        self.extra.findings.retain(|_| of_extra.next().is_none_or(|k| *k));
        let newest = self.report.segments.len();
        for (i, s) in self.report.segments.iter_mut().enumerate() {
            if s.label == "damaged" && !self.report.findings.iter().any(|f| f.segment == s.id && f.finding.label.is_damage()) {
                s.label = if i + 1 == newest { "active" } else { "clean" };
            }
        }
    }
}

fn tables(mut counts: Counts, side: &BTreeMap<(Arc<str>, Arc<str>), u64>) -> Vec<TableRows> {
    for key in side.keys() {
        counts.entry(key.clone()).or_default();
    }
    let line = |(key, (rows, unshipped_rows)): ((Arc<str>, Arc<str>), (u64, u64))| TableRows {
        side_rows: side.get(&key).copied().unwrap_or(0),
        database: key.0.to_string(),
        table: key.1.to_string(),
        rows,
        unshipped_rows,
    };
    counts.into_iter().map(line).collect()
}

fn summary(look: Look) -> Verified {
    let findings = look.findings();
    let report = look.report;
    let verdict = match report.verdict() {
        "clean" | "torn" if findings.iter().any(|f| f.problem) => "damaged",
        v => v,
    };
    let state = &report.state;
    let planned = state.plans.values().map(|p| p.plan.last_sequence).max().unwrap_or(0).max(state.shipped);
    Verified {
        log_uuid: report.log.map(|l| l.to_string()),
        verdict,
        segments: report
            .segments
            .iter()
            .map(|s| VerifiedSegment {
                id: s.id,
                file: report.file_name(s.id),
                first_seq: s.first_sequence,
                last_seq: s.last_sequence,
                end: s.end,
                label: s.label,
            })
            .collect(),
        findings,
        would_recover_through: report.through,
        tables: tables(look.counts, &look.extra.side_rows),
        side: look.extra.side,
        kept: look.extra.kept,
        quarantined_rows: look.extra.quarantined,
        refusals: report.refusals,
        missing: report.findings.iter().filter_map(|f| f.finding.missing).map(|(first, last)| Missing { first, last }).collect(),
        watermarks: ManifestMarks { planned, shipped: state.shipped, released: state.released },
        lake: None,
    }
}

fn check_lake(
    vfs: &dyn Vfs,
    dir: &Path,
    root: &Path,
    log: LogId,
    state: &ManifestState,
    progress: &mut dyn FnMut(Stage),
) -> Result<LakeReport, ToolError> {
    let mut reload = || {
        for look in 0..MOST_LOOKS {
            // A live server may be appending to it, or replacing it.
            if let Ok(Some(m)) = load(vfs, dir) {
                return Ok(m.state);
            }
            pause(look);
        }
        match load(vfs, dir) {
            Ok(Some(m)) => Ok(m.state),
            Ok(None) => Err(ToolError::io(dir.display().to_string())(io::Error::other("the manifest went away during the look"))),
            Err(e) => Err(ToolError::io("reading the manifest again")(io::Error::other(e))),
        }
    };
    let mut report = |bytes_done, bytes_total| progress(Stage::Lake(Progress { bytes_done, bytes_total }));
    lake::check(vfs, root, log, state, &mut reload, &mut report)
}
