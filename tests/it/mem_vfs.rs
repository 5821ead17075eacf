//! A disk in memory: a tree of files, and what of each has been synced. The plug can be pulled at any operation.
//!
//! Directory entries are durable at once: what a crash leaves of renames and removals is for a simulated disk to show.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_ingest::vfs::{DirEntry, Engine, File, GroupWriter, Mapping, SyncMode, Vfs};

const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct Contents {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// What a failed sync left in memory: marked clean, so that a later sync does not write it.
    clean: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct MemFile {
    contents: Mutex<Contents>,
    plug: Arc<Plug>,
}

/// Counts down the operations that change something; from the last one on everything fails.
#[derive(Debug)]
struct Plug {
    left: AtomicI64,
    used: AtomicU64,
    read: AtomicU64,
    /// The next sync fails, once.
    bad_sync: AtomicBool,
    /// Bytes that all files may have together.
    room: AtomicU64,
    taken: AtomicU64,
}

impl Default for Plug {
    fn default() -> Self {
        Self {
            left: AtomicI64::new(i64::MAX),
            used: AtomicU64::new(0),
            read: AtomicU64::new(0),
            bad_sync: AtomicBool::new(false),
            room: AtomicU64::new(u64::MAX),
            taken: AtomicU64::new(0),
        }
    }
}

impl Plug {
    fn is_pulled(&self) -> bool {
        self.left.load(Ordering::Relaxed) <= 0
    }

    fn use_one(&self) -> io::Result<()> {
        self.used.fetch_add(1, Ordering::Relaxed);
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 1 {
            self.left.store(0, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    fn resize(&self, from: usize, to: usize) -> io::Result<()> {
        let taken = self.taken.load(Ordering::Relaxed) + to as u64 - from as u64;
        if to > from && taken > self.room.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.taken.store(taken, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let len = self.contents.get_mut().unwrap().now.len() as u64;
        self.plug.taken.fetch_sub(len, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug, Default)]
pub struct MemVfs {
    files: Arc<Mutex<BTreeMap<PathBuf, Arc<MemFile>>>>,
    dirs: Arc<Mutex<BTreeSet<PathBuf>>>,
    locked: Arc<AtomicBool>,
    plug: Arc<Plug>,
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

impl MemVfs {
    /// The `n`th operation from here on that changes something fails, and all after it.
    pub fn pull_the_plug_after(&self, n: u32) {
        self.plug.left.store(i64::from(n), Ordering::Relaxed);
    }

    /// Operations so far that changed something.
    pub fn operations(&self) -> u64 {
        self.plug.used.load(Ordering::Relaxed)
    }

    pub fn bytes_read(&self) -> u64 {
        self.plug.read.load(Ordering::Relaxed)
    }

    pub fn fail_next_sync(&self) {
        self.plug.bad_sync.store(true, Ordering::Relaxed);
    }

    /// From here on there is room for `more` bytes beyond those of the files that are there.
    pub fn room(&self, more: u64) {
        let room = self.plug.taken.load(Ordering::Relaxed).saturating_add(more);
        self.plug.room.store(room, Ordering::Relaxed);
    }

    /// The disk after a crash: everything synced, and of each sector written since what `keep` says.
    pub fn after_crash(&self, keep: &mut dyn FnMut() -> bool) -> Self {
        let out = Self { dirs: Arc::new(Mutex::new(self.dirs.lock().unwrap().clone())), ..Self::default() };
        for (path, f) in &*self.files.lock().unwrap() {
            let c = f.contents.lock().unwrap();
            let mut bytes = c.now.clone();
            for (i, new) in bytes.chunks_mut(SECTOR).enumerate() {
                let at = i * SECTOR;
                let old = c.synced.get(at..).unwrap_or_default();
                let mut before = vec![0u8; new.len()];
                let n = old.len().min(new.len());
                before[..n].copy_from_slice(&old[..n]);
                if before != *new && !keep() {
                    new.copy_from_slice(&before);
                }
            }
            drop(c);
            out.put(path, bytes);
        }
        out
    }

    /// A copy that goes its own way.
    pub fn fork(&self) -> Self {
        self.after_crash(&mut || true)
    }

    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        self.plug.taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let contents = Mutex::new(Contents { synced: bytes.clone(), now: bytes, clean: None });
        let file = MemFile { contents, plug: Arc::clone(&self.plug) };
        self.files.lock().unwrap().insert(path.to_path_buf(), Arc::new(file));
    }

    pub fn get(&self, path: &Path) -> Vec<u8> {
        self.files.lock().unwrap()[path].contents.lock().unwrap().now.clone()
    }

    /// The file is gone.
    pub fn take(&self, path: &Path) {
        self.files.lock().unwrap().remove(path).unwrap();
    }

    pub fn make_dir(&self, path: &Path) {
        self.dirs.lock().unwrap().insert(path.to_path_buf());
    }

    /// Changes the bytes of a file in place.
    pub fn edit(&self, path: &Path, f: impl FnOnce(&mut Vec<u8>)) {
        let files = self.files.lock().unwrap();
        let mut c = files[path].contents.lock().unwrap();
        let before = c.now.len() as u64;
        f(&mut c.now);
        let taken = self.plug.taken.load(Ordering::Relaxed) + c.now.len() as u64 - before;
        self.plug.taken.store(taken, Ordering::Relaxed);
    }

    /// Every file with its bytes.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.files.lock().unwrap().iter().map(|(p, f)| (p.clone(), f.contents.lock().unwrap().now.clone())).collect()
    }

    fn file(&self, path: &Path) -> io::Result<Arc<MemFile>> {
        self.files.lock().unwrap().get(path).cloned().ok_or_else(|| not_found(path))
    }
}

struct Held(Arc<AtomicBool>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Vfs for MemVfs {
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let child = |p: &Path| (p.parent() == Some(dir)).then(|| p.file_name().unwrap().to_str().unwrap().to_owned());
        let mut out = Vec::new();
        for (p, f) in &*self.files.lock().unwrap() {
            let Some(name) = child(p) else { continue };
            out.push(DirEntry { name, len: f.contents.lock().unwrap().now.len() as u64, is_dir: false, is_file: true });
        }
        let dirs = self.dirs.lock().unwrap();
        out.extend(dirs.iter().filter_map(|d| Some(DirEntry { name: child(d)?, len: 0, is_dir: true, is_file: false })));
        if !dirs.contains(dir) {
            return Err(not_found(dir));
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.dirs.lock().unwrap().extend(dir.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.plug.use_one()?;
        let mut files = self.files.lock().unwrap();
        if files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let f = Arc::new(MemFile { contents: Mutex::default(), plug: Arc::clone(&self.plug) });
        files.insert(path.to_path_buf(), Arc::clone(&f));
        Ok(f)
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn File>> {
        Ok(self.file(path)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plug.use_one()?;
        let mut files = self.files.lock().unwrap();
        let f = files.remove(from).ok_or_else(|| not_found(from))?;
        files.insert(to.to_path_buf(), f);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.plug.use_one()?;
        self.files.lock().unwrap().remove(path).map(drop).ok_or_else(|| not_found(path))
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.plug.use_one()
    }

    fn lock(&self, _path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let free = self.locked.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        Ok(free.then(|| Box::new(Held(Arc::clone(&self.locked))) as Box<dyn Any + Send + Sync>))
    }

    fn device(&self, _dir: &Path) -> io::Result<u64> {
        Ok(1)
    }

    fn unsafe_filesystem(&self, _dir: &Path) -> io::Result<Option<&'static str>> {
        Ok(None)
    }
}

impl File for MemFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.contents.lock().unwrap().now.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let c = self.contents.lock().unwrap();
        let from = (offset as usize).min(c.now.len());
        let n = buf.len().min(c.now.len() - from);
        buf[..n].copy_from_slice(&c.now[from..from + n]);
        self.plug.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn write_all_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        if self.plug.is_pulled() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let all = bufs.concat();
        let mut c = self.contents.lock().unwrap();
        let end = offset as usize + all.len();
        if c.now.len() < end {
            self.plug.resize(c.now.len(), end)?;
            c.now.resize(end, 0);
        }
        c.now[offset as usize..end].copy_from_slice(&all);
        // The operation that fails may have reached the disk, in part.
        self.plug.use_one()
    }

    fn sync(&self, _mode: SyncMode) -> io::Result<()> {
        self.plug.use_one()?;
        let mut c = self.contents.lock().unwrap();
        let Contents { now, synced, clean } = &mut *c;
        if self.plug.bad_sync.swap(false, Ordering::Relaxed) {
            *clean = Some(now.clone());
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        synced.resize(now.len(), 0);
        for (i, (new, old)) in now.chunks(SECTOR).zip(synced.chunks_mut(SECTOR)).enumerate() {
            let marked = clean.as_ref().and_then(|c| c.get(i * SECTOR..i * SECTOR + new.len()));
            if marked != Some(new) {
                old.copy_from_slice(new);
            }
        }
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let now = self.len()?;
        self.set_len(len.max(now))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.plug.use_one()?;
        let mut c = self.contents.lock().unwrap();
        self.plug.resize(c.now.len(), len as usize)?;
        c.now.resize(len as usize, 0);
        Ok(())
    }

    fn map(&self, len: u64) -> io::Result<Mapping> {
        let c = self.contents.lock().unwrap();
        let bytes = c.now.get(..len as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Mapping::Memory(bytes.into()))
    }

    fn appender(self: Arc<Self>, _engine: Engine, mode: SyncMode) -> io::Result<Box<dyn GroupWriter>> {
        Ok(Box::new(Writer(self, mode)))
    }
}

#[derive(Debug)]
struct Writer(Arc<MemFile>, SyncMode);

impl GroupWriter for Writer {
    fn write(&mut self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bufs, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync(self.1)
    }
}
