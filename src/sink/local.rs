//! A directory as the lake.
//!
//! Temporary files lie in the directory of their object, so that publishing is one rename; their names carry the log's
//! id, so that a sweep touches those of its own log only. Files are created 0644 and directories 0755, less the umask.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{Compare, ObjectInfo, Published, PutSmall, Sink, SinkError, SinkResult, Staged, Swept, check_name};
use crate::types::LogId;

/// Directory entries that a sweep looks at before it gives up.
const SWEEP_ENTRIES: u64 = 1_000_000;
/// Directories below the root that a sweep enters: database, table, and four of a partition.
const SWEEP_DEPTH: usize = 6;

/// A lake in a local directory.
#[derive(Clone, Debug)]
pub struct LocalSink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    log: LogId,
    next_temp: AtomicU64,
    /// Temporary files of this run, which a sweep must leave alone.
    live: Mutex<HashSet<PathBuf>>,
    by_link: bool,
    /// The first sync of a directory that failed.
    sync_failed: OnceLock<String>,
    #[cfg(test)]
    fail_syncs: std::sync::atomic::AtomicU32,
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> SinkError {
    let context = format!("{what} {}", path.display());
    move |e| SinkError::from_io(context, e)
}

fn sync_directory(path: &Path) -> SinkResult<()> {
    File::open(path).and_then(|d| d.sync_all()).map_err(failed("syncing directory", path))
}

/// Makes `dir`, which is below `root`. A root that has gone (unmounted, moved away) is not made anew: files would land
/// where nobody looks for them.
fn make_below(root: &Path, dir: &Path) -> SinkResult<()> {
    if !root.is_dir() {
        let gone = io::Error::new(io::ErrorKind::NotFound, "the lake's directory is gone; mount it or put it back");
        return Err(SinkError::Transient { context: root.display().to_string(), source: gone });
    }
    make_directories(dir)
}

fn make_directories(path: &Path) -> SinkResult<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed("making directory", path))
}

