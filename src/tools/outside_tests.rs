//! What the tools show of directories whose names lie, of side segments, and of bytes that no other look reaches.

use std::path::Path;

use super::dump::DumpOptions;
use super::list::list;
use super::tests::{build, check, flip, lines, manifest_path, plan, sequences};
use crate::compact::quarantine::{Quarantined, put};
use crate::format::file_header::{FORMAT_MINOR, FileHeader, FileKind};
use crate::format::manifest::{Entry, PlanSchema};
use crate::format::record::{RecordHeader, RecordKind, record_len};
use crate::limits::{BLOCK, FILE_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::types::LogId;
use crate::vfs::{Engine, OsVfs};
use crate::wal::files;
use crate::wal::manifest::load;
use crate::wal::shared::lock;
use crate::wal::testing::{Running, record, reopen, settings};

/// Writes a side segment of two rows for each of these sequences.
pub(super) fn side_segment(path: &Path, log: LogId, plan: u64, of: &[u64]) {
    let mut data = Vec::new();
    for sequence in of {
        let r = record(*sequence as i64, 2);
        let h = RecordHeader {
            kind: RecordKind::Write,
            payload_len: r.payload_len(),
            payload_crc: r.payload_crc(),
            salt: 99,
            offset: (FILE_HEADER_BYTES + data.len()) as u64,
            sequence: *sequence,
            durable_floor: *sequence,
            receive_time_us: 7,
        };
        data.extend_from_slice(&h.encode());
        data.extend_from_slice(r.payload());
        data.resize(data.len().next_multiple_of(8), 0);
    }
    let header = FileHeader {
        kind: FileKind::Segment,
        minor: FORMAT_MINOR,
        compatible: 0,
        incompatible: 0,
        log,
        id: plan,
        first_sequence: of[0],
        salt: 99,
        epoch: 1,
        file_len: (FILE_HEADER_BYTES + data.len()) as u64,
        predecessor: None,
    };
    std::fs::write(path, [header.encode_file(), data].concat()).unwrap();
}

/// The log of `build`, whose sequences 1 to 3 are released and wait in a side segment: output 0 of plan 1, table t of the hour 0.
fn waiting() -> tempfile::TempDir {
    let dir = build();
    let (o, _) = reopen(settings(dir.path(), 1 << 16, Engine::Pwrite)).unwrap();
    let r = Running::start(o);
    let mut p = plan(r.log.log, 1, 1, 3, 1);
    p.outputs[0].rows = 3;
    if p.schemas.is_empty() {
        p.schemas.push(PlanSchema { database: "db".into(), table: "t".into(), version: 0, columns: vec![] });
    }
    let entries = vec![
        Entry::Plan(p),
        Entry::Deferred { plan: 1, output: 0, bytes: 1 },
        Entry::Shipped { plan: 1, last_sequence: 3 },
        Entry::Released { segment: 1, last_sequence: 3 },
    ];
    lock(&r.manifest).append(entries, &[]).unwrap();
    side_segment(&dir.path().join("side").join(files::deferred_name(1, 0)), r.log.log, 1, &[1, 2, 3]);
    drop(r);
    std::fs::remove_file(files::segment_path(dir.path(), 1)).unwrap();
    dir
}

#[test]
fn side_segment_rows_are_listed_verified_and_dumped() {
    let dir = waiting();
    let v = check(dir.path());
    assert!(v.clean(), "{:?} {:?}", v.findings, v.refusals);
    assert_eq!(v.tables.iter().map(|t| (t.rows, t.side_rows)).collect::<Vec<_>>(), [(14, 3)]);
    let l = list(&OsVfs, dir.path()).unwrap();
    let side: Vec<_> = l.side_segments.iter().map(|s| (s.state, s.table.as_deref(), s.rows, s.first_seq, s.last_seq)).collect();
    assert_eq!(side, [("waits", Some("t"), Some(3), Some(1), Some(3))]);
    // One row of each record is in the hour; the segments have both rows of theirs.
    let (rows, done) = lines(dir.path(), &DumpOptions::default());
    assert_eq!(sequences(&rows), (1..=10).collect::<Vec<_>>());
    assert_eq!((rows.len(), &done.problems), (3 + 2 * 7, &vec![]));
    let (rows, _) = lines(dir.path(), &DumpOptions { from: Some(2), to: Some(4), ..Default::default() });
    assert_eq!(sequences(&rows), [2, 3, 4]);
    let (rows, _) = lines(dir.path(), &DumpOptions { limit: Some(2), ..Default::default() });
    assert_eq!(sequences(&rows), [1, 2]);
    let (records, _) = lines(dir.path(), &DumpOptions { records: true, to: Some(4), ..Default::default() });
    assert_eq!(records[0]["file"], "side/out-0000000000000001-00000000.wal");
    assert_eq!(records[3]["file"], "seg-0000000000000002.wal");
}

#[test]
fn quarantined_rows_are_verified_and_dumped_once() {
    let dir = waiting();
    let side = std::fs::read(dir.path().join("side").join(files::deferred_name(1, 0))).unwrap();
    let len = record_len(record(1, 2).payload_len() as usize);
    let whole = &side[FILE_HEADER_BYTES..FILE_HEADER_BYTES + len];
    let entry = |sequence, table: &str, hour| Quarantined {
        sequence,
        database: "db".into(),
        table: table.into(),
        hour,
        rows: 1,
        plan: 1,
        reason: "why".into(),
        bytes: len as u64,
    };
    // The other hour of sequence 1, which is in no side segment; and the one that is in both places.
    put(&OsVfs, dir.path(), &entry(1, "t", 305), whole).unwrap();
    put(&OsVfs, dir.path(), &entry(1, "t", 0), whole).unwrap();
    let v = check(dir.path());
    assert!(v.clean(), "{:?}", v.findings);
    assert_eq!(v.quarantined_rows, 2);
    let (rows, done) = lines(dir.path(), &DumpOptions { to: Some(1), ..Default::default() });
    assert_eq!((rows.len(), &done.problems), (2, &vec![]), "{rows:?}");
    let name = std::fs::read_dir(dir.path().join("quarantine")).unwrap().next().unwrap().unwrap().path();
    let at = std::fs::metadata(&name).unwrap().len() as usize - 10;
    flip(&name, at);
    assert_eq!(check(dir.path()).findings.iter().map(|f| f.label).collect::<Vec<_>>(), ["quarantine"]);
}

#[test]
fn records_set_aside_are_counted_and_dumped_when_asked_for() {
    let dir = build();
    let bytes = std::fs::read(files::segment_path(dir.path(), 2)).unwrap();
    std::fs::write(dir.path().join("side/0000000000000001-0000000000002000-behind_torn.bin"), &bytes[FILE_HEADER_BYTES..][..2 * BLOCK])
        .unwrap();
    let v = check(dir.path());
    assert_eq!(v.kept.iter().map(|k| (k.records, k.first_seq, k.last_seq)).collect::<Vec<_>>(), [(2, Some(4), Some(5))]);
    assert_eq!(list(&OsVfs, dir.path()).unwrap().kept, v.kept);
    assert_eq!(lines(dir.path(), &DumpOptions::default()).0.len(), 20);
    let (rows, _) = lines(dir.path(), &DumpOptions { set_aside: true, ..Default::default() });
    let named: Vec<_> = rows.iter().filter(|r| r["file"].is_string()).map(|r| r["seq"].as_u64().unwrap()).collect();
    assert_eq!((rows.len(), named), (24, vec![4, 4, 5, 5]));
}

#[test]
fn verify_names_side_segments_that_are_damaged_missing_or_stray() {
    let side = |dir: &Path| dir.join("side").join(files::deferred_name(1, 0));
    let found = |dir: &Path| {
        let v = check(dir);
        assert_eq!(v.clean(), v.findings.is_empty());
        v.findings.into_iter().map(|f| (f.label, f.file)).collect::<Vec<_>>()
    };
    let name = format!("side/{}", files::deferred_name(1, 0));
    let dir = waiting();
    let mut bytes = std::fs::read(side(dir.path())).unwrap();
    bytes.extend_from_slice(&[0; 8]);
    std::fs::write(side(dir.path()), &bytes).unwrap();
    assert_eq!(found(dir.path()), [("deferred", name.clone())], "extra bytes");
    bytes.truncate(bytes.len() - 16);
    std::fs::write(side(dir.path()), &bytes).unwrap();
    assert!(found(dir.path()).contains(&("deferred", name.clone())), "cut short");
    std::fs::remove_file(side(dir.path())).unwrap();
    assert_eq!(found(dir.path()), [("deferred", name)], "missing");
    let (_, done) = lines(dir.path(), &DumpOptions::default());
    assert_eq!(done.problems.len(), 1, "{:?}", done.problems);
    let dir = waiting();
    let stray = files::deferred_name(9, 0);
    std::fs::copy(side(dir.path()), dir.path().join("side").join(&stray)).unwrap();
    assert!(found(dir.path()).contains(&("stray", format!("side/{stray}"))));
    assert_eq!(list(&OsVfs, dir.path()).unwrap().problems.len(), 1);
}

/// Replaces the payload, or the kind, of the second record of segment 2 (sequence 5), with CRCs made right.
fn forge(dir: &Path, change: impl FnOnce(&mut RecordHeader, &mut [u8])) {
    let path = files::segment_path(dir, 2);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = FILE_HEADER_BYTES + BLOCK;
    let mut h = RecordHeader::parse(&bytes[at..]).unwrap();
    let payload = at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + h.payload_len as usize;
    change(&mut h, &mut bytes[payload.clone()]);
    h.payload_crc = crc32fast::hash(&bytes[payload]);
    bytes[at..at + RECORD_HEADER_BYTES].copy_from_slice(&h.encode());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn verify_decodes_every_column_of_every_record() {
    let dir = build();
    // The last byte of the body is the number of columns.
    forge(dir.path(), |_, payload| *payload.last_mut().unwrap() = 9);
    let v = check(dir.path());
    assert_eq!(v.findings.iter().map(|f| (f.label, f.segment)).collect::<Vec<_>>(), [("payload", 2)]);
    assert!(!v.clean());
    let (rows, done) = lines(dir.path(), &DumpOptions::default());
    assert_eq!((sequences(&rows), done.problems.len()), (vec![1, 2, 3, 4, 6, 7, 8, 9, 10], 1));
}

#[test]
fn records_of_the_wrong_kind_are_damage() {
    for kind in [RecordKind::Entry, RecordKind::Keys] {
        let dir = build();
        forge(dir.path(), |h, _| h.kind = kind);
        let v = check(dir.path());
        assert_eq!(v.findings.iter().map(|f| (f.label, f.segment)).collect::<Vec<_>>(), [("damaged", 2)]);
        assert_eq!(v.missing.iter().map(|m| (m.first, m.last)).collect::<Vec<_>>(), [(5, 5)]);
        assert!(v.findings[0].found.contains(kind.name()), "{:?}", v.findings);
    }
}

#[test]
fn verify_reads_every_byte_of_the_manifest_and_behind_the_ends() {
    let dir = build();
    let path = manifest_path(dir.path());
    let m = load(&OsVfs, dir.path()).unwrap().unwrap();
    // A pad of the first group: nothing that the manifest says is lost.
    let bytes = std::fs::read(&path).unwrap();
    let mut at = FILE_HEADER_BYTES;
    loop {
        let h = RecordHeader::parse(&bytes[at..]).unwrap();
        if h.kind == RecordKind::Pad {
            break;
        }
        at += h.record_len();
    }
    flip(&path, at + RECORD_HEADER_BYTES + 1);
    let v = check(dir.path());
    assert_eq!(v.findings.iter().map(|f| (f.label, f.offset)).collect::<Vec<_>>(), [("damaged_pad", at as u64)]);
    assert!(!v.clean());
    flip(&path, at + RECORD_HEADER_BYTES + 1);
    assert!(check(dir.path()).findings.is_empty());
    flip(&path, m.end as usize + 2 * BLOCK);
    let newest = files::segment_path(dir.path(), 4);
    flip(&newest, FILE_HEADER_BYTES + 8 * BLOCK + 5);
    let v = check(dir.path());
    let found: Vec<_> = v.findings.iter().filter(|f| f.label == "behind_end").map(|f| f.segment).collect();
    assert_eq!((found, v.clean()), (vec![4, 0], true), "{:?}", v.findings);
    // More bytes than the header says.
    let dir = build();
    let seg = files::segment_path(dir.path(), 1);
    let mut bytes = std::fs::read(&seg).unwrap();
    bytes.extend_from_slice(b"more");
    std::fs::write(&seg, bytes).unwrap();
    assert_eq!(check(dir.path()).findings.iter().map(|f| (f.label, f.segment)).collect::<Vec<_>>(), [("behind_end", 1)]);
}

fn missing(dir: &Path) -> Vec<(u64, u64)> {
    let v = check(dir);
    assert_eq!(v.verdict, "refused");
    v.missing.iter().map(|m| (m.first, m.last)).collect()
}

fn dumped(dir: &Path) -> Vec<u64> {
    let (rows, done) = lines(dir, &DumpOptions::default());
    assert!(!done.problems.is_empty());
    let all: Vec<u64> = rows.iter().map(|r| r["seq"].as_u64().unwrap()).collect();
    let unique = sequences(&rows);
    assert_eq!(all.len(), 2 * unique.len(), "two rows of each, once: {all:?}");
    unique
}

#[test]
fn segments_are_told_by_what_they_hold_not_by_their_names() {
    let all: Vec<u64> = (1..=10).collect();
    let seg = |dir: &Path, id| files::segment_path(dir, id);
    // Swapped names.
    let dir = build();
    let away = dir.path().join("away");
    std::fs::rename(seg(dir.path(), 2), &away).unwrap();
    std::fs::rename(seg(dir.path(), 3), seg(dir.path(), 2)).unwrap();
    std::fs::rename(&away, seg(dir.path(), 3)).unwrap();
    assert_eq!((dumped(dir.path()), missing(dir.path())), (all.clone(), vec![]), "swapped");
    // Other names, of which one is no name of a segment.
    for name in ["seg-0000000000000002.wal.bak", "SEG-0000000000000002.WAL", "seg-000000000000000A.wal"] {
        let dir = build();
        std::fs::rename(seg(dir.path(), 2), dir.path().join(name)).unwrap();
        assert_eq!((dumped(dir.path()), missing(dir.path())), (all.clone(), vec![]), "{name}");
        assert!(check(dir.path()).refusals.iter().any(|r| r.contains(name)), "{name} is named");
    }
    // A copy over its successor, and one behind the newest.
    let dir = build();
    std::fs::copy(seg(dir.path(), 2), seg(dir.path(), 3)).unwrap();
    assert_eq!((dumped(dir.path()), missing(dir.path())), (vec![1, 2, 3, 4, 5, 6, 10], vec![(7, 9)]), "doubled over its successor");
    let dir = build();
    std::fs::copy(seg(dir.path(), 4), seg(dir.path(), 5)).unwrap();
    assert_eq!((dumped(dir.path()), missing(dir.path())), (all.clone(), vec![]), "doubled as newest and one");
    let dir = build();
    std::fs::hard_link(seg(dir.path(), 4), seg(dir.path(), 5)).unwrap();
    assert_eq!((dumped(dir.path()), missing(dir.path())), (all.clone(), vec![]), "a hard link");
    // A segment of another log.
    let (dir, other) = (build(), build());
    std::fs::copy(seg(other.path(), 2), seg(dir.path(), 2)).unwrap();
    assert_eq!((dumped(dir.path()), missing(dir.path())), (vec![1, 2, 3, 7, 8, 9, 10], vec![(4, 6)]), "a foreign segment");
}

#[test]
fn missing_ranges_are_those_of_the_missing_segments() {
    for (gone, left, range) in [
        (vec![2], vec![1, 2, 3, 7, 8, 9, 10], (4, 6)),
        (vec![2, 3], vec![1, 2, 3, 10], (4, 9)),
        (vec![1], vec![4, 5, 6, 7, 8, 9, 10], (1, 3)),
    ] {
        let dir = build();
        for id in &gone {
            std::fs::remove_file(files::segment_path(dir.path(), *id)).unwrap();
        }
        assert_eq!((dumped(dir.path()), missing(dir.path())), (left, vec![range]), "without {gone:?}");
        let v = check(dir.path());
        let name = files::segment_name(gone[0]);
        assert!(v.findings.iter().any(|f| f.expected.contains(&name) && f.found == "no such file"), "{:?}", v.findings);
    }
}
