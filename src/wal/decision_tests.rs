//! One test for each row of the decision table for files in `wal-format.md`. The rows for places within a file are in
//! `format::scan::tests`.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::clock::SystemClock;
use crate::format::file_header::{FileHeader, FileKind};
use crate::format::manifest::Entry;
use crate::format::record::{RecordHeader, RecordKind};
use crate::format::scan::{Found, Label, Scanner};
use crate::types::{LogId, Sequence};
use crate::vfs::{DirEntry, File, GroupWriter, Mapping, SyncMode};
use crate::wal::manifest::{Manifest, ManifestState, put_group};
use crate::wal::recover::Report;
use crate::wal::shared::LogSettings;
use crate::wal::testing::*;

const DATA: u64 = 1 << 14;

fn small(dir: &Path) -> LogSettings {
    settings(dir, DATA, Engine::Pwrite)
}

/// A log with one record in each of segments 1 to 3, the third the newest; and its directory.
fn build() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..3 {
        let (o, _) = reopen(small(dir.path())).unwrap();
        Running::start(o).append(i, 1);
    }
    dir
}

fn seg(dir: &Path, id: u64) -> PathBuf {
    files::segment_path(dir, id)
}

fn manifest_of(dir: &Path) -> PathBuf {
    let names = OsVfs.list(dir).unwrap();
    let last = names.iter().rfind(|e| files::parse_manifest(&e.name).is_some()).unwrap();
    dir.join(&last.name)
}

fn edit(path: &Path, f: impl FnOnce(&mut Vec<u8>)) {
    let mut b = std::fs::read(path).unwrap();
    f(&mut b);
    std::fs::write(path, b).unwrap();
}

fn wipe_headers(path: &Path) {
    edit(path, |b| b[..FILE_HEADER_BYTES].fill(0));
}

fn edit_header(path: &Path, f: impl FnOnce(&mut FileHeader)) {
    edit(path, |b| {
        let (mut h, _) = FileHeader::parse_file(&b[..FILE_HEADER_BYTES], FileKind::Segment).unwrap();
        f(&mut h);
        b[..FILE_HEADER_BYTES].copy_from_slice(&h.encode_file());
    });
}

/// What recovery declares as the end of the newest segment must not cover a pad that is torn: the next recovery would call it damage.
#[test]
fn a_torn_pad_behind_the_last_mark_is_no_damage_later() {
    let dir = build();
    edit(&seg(dir.path(), 3), |b| {
        let (h, _) = FileHeader::parse_file(&b[..FILE_HEADER_BYTES], FileKind::Segment).unwrap();
        let found: Vec<_> = Scanner::new(b, h.salt, FILE_HEADER_BYTES as u64, b.len() as u64).collect();
        let mark = found.iter().find_map(|x| match x {
            Found::Record(r) if r.kind == RecordKind::Mark => Some(r.offset as usize + r.record_len()),
            _ => None,
        });
        b[mark.unwrap()..][..64].fill(7);
    });
    for _ in 0..3 {
        let (o, seen) = reopen(small(dir.path())).unwrap();
        assert_eq!(seen, ALL);
        assert_eq!(o.manifest.state.damage, [], "{:?}", o.report.findings);
    }
}

/// Every file under `dir` with its bytes.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(d) = todo.pop() {
        for e in std::fs::read_dir(d).unwrap() {
            let p = e.unwrap().path();
            if p.is_dir() {
                todo.push(p);
            } else if p.file_name().unwrap() != files::LOCK {
                out.push((p.clone(), std::fs::read(p).unwrap()));
            }
        }
    }
    out.sort();
    out
}

/// The log is refused with `text`, and nothing of it has changed.
fn refused(s: LogSettings, text: &str) {
    let dir = s.directory.clone();
    let before = snapshot(&dir);
    match reopen(s) {
        Err(OpenError::Refused(why)) => assert!(why.contains(text), "expected {text:?} in {why:?}"),
        other => panic!("expected a refusal with {text:?}, found {:?}", other.map(|(o, _)| o.report)),
    }
    let after = snapshot(&dir);
    let changed: Vec<_> = after.iter().filter(|f| !before.contains(f)).chain(before.iter().filter(|f| !after.contains(f))).collect();
    assert!(changed.is_empty(), "a refused log was changed: {:?}", changed.iter().map(|(path, _)| path).collect::<Vec<_>>());
}

fn labels(r: &Report) -> Vec<(u64, Label)> {
    r.findings.iter().map(|f| (f.segment, f.finding.label)).collect()
}

