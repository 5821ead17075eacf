//! The calls of a process: [`Vfs`] and [`File`] on the simulated disk.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::image::Inode;
use super::names::{Directory, NameOp, Target};
use super::root::SimRoot;
use super::{Disk, Fault, Removed, SECTOR, SimDisk};
use crate::vfs::{DirEntry, Engine, File, GroupWriter, Mapping, Root, SyncMode, Vfs};

const BLOCK: u64 = crate::limits::BLOCK as u64;
/// What a call costs of simulated time.
const CALL: Duration = Duration::from_micros(5);
const SYNC: Duration = Duration::from_micros(100);
const SLOW: Duration = Duration::from_secs(3);

pub(super) fn errno(n: i32) -> io::Error {
    io::Error::from_raw_os_error(n)
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_path_buf).unwrap_or_default()
}

fn file_name(path: &Path) -> io::Result<String> {
    path.file_name().and_then(|n| n.to_str()).map(str::to_owned).ok_or_else(|| errno(libc::EINVAL))
}

/// How a call is to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Go {
    On,
    /// The effect happens, the caller hears EIO: the machine has stopped.
    ThenStop,
    /// Half of the write.
    Short,
}

impl Disk {
    pub(super) fn restart(&mut self) {
        self.boot += 1;
        self.off = false;
        self.killed = false;
        self.locks.clear();
        self.removed.clear();
    }

    pub(super) fn used(&self) -> u64 {
        let names = self.directories.values().flat_map(|d| d.live.values());
        names.filter_map(|t| if let Target::File(f) = t { self.files.get(f) } else { None }).map(|f| f.live.len() as u64).sum()
    }

    pub(super) fn find(&self, path: &Path) -> Option<u64> {
        match self.directories.get(&parent(path))?.live.get(path.file_name()?.to_str()?)? {
            Target::File(f) => Some(*f),
            Target::Dir => None,
        }
    }

