//! A disk whose directory syncs fail on demand, and that remembers the order of what was done to names.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::clock::SystemClock;
use crate::error::Reason;
use crate::format::file_header::{FileHeader, FileKind};
use crate::format::manifest::{Entry, Plan, PlanOutput, PlanWriter};
use crate::metrics::Metrics;
use crate::types::{Hour, LogId};
use crate::vfs::sim::{Fault, SimDisk};
use crate::vfs::{DirEntry, File};
use crate::wal::commit::Step;
use crate::wal::manifest::{AppendFailure, Manifest, ManifestState, load};
use crate::wal::reader::header_of;
use crate::wal::recover::open;
use crate::wal::shared::LogSettings;
use crate::wal::testing::{record, vfs};
use crate::wal::{AppendError, Appender};

#[derive(Debug, Default)]
pub(super) struct FaultDisk {
    fail_sync_dir: AtomicU32,
    done: Mutex<Vec<String>>,
    /// At so many openings from now on of this file it becomes another generation's.
    pub(super) recycle: Mutex<Option<(PathBuf, u32)>>,
}

impl FaultDisk {
    fn note(&self, what: &str, path: &Path) {
        self.done.lock().unwrap().push(format!("{what} {}", path.file_name().unwrap().to_string_lossy()));
    }
}

impl Vfs for FaultDisk {
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
        if let Some((of, left)) = &mut *self.recycle.lock().unwrap()
            && of == path
        {
            *left -= 1;
            if *left == 0 {
                let f = OsVfs.open(path, true)?;
                let (h, _) = header_of(&*f, FileKind::Segment).unwrap();
                f.write_all_at(
                    &[&FileHeader { salt: h.salt + 1, id: h.id + 9, first_sequence: 99, predecessor: None, ..h }.encode_file()],
                    0,
                )?;
            }
        }
        OsVfs.open(path, write)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note("rename", to);
        OsVfs.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsVfs.remove(path).inspect(|()| self.note("remove", path))
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.fail_sync_dir.load(Ordering::Relaxed) > 0 && self.fail_sync_dir.fetch_sub(1, Ordering::Relaxed) == 1 {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
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

/// The newer file has its name already: what would be appended to the older one, the next open would not read.
#[test]
fn a_rewrite_that_fails_once_the_new_manifest_has_its_name_is_fatal() {
    for nth in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(FaultDisk::default());
        let state = ManifestState { epoch: 1, next_plan: 1, ..ManifestState::default() };
        let v: Arc<dyn Vfs> = Arc::<FaultDisk>::clone(&disk);
        let mut m = Manifest::create(v, SystemClock::shared(), dir.path(), LogId([3; 16]), state, None).unwrap();
        disk.fail_sync_dir.store(nth, Ordering::Relaxed);
        assert!(matches!(m.rewrite(Vec::new()), Err(AppendFailure::Fatal(_))), "sync of the directory {nth}");
        // Why: this is what the next open reads.
        assert_eq!(load(&OsVfs, dir.path()).unwrap().unwrap().header.id, 2);
    }
}

fn plan(number: u64, outputs: usize, last: Sequence) -> Plan {
    let output = PlanOutput { schema: 0, hour: Hour::default(), first_sequence: 1, last_sequence: last, rows: 1, name: "x".into() };
    let writer = PlanWriter {
        version: String::new(),
        compression: String::new(),
        level: 0,
        row_group_rows: 1,
        layout: String::new(),
        encoding: None,
        row_group_bytes: None,
    };
    let outputs = vec![output; outputs];
    Plan { plan: number, first_sequence: 1, last_sequence: last, inputs: vec![], writer, schemas: vec![], outputs }
}

/// A rewrite drops shipped plans with many outputs, but never how far the log is shipped.
#[test]
fn a_rewritten_manifest_knows_what_is_shipped_without_the_plans() {
    for last_is_open in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let state = ManifestState { next_plan: 1, ..ManifestState::default() };
        let mut m = Manifest::create(vfs(), SystemClock::shared(), dir.path(), LogId([3; 16]), state, None).unwrap();
        let mut entries = vec![Entry::Released { segment: 1, last_sequence: 7 }];
        for (k, outputs, last) in [(1, 1, 3), (2, 1, 7), (3, 200_000, 9)] {
            entries.push(Entry::Plan(plan(k, outputs, last)));
            if k < 3 || !last_is_open {
                entries.push(Entry::Shipped { plan: k, last_sequence: last });
            }
        }
        m.append(entries, &[]).unwrap();
        m.rewrite(Vec::new()).unwrap();
        let s = load(&OsVfs, dir.path()).unwrap().unwrap().state;
        let want = if last_is_open { (7, 4, Some(3), 3) } else { (9, 4, None, 1) };
        assert_eq!((s.shipped, s.next_plan, s.open_plan().map(|p| p.plan.plan), s.plans.len()), want);
    }
}

