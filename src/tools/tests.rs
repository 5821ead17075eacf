use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::dump::{DumpOptions, Dumped, dump};
use super::lake::LakeReport;
use super::verify::{Verified, verify};
use super::{ToolError, list, quarantine};
use crate::compact::quarantine::{Quarantined, put};
use crate::compact::{Layout, object_name};
use crate::format::manifest::{Entry, Plan, PlanOutput, PlanSchema, PlanWriter};
use crate::limits::{BLOCK, FILE_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::types::{LogId, Sequence};
use crate::vfs::{Engine, OsVfs, Vfs};
use crate::wal::files;
use crate::wal::shared::lock;
use crate::wal::testing::{Running, reopen, settings};

/// Four segments: sequences 1 to 3, 4 to 6, 7 to 9, and the newest with 10; each record is a group of one block.
pub(super) fn build() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for first in [1, 4, 7] {
        let (o, _) = reopen(settings(dir.path(), 1 << 16, Engine::Pwrite)).unwrap();
        let r = Running::start(o);
        for id in first..first + 3 {
            assert_eq!(r.append(id, 2), id as u64);
        }
    }
    let (o, _) = reopen(settings(dir.path(), 1 << 16, Engine::Pwrite)).unwrap();
    Running::start(o).append(10, 2);
    dir
}

pub(super) fn check(dir: &Path) -> Verified {
    verify(&OsVfs, dir, None, &mut |_| {}).unwrap()
}

pub(super) fn lines(dir: &Path, o: &DumpOptions) -> (Vec<Value>, Dumped) {
    let mut out = Vec::new();
    let done = dump(&OsVfs, dir, o, &mut out).unwrap();
    let lines: Vec<Value> = String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len() as u64, done.lines);
    (lines, done)
}

pub(super) fn sequences(v: &[Value]) -> Vec<u64> {
    let mut s: Vec<u64> = v.iter().map(|l| l["seq"].as_u64().unwrap()).collect();
    s.dedup();
    s
}

pub(super) fn flip(path: &Path, at: usize) {
    let mut b = std::fs::read(path).unwrap();
    b[at] ^= 0x20;
    std::fs::write(path, b).unwrap();
}

pub(super) fn manifest_path(dir: &Path) -> PathBuf {
    let all = OsVfs.list(dir).unwrap();
    dir.join(&all.iter().rfind(|e| files::parse_manifest(&e.name).is_some()).unwrap().name)
}

/// Every path below `dir` with its time of change and its bytes.
fn snapshot(dir: &Path) -> Vec<(PathBuf, SystemTime, Vec<u8>)> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(d) = todo.pop() {
        for e in std::fs::read_dir(&d).unwrap() {
            let path = e.unwrap().path();
            let m = path.metadata().unwrap();
            let bytes = if m.is_dir() { Vec::new() } else { std::fs::read(&path).unwrap() };
            if m.is_dir() {
                todo.push(path.clone());
            }
            out.push((path, m.modified().unwrap(), bytes));
        }
    }
    out.sort();
    out
}

