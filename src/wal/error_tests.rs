//! What is done about errors of the disk that a random life seldom meets, each by hand.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::faults::drive;
use super::*;
use crate::clock::SystemClock;
use crate::error::{Reason, RequestError};
use crate::format::manifest::Entry;
use crate::format::payload::PayloadView;
use crate::metrics::Metrics;
use crate::types::LogId;
use crate::vfs::{File, GroupWriter, Mapping, SyncMode, read_all, write_durable};
use crate::wal::commit::Step;
use crate::wal::manifest::{AppendFailure, Manifest, ManifestState, load};
use crate::wal::memory::{DiskCall, MemoryDisk};
use crate::wal::reader::{FileBytes, read_file, scan_growing};
use crate::wal::recover::{OpenedLog, open};
use crate::wal::reserve::{START_RESERVE, ensure_reserve, spend_reserve};
use crate::wal::shared::{Blocked, LogSettings};
use crate::wal::testing::record;
use crate::wal::{AppendError, Appender};

const DIR: &str = "/log";

fn small() -> LogSettings {
    settings(Path::new(DIR), 1 << 14, Engine::Pwrite)
}

fn try_start(disk: &MemoryDisk, s: LogSettings) -> Result<(OpenedLog, Vec<Sequence>), OpenError> {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let mut seen = Vec::new();
    let each = &mut |v: crate::wal::recover::Visited<'_>| {
        PayloadView::parse(v.payload).unwrap();
        seen.push(v.header.sequence);
    };
    let o = open(&vfs, s, SystemClock::shared(), Metrics::new(), each, &mut |_| {})?;
    Ok((o, seen))
}

fn start(disk: &MemoryDisk) -> (OpenedLog, Vec<Sequence>) {
    try_start(disk, small()).unwrap()
}

/// The file that is the first segment of an open log was made under this name.
fn is_first(path: &Path) -> bool {
    path.ends_with(files::spare_name(0))
}

/// Without a spare to go on in, nobody can be told that nothing is stored: the hole has no declared end yet. It gets one with the
/// next spare, and what was answered before and after is there.
#[test]
fn a_write_without_room_and_without_a_spare_has_an_unknown_outcome() {
    let disk = MemoryDisk::default();
    let (mut o, _) = start(&disk);
    let append = |o: &mut OpenedLog| {
        let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let appender = Appender::new(Arc::clone(&o.shared));
        rt.block_on(async {
            let append = tokio::spawn(async move { appender.append(record(0, 1), None).await });
            tokio::task::yield_now().await;
            let step = o.committer.step();
            (step, append.await.unwrap())
        })
    };
    assert_eq!(append(&mut o), (Step::Worked, Ok(1)));
    disk.set_hook(|call, path| (call == DiskCall::Write && is_first(path)).then_some(libc::ENOSPC));
    assert_eq!(append(&mut o), (Step::Blocked, Err(AppendError::UnknownOutcome)));
    assert!(!o.shared.is_poisoned() && o.shared.blocked() != Blocked::No);
    assert_eq!(o.shared.watermarks().durable, 1);
    // The mark that is due is not written behind the hole.
    std::thread::sleep(o.shared.settings.mark_delay);
    assert_eq!(o.committer.step(), Step::Worked);
    assert!(o.prealloc.step());
    assert_eq!(drive(&mut o, 1), Ok(2));
    assert_eq!(o.shared.watermarks().sealed, 1);
    let again = disk.copy();
    let (o, seen) = start(&again);
    assert_eq!(seen, [1, 2]);
    assert!(!o.report.is_damaged(), "{:?}", o.report.findings);
}

/// "Not stored" is said to nobody whose record has been taken, however long its sync takes.
#[test]
fn a_sync_slower_than_the_queue_timeout_is_waited_for() {
    let disk = MemoryDisk::default();
    let s = LogSettings { queue_timeout: Duration::from_millis(20), ..small() };
    let (o, _) = try_start(&disk, s).unwrap();
    disk.set_hook(|call, path| {
        if call == DiskCall::Sync && is_first(path) {
            std::thread::sleep(Duration::from_millis(200));
        }
        None
    });
    assert_eq!(Running::start(o).append(1, 1), 1);
}

