//! Opening a log: look at everything first, report, and only then act.
//!
//! [`inspect`] touches nothing and is what the tools use as well; [`open`] acts on its report. The decision table is in
//! `wal-format.md` and implemented by `format::scan::judge` (places within a file) and [`inspect`] (files).

pub(super) mod list;

use std::any::Any;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::list::{Listed, list_segments};
use super::aside::{damage_entry, is_damaged, is_same_damage, keep_segment, report_findings, set_aside};
use super::by_content;
use super::commit::{Activation, Active, Committer, activate};
use super::files;
use super::manifest::{Loaded, Manifest, ManifestError, ManifestState, load, put_group};
use super::prealloc::{Preallocator, Spare};
use super::reader::{FileBytes, header_of, read_file, salt_without_header, scan, scan_growing, unexplained};
use super::reserve::{ensure_reserve, reserve_length, spend_reserve};
use super::shared::{LogSettings, Received, SealedSegment, Shared, Watermarks, lock};
pub use super::start::{Examined, OpenedLog, holds_log, open};
use crate::clock::SharedClock;
use crate::format::file_header::{DeclaredEnd, ENTRIES_OF_1_1, FORMAT_MINOR, FileKind};
use crate::format::manifest::{Entry, SegmentEntry};
use crate::format::record::{RecordHeader, RecordKind};
use crate::format::scan::{Finding, Found, Known, Label, Scanner, Verdict};
use crate::limits::{BLOCK, FILE_HEADER_BYTES};
use crate::metrics::Metrics;
use crate::types::{LogId, Sequence};
use crate::vfs::{File, SyncMode, Vfs, filesystem_risk, is_no_space};

/// A finding with its file.
#[derive(Clone, Debug)]
pub struct SegmentFinding {
    pub segment: u64,
    pub finding: Finding,
}

#[derive(Clone, Debug)]
pub struct SegmentReport {
    pub id: u64,
    pub path: PathBuf,
    pub file_len: u64,
    pub salt: u64,
    pub first_sequence: Sequence,
    pub last_sequence: Sequence,
    pub end: u64,
    /// Receive time of the oldest kept record that is not shipped.
    pub oldest_us: Option<i64>,
    /// Where bytes behind its end begin that nothing explains.
    pub behind: Option<u64>,
    /// `clean`, `active` (newest, clean), `torn`, `damaged`, `header_lost`, `released` (left over), `recycled` (used anew by a live
    /// server while it was read: nothing of it is in the report).
    pub label: &'static str,
}

impl SegmentReport {
    /// One of which no record is in the report.
    fn unread(id: u64, path: PathBuf, file_len: u64, salt: u64, first_sequence: Sequence, label: &'static str) -> Self {
        Self { id, path, file_len, salt, first_sequence, last_sequence: first_sequence - 1, end: 0, oldest_us: None, behind: None, label }
    }
}

/// What a log directory holds.
#[derive(Debug, Default)]
pub struct Report {
    pub log: Option<LogId>,
    pub segments: Vec<SegmentReport>,
    pub findings: Vec<SegmentFinding>,
    /// Why a server would refuse to start here: it needs a decision by a person.
    pub refusals: Vec<String>,
    /// What is not as it should be, although the manifest shows that nothing is missing.
    pub notes: Vec<String>,
    /// The highest sequence that a recovery would keep.
    pub through: Sequence,
    /// F of the newest segment.
    pub floor: Sequence,
    pub manifest: Option<ManifestSummary>,
    /// The whole state of the manifest.
    pub state: ManifestState,
    stale_manifests: Vec<PathBuf>,
    newest: Option<Newest>,
    /// The manifest names every segment from which rows were acknowledged: it is of 1.1.
    names_acknowledged: bool,
    /// A file with a segment's name that is none and that nothing was acknowledged from: id, path.
    garbage: Option<(u64, PathBuf)>,
}

#[derive(Clone, Debug)]
pub struct ManifestSummary {
    pub path: PathBuf,
    pub id: u64,
    pub salt: u64,
    pub end: u64,
    pub last_sequence: Sequence,
    pub torn: Option<String>,
}

/// What the successor of the newest segment is made from.
#[derive(Debug)]
struct Newest {
    /// Its declared end to be.
    end: u64,
    /// Records above F, to be copied: payload, header.
    tail: Vec<(RecordHeader, Vec<u8>)>,
    /// Nothing was ever written into it.
    untouched: bool,
}

