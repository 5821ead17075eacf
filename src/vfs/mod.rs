//! The only code that touches the files of the log and of a local lake.
//!
//! Everything above sees [`Vfs`] and [`File`]; `os` is the real disk. A simulated disk implements the same two traits.

mod held;
pub mod mmap;
pub mod os;
mod os_root;
pub mod root;
pub mod sim;

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use mmap::Mapping;
pub use os::OsVfs;
pub use root::{Dir, Root};

/// How a group is made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncMode {
    /// `fdatasync`: data and the metadata needed to read it.
    Data,
    /// `fsync`.
    Full,
    /// No sync at all; acknowledgements mean nothing. For tests.
    UnsafeNone,
}

/// How groups reach the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// `pwritev`, then sync.
    Pwrite,
    /// Copy into a shared mapping, then `msync` of the range.
    Mmap,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    pub name: String,
    pub len: u64,
    pub is_dir: bool,
    /// A regular file, also behind a symbolic link.
    pub is_file: bool,
}

/// A directory tree that can be made durable.
pub trait Vfs: Send + Sync + Debug {
    /// Entries of `dir`, sorted by name. Names that are not UTF-8 are left out: none of ours is.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Creates `dir` (mode 0700) and its parents, and syncs each parent in which one was created, now or by a run that ended before its sync:
    /// each is synced before the next is made, so that this can only be the deepest one found.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Creates a file that must not exist, mode 0600, for reading and writing.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes an exclusive lock on a file and on its directory, held until the value is dropped; None when another process has either.
    /// As long as it is held, no call for names in that directory opens a descriptor of the directory.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>>;
    /// A number that equal filesystems share.
    fn device(&self, dir: &Path) -> io::Result<u64>;
    /// A word for a filesystem on which preallocated blocks cannot be relied upon, if `dir` is on one.
    fn unsafe_filesystem(&self, dir: &Path) -> io::Result<Option<&'static str>>;
    /// Opens a directory that is shared with other programs, made durably (mode 0755) where it is missing.
    fn open_root(&self, dir: &Path) -> io::Result<Arc<dyn Root>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, format!("{}: this disk has no lakes", dir.display())))
    }
}

/// One open file. All offsets and lengths in bytes.
pub trait File: Send + Sync + Debug {
    fn len(&self) -> io::Result<u64>;

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills as much of `buf` as the file has from `offset` on; returns the bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all slices one after the other from `offset` on.
    fn write_all_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()>;
    fn sync(&self, mode: SyncMode) -> io::Result<()>;
    /// Reserves real blocks for `len` bytes and sets the length; new bytes read as zeros.
    fn allocate(&self, len: u64) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Bytes of the blocks that the file has on disk.
    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }

    /// The first `len` bytes, mapped read-only. The file must not be truncated while the mapping lives.
    fn map(&self, len: u64) -> io::Result<Mapping>;
    /// The way groups are appended to this file.
    fn appender(self: Arc<Self>, engine: Engine, mode: SyncMode) -> io::Result<Box<dyn GroupWriter>>;
}

/// Appends groups to one segment.
pub trait GroupWriter: Send + Debug {
    /// Writes one group at `offset`.
    fn write(&mut self, bufs: &[&[u8]], offset: u64) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A lake on the real disk as on a filesystem that cannot refuse to replace.
#[cfg(test)]
pub(crate) fn linking_root(dir: &Path) -> Arc<dyn Root> {
    Arc::new(os_root::OsRoot::open(dir, true).unwrap())
}

/// Whether the error says that the disk or quota is full. By errno, never by text.
pub fn is_no_space(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// What to fear of a filesystem that [`Vfs::unsafe_filesystem`] names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilesystemRisk {
    pub text: &'static str,
    /// Its files are memory: a sync says nothing.
    pub is_volatile: bool,
}

/// See [`FilesystemRisk`].
pub fn filesystem_risk(name: &str) -> FilesystemRisk {
    let (text, is_volatile) = match name {
        "tmpfs" | "ramfs" => ("its files are memory: they are gone when the machine or the container stops", true),
        "overlayfs" => ("the writable layer of a container: the log is gone with the container; mount a volume for it", false),
        "fuse" | "9p" | "ceph" | "nfs" | "smb" => {
            ("what a sync means, and whether a lock keeps a second server out, is for the other side to say; use a local disk", false)
        }
        _ => ("preallocated blocks are not honoured here: a full disk may show up as a failed write", false),
    };
    FilesystemRisk { text, is_volatile }
}

/// Whether this process or machine is short of something that comes back by itself: descriptors, memory. By errno, never by text.
///
/// The call has changed nothing. An error of a sync is never taken for one: nobody can tell what it left behind.
pub fn is_shortage(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR | libc::EAGAIN | libc::ENOBUFS))
}

/// Whether no descriptor was left. A sync does not say this: the directory that was to be synced could not be opened.
pub fn is_out_of_descriptors(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Reads the whole file.
///
/// # Errors
/// Of the file.
pub fn read_all(f: &dyn File) -> io::Result<Vec<u8>> {
    let len = f.len()?;
    let mut out = vec![0u8; usize::try_from(len).map_err(|_| io::Error::other("file too large to read"))?];
    let n = read_full(f, &mut out, 0)?;
    out.truncate(n);
    Ok(out)
}

/// Reads until `buf` is full or the file ends; returns the bytes read.
///
/// # Errors
/// Of the file.
pub fn read_full(f: &dyn File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut at = 0;
    while at < buf.len() {
        let Some(rest) = buf.get_mut(at..) else { break };
        match f.read_at(rest, offset + at as u64) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(at)
}

/// Writes a small file so that it is either absent or complete after a crash: temporary name, sync, rename, directory sync.
///
/// # Errors
/// Of the filesystem; the temporary file is removed.
pub fn write_durable(vfs: &dyn Vfs, dir: &Path, name: &str, bytes: &[&[u8]]) -> io::Result<()> {
    let tmp = dir.join(format!("{name}.tmp"));
    let _ = vfs.remove(&tmp);
    let result = (|| {
        let f = vfs.create_new(&tmp)?;
        f.write_all_at(bytes, 0)?;
        f.sync(SyncMode::Full)?;
        vfs.rename(&tmp, &dir.join(name))?;
        vfs.sync_dir(dir)
    })();
    if result.is_err() {
        let _ = vfs.remove(&tmp);
    }
    result
}
