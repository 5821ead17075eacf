//! A directory as the lake.
//!
//! Temporary files lie in the directory of their object, so that publishing is one rename; their names carry the log's
//! id, so that a sweep touches those of its own log only. Files are created 0644 and directories 0755, less the umask.
//!
//! INVARIANT(one-lake): every file is made, renamed and synced below the directory that was opened at the start, never below whatever the
//! path leads to later. While the path leads elsewhere, the lake is away: nothing is staged, published or confirmed.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sha2::{Digest, Sha256};

use super::{Compare, MAX_SMALL, ObjectInfo, Published, PutSmall, Sink, SinkError, SinkResult, Staged, Swept, check_name};
use crate::types::LogId;
use crate::vfs::root::split;
use crate::vfs::{File, OsVfs, Root, SyncMode, Vfs};

/// Directory entries that a sweep looks at before it gives up.
const SWEEP_ENTRIES: usize = 1_000_000;
/// Directories below the root that a sweep enters: database, table, and four of a partition.
const SWEEP_DEPTH: usize = 6;

/// A lake in a local directory.
#[derive(Clone, Debug)]
pub struct LocalSink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: Arc<dyn Root>,
    path: PathBuf,
    log: LogId,
    next_temp: AtomicU64,
    /// Temporary files of this run, which a sweep must leave alone.
    live: Mutex<HashSet<String>>,
    /// The first sync of a directory that failed.
    sync_failed: OnceLock<String>,
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

impl LocalSink {
    /// Opens the lake at `path` on the real disk; it is created, durably, when it is not there.
    ///
    /// # Errors
    /// [`SinkError`]: the directory cannot be made or opened.
    pub fn open(path: &Path, log: LogId) -> SinkResult<Self> {
        Self::open_on(&OsVfs, path, log)
    }

    /// [`Self::open`] on the disk `vfs`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(vfs: &dyn Vfs, path: &Path, log: LogId) -> SinkResult<Self> {
        let opening = |e| SinkError::from_io(format!("opening lake {}", path.display()), e);
        let absolute = std::path::absolute(path).map_err(opening)?;
        Ok(Self::over(vfs.open_root(&absolute).map_err(opening)?, absolute, log))
    }

    fn over(root: Arc<dyn Root>, path: PathBuf, log: LogId) -> Self {
        let shared = Shared { root, path, log, next_temp: AtomicU64::new(0), live: Mutex::default(), sync_failed: OnceLock::new() };
        Self { shared: Arc::new(shared) }
    }

    /// The lake's directory, absolute.
    pub fn root(&self) -> &Path {
        &self.shared.path
    }
}

impl Shared {
    fn failed(&self, what: &str, name: &str) -> impl FnOnce(io::Error) -> SinkError {
        let context = format!("{what} {}", self.path.join(name).display());
        move |e| SinkError::from_io(context, e)
    }

    /// Whether the path still leads to the lake.
    fn check(&self) -> SinkResult<()> {
        self.root.check().map_err(|source| SinkError::Transient { context: format!("lake {}", self.path.display()), source })
    }

    fn temp_prefix(&self) -> String {
        format!(".{}-", self.log)
    }

