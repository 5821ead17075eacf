//! `arc wal list`: the files of a log by their headers. Only the newest segment is read, for its end.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::side::{KeptLine, SideLine, kept_lines, side_lines};
use super::{MOST_LOOKS, ToolError, entries, pause};
use crate::format::file_header::{FileHeader, FileKind};
use crate::format::scan::Known;
use crate::limits::FILE_HEADER_BYTES;
use crate::types::{LogId, Sequence};
use crate::vfs::{DirEntry, Vfs};
use crate::wal::files;
use crate::wal::manifest::{ManifestError, ManifestState, load};
use crate::wal::reader::{FileBytes, HeaderCopies, read_file, read_header, scan_growing};

/// One segment as its header and its successor's describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SegmentLine {
    pub id: u64,
    pub file: String,
    pub length: u64,
    /// None where no header says so.
    pub first_seq: Option<Sequence>,
    pub last_seq: Option<Sequence>,
    /// Offset behind the last group.
    pub end: Option<u64>,
    /// `sealed` (its successor declares its end), `active` (the newest), `unsealed` (the successor does not know it),
    /// `header_lost`, `released` (left over). `arc wal verify` says what the records are like.
    pub label: &'static str,
    /// Sixteen digits.
    pub salt: Option<String>,
}

/// The manifest in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ManifestLine {
    pub file: String,
    pub id: u64,
    pub end: u64,
    pub epoch: u64,
    pub plans: usize,
    pub shipped: Sequence,
    pub released: Sequence,
    pub released_segment: u64,
    pub tables: usize,
    pub keys: usize,
}

/// Files of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    pub files: u64,
    pub bytes: u64,
}

impl Sizes {
    fn add(&mut self, e: &DirEntry) {
        self.files += 1;
        self.bytes += e.len;
    }
}

/// What is in a log's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Listing {
    pub log_uuid: Option<String>,
    pub segments: Vec<SegmentLine>,
    pub manifest: Option<ManifestLine>,
    /// What a server would refuse or repair, as far as it shows without reading segments.
    pub problems: Vec<String>,
    pub spares: Sizes,
    pub pool: Sizes,
    pub side: Sizes,
    /// Side segments, those that should be there included.
    pub side_segments: Vec<SideLine>,
    /// Other files of the side directory.
    pub kept: Vec<KeptLine>,
    pub quarantine: Sizes,
    pub reserve_bytes: u64,
}

/// Lists the log in `dir`, again when a live server changes it meanwhile.
///
/// # Errors
/// [`ToolError`].
pub fn list(vfs: &dyn Vfs, dir: &Path) -> Result<Listing, ToolError> {
    let mut last = None;
    for look in 0..MOST_LOOKS {
        let before = entries(vfs, dir)?;
        match once(vfs, dir, &before) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && look + 1 < MOST_LOOKS => {}
            Err(e) => return Err(ToolError::io(dir.display().to_string())(e)),
            Ok(l) => {
                let same = entries(vfs, dir)? == before && (l.problems.is_empty() || last.as_ref() == Some(&l));
                last = Some(l);
                if same {
                    break;
                }
            }
        }
        pause(look);
    }
    Ok(last.unwrap_or_default())
}