#[test]
fn a_clean_log_in_json_and_nothing_is_changed() {
    let dir = build();
    let before = snapshot(dir.path());
    let v = check(dir.path());
    assert!(v.clean());
    let j = serde_json::to_value(&v).unwrap();
    assert_eq!(j["verdict"], "clean");
    assert_eq!(j["log_uuid"].as_str().unwrap().len(), 36);
    let labels: Vec<_> = v.segments.iter().map(|s| (s.id, s.first_seq, s.last_seq, s.label)).collect();
    assert_eq!(labels, [(1, 1, 3, "clean"), (2, 4, 6, "clean"), (3, 7, 9, "clean"), (4, 10, 10, "active")]);
    // Three groups and a mark; more marks where an append took its time.
    let end = j["segments"][0]["end"].as_u64().unwrap();
    assert!(end >= (FILE_HEADER_BYTES + 4 * BLOCK) as u64 && end.is_multiple_of(BLOCK as u64), "{end}");
    assert_eq!(
        j["segments"][0],
        json!({"id": 1, "file": "seg-0000000000000001.wal", "first_seq": 1, "last_seq": 3, "end": end, "label": "clean"})
    );
    assert_eq!(j["would_recover_through"], 10);
    assert_eq!(j["tables"], json!([{"database": "db", "table": "t", "rows": 20, "unshipped_rows": 20, "side_rows": 0}]));
    assert_eq!((&j["findings"], &j["refusals"], &j["missing"]), (&json!([]), &json!([]), &json!([])));
    assert_eq!(j["watermarks"], json!({"planned": 0, "shipped": 0, "released": 0}));
    assert!(j.get("lake").is_none());

    let l = list::list(&OsVfs, dir.path()).unwrap();
    assert!(l.problems.is_empty(), "{:?}", l.problems);
    let labels: Vec<_> = l.segments.iter().map(|s| (s.id, s.first_seq, s.last_seq, s.label)).collect();
    let some = |n| Some(n);
    assert_eq!(
        labels,
        [
            (1, some(1), some(3), "sealed"),
            (2, some(4), some(6), "sealed"),
            (3, some(7), some(9), "sealed"),
            (4, some(10), some(10), "active")
        ]
    );
    assert_eq!(l.segments.iter().map(|s| s.end).collect::<Vec<_>>(), v.segments.iter().map(|s| Some(s.end)).collect::<Vec<_>>());
    assert_eq!((l.log_uuid, l.reserve_bytes), (v.log_uuid, 256 << 10));
    assert!(l.manifest.is_some_and(|m| m.epoch == 4));

    let (rows, done) = lines(dir.path(), &DumpOptions::default());
    assert_eq!((rows.len(), sequences(&rows)), (20, (1..=10).collect()));
    assert!(done.problems.is_empty());
    quarantine::list(&OsVfs, dir.path()).unwrap();
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn a_copy_needs_only_segments_and_manifest() {
    let dir = build();
    let copy = tempfile::tempdir().unwrap();
    for e in OsVfs.list(dir.path()).unwrap() {
        if e.name.starts_with("seg-") || e.name.starts_with("manifest-") {
            std::fs::copy(dir.path().join(&e.name), copy.path().join(&e.name)).unwrap();
        }
    }
    assert_eq!(check(copy.path()), check(dir.path()));
    assert!(list::list(&OsVfs, copy.path()).unwrap().problems.is_empty());
    assert!(quarantine::list(&OsVfs, copy.path()).unwrap().slices.is_empty());
    assert_eq!(lines(copy.path(), &DumpOptions::default()), lines(dir.path(), &DumpOptions::default()));
}

#[test]
fn what_is_no_log_is_told_from_what_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for bad in [dir.path(), &dir.path().join("none"), &file] {
        let not_a_log = |e: ToolError| matches!(e, ToolError::NotALog(_)) && e.to_string().contains(&*bad.display().to_string());
        assert!(not_a_log(verify(&OsVfs, bad, None, &mut |_| {}).unwrap_err()));
        assert!(not_a_log(list::list(&OsVfs, bad).unwrap_err()));
        assert!(not_a_log(dump(&OsVfs, bad, &DumpOptions::default(), &mut Vec::new()).unwrap_err()));
        assert!(not_a_log(quarantine::list(&OsVfs, bad).unwrap_err()));
    }
    let log = build();
    let e = verify(&OsVfs, log.path(), Some(&dir.path().join("none")), &mut |_| {}).unwrap_err();
    assert!(matches!(e, ToolError::Io { .. }) && e.to_string().contains("lake"), "{e}");
}

