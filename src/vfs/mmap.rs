//! Mapped files: the one place with `unsafe`.
//!
//! INVARIANT(mapped-files-keep-their-length): a file that is mapped is never truncated by this program (segments have a fixed length
//! from preallocation to unlink), and its blocks were written before, so that touching a page cannot meet a hole or a full disk.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use super::{GroupWriter, SyncMode};

/// Bytes of a file, mapped read-only or held in memory. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Mapping {
    Mapped(Arc<memmap2::Mmap>),
    Memory(Arc<[u8]>),
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(m) => m,
            Self::Memory(m) => m,
        }
    }
}

impl Mapping {
    /// Tells the kernel that bytes `from..to` will not be needed again soon: the pages leave this process's resident set, and
    /// stay in the page cache if there is room.
    pub fn done_with(&self, from: usize, to: usize) {
        if let Self::Mapped(m) = self {
            let to = to.min(m.len());
            if from < to {
                // SAFETY: the mapping is shared, read-only and backed by a file: dropping pages loses nothing, the next
                // access reads them again.
                let _ = unsafe { m.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from) };
            }
        }
    }
}

pub(super) fn map(file: &fs::File, len: u64) -> io::Result<Mapping> {
    let len = usize::try_from(len).map_err(|_| io::Error::other("file too large to map"))?;
    if file.metadata()?.len() < len as u64 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "file is shorter than the mapping asked for"));
    }
    // SAFETY: INVARIANT(mapped-files-keep-their-length). Bytes may change under a mapping only in a segment that is still
    // written, behind what the reader has been told is durable.
    let m = unsafe { memmap2::MmapOptions::new().len(len).map(file)? };
    let _ = m.advise(memmap2::Advice::Sequential);
    Ok(Mapping::Mapped(Arc::new(m)))
}

/// Appends by copying into a shared mapping; sync is `msync(MS_SYNC)` of the range written since the last one.
#[derive(Debug)]
pub(super) struct MmapWriter {
    map: memmap2::MmapMut,
    dirty: Option<(usize, usize)>,
    mode: SyncMode,
}

impl MmapWriter {
    pub(super) fn new(file: &fs::File, mode: SyncMode) -> io::Result<Self> {
        // SAFETY: INVARIANT(mapped-files-keep-their-length); this process is the only writer (LOCK).
        let map = unsafe { memmap2::MmapOptions::new().map_mut(file)? };
        Ok(Self { map, dirty: None, mode })
    }
}

impl GroupWriter for MmapWriter {
    fn write(&mut self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let len: usize = bufs.iter().map(|b| b.len()).sum();
        let dst = from
            .checked_add(len)
            .and_then(|to| self.map.get_mut(from..to))
            .ok_or_else(|| io::Error::other("group runs past the end of the mapped segment"))?;
        let mut at = 0;
        for b in bufs {
            if let Some(d) = dst.get_mut(at..at + b.len()) {
                d.copy_from_slice(b);
            }
            at += b.len();
        }
        let to = from + len;
        self.dirty = Some(self.dirty.map_or((from, to), |(f, t)| (f.min(from), t.max(to))));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some((from, to)) = self.dirty
            && self.mode != SyncMode::UnsafeNone
        {
            self.map.flush_range(from, to - from)?;
        }
        self.dirty = None;
        Ok(())
    }
}
