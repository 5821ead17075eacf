//! The reserve: blocks kept back so that a full disk can still be drained and started from.
//!
//! INVARIANT(reserve-covers-the-manifest): it is at least twice as long as the manifest, so that half of it lets the drain go on and the other
//! half holds the new manifest and the small segment of a start. A manifest that grows takes the reserve with it; where there is no room for
//! that, writes are refused until there is.

use std::io;
use std::path::Path;

use super::files;
use crate::vfs::{SyncMode, Vfs, is_no_space};

/// What the drain leaves of the reserve beyond the manifest's size: a start on a full disk takes it, for a new manifest and a
/// small segment.
pub const START_RESERVE: u64 = 2 << 20;
/// Less than this is of no use to a start.
const LEAST_RESERVE: u64 = 512 << 10;
/// What a start takes beside the manifest's bytes: a small segment, and rounding.
const LEAST_START: u64 = 64 << 10;
/// The reserve grows by this much at a time.
const STEP: u64 = 256 << 10;

/// How long the reserve must be beside a manifest of `manifest` bytes. 0 where none is configured.
pub fn reserve_length(configured: u64, manifest: u64) -> u64 {
    let needed = 2 * (manifest + LEAST_START);
    if configured == 0 || needed <= configured { configured } else { needed.next_multiple_of(STEP) }
}

/// What the drain leaves of a reserve of `len` bytes, for the next start.
pub fn kept_for_a_start(len: u64, manifest_allocated: u64) -> u64 {
    (manifest_allocated + START_RESERVE).min(len / 2)
}

/// Gives the reserve's blocks back to the filesystem, all but `keep` bytes. Returns how many bytes of blocks that freed: none when there
/// was no more than that, or when the file had no blocks of its own.
pub fn spend_reserve(vfs: &dyn Vfs, reserve: &Path, keep: u64) -> u64 {
    let spend = || {
        let f = vfs.open(reserve, true)?;
        let before = f.allocated()?;
        if keep == 0 {
            drop(f);
            vfs.remove(reserve)?;
            return Ok(before);
        }
        if f.len()? > keep {
            f.set_len(keep)?;
        }
        Ok::<_, io::Error>(before.saturating_sub(f.allocated()?))
    };
    let freed = spend().unwrap_or(0);
    if freed > 0 {
        tracing::warn!(freed_bytes = freed, kept_bytes = keep, "the disk is full: the reserve is spent");
    }
    freed
}

/// Makes the reserve whole; false when there is no room for it. What there is of it is kept, and where there is nothing, as much
/// as a start needs is tried.
///
/// # Errors
/// Of the filesystem, other than a full disk.
pub fn ensure_reserve(vfs: &dyn Vfs, dir: &Path, len: u64) -> io::Result<bool> {
    let path = dir.join(files::RESERVE);
    let f = match vfs.open(&path, true) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && len == 0 => return Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => vfs.create_new(&path),
        x => x,
    };
    let f = match f {
        Err(e) if is_no_space(&e) => return Ok(false),
        x => x?,
    };
    if f.allocated()? < f.len()? / 2 {
        // Holes, as a copy of the directory may have: they keep nothing back.
        f.set_len(0)?;
    }
    let have = f.len()?;
    if have > len {
        f.set_len(len)?;
    }
    if have >= len {
        return Ok(true);
    }
    let mut want = len;
    while want > have && (want == len || want >= LEAST_RESERVE) {
        match f.allocate(want).and_then(|()| f.sync(SyncMode::Full)).and_then(|()| vfs.sync_dir(dir)) {
            Ok(()) => return Ok(want == len),
            Err(e) if is_no_space(&e) => f.set_len(have)?,
            Err(e) => return Err(e),
        }
        want = if want > 2 * START_RESERVE { 2 * START_RESERVE } else { want.saturating_sub(LEAST_RESERVE) };
    }
    Ok(false)
}
