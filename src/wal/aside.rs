//! Keeping what cannot be read: its bytes in the side directory, a record of it in the manifest.

use std::io;
use std::path::Path;

use super::files;
use super::recover::{Report, SegmentFinding};
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

/// Writes what a look at the log has found to the process's own log.
pub(super) fn report_findings(report: &Report) {
    for f in &report.findings {
        let x = &f.finding;
        let file = files::segment_name(f.segment);
        let side = side_name(report, f).unwrap_or_default();
        if x.label.is_damage() {
            tracing::error!(file, offset = x.from, label = x.label.name(), expected = %x.expected, found = %x.found, missing_sequences = x.missing_text(), side, "damage in the log");
        } else {
            tracing::warn!(file, offset = x.from, label = x.label.name(), expected = %x.expected, found = %x.found, side, "the log ends here: nothing on disk shows that its tail was acknowledged");
        }
    }
    for note in &report.notes {
        tracing::warn!(note, "not as it should be; nothing is missing");
    }
    for s in report.segments.iter().filter(|s| s.label == "leftover") {
        tracing::warn!(file = %s.path.display(), "a file with the name of a released segment and no readable header: left alone, remove it by hand");
    }
}

/// The file in the side directory that keeps the bytes of a finding.
fn side_name(report: &Report, f: &SegmentFinding) -> Option<String> {
    let s = report.segments.iter().find(|s| s.id == f.segment)?;
    Some(format!("{:016x}-{:016x}-{}.bin", s.salt, f.finding.from, f.finding.label.name()))
}

/// Copies the bytes of every finding to the side directory, once.
///
/// # Errors
/// Of the filesystem.
pub(super) fn set_aside(vfs: &dyn Vfs, dir: &Path, report: &Report) -> io::Result<()> {
    for f in &report.findings {
        let Some(s) = report.segments.iter().find(|s| s.id == f.segment) else { continue };
        keep_bytes(vfs, dir, &s.path, s.file_len, s.salt, &f.finding)?;
    }
    Ok(())
}

/// Moves the file of a released segment that was damaged to the side directory, whole: what its records were may be asked long after the
/// rest of it is in Parquet.
///
/// INVARIANT(evidence-is-kept): a segment that an entry of the manifest calls damaged is never removed by its release, nor by a start that
/// finds a file of its name.
///
/// # Errors
/// Of the filesystem.
pub fn keep_segment(vfs: &dyn Vfs, dir: &Path, path: &Path, id: u64, salt: u64) -> io::Result<()> {
    let side = dir.join(files::SIDE);
    let name = files::evidence_name(id, salt);
    let name = if vfs.open(&side.join(&name), false).is_ok() { name.replacen("damaged", "copy", 1) } else { name };
    vfs.rename(path, &side.join(&name))?;
    vfs.sync_dir(&side)?;
    vfs.sync_dir(dir)?;
    tracing::warn!(
        file = files::segment_name(id),
        kept = format!("{}/{name}", files::SIDE),
        "a damaged segment is kept until \"arc wal damage ack\""
    );
    Ok(())
}

/// Whether damage of this segment is on record.
pub fn is_damaged(damage: &[Entry], id: u64) -> bool {
    damage.iter().any(|d| matches!(d, Entry::Damage { segment, .. } if *segment == id))
}