const ALL: [(Sequence, i64); 3] = [(1, 0), (2, 1), (3, 2)];

#[test]
fn one_bad_header_copy_is_replaced_by_the_other() {
    let dir = build();
    for copy in 0..2 {
        edit(&seg(dir.path(), 2), |b| b[copy * BLOCK + 20] ^= 1);
        let (o, seen) = reopen(small(dir.path())).unwrap();
        assert_eq!(seen, ALL);
        assert!(o.report.findings.is_empty(), "{:?}", o.report.findings);
        drop(o);
        edit(&seg(dir.path(), 2), |b| b[copy * BLOCK + 20] ^= 1);
    }
}

#[test]
fn a_lost_header_is_made_good_by_the_successor() {
    let dir = build();
    wipe_headers(&seg(dir.path(), 2));
    let (o, seen) = reopen(small(dir.path())).unwrap();
    assert_eq!(seen, ALL);
    assert_eq!(labels(&o.report), [(2, Label::Damaged)]);
    assert_eq!(o.report.findings[0].finding.missing, None);
    assert_eq!(o.report.segments[1].label, "header_lost");
}

#[test]
fn a_lost_header_of_the_newest_segment_is_made_good_by_its_records() {
    let dir = build();
    wipe_headers(&seg(dir.path(), 3));
    let (o, seen) = reopen(small(dir.path())).unwrap();
    assert_eq!(seen, ALL);
    assert_eq!(labels(&o.report), [(3, Label::Damaged)]);
}

#[test]
fn a_lost_header_that_nothing_makes_good_is_refused() {
    let dir = build();
    // A fourth segment, without a record.
    drop(reopen(small(dir.path())).unwrap());
    wipe_headers(&seg(dir.path(), 4));
    // A manifest of 1.0 does not say whether anything was acknowledged from it.
    of_a_later_version(&manifest_of(dir.path()), 24, 0);
    refused(small(dir.path()), "no record tells its generation");
}

/// Whatever it holds: nothing was acknowledged from it, and its number is not given out again.
#[test]
fn garbage_behind_the_newest_segment_is_moved_aside() {
    for garbage in [vec![], vec![0; 1 << 15], b"not a segment".repeat(1000), vec![0xff; 9000]] {
        for id in [4, 5] {
            let dir = build();
            if id == 5 {
                // The manifest knows segment 4: it was activated by a start.
                drop(reopen(small(dir.path())).unwrap());
                std::fs::remove_file(seg(dir.path(), 4)).unwrap();
            }
            std::fs::write(seg(dir.path(), 4), &garbage).unwrap();
            let report = inspect(&OsVfs, dir.path(), &mut |_| {}, &mut |_| {}).unwrap();
            assert_eq!((report.verdict(), report.notes.len(), report.through), ("clean", 1, 3), "{:?}", report.notes);
            assert!(report.notes[0].contains("nothing was acknowledged from it"), "{:?}", report.notes);
            let (o, seen) = reopen(small(dir.path())).unwrap();
            assert_eq!((seen, o.report.findings.len()), (ALL.to_vec(), 0));
            assert_eq!(std::fs::read(dir.path().join(files::SIDE).join(files::garbage_name(4))).unwrap(), garbage);
            Running::start(o).append(7, 1);
            assert!(seg(dir.path(), 5).exists() && !seg(dir.path(), 4).exists());
            let (o, seen) = reopen(small(dir.path())).unwrap();
            assert_eq!((seen.len(), o.report.verdict(), o.report.notes.len()), (ALL.len() + 1, "clean", 0), "{:?}", o.report.notes);
        }
    }
}

#[test]
fn a_newest_segment_that_was_lost_before_it_held_anything_is_not_missed() {
    let dir = build();
    drop(reopen(small(dir.path())).unwrap());
    std::fs::remove_file(seg(dir.path(), 4)).unwrap();
    let (o, seen) = reopen(small(dir.path())).unwrap();
    assert_eq!((seen, o.report.verdict()), (ALL.to_vec(), "clean"));
    assert_eq!(o.report.notes.len(), 1);
    assert!(o.report.notes[0].contains("seg-0000000000000004.wal is lost; nothing was acknowledged from it"), "{:?}", o.report.notes);
    Running::start(o).append(7, 1);
    // The one that follows is known by its own acknowledgement.
    let (o, seen) = reopen(small(dir.path())).unwrap();
    assert_eq!((seen.len(), o.report.notes.len()), (ALL.len() + 1, 0));
    drop(o);
    std::fs::remove_file(seg(dir.path(), 6)).unwrap();
    std::fs::remove_file(seg(dir.path(), 5)).unwrap();
    refused(small(dir.path()), "seg-0000000000000005.wal is lost, and sequences 4 to 4 at least were acknowledged from it");
}