/// A release that recovery reads may stand in the page cache alone: the segments go only when a synced manifest says so.
#[test]
fn released_segments_are_removed_after_the_new_manifest_stands() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..3 {
        let (o, _) = reopen(settings(dir.path(), 1 << 14, Engine::Pwrite)).unwrap();
        let r = Running::start(o);
        r.append(i, 1);
        if i == 2 {
            let shipped = Entry::Shipped { plan: 1, last_sequence: 1 };
            r.manifest.lock().unwrap().append(vec![shipped, Entry::Released { segment: 1, last_sequence: 1 }], &[]).unwrap();
        }
    }
    let disk = Arc::new(FaultDisk::default());
    let v: Arc<dyn Vfs> = Arc::<FaultDisk>::clone(&disk);
    let s = settings(dir.path(), 1 << 14, Engine::Pwrite);
    open(&v, s, SystemClock::shared(), Metrics::new(), &mut |_| {}, &mut |_| {}).unwrap();
    let done = disk.done.lock().unwrap();
    let at = |what: &str| done.iter().position(|d| d.starts_with(what)).unwrap_or_else(|| panic!("{what}: {done:?}"));
    assert!(at("rename manifest-") < at(&format!("remove {}", files::segment_name(1))), "{done:?}");
}

/// Appends while stepping committer and preallocator by hand.
pub(super) fn drive(o: &mut super::super::recover::OpenedLog, rows: usize) -> Result<Sequence, AppendError> {
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let appender = Appender::new(Arc::clone(&o.shared));
    rt.block_on(async {
        let append = tokio::spawn(async move { appender.append(record(0, rows), None).await });
        while !append.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            o.prealloc.step();
            o.committer.step();
        }
        append.await.unwrap()
    })
}

/// Under load that never lets the queue run empty, the active segment is sealed all the same when that is asked for.
#[test]
fn a_seal_is_not_starved_by_a_queue_that_is_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (mut o, _) = reopen(settings(dir.path(), 1 << 16, Engine::Pwrite)).unwrap();
    drive(&mut o, 1).unwrap();
    o.prealloc.step();
    o.shared.request_seal(1);
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let appender = Appender::new(Arc::clone(&o.shared));
    rt.block_on(async {
        let append = tokio::spawn(async move { appender.append(record(0, 1), None).await });
        tokio::task::yield_now().await;
        o.committer.step();
        assert_eq!(o.shared.watermarks().sealed, 1, "something is queued, and the seal comes first");
        o.committer.step();
        assert_eq!(append.await.unwrap(), Ok(2));
    });
}

/// A record for which there is no room is refused; it takes away neither the spare nor, once it has gone, the readiness of
/// the others.
#[test]
fn a_large_record_without_room_does_not_block_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let s = LogSettings { max_size: 128 << 10, queue_timeout: Duration::from_secs(1), ..settings(dir.path(), 1 << 14, Engine::Pwrite) };
    let (mut o, _) = reopen(s).unwrap();
    o.prealloc.step();
    assert!(o.prealloc.is_ready());
    assert_eq!(drive(&mut o, 30_000), Err(AppendError::NotStored(Reason::Backlog)));
    assert!(o.prealloc.is_ready(), "the ordinary spare is kept");
    for _ in 0..3 {
        o.prealloc.step();
        assert_ne!(o.committer.step(), Step::Done);
    }
    assert_eq!(o.shared.admit().map_err(|e| e.message().to_owned()), Ok(Duration::ZERO));
    for _ in 0..3 {
        drive(&mut o, 800).unwrap();
    }
    assert!(o.shared.watermarks().sealed > 0, "segments are sealed with ordinary spares");
}

