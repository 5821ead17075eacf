//! A directory tree that other programs share: the lake on a local disk.

use std::fmt::{self, Debug};
use std::io;
use std::sync::Arc;

use super::{DirEntry, File};

/// A directory that is held open, and what is below it.
///
/// Names are relative to the directory, with `/` between parts; the empty name is the directory itself. Every call starts at the open
/// directory: what the path leads to later (an empty mount point, the target of a link that was switched) is never written to.
pub trait Root: Send + Sync + Debug {
    /// Compares the directory that the path leads to now with the one that is held.
    ///
    /// # Errors
    /// The path leads nowhere, to another directory, or cannot be followed.
    fn check(&self) -> io::Result<()>;
    /// The number of its filesystem, as [`super::Vfs::device`] gives it.
    fn device(&self) -> io::Result<u64>;
    /// At most `most` entries of a directory, sorted by name, and whether these are all. Lengths are 0; a link is neither file nor directory.
    fn list(&self, dir: &str, most: usize) -> io::Result<(Vec<DirEntry>, bool)>;
    /// Makes `dir` and the directories above it that are missing, mode 0755. None is synced.
    fn create_dirs(&self, dir: &str) -> io::Result<()>;
    /// Creates a file that must not exist, mode 0644.
    fn create_new(&self, dir: &str, name: &str) -> io::Result<Arc<dyn File>>;
    /// Opens a regular file for reading.
    fn open(&self, dir: &str, name: &str) -> io::Result<Arc<dyn File>>;
    /// Renames within `dir`. False: `to` is there, and stays; so does `from`.
    fn rename_new(&self, dir: &str, from: &str, to: &str) -> io::Result<bool>;
    fn remove(&self, dir: &str, name: &str) -> io::Result<()>;
    /// Opens a directory, to sync it: what fails here is no failed sync.
    fn open_dir(&self, dir: &str) -> io::Result<Box<dyn Dir>>;
}

/// An open directory.
pub trait Dir: Send + Debug {
    /// Makes creations, renames and removals in it durable.
    fn sync(&self) -> io::Result<()>;
}

/// Which directory it is. Numbers of a directory that is held open are not given to another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    pub device: (u32, u32),
    pub inode: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}:{}, inode {}", self.device.0, self.device.1, self.inode)
    }
}

/// Splits a name into its directory and its last part.
pub fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

/// The error of a path that leads to `found` and no longer to the directory that is held.
pub fn replaced(held: Identity, found: Identity) -> io::Error {
    io::Error::other(format!(
        "the path leads to another directory: expected {held}, found {found}; it was unmounted, mounted over or a link was switched: put it \
         back, or restart the server if the lake was moved"
    ))
}