    pub(super) fn note(&mut self, what: &str, path: &Path, n: u64, outcome: &str) {
        // FNV-1a.
        let shown = path.to_string_lossy();
        for b in what.bytes().chain(shown.bytes()).chain(n.to_le_bytes()).chain(outcome.bytes()) {
            self.trace = (self.trace ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(log) = &mut self.logged {
            log.push(format!("{what} {shown}"));
        }
        if self.printed {
            println!("{:6} {what} {shown} {n:x} {outcome}", self.calls);
        }
    }

    pub(super) fn inject(&mut self, what: &'static str) {
        *self.injected.entry(what).or_default() += 1;
    }

    /// Every call that changes something passes here first.
    pub(super) fn enter(&mut self, boot: u64, what: &'static str, path: &Path, n: u64) -> io::Result<Go> {
        if boot != self.boot || self.off || self.killed {
            return Err(errno(libc::EIO));
        }
        self.calls += 1;
        self.clock.advance(CALL);
        let r = self.rates;
        let write = matches!(what, "write" | "append");
        let sync = matches!(what, "sync" | "msync");
        let fault = match self.script.remove(&self.calls) {
            Some(f) => Some(f),
            None if write && self.random.chance(r.write_error) => Some(Fault::Errno(libc::EIO)),
            None if write && self.random.chance(r.write_short) => Some(Fault::Short),
            None if write && self.random.chance(r.write_no_space) => Some(Fault::Errno(libc::ENOSPC)),
            None if sync && self.random.chance(r.sync_error) => Some(Fault::Errno(libc::EIO)),
            None if !write && !sync && self.random.chance(r.name_error) => Some(Fault::Errno(libc::EIO)),
            None => None,
        };
        // Only a write can be cut short.
        let fault = fault.map(|f| if f == Fault::Short && !write { Fault::Errno(libc::EIO) } else { f });
        if sync {
            let slow = self.random.chance(r.sync_slow);
            self.clock.advance(if slow { SLOW } else { SYNC });
            if slow {
                self.inject("slow sync");
            }
        }
        let (go, word) = match fault {
            None => (Ok(Go::On), ""),
            Some(Fault::CrashBefore) => {
                self.off = true;
                (Err(errno(libc::EIO)), "power off before")
            }
            Some(Fault::CrashAfter) => (Ok(Go::ThenStop), "power off after"),
            Some(Fault::Short) => {
                self.inject("short write");
                (Ok(Go::Short), "short")
            }
            Some(Fault::Errno(n)) => {
                self.inject(match (n, write, sync) {
                    (libc::ENOSPC, ..) => "no space",
                    (_, true, _) => "write error",
                    (_, _, true) => "sync error",
                    _ => "error on a name",
                });
                (Err(errno(n)), "error")
            }
        };
        self.note(what, path, n, word);
        go
    }

    pub(super) fn leave(&mut self, go: Go) -> io::Result<()> {
        match go {
            Go::On => Ok(()),
            Go::ThenStop => {
                self.off = true;
                Err(errno(libc::EIO))
            }
            Go::Short => Err(errno(libc::EIO)),
        }
    }

    pub(super) fn alive(&self, boot: u64) -> io::Result<()> {
        if boot == self.boot && !self.off && !self.killed { Ok(()) } else { Err(errno(libc::EIO)) }
    }

    pub(super) fn directory(&mut self, path: &Path) -> io::Result<&mut Directory> {
        self.directories.get_mut(path).ok_or_else(|| errno(libc::ENOENT))
    }

    fn file(&mut self, f: u64) -> io::Result<&mut Inode> {
        self.files.get_mut(&f).ok_or_else(|| errno(libc::EBADF))
    }

    fn failed(&mut self, f: u64) {
        let boot = self.boot;
        if let Some(f) = self.files.get_mut(&f) {
            f.failed_in = Some(boot);
        }
    }

    /// Drops directories that have no durable name, and files without any.
    pub(super) fn settle_names(&mut self) {
        loop {
            let lost: Vec<PathBuf> = self
                .directories
                .keys()
                .filter(|p| {
                    let Some(name) = p.file_name().and_then(|n| n.to_str()) else { return false };
                    let named = self.directories.get(&parent(p)).is_some_and(|d| d.durable.get(name) == Some(&Target::Dir));
                    !named
                })
                .cloned()
                .collect();
            if lost.is_empty() {
                break;
            }
            self.directories.retain(|p, _| !lost.contains(p));
        }
        let mut used = std::collections::BTreeSet::new();
        for d in self.directories.values_mut() {
            d.pending.clear();
            d.live.clone_from(&d.durable);
            used.extend(d.live.values().filter_map(|t| if let Target::File(f) = t { Some(*f) } else { None }));
        }
        self.files.retain(|f, _| used.contains(f));
    }

    /// A name goes away or changes: whoever checks removals hears of it.
    fn went(&mut self, path: &Path, file: u64) {
        if (self.immutable)(path)
            && let Some(f) = self.files.get(&file)
        {
            self.removed.push(Removed { path: path.to_path_buf(), content: f.live.clone() });
        }
    }

    /// INVARIANT(block-aligned-groups): a block that has been synced is never written again in its generation.
    fn write(&mut self, f: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (capacity, used, immutable) = (self.capacity, self.used(), self.immutable);
        let file = self.file(f)?;
        let end = offset + bytes.len() as u64;
        if immutable(&file.name) {
            for b in offset / BLOCK..end.div_ceil(BLOCK) {
                assert!(
                    !file.covered.contains(&b),
                    "INVARIANT(block-aligned-groups): {}: block {b} is written after its sync",
                    file.name.display()
                );
            }
        }
        let growth = end.saturating_sub(file.live.len() as u64);
        if growth > 0 && used + growth > capacity {
            self.inject("disk full");
            return Err(errno(libc::ENOSPC));
        }
        let (first, last) = (offset as usize / SECTOR, (end as usize).div_ceil(SECTOR));
        file.unreadable.retain(|n| *n < first || *n >= last);
        file.write(bytes, offset as usize);
        Ok(())
    }
}

/// The disk as one process sees it.
#[derive(Clone, Debug)]
pub(super) struct SimVfs {
    pub(super) disk: SimDisk,
    pub(super) boot: u64,
}

impl SimVfs {
    pub(super) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.disk()
    }
}

impl Vfs for SimVfs {
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut d = self.disk();
        d.alive(self.boot)?;
        let names: Vec<(String, Target)> = d.directory(dir)?.live.iter().map(|(n, t)| (n.clone(), *t)).collect();
        let entry = |(name, t): (String, Target)| match t {
            Target::Dir => DirEntry { name, len: 0, is_dir: true, is_file: false },
            Target::File(f) => DirEntry { name, len: d.files.get(&f).map_or(0, |f| f.live.len() as u64), is_dir: false, is_file: true },
        };
        Ok(names.into_iter().map(entry).collect())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut at = dir.to_path_buf();
        while !self.disk().directories.contains_key(&at) {
            missing.push(at.clone());
            at = parent(&at);
        }
        if let Some(above) = at.parent() {
            self.sync_dir(above)?;
        }
        for path in missing.iter().rev() {
            let (up, name) = (parent(path), file_name(path)?);
            {
                let mut d = self.disk();
                let go = d.enter(self.boot, "mkdir", path, 0)?;
                d.next += 1;
                let op = NameOp::Link { name: name.clone(), target: Target::Dir, link: d.next };
                let p = d.directory(&up)?;
                p.live.insert(name, Target::Dir);
                p.pending.push(op);
                d.directories.insert(path.clone(), Directory::default());
                d.leave(go)?;
            }
            self.sync_dir(&up)?;
        }
        Ok(())
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut d = self.disk();
        let go = d.enter(self.boot, "create", path, 0)?;
        let name = file_name(path)?;
        d.next += 1;
        let file = d.next;
        let p = d.directory(&parent(path))?;
        if p.live.contains_key(&name) {
            return Err(errno(libc::EEXIST));
        }
        p.live.insert(name.clone(), Target::File(file));
        p.pending.push(NameOp::Link { name, target: Target::File(file), link: 0 });
        d.files.insert(file, Inode { name: path.to_path_buf(), ..Inode::default() });
        d.leave(go)?;
        Ok(Arc::new(SimFile { vfs: self.clone(), file, path: path.to_path_buf() }))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn File>> {
        let mut d = self.disk();
        d.alive(self.boot)?;
        let file = match d.directory(&parent(path))?.live.get(&file_name(path)?) {
            Some(Target::File(f)) => *f,
            Some(Target::Dir) => return Err(errno(libc::EISDIR)),
            None => return Err(errno(libc::ENOENT)),
        };
        // The page cache may drop clean pages at any time.
        if d.random.chance(200) {
            d.file(file)?.evict();
        }
        Ok(Arc::new(SimFile { vfs: self.clone(), file, path: path.to_path_buf() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut d = self.disk();
        let go = d.enter(self.boot, "rename", from, 0)?;
        let (a, b) = (file_name(from)?, file_name(to)?);
        let (up, there) = (parent(from), parent(to));
        let Some(Target::File(file)) = d.directory(&up)?.live.get(&a).copied() else { return Err(errno(libc::ENOENT)) };
        d.directory(&there)?;
        d.went(from, file);
        let (immutable, boot) = (d.immutable, d.boot);
        {
            let f = d.file(file)?;
            // A segment with a failed write or sync is never written again, and so never pooled.
            assert!(!immutable(from) || f.failed_in != Some(boot), "{}: is to be used again after a failed write or sync", from.display());
            if immutable(&f.name) || !immutable(to) {
                // Another generation begins.
                f.written.clear();
                f.covered.clear();
            }
            f.name = to.to_path_buf();
        }
        if up == there {
            let p = d.directory(&up)?;
            p.live.remove(&a);
            p.live.insert(b.clone(), Target::File(file));
            p.pending.push(NameOp::Move { from: a, to: b, file });
        } else {
            d.next += 1;
            let link = d.next;
            let p = d.directory(&there)?;
            p.live.insert(b.clone(), Target::File(file));
            p.pending.push(NameOp::Link { name: b, target: Target::File(file), link });
            let p = d.directory(&up)?;
            p.live.remove(&a);
            p.pending.push(NameOp::Unlink { name: a, file, after: Some(link) });
            d.pending_links.insert(link, there);
        }
        d.leave(go)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut d = self.disk();
        if d.alive(self.boot).is_ok() && d.find(path).is_none() {
            return Err(errno(libc::ENOENT));
        }
        let go = d.enter(self.boot, "remove", path, 0)?;
        let name = file_name(path)?;
        let Some(file) = d.find(path) else { return Err(errno(libc::ENOENT)) };
        d.went(path, file);
        let p = d.directory(&parent(path))?;
        p.live.remove(&name);
        p.pending.push(NameOp::Unlink { name, file, after: None });
        d.leave(go)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut d = self.disk();
        let go = d.enter(self.boot, "sync_dir", dir, 0)?;
        let ops = std::mem::take(&mut d.directory(dir)?.pending);
        for op in ops {
            match &op {
                NameOp::Link { link, .. } => {
                    d.pending_links.remove(link);
                }
                // The other half of a rename goes with it.
                NameOp::Unlink { after: Some(link), .. } => {
                    if let Some(other) = d.pending_links.remove(link) {
                        let there = d.directory(&other)?;
                        let mut rest = Vec::new();
                        for o in std::mem::take(&mut there.pending) {
                            if matches!(&o, NameOp::Link { link: l, .. } if l == link) {
                                Directory::apply(&mut there.durable, &o);
                            } else {
                                rest.push(o);
                            }
                        }
                        there.pending = rest;
                    }
                }
                _ => {}
            }
            Directory::apply(&mut d.directory(dir)?.durable, &op);
        }
        d.leave(go)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        if self.disk().find(path).is_none() {
            self.create_new(path)?;
        }
        let mut d = self.disk();
        d.alive(self.boot)?;
        if !d.locks.insert(path.to_path_buf()) {
            return Ok(None);
        }
        drop(d);
        Ok(Some(Box::new(Held { vfs: self.clone(), path: path.to_path_buf() })))
    }

    fn device(&self, _dir: &Path) -> io::Result<u64> {
        Ok(1)
    }

    fn unsafe_filesystem(&self, _dir: &Path) -> io::Result<Option<&'static str>> {
        Ok(None)
    }

    fn open_root(&self, dir: &Path) -> io::Result<Arc<dyn Root>> {
        Ok(Arc::new(SimRoot::open(self, dir)?))
    }
}

struct Held {
    vfs: SimVfs,
    path: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut d = self.vfs.disk();
        if d.boot == self.vfs.boot {
            d.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    vfs: SimVfs,
    file: u64,
    /// The name it was opened under, for the log of calls.
    path: PathBuf,
}

impl SimFile {
    fn write(&self, what: &'static str, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut d = self.vfs.disk();
        let mut bytes = bufs.concat();
        let written = d.enter(self.vfs.boot, what, &self.path, offset ^ (bytes.len() as u64) << 32).and_then(|go| {
            if go == Go::Short {
                bytes.truncate(bytes.len() / 2);
            }
            d.write(self.file, &bytes, offset)?;
            d.leave(go)
        });
        if written.is_err() {
            d.failed(self.file);
        }
        written
    }

    fn sync_range(&self, what: &'static str, range: Option<(usize, usize)>) -> io::Result<()> {
        let mut d = self.vfs.disk();
        let d = &mut *d;
        match d.enter(self.vfs.boot, what, &self.path, 0) {
            Ok(go) => {
                d.file(self.file)?.sync(range);
                d.leave(go)
            }
            Err(e) => {
                if d.alive(self.vfs.boot).is_ok()
                    && let Some(f) = d.files.get_mut(&self.file)
                {
                    f.fail_sync(&mut d.random);
                }
                d.failed(self.file);
                Err(e)
            }
        }
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut d = self.vfs.disk();
        d.alive(self.vfs.boot)?;
        Ok(d.file(self.file)?.live.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut d = self.vfs.disk();
        let d = &mut *d;
        d.alive(self.vfs.boot)?;
        if d.random.chance(d.rates.read_error) {
            d.inject("read error");
            return Err(errno(libc::EIO));
        }
        let f = d.files.get(&self.file).ok_or_else(|| errno(libc::EBADF))?;
        let from = (offset as usize).min(f.live.len());
        let n = buf.len().min(f.live.len() - from);
        if f.unreadable.range(from / SECTOR..(from + n).div_ceil(SECTOR)).next().is_some() {
            return Err(errno(libc::EIO));
        }
        if let (Some(dst), Some(src)) = (buf.get_mut(..n), f.live.get(from..from + n)) {
            dst.copy_from_slice(src);
        }
        Ok(n)
    }

    fn write_all_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        self.write("write", bufs, offset)
    }

    fn sync(&self, mode: SyncMode) -> io::Result<()> {
        if mode == SyncMode::UnsafeNone { Ok(()) } else { self.sync_range("sync", None) }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut d = self.vfs.disk();
        let go = d.enter(self.vfs.boot, "allocate", &self.path, len)?;
        let (capacity, used) = (d.capacity, d.used());
        let f = d.file(self.file)?;
        let growth = len.saturating_sub(f.live.len() as u64);
        if used + growth > capacity {
            // Some of it was taken.
            let part = f.live.len() as u64 + capacity.saturating_sub(used);
            f.resize(part.min(len) as usize);
            d.inject("disk full");
            return Err(errno(libc::ENOSPC));
        }
        if growth > 0 {
            f.resize(len as usize);
        }
        d.leave(go)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut d = self.vfs.disk();
        let go = d.enter(self.vfs.boot, "set_len", &self.path, len)?;
        d.file(self.file)?.resize(len as usize);
        d.leave(go)
    }

    /// A copy: what is mapped here does not change. A page that cannot be read ends the process, as SIGBUS does.
    fn map(&self, len: u64) -> io::Result<Mapping> {
        let mut d = self.vfs.disk();
        d.alive(self.vfs.boot)?;
        let f = d.file(self.file)?;
        let Some(bytes) = f.live.get(..len as usize) else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        if f.unreadable.range(..(len as usize).div_ceil(SECTOR)).next().is_some() {
            d.killed = true;
            return Err(errno(libc::EIO));
        }
        Ok(Mapping::Memory(bytes.into()))
    }

    fn appender(self: Arc<Self>, engine: Engine, mode: SyncMode) -> io::Result<Box<dyn GroupWriter>> {
        Ok(Box::new(SimWriter { file: self, engine, mode, dirty: Mutex::new(None) }))
    }
}

#[derive(Debug)]
struct SimWriter {
    file: Arc<SimFile>,
    engine: Engine,
    mode: SyncMode,
    dirty: Mutex<Option<(usize, usize)>>,
}

impl GroupWriter for SimWriter {
    fn write(&mut self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        let len: usize = bufs.iter().map(|b| b.len()).sum();
        if self.engine == Engine::Mmap && offset + len as u64 > self.file.len()? {
            return Err(io::Error::other("group runs past the end of the mapped segment"));
        }
        let range = self.dirty.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = (offset as usize, offset as usize + len);
        *range = Some(range.map_or((from, to), |(f, t)| (f.min(from), t.max(to))));
        self.file.write("append", bufs, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.mode == SyncMode::UnsafeNone {
            return Ok(());
        }
        match self.engine {
            Engine::Pwrite => self.file.sync_range("sync", None),
            Engine::Mmap => {
                let range = self.dirty.get_mut().unwrap_or_else(PoisonError::into_inner);
                let Some(r) = *range else { return Ok(()) };
                self.file.sync_range("msync", Some(r))?;
                *range = None;
                Ok(())
            }
        }
    }
}
