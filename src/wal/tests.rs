use std::path::Path;
use std::time::Duration;

use super::files;
use super::recover::{OpenError, inspect};
use super::shared::Received;
use super::testing::{Running, reopen, settings};
use crate::limits::{BLOCK, FILE_HEADER_BYTES};
use crate::types::Sequence;
use crate::vfs::{Engine, OsVfs, Vfs};

#[path = "decision_tests.rs"]
mod decision;
#[path = "error_tests.rs"]
mod errors;
#[path = "fault_tests.rs"]
mod faults;
#[path = "shortage_tests.rs"]
mod shortage;

#[test]
fn what_was_acknowledged_is_there_after_reopening_and_sequences_go_on() {
    for engine in [Engine::Pwrite, Engine::Mmap] {
        let dir = tempfile::tempdir().unwrap();
        let mut expect = Vec::new();
        for round in 0..4 {
            let (o, seen) = reopen(settings(dir.path(), 1 << 16, engine)).unwrap();
            assert_eq!(seen, expect, "round {round}");
            let r = Running::start(o);
            for i in 0..5 {
                let id = round * 100 + i;
                expect.push((r.append(id, 1), id));
            }
            assert!(expect.windows(2).all(|w| w[1].0 == w[0].0 + 1), "{expect:?}");
        }
    }
}

#[test]
fn segments_rotate_and_large_records_get_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (o, _) = reopen(settings(dir.path(), 32 << 10, Engine::Pwrite)).unwrap();
    let r = Running::start(o);
    let mut expect = Vec::new();
    for (i, rows) in [10, 1000, 20_000, 10, 3000, 3000, 1].into_iter().enumerate() {
        expect.push((r.append(i as i64, rows), i as i64));
    }
    let w = r.log.watermarks();
    assert_eq!((w.appended, w.durable), (7, 7));
    assert!(w.sealed >= 5);
    drop(r);
    let (o, seen) = reopen(settings(dir.path(), 32 << 10, Engine::Pwrite)).unwrap();
    assert_eq!(seen, expect);
    let salts: std::collections::BTreeSet<u64> = o.report.segments.iter().map(|s| s.salt).collect();
    assert_eq!(salts.len(), o.report.segments.len(), "every generation of a file has a salt of its own");
    assert!(o.report.findings.is_empty(), "{:?}", o.report.findings);
    assert_eq!(o.shared.watermarks().durable, 7);
}

#[test]
fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let (_o, _) = reopen(settings(dir.path(), 1 << 14, Engine::Pwrite)).unwrap();
    assert!(matches!(reopen(settings(dir.path(), 1 << 14, Engine::Pwrite)), Err(OpenError::Locked(_))));
}

/// Every truncation of the newest segment's used part and a flip in every byte of it: what is at or below F survives but for the
/// damaged record, nothing panics, and the log can be opened and written again.
#[test]
fn damage_in_the_newest_segment_costs_only_what_it_hit() {
    let dir = tempfile::tempdir().unwrap();
    let (o, _) = reopen(settings(dir.path(), 64 << 10, Engine::Pwrite)).unwrap();
    let r = Running::start(o);
    for i in 0..4 {
        r.append(i, 2);
    }
    drop(r);
    let seg = files::segment_path(dir.path(), 1);
    let clean = std::fs::read(&seg).unwrap();
    let used = FILE_HEADER_BYTES + 5 * BLOCK;
    for at in (FILE_HEADER_BYTES..used).step_by(61) {
        let mut m = clean.clone();
        m[at] ^= 0x40;
        std::fs::write(&seg, &m).unwrap();
        let mut seen = Vec::new();
        let report = inspect(&OsVfs, dir.path(), &mut |v| seen.push(v.header.sequence), &mut |_| {}).unwrap();
        assert!(report.refusals.is_empty());
        let hit = (at - FILE_HEADER_BYTES) / BLOCK;
        let within = (at - FILE_HEADER_BYTES) % BLOCK;
        let lost = hit < 4 && within < 64 + 40 && !seen.contains(&(hit as u64 + 1));
        let expect: Vec<u64> = (1..=4).filter(|s| !(lost && *s == hit as u64 + 1)).collect();
        assert_eq!(seen, expect, "flip at {at}");
        assert_eq!(report.through, 4, "flip at {at}: a damaged sequence is never given out again");
        assert_eq!(report.is_damaged(), lost || report.findings.iter().any(|f| f.finding.label.is_damage()));
    }
    std::fs::write(&seg, &clean).unwrap();
}