#[test]
fn what_the_queue_refuses_is_told_why() {
    let disk = MemoryDisk::default();
    let s = LogSettings { queue_bytes: 1, queue_timeout: Duration::from_millis(20), ..small() };
    let (o, _) = try_start(&disk, s).unwrap();
    let appender = Appender::new(Arc::clone(&o.shared));
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    rt.block_on(async {
        // One is taken however long it is; the next one finds no room and does not wait for any.
        for (blocked, reason) in
            [(Blocked::No, Reason::NotStored), (Blocked::DiskFull, Reason::DiskFull), (Blocked::Backlog, Reason::Backlog)]
        {
            o.shared.set_blocked(blocked);
            let (a, b) = tokio::join!(appender.append(record(0, 1), None), async {
                let (tx, rx) = tokio::sync::oneshot::channel();
                let done = Box::new(move |r| tx.send(r).unwrap());
                let answer = appender.append(record(0, 1), Some(done)).await;
                (answer, rx.await.unwrap())
            });
            let no = Err(AppendError::NotStored(reason));
            assert_eq!((a, b), (no, (no, no)), "its completion hears it too");
        }
        o.shared.close_queue();
        let e = appender.append(record(0, 1), None).await.unwrap_err();
        assert_eq!(e, AppendError::NotStored(Reason::Shutdown));
        assert!(e.to_request_error().message().contains("stopping; nothing was stored"));
        o.shared.poison("test".into());
        assert_eq!(appender.append(record(0, 1), None).await, Err(AppendError::NotStored(Reason::Poisoned)));
    });
}

fn manifest(disk: &MemoryDisk) -> Manifest {
    disk.create_dir_all(Path::new(DIR)).unwrap();
    let state = ManifestState { epoch: 1, next_plan: 1, ..ManifestState::default() };
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    Manifest::create(vfs, SystemClock::shared(), Path::new(DIR), LogId([3; 16]), state, None).unwrap()
}

fn durable(sequence: Sequence) -> Vec<Entry> {
    vec![Entry::Durable { sequence, running_ms: 0 }]
}

/// As long as the new file has no name the old one is the manifest, and goes on.
#[test]
fn a_rewrite_that_fails_before_the_new_manifest_has_a_name_leaves_the_old_one() {
    for (at, errno) in
        [(DiskCall::Create, libc::EIO), (DiskCall::Allocate, libc::ENOSPC), (DiskCall::Write, libc::EIO), (DiskCall::Sync, libc::EIO)]
    {
        let disk = MemoryDisk::default();
        let mut m = manifest(&disk);
        disk.set_hook(move |call, path| (call == at && path.extension().is_some_and(|e| e == "tmp")).then_some(errno));
        let e = m.rewrite(Vec::new()).unwrap_err();
        assert!(matches!((&e, errno), (AppendFailure::NoSpace(_), libc::ENOSPC) | (AppendFailure::Stands(_), libc::EIO)), "{at:?}: {e:?}");
        assert!(e.to_string().starts_with("manifest: "), "{e}");
        disk.set_hook(|_, _| None);
        m.append(durable(7), &[]).unwrap();
        let l = load(&disk, Path::new(DIR)).unwrap().unwrap();
        assert_eq!((l.header.id, l.state.durable, l.stale.len()), (1, 7, 0), "{at:?}");
        m.rewrite(Vec::new()).unwrap();
        m.append(durable(8), &[]).unwrap();
        let l = load(&disk, Path::new(DIR)).unwrap().unwrap();
        assert_eq!((l.header.id, l.state.durable, l.stale.len()), (2, 8, 0), "{at:?}");
    }
}