#[test]
fn damage_is_named_with_its_place_and_what_is_missing() {
    // Sequence 5 in the middle of a segment; 6 at the end of one and 7 at the beginning of the next; 10 in the newest.
    let at = |record: usize| FILE_HEADER_BYTES + record * BLOCK + RECORD_HEADER_BYTES + 3;
    for (hits, lost) in [
        (&[(2u64, at(1))][..], &[5u64][..]),
        (&[(2, at(2))], &[6]),
        (&[(2, at(2)), (3, at(0))], &[6, 7]),
        (&[(4, at(0))], &[10]),
        (&[(1, at(0)), (1, at(2)), (2, at(2)), (3, at(2))], &[1, 3, 6, 9]),
    ] {
        let dir = build();
        for (segment, at) in hits {
            flip(&files::segment_path(dir.path(), *segment), *at);
        }
        let before = snapshot(dir.path());
        let v = check(dir.path());
        assert_eq!((v.verdict, v.clean()), ("damaged", false));
        let missing: Vec<Sequence> = v.missing.iter().flat_map(|m| m.first..=m.last).collect();
        assert_eq!(missing, lost);
        assert_eq!(v.would_recover_through, 10);
        assert_eq!(v.findings.len(), hits.len());
        for (f, (segment, at)) in v.findings.iter().zip(hits) {
            assert_eq!((f.label, f.segment, f.offset), ("damaged", *segment, (at - RECORD_HEADER_BYTES - 3) as u64));
            assert!(f.expected.contains("CRC") && f.found.contains("CRC"));
            assert_eq!(f.file, files::segment_name(*segment));
            assert_eq!(v.segments.iter().find(|s| s.id == *segment).unwrap().label, "damaged");
        }
        assert_eq!(v.tables[0].rows, 2 * (10 - lost.len() as u64));
        let (rows, done) = lines(dir.path(), &DumpOptions::default());
        let kept: Vec<u64> = (1..=10).filter(|s| !lost.contains(s)).collect();
        assert_eq!(sequences(&rows), kept);
        assert_eq!(rows.len(), 2 * kept.len());
        assert_eq!(done.problems.len(), hits.len(), "{:?}", done.problems);
        assert_eq!(snapshot(dir.path()), before);
    }
}

#[test]
fn a_torn_tail_is_clean() {
    let dir = build();
    let (o, _) = reopen(settings(dir.path(), 1 << 16, Engine::Pwrite)).unwrap();
    let r = Running::start(o);
    assert_eq!((r.append(11, 2), r.append(12, 2)), (11, 12));
    drop(r);
    let seg = files::segment_path(dir.path(), 5);
    let mut b = std::fs::read(&seg).unwrap();
    // The mark goes, and half of the last group was never written. The first group is known to be durable: the manifest names the segment.
    let last = FILE_HEADER_BYTES + BLOCK;
    b[last + BLOCK..last + 2 * BLOCK].fill(0);
    b[last + RECORD_HEADER_BYTES..last + BLOCK].fill(0);
    std::fs::write(&seg, b).unwrap();
    let v = check(dir.path());
    assert_eq!((v.verdict, v.clean(), v.would_recover_through), ("torn", true, 11));
    assert_eq!(v.findings.iter().map(|f| f.label).collect::<Vec<_>>(), ["torn"]);
    let (rows, done) = lines(dir.path(), &DumpOptions::default());
    assert_eq!(sequences(&rows), (1..=11).collect::<Vec<_>>());
    assert!(done.problems.is_empty());
}

