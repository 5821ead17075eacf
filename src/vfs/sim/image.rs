//! One file: its live and its durable image, by sector.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::clock::SplitMix64;

const SECTOR: usize = super::SECTOR;
const BLOCK: u64 = crate::limits::BLOCK as u64;
/// Contents of a sector since its last sync that are remembered beside the newest.
const VERSIONS: usize = 2;

/// How a power cut treats what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Old,
    New,
    Each,
    /// All but one as in `Old`.
    OneNew,
    /// All but one as in `New`.
    OneOld,
}

impl Fate {
    pub(super) fn choose(random: &mut SplitMix64) -> Self {
        match random.below(8) {
            0 => Self::Old,
            1 => Self::New,
            2 => Self::OneNew,
            3 => Self::OneOld,
            _ => Self::Each,
        }
    }

    /// Whether the `i`th of the unsynced things stays, when `one` is the exception.
    pub(super) fn keeps(self, i: u64, one: u64, random: &mut SplitMix64) -> bool {
        match self {
            Self::Old => false,
            Self::New => true,
            Self::Each => random.chance(500),
            Self::OneNew => i == one,
            Self::OneOld => i != one,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Inode {
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// Unsynced sectors, with contents they had since the last sync and before the live one.
    pub(super) dirty: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Sectors the page cache calls clean after a failed sync and that are not on the disk.
    pub(super) forgotten: BTreeSet<usize>,
    pub(super) unreadable: BTreeSet<usize>,
    /// Blocks written (not only allocated) since the file got its present kind of name, and those of them that a sync has covered.
    pub(super) written: BTreeSet<u64>,
    pub(super) covered: BTreeSet<u64>,
    /// The process in which a write or sync of it failed.
    pub(super) failed_in: Option<u64>,
    /// The name it has, or had last.
    pub(super) name: PathBuf,
}

pub(super) fn sector(bytes: &[u8], n: usize) -> Vec<u8> {
    let from = (n * SECTOR).min(bytes.len());
    let mut s = bytes.get(from..(from + SECTOR).min(bytes.len())).unwrap_or_default().to_vec();
    s.resize(SECTOR, 0);
    s
}

pub(super) fn put_sector(bytes: &mut [u8], n: usize, content: &[u8]) {
    let from = (n * SECTOR).min(bytes.len());
    let to = (from + SECTOR).min(bytes.len());
    if let (Some(dst), Some(src)) = (bytes.get_mut(from..to), content.get(..to - from)) {
        dst.copy_from_slice(src);
    }
}

impl Inode {
    pub(super) fn touch(&mut self, from: usize, to: usize) {
        for n in from / SECTOR..to.div_ceil(SECTOR) {
            self.forgotten.remove(&n);
            match self.dirty.entry(n) {
                Entry::Vacant(e) => {
                    e.insert(Vec::new());
                }
                Entry::Occupied(mut e) => {
                    if e.get().len() < VERSIONS {
                        e.get_mut().push(sector(&self.live, n));
                    }
                }
            }
        }
    }

    pub(super) fn resize(&mut self, len: usize) {
        let from = self.live.len();
        if len > from {
            self.live.resize(len, 0);
            self.touch(from, len);
        } else {
            self.live.truncate(len);
            let first = len.div_ceil(SECTOR);
            self.dirty.retain(|n, _| *n < first);
            self.forgotten.retain(|n| *n < first);
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if end > self.live.len() {
            self.resize(end);
        }
        self.touch(offset, end);
        if let Some(dst) = self.live.get_mut(offset..end) {
            dst.copy_from_slice(bytes);
        }
        self.written.extend(offset as u64 / BLOCK..(end as u64).div_ceil(BLOCK));
    }

    /// The sectors of `range` reach the disk, and the length.
    pub(super) fn sync(&mut self, range: Option<(usize, usize)>) {
        let (from, to) = range.unwrap_or((0, usize::MAX));
        self.durable.resize(self.live.len(), 0);
        let (first, last) = (from / SECTOR, to.div_ceil(SECTOR));
        let done: Vec<usize> = self.dirty.range(first..last).map(|(n, _)| *n).collect();
        for n in done {
            self.dirty.remove(&n);
            let s = sector(&self.live, n);
            put_sector(&mut self.durable, n, &s);
            let block = (n * SECTOR) as u64 / BLOCK;
            if self.written.contains(&block) {
                self.covered.insert(block);
            }
        }
    }

    /// Some sectors reach the disk; the page cache keeps the rest dirty or calls it clean.
    pub(super) fn fail_sync(&mut self, random: &mut SplitMix64) {
        let forgets = random.chance(600);
        let all: Vec<usize> = self.dirty.keys().copied().collect();
        for n in all {
            if random.chance(400) {
                let s = sector(&self.live, n);
                if self.durable.len() < (n + 1) * SECTOR {
                    self.durable.resize(self.live.len(), 0);
                }
                put_sector(&mut self.durable, n, &s);
            } else if forgets {
                self.forgotten.insert(n);
            }
            if forgets {
                self.dirty.remove(&n);
            }
        }
    }

    /// The page cache drops what it calls clean: what was lost shows.
    pub(super) fn evict(&mut self) {
        for n in std::mem::take(&mut self.forgotten) {
            let s = sector(&self.durable, n);
            put_sector(&mut self.live, n, &s);
        }
    }

    pub(super) fn power_cut(&mut self, random: &mut SplitMix64) {
        let fate = Fate::choose(random);
        let one = random.below(self.dirty.len() as u64);
        let mut left = std::mem::take(&mut self.durable);
        if fate.keeps(0, u64::MAX, random) && left.len() != self.live.len() {
            left.resize(self.live.len(), 0);
        }
        for (i, (n, versions)) in std::mem::take(&mut self.dirty).into_iter().enumerate() {
            let garbage = fate == Fate::Each && random.chance(250);
            if !garbage && !fate.keeps(i as u64, one, random) {
                continue;
            }
            let (old, mut new) = (sector(&left, n), sector(&self.live, n));
            if !versions.is_empty() && random.chance(300) {
                new = versions.get(random.below(versions.len() as u64) as usize).cloned().unwrap_or(new);
            }
            if garbage {
                match random.below(3) {
                    0 => new.fill(0),
                    1 => new.iter_mut().for_each(|b| *b = random.next_u64() as u8),
                    _ => {
                        let cut = random.below(SECTOR as u64) as usize;
                        new.iter_mut().zip(old).skip(cut).for_each(|(n, o)| *n = o);
                    }
                }
            }
            put_sector(&mut left, n, &new);
        }
        self.forgotten.clear();
        self.durable.clone_from(&left);
        self.live = left;
    }
}
