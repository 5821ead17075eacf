//! A disk in memory that knows what has been synced, fails on demand and can be copied.
//!
//! It models what a log is told, not what a power cut leaves: a kill keeps everything. Names are durable at once.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::vfs::{DirEntry, Engine, File, GroupWriter, Mapping, SyncMode, Vfs};

/// What is asked of the disk, before it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DiskCall {
    Write,
    Sync,
    SyncDir,
    Rename,
    Create,
    Allocate,
}

type Hook = Box<dyn FnMut(DiskCall, &Path) -> Option<i32> + Send>;

#[derive(Default)]
struct Tree {
    files: BTreeMap<PathBuf, Arc<Mutex<Content>>>,
    dirs: BTreeSet<PathBuf>,
    locked: BTreeSet<PathBuf>,
}

#[derive(Clone, Default)]
struct Content {
    data: Vec<u8>,
    synced: Vec<u8>,
    dirty: Vec<(usize, usize)>,
}

#[derive(Default)]
struct Inner {
    tree: Mutex<Tree>,
    hook: Mutex<Option<Hook>>,
}

/// Clones are the same disk; see [`MemoryDisk::copy`].
#[derive(Clone, Default)]
pub(crate) struct MemoryDisk(Arc<Inner>);

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.tree.lock().unwrap().files.keys()).finish()
    }
}

/// Like `Vec::resize` with zeros, without its byte by byte loop in debug builds.
fn resize(v: &mut Vec<u8>, len: usize) {
    if len > v.len() {
        v.extend_from_slice(&vec![0; len - v.len()]);
    } else {
        v.truncate(len);
    }
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

impl MemoryDisk {
    /// A second disk with the same files; locks are not copied.
    pub(crate) fn copy(&self) -> Self {
        let t = self.0.tree.lock().unwrap();
        let files = t.files.iter().map(|(p, c)| (p.clone(), Arc::new(Mutex::new(c.lock().unwrap().clone())))).collect();
        let tree = Tree { files, dirs: t.dirs.clone(), locked: BTreeSet::new() };
        Self(Arc::new(Inner { tree: Mutex::new(tree), hook: Mutex::new(None) }))
    }

    /// Asked before every call; an errno makes it fail with nothing done.
    pub(crate) fn set_hook(&self, hook: impl FnMut(DiskCall, &Path) -> Option<i32> + Send + 'static) {
        *self.0.hook.lock().unwrap() = Some(Box::new(hook));
    }

    #[cfg(feature = "shuttle")]
    /// What of each file has been synced.
    pub(crate) fn synced(&self) -> Vec<(PathBuf, Vec<u8>)> {
        self.0.tree.lock().unwrap().files.iter().map(|(p, c)| (p.clone(), c.lock().unwrap().synced.clone())).collect()
    }

    fn ask(&self, call: DiskCall, path: &Path) -> io::Result<()> {
        match self.0.hook.lock().unwrap().as_mut().and_then(|h| h(call, path)) {
            Some(n) => Err(io::Error::from_raw_os_error(n)),
            None => Ok(()),
        }
    }

    fn file(&self, path: &Path, content: Arc<Mutex<Content>>) -> Arc<dyn File> {
        Arc::new(MemoryFile { disk: self.clone(), path: path.to_owned(), content })
    }
}

struct Locked(MemoryDisk, PathBuf);

impl Drop for Locked {
    fn drop(&mut self) {
        self.0.0.tree.lock().unwrap().locked.remove(&self.1);
    }
}

impl Vfs for MemoryDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let t = self.0.tree.lock().unwrap();
        if !t.dirs.contains(dir) {
            return Err(not_found());
        }
        let name = |p: &Path| p.file_name().unwrap().to_str().unwrap().to_owned();
        let files = t.files.iter().filter(|(p, _)| p.parent() == Some(dir)).map(|(p, c)| DirEntry {
            name: name(p),
            len: c.lock().unwrap().data.len() as u64,
            is_dir: false,
            is_file: true,
        });
        let dirs =
            t.dirs.iter().filter(|p| p.parent() == Some(dir)).map(|p| DirEntry { name: name(p), len: 0, is_dir: true, is_file: false });
        let mut out: Vec<DirEntry> = files.chain(dirs).collect();
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.tree.lock().unwrap().dirs.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.ask(DiskCall::Create, path)?;
        let mut t = self.0.tree.lock().unwrap();
        if !path.parent().is_some_and(|p| t.dirs.contains(p)) {
            return Err(not_found());
        }
        if t.files.contains_key(path) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let content = Arc::new(Mutex::new(Content::default()));
        t.files.insert(path.to_owned(), Arc::clone(&content));
        Ok(self.file(path, content))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn File>> {
        let content = self.0.tree.lock().unwrap().files.get(path).cloned().ok_or_else(not_found)?;
        Ok(self.file(path, content))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask(DiskCall::Rename, to)?;
        let mut t = self.0.tree.lock().unwrap();
        let content = t.files.remove(from).ok_or_else(not_found)?;
        t.files.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.tree.lock().unwrap().files.remove(path).map(drop).ok_or_else(not_found)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.ask(DiskCall::SyncDir, dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let mut t = self.0.tree.lock().unwrap();
        t.files.entry(path.to_owned()).or_default();
        if !t.locked.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(Box::new(Locked(self.clone(), path.to_owned()))))
    }

    fn device(&self, _dir: &Path) -> io::Result<u64> {
        Ok(1)
    }

    fn unsafe_filesystem(&self, _dir: &Path) -> io::Result<Option<&'static str>> {
        Ok(None)
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    path: PathBuf,
    content: Arc<Mutex<Content>>,
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().data.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let c = self.content.lock().unwrap();
        let rest = c.data.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_all_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        self.disk.ask(DiskCall::Write, &self.path)?;
        let mut c = self.content.lock().unwrap();
        let from = offset as usize;
        let to = from + bufs.iter().map(|b| b.len()).sum::<usize>();
        if c.data.len() < to {
            resize(&mut c.data, to);
        }
        let mut at = from;
        for b in bufs {
            c.data[at..at + b.len()].copy_from_slice(b);
            at += b.len();
        }
        c.dirty.push((from, to));
        Ok(())
    }

    fn sync(&self, _mode: SyncMode) -> io::Result<()> {
        self.disk.ask(DiskCall::Sync, &self.path)?;
        let mut guard = self.content.lock().unwrap();
        let c = &mut *guard;
        resize(&mut c.synced, c.data.len());
        for (from, to) in c.dirty.drain(..) {
            let to = to.min(c.data.len());
            if from < to {
                c.synced[from..to].copy_from_slice(&c.data[from..to]);
            }
        }
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.ask(DiskCall::Allocate, &self.path)?;
        let mut c = self.content.lock().unwrap();
        if c.data.len() < len as usize {
            resize(&mut c.data, len as usize);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        resize(&mut self.content.lock().unwrap().data, len as usize);
        Ok(())
    }

    fn map(&self, len: u64) -> io::Result<Mapping> {
        let c = self.content.lock().unwrap();
        let bytes = c.data.get(..len as usize).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(Mapping::Memory(bytes.into()))
    }

    fn appender(self: Arc<Self>, _engine: Engine, _mode: SyncMode) -> io::Result<Box<dyn GroupWriter>> {
        Ok(Box::new(MemoryWriter(self)))
    }
}

#[derive(Debug)]
struct MemoryWriter(Arc<MemoryFile>);

impl GroupWriter for MemoryWriter {
    fn write(&mut self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bufs, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync(SyncMode::Data)
    }
}