#[test]
fn a_newest_segment_of_another_generation_is_refused() {
    let dir = build();
    edit_header(&seg(dir.path(), 3), |h| h.salt ^= 1);
    refused(small(dir.path()), "it is another file");
}

/// Its file is there, and nothing in it: the manifest knows that there was.
#[test]
fn a_newest_segment_that_was_emptied_is_refused_with_what_it_held() {
    for len in [0, 4096, 1 << 20] {
        let dir = build();
        std::fs::write(seg(dir.path(), 3), vec![0; len]).unwrap();
        refused(small(dir.path()), "sequences 3 to 3 at least were acknowledged from it");
    }
}

/// The kill was not long ago, the blocks read as zeros: to a recovery that knows the log alone it is a segment that nothing was written to.
#[test]
fn a_newest_segment_of_zeros_is_damage_through_what_the_manifest_knows() {
    let dir = build();
    edit(&seg(dir.path(), 3), |b| b[FILE_HEADER_BYTES..].fill(0));
    let report = inspect(&OsVfs, dir.path(), &mut |_| {}, &mut |_| {}).unwrap();
    assert_eq!((labels(&report), report.verdict()), (vec![(3, Label::Damaged)], "damaged"));
    assert_eq!(report.findings[0].finding.missing, Some((3, 3)));
    // A segment that nothing was acknowledged from may hold nothing.
    let dir = build();
    drop(reopen(small(dir.path())).unwrap());
    let report = inspect(&OsVfs, dir.path(), &mut |_| {}, &mut |_| {}).unwrap();
    assert_eq!((report.verdict(), report.segments.len()), ("clean", 4));
}

#[test]
fn an_unreadable_block_of_the_manifest_that_was_never_used_is_no_reason_to_refuse() {
    let dir = build();
    let manifest = manifest_of(dir.path());
    let name = manifest.file_name().unwrap().to_str().unwrap().to_owned();
    let end = crate::wal::manifest::load(&OsVfs, dir.path()).unwrap().unwrap().end;
    let look = |block: u64| inspect(&BadDisk { name: name.clone(), block }, dir.path(), &mut |_| {}, &mut |_| {}).unwrap();
    for block in [end + BLOCK as u64, end + 20 * BLOCK as u64] {
        let report = look(block);
        assert_eq!((report.verdict(), report.notes.len()), ("clean", 1), "{:?}", report.refusals);
        assert!(report.notes[0].contains("it was never used"), "{:?}", report.notes);
    }
    assert_eq!(look(end).verdict(), "refused", "the last group may have been there");
    // After a stop there was no further group.
    let (mut o, _) = reopen(small(dir.path())).unwrap();
    o.manifest.append(vec![Entry::Durable { sequence: 3, running_ms: 1 }], &[]).unwrap();
    let (name, end) = (manifest_of(dir.path()).file_name().unwrap().to_str().unwrap().to_owned(), o.manifest.end());
    let report = inspect(&BadDisk { name, block: end }, dir.path(), &mut |_| {}, &mut |_| {}).unwrap();
    assert_eq!((report.verdict(), report.notes.len()), ("clean", 1), "{:?}", report.refusals);
}

#[test]
fn a_segment_under_another_name_is_refused() {
    let dir = build();
    std::fs::rename(seg(dir.path(), 3), seg(dir.path(), 4)).unwrap();
    refused(small(dir.path()), "its header says segment 3, its name says 4");
}

#[test]
fn a_segment_of_another_log_is_refused() {
    let (dir, other) = (build(), build());
    std::fs::copy(seg(other.path(), 3), seg(dir.path(), 3)).unwrap();
    refused(small(dir.path()), "belongs to log");
}

#[test]
fn segments_without_a_manifest_are_refused() {
    let dir = build();
    std::fs::remove_file(manifest_of(dir.path())).unwrap();
    refused(small(dir.path()), "3 segments and no manifest");
}

#[test]
fn a_manifest_without_its_newest_segment_is_refused() {
    let dir = build();
    std::fs::remove_file(seg(dir.path(), 3)).unwrap();
    refused(small(dir.path()), "the manifest knows segment 3, the newest found is 2");
    for id in 1..3 {
        std::fs::remove_file(seg(dir.path(), id)).unwrap();
    }
    refused(small(dir.path()), "the manifest knows segment 3, the newest found is 0");
}

