//! A directory in memory, and a clock: enough of a disk to open a log, without a simulation of what a crash does to it.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_ingest::clock::Clock;
use arc_ingest::format::file_header::{FileHeader, FileKind};
use arc_ingest::format::payload::EncodedRecord;
use arc_ingest::limits::{BLOCK, FILE_HEADER_BYTES};
use arc_ingest::types::{LogId, Sequence};
use arc_ingest::vfs::{DirEntry, Engine, File, GroupWriter, Mapping, SyncMode, Vfs};
use arc_ingest::wal::Appender;
use arc_ingest::wal::commit::Step;
use arc_ingest::wal::recover::OpenedLog;

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap()
}

fn no_entry() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

/// Bytes behind `bytes` and before `len` are zeros.
#[derive(Debug, Default, Clone)]
struct Content {
    bytes: Vec<u8>,
    len: u64,
    /// Blocks that give an I/O error.
    bad: BTreeSet<u64>,
}

#[derive(Debug, Default)]
pub struct MemFile(Mutex<Content>);

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<PathBuf, Arc<MemFile>>,
    dirs: BTreeSet<PathBuf>,
}

#[derive(Debug, Default)]
pub struct MemVfs(Mutex<Tree>);

impl MemVfs {
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        let len = bytes.len() as u64;
        lock(&self.0).files.insert(path.to_path_buf(), Arc::new(MemFile(Mutex::new(Content { bytes, len, bad: BTreeSet::new() }))));
    }

    pub fn spoil(&self, path: &Path, offset: u64) {
        if let Some(f) = lock(&self.0).files.get(path) {
            lock(&f.0).bad.insert(offset / BLOCK as u64);
        }
    }

    /// Cuts the zeros behind what was written of a manifest: it grows into a megabyte of them, which takes long to scan.
    pub fn trim(&self, path: &Path) {
        let Some(f) = lock(&self.0).files.get(path).cloned() else { return };
        let mut c = lock(&f.0);
        let Ok((mut h, _)) = FileHeader::parse_file(&c.bytes[..FILE_HEADER_BYTES.min(c.bytes.len())], FileKind::Manifest) else { return };
        c.len = (c.bytes.len().next_multiple_of(BLOCK)) as u64;
        h.file_len = c.len;
        c.bytes[..FILE_HEADER_BYTES].copy_from_slice(&h.encode_file());
    }

    /// Every file with its bytes.
    pub fn all(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        lock(&self.0).files.iter().map(|(p, f)| (p.clone(), lock(&f.0).bytes.clone())).collect()
    }
}

impl Vfs for MemVfs {
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let t = lock(&self.0);
        let name = |p: &Path| p.file_name().and_then(|n| n.to_str()).map(str::to_owned);
        let within = |p: &&Path| p.parent() == Some(dir);
        let dirs = t.dirs.iter().map(PathBuf::as_path).filter(within).filter_map(name);
        let mut out: Vec<DirEntry> = dirs.map(|name| DirEntry { name, len: 0, is_dir: true, is_file: false }).collect();
        for (p, f) in t.files.iter().filter(|(p, _)| within(&p.as_path())) {
            let Some(name) = name(p) else { continue };
            out.push(DirEntry { name, len: lock(&f.0).len, is_dir: false, is_file: true });
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        lock(&self.0).dirs.insert(dir.to_path_buf());
        Ok(())
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut t = lock(&self.0);
        if t.files.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let f = Arc::<MemFile>::default();
        t.files.insert(path.to_path_buf(), Arc::clone(&f));
        Ok(f)
    }

    fn open(&self, path: &Path, _: bool) -> io::Result<Arc<dyn File>> {
        let f = lock(&self.0).files.get(path).cloned().ok_or_else(no_entry)?;
        Ok(f)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut t = lock(&self.0);
        let f = t.files.remove(from).ok_or_else(no_entry)?;
        t.files.insert(to.to_path_buf(), f);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        lock(&self.0).files.remove(path).map(|_| ()).ok_or_else(no_entry)
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        Ok(Some(Box::new(())))
    }

    fn device(&self, _: &Path) -> io::Result<u64> {
        Ok(1)
    }

    fn unsafe_filesystem(&self, _: &Path) -> io::Result<Option<&'static str>> {
        Ok(None)
    }
}

impl File for MemFile {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0).len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let c = lock(&self.0);
        let n = usize::try_from(c.len.saturating_sub(offset)).unwrap().min(buf.len());
        let buf = &mut buf[..n];
        if n > 0 && c.bad.range(offset / BLOCK as u64..=(offset + n as u64 - 1) / BLOCK as u64).next().is_some() {
            return Err(io::Error::from_raw_os_error(5));
        }
        let from = usize::try_from(offset).unwrap().min(c.bytes.len());
        let have = (c.bytes.len() - from).min(n);
        buf[..have].copy_from_slice(&c.bytes[from..from + have]);
        buf[have..].fill(0);
        Ok(n)
    }

    fn write_all_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut c = lock(&self.0);
        let mut at = usize::try_from(offset).unwrap();
        for b in bufs {
            if c.bytes.len() < at + b.len() {
                c.bytes.resize(at + b.len(), 0);
            }
            c.bytes[at..at + b.len()].copy_from_slice(b);
            at += b.len();
        }
        c.len = c.len.max(at as u64);
        Ok(())
    }

    fn sync(&self, _: SyncMode) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut c = lock(&self.0);
        c.len = c.len.max(len);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut c = lock(&self.0);
        c.len = len;
        c.bytes.truncate(usize::try_from(len).unwrap());
        Ok(())
    }

    fn map(&self, len: u64) -> io::Result<Mapping> {
        let c = lock(&self.0);
        let mut bytes = c.bytes.clone();
        bytes.resize(usize::try_from(len).unwrap(), 0);
        Ok(Mapping::Memory(bytes.into()))
    }

    fn appender(self: Arc<Self>, _: Engine, _: SyncMode) -> io::Result<Box<dyn GroupWriter>> {
        Ok(Box::new(Writer(self)))
    }
}

#[derive(Debug)]
struct Writer(Arc<MemFile>);

impl GroupWriter for Writer {
    fn write(&mut self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bufs, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Stands still, and gives the same numbers each time.
#[derive(Debug)]
pub struct StillClock(AtomicU64);

impl StillClock {
    pub fn shared(seed: u64) -> Arc<dyn Clock> {
        Arc::new(Self(AtomicU64::new(seed)))
    }
}

impl Clock for StillClock {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(1000)
    }

    fn wall_us(&self) -> i64 {
        1_767_225_600_000_000
    }

    fn random_u64(&self) -> u64 {
        let v = self.0.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (v ^ (v >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1
    }

    fn random_id(&self) -> LogId {
        LogId([self.random_u64() as u8; 16])
    }
}

/// Appends one record to an open log by stepping its committer; returns the sequence.
pub fn append(log: OpenedLog, record: EncodedRecord) -> Sequence {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    }
    let OpenedLog { shared, mut committer, .. } = log;
    RUNTIME.with(|r| {
        r.block_on(async {
            let appender = Appender::new(shared);
            let step = async {
                assert_eq!(committer.step(), Step::Worked);
            };
            tokio::join!(biased; appender.append(record, None), step).0.unwrap()
        })
    })
}
