//! What the preallocator counts and locks, over a disk in memory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::files;
use super::memory::{DiskCall, MemoryDisk};
use super::prealloc::Preallocator;
use super::recover::{OpenedLog, open};
use super::testing::settings;
use crate::clock::SystemClock;
use crate::metrics::Metrics;
use crate::vfs::{Engine, Vfs};

fn start(disk: &MemoryDisk) -> OpenedLog {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let s = settings(Path::new("/log"), 16 << 10, Engine::Pwrite);
    open(&vfs, s, SystemClock::shared(), Metrics::new(), &mut |_| {}, &mut |_| {}).unwrap()
}

/// A file as the compactor gives it back.
fn released(disk: &MemoryDisk, o: &OpenedLog, id: u64) -> (PathBuf, u64) {
    let (path, len) = (files::segment_path(Path::new("/log"), id), o.shared.settings.segment_len());
    disk.create_new(&path).unwrap().allocate(len).unwrap();
    (path, len)
}

fn on_disk(disk: &MemoryDisk) -> u64 {
    let ours = |n: &str| ["seg-", "spare-", "free-"].iter().any(|p| n.starts_with(p));
    let all = ["/log", "/log/pool"].iter().flat_map(|d| disk.list(Path::new(d)).unwrap());
    all.filter(|e| ours(&e.name)).map(|e| e.len).sum()
}

#[test]
fn a_pooled_file_that_cannot_be_moved_is_gone() {
    let disk = MemoryDisk::default();
    let o = start(&disk);
    assert!(o.prealloc.step());
    let (path, len) = released(&disk, &o, 100);
    o.prealloc.give(path, len, 100, true).unwrap();
    assert_eq!(o.shared.total_bytes(), on_disk(&disk), "pooled");
    let spare = o.prealloc.take(0).unwrap();
    disk.remove(&spare.path).unwrap();
    disk.set_hook(|call, _| (call == DiskCall::Rename).then_some(libc::EIO));
    assert!(!o.prealloc.step());
    assert_eq!(o.shared.total_bytes(), on_disk(&disk), "not moved: {disk:?}");
    assert!(o.prealloc.step(), "the next one is made anew");
}

#[test]
fn a_released_file_whose_directory_cannot_be_synced_still_counts() {
    let disk = MemoryDisk::default();
    let o = start(&disk);
    assert!(o.prealloc.step());
    let (path, len) = released(&disk, &o, 100);
    disk.set_hook(|call, _| (call == DiskCall::SyncDir).then_some(libc::EIO));
    assert!(o.prealloc.give(path, len, 100, true).is_err());
    assert_eq!(o.shared.total_bytes(), on_disk(&disk), "{disk:?}");
    disk.set_hook(|_, _| None);
    let spare = o.prealloc.take(0).unwrap();
    disk.remove(&spare.path).unwrap();
    assert!(o.prealloc.step());
    assert!(
        disk.open(&Path::new("/log/pool").join(files::pool_name(100)), false).is_ok(),
        "what may come back under its old name is not written again"
    );
}

/// The committer does not wait for the directory syncs of a release.
#[test]
fn a_release_does_not_hold_up_the_committer() {
    let disk = MemoryDisk::default();
    let o = start(&disk);
    let (path, len) = released(&disk, &o, 100);
    let prealloc: Arc<Preallocator> = Arc::clone(&o.prealloc);

    let (tx, rx) = mpsc::channel();
    disk.set_hook(move |call, _| {
        if call == DiskCall::SyncDir {
            let (prealloc, tx) = (Arc::clone(&prealloc), tx.clone());
            let (done, wait) = mpsc::channel();
            std::thread::spawn(move || done.send(prealloc.is_ready()));
            tx.send(wait.recv_timeout(Duration::from_secs(5)).is_ok()).unwrap();
        }
        None
    });
    o.prealloc.give(path, len, 100, true).unwrap();
    assert_eq!(rx.try_iter().collect::<Vec<_>>(), [true, true]);
}
