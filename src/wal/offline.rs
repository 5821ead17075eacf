//! What a person decides about a stopped log: rows that are given up, damage that has been seen to.
//!
//! Each decision is a new manifest, written as at a start. Files are renamed before it, or removed behind it, so that a command that was cut
//! short can be repeated.

use std::path::Path;
use std::sync::Arc;

use super::files;
use super::manifest::{Manifest, ManifestState, load};
use super::recover::OpenError;
use crate::clock::SharedClock;
use crate::format::file_header::DeclaredEnd;
use crate::format::manifest::Entry;
use crate::types::Sequence;
use crate::vfs::Vfs;

/// An output whose rows were given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    pub table: String,
    pub rows: u64,
    pub first_sequence: Sequence,
    pub last_sequence: Sequence,
    /// What is left of its side segment, below the side directory.
    pub kept: Option<String>,
}

/// What an acknowledgement of damage has removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    pub entries: usize,
    pub files: Vec<String>,
    /// Damaged segments that are still in the log.
    pub left: Vec<u64>,
}

fn io_at(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> OpenError {
    let what = what.into();
    move |source| OpenError::Io { what, source }
}

/// Locks the log in `dir`, changes the state of its manifest and writes it anew.
fn edit<T>(
    vfs: &Arc<dyn Vfs>,
    clock: &SharedClock,
    dir: &Path,
    change: impl FnOnce(&mut ManifestState) -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    let lock = dir.join(files::LOCK);
    let _held = vfs.lock(&lock).map_err(io_at(lock.display().to_string()))?.ok_or_else(|| OpenError::Locked(lock.clone()))?;
    let shown = dir.display();
    let loaded = load(&**vfs, dir).map_err(|e| OpenError::Refused(e.to_string()))?;
    let m = loaded.ok_or_else(|| OpenError::Refused(format!("{shown}: expected a manifest, found none")))?;
    let mut state = m.state;
    let out = change(&mut state)?;
    let previous = DeclaredEnd { id: m.header.id, salt: m.header.salt, end: m.end, last_sequence: m.last_sequence };
    let mut old = m.stale;
    old.push(m.path);
    Manifest::create(Arc::clone(vfs), clock.clone(), dir, m.header.log, state, Some((previous, old)))
        .map_err(io_at(format!("{shown}: writing a new manifest")))?;
    Ok(out)
}

/// Gives up the rows of the output whose side segment has this name: it counts as settled, its rows as lost. What there is of the file is
/// kept.
///
/// # Errors
/// [`OpenError`]; `Refused` when no such output waits. Nothing has been changed then.
pub fn give_up(vfs: &Arc<dyn Vfs>, clock: &SharedClock, dir: &Path, name: &str) -> Result<GivenUp, OpenError> {
    let name = name.strip_prefix("side/").unwrap_or(name);
    edit(vfs, clock, dir, |state| {
        let key = files::parse_deferred(name).filter(|k| state.deferred.contains_key(k));
        let known = key.and_then(|(plan, n)| {
            let (file, schema) = state.deferred_file(plan, n)?;
            Some((plan, n, schema.table.clone(), file.clone()))
        });
        let Some((plan, output, table, o)) = known else {
            return Err(OpenError::Refused(format!(
                "{}: expected the name of a side segment that waits, found {name:?}; see \"arc wal list\"",
                dir.display()
            )));
        };
        let bytes = state.deferred.get(&(plan, output)).copied().unwrap_or(0);
        let side = dir.join(files::SIDE);
        let kept = format!("given-up-{name}");
        let there = vfs.list(&side).map_err(io_at(side.display().to_string()))?.iter().any(|e| e.name == name);
        if there {
            vfs.rename(&side.join(name), &side.join(&kept)).map_err(io_at(name))?;
            vfs.sync_dir(&side).map_err(io_at(side.display().to_string()))?;
        }
        let entries = [
            Entry::Damage {
                segment: 0,
                from: 0,
                to: bytes,
                label: format!("given_up {name}"),
                first_missing: o.first_sequence,
                last_missing: o.last_sequence,
            },
            Entry::Commit { plan, output, length: 0, sha256: String::new(), rows: 0, set_aside: Vec::new() },
        ];
        for e in entries {
            state.apply(e).map_err(OpenError::Refused)?;
        }
        let kept = there.then_some(kept);
        Ok(GivenUp { table, rows: o.rows, first_sequence: o.first_sequence, last_sequence: o.last_sequence, kept })
    })
}

/// Acknowledges damage of `segment`, or all: the manifest forgets it, and its evidence is removed. Damage of segments that are still in the
/// log stays: the next start would find it again.
///
/// # Errors
/// [`OpenError`]
pub fn acknowledge(vfs: &Arc<dyn Vfs>, clock: &SharedClock, dir: &Path, segment: Option<u64>) -> Result<Acknowledged, OpenError> {
    let mut done = edit(vfs, clock, dir, |state| {
        let mut done = Acknowledged::default();
        let released = state.released_segment;
        state.damage.retain(|d| {
            let Entry::Damage { segment: of, .. } = d else { return true };
            if segment.is_some_and(|s| s != *of) {
                return true;
            }
            if *of > released {
                done.left.push(*of);
                return true;
            }
            done.entries += 1;
            false
        });
        Ok(done)
    })?;
    done.left.dedup();
    let side = dir.join(files::SIDE);
    for e in vfs.list(&side).map_err(io_at(side.display().to_string()))? {
        let of = files::parse_evidence(&e.name).map(|(id, _)| id).or_else(|| e.name.starts_with("given-up-").then_some(0));
        if of.is_some_and(|id| segment.is_none_or(|s| s == id)) {
            vfs.remove(&side.join(&e.name)).map_err(io_at(e.name.clone()))?;
            done.files.push(e.name);
        }
    }
    vfs.sync_dir(&side).map_err(io_at(side.display().to_string()))?;
    Ok(done)
}