#[test]
fn a_gap_between_segments_is_refused() {
    let dir = build();
    std::fs::remove_file(seg(dir.path(), 2)).unwrap();
    refused(small(dir.path()), "seg-0000000000000002.wal missing before seg-0000000000000003.wal");
}

#[test]
fn sequences_that_do_not_follow_are_refused() {
    let dir = build();
    edit_header(&seg(dir.path(), 3), |h| h.first_sequence += 1);
    refused(small(dir.path()), "begins with sequence 4, expected 3");
}

/// Both copies of a file's header become a later version's.
fn of_a_later_version(path: &Path, at: usize, value: u8) {
    edit(path, |b| {
        for copy in [0, BLOCK] {
            b[copy + at] = value;
            let crc = crc32fast::hash(&b[copy..copy + 252]);
            b[copy + 252..copy + 256].copy_from_slice(&crc.to_le_bytes());
        }
    });
}

#[test]
fn a_log_of_a_later_format_is_refused() {
    let cases = [(8, 2, "format 2.1"), (24, 4, "unknown incompatible features 0x4")];
    for (at, value, text) in cases {
        let dir = build();
        of_a_later_version(&manifest_of(dir.path()), at, value);
        refused(small(dir.path()), text);
        let dir = build();
        of_a_later_version(&seg(dir.path(), 2), at, value);
        refused(small(dir.path()), text);
    }
    // Minor versions and compatible features are for older readers too.
    for at in [10, 16] {
        let dir = build();
        of_a_later_version(&seg(dir.path(), 2), at, 9);
        assert_eq!(reopen(small(dir.path())).unwrap().1, ALL);
    }
}

/// What a program of 1.0 sees: an incompatible bit that it does not know, in the manifest, so that it changes nothing.
#[test]
fn a_log_of_format_1_0_opens_and_its_next_manifest_is_1_1() {
    let dir = build();
    let bits = |path: &Path, kind| {
        let b = std::fs::read(path).unwrap();
        let copies = [0, BLOCK].map(|at| FileHeader::parse(&b[at..], kind).unwrap());
        copies.map(|h| (h.minor, h.incompatible))
    };
    assert_eq!(bits(&manifest_of(dir.path()), FileKind::Manifest), [(1, 1); 2]);
    assert_eq!(bits(&seg(dir.path(), 3), FileKind::Segment), [(1, 0); 2]);
    let of_1_0 = manifest_of(dir.path());
    of_a_later_version(&of_1_0, 10, 0);
    of_a_later_version(&of_1_0, 24, 0);
    assert_eq!(reopen(small(dir.path())).unwrap().1, ALL);
    let rewritten = manifest_of(dir.path());
    assert_ne!(rewritten, of_1_0);
    assert_eq!(bits(&rewritten, FileKind::Manifest), [(1, 1); 2]);
}

#[test]
fn released_segments_that_are_left_are_removed_unread() {
    let dir = build();
    let (mut o, _) = reopen(small(dir.path())).unwrap();
    o.manifest.append(vec![Entry::Shipped { plan: 1, last_sequence: 1 }, Entry::Released { segment: 1, last_sequence: 1 }], &[]).unwrap();
    drop(o);
    edit(&seg(dir.path(), 1), |b| b[FILE_HEADER_BYTES..].fill(0xaa));
    let (o, seen) = reopen(small(dir.path())).unwrap();
    assert_eq!(seen, ALL[1..]);
    assert!(o.report.findings.is_empty() && !seg(dir.path(), 1).exists());
    assert_eq!(o.shared.watermarks().released, 1);
}

#[test]
fn a_foreign_file_with_a_released_name_is_refused_not_removed() {
    let dir = build();
    let (mut o, _) = reopen(small(dir.path())).unwrap();
    o.manifest.append(vec![Entry::Shipped { plan: 1, last_sequence: 1 }, Entry::Released { segment: 1, last_sequence: 1 }], &[]).unwrap();
    drop(o);
    let first = seg(dir.path(), 1);
    let other = build();
    std::fs::copy(seg(other.path(), 1), &first).unwrap();
    let Err(OpenError::Refused(why)) = reopen(small(dir.path())) else { panic!("refused") };
    assert!(why.contains("belongs to log"), "{why}");
    std::fs::copy(seg(dir.path(), 2), &first).unwrap();
    let Err(OpenError::Refused(why)) = reopen(small(dir.path())) else { panic!("refused") };
    assert!(why.contains("its header says segment 2"), "{why}");
    std::fs::write(&first, b"not a segment at all").unwrap();
    let (_o, seen) = reopen(small(dir.path())).unwrap();
    assert_eq!(seen, ALL[1..]);
    assert_eq!(std::fs::read(&first).unwrap(), b"not a segment at all", "what cannot be read is not removed");
}

