//! Keeping what cannot be read: its bytes in the side directory, a record of it in the manifest.

use std::io;
use std::path::Path;

use super::files;
use crate::format::manifest::Entry;
use crate::format::scan::Finding;
use crate::limits::BLOCK;
use crate::vfs::{Vfs, write_durable};

/// Copies the bytes of a finding in the segment at `path` to the side directory, unless they are there.
///
/// # Errors
/// Of the filesystem.
pub fn keep_bytes(vfs: &dyn Vfs, dir: &Path, path: &Path, file_len: u64, salt: u64, x: &Finding) -> io::Result<()> {
    const MOST: u64 = 64 << 20;
    let side = dir.join(files::SIDE);
    let len = x.to.min(file_len).saturating_sub(x.from).min(MOST);
    let name = format!("{salt:016x}-{:016x}-{}.bin", x.from, x.label.name());
    // A place that has grown since is kept again.
    if len == 0 || vfs.list(&side)?.iter().any(|e| e.name == name && e.len >= len) {
        // Whoever wrote it may have ended before the sync of its name.
        return vfs.sync_dir(&side);
    }
    let file = vfs.open(path, false)?;
    let mut bytes = vec![0u8; len as usize];
    for (i, block) in bytes.chunks_mut(BLOCK).enumerate() {
        let _ = crate::vfs::read_full(&*file, block, x.from + (i * BLOCK) as u64);
    }
    write_durable(vfs, &side, &name, &[&bytes])
}

/// What the manifest says of a finding.
pub fn damage_entry(segment: u64, x: &Finding) -> Entry {
    let (first_missing, last_missing) = x.missing.unwrap_or((0, 0));
    Entry::Damage { segment, from: x.from, to: x.to, label: x.label.name().into(), first_missing, last_missing }
}

/// Whether both say the same: how far a bad place reaches depends on whether the segment had a successor when it was looked at.
pub fn is_same_damage(a: &Entry, b: &Entry) -> bool {
    let what = |e: &Entry| match e {
        Entry::Damage { segment, from, first_missing, last_missing, .. } => Some((*segment, *from, *first_missing, *last_missing)),
        _ => None,
    };
    what(a).is_some() && what(a) == what(b)
}
