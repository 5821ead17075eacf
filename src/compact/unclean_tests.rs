//! What the compactor does when it is short of something: a process that ends within an output, threads that cannot be started, a plan in words
//! that it does not know.

use std::path::Path;

use super::builder::Probe;
use super::threads::refusal;
use super::worker_tests::Core;
use crate::format::manifest::Entry;
use crate::vfs::OsVfs;
use crate::wal::commit::Step;
use crate::wal::files;

/// Steps until a plan is recorded and its build would begin.
fn plan_only(c: &mut Core) {
    let target = c.shared.watermarks().durable;
    c.control.request(target);
    c.shared.request_seal(target);
    for _ in 0..50 {
        c.prealloc.step();
        while c.committer.step() == Step::Worked {}
        c.compactor.step();
        if c.control.plans().1.is_some() {
            return;
        }
    }
    panic!("no plan: {:?}", c.shared.last_error());
}

/// As a process leaves it that ended while output 0 of plan 1 was being built as a whole.
fn end_within_output(dir: &Path) {
    Probe::open(&OsVfs, &dir.join("wal")).unwrap().write(1, 0, 0);
}

fn after_unclean_ends(dir: &Path) -> Core {
    Core::open_with(dir, 256 << 10, |m| {
        let attempts = (0..4).map(|_| Entry::Attempt { plan: 1 }).collect();
        m.append(attempts, &[]).unwrap();
    })
}

/// Rows of the row groups of a file.
fn row_groups(file: &Path) -> Vec<i64> {
    let f = std::fs::File::open(file).unwrap();
    let m = parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&f).unwrap();
    m.row_groups().iter().map(parquet::file::metadata::RowGroupMetaData::num_rows).collect()
}

/// A log with a plan of two outputs, of tables a and b, over a quarter of its size.
fn with_plan(dir: &Path) -> (Core, u64) {
    let mut c = Core::open_with(dir, 256 << 10, |_| {});
    c.compactor.settings.plan.writer.row_group_rows = 8;
    let mut rows = 0;
    while c.shared.backlog().0 <= 64 << 10 {
        c.append(rows, &["a", "b"]);
        rows += 1;
    }
    plan_only(&mut c);
    (c, rows as u64)
}

#[test]
fn an_output_that_ended_the_process_is_built_in_smaller_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let (c, rows) = with_plan(dir.path());
    drop(c);
    for ends in 1..=2 {
        end_within_output(dir.path());
        let c = after_unclean_ends(dir.path());
        assert_eq!(c.compactor.probe.as_ref().unwrap().ends(1, 0), ends);
    }
    let mut c = after_unclean_ends(dir.path());
    assert!(c.ship(), "{:?}", c.shared.last_error());
    assert_eq!(c.rows(), 2 * rows);
    let files = c.files();
    assert!(row_groups(&files[0]).iter().all(|n| *n == 1), "a 16th: {:?}", row_groups(&files[0]));
    assert_eq!(row_groups(&files[1])[0], 8, "the other output is built as planned");
    assert_eq!(c.compactor.probe.as_ref().unwrap().ends(1, 0), 0, "forgotten once it is built");
}

#[test]
fn an_output_that_keeps_ending_the_process_moves_aside_and_the_rest_is_shipped() {
    let dir = tempfile::tempdir().unwrap();
    let (c, rows) = with_plan(dir.path());
    drop(c);
    for _ in 0..4 {
        end_within_output(dir.path());
        drop(after_unclean_ends(dir.path()));
    }
    let mut c = after_unclean_ends(dir.path());
    assert!(c.ship(), "{:?}", c.shared.last_error());
    assert_eq!(c.rows(), rows, "table b's rows");
    assert_eq!(c.control.deferred().outputs, 1);
    assert_eq!(c.control.quarantined().0, 0, "no record is blamed");
    drop(c);
    // The next process keeps away from it as well, and says why.
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    for _ in 0..5 {
        c.compactor.step();
    }
    assert_eq!((c.rows(), c.control.deferred().outputs), (rows, 1));
    let why = c.shared.last_error().unwrap();
    assert!(why.contains("output 0 of plan 1") && why.contains("ended 4 times") && why.contains("probe"), "{why}");
    drop(c);
    // As the message says.
    std::fs::remove_file(dir.path().join("wal").join(files::PROBE)).unwrap();
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    for _ in 0..5 {
        c.compactor.step();
    }
    assert_eq!((c.rows(), c.control.deferred().outputs), (2 * rows, 0), "{:?}", c.shared.last_error());
}

#[test]
fn threads_that_cannot_be_started_are_done_without() {
    for started in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let mut c = Core::open(dir.path());
        c.compactor.settings.workers = 4;
        c.append(0, &["a", "b", "c", "d", "e"]);
        refusal::after(started);
        assert!(c.ship(), "{:?}", c.shared.last_error());
        refusal::after(usize::MAX);
        assert_eq!((c.rows(), c.files().len()), (5, 5), "with {started} threads");
    }
}

#[test]
fn a_plan_with_an_unknown_word_is_refused_by_name() {
    for (compression, layout, named) in [("brotli", "hive", "compression \"brotli\""), ("none", "iceberg", "layout \"iceberg\"")] {
        let dir = tempfile::tempdir().unwrap();
        let mut c = Core::open(dir.path());
        let w = &mut c.compactor.settings.plan.writer;
        (w.compression, w.layout) = (compression.into(), layout.into());
        c.append(0, &["a"]);
        assert!(!c.ship());
        let why = c.shared.last_error().unwrap();
        assert!(why.contains(named) && why.contains("plan 1"), "{why}");
        assert_eq!(c.files().len(), 0);
    }
}

#[test]
fn a_plan_ends_with_its_slices_or_its_column_chunks() {
    // A row takes 8 bytes and twice the 3 that it has in the log: five of them are over 64.
    for (slices, chunks, row_group_bytes, plans) in [(10, 1 << 20, None, 3), (1 << 20, 1, Some(64), 5), (1 << 20, 1 << 20, None, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let mut c = Core::open(dir.path());
        let p = &mut c.compactor.settings.plan;
        (p.bounds.slices, p.bounds.chunks, p.writer.row_group_bytes) = (slices, chunks, row_group_bytes);
        for i in 0..25 {
            c.append(i, &["a"]);
        }
        assert!(c.ship(), "{:?}", c.shared.last_error());
        assert_eq!((c.rows(), c.files().len()), (25, plans), "{slices} slices, {chunks} chunks");
    }
}

/// A version with other row groups makes other bytes of an open plan: its intent is added, and nothing is published twice.
#[test]
fn an_intent_with_other_bytes_does_not_stop_its_output() {
    let dir = tempfile::tempdir().unwrap();
    let (c, rows) = with_plan(dir.path());
    drop(c);
    let mut c = Core::open_with(dir.path(), 256 << 10, |m| {
        let sha256 = "0".repeat(64);
        let other = Entry::Intent { plan: 1, output: 0, length: 7, sha256, rows, set_aside: vec![] };
        m.append(vec![other], &[]).unwrap();
    });
    assert!(c.ship(), "{:?}", c.shared.last_error());
    assert_eq!((c.rows(), c.files().len(), c.control.deferred().outputs), (2 * rows, 2, 0));
}
