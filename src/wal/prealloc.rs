//! Keeps one spare segment ready, off the hot path: from the pool of released files, else a new file with real blocks,
//! written once with zeros. A full disk shows up here.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::files;
use super::shared::{Shared, lock};
use crate::limits::{BLOCK, FILE_HEADER_BYTES};
use crate::sync::{Condvar, Mutex};
use crate::vfs::{File, SyncMode, Vfs, is_no_space};

/// A prepared file under a temporary name.
#[derive(Debug)]
pub struct Spare {
    pub path: PathBuf,
    pub file: Arc<dyn File>,
    pub len: u64,
}

#[derive(Debug, Default)]
struct State {
    ready: Option<Spare>,
    /// Data bytes that the next segment must hold, when more than usual.
    wanted: u64,
    failure: Option<Failure>,
    /// The committer has asked since it last got one.
    asked: bool,
    /// A spare is being made.
    trying: bool,
    pool: Vec<(PathBuf, u64)>,
    /// Files that could be neither moved nor removed: they take room until a start removes them.
    stuck: Vec<(PathBuf, u64)>,
    next: u64,
    stop: bool,
}

/// Why no spare could be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    DiskFull,
    SizeLimit,
    Other,
}

/// Makes spares; shared by the committer (takes), the compactor (gives released files back) and its own thread (prepares).
#[derive(Debug)]
pub struct Preallocator {
    vfs: Arc<dyn Vfs>,
    shared: Arc<Shared>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Preallocator {
    pub fn new(vfs: Arc<dyn Vfs>, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { vfs, shared, state: Mutex::default(), changed: Condvar::new() })
    }

    /// A spare with at least `data` bytes of data area, if one is ready.
    ///
    /// # Errors
    /// Why there is none; None = it is being prepared.
    pub fn take(&self, data: u64) -> Result<Spare, Option<Failure>> {
        let mut s = lock(&self.state);
        let needed = FILE_HEADER_BYTES as u64 + data;
        if s.ready.as_ref().is_some_and(|r| r.len >= needed)
            && let Some(spare) = s.ready.take()
        {
            s.wanted = 0;
            s.asked = false;
            self.publish(&s);
            self.changed.notify_all();
            return Ok(spare);
        }
        s.wanted = data;
        self.changed.notify_all();
        // A failure of a while ago says nothing of now: it is tried again first.
        let stale = !std::mem::replace(&mut s.asked, true) || s.trying;
        Err(s.failure.filter(|_| !stale))
    }

    /// Whether an ordinary spare is ready.
    pub fn is_ready(&self) -> bool {
        lock(&self.state).ready.is_some()
    }

    /// Nobody waits for a large segment any more; whether a spare is ready.
    pub fn settle(&self) -> bool {
        let mut s = lock(&self.state);
        if std::mem::take(&mut s.wanted) > 0 {
            self.changed.notify_all();
        }
        if s.ready.is_none() {
            return false;
        }
        s.asked = false;
        s.failure = None;
        true
    }

    fn publish(&self, s: &State) {
        let mut seg = lock(&self.shared.segments);
        seg.spare = (usize::from(s.ready.is_some()), s.ready.as_ref().map_or(0, |r| r.len));
        seg.pool = (s.pool.len(), s.pool.iter().chain(&s.stuck).map(|p| p.1).sum());
        self.shared.recount(&seg);
    }

