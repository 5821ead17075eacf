//! The real disk.

use std::any::Any;
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::retry_on_intr;

use super::held::{self, held};
use super::os_root::OsRoot;
use super::{DirEntry, Engine, File, GroupWriter, Mapping, Root, SyncMode, Vfs, mmap};

/// Most slices one `pwritev` takes (Linux UIO_MAXIOV).
const MAX_IOV: usize = 1024;
const ZEROS: usize = 1 << 20;

/// The real disk. Names below the directory of a lock that is held are looked up from its open descriptor (module `held`).
#[derive(Debug, Default, Clone, Copy)]
pub struct OsVfs;

/// Calls `f` with the open directory of `path` and the name in it, or with the current directory and the whole path.
fn beside<T>(path: &Path, f: impl Fn(BorrowedFd<'_>, &Path) -> rustix::io::Result<T>) -> io::Result<T> {
    let parent = path.parent().map(held).transpose()?.flatten();
    Ok(match (&parent, path.file_name()) {
        (Some(dir), Some(name)) => retry_on_intr(|| f(dir.as_fd(), Path::new(name)))?,
        _ => retry_on_intr(|| f(CWD, path))?,
    })
}

fn open_at(path: &Path, flags: OFlags, mode: Mode) -> io::Result<fs::File> {
    beside(path, |dir, name| rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, mode)).map(fs::File::from)
}

impl OsVfs {
    /// See [`Vfs::create_dir_all`], with the mode of what is made.
    fn make_dirs(&self, dir: &Path, mode: u32) -> io::Result<()> {
        let mut missing: Vec<PathBuf> = Vec::new();
        let mut at = dir.to_path_buf();
        while !at.as_os_str().is_empty() && !at.exists() {
            missing.push(at.clone());
            let Some(p) = at.parent() else { break };
            at = p.to_path_buf();
        }
        let above = |d: &Path| d.parent().map(|p| if p.as_os_str().is_empty() { PathBuf::from(".") } else { p.to_path_buf() });
        // An earlier run may have made the deepest one that is there, and ended before its sync. A parent that may not be opened or written
        // was not that run's.
        if let Some(parent) = above(&at) {
            match self.sync_dir(&parent) {
                Err(e) if !matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => return Err(e),
                _ => {}
            }
        }
        for d in missing.iter().rev() {
            match fs::DirBuilder::new().mode(mode).create(d) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            if let Some(parent) = above(d) {
                self.sync_dir(&parent)?;
            }
        }
        Ok(())
    }
}