    /// Syncs `dir` and every directory above it, the root last. The caller may not know which of them are new: another
    /// thread, or a run that ended before its sync, may have made them.
    ///
    /// INVARIANT(lake-sync-is-final): after a sync of a directory of the lake has failed, no name in the lake is taken for durable until
    /// restart: the next sync may succeed without what the failed one has lost.
    fn sync_up(&self, dir: &str) -> SinkResult<()> {
        let mut at = dir;
        loop {
            if let Some(why) = self.sync_failed.get() {
                return Err(SinkError::Permanent {
                    context: self.path.join(dir).display().to_string(),
                    source: io::Error::other(format!("an earlier sync failed ({why}): check the disk, restart the server")),
                });
            }
            let opened = self.root.open_dir(at).map_err(self.failed("opening directory", at))?;
            if let Err(e) = opened.sync() {
                let e = self.failed("syncing directory", at)(e);
                let _ = self.sync_failed.set(e.to_string());
                return Err(e);
            }
            if at.is_empty() {
                return Ok(());
            }
            at = split(at).0;
        }
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stage(self: &Arc<Self>, name: &str) -> SinkResult<LocalStaged> {
        check_name(name)?;
        self.check()?;
        let (dir, _) = split(name);
        self.root.create_dirs(dir).map_err(self.failed("making directory", dir))?;
        loop {
            let n = self.next_temp.fetch_add(1, Ordering::Relaxed);
            let temp = format!("{}{n}.tmp", self.temp_prefix());
            let full = join(dir, &temp);
            self.live().insert(full.clone());
            match self.root.create_new(dir, &temp) {
                Ok(file) => {
                    let (shared, name) = (Arc::clone(self), name.to_owned());
                    return Ok(LocalStaged { shared, file, len: 0, temp, name, state: State::Writing });
                }
                Err(e) => {
                    self.live().remove(&full);
                    // An earlier run's leftover.
                    if e.kind() != io::ErrorKind::AlreadyExists {
                        return Err(self.failed("creating", &full)(e));
                    }
                }
            }
        }
    }

    fn open(&self, name: &str) -> SinkResult<Option<Arc<dyn File>>> {
        check_name(name)?;
        self.check()?;
        let (dir, last) = split(name);
        match self.root.open(dir, last) {
            Ok(f) => Ok(Some(f)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed("opening", name)(e)),
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
    file: Arc<dyn File>,
    len: u64,
    /// In the directory of `name`.
    temp: String,
    name: String,
    state: State,
}

impl LocalStaged {
    fn temp_name(&self) -> String {
        join(split(&self.name).0, &self.temp)
    }

    fn misused(&self, what: &str) -> SinkError {
        let source = io::Error::new(io::ErrorKind::InvalidInput, format!("{what} in state {:?}", self.state));
        SinkError::Permanent { context: self.shared.path.join(self.temp_name()).display().to_string(), source }
    }
}

impl Write for LocalStaged {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.state != State::Writing {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "write to a file that is sealed or spoiled"));
        }
        if let Err(e) = self.file.write_all_at(&[buf], self.len) {
            self.state = State::Spoiled;
            return Err(e);
        }
        self.len += buf.len() as u64;
        Ok(buf.len())
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
        self.file.sync(SyncMode::Full).map_err(self.shared.failed("syncing", &self.temp_name()))?;
        self.state = State::Sealed;
        Ok(())
    }

    fn publish(self: Box<Self>) -> SinkResult<Published> {
        if self.state != State::Sealed {
            return Err(self.misused("publish"));
        }
        let (dir, last) = split(&self.name);
        self.shared.check()?;
        let renamed = self.shared.root.rename_new(dir, &self.temp, last).map_err(self.shared.failed("renaming to", &self.name))?;
        self.shared.sync_up(dir)?;
        self.shared.check()?;
        Ok(if renamed { Published::Created } else { Published::AlreadyThere })
    }
}

impl Drop for LocalStaged {
    fn drop(&mut self) {
        // Gone already when it was published; what cannot be removed now is swept later.
        let _ = self.shared.root.remove(split(&self.name).0, &self.temp);
        self.shared.live().remove(&self.temp_name());
    }
}

impl Sink for LocalSink {
    fn stage(&self, name: &str) -> SinkResult<Box<dyn Staged>> {
        Ok(Box::new(self.shared.stage(name)?))
    }

    fn describe(&self, name: &str) -> SinkResult<Option<ObjectInfo>> {
        let Some(file) = self.shared.open(name)? else { return Ok(None) };
        let mut hash = Sha256::new();
        let len = each_piece(&*file, |b| hash.update(b)).map_err(self.shared.failed("reading", name))?;
        Ok(Some(ObjectInfo { len, sha256: hash.finalize().into() }))
    }

    fn holds_any(&self, directory: &str) -> SinkResult<bool> {
        check_name(directory)?;
        self.shared.check()?;
        match self.shared.root.list(directory, 1) {
            Ok((entries, _)) => Ok(!entries.is_empty()),
            // A file with this name has nothing below it.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(self.shared.failed("listing", directory)(e)),
        }
    }

    fn confirm(&self, name: &str) -> SinkResult<()> {
        let gone = || self.shared.failed("opening", name)(io::Error::from_raw_os_error(libc::ENOENT));
        self.shared.open(name)?.ok_or_else(gone)?.sync(SyncMode::Full).map_err(self.shared.failed("syncing", name))?;
        self.shared.sync_up(split(name).0)?;
        self.shared.check()
    }

