//! Every kind of damage to a small log: every bit, every length, every mix-up of files. What recovery says and keeps is compared
//! with [`oracle`], which knows where the records stood and judges by the tables of `wal-format.md`.
//!
//! What is exhaustive: every bit of every segment and of the manifest is flipped and every truncation length is tried, each through
//! the whole of [`inspect`] (headers, manifest, scan, judgement, records handed out). The ordinary suite takes every byte of record
//! headers, every third one of file headers and payloads and every 127th of pads and unused tails, one bit each; `ARC_EXHAUSTIVE=1` takes all. A sample goes on through
//! `open` and the compactor to Parquet, see [`drain`].

mod bits;
mod drain;
mod mixups;
mod oracle;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_ingest::format::file_header::{FileHeader, FileKind};
use arc_ingest::types::Sequence;
use arc_ingest::wal::files;
use arc_ingest::wal::recover::{Report, inspect};

use super::core::{Batch, Core, DIR, MemSink, TestClock, segment, settings};
use super::mem_vfs::MemVfs;
use oracle::{Expected, Judged, Layout, judge};

/// The smallest data area that is allowed.
const DATA_AREA: u64 = 4096;

fn exhaustive() -> bool {
    std::env::var_os("ARC_EXHAUSTIVE").is_some()
}

/// How the log was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// In good order: the manifest knows what is durable.
    Closed,
    /// Killed after the last group had its mark.
    Marked,
    /// Killed before: nothing witnesses the last group.
    Unmarked,
}

const ALL: [Left; 3] = [Left::Closed, Left::Marked, Left::Unmarked];

/// A log with a released prefix, sealed segments in files used before, a plan under way, and the newest one.
struct Log {
    vfs: MemVfs,
    sink: MemSink,
    clock: Arc<TestClock>,
    segments: Vec<Layout>,
    manifest: Layout,
    /// Of all write records, by sequence.
    payloads: BTreeMap<Sequence, Vec<u8>>,
    /// Acknowledged batches that are not released, by sequence.
    acked: BTreeMap<Sequence, Batch>,
    released: BTreeMap<Sequence, Batch>,
    /// From the manifest alone.
    manifest_floor: Sequence,
    /// A file of the first use of the recycled ones.
    old: Vec<(PathBuf, Vec<u8>)>,
}

fn manifest_of(vfs: &MemVfs) -> PathBuf {
    let mut all: Vec<PathBuf> = vfs.snapshot().into_keys().collect();
    all.retain(|p| files::parse_manifest(p.file_name().unwrap().to_str().unwrap()).is_some());
    assert_eq!(all.len(), 1);
    all.pop().unwrap()
}

fn segments_of(vfs: &MemVfs) -> Vec<Layout> {
    let is_ours = |p: &Path| p.parent() == Some(Path::new(DIR)) && files::parse_segment(p.file_name().unwrap().to_str().unwrap()).is_some();
    let all = vfs.snapshot().into_iter().filter(|(p, _)| is_ours(p));
    let mut all: Vec<Layout> = all.map(|(p, b)| Layout::of(p, b)).collect();
    for i in 1..all.len() {
        let h = &all[i].clean;
        assert_eq!(oracle::u64_at(h, 88), all[i - 1].id);
        all[i - 1].declared = Some((oracle::u64_at(h, 104) as usize, oracle::u64_at(h, 112)));
    }
    all
}

/// Cuts off the zeros behind the last record of the manifest, its header saying so, for speed.
fn trim(vfs: &MemVfs, path: &Path) {
    let l = Layout::of(path.into(), vfs.get(path));
    let len = l.used() + 2 * oracle::BLOCK;
    vfs.edit(path, |b| {
        b.truncate(len);
        let (h, _) = FileHeader::parse_file(&b[..oracle::DATA], FileKind::Manifest).unwrap();
        b[..oracle::DATA].copy_from_slice(&FileHeader { file_len: len as u64, ..h }.encode_file());
    });
}

fn build(left: Left) -> Log {
    build_with(left, 1)
}