fn once(vfs: &dyn Vfs, dir: &Path, all: &[DirEntry]) -> io::Result<Listing> {
    let mut l = Listing::default();
    let (mut log, mut released, mut state) = (None, 0, ManifestState::default());
    match load(vfs, dir) {
        Ok(Some(m)) => {
            log = Some(m.header.log);
            released = m.state.released_segment;
            let s = &m.state;
            l.manifest = Some(ManifestLine {
                file: files::manifest_name(m.header.id),
                id: m.header.id,
                end: m.end,
                epoch: s.epoch,
                plans: s.plans.len(),
                shipped: s.shipped,
                released: s.released,
                released_segment: released,
                tables: s.tables.len(),
                keys: s.keys.len(),
            });
            state = m.state;
        }
        Ok(None) => l.problems.push(format!("{}: expected a manifest, found none; restore it from a copy", dir.display())),
        Err(e @ ManifestError::Damaged { .. }) => l.problems.push(e.to_string()),
        Err(ManifestError::Io { path, source }) => return Err(io::Error::new(source.kind(), format!("{}: {source}", path.display()))),
    }
    let mut found: Vec<(u64, &DirEntry, HeaderCopies)> = Vec::new();
    for e in all {
        if let Some(id) = files::parse_segment(&e.name) {
            match read_header(vfs, &dir.join(&e.name), FileKind::Segment) {
                // A live server has released it meanwhile.
                Err(x) if x.kind() == io::ErrorKind::NotFound => {}
                x => found.push((id, e, x?.1)),
            }
        } else if e.name == files::RESERVE {
            l.reserve_bytes = e.len;
        } else if e.name.starts_with("spare-") {
            l.spares.add(e);
        }
    }
    for (i, (id, e, header)) in found.iter().enumerate() {
        let next = found.get(i + 1).and_then(|(_, _, h)| h.as_ref().ok()).map(|(h, _)| h);
        let line = segment(vfs, dir, &mut l.problems, (*id, e), header, next, i + 1 == found.len(), *id <= released)?;
        if let Ok((h, _)) = header {
            check_log(&mut log, h, e, &mut l.problems);
        }
        l.segments.push(line);
    }
    l.log_uuid = log.map(|l| l.to_string());
    for (name, sizes) in [(files::POOL, &mut l.pool), (files::SIDE, &mut l.side), (files::QUARANTINE, &mut l.quarantine)] {
        match vfs.list(&dir.join(name)) {
            // A copy need not have it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            x => x?.iter().filter(|e| !e.is_dir).for_each(|e| sizes.add(e)),
        }
    }
    l.side_segments = side_lines(vfs, dir, &state)?;
    for s in l.side_segments.iter().filter(|s| l.manifest.is_some() && matches!(s.state, "missing" | "stray")) {
        l.problems.push(match s.state {
            "missing" => format!("{}: expected the side segment of an output that waits, found no such file", s.file),
            _ => format!("{}: expected an entry of the manifest that names it, found none; look at it, then move it away", s.file),
        });
    }
    l.kept = kept_lines(vfs, dir)?;
    Ok(l)
}

fn check_log(log: &mut Option<LogId>, h: &FileHeader, e: &DirEntry, problems: &mut Vec<String>) {
    let expected = *log.get_or_insert(h.log);
    if expected != h.log {
        problems.push(format!("{}: expected log {expected}, found log {}; move the foreign file away", e.name, h.log));
    }
}

#[allow(clippy::too_many_arguments)]
fn segment(
    vfs: &dyn Vfs,
    dir: &Path,
    problems: &mut Vec<String>,
    (id, e): (u64, &DirEntry),
    header: &HeaderCopies,
    next: Option<&FileHeader>,
    newest: bool,
    released: bool,
) -> io::Result<SegmentLine> {
    let mut line = SegmentLine {
        id,
        file: e.name.clone(),
        length: e.len,
        first_seq: None,
        last_seq: None,
        end: None,
        label: "header_lost",
        salt: None,
    };
    match header {
        Ok((h, _)) => {
            line.first_seq = Some(h.first_sequence);
            line.salt = Some(format!("{:016x}", h.salt));
            line.label = "unsealed";
            if h.id != id {
                problems.push(format!("{}: expected segment {id} in its header, found {}; put it back under its name", e.name, h.id));
            }
        }
        Err([a, b]) => problems.push(format!("{}: expected a segment header, found {a}; second copy: {b}; run arc wal verify", e.name)),
    }
    if let Some(p) = next.and_then(|h| h.predecessor).filter(|p| p.id == id) {
        (line.last_seq, line.end) = (Some(p.last_sequence), Some(p.end));
        if line.first_seq.is_some() {
            line.label = "sealed";
        }
    }
    if released {
        line.label = "released";
    } else if let (true, Ok((h, _))) = (newest, header) {
        let f = vfs.open(&dir.join(&e.name), false)?;
        let mut bytes = FileBytes::default();
        read_file(&*f, &mut bytes)?;
        let known = Known { first_sequence: h.first_sequence, declared: None, floor: h.first_sequence - 1 };
        let v = scan_growing(&*f, &mut bytes, h.salt, known)?;
        (line.last_seq, line.end) = (Some(v.last_sequence), Some(v.end.max(FILE_HEADER_BYTES as u64)));
        line.label = "active";
    }
    Ok(line)
}