    /// Takes a released segment's file into the pool, or removes it. The caller has made the release durable; nothing maps the
    /// file any more when `reusable`. The directory is synced here. Only one thread, the compactor's, may give.
    ///
    /// # Errors
    /// Of the filesystem.
    pub fn give(&self, path: PathBuf, len: u64, id: u64, reusable: bool) -> io::Result<()> {
        let dir = &self.shared.settings.directory;
        let keep = reusable
            && len == self.shared.settings.segment_len()
            && lock(&self.state).pool.len() < self.shared.settings.pool
            && !self.shared.reserve_spent();
        let to = dir.join(files::POOL).join(files::pool_name(id));
        // Nothing is locked during the syncs: the committer wants its spare.
        let given = if keep && self.vfs.rename(&path, &to).is_ok() {
            let synced = self.vfs.sync_dir(&dir.join(files::POOL)).and_then(|()| self.vfs.sync_dir(dir));
            let mut s = lock(&self.state);
            // Without the syncs the file may come back under its old name: it is not written again.
            if synced.is_ok() {
                s.pool.push((to, len))
            } else {
                s.stuck.push((to, len))
            }
            synced
        } else {
            // One that cannot be moved is removed.
            match self.vfs.remove(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    lock(&self.state).stuck.push((path, len));
                    Err(e)
                }
                _ => self.vfs.sync_dir(dir),
            }
        };
        self.publish(&lock(&self.state));
        self.changed.notify_all();
        given
    }

    /// Removes a file that nobody will use; one that cannot be removed still counts.
    fn discard(&self, s: &mut State, path: PathBuf, len: u64) {
        if self.vfs.remove(&path).is_err_and(|e| e.kind() != io::ErrorKind::NotFound) {
            s.stuck.push((path, len));
        }
    }

    /// Removes all pooled files, for their blocks; returns their bytes.
    pub fn empty_pool(&self) -> u64 {
        let mut s = lock(&self.state);
        let pool = std::mem::take(&mut s.pool);
        let bytes = pool.iter().map(|p| p.1).sum();
        for (p, len) in pool {
            self.discard(&mut s, p, len);
        }
        self.publish(&s);
        bytes
    }

    /// The length of the spare that is to be prepared.
    fn due(&self, s: &State) -> Option<u64> {
        let data = s.wanted.max(self.shared.settings.segment_data).next_multiple_of(BLOCK as u64);
        let len = FILE_HEADER_BYTES as u64 + data;
        (!s.stop && s.ready.as_ref().is_none_or(|r| r.len < len)).then_some(len)
    }

    /// Prepares one spare if one is wanted; true when something was done. A failure is remembered and retried.
    pub fn step(&self) -> bool {
        let (len, from_pool, n) = {
            let mut s = lock(&self.state);
            let Some(len) = self.due(&s) else { return false };
            // INVARIANT(spare-kept): an ordinary spare goes only for an oversized one that stands, or that the log's size limit would
            // refuse beside it: on a full disk it is what the active segment can still be sealed with.
            let total = self.shared.total_bytes() + len;
            let max = self.shared.settings.max_size;
            if let Some(small) = s.ready.take_if(|r| total > max && total - r.len <= max) {
                let _ = self.vfs.remove(&small.path);
                self.publish(&s);
            }
            let pooled = s.pool.iter().position(|p| p.1 == len).map(|i| s.pool.swap_remove(i));
            s.next += 1;
            s.trying = true;
            (len, pooled, s.next)
        };
        let path = self.shared.settings.directory.join(files::spare_name(n));
        let made = self.prepare(&path, len, from_pool.as_ref().map(|p| &p.0));
        let mut s = lock(&self.state);
        s.trying = false;
        match made {
            Ok(file) => {
                if let Some(small) = s.ready.replace(Spare { path, file, len }) {
                    let _ = self.vfs.remove(&small.path);
                }
                s.failure = None;
            }
            Err((e, f)) => {
                if let Some((p, len)) = from_pool {
                    // Under its old name or its new one.
                    let at = if self.vfs.open(&p, false).is_ok() { p } else { path };
                    self.discard(&mut s, at, len);
                }
                if s.failure != Some(f) {
                    tracing::warn!(error = %e, "no spare segment can be prepared: {f:?}");
                    self.shared.set_last_error(format!("preparing a spare segment: {e}"));
                }
                s.failure = Some(f);
            }
        }
        self.publish(&s);
        let done = s.failure.is_none();
        drop(s);
        self.shared.queue_ready.notify_all();
        done
    }

    fn prepare(&self, path: &std::path::Path, len: u64, pooled: Option<&PathBuf>) -> Result<Arc<dyn File>, (io::Error, Failure)> {
        let classify = |e: io::Error| {
            let f = if is_no_space(&e) { Failure::DiskFull } else { Failure::Other };
            (e, f)
        };
        if let Some(from) = pooled {
            self.vfs.rename(from, path).map_err(classify)?;
            return self.vfs.open(path, true).map_err(classify);
        }
        if self.shared.total_bytes() + len > self.shared.settings.max_size {
            return Err((io::Error::other("wal.max_size is reached"), Failure::SizeLimit));
        }
        if self.shared.reserve_spent() {
            return Err((io::Error::from_raw_os_error(libc::ENOSPC), Failure::DiskFull));
        }
        let result = (|| {
            let f = self.vfs.create_new(path)?;
            f.allocate(len)?;
            f.sync(SyncMode::Full)?;
            Ok(f)
        })();
        result.map_err(|e| {
            let _ = self.vfs.remove(path);
            classify(e)
        })
    }

    /// Runs [`Self::step`] until [`Self::stop`].
    pub fn run(&self) {
        loop {
            self.shared.pulses.prealloc.beat();
            let worked = self.step();
            let s = lock(&self.state);
            if s.stop {
                return;
            }
            // A spare that was taken since the step: its notification has found nobody.
            if !worked && (s.failure.is_some() || self.due(&s).is_none()) {
                let wait = if s.failure.is_some() { Duration::from_millis(200) } else { Duration::from_secs(5) };
                drop(self.changed.wait_timeout(s, wait).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    pub fn stop(&self) {
        lock(&self.state).stop = true;
        self.changed.notify_all();
    }
}