impl Report {
    /// The name of the file that has the segment.
    pub fn file_name(&self, segment: u64) -> String {
        let found = self.segments.iter().find(|s| s.id == segment).and_then(|s| s.path.file_name());
        found.map_or_else(|| files::segment_name(segment), |n| n.to_string_lossy().into_owned())
    }

    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|f| f.finding.label.is_damage())
    }

    /// `clean`, `torn`, `damaged` or `refused`. A torn or a live tail is clean as far as exit codes go.
    pub fn verdict(&self) -> &'static str {
        if !self.refusals.is_empty() {
            "refused"
        } else if self.is_damaged() {
            "damaged"
        } else if !self.findings.is_empty() {
            "torn"
        } else {
            "clean"
        }
    }
}

/// One kept record of a segment, in order of sequences.
pub struct Visited<'a> {
    pub segment: u64,
    pub header: &'a RecordHeader,
    pub payload: &'a [u8],
    /// Sequences before this one are missing: what they defined may be known from this record alone.
    pub behind_loss: bool,
}

/// How far a long look has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// Looks at the whole log and calls `visit` for every write record that a recovery would keep. Read-only.
///
/// # Errors
/// Only when the directory or a file cannot be opened at all; whatever is wrong inside is in the report.
pub fn inspect(vfs: &dyn Vfs, dir: &Path, visit: &mut dyn FnMut(Visited<'_>), progress: &mut dyn FnMut(Progress)) -> io::Result<Report> {
    let all = &mut |v: Visited<'_>| {
        visit(v);
        ControlFlow::Continue(())
    };
    inspect_from(vfs, dir, 0, all, progress)
}

/// Like [`inspect`], but segments whose declared end lies below sequence `from` are not read, and `visit` may end it: the report
/// then covers only what was looked at.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_from(
    vfs: &dyn Vfs,
    dir: &Path,
    from: Sequence,
    visit: &mut dyn FnMut(Visited<'_>) -> ControlFlow<()>,
    progress: &mut dyn FnMut(Progress),
) -> io::Result<Report> {
    let mut report = Report::default();
    let mut manifest_floor = 0;
    match load(vfs, dir) {
        Ok(Some(Loaded { header, path, state, last_sequence, end, stale, torn, unused })) => {
            report.log = Some(header.log);
            report.notes.extend(unused);
            report.names_acknowledged = header.incompatible & ENTRIES_OF_1_1 != 0;
            report.manifest = Some(ManifestSummary { path, id: header.id, salt: header.salt, end, last_sequence, torn });
            manifest_floor = state
                .durable
                .max(state.released)
                .max(state.plans.values().map(|p| p.plan.last_sequence).max().unwrap_or(0))
                .max(state.shipped)
                .max(state.acknowledged.map_or(0, |s| s.durable));
            report.state = state;
            report.stale_manifests = stale;
        }
        Ok(None) => report.state.next_plan = 1,
        Err(e @ ManifestError::Damaged { .. }) => report.refusals.push(e.to_string()),
        Err(ManifestError::Io { path, source }) => return Err(io::Error::new(source.kind(), format!("{}: {source}", path.display()))),
    }
    let mut listed = list_segments(vfs, dir, &mut report)?;
    if !report.refusals.is_empty() {
        // A server stops here. Tools show what there is, whatever the names say.
        let problems;
        (listed, problems) = by_content::list(vfs, dir, report.log.filter(|_| report.manifest.is_some()), report.state.released_segment)?;
        report.refusals.extend(problems);
        by_content::first_are_missing(&mut report, &listed);
    }
    let floor = listed.iter().filter_map(|l| l.header.as_ref().ok()).fold(manifest_floor, |f, h| f.max(h.first_sequence - 1));
    let total: u64 = listed.iter().map(|l| l.len).sum();
    let mut done = 0;
    let mut bytes = FileBytes::default();
    let mut next: Option<Sequence> = None;
    for (i, l) in listed.iter().enumerate() {
        progress(Progress { bytes_done: done, bytes_total: total });
        let successor = listed.get(i + 1);
        let declared = successor.and_then(|s| s.header.as_ref().ok()).and_then(|h| h.predecessor).filter(|p| p.id == l.id);
        let follows = successor.and_then(|s| s.header.as_ref().ok()).map(|h| h.first_sequence);
        if let (Ok(_), Some(d)) = (&l.header, declared)
            && d.last_sequence < from
        {
            next = Some(d.last_sequence + 1);
            done += l.len;
            continue;
        }
        let f = match vfs.open(&l.path, false) {
            // A live server has released it meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            x => x?,
        };
        read_file(&*f, &mut bytes)?;
        done += l.len;
        // A successor whose header is lost does not say where this segment ends: floors from elsewhere may lie behind it.
        let floor = match (successor, follows) {
            (Some(_), None) => 0,
            // What a later one holds is not missing here, also where it is not the next.
            (_, first) => floor.min(first.map_or(Sequence::MAX, |f| f - 1)),
        };
        let mut flow = ControlFlow::Continue(());
        let each = &mut |v: Visited<'_>| {
            if flow.is_continue() {
                flow = visit(v);
            }
        };
        next = judge_segment(&mut report, l, declared, successor.is_none(), floor, next, (&*f, &mut bytes), each)?;
        if let Some(s) = successor.filter(|s| s.id > l.id + 1) {
            by_content::name_missing(&mut report, l.id, s.id);
        }
        if flow.is_break() {
            break;
        }
    }
    progress(Progress { bytes_done: done, bytes_total: total });
    let released = report.state.released.max(report.state.shipped);
    report.through = next.map_or(0, |n| n - 1).max(released);
    Ok(report)
}

