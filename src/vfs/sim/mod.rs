//! A disk that can crash.
//!
//! Every file has a live image (what a process reads: the page cache) and a durable one (what a power cut leaves), compared by
//! 512-byte sector; every directory has its live names, its durable names and the operations between the two. A power cut leaves
//! of each unsynced sector the old bytes, some that were written since, or garbage, and does each unsynced directory operation or
//! does not ([`SimDisk::crash`]). A kill leaves the live image, less what the page cache forgot after a failed sync.
//!
//! Assumed of a disk, and so not tested: what a sync that returned has covered stays; a sector that was not written does not
//! change; a name that is renamed within a file system is under the old name, the new one or (between two directories) both, but
//! never under none.
//!
//! One process at a time: handles of before a crash answer EIO and change nothing. Everything is determined by the seed and the
//! order of calls.

mod calls;
mod image;
mod names;
mod root;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Vfs;
use crate::clock::{SimClock, SplitMix64};
use image::{Fate, Inode};
use names::{Directory, NameOp};

const SECTOR: usize = 512;

/// What can go wrong by itself, in cases per thousand calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub write_error: u64,
    pub write_short: u64,
    /// A write within a file's length finds no room, as on a copy-on-write file system.
    pub write_no_space: u64,
    pub sync_error: u64,
    pub sync_slow: u64,
    pub read_error: u64,
    /// Creating, renaming, removing, syncing a directory.
    pub name_error: u64,
}

/// One fault, at a call that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The machine stops before the call has any effect.
    CrashBefore,
    /// The machine stops after its effect, before it returns.
    CrashAfter,
    Errno(i32),
    /// Half of a write reaches the file, then EIO.
    Short,
}

/// A file that went away, for whoever checks that it was allowed to.
#[derive(Clone, Debug)]
pub struct Removed {
    pub path: PathBuf,
    pub content: Vec<u8>,
}

#[derive(Debug)]
struct Disk {
    files: BTreeMap<u64, Inode>,
    directories: BTreeMap<PathBuf, Directory>,
    next: u64,
    boot: u64,
    /// The machine has stopped and was not started again.
    off: bool,
    /// The process has ended (a mapped page could not be read).
    killed: bool,
    locks: BTreeSet<PathBuf>,
    random: SplitMix64,
    clock: Arc<SimClock>,
    rates: Rates,
    script: BTreeMap<u64, Fault>,
    calls: u64,
    capacity: u64,
    trace: u64,
    printed: bool,
    /// What was called, if anybody wants to know.
    logged: Option<Vec<String>>,
    injected: BTreeMap<&'static str, u64>,
    removed: Vec<Removed>,
    /// Paths that lead elsewhere.
    led: BTreeMap<PathBuf, PathBuf>,
    /// Links of renames between directories that are not durable yet, with their directory.
    pending_links: BTreeMap<u64, PathBuf>,
    /// Segments and manifests as the invariant over synced blocks sees them.
    immutable: fn(&Path) -> bool,
}

/// The disk of a simulated machine: survives its crashes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<Disk>>);

