//! Which segments a log has, by their names and headers: rows F9 to F24 of the decision table.

use std::io;
use std::path::{Path, PathBuf};

use super::{Report, SegmentReport};
use crate::format::file_header::{FileHeader, FileKind, HeaderError};
use crate::vfs::Vfs;
use crate::wal::reader::{FileBytes, read_file, read_header, salt_without_header};
use crate::wal::{by_content, files};

/// A file with the name of a segment.
pub(in crate::wal) struct Listed {
    pub(in crate::wal) id: u64,
    pub(in crate::wal) path: PathBuf,
    pub(in crate::wal) len: u64,
    pub(in crate::wal) header: Result<FileHeader, String>,
}

/// Whether a header belongs to this log and to its file's name; if not, that is a refusal.
fn is_ours(report: &mut Report, h: &FileHeader, id: u64, path: &Path) -> bool {
    let log = *report.log.get_or_insert(h.log);
    if log != h.log {
        report.refusals.push(format!(
            "{}: belongs to log {}, this directory is log {log}: expected one log in a directory; move the foreign files away",
            path.display(),
            h.log
        ));
    } else if h.id != id {
        report.refusals.push(format!(
            "{}: its header says segment {}, its name says {id}: expected equal; put the file back under its own name, {}",
            path.display(),
            h.id,
            files::segment_name(h.id)
        ));
    } else {
        return true;
    }
    false
}

pub(super) fn list_segments(vfs: &dyn Vfs, dir: &Path, report: &mut Report) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for e in vfs.list(dir)? {
        let Some(id) = files::parse_segment(&e.name) else { continue };
        let path = dir.join(&e.name);
        if !e.is_file {
            report.refusals.push(format!(
                "{}: expected a file, this is a directory, a pipe or a device; move it away and restore the segment from a copy",
                path.display()
            ));
            continue;
        }
        let (len, header) = match read_header(vfs, &path, FileKind::Segment) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            x => x?,
        };
        if id <= report.state.released_segment {
            // Left over from a release that a crash cut short. Only what is surely that may be removed.
            let label = if header.as_ref().is_ok_and(|(h, _)| is_ours(report, h, id, &path)) { "released" } else { "leftover" };
            let salt = header.map_or(0, |h| h.0.salt);
            report.segments.push(SegmentReport::unread(id, path, len, salt, 1, label));
            continue;
        }
        let header = match header {
            Ok((h, _)) => {
                is_ours(report, &h, id, &path);
                Ok(h)
            }
            Err([a, b]) => {
                if let Some(newer) = [a, b].iter().find(|e| matches!(e, HeaderError::Version { .. } | HeaderError::Features(_))) {
                    report.refusals.push(format!("{}: {newer}", path.display()));
                }
                Err(format!("{a}; second copy: {b}"))
            }
        };
        listed.push(Listed { id, path, len, header });
    }
    set_garbage_apart(vfs, report, &mut listed)?;
    if report.manifest.is_none() && !listed.is_empty() && report.refusals.is_empty() {
        report.refusals.push(format!(
            "{}: {} segments and no manifest: without it rows that are in Parquet already could be doubled; restore the manifest from a copy",
            dir.display(),
            listed.len()
        ));
    }
    miss_newest(dir, report, &listed);
    miss_others(dir, report, &listed);
    Ok(listed)
}

/// A newest segment with no header and no record, from which nothing was acknowledged, is no segment: what a program that was not this one
/// has put there, or a file that was emptied.
fn set_garbage_apart(vfs: &dyn Vfs, report: &mut Report, listed: &mut Vec<Listed>) -> io::Result<()> {
    let acknowledged = report.state.acknowledged.map_or(0, |s| s.segment);
    let Some(last) = listed.last().filter(|l| report.names_acknowledged && l.header.is_err() && l.id > acknowledged) else { return Ok(()) };
    let mut bytes = FileBytes::default();
    read_file(&*vfs.open(&last.path, false)?, &mut bytes)?;
    if !report.refusals.is_empty() || salt_without_header(&bytes).is_some() {
        return Ok(());
    }
    report.notes.push(format!(
        "{}: no header and no record, expected segment {}; nothing was acknowledged from it, it is moved to {}/",
        last.path.display(),
        last.id,
        files::SIDE
    ));
    report.garbage = Some((last.id, last.path.clone()));
    listed.pop();
    Ok(())
}

/// The newest segment that the manifest knows must be there, unless it shows that nothing was acknowledged from it.
fn miss_newest(dir: &Path, report: &mut Report, listed: &[Listed]) {
    let (known, newest) = (report.state.newest_segment, listed.last().map_or(0, |l| l.id));
    let acknowledged = report.state.acknowledged;
    if let Some(s) = acknowledged
        && let Some(l) = listed.iter().find(|l| l.id == s.segment)
        && let Ok(h) = &l.header
        && h.salt != s.salt
    {
        report.refusals.push(format!(
            "{}: its salt is {:016x}, the manifest knows segment {} with {:016x}: it is another file; restore the right one, or see `arc wal \
             repair` of a later version",
            l.path.display(),
            h.salt,
            s.segment,
            s.salt
        ));
    }
    if newest >= known {
        return;
    }
    match acknowledged.filter(|s| s.segment > newest) {
        Some(s) => report.refusals.push(format!(
            "{}: the manifest knows segment {known}, the newest found is {newest}: {} is lost, and sequences {} to {} at least were \
             acknowledged from it; restore it, or see `arc wal repair` of a later version",
            dir.display(),
            files::segment_name(s.segment),
            s.first_sequence,
            s.durable
        )),
        None if report.names_acknowledged => {
            if report.garbage.as_ref().is_none_or(|(id, _)| *id != known) {
                report.notes.push(format!("{}: {} is lost; nothing was acknowledged from it", dir.display(), files::segment_name(known)));
            }
        }
        None => report.refusals.push(format!(
            "{}: the manifest knows segment {known}, the newest found is {newest}: expected every segment from {} to {}; restore the missing \
             files",
            dir.display(),
            files::segment_name(report.state.released_segment + 1),
            files::segment_name(known)
        )),
    }
}

/// No segment may be missing before another one, unless that one says that it follows the one before the gap.
fn miss_others(dir: &Path, report: &mut Report, listed: &[Listed]) {
    let mut expected = report.state.released_segment + 1;
    for l in listed {
        let follows = l.header.as_ref().is_ok_and(|h| h.predecessor.map_or(0, |p| p.id) < expected);
        if l.id > expected && report.manifest.is_some() && !(follows && report.names_acknowledged) {
            report.refusals.push(format!(
                "{}: {} missing before {}: expected every segment from the released ones on; restore what is missing",
                dir.display(),
                by_content::missing_files(expected, l.id - 1),
                files::segment_name(l.id)
            ));
        }
        expected = l.id + 1;
    }
}