#[test]
fn a_file_that_was_cut_short_is_damage_and_a_clean_stop_knows_what_is_missing() {
    for clean in [false, true] {
        let dir = build();
        let (mut o, _) = reopen(small(dir.path())).unwrap();
        if clean {
            o.manifest.append(vec![Entry::Durable { sequence: ALL.len() as u64, running_ms: 0 }], &[]).unwrap();
        }
        drop(o);
        let newest = seg(dir.path(), 4);
        assert!(newest.exists() && !seg(dir.path(), 5).exists());
        let f = std::fs::OpenOptions::new().write(true).open(seg(dir.path(), 3)).unwrap();
        // Segment 3 holds the last record; without 4, whose header declares its end, it is the newest.
        std::fs::remove_file(&newest).unwrap();
        f.set_len(FILE_HEADER_BYTES as u64).unwrap();
        let mut seen = Vec::new();
        let report = inspect(&OsVfs, dir.path(), &mut |v| seen.push(v.header.sequence), &mut |_| {}).unwrap();
        assert!(report.findings.iter().any(|f| f.finding.found.contains("cut short")), "{:?}", report.findings);
        let missing: Vec<_> = report.findings.iter().filter_map(|f| f.finding.missing).collect();
        // A log of 1.1 knows it without the stop as well.
        assert_eq!(missing, [(seen.len() as u64 + 1, ALL.len() as u64)], "clean stop: {clean}");
    }
}

/// Offset of the last group of a manifest whose mark is then wiped.
fn last_group_without_mark(path: &Path) -> usize {
    let mut at = 0;
    edit(path, |b| {
        let mut marks = Vec::new();
        for block in (FILE_HEADER_BYTES..b.len()).step_by(BLOCK) {
            if b[block] == 0xa7 && b[block + 4] == 2 {
                marks.push(block);
            }
        }
        let last = marks.pop().unwrap();
        b[last..last + BLOCK].fill(0);
        at = marks.pop().unwrap() + BLOCK;
    });
    at
}

#[test]
fn a_torn_manifest_is_taken_without_its_torn_group() {
    let dir = build();
    let (mut o, _) = reopen(small(dir.path())).unwrap();
    o.manifest.append(vec![Entry::Shipped { plan: 1, last_sequence: 1 }], &[]).unwrap();
    drop(o);
    let m = manifest_of(dir.path());
    let at = last_group_without_mark(&m);
    edit(&m, |b| b[at + 70] ^= 1);
    let (o, seen) = reopen(small(dir.path())).unwrap();
    assert_eq!(seen, ALL);
    assert_eq!(o.shared.watermarks().shipped, 0, "the torn entry does not count");
    assert!(o.report.manifest.unwrap().torn.is_some());
}

#[test]
fn a_manifest_whose_pad_is_damaged_is_taken() {
    let dir = build();
    edit(&manifest_of(dir.path()), |b| b[FILE_HEADER_BYTES + BLOCK - 9] ^= 1);
    let (o, seen) = reopen(small(dir.path())).unwrap();
    assert_eq!(seen, ALL);
    assert!(o.report.manifest.unwrap().torn.is_none());
}

#[test]
fn a_manifest_damaged_below_its_floor_is_refused() {
    let dir = build();
    edit(&manifest_of(dir.path()), |b| b[FILE_HEADER_BYTES + 70] ^= 1);
    refused(small(dir.path()), "Restore it from a copy of the log directory");
}

/// Length and first group were durable before it had its name; that a torn tail is taken does not go for them.
#[test]
fn a_manifest_that_was_cut_short_is_refused() {
    let dir = build();
    let m = manifest_of(dir.path());
    let clean = std::fs::read(&m).unwrap();
    // Two entries of the first group and a part of the third.
    let mut at = FILE_HEADER_BYTES;
    for _ in 0..2 {
        at += RecordHeader::parse(&clean[at..]).unwrap().record_len();
    }
    for cut in [clean.len() - 1, FILE_HEADER_BYTES + BLOCK, at + 70] {
        edit(&m, |b| b.truncate(cut));
        refused(small(dir.path()), "it was cut short");
        std::fs::write(&m, &clean).unwrap();
    }
    for from in [at, at + 70] {
        edit(&m, |b| b[from..].fill(0));
        refused(small(dir.path()), "expected the rest of what it was made with");
        std::fs::write(&m, &clean).unwrap();
    }
    assert_eq!(reopen(small(dir.path())).unwrap().1, ALL);
}