#[test]
fn headers_and_missing_files() {
    let dir = build();
    let seg = files::segment_path(dir.path(), 2);
    flip(&seg, BLOCK + 20);
    let v = check(dir.path());
    assert_eq!((v.verdict, v.clean()), ("damaged", false));
    assert_eq!(v.findings.iter().map(|f| (f.label, f.segment, f.offset)).collect::<Vec<_>>(), [("header_copy", 2, BLOCK as u64)]);
    flip(&seg, 20);
    let v = check(dir.path());
    assert_eq!((v.clean(), v.segments[1].label), (false, "header_lost"));
    let l = list::list(&OsVfs, dir.path()).unwrap();
    assert_eq!((l.segments[1].label, l.problems.len()), ("header_lost", 1));

    let dir = build();
    flip(&manifest_path(dir.path()), 20);
    let v = check(dir.path());
    assert_eq!(v.findings.iter().map(|f| (f.label, f.segment, f.offset)).collect::<Vec<_>>(), [("header_copy", 0, 0)]);

    let dir = build();
    std::fs::remove_file(manifest_path(dir.path())).unwrap();
    let v = check(dir.path());
    assert_eq!((v.verdict, v.clean(), v.refusals.len()), ("refused", false, 1));
    let (rows, done) = lines(dir.path(), &DumpOptions::default());
    assert_eq!((sequences(&rows), done.problems.len()), ((1..=10).collect(), 1));
    assert_eq!(list::list(&OsVfs, dir.path()).unwrap().problems.len(), 1);

    let dir = build();
    std::fs::remove_file(files::segment_path(dir.path(), 2)).unwrap();
    let v = check(dir.path());
    assert_eq!((v.verdict, v.clean()), ("refused", false));
    assert!(v.refusals.iter().any(|r| r.contains("seg-0000000000000002.wal missing")), "{:?}", v.refusals);
    let (rows, _) = lines(dir.path(), &DumpOptions::default());
    assert_eq!(sequences(&rows), [1, 2, 3, 7, 8, 9, 10]);
}

#[test]
fn a_dump_by_range_table_and_limit() {
    let dir = build();
    let of = |o: DumpOptions| lines(dir.path(), &o).0;
    assert_eq!(sequences(&of(DumpOptions { from: Some(3), to: Some(7), ..Default::default() })), [3, 4, 5, 6, 7]);
    assert_eq!(sequences(&of(DumpOptions { from: Some(9), ..Default::default() })), [9, 10]);
    assert!(of(DumpOptions { from: Some(11), ..Default::default() }).is_empty());
    assert_eq!(of(DumpOptions { limit: Some(3), ..Default::default() }).len(), 3);
    assert!(of(DumpOptions { limit: Some(0), ..Default::default() }).is_empty());
    assert!(of(DumpOptions { table: Some("u".into()), ..Default::default() }).is_empty());
    assert!(of(DumpOptions { database: Some("x".into()), ..Default::default() }).is_empty());
    assert_eq!(of(DumpOptions { database: Some("db".into()), table: Some("t".into()), ..Default::default() }).len(), 20);
    let rows = of(DumpOptions { from: Some(2), limit: Some(2), ..Default::default() });
    assert_eq!(rows[0], json!({"seq": 2, "row": 0, "database": "db", "table": "t", "time_us": 2, "columns": {}}));
    assert_eq!(rows[1]["row"], 1);
    let records = of(DumpOptions { records: true, from: Some(5), to: Some(5), ..Default::default() });
    assert_eq!(records.len(), 1);
    let r = &records[0];
    assert_eq!((&r["seq"], &r["kind"], &r["segment"], &r["floor"]), (&json!(5), &json!("write"), &json!(2), &json!(4)));
    assert_eq!((&r["offset"], &r["receive_time"]), (&json!(FILE_HEADER_BYTES + BLOCK), &json!(7)));
    assert!(r["payload_len"].as_u64().is_some());
}