#[test]
fn records_above_the_floor_are_copied_into_the_successor() {
    let dir = tempfile::tempdir().unwrap();
    let (o, _) = reopen(settings(dir.path(), 64 << 10, Engine::Pwrite)).unwrap();
    let r = Running::start(o);
    r.append(1, 1);
    r.append(2, 1);
    drop(r);
    // Without its mark the last group has no witness.
    let seg = files::segment_path(dir.path(), 1);
    let mut b = std::fs::read(&seg).unwrap();
    let mut last_mark = None;
    for block in (FILE_HEADER_BYTES..b.len()).step_by(BLOCK) {
        if b[block + 4] == 2 {
            last_mark = Some(block);
        }
    }
    let m = last_mark.unwrap();
    b[m..m + BLOCK].fill(0);
    std::fs::write(&seg, &b).unwrap();
    let (o, seen) = reopen(settings(dir.path(), 64 << 10, Engine::Pwrite)).unwrap();
    assert_eq!(seen, vec![(1, 1), (2, 2)]);
    assert_eq!(o.shared.watermarks().sealed, 1, "sequence 2 moved to the successor");
    drop(o);
    let (o, seen) = reopen(settings(dir.path(), 64 << 10, Engine::Pwrite)).unwrap();
    assert_eq!(seen, vec![(1, 1), (2, 2)]);
    assert!(o.report.findings.is_empty(), "{:?}", o.report.findings);
}

#[test]
fn a_log_that_lost_files_is_refused_and_nothing_is_changed() {
    let build = || {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..3 {
            let (o, _) = reopen(settings(dir.path(), 1 << 14, Engine::Pwrite)).unwrap();
            Running::start(o).append(i, 1);
        }
        dir
    };
    let manifest = |d: &Path| {
        let mut v: Vec<_> = std::fs::read_dir(d).unwrap().map(|e| e.unwrap().path()).collect();
        v.retain(|p| p.file_name().unwrap().to_str().unwrap().starts_with("manifest-"));
        assert_eq!(v.len(), 1);
        v.pop().unwrap()
    };
    type Break = fn(&Path, &Path);
    let breaks: [(&str, Break); 5] = [
        ("manifest gone", |_, m| std::fs::remove_file(m).unwrap()),
        ("newest gone", |d, _| std::fs::remove_file(files::segment_path(d, 3)).unwrap()),
        ("middle gone", |d, _| std::fs::remove_file(files::segment_path(d, 2)).unwrap()),
        ("renamed", |d, _| std::fs::rename(files::segment_path(d, 3), files::segment_path(d, 4)).unwrap()),
        ("manifest damaged", |_, m| {
            let mut b = std::fs::read(m).unwrap();
            b[FILE_HEADER_BYTES + 70] ^= 1;
            std::fs::write(m, b).unwrap();
        }),
    ];
    for (what, f) in breaks {
        let dir = build();
        f(dir.path(), &manifest(dir.path()));
        let names = |d: &Path| OsVfs.list(d).unwrap();
        let before = names(dir.path());
        assert!(matches!(reopen(settings(dir.path(), 1 << 14, Engine::Pwrite)), Err(OpenError::Refused(_))), "{what}");
        assert_eq!(names(dir.path()), before, "{what}");
    }
}

#[test]
fn a_first_start_that_ended_before_its_first_segment_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let state = super::manifest::ManifestState { next_plan: 1, epoch: 1, ..Default::default() };
    let clock = crate::clock::SystemClock::shared();
    let vfs: std::sync::Arc<dyn Vfs> = std::sync::Arc::new(OsVfs);
    let log = clock.random_id();
    drop(super::manifest::Manifest::create(vfs, clock, dir.path(), log, state, None).unwrap());
    let (opened, seen) = reopen(settings(dir.path(), 64 << 10, Engine::Pwrite)).unwrap();
    assert!(seen.is_empty());
    assert_eq!(opened.shared.log, log);
    let running = Running::start(opened);
    assert_eq!(running.append(1, 1), 1);
}

/// The age of what waits goes on over a restart, whatever the wall clock does meanwhile.
#[test]
fn backlog_age_counts_from_the_receive_time_of_an_earlier_run() {
    let (hour, us) = (Duration::from_secs(3600), 1_000_000);
    let now = Duration::from_secs(5);
    let received = |wall_us, at_us| Received::earlier(at_us, wall_us, now).age(now + Duration::from_secs(1));
    assert_eq!(received(3_600 * us, 0), hour + Duration::from_secs(1));
    assert_eq!(received(0, 3_600 * us), Duration::from_secs(1), "the clock was set back");
    assert!(received(i64::MAX, i64::MIN) <= Duration::from_secs(367 * 86_400), "it was set far ahead");
    assert_eq!(Received::at(now).age(Duration::ZERO), Duration::ZERO);
}