fn build_with(left: Left, seed: u64) -> Log {
    let (vfs, sink, clock) = (MemVfs::default(), MemSink::default(), TestClock::new(seed << 32));
    let mut log = BTreeMap::new();
    let mut id = 0;
    let mut group = |c: &mut Core, sizes: &[usize]| {
        let batches: Vec<Batch> = sizes
            .iter()
            .map(|len| {
                id += 1;
                Batch { id, rows: 2, len: *len, key: id % 3 == 0 }
            })
            .collect();
        for (b, s) in batches.iter().zip(c.append(&batches)) {
            log.insert(s.unwrap(), *b);
        }
    };
    let open = || Core::open(&vfs, &sink, &clock, settings(DATA_AREA)).unwrap();
    let mut c = open();
    group(&mut c, &[10, 300]);
    group(&mut c, &[5]);
    c.mark();
    group(&mut c, &[30, 7]);
    c.rotate();
    let old = segments_of(&vfs).into_iter().map(|l| (l.path, l.clean)).collect();
    assert!(c.ship());
    let released_through = c.shared.watermarks().released;
    // Recycled files from here on.
    group(&mut c, &[11, 13, 17]);
    c.mark();
    group(&mut c, &[3]);
    group(&mut c, &[19, 400]);
    c.rotate();
    group(&mut c, &[23]);
    // A plan and its attempt, nothing committed.
    c.ship_some(2);
    drop(c);
    // A restart rewrites the manifest and ends the newest segment.
    let mut c = open();
    group(&mut c, &[29, 31]);
    group(&mut c, &[37]);
    if left == Left::Closed {
        group(&mut c, &[200, 600, 43]);
        c.close();
    } else {
        c.mark();
        group(&mut c, &[200, 600, 43]);
        if left == Left::Marked {
            c.mark();
        }
        drop(c);
    }
    let path = manifest_of(&vfs);
    trim(&vfs, &path);
    let report = inspect(&vfs, Path::new(DIR), &mut |_| {}, &mut |_| {}).unwrap();
    assert_eq!((report.verdict(), report.findings.len()), ("clean", 0), "{:?} {:?}", report.refusals, report.findings);
    let s = &report.state;
    assert_eq!(s.released, released_through);
    assert_eq!((s.plans.len(), s.open_plan().is_some()), (2, true));
    let planned = s.plans.values().map(|p| p.plan.last_sequence).max().unwrap();
    let manifest_floor = s.durable.max(planned).max(s.acknowledged.map_or(0, |a| a.durable));
    let manifest = Layout::of(path.clone(), vfs.get(&path));
    let (released, acked): (BTreeMap<_, _>, BTreeMap<_, _>) = log.into_iter().partition(|(s, _)| *s <= released_through);
    let segments = segments_of(&vfs);
    let payloads: BTreeMap<Sequence, Vec<u8>> = segments.iter().flat_map(Layout::payloads).collect();
    assert_eq!(payloads.keys().collect::<Vec<_>>(), acked.keys().collect::<Vec<_>>());
    let l = Log { segments, payloads, vfs, sink, clock, manifest, acked, released, manifest_floor, old };
    assert!(l.segments.len() >= 4, "{}", l.segments.len());
    l
}

impl Log {
    fn newest(&self) -> usize {
        self.segments.len() - 1
    }

    /// What recovery must find when segment `n` holds `now` and the others are clean.
    fn expected(&self, n: usize, now: &[u8]) -> (Vec<(u64, Expected)>, Judged) {
        let mut findings = Vec::new();
        let mut all = Judged::default();
        let lost = |i: usize| i == n && !self.segments[n].has_header(now);
        for (i, l) in self.segments.iter().enumerate() {
            let heads = (0..self.segments.len()).filter(|k| !lost(*k)).map(|k| self.segments[k].first - 1);
            let successor_lost = i + 1 < self.segments.len() && lost(i + 1);
            let floor = if successor_lost { 0 } else { heads.max().unwrap().max(self.manifest_floor) };
            let declared = if successor_lost { None } else { l.declared };
            let bytes = if i == n { now } else { &l.clean };
            let j = judge(l, bytes, floor, declared);
            if j.lost {
                return (vec![], j);
            }
            findings.extend(j.findings.iter().map(|f| (l.id, *f)));
            all.kept.extend(&j.kept);
            all.last = j.last;
        }
        (findings, all)
    }

    /// Holds a report, and the records that came with it, against what must come out.
    fn compare(&self, what: &str, n: usize, now: &[u8], report: &Report, seen: &[(Sequence, Vec<u8>)]) -> bool {
        let (findings, j) = self.expected(n, now);
        if j.lost {
            let name = files::segment_name(self.segments[n].id);
            assert!(report.refusals.iter().any(|r| r.contains(&name)), "{what}: expected a refusal, found {report:?}");
            return false;
        }
        assert!(report.refusals.is_empty(), "{what}: {:?}", report.refusals);
        let mut found: Vec<(u64, Expected)> = report
            .findings
            .iter()
            .map(|f| (f.segment, (f.finding.label.name(), f.finding.from, f.finding.to, f.finding.missing)))
            .collect();
        let mut findings = findings;
        findings.sort();
        found.sort();
        assert_eq!(found, findings, "{what}: found, expected");
        assert_eq!(seen.iter().map(|(s, _)| *s).collect::<Vec<_>>(), j.kept, "{what}: kept sequences");
        assert!(seen.iter().all(|(s, p)| self.payloads[s] == *p), "{what}: other bytes than were written");
        assert_eq!(report.through, j.last, "{what}: the last sequence");
        let lost: Vec<Sequence> = self.payloads.keys().copied().filter(|s| !j.kept.contains(s) && *s <= j.last).collect();
        let missing: Vec<Sequence> = found.iter().filter_map(|(_, f)| f.3).flat_map(|(a, b)| a..=b).collect();
        assert_eq!(lost, missing, "{what}: what is lost at or below the floor is reported");
        true
    }

    fn inspect(&self) -> (Report, Vec<(Sequence, Vec<u8>)>) {
        look(&self.vfs)
    }
}

fn look(vfs: &MemVfs) -> (Report, Vec<(Sequence, Vec<u8>)>) {
    let mut seen = Vec::new();
    let report = inspect(vfs, Path::new(DIR), &mut |v| seen.push((v.header.sequence, v.payload.to_vec())), &mut |_| {}).unwrap();
    (report, seen)
}

/// The log is refused by name and nothing on disk changes.
fn refused(l: &Log, vfs: &MemVfs, what: &str, text: &str) {
    let before = vfs.snapshot();
    match Core::open(vfs, &l.sink.fork(), &l.clock, settings(DATA_AREA)) {
        Err(arc_ingest::wal::recover::OpenError::Refused(why)) => assert!(why.contains(text), "{what}: expected {text:?} in {why:?}"),
        Err(e) => panic!("{what}: {e}"),
        Ok(c) => panic!("{what}: not refused: {:?}", c.report),
    }
    assert!(vfs.snapshot() == before, "{what}: a refused log was changed");
}