/// Room for a group is taken before anything of it is written: without it the append can be tried again.
#[test]
fn a_manifest_that_cannot_grow_is_as_it_was() {
    let key = crate::format::payload::KeyEntry { id: [1; 16], body: [2; 32], running_ms: 3, status: 204 };
    let keys = vec![(1, key); 60_000];
    for errno in [libc::ENOSPC, libc::EIO] {
        let disk = MemoryDisk::default();
        let mut m = manifest(&disk);
        let before = load(&disk, Path::new(DIR)).unwrap().unwrap();
        disk.set_hook(move |call, _| (call == DiskCall::Allocate).then_some(errno));
        let e = m.append(durable(7), &keys).unwrap_err();
        assert!(matches!((&e, errno), (AppendFailure::NoSpace(_), libc::ENOSPC) | (AppendFailure::Fatal(_), libc::EIO)), "{e:?}");
        let now = load(&disk, Path::new(DIR)).unwrap().unwrap();
        assert_eq!((now.end, now.state.durable, m.state.durable), (before.end, 0, 0));
        if errno == libc::ENOSPC {
            disk.set_hook(|_, _| None);
            m.append(durable(7), &keys).unwrap();
            let now = load(&disk, Path::new(DIR)).unwrap().unwrap();
            assert_eq!((now.state.durable, now.state.keys.len()), (7, 60_000));
        }
    }
}

/// A start needs little room, and has it from the reserve; it then refuses writes, and loses nothing.
#[test]
fn a_start_without_room_for_a_segment_takes_the_reserve_and_refuses_writes() {
    let disk = MemoryDisk::default();
    let s = || LogSettings { segment_data: 1 << 20, ..small() };
    let (mut o, _) = try_start(&disk, s()).unwrap();
    assert_eq!(drive(&mut o, 1), Ok(1));
    drop(o);
    let (full, reserve) = (disk.copy(), Path::new(DIR).join(files::RESERVE));
    let failed = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&failed);
    // Until the reserve is given back, and for a new one.
    full.set_hook(move |call, path| {
        let first = || is_first(path) && count.fetch_add(1, Ordering::Relaxed) == 0;
        (call == DiskCall::Allocate && (path.ends_with(files::RESERVE) || first())).then_some(libc::ENOSPC)
    });
    let (o, seen) = try_start(&full, s()).unwrap();
    assert_eq!((seen, failed.load(Ordering::Relaxed)), (vec![1], 2));
    let active = crate::wal::shared::lock(&o.shared.segments).active.unwrap();
    assert!(active.file_len < 1 << 16, "a small segment: {active:?}");
    assert!(o.shared.reserve_spent());
    assert!(matches!(o.shared.admit(), Err(RequestError::Unavailable { reason: Reason::DiskFull, .. })));
    assert!(full.open(&reserve, false).map_or(0, |f| f.len().unwrap()) < 4096, "its blocks were given back");
    drop(o);
    full.set_hook(|_, _| None);
    let (mut o, seen) = try_start(&full, s()).unwrap();
    assert_eq!((seen, o.shared.reserve_spent(), o.report.is_damaged()), (vec![1], false, false));
    // Any other error is no full disk. Without a record in the newest segment a start would take that one again and prepare none.
    assert_eq!(drive(&mut o, 1), Ok(2));
    drop(o);
    full.set_hook(|call, path| (call == DiskCall::Allocate && is_first(path)).then_some(libc::EIO));
    assert!(matches!(try_start(&full, s()), Err(OpenError::Io { what, .. }) if what.contains("preparing a segment")));
}

