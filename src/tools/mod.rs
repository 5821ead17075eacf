//! Looking at a log that a server may be running on, or at a copy of one: read-only, without the lock, with the server's own
//! scanner. No file is made or changed.
//!
//! INVARIANT(tools-change-nothing): every file is opened for reading only, and nothing here renames, removes or syncs.

pub mod dump;
pub mod lake;
pub mod list;
pub mod quarantine;
pub mod rows;
pub mod side;
pub mod verify;

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::vfs::{DirEntry, Vfs};
use crate::wal::files;

/// How often a directory that changes meanwhile is looked at.
const MOST_LOOKS: u32 = 8;

/// Why a tool could not do its work at all.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// There is no log at this place.
    #[error("{0}")]
    NotALog(String),
    /// The log, or the lake, cannot be read.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// The data cannot be handed over.
    #[error("writing the output: {0}")]
    Output(io::Error),
}

impl ToolError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Entries of a log's directory.
///
/// # Errors
/// [`ToolError::NotALog`] when there is no directory, or nothing of a log in it.
pub fn entries(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<DirEntry>, ToolError> {
    let shown = dir.display();
    match vfs.list(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Err(ToolError::NotALog(format!(
            "{shown}: expected the directory of a log, found {}; give the directory as an argument, or set wal.directory",
            if e.kind() == io::ErrorKind::NotFound { "nothing" } else { "something that is not a directory" }
        ))),
        Err(e) => Err(ToolError::io(shown.to_string())(e)),
        Ok(l) if l.iter().any(|e| files::parse_segment(&e.name).or(files::parse_manifest(&e.name)).is_some()) => Ok(l),
        Ok(_) => Err(ToolError::NotALog(format!(
            "{shown}: expected segments (seg-*.wal) or a manifest, found neither; give the directory of a log, or set wal.directory"
        ))),
    }
}

/// Gives a live server time to finish what a look has met half done.
fn pause(look: u32) {
    std::thread::sleep(Duration::from_millis(20 << look.min(4)));
}

/// The first eight digits of a salt: enough to tell generations of a file apart.
pub fn short_salt(salt: u64) -> String {
    format!("{:08x}", salt >> 32)
}

#[cfg(test)]
mod outside_tests;
#[cfg(test)]
mod tests;