#[allow(clippy::too_many_arguments)]
fn judge_segment(
    report: &mut Report,
    l: &Listed,
    declared: Option<DeclaredEnd>,
    newest: bool,
    floor: Sequence,
    next: Option<Sequence>,
    (file, bytes): (&dyn File, &mut FileBytes),
    visit: &mut dyn FnMut(Visited<'_>),
) -> io::Result<Option<Sequence>> {
    let (salt, first) = match &l.header {
        Ok(h) => (h.salt, h.first_sequence),
        Err(why) => {
            let known = report.state.acknowledged.filter(|s| s.segment == l.id);
            let salt = declared.map(|d| d.salt).or(known.map(|s| s.salt)).or_else(|| salt_without_header(bytes));
            let first = next.or(known.map(|s| s.first_sequence)).unwrap_or(report.state.released + 1);
            report.findings.push(SegmentFinding {
                segment: l.id,
                finding: Finding {
                    label: Label::Damaged,
                    from: 0,
                    to: FILE_HEADER_BYTES as u64,
                    missing: None,
                    expected: "a segment header".into(),
                    found: why.clone(),
                },
            });
            // With neither a header nor a record nothing says how much there was.
            if let Some(s) = known
                && declared.is_none()
                && !Scanner::new(&bytes.bytes, s.salt, FILE_HEADER_BYTES as u64, l.len).any(|f| matches!(f, Found::Record(_)))
            {
                report.refusals.push(format!(
                    "{}: no header and no record is left ({why}); sequences {} to {} at least were acknowledged from it: restore it from a \
                     copy, or see `arc wal repair` of a later version",
                    l.path.display(),
                    s.first_sequence,
                    s.durable
                ));
                return Ok(next);
            }
            let Some(salt) = salt else {
                report.refusals.push(format!(
                    "{}: both header copies are bad ({why}) and no record tells its generation: what it held is not known; restore it from a copy",
                    l.path.display()
                ));
                return Ok(next);
            };
            (salt, first)
        }
    };
    if let Ok(h) = &l.header
        && l.len < h.file_len
    {
        // The length is fixed and durable before a segment gets its name: no crash shortens it.
        report.findings.push(SegmentFinding {
            segment: l.id,
            finding: Finding {
                label: Label::Damaged,
                from: l.len,
                to: h.file_len,
                missing: None,
                expected: format!("a file of {} bytes", h.file_len),
                found: format!("{} bytes: it was cut short", l.len),
            },
        });
    }
    // The end is known from the successor; if its header is lost, everything up to the known floor was durable all the same.
    let known = Known { first_sequence: first, declared: declared.map(|d| (d.end, d.last_sequence)), floor };
    let v = if newest { scan_growing(file, bytes, salt, known)? } else { scan(bytes, FileKind::Segment, salt, known) };
    if l.header.is_ok() && header_of(file, FileKind::Segment).is_ok_and(|(h, _)| h.salt != salt) {
        report.segments.push(SegmentReport::unread(l.id, l.path.clone(), l.len, salt, first, "recycled"));
        return Ok(next);
    }
    if let Some(n) = next
        && first != n
    {
        report.refusals.push(format!("{}: begins with sequence {first}, expected {n}", l.path.display()));
    }
    let waits = |r: &&RecordHeader| r.kind == RecordKind::Write && r.sequence > report.state.shipped;
    let oldest_us = v.records.iter().filter(waits).map(|r| r.receive_time_us).min();
    let behind_loss = report.findings.iter().map(|f| &f.finding).chain(&v.findings).any(|f| f.missing.is_some());
    for r in v.records.iter().filter(|r| r.kind == RecordKind::Write) {
        visit(Visited { segment: l.id, header: r, payload: Scanner::payload(&bytes.bytes, r), behind_loss });
    }
    let mut label = if l.header.is_err() {
        "header_lost"
    } else if newest {
        "active"
    } else {
        "clean"
    };
    for f in &v.findings {
        if f.label.is_damage() {
            label = "damaged";
        } else if label == "clean" || label == "active" {
            label = "torn";
        }
        let mut f = f.clone();
        if bytes.unreadable.iter().any(|u| (f.from..f.to).contains(u)) {
            f.found = format!("an I/O error while reading ({})", f.found);
        }
        report.findings.push(SegmentFinding { segment: l.id, finding: f });
    }
    // It stands as zeros in `bytes`, which behind the last group would be a clean end: the last group may have been there.
    if newest && let Some(block) = bytes.unreadable.iter().find(|u| **u >= v.end) {
        label = "damaged";
        let (expected, found) = ("a block that can be read".into(), "an I/O error while reading".into());
        let finding = Finding { label: Label::Damaged, from: *block, to: block + BLOCK as u64, missing: None, expected, found };
        report.findings.push(SegmentFinding { segment: l.id, finding });
    }
    report.segments.push(SegmentReport {
        id: l.id,
        path: l.path.clone(),
        file_len: l.len,
        salt,
        first_sequence: first,
        last_sequence: v.last_sequence,
        end: v.end,
        oldest_us,
        behind: unexplained(bytes, v.end, salt),
        label,
    });
    if newest {
        report.floor = v.floor;
        let whole = matches!(header_of(file, FileKind::Segment), Ok((h, [None, None])) if h.file_len == l.len && h.minor == FORMAT_MINOR);
        report.newest = Some(Newest { untouched: whole && bytes.is_untouched(), ..cut_at_floor(&v, bytes) });
    }
    Ok(Some(v.last_sequence + 1))
}

/// Where the newest segment's durable part ends, and the records above F.
fn cut_at_floor(v: &Verdict, bytes: &FileBytes) -> Newest {
    let mut end = FILE_HEADER_BYTES as u64;
    let mut tail = Vec::new();
    for r in &v.records {
        if r.kind == RecordKind::Write && r.sequence > v.floor {
            tail.push((*r, Scanner::payload(&bytes.bytes, r).to_vec()));
        } else if tail.is_empty() {
            end = r.offset + r.record_len() as u64;
        }
    }
    if tail.is_empty() {
        end = end.max(v.end);
    }
    // Not rounded up: the pad behind the last record may be torn, and what is declared is taken for durable from here on.
    Newest { end, tail, untouched: false }
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}: another process has this log open (lock held); stop it first")]
    Locked(PathBuf),
    /// A person must decide.
    #[error("{0}")]
    Refused(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

fn at(what: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
    let what = what.into();
    move |source| OpenError::Io { what, source }
}

/// The state from which key and catalog folds start, handed out before the records are visited.
pub type Visit<'a> = dyn FnMut(&ManifestState, Visited<'_>) + 'a;

/// Locks the log in `settings.directory` and looks at all of it; a directory that does not exist is made.
///
/// # Errors
/// [`OpenError`].
pub fn examine(
    vfs: &Arc<dyn Vfs>,
    settings: LogSettings,
    visit: &mut dyn FnMut(Visited<'_>),
    progress: &mut dyn FnMut(Progress),
) -> Result<Examined, OpenError> {
    let dir = settings.directory.clone();
    let shown = dir.display().to_string();
    vfs.create_dir_all(&dir).map_err(at(&shown))?;
    let lock_path = dir.join(files::LOCK);
    let held = vfs.lock(&lock_path).map_err(at(lock_path.display().to_string()))?.ok_or_else(|| OpenError::Locked(lock_path.clone()))?;
    if let Ok(Some(kind)) = vfs.unsafe_filesystem(&dir) {
        tracing::warn!(directory = %shown, filesystem = kind, "{}", filesystem_risk(kind).text);
    }
    // Names first: what follows must not act on a directory that a power cut could still change.
    vfs.sync_dir(&dir).map_err(at(&shown))?;
    let report = inspect(&**vfs, &dir, visit, progress).map_err(at(&shown))?;
    if let Some(first) = report.refusals.first() {
        return Err(OpenError::Refused(first.clone()));
    }
    report_findings(&report);
    if report.is_damaged() && !settings.set_aside_damage {
        return Err(OpenError::Refused(format!(
            "{shown}: the log is damaged ({} findings) and wal.on_damage = \"refuse\"; run `arc wal verify`, then restore the files or set wal.on_damage = \"set-aside\"",
            report.findings.len()
        )));
    }
    Ok(Examined { vfs: Arc::clone(vfs), settings, report, lock: held })
}

pub(super) fn act(
    vfs: &Arc<dyn Vfs>,
    settings: LogSettings,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    mut report: Report,
    held: Box<dyn Any + Send + Sync>,
) -> Result<OpenedLog, OpenError> {
    let dir = settings.directory.clone();
    for sub in [files::POOL, files::SIDE, files::QUARANTINE] {
        vfs.create_dir_all(&dir.join(sub)).map_err(at(dir.join(sub).display().to_string()))?;
    }
    clear_scratch(&**vfs, &dir).map_err(at(dir.display().to_string()))?;
    let (released, kept) = std::mem::take(&mut report.segments).into_iter().partition(|s| s.label == "released");
    let released: Vec<SegmentReport> = released;
    report.segments = kept;
    report.segments.retain(|s| s.label != "leftover");
    set_aside(&**vfs, &dir, &report).map_err(at(dir.join(files::SIDE).display().to_string()))?;

    let log = report.log.unwrap_or_else(|| clock.random_id());
    let mut state = std::mem::take(&mut report.state);
    state.epoch += 1;
    state.limits = settings.limits.or(state.limits);
    for f in report.findings.iter().filter(|f| f.finding.label.is_damage()) {
        let e = damage_entry(f.segment, &f.finding);
        if !state.damage.iter().any(|d| is_same_damage(d, &e)) {
            state.damage.push(e);
            metrics.wal_damage_findings_total.increment(1);
        }
    }
    // From here on the manifest is one that names every segment from which rows were acknowledged.
    if let Some(s) = report.segments.last().filter(|s| s.last_sequence >= s.first_sequence && s.first_sequence > 0) {
        state.know(SegmentEntry {
            segment: s.id,
            salt: s.salt,
            first_sequence: s.first_sequence,
            durable: s.last_sequence.min(report.floor),
        });
    }
    report.state = state.clone();
    let epoch = state.epoch;
    let previous = report.manifest.as_ref().map(|m| {
        let mut old = report.stale_manifests.clone();
        old.push(m.path.clone());
        (DeclaredEnd { id: m.id, salt: m.salt, end: m.end, last_sequence: m.last_sequence }, old)
    });
    let reserve = dir.join(files::RESERVE);
    let make = |state: &ManifestState, previous| Manifest::create(Arc::clone(vfs), clock.clone(), &dir, log, state.clone(), previous);
    let mut made = make(&state, previous.clone());
    if made.as_ref().is_err_and(is_no_space) {
        spend_reserve(&**vfs, &reserve, 0);
        made = make(&state, previous.clone());
    }
    if made.as_ref().is_err_and(is_no_space) {
        tracing::warn!(
            "the disk is full: the new manifest forgets the files of shipped plans, which `arc wal verify --lake` then cannot check"
        );
        state.forget_history(0);
        made = Manifest::create_short(Arc::clone(vfs), clock.clone(), &dir, log, state.clone(), previous);
    }
    let mut manifest = made.map_err(at(format!("{}: writing a new manifest", dir.display())))?;
    // Only now: the release that was read may have stood in the page cache alone.
    for s in released {
        let gone = match is_damaged(&state.damage, s.id) {
            true => keep_segment(&**vfs, &dir, &s.path, s.id, s.salt),
            false => vfs.remove(&s.path),
        };
        gone.map_err(at(s.path.display().to_string()))?;
    }

    if let Some((id, path)) = &report.garbage {
        let to = dir.join(files::SIDE).join(files::garbage_name(*id));
        vfs.rename(path, &to).and_then(|()| vfs.sync_dir(&dir.join(files::SIDE))).map_err(at(path.display().to_string()))?;
    }

    let next_sequence = report.through + 1;
    let mut newest = report.newest.take();
    let again = report.segments.pop_if(|s| {
        let empty = newest.as_ref().is_some_and(|n| n.untouched && n.tail.is_empty());
        empty && s.label == "active" && s.first_sequence == next_sequence && s.file_len >= FILE_HEADER_BYTES as u64 + settings.segment_data
    });
    if again.is_some() {
        newest = None;
    }
    let last_report = report.segments.last().cloned();
    let tail = newest.as_ref().map(|n| &n.tail[..]).unwrap_or_default();
    let first = tail.first().map_or(next_sequence, |(h, _)| h.sequence);
    let activation = Activation {
        log,
        // A number that was ever given out is not given out again.
        id: again.as_ref().map_or_else(
            || {
                let last = last_report.as_ref().map_or(report.state.released_segment, |s| s.id);
                last.max(report.state.newest_segment).max(report.garbage.as_ref().map_or(0, |(id, _)| *id)) + 1
            },
            |s| s.id,
        ),
        salt: again.as_ref().map_or_else(|| clock.random_u64(), |s| s.salt),
        epoch,
        first_sequence: first,
        predecessor: last_report.as_ref().zip(newest.as_ref()).map(|(s, n)| DeclaredEnd {
            id: s.id,
            salt: s.salt,
            end: n.end,
            last_sequence: first - 1,
        }),
    };
    let mut group = Vec::new();
    if !tail.is_empty() {
        let mut payloads: Vec<(RecordKind, Vec<u8>)> = Vec::new();
        for (_, p) in tail {
            payloads.push((RecordKind::Write, p.clone()));
        }
        put_group(&mut group, &payloads, FILE_HEADER_BYTES as u64, activation.salt, first, first - 1, clock.wall_us());
        restore_receive_times(&mut group, tail, &activation, first - 1);
    }
    let needed = settings.segment_data.max(group.len() as u64 + 4 * BLOCK as u64);
    let make_spare = |data: u64| -> io::Result<Spare> {
        let path = dir.join(files::spare_name(0));
        let _ = vfs.remove(&path);
        let len = FILE_HEADER_BYTES as u64 + data.next_multiple_of(BLOCK as u64);
        let made = (|| {
            let file = vfs.create_new(&path)?;
            file.allocate(len)?;
            Ok(Spare { path: path.clone(), file, len })
        })();
        made.inspect_err(|_: &io::Error| {
            let _ = vfs.remove(&path);
        })
    };
    let make = || match make_spare(needed) {
        Err(e) if is_no_space(&e) => {
            tracing::warn!("the disk is full: starting with a small segment out of the reserve, writes are refused until there is room");
            spend_reserve(&**vfs, &reserve, 0);
            make_spare(group.len() as u64 + 4 * BLOCK as u64)
        }
        x => x,
    };
    // INVARIANT(untouched-segment): the newest segment is taken again when it has two good headers and nothing but zeros, and no record can be
    // missing from it: starts that fail behind this point then leave one segment, not one each.
    let spare = match &again {
        Some(s) => vfs.open(&s.path, true).map(|file| Spare { path: s.path.clone(), file, len: s.file_len }),
        None => make(),
    }
    .map_err(at(format!("{}: preparing a segment", dir.display())))?;
    if let Some(s) = &last_report {
        // Its declared end may cover a mark that has never been synced.
        vfs.open(&s.path, true).and_then(|f| f.sync(SyncMode::Full)).map_err(at(format!("{}: sync", s.path.display())))?;
    }
    let path = match again {
        Some(s) => Ok(s.path),
        None => activate(&**vfs, &dir, &spare, &activation, &group),
    }
    .map_err(at(format!("{}: activating segment {}", dir.display(), activation.id)))?;
    let opened = Entry::Opened { epoch, running_ms: report.state.running_ms, segment: activation.id };
    // What was copied may have been acknowledged before.
    let known = !tail.is_empty();
    let copied = SegmentEntry { segment: activation.id, salt: activation.salt, first_sequence: first, durable: report.through };
    let entries = std::iter::once(opened).chain(known.then_some(Entry::Segment(copied))).collect();
    manifest
        .append(entries, &[])
        .map_err(|e| OpenError::Io { what: dir.display().to_string(), source: io::Error::other(e.to_string()) })?;

    // Also after it has been spent here: the next start may need as much again.
    let reserve_spent =
        !ensure_reserve(&**vfs, &dir, reserve_length(settings.reserve, manifest.end())).map_err(at(reserve.display().to_string()))?;
    let writer = Arc::clone(&spare.file).appender(settings.engine, settings.sync).map_err(at(path.display().to_string()))?;
    let (now, wall_us) = (clock.monotonic(), clock.wall_us());
    let received = |us: i64| Received::earlier(us, wall_us, now);
    let active = Active {
        id: activation.id,
        salt: activation.salt,
        path,
        file_len: spare.len,
        first_sequence: first,
        end: FILE_HEADER_BYTES as u64 + group.len() as u64,
        writer,
        oldest: tail.iter().map(|(h, _)| h.receive_time_us).min().map(received),
        unmarked_since: (!tail.is_empty()).then_some(now),
        known,
        failed: false,
    };
    let marks = Watermarks {
        appended: report.through,
        durable: report.through,
        sealed: first - 1,
        shipped: report.state.shipped,
        released: report.state.released,
    };
    let shared = Shared::new(log, settings, clock, metrics, marks);
    shared.set_reserve_spent(reserve_spent);
    {
        let mut s = lock(&shared.segments);
        let count = report.segments.len();
        for (i, r) in report.segments.iter().enumerate() {
            let (end, last) = if i + 1 == count { (newest.as_ref().map_or(r.end, |n| n.end), first - 1) } else { (r.end, r.last_sequence) };
            s.sealed.push_back(Arc::new(SealedSegment {
                id: r.id,
                salt: r.salt,
                path: r.path.clone(),
                file_len: r.file_len,
                first_sequence: r.first_sequence,
                last_sequence: last,
                end,
                oldest: r.oldest_us.map(received),
                tainted: r.label != "clean" && r.label != "active",
            }));
        }
        shared.recount(&s);
    }
    let prealloc = Preallocator::new(Arc::clone(vfs), Arc::clone(&shared));
    let committer =
        Committer::new(Arc::clone(&shared), Arc::clone(vfs), Arc::clone(&prealloc), manifest.acknowledging(), active, epoch, next_sequence);
    Ok(OpenedLog { shared, manifest, committer, prealloc, report, lock: held })
}

/// Copied records keep the time at which they were received.
fn restore_receive_times(group: &mut [u8], tail: &[(RecordHeader, Vec<u8>)], a: &Activation, floor: Sequence) {
    let mut at = 0usize;
    for (old, p) in tail {
        let h = RecordHeader { salt: a.salt, offset: (FILE_HEADER_BYTES + at) as u64, durable_floor: floor, ..*old };
        let encoded = h.encode();
        if let Some(dst) = group.get_mut(at..at + encoded.len()) {
            dst.copy_from_slice(&encoded);
        }
        at += crate::format::record::record_len(p.len());
    }
}

pub(crate) fn clear_scratch(vfs: &dyn Vfs, dir: &Path) -> io::Result<()> {
    for e in vfs.list(dir)? {
        if files::is_scratch(&e.name) {
            vfs.remove(&dir.join(&e.name))?;
        }
    }
    // A pooled file could be another name of a live segment after a crash on some filesystems: removing a name is
    // always safe, recycling one is not.
    let pool = dir.join(files::POOL);
    for e in vfs.list(&pool)? {
        vfs.remove(&pool.join(&e.name))?;
    }
    vfs.sync_dir(&pool)?;
    vfs.sync_dir(dir)
}
