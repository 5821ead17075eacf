//! [`Root`] on the real disk: `openat` and its relatives, part by part, below one descriptor.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, StatxFlags};
use rustix::io::Errno;

use super::os::OsFile;
use super::root::{Dir, Identity, Root, replaced};
use super::{DirEntry, File};

/// No link is followed: what it leads to may be away, or be switched, without anybody noticing.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory of the real disk, held open. While it is, `umount` of its filesystem answers EBUSY.
#[derive(Debug)]
pub(super) struct OsRoot {
    fd: OwnedFd,
    path: PathBuf,
    identity: Identity,
    mount: Option<u64>,
    /// As on a filesystem that cannot refuse to replace.
    by_link: bool,
}

impl OsRoot {
    /// Opens the directory that `path` leads to, through links.
    pub(super) fn open(path: &Path, by_link: bool) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let (identity, mount) = (identity_of(fd.as_fd())?, mount_of(fd.as_fd()));
        Ok(Self { fd, path, identity, mount, by_link })
    }

    /// The next directory down, which must be one of this filesystem.
    fn enter(&self, at: BorrowedFd<'_>, part: &str, shown: &str) -> io::Result<OwnedFd> {
        let fd = rustix::fs::openat(at, part, DIRECTORY, Mode::empty()).map_err(|e| {
            let link = || rustix::fs::statat(at, part, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|s| is_link(s.st_mode));
            if matches!(e, Errno::NOTDIR | Errno::LOOP) && link() { outside(shown, "a symbolic link") } else { e.into() }
        })?;
        match (self.mount, mount_of(fd.as_fd())) {
            (Some(a), Some(b)) if a != b => Err(outside(shown, "a mount point")),
            _ => Ok(fd),
        }
    }

    fn dir(&self, name: &str) -> io::Result<OwnedFd> {
        let mut at = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0)?;
        for part in name.split('/').filter(|p| !p.is_empty()) {
            at = self.enter(at.as_fd(), part, name)?;
        }
        Ok(at)
    }
}

fn is_link(mode: u32) -> bool {
    FileType::from_raw_mode(mode) == FileType::Symlink
}

/// What is below a link or another mount can go away without the lake doing so.
fn outside(name: &str, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "{name}: expected directories of the lake's own filesystem, found {what} on the way; mount the lake as a whole, or name the real \
             place in storage.local_path"
        ),
    )
}

fn identity_of(fd: BorrowedFd<'_>) -> io::Result<Identity> {
    let s = rustix::fs::fstat(fd)?;
    Ok(identity(s.st_dev, s.st_ino))
}

fn identity(device: u64, inode: u64) -> Identity {
    Identity { device: (rustix::fs::major(device), rustix::fs::minor(device)), inode }
}

/// The mount that a descriptor is on; None where the kernel does not say (before 5.8).
fn mount_of(fd: BorrowedFd<'_>) -> Option<u64> {
    let s = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    (s.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(s.stx_mnt_id)
}

impl Root for OsRoot {
    fn check(&self) -> io::Result<()> {
        let s = rustix::fs::stat(&self.path).map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR => {
                io::Error::new(io::ErrorKind::NotFound, "the lake's directory is gone; mount it or put it back")
            }
            e => e.into(),
        })?;
        // The mount may be another one: after `umount -l` and a new mount of the same filesystem it is the same directory.
        let found = identity(s.st_dev, s.st_ino);
        if found == self.identity { Ok(()) } else { Err(replaced(self.identity, found)) }
    }

    fn device(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.fd)?.st_dev)
    }

    fn list(&self, dir: &str, most: usize) -> io::Result<(Vec<DirEntry>, bool)> {
        let fd = self.dir(dir)?;
        let mut out = Vec::new();
        for e in rustix::fs::Dir::read_from(&fd)? {
            let e = e?;
            // Names that are not UTF-8 are none of ours.
            let Ok(name) = e.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            if out.len() == most {
                return Ok((out, false));
            }
            let kind = match e.file_type() {
                FileType::Unknown => match rustix::fs::statat(&fd, e.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(s) => FileType::from_raw_mode(s.st_mode),
                    Err(Errno::NOENT) => continue,
                    Err(x) => return Err(x.into()),
                },
                kind => kind,
            };
            let (is_dir, is_file) = (kind == FileType::Directory, kind == FileType::RegularFile);
            out.push(DirEntry { name: name.to_owned(), len: 0, is_dir, is_file });
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((out, true))
    }

    fn create_dirs(&self, dir: &str) -> io::Result<()> {
        let mut at = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0)?;
        for part in dir.split('/').filter(|p| !p.is_empty()) {
            at = match self.enter(at.as_fd(), part, dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    match rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(e.into()),
                    }
                    self.enter(at.as_fd(), part, dir)?
                }
                x => x?,
            };
        }
        Ok(())
    }

    fn create_new(&self, dir: &str, name: &str) -> io::Result<Arc<dyn File>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.dir(dir)?, name, flags, Mode::from_raw_mode(0o644))?;
        Ok(Arc::new(OsFile(fs::File::from(fd))))
    }

    fn open(&self, dir: &str, name: &str) -> io::Result<Arc<dyn File>> {
        let at = self.dir(dir)?;
        // A pipe of that name must not hold the caller up; for a regular file the flag means nothing.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let f = match rustix::fs::openat(&at, name, flags, Mode::empty()) {
            Err(Errno::LOOP) => return Err(outside(name, "a symbolic link")),
            x => fs::File::from(x?),
        };
        if !f.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(OsFile(f)))
    }

    fn rename_new(&self, dir: &str, from: &str, to: &str) -> io::Result<bool> {
        let at = self.dir(dir)?;
        let renamed = if self.by_link { Err(Errno::NOSYS) } else { rustix::fs::renameat_with(&at, from, &at, to, RenameFlags::NOREPLACE) };
        let done = match renamed {
            // File systems that cannot refuse to replace.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(&at, from, &at, to, AtFlags::empty()).and_then(|()| rustix::fs::unlinkat(&at, from, AtFlags::empty()))
            }
            x => x,
        };
        match done {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn remove(&self, dir: &str, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.dir(dir)?, name, AtFlags::empty())?)
    }

    fn open_dir(&self, dir: &str) -> io::Result<Box<dyn Dir>> {
        Ok(Box::new(OsDir(self.dir(dir)?)))
    }
}

#[derive(Debug)]
struct OsDir(OwnedFd);

impl Dir for OsDir {
    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }
}