impl Vfs for OsVfs {
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let dir = match held(dir)? {
            Some(d) => d,
            None => Arc::new(open_at(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?),
        };
        let mut out = Vec::new();
        for e in rustix::fs::Dir::read_from(&*dir)? {
            let e = e?;
            let Ok(name) = e.file_name().to_str().map(str::to_owned) else { continue };
            if name == "." || name == ".." {
                continue;
            }
            // A file may go away between the two calls: a live server releases segments.
            // Through symbolic links, as opening does.
            let stat = |flags| rustix::fs::statat(&*dir, e.file_name(), flags);
            match stat(AtFlags::empty()).or_else(|_| stat(AtFlags::SYMLINK_NOFOLLOW)) {
                Ok(m) => {
                    let kind = FileType::from_raw_mode(m.st_mode);
                    let len = u64::try_from(m.st_size).unwrap_or_default();
                    out.push(DirEntry { name, len, is_dir: kind.is_dir(), is_file: kind.is_file() });
                }
                Err(rustix::io::Errno::NOENT) => {}
                Err(x) => return Err(x.into()),
            }
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if let Some(parent) = dir.parent().map(held).transpose()?.flatten() {
            return match beside(dir, |at, name| rustix::fs::mkdirat(at, name, Mode::RWXU)) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
                _ => parent.sync_all(),
            };
        }
        self.make_dirs(dir, 0o700)
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OsFile(open_at(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)?)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        // A pipe of that name must not hold the caller up; for a regular file the flag means nothing.
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let f = open_at(path, access | OFlags::NONBLOCK, Mode::empty())?;
        if !f.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(OsFile(f)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        beside(from, |old_dir, old| {
            beside(to, |new_dir, new| rustix::fs::renameat(old_dir, old, new_dir, new))
                .map_err(|e| rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO))
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        beside(path, |dir, name| rustix::fs::unlinkat(dir, name, AtFlags::empty()))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match held(dir)? {
            Some(open) => open.sync_all(),
            None => fs::File::open(dir)?.sync_all(),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        Ok(held::lock(path)?.map(|lock| Box::new(lock) as _))
    }

    fn device(&self, dir: &Path) -> io::Result<u64> {
        Ok(fs::metadata(dir)?.dev())
    }

    fn unsafe_filesystem(&self, dir: &Path) -> io::Result<Option<&'static str>> {
        let s = rustix::fs::statfs(dir)?;
        Ok(match s.f_type as u64 {
            0x9123_683e => Some("btrfs (copy-on-write)"),
            0x2fc1_2fc1 => Some("zfs (copy-on-write)"),
            0x6969 => Some("nfs"),
            0xff53_4d42 | 0xfe53_4d42 | 0x517b => Some("smb"),
            // Also what virtiofs says.
            0x6573_5546 => Some("fuse"),
            0x794c_7630 => Some("overlayfs"),
            0x0102_1994 => Some("tmpfs"),
            0x8584_58f6 => Some("ramfs"),
            0x0102_1997 => Some("9p"),
            0x00c3_6400 => Some("ceph"),
            _ => None,
        })
    }

    fn open_root(&self, dir: &Path) -> io::Result<Arc<dyn Root>> {
        self.make_dirs(&std::path::absolute(dir)?, 0o755)?;
        Ok(Arc::new(OsRoot::open(dir, false)?))
    }
}

#[derive(Debug)]
pub(super) struct OsFile(pub(super) fs::File);

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.size())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_all_at(&self, bufs: &[&[u8]], mut offset: u64) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = bufs.iter().filter(|b| !b.is_empty()).map(|b| IoSlice::new(b)).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let n = rest.len().min(MAX_IOV);
            let now = rest.get(..n).unwrap_or_default();
            match rustix::io::pwritev(&self.0, now, offset) {
                Ok(0) => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                Ok(w) => {
                    offset += w as u64;
                    IoSlice::advance_slices(&mut rest, w);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn sync(&self, mode: SyncMode) -> io::Result<()> {
        match mode {
            SyncMode::Data => self.0.sync_data(),
            SyncMode::Full => self.0.sync_all(),
            SyncMode::UnsafeNone => Ok(()),
        }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let from = self.len()?;
        if len <= from {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), from, len - from) {
            // The zeros below take the blocks where the filesystem cannot reserve them.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
        // Written once with zeros: a later write or fault finds written extents and changes no metadata.
        let zeros = vec![0u8; ZEROS];
        let mut at = from;
        while at < len {
            let n = (len - at).min(ZEROS as u64) as usize;
            self.0.write_all_at(zeros.get(..n).unwrap_or_default(), at)?;
            at += n as u64;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocated(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt as _;
        Ok(self.0.metadata()?.blocks() * 512)
    }

    fn map(&self, len: u64) -> io::Result<Mapping> {
        mmap::map(&self.0, len)
    }

    fn appender(self: Arc<Self>, engine: Engine, mode: SyncMode) -> io::Result<Box<dyn GroupWriter>> {
        Ok(match engine {
            Engine::Pwrite => Box::new(PwriteWriter { file: self, mode }),
            Engine::Mmap => Box::new(mmap::MmapWriter::new(&self.0, mode)?),
        })
    }
}

#[derive(Debug)]
struct PwriteWriter {
    file: Arc<OsFile>,
    mode: SyncMode,
}

impl GroupWriter for PwriteWriter {
    fn write(&mut self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bufs, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync(self.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_many_slices_and_reads_them_back_in_both_engines() {
        let dir = tempfile::tempdir().unwrap();
        for engine in [Engine::Pwrite, Engine::Mmap] {
            let path = dir.path().join(format!("{engine:?}"));
            let f = OsVfs.create_new(&path).unwrap();
            f.allocate(1 << 20).unwrap();
            f.sync(SyncMode::Full).unwrap();
            let parts: Vec<Vec<u8>> = (0..3000usize).map(|i| vec![i as u8; i % 7]).collect();
            let refs: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let mut w = f.clone().appender(engine, SyncMode::Data).unwrap();
            w.write(&refs, 4096).unwrap();
            w.sync().unwrap();
            let all = super::super::read_all(&*OsVfs.open(&path, false).unwrap()).unwrap();
            let flat = parts.concat();
            assert_eq!(all.len(), 1 << 20);
            assert_eq!(&all[4096..4096 + flat.len()], &flat[..]);
            assert!(all[4096 + flat.len()..].iter().all(|b| *b == 0));
            assert_eq!(&f.map(1 << 20).unwrap()[4096..4096 + flat.len()], &flat[..]);
            assert!(w.write(&[&[1u8; 10]], (1 << 20) - 5).is_err() || engine == Engine::Pwrite);
        }
    }

    #[test]
    fn what_a_mapping_cannot_hold_is_an_error_and_not_a_signal() {
        let dir = tempfile::tempdir().unwrap();
        let f = OsVfs.create_new(&dir.path().join("f")).unwrap();
        f.allocate(3 * 4096).unwrap();
        f.allocate(4096).unwrap();
        assert_eq!(f.len().unwrap(), 3 * 4096, "allocating never shortens");
        assert_eq!(f.map(3 * 4096 + 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut w = f.clone().appender(Engine::Mmap, SyncMode::Data).unwrap();
        // Two groups before a sync, the later one first.
        w.write(&[b"two"], 8192).unwrap();
        w.write(&[b"one"], 4096).unwrap();
        w.sync().unwrap();
        w.sync().unwrap();
        for bad in [3 * 4096 - 1, u64::MAX - 1] {
            assert!(w.write(&[b"ab"], bad).is_err(), "{bad}");
        }
        let all = super::super::read_all(&*f).unwrap();
        assert_eq!((&all[4096..4099], &all[8192..8195]), (&b"one"[..], &b"two"[..]));
        assert!(!f.is_empty().unwrap());
    }

    #[test]
    fn errors_of_the_system_keep_their_number() {
        let dir = tempfile::tempdir().unwrap();
        let f = OsVfs.create_new(&dir.path().join("f")).unwrap();
        assert_eq!(OsVfs.create_new(&dir.path().join("f")).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert_eq!(OsVfs.create_dir_all(&dir.path().join("f/x/y")).unwrap_err().raw_os_error(), Some(libc::ENOTDIR));
        assert_eq!(OsVfs.list(&dir.path().join("none")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let read_only = OsVfs.open(&dir.path().join("f"), false).unwrap();
        assert_eq!(read_only.write_all_at(&[b"x"], 0).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(read_only.allocate(4096).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert!(f.is_empty().unwrap());
        let full = OsFile(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        assert!(super::super::is_no_space(&full.write_all_at(&[b"x"], 0).unwrap_err()));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for path in [&pipe, dir.path()] {
            assert_eq!(OsVfs.open(path, false).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", path.display());
        }
    }

    #[test]
    fn the_lock_is_exclusive_until_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("LOCK");
        let a = OsVfs.lock(&p).unwrap();
        assert!(a.is_some());
        assert!(OsVfs.lock(&p).unwrap().is_none());
        drop(a);
        assert!(OsVfs.lock(&p).unwrap().is_some());
    }
}