#[test]
fn a_reader_that_goes_away_ends_the_dump() {
    struct Gone(usize);
    impl std::io::Write for Gone {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(b.len()).ok_or(std::io::ErrorKind::BrokenPipe)?;
            Ok(b.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let dir = build();
    let e = dump(&OsVfs, dir.path(), &DumpOptions::default(), &mut Gone(300)).unwrap_err();
    assert!(matches!(e, ToolError::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe));
}

pub(super) fn plan(log: LogId, plan: u64, first: Sequence, last: Sequence, outputs: u32) -> Plan {
    let name = |n| object_name("db", "t", Layout::Hive, 0, log, (first, last), n);
    let output = |n| PlanOutput { schema: 0, hour: 0, first_sequence: first, last_sequence: last, rows: 1, name: name(n) };
    let writer = PlanWriter {
        version: "1".into(),
        compression: "none".into(),
        level: 0,
        row_group_rows: 1,
        layout: "hive".into(),
        encoding: None,
        row_group_bytes: None,
    };
    let outputs = (0..outputs).map(output).collect();
    Plan { plan, first_sequence: first, last_sequence: last, inputs: vec![], writer, schemas: vec![], outputs }
}

#[test]
fn the_lake_against_the_commits() {
    let dir = build();
    let (o, _) = reopen(settings(dir.path(), 1 << 16, Engine::Pwrite)).unwrap();
    let r = Running::start(o);
    let log = r.log.log;
    let lake = tempfile::tempdir().unwrap();
    let store = |name: &str, bytes: &[u8]| {
        let path = lake.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let sha = |b: &[u8]| Sha256::digest(b).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let commit = |plan, output, bytes: &[u8]| Entry::Commit {
        plan,
        output,
        length: bytes.len() as u64,
        sha256: if bytes.is_empty() { String::new() } else { sha(bytes) },
        rows: 1,
        set_aside: vec![],
    };
    let intent = |plan, output, bytes: &[u8]| match commit(plan, output, bytes) {
        Entry::Commit { plan, output, length, sha256, rows, set_aside } => Entry::Intent { plan, output, length, sha256, rows, set_aside },
        e => e,
    };
    // Plan 4 was shipped, its third output was set aside whole; plan 5 is open, its first output is published and not committed.
    let (shipped, open) = (plan(log, 4, 3, 6, 3), plan(log, 5, 7, 9, 2));
    let entries = vec![
        Entry::Plan(shipped.clone()),
        commit(4, 0, b"one"),
        commit(4, 1, b"two"),
        commit(4, 2, b""),
        Entry::Shipped { plan: 4, last_sequence: 6 },
        Entry::Plan(open.clone()),
        intent(5, 0, b"first"),
        intent(5, 0, b"soon"),
    ];
    lock(&r.manifest).append(entries, &[]).unwrap();
    let check = || {
        let v = verify(&OsVfs, dir.path(), Some(lake.path()), &mut |_| {}).unwrap();
        let l = v.lake.clone().unwrap();
        assert_eq!((v.verdict, v.clean()), ("clean", l.clean()));
        l
    };
    let name = |p: &Plan, n: usize| p.outputs[n].name.clone();
    store(&name(&shipped, 0), b"one");
    store(&name(&shipped, 1), b"two");
    // Another log's file, a temporary one, one that the manifest has forgotten, and the log's own objects.
    store(&object_name("db", "t", Layout::Hive, 0, LogId([9; 16]), (1, 2), 0), b"x");
    store(&format!("db/t/.{log}-1.parquet"), b"x");
    store(&name(&plan(log, 1, 1, 2, 1), 0), b"x");
    store(&format!("_arc/{log}-x.parquet"), b"x");
    assert_eq!(check(), LakeReport { checked: 2, ..LakeReport::default() });
    store(&name(&open, 0), b"soon");
    assert_eq!(check(), LakeReport { checked: 2, pending: vec![name(&open, 0)], ..LakeReport::default() });

    // Something else stands where an output is to go.
    store(&name(&open, 0), b"s00n");
    assert_eq!(check(), LakeReport { checked: 2, unnamed: vec![name(&open, 0)], ..LakeReport::default() });
    store(&name(&open, 0), b"soon");

    let strays = [name(&shipped, 2), name(&plan(log, 4, 3, 6, 9), 8), name(&plan(log, 9, 20, 30, 1), 0)];
    strays.iter().for_each(|s| store(s, b"x"));
    std::fs::remove_file(lake.path().join(name(&shipped, 0))).unwrap();
    store(&name(&shipped, 1), b"tw0");
    let l = check();
    assert!(!l.clean());
    assert_eq!((l.checked, &l.missing, &l.unnamed), (2, &vec![name(&shipped, 0)], &strays.to_vec()));
    assert_eq!(l.wrong.len(), 1);
    assert_eq!((&l.wrong[0].expected, &l.wrong[0].found), (&(3, sha(b"two")), &(3, sha(b"tw0"))));
    let v = verify(&OsVfs, dir.path(), None, &mut |_| {}).unwrap();
    assert_eq!((v.watermarks.planned, v.watermarks.shipped, v.tables[0].unshipped_rows), (9, 6, 8));
    drop(r);
}

#[test]
fn deferred_outputs_need_their_side_segments() {
    let dir = build();
    let (o, _) = reopen(settings(dir.path(), 1 << 16, Engine::Pwrite)).unwrap();
    let r = Running::start(o);
    let mut p = plan(r.log.log, 1, 1, 3, 1);
    p.outputs[0].rows = 3;
    p.schemas.push(PlanSchema { database: "db".into(), table: "t".into(), version: 0, columns: vec![] });
    let entries = vec![Entry::Plan(p), Entry::Deferred { plan: 1, output: 0, bytes: 1 }, Entry::Shipped { plan: 1, last_sequence: 3 }];
    lock(&r.manifest).append(entries, &[]).unwrap();
    drop(r);
    let finding = || {
        let v = check(dir.path());
        assert_eq!(v.clean(), v.findings.is_empty());
        v.findings.first().map(|f| (f.label, f.segment, f.found.clone()))
    };
    assert_eq!(finding(), Some(("deferred", 0, "no such file".into())));
    // One row of each of the three records is in the hour.
    let side = dir.path().join("side").join(files::deferred_name(1, 0));
    super::outside_tests::side_segment(&side, v_log(dir.path()), 1, &[1, 2, 3]);
    assert_eq!(finding(), None);
    flip(&side, FILE_HEADER_BYTES + 80);
    assert!(finding().is_some_and(|(label, segment, found)| (label, segment) == ("deferred", 0) && found.contains("CRC")));
}

/// The log's id.
fn v_log(dir: &Path) -> LogId {
    crate::wal::manifest::load(&OsVfs, dir).unwrap().unwrap().header.log
}

#[test]
fn the_quarantine_is_listed_and_shown() {
    let dir = build();
    let seg = std::fs::read(files::segment_path(dir.path(), 1)).unwrap();
    let record = &seg[FILE_HEADER_BYTES..FILE_HEADER_BYTES + BLOCK];
    let entry = |sequence, table: &str| Quarantined {
        sequence,
        database: "db".into(),
        table: table.into(),
        hour: 0,
        rows: 1,
        plan: 1,
        reason: "why".into(),
        bytes: BLOCK as u64,
    };
    put(&OsVfs, dir.path(), &entry(1, "t"), record).unwrap();
    put(&OsVfs, dir.path(), &entry(1, "unknown"), record).unwrap();
    put(&OsVfs, dir.path(), &entry(2, "t"), &record[..80]).unwrap();
    let q = quarantine::list(&OsVfs, dir.path()).unwrap();
    assert_eq!((q.slices.len(), q.rows, q.bytes, q.problems.len()), (3, 3, 3 * BLOCK as u64, 0));
    let j = serde_json::to_value(&q).unwrap();
    assert_eq!((&j["slices"][0]["sequence"], &j["slices"][0]["reason"]), (&json!(1), &json!("why")));
    let (slices, problems) = quarantine::show(&OsVfs, dir.path(), 1).unwrap();
    assert!(problems.is_empty());
    let rows: Vec<_> = slices.iter().map(|s| s.decoded.as_ref().unwrap().len()).collect();
    assert_eq!(rows, [1, 2], "one of the two rows is in the hour; a whole record has both");
    assert_eq!(slices[0].decoded.as_ref().unwrap()[0]["time_us"], 1);
    let (slices, _) = quarantine::show(&OsVfs, dir.path(), 2).unwrap();
    assert!(slices[0].decoded.is_none() && slices[0].error.is_some());
    assert!(slices[0].hex.as_ref().unwrap().starts_with("a75243f5"));
    assert!(quarantine::show(&OsVfs, dir.path(), 3).unwrap().0.is_empty());
    std::fs::write(dir.path().join("quarantine/00000000000000000009-x.slice"), "no json").unwrap();
    let q = quarantine::list(&OsVfs, dir.path()).unwrap();
    assert_eq!((q.slices.len(), q.problems.len()), (3, 1));
}

/// A server that writes, rotates, releases, recycles and rewrites its manifest as fast as it can, and tools that never see
/// anything wrong.
#[test]
fn a_live_log_never_looks_wrong() {
    for engine in [Engine::Pwrite, Engine::Mmap] {
        let dir = tempfile::tempdir().unwrap();
        let (o, _) = reopen(settings(dir.path(), 1 << 16, engine)).unwrap();
        let r = Running::start(o);
        let stop = AtomicBool::new(false);
        let (mut looks, mut dumps) = (0, 0);
        std::thread::scope(|s| {
            for t in 0..3 {
                let (r, stop) = (&r, &stop);
                s.spawn(move || {
                    for i in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        r.append(1 + t, 1 + i % 700);
                    }
                });
            }
            s.spawn(|| release(&r, &stop));
            let until = Instant::now() + Duration::from_secs(3);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                while Instant::now() < until || dumps < 4 {
                    let v = check(dir.path());
                    assert!(v.clean(), "{engine:?} look {looks}: {v:#?}");
                    assert!(list::list(&OsVfs, dir.path()).unwrap().problems.is_empty());
                    looks += 1;
                    let (records, done) = lines(dir.path(), &DumpOptions { records: true, ..Default::default() });
                    assert!(done.problems.is_empty(), "{engine:?}: {:?}", done.problems);
                    let all: Vec<u64> = records.iter().map(|l| l["seq"].as_u64().unwrap()).collect();
                    assert!(all.windows(2).all(|w| w[0] < w[1]), "{all:?}");
                    dumps += 1;
                }
            }));
            stop.store(true, Ordering::Relaxed);
            if let Err(e) = outcome {
                std::panic::resume_unwind(e);
            }
        });
        let w = r.log.watermarks();
        assert!(w.released > 0, "{w:?}, {looks} looks, {dumps} dumps");
        drop(r);
        assert!(check(dir.path()).clean());
    }
}

/// Releases all but the newest three sealed segments, as the compactor does once their outputs are committed.
fn release(r: &Running, stop: &AtomicBool) {
    let mut released = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let oldest = {
            let mut s = lock(&r.log.segments);
            let oldest = if s.sealed.len() > 3 { s.sealed.pop_front() } else { None };
            r.log.recount(&s);
            oldest
        };
        let Some(seg) = oldest else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        released += 1;
        let (last, id) = (seg.last_sequence, seg.id);
        let entries = vec![Entry::Shipped { plan: released, last_sequence: last }, Entry::Released { segment: id, last_sequence: last }];
        {
            let mut m = lock(&r.manifest);
            m.append(entries, &[]).unwrap();
            if released.is_multiple_of(20) {
                m.rewrite(Vec::new()).unwrap();
            }
        }
        r.log.advance(|w| {
            w.shipped = last;
            w.released = last;
        });
        let _ = r.prealloc.give(seg.path.clone(), seg.file_len, id, true);
    }
}
