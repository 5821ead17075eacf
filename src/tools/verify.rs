//! `arc wal verify`: what a recovery would find, without doing it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::lake::{self, LakeReport};
use super::{MOST_LOOKS, ToolError, entries, pause};
use crate::format::file_header::FileKind;
use crate::format::payload::PayloadView;
use crate::format::scan::{Found, Scanner};
use crate::limits::{BLOCK, FILE_HEADER_BYTES};
use crate::types::{LogId, Sequence};
use crate::vfs::Vfs;
use crate::wal::files;
use crate::wal::manifest::{ManifestState, load};
use crate::wal::reader::{FileBytes, header_of, read_file, read_header};
use crate::wal::recover::{Progress, Report, inspect};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedSegment {
    pub id: u64,
    pub first_seq: Sequence,
    pub last_seq: Sequence,
    pub end: u64,
    /// As in [`crate::wal::recover::SegmentReport::label`].
    pub label: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedFinding {
    /// A row of the decision table, or `header_copy` (one of a file's two header copies is bad) or `payload` (the bytes are
    /// those that were written, and cannot be parsed) or `deferred` (a side segment lacks rows that wait for their Parquet file).
    pub label: &'static str,
    /// 0 = the manifest, or a side segment named in `expected`.
    pub segment: u64,
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

/// Rows of the records that a recovery would keep, whether they are in Parquet already or not. Side segments are not counted: they
/// hold copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableRows {
    pub database: String,
    pub table: String,
    pub rows: u64,
    /// Those above the shipped watermark.
    pub unshipped_rows: u64,
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
    extra: Vec<VerifiedFinding>,
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
    let mut extra = Vec::new();
    let report = inspect(
        vfs,
        dir,
        &mut |v| match PayloadView::parse(v.payload) {
            Ok(p) => {
                for t in p.index.tables {
                    let (rows, unshipped) = counts.entry((Arc::clone(&p.index.database), t.table)).or_default();
                    *rows += u64::from(t.rows);
                    *unshipped += if v.header.sequence > shipped { u64::from(t.rows) } else { 0 };
                }
            }
            Err(e) => extra.push(VerifiedFinding {
                label: "payload",
                segment: v.segment,
                offset: v.header.offset,
                expected: format!("a payload of version 1 in sequence {}", v.header.sequence),
                found: e.to_string(),
                problem: true,
            }),
        },
        &mut |p| progress(Stage::Log(p)),
    )?;
    for s in &report.segments {
        header_copies(vfs, &s.path, FileKind::Segment, s.id, &mut extra)?;
    }
    if let Some(m) = &report.manifest {
        header_copies(vfs, &m.path, FileKind::Manifest, 0, &mut extra)?;
    }
    for (plan, output) in report.state.deferred.keys() {
        side_segment(vfs, dir, &report.state, *plan, *output, &mut extra)?;
    }
    Ok(Look { report, counts, extra })
}

/// Checks that the side segment of a deferred output holds its rows: the log itself may be released.
fn side_segment(
    vfs: &dyn Vfs,
    dir: &Path,
    state: &ManifestState,
    plan: u64,
    output: u32,
    out: &mut Vec<VerifiedFinding>,
) -> io::Result<()> {
    let known = state.plans.get(&plan).and_then(|p| p.plan.outputs.get(output as usize).map(|o| (&p.plan, o)));
    let Some((p, o)) = known else { return Ok(()) };
    let schema = p.schemas.get(o.schema as usize);
    let name = format!("{}/{}", files::SIDE, files::deferred_name(plan, output));
    let path = dir.join(&name);
    let mut bad = |offset: u64, found: String| {
        let expected = format!("{name} with the {} rows of {}", o.rows, o.name);
        out.push(VerifiedFinding { label: "deferred", segment: 0, offset, expected, found, problem: true });
    };
    let file = match vfs.open(&path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Its commit comes before its removal: a live server may have done both since the manifest was read.
            if !matches!(load(vfs, dir), Ok(Some(m)) if !m.state.deferred.contains_key(&(plan, output))) {
                bad(0, "no such file".into());
            }
            return Ok(());
        }
        x => x?,
    };
    let header = match header_of(&*file, FileKind::Segment) {
        Ok((h, _)) => h,
        Err([a, b]) => {
            bad(0, format!("{a}; second copy: {b}"));
            return Ok(());
        }
    };
    let mut bytes = FileBytes::default();
    read_file(&*file, &mut bytes)?;
    let (mut rows, mut at) = (0u64, FILE_HEADER_BYTES as u64);
    for found in Scanner::new(&bytes.bytes, header.salt, at, bytes.bytes.len() as u64) {
        match found {
            Found::Record(r) => {
                let index = PayloadView::parse(Scanner::payload(&bytes.bytes, &r)).map(|p| p.index);
                let tables = index.iter().flat_map(|i| &i.tables).filter(|t| schema.is_none_or(|s| *t.table == *s.table));
                rows += tables.flat_map(|t| &t.hours).filter(|(h, _)| *h == o.hour).map(|(_, n)| u64::from(*n)).sum::<u64>();
            }
            Found::Bad { from, .. } => at = from,
        }
    }
    if rows != o.rows {
        bad(at, format!("{rows} rows"));
    }
    Ok(())
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
        let found = self.report.findings.iter().map(|f| VerifiedFinding {
            label: f.finding.label.name(),
            segment: f.segment,
            offset: f.finding.from,
            expected: f.finding.expected.clone(),
            found: f.finding.found.clone(),
            problem: f.finding.label.is_damage(),
        });
        found.chain(self.extra.iter().cloned()).collect()
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
        self.extra.retain(|_| of_extra.next().is_none_or(|k| *k));
        let newest = self.report.segments.len();
        for (i, s) in self.report.segments.iter_mut().enumerate() {
            if s.label == "damaged" && !self.report.findings.iter().any(|f| f.segment == s.id && f.finding.label.is_damage()) {
                s.label = if i + 1 == newest { "active" } else { "clean" };
            }
        }
    }
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
            .map(|s| VerifiedSegment { id: s.id, first_seq: s.first_sequence, last_seq: s.last_sequence, end: s.end, label: s.label })
            .collect(),
        findings,
        would_recover_through: report.through,
        tables: look
            .counts
            .into_iter()
            .map(|((d, t), (rows, unshipped_rows))| TableRows { database: d.to_string(), table: t.to_string(), rows, unshipped_rows })
            .collect(),
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