/// Keys that an open has taken over and that are dead by now do not pile up from start to start.
#[test]
fn a_long_manifest_is_rewritten_once_after_an_open() {
    let dir = tempfile::tempdir().unwrap();
    let key = crate::format::payload::KeyEntry { id: [1; 16], body: [2; 32], running_ms: 3, status: 204 };
    let state = ManifestState { next_plan: 1, keys: vec![(1, key); 400_000], ..ManifestState::default() };
    let mut m = Manifest::create(vfs(), SystemClock::shared(), dir.path(), LogId([3; 16]), state, None).unwrap();
    assert!(m.wants_rewrite());
    m.rewrite(vec![(1, key); 400_000]).unwrap();
    assert!(!m.wants_rewrite());
}

/// The part that was written stands in a block that the next group would begin in, and a growth in between syncs it.
#[test]
fn a_mark_of_the_manifest_that_was_cut_short_is_written_again_before_the_next_group() {
    let dir = Path::new("/log");
    let entry = |n| vec![Entry::Durable { sequence: n, running_ms: n }];
    // In the first round: how many groups there are before the file grows.
    let mut cut = u64::MAX;
    for round in 0..2 {
        let clock = crate::clock::SimClock::new(1, 0);
        let disk = SimDisk::new(1, clock.clone(), |p| p.to_string_lossy().contains("manifest"));
        disk.vfs().create_dir_all(dir).unwrap();
        let state = ManifestState { next_plan: 1, epoch: 1, ..ManifestState::default() };
        let mut m = Manifest::create(disk.vfs(), clock, dir, LogId([3; 16]), state, None).unwrap();
        let before = m.allocated();
        let mut n = 0;
        while m.allocated() == before {
            if n + 1 == cut {
                // The group, its sync, its mark.
                disk.script(disk.calls() + 3, Fault::Short);
            }
            n += 1;
            m.append(entry(n), &[]).unwrap();
        }
        assert_eq!(disk.injected().get("short write").copied().unwrap_or(0), round);
        cut = n - 1;
        m.append(entry(n + 1), &[]).unwrap();
        let kept = load(&*disk.durable_copy(|_| true).vfs(), dir).unwrap().unwrap();
        assert!(kept.torn.is_none() && kept.state.durable == n + 1, "{:?}, {}", kept.torn, kept.state.durable);
    }
}

/// A power cut at each call of a rewrite, with many ways in which the names may be left: there is always a manifest, and it says the same.
#[test]
fn a_new_manifest_is_durable_before_the_old_one_goes() {
    let dir = Path::new("/wal");
    let mut calls = 0;
    for fate in 0..20 {
        for cut in 1.. {
            let clock = crate::clock::SimClock::new(fate, 0);
            let disk = SimDisk::new(fate, Arc::clone(&clock), |_| false);
            let vfs = disk.vfs();
            vfs.create_dir_all(dir).unwrap();
            let state = ManifestState { next_plan: 1, epoch: 7, ..ManifestState::default() };
            let mut m = Manifest::create(vfs, clock, dir, LogId([7; 16]), state, None).unwrap();
            disk.script(disk.calls() + cut, Fault::CrashBefore);
            let done = m.rewrite(Vec::new()).is_ok();
            let stopped = disk.is_off();
            disk.crash();
            let found = load(&*disk.vfs(), dir).unwrap_or_else(|e| panic!("fate {fate}, call {cut}: {e}"));
            assert_eq!(found.map(|l| l.state.epoch), Some(7), "fate {fate}, call {cut}");
            calls = calls.max(cut);
            if done && !stopped {
                break;
            }
        }
    }
    assert!(calls > 8, "{calls} calls");
}