impl LocalSink {
    /// Opens the lake at `root`, which is created, durably, when it is not there.
    ///
    /// # Errors
    /// [`SinkError`].
    pub fn open(root: &Path, log: LogId) -> SinkResult<Self> {
        let root = std::path::absolute(root).map_err(failed("opening lake", root))?;
        let missing: Vec<&Path> = root.ancestors().take_while(|p| !p.exists()).collect();
        make_directories(&root)?;
        for p in missing {
            if let Some(parent) = p.parent() {
                sync_directory(parent)?;
            }
        }
        let shared = Shared {
            root,
            log,
            next_temp: AtomicU64::new(0),
            live: Mutex::default(),
            by_link: false,
            sync_failed: OnceLock::new(),
            #[cfg(test)]
            fail_syncs: std::sync::atomic::AtomicU32::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The lake's directory, absolute.
    pub fn root(&self) -> &Path {
        &self.shared.root
    }
}

impl Shared {
    fn path(&self, name: &str) -> SinkResult<PathBuf> {
        check_name(name)?;
        Ok(self.root.join(name))
    }

    fn temp_prefix(&self) -> String {
        format!(".{}-", self.log)
    }

    /// Syncs every directory from that of `path` up to the root. The caller may not know which of them are new: another
    /// thread, or a run that ended before its sync, may have made them.
    ///
    /// INVARIANT(lake-sync-is-final): after a sync of a directory of the lake has failed, no name in the lake is taken for durable until
    /// restart: the next sync may succeed without what the failed one has lost.
    fn sync_up(&self, path: &Path) -> SinkResult<()> {
        let mut at = path;
        while let Some(parent) = at.parent() {
            if let Some(why) = self.sync_failed.get() {
                return Err(SinkError::Permanent {
                    context: path.display().to_string(),
                    source: io::Error::other(format!("an earlier sync failed ({why}): check the disk, restart the server")),
                });
            }
            let dir = File::open(parent).map_err(failed("opening directory", parent))?;
            if let Err(e) = self.sync_opened(&dir) {
                let e = failed("syncing directory", parent)(e);
                let _ = self.sync_failed.set(e.to_string());
                return Err(e);
            }
            if parent == self.root {
                return Ok(());
            }
            at = parent;
        }
        Ok(())
    }

    fn sync_opened(&self, dir: &File) -> io::Result<()> {
        #[cfg(test)]
        if self.fail_syncs.load(Ordering::Relaxed) > 0 {
            self.fail_syncs.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        dir.sync_all()
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stage(self: &Arc<Self>, name: &str) -> SinkResult<LocalStaged> {
        let path = self.path(name)?;
        let dir = path.parent().unwrap_or(&self.root);
        make_below(&self.root, dir)?;
        loop {
            let n = self.next_temp.fetch_add(1, Ordering::Relaxed);
            let temp = dir.join(format!("{}{n}.tmp", self.temp_prefix()));
            self.live().insert(temp.clone());
            match OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temp) {
                Ok(file) => {
                    let state = State::Writing;
                    return Ok(LocalStaged { shared: Arc::clone(self), file, temp, path, state });
                }
                Err(e) => {
                    self.live().remove(&temp);
                    // An earlier run's leftover.
                    if e.kind() != io::ErrorKind::AlreadyExists {
                        return Err(failed("creating", &temp)(e));
                    }
                }
            }
        }
    }

    /// Gives `temp` the name `path` unless that is taken.
    fn rename(&self, temp: &Path, path: &Path) -> SinkResult<Published> {
        let renamed = if self.by_link { Err(Errno::NOSYS) } else { renameat_with(CWD, temp, CWD, path, RenameFlags::NOREPLACE) };
        match renamed {
            Ok(()) => Ok(Published::Created),
            Err(Errno::EXIST) => Ok(Published::AlreadyThere),
            // File systems that cannot refuse to replace.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::hard_link(temp, path) {
                Ok(()) => fs::remove_file(temp).map(|()| Published::Created).map_err(failed("unlinking", temp)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Published::AlreadyThere),
                Err(e) => Err(failed("linking", path)(e)),
            },
            Err(e) => Err(failed("renaming to", path)(e.into())),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Writing,
    Sealed,
    /// A write or a sync failed: what the file holds is not known.
    Spoiled,
}

struct LocalStaged {
    shared: Arc<Shared>,
    file: File,
    temp: PathBuf,
    path: PathBuf,
    state: State,
}

impl LocalStaged {
    fn misused(&self, what: &str) -> SinkError {
        let source = io::Error::new(io::ErrorKind::InvalidInput, format!("{what} in state {:?}", self.state));
        SinkError::Permanent { context: self.temp.display().to_string(), source }
    }
}

impl Write for LocalStaged {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.state != State::Writing {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "write to a file that is sealed or spoiled"));
        }
        let written = self.file.write(buf);
        if written.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted) {
            self.state = State::Spoiled;
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staged for LocalStaged {
    fn seal(&mut self) -> SinkResult<()> {
        if self.state != State::Writing {
            return Err(self.misused("seal"));
        }
        self.state = State::Spoiled;
        self.file.sync_all().map_err(failed("syncing", &self.temp))?;
        self.state = State::Sealed;
        Ok(())
    }

    fn publish(self: Box<Self>) -> SinkResult<Published> {
        if self.state != State::Sealed {
            return Err(self.misused("publish"));
        }
        let published = self.shared.rename(&self.temp, &self.path)?;
        self.shared.sync_up(&self.path)?;
        Ok(published)
    }
}

impl Drop for LocalStaged {
    fn drop(&mut self) {
        // Gone already when it was published; what cannot be removed now is swept later.
        let _ = fs::remove_file(&self.temp);
        self.shared.live().remove(&self.temp);
    }
}

impl Sink for LocalSink {
    fn stage(&self, name: &str) -> SinkResult<Box<dyn Staged>> {
        Ok(Box::new(self.shared.stage(name)?))
    }

    fn describe(&self, name: &str) -> SinkResult<Option<ObjectInfo>> {
        let path = self.shared.path(name)?;
        let mut file = match File::open(&path) {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("opening", &path)(e)),
        };
        let mut hash = Sha256::new();
        let len = each_piece(&mut file, |b| hash.update(b)).map_err(failed("reading", &path))?;
        Ok(Some(ObjectInfo { len, sha256: hash.finalize().into() }))
    }

    fn confirm(&self, name: &str) -> SinkResult<()> {
        let path = self.shared.path(name)?;
        File::open(&path).and_then(|f| f.sync_all()).map_err(failed("syncing", &path))?;
        self.shared.sync_up(&path)
    }

    fn put_small(&self, name: &str, bytes: &[u8]) -> SinkResult<PutSmall> {
        let mut staged = Box::new(self.shared.stage(name)?);
        staged.write_all(bytes).map_err(failed("writing", &staged.temp))?;
        staged.seal()?;
        let path = staged.path.clone();
        match staged.publish()? {
            Published::Created => Ok(PutSmall::Created),
            Published::AlreadyThere => {
                self.confirm(name)?;
                let other = |why: String| failed("reading", &path)(io::Error::new(io::ErrorKind::InvalidData, why));
                let mut file = File::open(&path).map_err(failed("opening", &path))?;
                let mut there = Compare::new(bytes);
                there.length(file.metadata().map_err(failed("reading", &path))?.len()).map_err(other)?;
                each_piece(&mut file, |b| there.add(b)).map_err(failed("reading", &path))?;
                there.end().map_err(other)
            }
        }
    }

    fn device(&self) -> Option<u64> {
        std::os::unix::fs::MetadataExt::dev(&fs::metadata(self.root()).ok()?).into()
    }

    fn sweep(&self) -> SinkResult<Swept> {
        sweep(&self.shared, SWEEP_ENTRIES)
    }
}

/// Reads to the end; how many bytes there were.
fn each_piece(file: &mut File, mut each: impl FnMut(&[u8])) -> io::Result<u64> {
    let (mut buf, mut len) = (vec![0u8; 1 << 20], 0u64);
    loop {
        match file.read(&mut buf) {
            Ok(0) => return Ok(len),
            Ok(n) => {
                each(buf.get(..n).unwrap_or_default());
                len += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Walks in descending order of names, so that the newest partitions, where leftovers are likely, come first.
fn sweep(shared: &Shared, mut entries: u64) -> SinkResult<Swept> {
    let prefix = shared.temp_prefix();
    let mut swept = Swept { removed: 0, complete: true };
    let mut open = vec![(shared.root.clone(), 0usize)];
    while let Some((dir, depth)) = open.pop() {
        let list = match fs::read_dir(&dir) {
            Ok(l) => l,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(failed("listing", &dir)(e)),
        };
        let mut below = Vec::new();
        for entry in list {
            let entry = entry.map_err(failed("listing", &dir))?;
            if entries == 0 {
                swept.complete = false;
                return Ok(swept);
            }
            entries -= 1;
            let kind = entry.file_type().map_err(failed("listing", &dir))?;
            let path = entry.path();
            let name = entry.file_name();
            let ours = name.to_str().is_some_and(|n| n.starts_with(&prefix) && n.ends_with(".tmp"));
            if kind.is_dir() && depth < SWEEP_DEPTH {
                below.push((path, depth + 1));
            } else if kind.is_file() && ours && !shared.live().contains(&path) {
                match fs::remove_file(&path) {
                    Ok(()) => swept.removed += 1,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(failed("removing", &path)(e)),
                }
            }
        }
        below.sort();
        open.extend(below);
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::super::MAX_SMALL;
    use super::*;

    const LOG: LogId = LogId([7; 16]);
    const NAME: &str = "db/a%2Fb/date=2026-01-01/hour=05/x.parquet";

    fn lake(by_link: bool) -> (tempfile::TempDir, LocalSink) {
        let dir = tempfile::tempdir().unwrap();
        let mut s = LocalSink::open(&dir.path().join("deep/lake"), LOG).unwrap();
        Arc::get_mut(&mut s.shared).unwrap().by_link = by_link;
        (dir, s)
    }

    fn put(s: &LocalSink, name: &str, bytes: &[u8]) -> Published {
        let mut staged = s.stage(name).unwrap();
        staged.write_all(bytes).unwrap();
        staged.seal().unwrap();
        staged.publish().unwrap()
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut out = Vec::new();
        for e in fs::read_dir(dir).unwrap() {
            let e = e.unwrap();
            if e.file_type().unwrap().is_dir() { out.extend(files(&e.path())) } else { out.push(e.path().display().to_string()) }
        }
        out.sort();
        out
    }

    #[test]
    fn the_first_object_keeps_its_name() {
        for by_link in [false, true] {
            let (_dir, s) = lake(by_link);
            assert_eq!(s.describe(NAME).unwrap(), None);
            assert!(s.confirm(NAME).is_err());
            assert_eq!(put(&s, NAME, b"first"), Published::Created);
            assert_eq!(put(&s, NAME, b"second, longer"), Published::AlreadyThere);
            let info = s.describe(NAME).unwrap().unwrap();
            assert_eq!((info.len, info.sha256), (5, Sha256::digest(b"first").into()));
            s.confirm(NAME).unwrap();
            assert_eq!(files(s.root()), [s.root().join(NAME).display().to_string()], "no temporary file is left");
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(s.root().join(NAME)).unwrap().permissions().mode();
            assert_eq!(mode & 0o700, 0o600);
        }
    }

    #[test]
    fn nothing_is_visible_before_publishing_nor_after_dropping() {
        let (_dir, s) = lake(false);
        let mut staged = s.stage(NAME).unwrap();
        staged.write_all(b"x").unwrap();
        let lying = files(s.root());
        assert!(lying.len() == 1 && lying[0].ends_with(".tmp") && lying[0].contains("/.07070707-"), "{lying:?}");
        assert_eq!(s.describe(NAME).unwrap(), None);
        drop(staged);
        assert!(files(s.root()).is_empty());
    }

    #[test]
    fn only_what_is_sealed_is_published() {
        let (_dir, s) = lake(false);
        let mut staged = s.stage(NAME).unwrap();
        staged.write_all(b"x").unwrap();
        assert!(matches!(staged.publish(), Err(SinkError::Permanent { .. })));
        assert_eq!(s.describe(NAME).unwrap(), None);
        let mut staged = s.stage(NAME).unwrap();
        staged.seal().unwrap();
        assert!(staged.write_all(b"late").is_err());
        assert!(staged.seal().is_err());
    }

    #[test]
    fn a_name_whose_sync_failed_is_not_durable_because_the_next_sync_succeeds() {
        let (_dir, s) = lake(false);
        s.shared.fail_syncs.store(1, Ordering::Relaxed);
        let mut staged = s.stage(NAME).unwrap();
        staged.write_all(b"x").unwrap();
        staged.seal().unwrap();
        assert!(matches!(staged.publish(), Err(SinkError::Transient { .. })));
        assert!(s.describe(NAME).unwrap().is_some(), "it is visible");
        let e = s.confirm(NAME).unwrap_err();
        assert!(matches!(e, SinkError::Permanent { .. }) && e.to_string().contains("restart"), "{e}");
        let mut staged = s.stage("db/other").unwrap();
        staged.seal().unwrap();
        assert!(staged.publish().is_err());
    }

    #[test]
    fn small_objects_say_what_was_there() {
        let (_dir, s) = lake(false);
        let name = "_arc/07070707-0707-0707-0707-070707070707/plan-1";
        assert_eq!(s.put_small(name, b"mine").unwrap(), PutSmall::Created);
        assert_eq!(s.put_small(name, b"other").unwrap(), PutSmall::Exists(b"mine".to_vec()));
        assert_eq!(s.put_small("_arc/e", b"").unwrap(), PutSmall::Created);
        assert_eq!(s.describe("_arc/e").unwrap().unwrap().len, 0);
        assert_eq!(files(s.root()).len(), 2);
    }

    #[test]
    fn a_sweep_takes_leftovers_of_its_own_log_only() {
        let (_dir, s) = lake(false);
        assert_eq!(put(&s, NAME, b"data"), Published::Created);
        let at = s.root().join("db/a%2Fb/date=2026-01-01/hour=05");
        let arc = s.root().join("db/t/2026/01/01/05");
        fs::create_dir_all(&arc).unwrap();
        for dir in [&at, &arc] {
            fs::write(dir.join(format!(".{LOG}-0.tmp")), b"").unwrap();
            fs::write(dir.join(format!(".{LOG}-9000.tmp")), b"").unwrap();
            fs::write(dir.join(format!(".{}-0.tmp", LogId([8; 16]))), b"").unwrap();
            fs::write(dir.join(format!("{LOG}-0.tmp")), b"").unwrap();
        }
        let next = s.shared.next_temp.load(Ordering::Relaxed);
        fs::write(at.join(format!(".{LOG}-{next}.tmp")), b"").unwrap();
        let mut staged = s.stage(NAME).unwrap();
        assert_eq!(sweep(&s.shared, 2).unwrap(), Swept { removed: 0, complete: false });
        assert_eq!(s.sweep().unwrap(), Swept { removed: 5, complete: true });
        staged.write_all(b"other").unwrap();
        staged.seal().unwrap();
        assert_eq!(staged.publish().unwrap(), Published::AlreadyThere);
        assert_eq!(files(s.root()).len(), 5);
    }

    /// Unmounted or moved away: what is written where nobody looks is not in the lake.
    #[test]
    fn a_lake_that_is_gone_is_waited_for_and_not_made_anew() {
        for by_link in [false, true] {
            let (_dir, s) = lake(by_link);
            let mut staged = s.stage(NAME).unwrap();
            staged.write_all(b"x").unwrap();
            staged.seal().unwrap();
            let away = s.root().with_file_name("away");
            fs::rename(s.root(), &away).unwrap();
            assert!(matches!(s.stage(NAME), Err(SinkError::Transient { .. })));
            assert!(matches!(s.put_small("_arc/p", b"x"), Err(SinkError::Transient { .. })));
            assert!(matches!(staged.publish(), Err(SinkError::Transient { .. })));
            assert_eq!(s.sweep().unwrap(), Swept { removed: 0, complete: true });
            assert_eq!((s.describe(NAME).unwrap(), s.device(), s.root().exists()), (None, None, false));
            fs::rename(away, s.root()).unwrap();
            assert_eq!(put(&s, NAME, b"data"), Published::Created);
        }
    }

    #[test]
    fn a_large_object_under_the_name_of_a_small_one_is_not_read() {
        let (_dir, s) = lake(false);
        fs::create_dir_all(s.root().join("_arc")).unwrap();
        let f = File::create(s.root().join("_arc/p")).unwrap();
        f.set_len(MAX_SMALL + 1).unwrap();
        let e = s.put_small("_arc/p", b"x").unwrap_err();
        assert!(matches!(&e, SinkError::Permanent { .. }) && e.to_string().contains("larger than a small object"), "{e}");
        f.set_len(MAX_SMALL).unwrap();
        assert!(matches!(s.put_small("_arc/p", b"x"), Ok(PutSmall::Exists(b)) if b.len() as u64 == MAX_SMALL));
    }

    /// A plan is as long as it is: the second attempt at its object finds the first one's, whatever its length.
    #[test]
    fn a_small_object_of_any_length_is_known_again() {
        let (_dir, s) = lake(false);
        let mut bytes = vec![7; MAX_SMALL as usize + 1];
        assert_eq!(s.put_small("_arc/p", &bytes).unwrap(), PutSmall::Created);
        assert_eq!(s.put_small("_arc/p", &bytes).unwrap(), PutSmall::Same);
        bytes[0] = 8;
        let e = s.put_small("_arc/p", &bytes).unwrap_err();
        assert!(matches!(&e, SinkError::Permanent { .. }) && e.to_string().contains("move it away"), "{e}");
    }

    #[test]
    fn errors_name_the_path_and_say_what_to_do() {
        let (_dir, s) = lake(false);
        fs::write(s.root().join("db"), b"a file where a directory should be").unwrap();
        let e = s.stage(NAME).err().unwrap();
        assert!(e.to_string().contains("db/a%2Fb"), "{e}");
        assert!(matches!(s.stage("../x"), Err(SinkError::Permanent { .. })));
        assert!(matches!(s.describe("db/x"), Err(SinkError::Permanent { .. })));
        fs::create_dir_all(s.root().join("d/x.parquet")).unwrap();
        assert!(matches!(s.describe("d/x.parquet"), Err(SinkError::Permanent { .. })));
        let full = File::create("/dev/full").unwrap();
        let mut staged = s.shared.stage("e/f").unwrap();
        staged.file = full;
        let e = SinkError::from_io("writing", staged.write_all(b"x").unwrap_err());
        assert!(matches!(e, SinkError::NoSpace { .. }), "{e}");
        assert!(Box::new(staged).publish().is_err(), "a file that a write spoiled is not published");
    }
}