#[test]
fn of_the_reserve_there_is_as_much_as_there_is_room_for() {
    let disk = MemoryDisk::default();
    let dir = Path::new(DIR);
    disk.create_dir_all(dir).unwrap();
    let len = || disk.open(&dir.join(files::RESERVE), false).map_or(0, |f| f.len().unwrap());
    disk.set_hook(|call, _| (call == DiskCall::Create).then_some(libc::ENOSPC));
    assert!(!ensure_reserve(&disk, dir, 64 << 20).unwrap());
    let refuse = |first: u32, errno: i32| {
        let n = AtomicU32::new(0);
        disk.set_hook(move |call, _| (call == DiskCall::Allocate && n.fetch_add(1, Ordering::Relaxed) < first).then_some(errno));
    };
    refuse(u32::MAX, libc::ENOSPC);
    assert!(!ensure_reserve(&disk, dir, 64 << 20).unwrap());
    assert_eq!(len(), 0);
    // All of it, then what two starts need, then less.
    refuse(2, libc::ENOSPC);
    assert!(!ensure_reserve(&disk, dir, 64 << 20).unwrap());
    assert_eq!(len(), 2 * START_RESERVE - (512 << 10));
    refuse(u32::MAX, libc::ENOSPC);
    assert!(!ensure_reserve(&disk, dir, 64 << 20).unwrap());
    assert_eq!(len(), 2 * START_RESERVE - (512 << 10), "what there is of it is kept");
    refuse(u32::MAX, libc::EIO);
    assert_eq!(ensure_reserve(&disk, dir, 64 << 20).unwrap_err().raw_os_error(), Some(libc::EIO));
    refuse(0, 0);
    assert!(ensure_reserve(&disk, dir, 64 << 20).unwrap());
    assert!(ensure_reserve(&disk, dir, 1 << 20).unwrap());
    assert_eq!(len(), 1 << 20, "no more than it is told");
}

/// A copy of the directory may have made holes of it. That is no room that could be given back.
#[test]
fn a_reserve_without_blocks_of_its_own_frees_nothing_and_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(files::RESERVE);
    let blocks = || OsVfs.open(&path, false).unwrap().allocated().unwrap();
    OsVfs.create_new(&path).unwrap().set_len(8 << 20).unwrap();
    assert_eq!(spend_reserve(&OsVfs, &path, 1 << 20), 0);
    assert_eq!(spend_reserve(&OsVfs, &path, 0), 0);
    OsVfs.create_new(&path).unwrap().set_len(8 << 20).unwrap();
    assert!(ensure_reserve(&OsVfs, dir.path(), 8 << 20).unwrap());
    assert!(blocks() >= 8 << 20);
    assert!(spend_reserve(&OsVfs, &path, 2 << 20) >= 6 << 20);
    assert_eq!(spend_reserve(&OsVfs, &path, 2 << 20), 0, "there is no more than is kept");
    assert!(blocks() >= 2 << 20);
}

/// The file is absent or complete: one that could not be made leaves nothing, and the one before it alone.
#[test]
fn a_small_file_that_cannot_be_made_durable_leaves_the_one_before() {
    let disk = MemoryDisk::default();
    let dir = Path::new(DIR);
    disk.create_dir_all(dir).unwrap();
    write_durable(&disk, dir, "x", &[b"one"]).unwrap();
    for at in [DiskCall::Create, DiskCall::Write, DiskCall::Sync, DiskCall::Rename] {
        disk.set_hook(move |call, _| (call == at).then_some(libc::EIO));
        assert!(write_durable(&disk, dir, "x", &[b"two"]).is_err());
        assert_eq!(disk.list(dir).unwrap().len(), 1, "{at:?}");
        assert_eq!(read_all(&*disk.open(&dir.join("x"), false).unwrap()).unwrap(), b"one", "{at:?}");
    }
    disk.set_hook(|call, _| (call == DiskCall::SyncDir).then_some(libc::EIO));
    assert!(write_durable(&disk, dir, "x", &[b"two"]).is_err(), "its name may be lost");
}

/// A file that has grown by its second reading.
#[derive(Debug)]
struct Growing {
    first: Vec<u8>,
    second: Vec<u8>,
    reads: AtomicU32,
}

