//! The segments of a log by what they hold, for directories whose names cannot be trusted.
//!
//! Whatever a name says, a header names its log, its segment and its generation. A server refuses such a directory; tools show what can be
//! read of it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::files;
use super::reader::read_header;
use super::recover::list::Listed;
use super::recover::{Report, SegmentFinding};
use crate::format::file_header::{FileHeader, FileKind};
use crate::format::scan::{Finding, Label};
use crate::types::LogId;
use crate::vfs::Vfs;

struct Candidate {
    name: String,
    len: u64,
    header: Result<FileHeader, String>,
}

/// Segments of `log` above `released`, by id, one file for each, whatever their names; and what is wrong with the other files. Without a
/// `log`, it is that of most files.
///
/// # Errors
/// Of the filesystem.
pub(super) fn list(vfs: &dyn Vfs, dir: &Path, log: Option<LogId>, released: u64) -> io::Result<(Vec<Listed>, Vec<String>)> {
    let all = candidates(vfs, dir)?;
    let log = log.or_else(|| most(&all));
    let mut by_id: BTreeMap<u64, Vec<&Candidate>> = BTreeMap::new();
    for c in &all {
        match &c.header {
            Ok(h) if Some(h.log) == log && h.id > released => by_id.entry(h.id).or_default().push(c),
            _ => {}
        }
    }
    let declared: Vec<(u64, u64)> =
        by_id.values().flatten().filter_map(|c| c.header.as_ref().ok()?.predecessor).map(|p| (p.id, p.salt)).collect();
    // A file whose header is lost has nothing but its name, and gives way to one that says what it is.
    for c in all.iter().filter(|c| c.header.is_err()) {
        if let Some(id) = files::parse_segment(&c.name).filter(|id| *id > released && !by_id.contains_key(id)) {
            by_id.insert(id, vec![c]);
        }
    }
    let (mut listed, mut problems) = (Vec::new(), Vec::new());
    for (id, mut copies) in by_id {
        let own = files::segment_name(id);
        copies.sort_by_key(|c| {
            let salt = c.header.as_ref().map_or(0, |h| h.salt);
            (!declared.contains(&(id, salt)), c.name != own, u64::MAX - c.len)
        });
        let mut copies = copies.into_iter();
        let Some(chosen) = copies.next() else { continue };
        if chosen.name != own && files::parse_segment(&chosen.name).is_none() {
            problems.push(format!("{}: holds segment {id}: put it back under its name, {own}", dir.join(&chosen.name).display()));
        }
        for c in copies {
            problems.push(format!(
                "{}: holds segment {id}, which {} holds too: keep one of them, under the name {own}",
                dir.join(&c.name).display(),
                chosen.name
            ));
        }
        listed.push(Listed { id, path: dir.join(&chosen.name), len: chosen.len, header: chosen.header.clone() });
    }
    Ok((listed, problems))
}

/// Every file that may be a segment. Spares and the pool may carry headers of an earlier life.
fn candidates(vfs: &dyn Vfs, dir: &Path) -> io::Result<Vec<Candidate>> {
    let mut out = Vec::new();
    for e in vfs.list(dir)?.into_iter().filter(|e| e.is_file) {
        let ours = [files::LOCK, files::RESERVE, files::PROBE].contains(&e.name.as_str());
        if ours || files::is_scratch(&e.name) || files::parse_manifest(&e.name).is_some() {
            continue;
        }
        let named = files::parse_segment(&e.name).is_some();
        match read_header(vfs, &dir.join(&e.name), FileKind::Segment) {
            Ok((len, Ok((h, _)))) => out.push(Candidate { name: e.name, len, header: Ok(h) }),
            Ok((len, Err([a, b]))) if named => {
                out.push(Candidate { name: e.name, len, header: Err(format!("{a}; second copy: {b}")) });
            }
            // Not a segment, or gone meanwhile.
            Ok(_) => {}
            Err(e) if !named || e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

fn most(all: &[Candidate]) -> Option<LogId> {
    let mut count: Vec<(LogId, usize)> = Vec::new();
    for h in all.iter().filter_map(|c| c.header.as_ref().ok()) {
        match count.iter_mut().find(|(l, _)| *l == h.log) {
            Some((_, n)) => *n += 1,
            None => count.push((h.log, 1)),
        }
    }
    count.into_iter().max_by_key(|(_, n)| *n).map(|(l, _)| l)
}

/// Names the segments that are missing between two others in the finding of what they held.
pub(super) fn name_missing(report: &mut Report, before: u64, behind: u64) {
    let Some(f) = report.findings.last_mut().filter(|f| f.segment == before && f.finding.missing.is_some()) else { return };
    f.finding.expected = format!("the sequences up to {}, {}", files::segment_name(behind), missing_files(before + 1, behind - 1));
    f.finding.found = "no such file".into();
}

/// What the segments at the beginning held that are not there.
pub(super) fn first_are_missing(report: &mut Report, listed: &[Listed]) {
    let Some(Listed { id, header: Ok(h), .. }) = listed.first() else { return };
    let (expected, sequence) = (report.state.released_segment + 1, report.state.released + 1);
    if report.manifest.is_some() && *id > expected && h.first_sequence > sequence {
        let missing = Some((sequence, h.first_sequence - 1));
        let (files, found) = (missing_files(expected, id - 1), "no such file".into());
        let finding = Finding { label: Label::Damaged, from: 0, to: 0, missing, expected: files, found };
        report.findings.push(SegmentFinding { segment: expected, finding });
    }
}

/// Names of segment files for people.
pub(super) fn missing_files(first: u64, last: u64) -> String {
    match (files::segment_name(first), files::segment_name(last)) {
        (a, b) if a == b => a,
        (a, b) => format!("{a} to {b}"),
    }
}