    fn put_small(&self, name: &str, bytes: &[u8]) -> SinkResult<PutSmall> {
        let mut staged = Box::new(self.shared.stage(name)?);
        staged.write_all(bytes).map_err(self.shared.failed("writing", &staged.temp_name()))?;
        staged.seal()?;
        match staged.publish()? {
            Published::Created => Ok(PutSmall::Created),
            Published::AlreadyThere => {
                self.confirm(name)?;
                let reading = || self.shared.failed("reading", name);
                let other = |why: String| reading()(io::Error::new(io::ErrorKind::InvalidData, why));
                let gone = || self.shared.failed("opening", name)(io::Error::from_raw_os_error(libc::ENOENT));
                let file = self.shared.open(name)?.ok_or_else(gone)?;
                let mut there = Compare::new(bytes);
                there.length(file.len().map_err(reading())?).map_err(other)?;
                each_piece(&*file, |b| there.add(b)).map_err(reading())?;
                there.end().map_err(other)
            }
        }
    }

    fn device(&self) -> Option<u64> {
        self.shared.root.device().ok()
    }

    fn sweep(&self) -> SinkResult<Swept> {
        self.shared.check()?;
        sweep(&self.shared, SWEEP_ENTRIES)
    }

    fn ready(&self) -> SinkResult<()> {
        self.shared.check()
    }

    fn in_place(&self) -> SinkResult<()> {
        self.shared.check()
    }