impl SimDisk {
    /// An empty disk with a root directory. `immutable` says of a path whether a block that was synced there may never be written
    /// again (INVARIANT(block-aligned-groups)).
    pub fn new(seed: u64, clock: Arc<SimClock>, immutable: fn(&Path) -> bool) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            files: BTreeMap::new(),
            directories: BTreeMap::from([(PathBuf::from("/"), Directory::default())]),
            next: 1,
            boot: 0,
            off: false,
            killed: false,
            locks: BTreeSet::new(),
            random: SplitMix64(seed),
            clock,
            rates: Rates::default(),
            script: BTreeMap::new(),
            calls: 0,
            capacity: u64::MAX,
            trace: 0xcbf2_9ce4_8422_2325,
            printed: false,
            logged: None,
            injected: BTreeMap::new(),
            removed: Vec::new(),
            led: BTreeMap::new(),
            pending_links: BTreeMap::new(),
            immutable,
        })))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file system as the process that runs now sees it.
    pub fn vfs(&self) -> Arc<dyn Vfs> {
        Arc::new(calls::SimVfs { disk: self.clone(), boot: self.disk().boot })
    }

    /// Another seed for what a crash leaves.
    pub fn reseed(&self, seed: u64) {
        self.disk().random = SplitMix64(seed);
    }

    pub fn set_clock(&self, clock: Arc<SimClock>) {
        self.disk().clock = clock;
    }

    pub fn set_rates(&self, rates: Rates) {
        self.disk().rates = rates;
    }

    /// A fault at the call with this number (see [`Self::calls`]).
    pub fn script(&self, call: u64, fault: Fault) {
        self.disk().script.insert(call, fault);
    }

    pub fn clear_script(&self) {
        self.disk().script.clear();
    }

    /// Calls so far that change something.
    pub fn calls(&self) -> u64 {
        self.disk().calls
    }

    /// Bytes all files together may have.
    pub fn set_capacity(&self, bytes: u64) {
        self.disk().capacity = bytes;
    }

    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// The machine has stopped (or the process has), and was not started again.
    pub fn is_off(&self) -> bool {
        let d = self.disk();
        d.off || d.killed
    }

    /// The process alone has ended, at a page that could not be read.
    pub fn is_killed(&self) -> bool {
        self.disk().killed
    }

    /// Stops the machine: nothing has an effect any more until [`Self::crash`] or [`Self::kill`].
    pub fn stop(&self) {
        self.disk().off = true;
    }

    /// A hash over every call and its outcome so far: equal runs have equal ones.
    pub fn trace(&self) -> u64 {
        self.disk().trace
    }

    /// Prints a line for each call from here on.
    pub fn print_calls(&self) {
        self.disk().printed = true;
    }

    /// The calls that change something, with their paths, since the last time this was called.
    pub fn take_calls(&self) -> Vec<String> {
        self.disk().logged.replace(Vec::new()).unwrap_or_default()
    }

    /// How often each fault has struck.
    pub fn injected(&self) -> BTreeMap<&'static str, u64> {
        self.disk().injected.clone()
    }

    /// Files that were removed or renamed away since the last call, whose path is `immutable`.
    pub fn take_removed(&self) -> Vec<Removed> {
        std::mem::take(&mut self.disk().removed)
    }

    /// The process is gone, the machine runs on: what the page cache holds stays. The next process may begin.
    pub fn kill(&self) {
        let mut d = self.disk();
        let d = &mut *d;
        d.restart();
        for f in d.files.values_mut() {
            if d.random.chance(500) {
                f.evict();
            }
        }
        for dir in d.directories.values_mut() {
            let newer = std::mem::take(&mut dir.pending);
            dir.pending = std::mem::take(&mut dir.forgotten);
            dir.pending.extend(newer);
        }
        d.note("kill", Path::new(""), 0, "");
    }

    /// Power is cut; the next process may begin on what is left.
    pub fn crash(&self) {
        let mut d = self.disk();
        let d = &mut *d;
        d.restart();
        let fate = Fate::choose(&mut d.random);
        let total: u64 = d.directories.values().map(|x| x.pending.len() as u64).sum();
        let one = d.random.below(total);
        let mut i = 0;
        let mut kept: Vec<(PathBuf, NameOp)> = Vec::new();
        for (p, dir) in &mut d.directories {
            dir.forgotten.clear();
            for op in std::mem::take(&mut dir.pending) {
                if fate.keeps(i, one, &mut d.random) {
                    if let NameOp::Link { link, .. } = op {
                        d.pending_links.remove(&link);
                    }
                    kept.push((p.clone(), op));
                }
                i += 1;
            }
        }
        for (p, op) in kept {
            // A removal that a rename left behind does not come before the new name.
            let early = matches!(&op, NameOp::Unlink { after: Some(link), .. } if d.pending_links.contains_key(link));
            if let Some(dir) = d.directories.get_mut(&p).filter(|_| !early) {
                Directory::apply(&mut dir.durable, &op);
            }
        }
        d.pending_links.clear();
        for f in d.files.values_mut() {
            f.power_cut(&mut d.random);
        }
        d.settle_names();
        d.note("crash", Path::new(""), 0, "");
    }

    /// Flips a bit of a file, in both images. Returns whether there is such a byte.
    pub fn flip_bit(&self, path: &Path, offset: usize, bit: u8) -> bool {
        let mut d = self.disk();
        let Some(f) = d.find(path) else { return false };
        let Some(f) = d.files.get_mut(&f) else { return false };
        let mut hit = false;
        for image in [&mut f.live, &mut f.durable] {
            if let Some(b) = image.get_mut(offset) {
                *b ^= 1 << (bit & 7);
                hit = true;
            }
        }
        hit
    }

    /// Reads of the sector at `offset` fail from here on, until it is written.
    pub fn make_unreadable(&self, path: &Path, offset: usize) {
        let mut d = self.disk();
        let Some(f) = d.find(path) else { return };
        if let Some(f) = d.files.get_mut(&f) {
            f.unreadable.insert(offset / SECTOR);
        }
    }

    /// What a file holds now; None when there is none.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let d = self.disk();
        let f = d.find(path)?;
        d.files.get(&f).map(|f| f.live.clone())
    }

    /// A disk with this one's durable image and nothing else: what the harshest power cut would leave. Of files whose name
    /// `wanted` does not take, it has no more than the name.
    pub fn durable_copy(&self, wanted: impl Fn(&Path) -> bool) -> Self {
        let d = self.disk();
        let copy = Self::new(0, Arc::clone(&d.clock), d.immutable);
        {
            let mut c = copy.disk();
            for (p, dir) in &d.directories {
                c.directories
                    .insert(p.clone(), Directory { live: dir.durable.clone(), durable: dir.durable.clone(), ..Directory::default() });
            }
            for (n, f) in &d.files {
                let bytes = if wanted(&f.name) { f.durable.clone() } else { Vec::new() };
                c.files.insert(*n, Inode { live: bytes.clone(), durable: bytes, name: f.name.clone(), ..Inode::default() });
            }
            c.next = d.next;
            c.settle_names();
        }
        drop(d);
        copy
    }

    /// A disk that holds what this one shows now, as a copy of its files would: all of it durable.
    pub fn live_copy(&self, seed: u64) -> Self {
        let d = self.disk();
        let copy = Self::new(seed, Arc::clone(&d.clock), d.immutable);
        {
            let mut c = copy.disk();
            for (p, dir) in &d.directories {
                c.directories.insert(p.clone(), Directory { live: dir.live.clone(), durable: dir.live.clone(), ..Directory::default() });
            }
            for (n, f) in &d.files {
                let f = Inode { live: f.live.clone(), durable: f.live.clone(), name: f.name.clone(), ..Inode::default() };
                c.files.insert(*n, f);
            }
            c.next = d.next;
        }
        drop(d);
        copy
    }
}