/// A manifest whose records are whole, with these payloads.
fn manifest_of_records(dir: &Path, payloads: &[(RecordKind, Vec<u8>)]) {
    let (salt, file_len) = (5, 1 << 16);
    let header = FileHeader {
        kind: FileKind::Manifest,
        minor: 0,
        compatible: 0,
        incompatible: 0,
        log: LogId([3; 16]),
        id: 1,
        first_sequence: 1,
        salt,
        epoch: 1,
        file_len,
        predecessor: None,
    };
    let mut b = header.encode_file();
    put_group(&mut b, payloads, FILE_HEADER_BYTES as u64, salt, 1, 0, 0);
    b.resize(file_len as usize, 0);
    std::fs::write(dir.join(files::manifest_name(1)), b).unwrap();
}

/// Its CRCs are right: this is no damage, and nothing of it is passed over.
#[test]
fn a_manifest_that_says_what_cannot_be_is_refused() {
    let json = |text: &str| (RecordKind::Entry, text.as_bytes().to_vec());
    let opened = json(r#"{"entry":"opened","epoch":1,"running_ms":0,"segment":0}"#);
    let output = r#"{"schema":0,"hour":0,"first_sequence":1,"last_sequence":1,"rows":1,"name":"x"}"#;
    let writer = r#"{"version":"","compression":"","level":0,"row_group_rows":1,"layout":""}"#;
    let plan = json(&format!(
        r#"{{"entry":"plan","plan":1,"first_sequence":1,"last_sequence":1,"inputs":[],"writer":{writer},"schemas":[],"outputs":[{output}]}}"#
    ));
    let file = r#""length":0,"sha256":"","rows":0,"set_aside":[]"#;
    let key = crate::format::payload::KeyEntry { id: [1; 16], body: [2; 32], running_ms: 3, status: 204 };
    let mut keys = crate::format::manifest::put_keys(&[(1, key)]);
    keys.push(0);
    let undefined = "an entry names plan 2, which no entry before it defines";
    let mut cases = vec![
        (json("{"), "record 3 at offset"),
        (json(r#"{"entry":"of a later version"}"#), "record 3 at offset"),
        (json(&format!(r#"{{"entry":"commit","plan":1,"output":1,{file}}}"#)), "a commit names output 1 of plan 1, which has 1"),
        ((RecordKind::Keys, keys), "the end of the keys"),
        // A record of another kind is none: the group that it stands in was never whole.
        ((RecordKind::Write, vec![1]), "found no record"),
    ];
    for e in [
        r#""attempt","plan":2"#,
        r#""stopped","plan":2"#,
        r#""suspect","plan":2,"output":0,"sequence":1"#,
        &format!(r#""intent","plan":2,"output":0,{file}"#),
        &format!(r#""commit","plan":2,"output":0,{file}"#),
        r#""deferred","plan":2,"output":0,"bytes":1"#,
    ] {
        cases.push((json(&format!(r#"{{"entry":{e}}}"#)), undefined));
    }
    for (record, text) in cases {
        let dir = tempfile::tempdir().unwrap();
        manifest_of_records(dir.path(), &[opened.clone(), plan.clone(), record]);
        refused(small(dir.path()), text);
    }
    let dir = tempfile::tempdir().unwrap();
    manifest_of_records(dir.path(), &[]);
    refused(small(dir.path()), "it holds no entry");
    // The rest of what these were made with is no reason.
    manifest_of_records(dir.path(), &[opened, plan]);
    assert_eq!(reopen(small(dir.path())).unwrap().0.manifest.state.plans.len(), 1);
}

#[test]
fn a_manifest_without_a_good_header_is_refused() {
    let dir = build();
    wipe_headers(&manifest_of(dir.path()));
    refused(small(dir.path()), "both header copies are bad");
}

#[test]
fn a_manifest_under_another_name_is_refused() {
    let dir = build();
    let m = manifest_of(dir.path());
    std::fs::rename(&m, dir.path().join(files::manifest_name(9))).unwrap();
    refused(small(dir.path()), "its header says manifest 3, its name says 9");
}

#[test]
fn an_older_manifest_that_is_left_is_removed() {
    let dir = build();
    let older = manifest_of(dir.path());
    let bytes = std::fs::read(&older).unwrap();
    drop(reopen(small(dir.path())).unwrap());
    assert!(!older.exists());
    std::fs::write(&older, bytes).unwrap();
    let (_o, seen) = reopen(small(dir.path())).unwrap();
    assert_eq!(seen, ALL);
    assert!(!older.exists());
}

#[test]
fn damage_is_set_aside_and_counted_once_or_refused_as_configured() {
    let dir = build();
    edit(&seg(dir.path(), 1), |b| b[FILE_HEADER_BYTES + 70] ^= 1);
    refused(LogSettings { set_aside_damage: false, ..small(dir.path()) }, "wal.on_damage = \"refuse\"");
    for round in 0..2 {
        let (o, seen) = reopen(small(dir.path())).unwrap();
        assert_eq!(seen, ALL[1..]);
        assert_eq!(o.report.findings[0].finding.missing, Some((1, 1)));
        assert_eq!(o.manifest.state.damage.len(), 1, "round {round}");
        let side = OsVfs.list(&dir.path().join(files::SIDE)).unwrap();
        assert_eq!(side.len(), 1);
        assert_eq!(side[0].name, format!("{:016x}-{:016x}-damaged.bin", o.report.segments[0].salt, FILE_HEADER_BYTES));
    }
}

/// How far the place reaches is seen differently once the segment has a successor.
#[test]
fn a_lost_tail_is_counted_once_with_and_without_a_successor() {
    let dir = build();
    let (o, _) = reopen(small(dir.path())).unwrap();
    let log = Running::start(o);
    assert_eq!(log.append(3, 1), 4);
    log.manifest.lock().unwrap().append(vec![Entry::Durable { sequence: 4, running_ms: 0 }], &[]).unwrap();
    drop(log);
    edit(&seg(dir.path(), 4), |b| b[FILE_HEADER_BYTES..].fill(0xee));
    for round in 0..3 {
        let (o, _) = reopen(small(dir.path())).unwrap();
        assert_eq!(o.report.findings[0].finding.missing, Some((4, 4)), "{:?}", o.report.findings);
        assert_eq!(o.manifest.state.damage.len(), 1, "round {round}: {:?}", o.manifest.state.damage);
    }
}

/// A power cut while the last mark was written, in a recycled segment: its first sector is new, the others are old.
#[test]
fn a_torn_tail_is_not_taken_for_damage_by_the_recovery_after_the_next() {
    let clean = build();
    for keep in [0, 64, 512, 4000] {
        let dir = tempfile::tempdir().unwrap();
        for e in OsVfs.list(clean.path()).unwrap().iter().filter(|e| e.is_file && e.name != files::LOCK) {
            std::fs::copy(clean.path().join(&e.name), dir.path().join(&e.name)).unwrap();
        }
        // The record's group has the first block, the mark's the second.
        let mark = FILE_HEADER_BYTES + BLOCK;
        edit(&seg(dir.path(), 3), |b| b[mark + keep..mark + BLOCK].fill(0xee));
        let strict = || LogSettings { set_aside_damage: false, ..small(dir.path()) };
        for round in 0..3 {
            let (o, seen) = reopen(strict()).unwrap_or_else(|e| panic!("{keep} bytes of the mark, round {round}: {e}"));
            assert_eq!(seen, ALL);
            assert!(!o.report.is_damaged() && o.manifest.state.damage.is_empty(), "{:?}", o.report.findings);
        }
    }
}

#[test]
fn scratch_files_are_removed_and_foreign_names_left_alone() {
    let dir = build();
    let ours = ["spare-0000000000000007.tmp", "manifest-0000000000000009.tmp", "pool/free-0000000000000001.tmp"];
    let foreign = ["seg-1.wal", "seg-0000000000000001.wal.bak", "notes.txt"];
    for n in ours.iter().chain(&foreign) {
        std::fs::write(dir.path().join(n), b"x").unwrap();
    }
    let (_o, seen) = reopen(small(dir.path())).unwrap();
    assert_eq!(seen, ALL);
    assert!(ours.iter().all(|n| !dir.path().join(n).exists()));
    assert!(foreign.iter().all(|n| dir.path().join(n).exists()));
}

#[test]
fn a_segment_that_is_no_file_is_refused() {
    let dir = build();
    let path = seg(dir.path(), 2);
    std::fs::rename(&path, dir.path().join("kept")).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused(small(dir.path()), "seg-0000000000000002.wal: expected a file");
    std::fs::remove_dir(&path).unwrap();
    // A pipe that nobody writes to: opening it would wait for ever.
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    match reopen(small(dir.path())) {
        Err(OpenError::Refused(why)) => assert!(why.contains("seg-0000000000000002.wal: expected a file"), "{why}"),
        other => panic!("{:?}", other.map(|(o, _)| o.report)),
    }
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(dir.path().join("kept"), &path).unwrap();
    assert_eq!(reopen(small(dir.path())).unwrap().1, ALL);
}

#[test]
fn a_first_start_that_was_cut_short_is_no_lost_log() {
    let dir = tempfile::tempdir().unwrap();
    let clock = SystemClock::shared();
    let state = ManifestState { epoch: 1, next_plan: 1, ..ManifestState::default() };
    drop(Manifest::create(vfs(), clock, dir.path(), LogId([3; 16]), state, None).unwrap());
    let (o, seen) = reopen(small(dir.path())).unwrap();
    assert!(seen.is_empty());
    assert_eq!((o.shared.log, o.shared.watermarks().durable), (LogId([3; 16]), 0));
}

/// A disk with one block that cannot be read.
#[derive(Debug)]
struct BadDisk {
    name: String,
    block: u64,
}

#[derive(Debug)]
struct BadFile(Arc<dyn File>, u64);

impl Vfs for BadDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        OsVfs.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        OsVfs.create_dir_all(dir)
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        OsVfs.create_new(path)
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        let f = OsVfs.open(path, write)?;
        Ok(if path.ends_with(&self.name) { Arc::new(BadFile(f, self.block)) } else { f })
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsVfs.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsVfs.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsVfs.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        OsVfs.lock(path)
    }
    fn device(&self, dir: &Path) -> io::Result<u64> {
        OsVfs.device(dir)
    }
    fn unsafe_filesystem(&self, dir: &Path) -> io::Result<Option<&'static str>> {
        OsVfs.unsafe_filesystem(dir)
    }
}

impl File for BadFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset < self.1 + BLOCK as u64 && self.1 < offset + buf.len() as u64 {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.0.read_at(buf, offset)
    }
    fn write_all_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bufs, offset)
    }
    fn sync(&self, mode: SyncMode) -> io::Result<()> {
        self.0.sync(mode)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn map(&self, len: u64) -> io::Result<Mapping> {
        self.0.map(len)
    }
    fn appender(self: Arc<Self>, engine: Engine, mode: SyncMode) -> io::Result<Box<dyn GroupWriter>> {
        Arc::clone(&self.0).appender(engine, mode)
    }
}

#[test]
fn a_block_that_cannot_be_read_is_damage() {
    let dir = build();
    let bad = BadDisk { name: files::segment_name(1), block: FILE_HEADER_BYTES as u64 };
    let mut seen = Vec::new();
    let report = inspect(&bad, dir.path(), &mut |v| seen.push(v.header.sequence), &mut |_| {}).unwrap();
    assert_eq!(seen, vec![2, 3]);
    assert_eq!(labels(&report), [(1, Label::Damaged)]);
    assert_eq!(report.findings[0].finding.missing, Some((1, 1)));
    assert!(report.findings[0].finding.found.contains("I/O error"), "{:?}", report.findings[0]);
}

/// What cannot be read stands as zeros, and zeros behind the last group look like a clean end: the last group may have been there.
#[test]
fn a_last_block_that_cannot_be_read_is_no_clean_end() {
    let dir = build();
    let bad = BadDisk { name: files::segment_name(3), block: (FILE_HEADER_BYTES + 2 * BLOCK) as u64 };
    let report = inspect(&bad, dir.path(), &mut |_| {}, &mut |_| {}).unwrap();
    assert_eq!((labels(&report), report.verdict()), (vec![(3, Label::Damaged)], "damaged"));
    let manifest = manifest_of(dir.path());
    let name = manifest.file_name().unwrap().to_str().unwrap().to_owned();
    let end = crate::wal::manifest::load(&OsVfs, dir.path()).unwrap().unwrap().end;
    let bad = BadDisk { name, block: end };
    let report = inspect(&bad, dir.path(), &mut |_| {}, &mut |_| {}).unwrap();
    assert!(report.refusals.iter().any(|r| r.contains("I/O error")), "{:?}", report.refusals);
}