    fn children(&self, dir: &str, most: usize) -> SinkResult<Vec<String>> {
        check_name(dir)?;
        self.shared.check()?;
        match self.shared.root.list(dir, most) {
            Ok((entries, _)) => Ok(entries.into_iter().map(|e| e.name).filter(|n| !n.starts_with('.')).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(self.shared.failed("listing", dir)(e)),
        }
    }

    fn get_small(&self, name: &str) -> SinkResult<Option<Vec<u8>>> {
        let Some(file) = self.shared.open(name)? else { return Ok(None) };
        let reading = || self.shared.failed("reading", name);
        if file.len().map_err(reading())? > MAX_SMALL {
            return Err(reading()(io::Error::new(io::ErrorKind::InvalidData, "larger than a small object")));
        }
        let mut bytes = Vec::new();
        each_piece(&*file, |b| bytes.extend_from_slice(b)).map_err(reading())?;
        Ok(Some(bytes))
    }
}

/// Reads to the end; how many bytes there were.
fn each_piece(file: &dyn File, mut each: impl FnMut(&[u8])) -> io::Result<u64> {
    let (mut buf, mut len) = (vec![0u8; 1 << 20], 0u64);
    loop {
        match file.read_at(&mut buf, len) {
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
fn sweep(shared: &Shared, mut entries: usize) -> SinkResult<Swept> {
    let prefix = shared.temp_prefix();
    let mut swept = Swept { removed: 0, complete: true };
    let mut open = vec![(String::new(), 0usize)];
    while let Some((dir, depth)) = open.pop() {
        let (list, all) = match shared.root.list(&dir, entries) {
            Ok(l) => l,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(shared.failed("listing", &dir)(e)),
        };
        entries -= list.len();
        for entry in list {
            let path = join(&dir, &entry.name);
            let ours = entry.name.starts_with(&prefix) && entry.name.ends_with(".tmp");
            if entry.is_dir && depth < SWEEP_DEPTH {
                open.push((path, depth + 1));
            } else if entry.is_file && ours && !shared.live().contains(&path) {
                match shared.root.remove(&dir, &entry.name) {
                    Ok(()) => swept.removed += 1,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(shared.failed("removing", &path)(e)),
                }
            }
        }
        if !all {
            swept.complete = false;
            return Ok(swept);
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::clock::SimClock;
    use crate::vfs::linking_root;
    use crate::vfs::sim::{Fault, SimDisk};

    const LOG: LogId = LogId([7; 16]);
    const NAME: &str = "db/a%2Fb/date=2026-01-01/hour=05/x.parquet";

    fn lake(by_link: bool) -> (tempfile::TempDir, LocalSink) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/lake");
        let mut s = LocalSink::open(&path, LOG).unwrap();
        if by_link {
            s = LocalSink::over(linking_root(&path), path, LOG);
        }
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
    fn directory_with_objects_is_told_from_one_without() {
        let (dir, s) = lake(false);
        assert!(!s.holds_any("db/t").unwrap());
        put(&s, "db/t/x.parquet", b"x");
        fs::create_dir(s.root().join("db/empty")).unwrap();
        let holds = |directory| s.holds_any(directory).unwrap();
        assert!(holds("db/t") && holds("db") && !holds("db/t2") && !holds("db/empty") && !holds("db/t/x.parquet"));
        fs::rename(s.root(), dir.path().join("away")).unwrap();
        assert!(matches!(s.holds_any("db/t"), Err(SinkError::Transient { .. })));
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

    /// A lake on a simulated disk.
    fn simulated() -> (SimDisk, LocalSink) {
        let disk = SimDisk::new(1, SimClock::new(1, 0), |_| false);
        let s = LocalSink::open_on(&*disk.vfs(), Path::new("/lake"), LOG).unwrap();
        (disk, s)
    }

    #[test]
    fn a_name_whose_sync_failed_is_not_durable_because_the_next_sync_succeeds() {
        let (disk, s) = simulated();
        let mut staged = s.stage(NAME).unwrap();
        staged.write_all(b"x").unwrap();
        staged.seal().unwrap();
        // The rename comes first.
        disk.script(disk.calls() + 2, Fault::Errno(libc::EIO));
        assert!(matches!(staged.publish(), Err(SinkError::Transient { .. })));
        assert!(s.describe(NAME).unwrap().is_some(), "it is visible");
        let e = s.confirm(NAME).unwrap_err();
        assert!(matches!(e, SinkError::Permanent { .. }) && e.to_string().contains("restart"), "{e}");
        let mut staged = s.stage("db/other").unwrap();
        staged.seal().unwrap();
        assert!(staged.publish().is_err());
    }

    /// The order in which the disk is called is the promise: bytes, then the name, then each directory up to the root.
    #[test]
    fn publish_syncs_bytes_then_name_then_every_directory_up_to_the_root() {
        let (disk, s) = simulated();
        disk.take_calls();
        let mut staged = s.stage("db/t/date=2026-01-01/x.parquet").unwrap();
        staged.write_all(b"data").unwrap();
        staged.seal().unwrap();
        let dir = "/lake/db/t/date=2026-01-01";
        let temp = format!("{dir}/.{LOG}-0.tmp");
        let made = ["mkdir /lake/db", "mkdir /lake/db/t", &format!("mkdir {dir}")].map(str::to_owned);
        let written = [format!("create {temp}"), format!("write {temp}"), format!("sync {temp}")];
        assert_eq!(disk.take_calls(), [made, written].concat());
        assert_eq!(staged.publish().unwrap(), Published::Created);
        let synced = [dir, "/lake/db/t", "/lake/db", "/lake"].map(|d| format!("sync_dir {d}"));
        assert_eq!(disk.take_calls(), [&[format!("rename {temp}")][..], &synced].concat());
        s.confirm("db/t/date=2026-01-01/x.parquet").unwrap();
        let again = [&[format!("sync {dir}/x.parquet")][..], &synced].concat();
        assert_eq!(disk.take_calls(), again, "what an earlier run has published is made durable in the same way");
        disk.crash();
        assert_eq!(
            disk.tree(Path::new("/lake")).into_iter().collect::<Vec<_>>(),
            [("db/t/date=2026-01-01/x.parquet".into(), b"data".to_vec())]
        );
    }

    /// Directories that were made and never synced go with the power, and what was published in them does not.
    #[test]
    fn published_objects_survive_a_power_cut_and_unpublished_ones_may_not() {
        let mut lost = 0;
        for seed in 0..40 {
            let (disk, s) = simulated();
            disk.reseed(seed);
            assert_eq!(put(&s, "db/a/x", b"first"), Published::Created);
            let mut staged = s.stage("db/b/y").unwrap();
            staged.write_all(b"second").unwrap();
            staged.seal().unwrap();
            disk.crash();
            drop(staged);
            let left = disk.tree(Path::new("/lake"));
            assert_eq!(left.get("db/a/x").map(Vec::as_slice), Some(&b"first"[..]), "seed {seed}");
            lost += u32::from(left.len() == 1);
        }
        assert!(lost > 5, "{lost} of 40 lost the directory that was not synced");
    }

    /// Unmounted, mounted over, or the link was switched: nothing goes to where the path leads now.
    #[test]
    fn a_path_that_leads_elsewhere_is_a_lake_that_is_away() {
        let (disk, s) = simulated();
        let (lake, other) = (Path::new("/lake"), Path::new("/other"));
        let mut staged = s.stage(NAME).unwrap();
        staged.write_all(b"x").unwrap();
        staged.seal().unwrap();
        disk.lead(lake, Some(other));
        let away = |e: SinkError| assert!(matches!(&e, SinkError::Transient { .. }) && e.to_string().contains("another directory"), "{e}");
        away(s.stage(NAME).err().unwrap());
        away(s.put_small("_arc/p", b"x").unwrap_err());
        away(staged.publish().unwrap_err());
        away(s.describe(NAME).unwrap_err());
        away(s.confirm(NAME).unwrap_err());
        away(s.sweep().unwrap_err());
        away(s.ready().unwrap_err());
        away(s.in_place().unwrap_err());
        assert_eq!(disk.tree(other).len(), 0);
        disk.lead(lake, None);
        assert_eq!(put(&s, NAME, b"data"), Published::Created);
        assert!(disk.tree(lake).contains_key(NAME));
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

    /// Moved away, or another directory has its name: what is written where nobody looks is not in the lake.
    #[test]
    fn a_lake_that_is_gone_is_waited_for_and_not_made_anew() {
        for by_link in [false, true] {
            for replacement in ["nothing", "a directory", "a link"] {
                let (_dir, s) = lake(by_link);
                let mut staged = s.stage(NAME).unwrap();
                staged.write_all(b"x").unwrap();
                staged.seal().unwrap();
                let (away, other) = (s.root().with_file_name("away"), s.root().with_file_name("other"));
                fs::rename(s.root(), &away).unwrap();
                fs::create_dir(&other).unwrap();
                match replacement {
                    "a directory" => fs::create_dir(s.root()).unwrap(),
                    "a link" => std::os::unix::fs::symlink(&other, s.root()).unwrap(),
                    _ => {}
                }
                assert!(matches!(s.stage(NAME), Err(SinkError::Transient { .. })));
                assert!(matches!(s.put_small("_arc/p", b"x"), Err(SinkError::Transient { .. })));
                assert!(matches!(staged.publish(), Err(SinkError::Transient { .. })));
                assert!(matches!(s.describe(NAME), Err(SinkError::Transient { .. })));
                assert!(matches!(s.in_place(), Err(SinkError::Transient { .. })));
                assert_eq!((files(&other).len(), s.root().exists()), (0, replacement != "nothing"));
                match replacement {
                    "a directory" => fs::remove_dir(s.root()).unwrap(),
                    "a link" => fs::remove_file(s.root()).unwrap(),
                    _ => {}
                }
                fs::rename(away, s.root()).unwrap();
                assert_eq!(put(&s, NAME, b"data"), Published::Created);
            }
        }
    }

    /// A database that lies elsewhere can be away while the lake is not.
    #[test]
    fn a_link_within_the_lake_is_not_followed() {
        let (dir, s) = lake(false);
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, s.root().join("db")).unwrap();
        let e = s.stage(NAME).err().unwrap();
        assert!(matches!(&e, SinkError::Permanent { .. }) && e.to_string().contains("symbolic link"), "{e}");
        fs::write(elsewhere.join("x"), b"").unwrap();
        assert!(matches!(s.describe("db/x"), Err(SinkError::Permanent { .. })));
        std::os::unix::fs::symlink(elsewhere.join("x"), s.root().join("y")).unwrap();
        assert!(matches!(s.describe("y"), Err(SinkError::Permanent { .. })));
        // The way to the lake may be a link.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(s.root(), &link).unwrap();
        assert_eq!(put(&LocalSink::open(&link, LOG).unwrap(), "other/x", b"data"), Published::Created);
    }

    #[test]
    fn small_objects_are_listed_and_read() {
        let (_dir, s) = lake(false);
        assert_eq!((s.children("_arc", 9).unwrap(), s.get_small("_arc/a/n").unwrap()), (Vec::<String>::new(), None));
        for name in ["_arc/b/n", "_arc/a/n"] {
            s.put_small(name, name.as_bytes()).unwrap();
        }
        assert_eq!(s.children("_arc", 9).unwrap(), ["a", "b"]);
        assert_eq!(s.children("_arc", 1).unwrap().len(), 1);
        assert_eq!(s.get_small("_arc/a/n").unwrap().unwrap(), b"_arc/a/n");
    }

    #[test]
    fn a_large_object_under_the_name_of_a_small_one_is_not_read() {
        let (_dir, s) = lake(false);
        fs::create_dir_all(s.root().join("_arc")).unwrap();
        let f = fs::File::create(s.root().join("_arc/p")).unwrap();
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
        let (disk, s) = simulated();
        let mut staged = s.stage("e/f").unwrap();
        disk.set_capacity(0);
        let e = SinkError::from_io("writing", staged.write_all(b"x").unwrap_err());
        assert!(matches!(e, SinkError::NoSpace { .. }), "{e}");
        assert!(staged.publish().is_err(), "a file that a write spoiled is not published");
    }
}
