//! `arc wal verify --lake`: the files of the lake against the commits of the manifest.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::ToolError;
use crate::types::{LogId, Sequence};
use crate::vfs::{Vfs, read_full};
use crate::wal::manifest::{ManifestState, OutputFile};

/// A committed file whose bytes are not those of its commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WrongFile {
    pub name: String,
    /// Length and SHA-256, as recorded.
    pub expected: (u64, String),
    pub found: (u64, String),
}

/// What a lake holds of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LakeReport {
    /// Committed files looked at.
    pub checked: u64,
    pub missing: Vec<String>,
    pub wrong: Vec<WrongFile>,
    /// Files with this log's uuid in their name that no commit names and that are not [`Self::pending`] either.
    pub unnamed: Vec<String>,
    /// Files that are what the manifest intended and has not committed yet: the server does when it goes on. No problem.
    pub pending: Vec<String>,
}

impl LakeReport {
    /// Whether the lake holds what the manifest says.
    pub fn clean(&self) -> bool {
        self.missing.is_empty() && self.wrong.is_empty() && self.unnamed.is_empty()
    }
}

/// Checks the lake at `root` against `state`; `reload` gives the manifest's state after the walk, because a live server may have
/// published files meanwhile.
///
/// Manifests forget the commits of old plans: a file whose sequences no known plan covers, although newer ones do exist, is not judged.
///
/// # Errors
/// When the lake cannot be read.
pub fn check(
    vfs: &dyn Vfs,
    root: &Path,
    log: LogId,
    state: &ManifestState,
    reload: &mut dyn FnMut() -> Result<ManifestState, ToolError>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<LakeReport, ToolError> {
    let mut r = LakeReport::default();
    let prefix = format!("{log}-");
    let mut ours = Vec::new();
    walk(vfs, root, &prefix, &mut ours)?;
    let later = reload()?;
    let commits: Vec<_> = state
        .plans
        .values()
        .flat_map(|p| p.commits.iter().filter_map(|(n, f)| Some((p.plan.outputs.get(*n as usize)?, f))))
        .filter(|(_, f)| f.length > 0)
        .collect();
    let total: u64 = commits.iter().map(|(_, f)| f.length).sum();
    let mut done = 0;
    for (o, f) in commits {
        progress(done, total);
        r.checked += 1;
        match describe(vfs, &root.join(&o.name)) {
            Ok((length, sha256)) if length == f.length && sha256 == f.sha256 => {}
            Ok(found) => r.wrong.push(WrongFile { name: o.name.clone(), expected: (f.length, f.sha256.clone()), found }),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => r.missing.push(o.name.clone()),
            Err(e) => return Err(ToolError::io(root.join(&o.name).display().to_string())(e)),
        }
        done += f.length;
    }
    progress(done, total);
    let plans = || state.plans.values().chain(later.plans.values());
    let mut named: BTreeMap<&str, Named<'_>> = BTreeMap::new();
    for p in plans() {
        for (n, o) in (0u32..).zip(&p.plan.outputs) {
            let name = named.entry(o.name.as_str()).or_default();
            // One that was set aside whole has no file.
            name.committed |= p.commits.get(&n).is_some_and(|f| f.length > 0);
            name.intents.extend(p.intents.get(&n).into_iter().flatten());
        }
    }
    for w in state.waiting.values().chain(later.waiting.values()) {
        named.entry(w.output.file.name.as_str()).or_default().intents.extend(&w.output.intents);
    }
    let newest = plans().map(|p| p.plan.last_sequence).max().unwrap_or(0).max(state.shipped);
    for name in ours {
        let Some(n) = named.get(name.as_str()) else {
            // A sequence that no plan covers any more: its plan is forgotten, and its commits with it.
            let forgotten = |l: Sequence| l <= newest && !plans().any(|p| (p.plan.first_sequence..=p.plan.last_sequence).contains(&l));
            if !last_sequence(&name, &prefix).is_some_and(forgotten) {
                r.unnamed.push(name);
            }
            continue;
        };
        if n.committed {
            continue;
        }
        match describe(vfs, &root.join(&name)) {
            Ok((len, sha)) if n.intents.iter().any(|f| f.length == len && f.sha256 == sha) => r.pending.push(name),
            Ok(_) => r.unnamed.push(name),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(ToolError::io(root.join(&name).display().to_string())(e)),
        }
    }
    Ok(r)
}

/// What the manifest knows of an output.
#[derive(Default)]
struct Named<'a> {
    committed: bool,
    intents: Vec<&'a OutputFile>,
}

/// The second sequence in a file's name.
fn last_sequence(name: &str, prefix: &str) -> Option<Sequence> {
    let file = name.rsplit('/').next()?;
    file.strip_prefix(prefix)?.split('-').nth(1)?.parse().ok()
}

/// Parquet files below `root` whose name begins with `prefix`, relative, sorted. Names that begin with `.` are temporary, those
/// of the root that begin with `_` are not data.
fn walk(vfs: &dyn Vfs, root: &Path, prefix: &str, out: &mut Vec<String>) -> Result<(), ToolError> {
    let mut todo: Vec<(PathBuf, String)> = vec![(root.to_path_buf(), String::new())];
    while let Some((dir, name)) = todo.pop() {
        let entries = match vfs.list(&dir) {
            // Somebody tidies up meanwhile; the root itself must be there.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !name.is_empty() => continue,
            x => x.map_err(ToolError::io(format!("lake {}", dir.display())))?,
        };
        for e in entries {
            if e.name.starts_with('.') || (name.is_empty() && e.name.starts_with('_')) {
                continue;
            }
            let full = if name.is_empty() { e.name.clone() } else { format!("{name}/{}", e.name) };
            if e.is_dir {
                todo.push((dir.join(&e.name), full));
            } else if e.name.starts_with(prefix) && e.name.ends_with(".parquet") {
                out.push(full);
            }
        }
    }
    out.sort_unstable();
    Ok(())
}

/// Length and SHA-256 of a file.
fn describe(vfs: &dyn Vfs, path: &Path) -> io::Result<(u64, String)> {
    use std::fmt::Write as _;
    let f = vfs.open(path, false)?;
    let mut hash = Sha256::new();
    let mut buf = vec![0u8; 1 << 20];
    let mut len = 0u64;
    loop {
        let n = read_full(&*f, &mut buf, len)?;
        hash.update(buf.get(..n).unwrap_or_default());
        len += n as u64;
        if n < buf.len() {
            break;
        }
    }
    let mut hex = String::with_capacity(64);
    for b in hash.finalize() {
        let _ = write!(hex, "{b:02x}");
    }
    Ok((len, hex))
}
