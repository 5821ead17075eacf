//! Locks of log directories, and their open descriptors.
//!
//! INVARIANT(log-directory-stays-open): while a log is locked, its directory and those below it stay open. Making, renaming and syncing
//! names then takes no descriptor that connections could have used up, and a directory that is renamed, or replaced by another of its
//! name, changes nothing for the process that holds the log.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};

static HELD: Mutex<Vec<Arc<Held>>> = Mutex::new(Vec::new());

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The directory of one lock, and those below it that have been used.
#[derive(Debug)]
struct Held {
    root: PathBuf,
    dir: Arc<fs::File>,
    below: Mutex<BTreeMap<PathBuf, Arc<fs::File>>>,
}

impl Held {
    /// The open directory `name` below the root. One that was made anew in its place is opened again.
    fn below(&self, name: &Path) -> io::Result<Arc<fs::File>> {
        let mut below = locked(&self.below);
        let now = rustix::fs::statat(&*self.dir, name, AtFlags::empty())?;
        if let Some(open) = below.get(name) {
            let m = open.metadata()?;
            if (m.dev(), m.ino()) == (now.st_dev, now.st_ino) {
                return Ok(Arc::clone(open));
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = Arc::new(fs::File::from(rustix::fs::openat(&*self.dir, name, flags, Mode::empty())?));
        below.insert(name.to_path_buf(), Arc::clone(&open));
        Ok(open)
    }
}

/// The open directory `dir` if it belongs to a lock of this process.
///
/// # Errors
/// A directory below that of the lock could not be opened.
pub(super) fn held(dir: &Path) -> io::Result<Option<Arc<fs::File>>> {
    let all = locked(&HELD);
    let Some((held, name)) = all.iter().rev().find_map(|h| Some((Arc::clone(h), dir.strip_prefix(&h.root).ok()?))) else {
        return Ok(None);
    };
    drop(all);
    match name.components().count() {
        0 => Ok(Some(Arc::clone(&held.dir))),
        1 => held.below(name).map(Some),
        // No log has any; each would stay open.
        _ => Ok(None),
    }
}

/// The lock of a log: its `LOCK` file and its directory. Let go when dropped.
#[derive(Debug)]
pub(super) struct LogLock {
    held: Arc<Held>,
    _file: fs::File,
}

impl Drop for LogLock {
    fn drop(&mut self) {
        locked(&HELD).retain(|h| !Arc::ptr_eq(h, &self.held));
    }
}

/// Locks the file `path` and the directory that it stands in; None when another process has either.
///
/// INVARIANT(one-log-one-process): the directory is locked beside the file, so that a `LOCK` that was removed or replaced opens no second
/// door. The file alone keeps out versions that know nothing of the directory's lock.
///
/// # Errors
/// The directory or the file could not be opened or locked.
pub(super) fn lock(path: &Path) -> io::Result<Option<LogLock>> {
    let root = path.parent().unwrap_or(Path::new("/"));
    let open = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    let dir = fs::File::open(open)?;
    match dir.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(e)) if cannot_lock_directories(&e) => {
            tracing::warn!(path = %open.display(), error = %e, "this filesystem cannot lock a directory: only the LOCK file keeps a second server out");
        }
        Err(fs::TryLockError::Error(e)) => return Err(e),
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let name = path.file_name().unwrap_or(path.as_os_str());
    let file = fs::File::from(rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)?);
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(e)) => return Err(e),
    }
    // For people: the lock itself is the kernel's and dies with the process.
    let pid = std::process::id().to_string();
    file.set_len(0)?;
    file.write_all_at(pid.as_bytes(), 0)?;
    let held = Arc::new(Held { root: root.to_path_buf(), dir: Arc::new(dir), below: Mutex::default() });
    locked(&HELD).push(Arc::clone(&held));
    Ok(Some(LogLock { held, _file: file }))
}

/// NFS wants a lock's file open for writing, which a directory never is.
fn cannot_lock_directories(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EBADF | libc::EINVAL | libc::EISDIR | libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use super::super::{OsVfs, SyncMode, Vfs as _};
    use super::*;

    #[test]
    fn lock_file_removed_or_replaced_still_excludes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let first = OsVfs.lock(&path).unwrap();
        assert!(first.is_some());
        std::fs::remove_file(&path).unwrap();
        assert!(OsVfs.lock(&path).unwrap().is_none(), "removed");
        std::fs::write(&path, "1").unwrap();
        assert!(OsVfs.lock(&path).unwrap().is_none(), "replaced");
        drop(first);
        assert!(OsVfs.lock(&path).unwrap().is_some());
    }

    #[test]
    fn lock_file_of_a_version_without_the_directory_lock_excludes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let old = fs::File::create(&path).unwrap();
        old.lock().unwrap();
        assert!(OsVfs.lock(&path).unwrap().is_none());
        drop(old);
        assert!(OsVfs.lock(&path).unwrap().is_some());
    }

    /// The first process keeps its own files, the second gets none of them.
    #[test]
    fn directory_renamed_and_made_anew_keeps_two_logs_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (root, moved) = (dir.path().join("wal"), dir.path().join("moved"));
        std::fs::create_dir(&root).unwrap();
        let first = OsVfs.lock(&root.join("LOCK")).unwrap();
        OsVfs.create_new(&root.join("a")).unwrap();
        OsVfs.create_dir_all(&root.join("side")).unwrap();
        std::fs::rename(&root, &moved).unwrap();
        std::fs::create_dir(&root).unwrap();

        OsVfs.rename(&root.join("a"), &root.join("side/b")).unwrap();
        let f = OsVfs.create_new(&root.join("c")).unwrap();
        f.write_all_at(&[b"x"], 0).unwrap();
        f.sync(SyncMode::Full).unwrap();
        OsVfs.sync_dir(&root).unwrap();
        OsVfs.sync_dir(&root.join("side")).unwrap();
        OsVfs.create_dir_all(&root.join("pool")).unwrap();
        let names: Vec<String> = OsVfs.list(&root).unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["LOCK", "c", "pool", "side"]);
        assert_eq!(OsVfs.open(&root.join("c"), false).unwrap().len().unwrap(), 1);
        OsVfs.remove(&root.join("side/b")).unwrap();
        assert!(moved.join("c").exists());
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing went into the new directory");
        drop(first);
        assert!(OsVfs.list(&root).unwrap().is_empty(), "without the lock a path is a path");
    }

    #[test]
    fn directory_below_made_anew_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let lock = OsVfs.lock(&dir.path().join("LOCK")).unwrap();
        let side = dir.path().join("side");
        OsVfs.create_dir_all(&side).unwrap();
        OsVfs.sync_dir(&side).unwrap();
        std::fs::remove_dir(&side).unwrap();
        assert_eq!(OsVfs.sync_dir(&side).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::create_dir(&side).unwrap();
        OsVfs.create_new(&side.join("x")).unwrap();
        OsVfs.sync_dir(&side).unwrap();
        assert!(side.join("x").exists());
        drop(lock);
    }
}
