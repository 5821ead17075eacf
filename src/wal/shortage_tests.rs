//! A rotation for which this process or machine is short of something, step by step.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::faults::drive;
use super::*;
use crate::clock::SystemClock;
use crate::format::payload::PayloadView;
use crate::metrics::Metrics;
use crate::wal::commit::Step;
use crate::wal::memory::{DiskCall, MemoryDisk};
use crate::wal::recover::{OpenedLog, open};
use crate::wal::shared::Blocked;

const DIR: &str = "/log";

fn start(disk: &MemoryDisk) -> (OpenedLog, Vec<Sequence>) {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let mut seen = Vec::new();
    let each = &mut |v: crate::wal::recover::Visited<'_>| {
        PayloadView::parse(v.payload).unwrap();
        seen.push(v.header.sequence);
    };
    let s = settings(Path::new(DIR), 1 << 14, Engine::Pwrite);
    let o = open(&vfs, s, SystemClock::shared(), Metrics::new(), each, &mut |_| {}).unwrap();
    (o, seen)
}

/// Whether the call is a step of the rotation to segment 2: its header, its name, the sync of its directory.
fn of_rotation(call: DiskCall, path: &Path) -> bool {
    match call {
        DiskCall::Write | DiskCall::Sync => path.file_name().is_some_and(|n| n == files::spare_name(1).as_str()),
        DiskCall::Rename => path.ends_with(files::segment_name(2)),
        DiskCall::SyncDir => path == Path::new(DIR),
        _ => false,
    }
}

/// Stores one row, asks for a rotation while `call` of it fails with `errno`, and returns the log and the switch that ends the failure.
fn rotate_with(disk: &MemoryDisk, call: DiskCall, errno: i32) -> (OpenedLog, Arc<AtomicBool>, Step) {
    let (mut o, _) = start(disk);
    drive(&mut o, 1).unwrap();
    while !o.prealloc.is_ready() {
        o.prealloc.step();
    }
    let fails = Arc::new(AtomicBool::new(true));
    let on = Arc::clone(&fails);
    disk.set_hook(move |c, path| (on.load(Ordering::Relaxed) && c == call && of_rotation(c, path)).then_some(errno));
    // The mark that is due comes first.
    std::thread::sleep(o.shared.settings.mark_delay);
    while o.committer.step() == Step::Worked {}
    o.shared.request_seal(1);
    let step = o.committer.step();
    (o, fails, step)
}

#[test]
fn rotation_short_of_something_waits_and_goes_on() {
    for (call, errno) in [
        (DiskCall::Write, libc::ENOMEM),
        (DiskCall::Write, libc::EAGAIN),
        (DiskCall::Write, libc::ENOSPC),
        (DiskCall::Rename, libc::ENOMEM),
        (DiskCall::Rename, libc::EINTR),
        (DiskCall::Rename, libc::EDQUOT),
        (DiskCall::SyncDir, libc::EMFILE),
        (DiskCall::SyncDir, libc::ENFILE),
    ] {
        let disk = MemoryDisk::default();
        let (mut o, fails, step) = rotate_with(&disk, call, errno);
        let what = format!("{call:?} {errno}");
        assert_eq!(step, Step::Blocked, "{what}");
        for _ in 0..3 {
            assert_eq!(o.committer.step(), Step::Blocked, "{what}");
        }
        assert!(!o.shared.is_poisoned() && o.shared.blocked() != Blocked::No, "{what}");
        assert_eq!(o.shared.watermarks().sealed, 0, "{what}");
        assert!(o.shared.last_error().unwrap().contains("seg-0000000000000002.wal cannot be activated yet"), "{what}");

        // A kill here loses nothing.
        let (o2, seen) = start(&disk.copy());
        assert!(seen == [1] && !o2.report.is_damaged(), "{what}: {seen:?} {:?}", o2.report.findings);
        drop(o2);

        fails.store(false, Ordering::Relaxed);
        assert_eq!(o.committer.step(), Step::Worked, "{what}");
        assert_eq!((o.shared.watermarks().sealed, o.shared.blocked(), o.shared.last_error()), (1, Blocked::No, None), "{what}");
        assert_eq!(drive(&mut o, 1), Ok(2), "{what}");
        let (o2, seen) = start(&disk.copy());
        assert!(seen == [1, 2] && !o2.report.is_damaged(), "{what}: {seen:?} {:?}", o2.report.findings);
    }
}

/// Whatever a sync says is final: nobody can tell what it left behind.
#[test]
fn rotation_whose_sync_fails_poisons() {
    for (call, errno) in [
        (DiskCall::Sync, libc::EIO),
        (DiskCall::Sync, libc::ENOSPC),
        (DiskCall::Sync, libc::ENOMEM),
        (DiskCall::SyncDir, libc::EIO),
        (DiskCall::SyncDir, libc::ENOMEM),
    ] {
        let disk = MemoryDisk::default();
        let (o, _, step) = rotate_with(&disk, call, errno);
        assert!(step == Step::Done && o.shared.is_poisoned(), "{call:?} {errno}: {step:?}");
    }
}

#[test]
fn group_that_memory_is_missing_for_goes_to_the_next_segment() {
    let disk = MemoryDisk::default();
    let (mut o, _) = start(&disk);
    drive(&mut o, 1).unwrap();
    while !o.prealloc.is_ready() {
        o.prealloc.step();
    }
    disk.set_hook(|call, path| (call == DiskCall::Write && path.ends_with(files::spare_name(0))).then_some(libc::ENOMEM));
    assert_eq!(drive(&mut o, 1), Err(crate::wal::AppendError::NotStored(crate::error::Reason::NotStored)));
    assert!(!o.shared.is_poisoned());
    assert_eq!(drive(&mut o, 1), Ok(2));
    let (o2, seen) = start(&disk.copy());
    assert!(seen == [1, 2] && !o2.report.is_damaged(), "{seen:?} {:?}", o2.report.findings);
}

/// A server that stops while a rotation waits ends.
#[test]
fn rotation_that_waits_does_not_hold_up_the_end() {
    let disk = MemoryDisk::default();
    let (mut o, _, step) = rotate_with(&disk, DiskCall::Rename, libc::ENOMEM);
    assert_eq!(step, Step::Blocked);
    o.shared.close_queue();
    assert_eq!(o.committer.step(), Step::Done);
    assert_eq!(start(&disk.copy()).1, [1]);
}