impl File for Growing {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.first.len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let from = if self.reads.fetch_add(1, Ordering::Relaxed) == 0 { &self.first } else { &self.second };
        let rest = from.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn write_all_at(&self, _: &[&[u8]], _: u64) -> std::io::Result<()> {
        unreachable!()
    }
    fn sync(&self, _: SyncMode) -> std::io::Result<()> {
        unreachable!()
    }
    fn allocate(&self, _: u64) -> std::io::Result<()> {
        unreachable!()
    }
    fn set_len(&self, _: u64) -> std::io::Result<()> {
        unreachable!()
    }
    fn map(&self, _: u64) -> std::io::Result<Mapping> {
        unreachable!()
    }
    fn appender(self: Arc<Self>, _: Engine, _: SyncMode) -> std::io::Result<Box<dyn GroupWriter>> {
        unreachable!()
    }
}

/// A tool reads while the server writes: what a group looks like half written is not judged, and rot that stays is.
#[test]
fn a_group_that_is_being_written_is_no_finding() {
    use crate::format::record::RecordKind;
    use crate::format::scan::{Known, Label};
    use crate::wal::manifest::put_group;
    const SALT: u64 = 9;
    let mut whole = vec![0u8; FILE_HEADER_BYTES];
    for s in 1..=3u64 {
        let at = whole.len() as u64;
        put_group(&mut whole, &[(RecordKind::Write, vec![s as u8; 100])], at, SALT, s, s - 1, 0);
    }
    let group = |n: usize| FILE_HEADER_BYTES + (n - 1) * BLOCK;
    let judged = |first: Vec<u8>, second: &[u8]| {
        let f = Growing { first, second: second.to_vec(), reads: AtomicU32::new(0) };
        let mut bytes = FileBytes::default();
        read_file(&f, &mut bytes).unwrap();
        let v = scan_growing(&f, &mut bytes, SALT, Known { first_sequence: 1, declared: None, floor: 0 }).unwrap();
        let writes: Vec<u64> = v.records.iter().filter(|r| r.kind == RecordKind::Write).map(|r| r.sequence).collect();
        let payloads = v.records.iter().all(|r| bytes.bytes.len() as u64 >= r.offset + r.record_len() as u64);
        (writes, v.findings.iter().map(|f| f.label).collect::<Vec<_>>(), payloads)
    };
    let with = |from: usize, to: usize| {
        let mut b = whole.clone();
        b[from..to].fill(0);
        b
    };
    // The second group in part, the third not yet.
    let half = with(group(2) + 80, whole.len());
    assert_eq!(judged(half.clone(), &whole), (vec![1], vec![], true));
    // The second was read before it was written, the third after.
    assert_eq!(judged(with(group(2), group(3)), &whole), (vec![1, 2, 3], vec![], true));
    // What a second reading does not change is what it is.
    assert_eq!(judged(half.clone(), &half), (vec![1], vec![Label::Torn], true));
    // The first group has rotted, the last is being written.
    let mut rotten = whole.clone();
    rotten[group(1) + 80] ^= 1;
    let mut first = rotten.clone();
    first[group(3) + 80..].fill(0);
    assert_eq!(judged(first, &rotten), (vec![2], vec![Label::Damaged], true));
}

/// A server that lives takes a released segment's file for another one while a tool reads it.
#[test]
fn a_segment_that_is_recycled_while_it_is_read_is_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..3 {
        let (o, _) = reopen(settings(dir.path(), 1 << 14, Engine::Pwrite)).unwrap();
        Running::start(o).append(i, 1);
    }
    let path: PathBuf = files::segment_path(dir.path(), 1);
    let disk = super::faults::FaultDisk::default();
    *disk.recycle.lock().unwrap() = Some((path, 2));
    let mut seen = Vec::new();
    let report = inspect(&disk, dir.path(), &mut |v| seen.push(v.header.sequence), &mut |_| {}).unwrap();
    assert_eq!(seen, [2, 3]);
    assert_eq!(report.segments[0].label, "recycled");
    assert!(report.findings.is_empty() && report.refusals.is_empty(), "{:?} {:?}", report.findings, report.refusals);
}
