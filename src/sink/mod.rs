//! Where finished files go: objects that appear whole, once, and stay.
//!
//! An object is staged (written under no name a reader looks at), sealed (its bytes on stable storage), and published
//! (create-only, under its final name). Between sealing and publishing the manifest records what is about to appear.
//!
//! INVARIANT(published-is-whole): an object is visible under its final name only after all its bytes are durable, and
//! what was once published is never replaced.

pub mod local;
pub mod object;
pub mod retry;
pub mod sim;

use std::io::{self, Write};

use sha2::{Digest, Sha256};

pub use local::LocalSink;
pub use object::ObjectSink;
pub use retry::Backoff;
pub use sim::SimStore;

/// What is visible under a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectInfo {
    /// Bytes.
    pub len: u64,
    pub sha256: [u8; 32],
}

/// How publishing ended; either way the name is durable now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Published {
    Created,
    /// An object had the name before, and keeps it: compare it (see [`Sink::describe`]) before calling it a success.
    AlreadyThere,
}

/// How [`Sink::put_small`] ended; either way the object is durable now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PutSmall {
    Created,
    /// The same bytes, by length and hash, had the name before: of any length.
    Same,
    /// Other bytes had the name before, and keep it: at most [`MAX_SMALL`].
    Exists(Vec<u8>),
}

/// What [`Sink::sweep`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    pub removed: u64,
    /// False: the walk ended at its bound, leftovers may remain. They are invisible to readers and only take room.
    pub complete: bool,
}

/// Why a call failed, by what the caller should do.
#[derive(thiserror::Error, Debug)]
pub enum SinkError {
    /// No room (or quota) where the object goes: wait until there is.
    #[error("no space: {context}: {source}")]
    NoSpace { context: String, source: io::Error },
    /// May go away by itself: try again with [`Backoff`], from staging where staging or sealing failed.
    #[error("{context}: {source}")]
    Transient { context: String, source: io::Error },
    /// Will not go away by itself: permissions, a name that cannot exist, a file system that lacks what is needed.
    #[error("{context}: {source}")]
    Permanent { context: String, source: io::Error },
}

impl SinkError {
    /// Classifies by errno; `context` says what was being done to which object.
    pub fn from_io(context: impl Into<String>, source: io::Error) -> Self {
        let context = context.into();
        let errno = source.raw_os_error();
        let is = |set: &[i32]| errno.is_some_and(|e| set.contains(&e));
        if is(&[libc::ENOSPC, libc::EDQUOT, libc::EFBIG]) || source.kind() == io::ErrorKind::StorageFull {
            return Self::NoSpace { context, source };
        }
        let permanent = [
            libc::EACCES,
            libc::EPERM,
            libc::EROFS,
            libc::ENAMETOOLONG,
            libc::ENOTDIR,
            libc::EEXIST,
            libc::EISDIR,
            libc::ELOOP,
            libc::EINVAL,
            libc::ENOSYS,
            libc::EOPNOTSUPP,
            libc::EXDEV,
        ];
        let refused = matches!(source.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Unsupported);
        if is(&permanent) || (errno.is_none() && refused) {
            return Self::Permanent { context, source };
        }
        Self::Transient { context, source }
    }
}

pub type SinkResult<T> = Result<T, SinkError>;

/// An object in the making. Dropping it without publishing discards it.
pub trait Staged: Write + Send {
    /// Puts all bytes on stable storage; nothing may be written afterwards. Nothing is visible yet.
    ///
    /// # Errors
    /// [`SinkError`]. After a failed sync nothing is known of the bytes: discard the object and stage it anew; a second
    /// call fails too.
    fn seal(&mut self) -> SinkResult<()>;

    /// Gives the object its name unless that is taken, durably.
    ///
    /// # Errors
    /// [`SinkError`], also when [`Self::seal`] has not succeeded. The object may be visible nevertheless: ask
    /// [`Sink::describe`], then [`Sink::confirm`].
    fn publish(self: Box<Self>) -> SinkResult<Published>;
}

/// A store of objects. Names are relative, with `/` between parts; see [`check_name`].
pub trait Sink: Send + Sync {
    /// Begins the object `name`.
    ///
    /// # Errors
    /// [`SinkError`].
    fn stage(&self, name: &str) -> SinkResult<Box<dyn Staged>>;

    /// Length and hash of the object `name`, by reading it; None when there is none.
    ///
    /// # Errors
    /// [`SinkError`].
    fn describe(&self, name: &str) -> SinkResult<Option<ObjectInfo>>;

    /// Whether there is any object below this directory of the lake.
    ///
    /// # Errors
    /// [`SinkError`].
    fn holds_any(&self, directory: &str) -> SinkResult<bool>;

    /// Makes an object that is visible durable, name included: for one that an earlier run published, whose end is not known.
    ///
    /// # Errors
    /// [`SinkError`], also when there is no such object.
    fn confirm(&self, name: &str) -> SinkResult<()>;

    /// Stages, seals and publishes a few bytes; says what is there when the name is taken.
    ///
    /// # Errors
    /// [`SinkError`], [`SinkError::Permanent`] also when the object there is another one and larger than [`MAX_SMALL`].
    fn put_small(&self, name: &str, bytes: &[u8]) -> SinkResult<PutSmall>;

    /// The filesystem that objects take room on, if it is one of this machine: a number as [`crate::vfs::Vfs::device`] gives.
    fn device(&self) -> Option<u64>;

    /// Removes what earlier runs of this log staged and never published, and nothing else.
    ///
    /// # Errors
    /// [`SinkError`]; leftovers do no harm, so a caller may go on.
    fn sweep(&self) -> SinkResult<Swept>;

    /// A store that may be away when the server starts: what a start asks of it is asked later, by whoever ships.
    fn is_remote(&self) -> bool {
        false
    }

    /// Called once, before anything is put, until it succeeds: tells a store that cannot be used safely, and sweeps.
    ///
    /// # Errors
    /// [`SinkError::Permanent`]: this store must not be used. Others: not now.
    fn prepare(&self) -> SinkResult<()> {
        Ok(())
    }

    /// Whether the store as a whole answers: asked after something failed, to tell an output that waits from a store that is away.
    ///
    /// # Errors
    /// [`SinkError`]: nothing can be stored at the moment.
    fn ready(&self) -> SinkResult<()> {
        Ok(())
    }

    /// Whether what was published is where readers look for it. Costs no request, and is asked before anything is recorded as committed.
    ///
    /// # Errors
    /// [`SinkError::Transient`]: the lake is away.
    fn in_place(&self) -> SinkResult<()> {
        Ok(())
    }

    /// At most `most` names directly below `dir`, directories and objects, sorted. A store that cannot list gives none.
    ///
    /// # Errors
    /// [`SinkError`].
    fn children(&self, dir: &str, most: usize) -> SinkResult<Vec<String>> {
        let _ = (dir, most);
        Ok(Vec::new())
    }

    /// An object of at most [`MAX_SMALL`] bytes; None when there is none.
    ///
    /// # Errors
    /// [`SinkError`].
    fn get_small(&self, name: &str) -> SinkResult<Option<Vec<u8>>> {
        let _ = name;
        Ok(None)
    }

    /// Objects that are best published at one time.
    fn parallel(&self) -> usize {
        1
    }
}

/// Most bytes of another object that [`Sink::put_small`] gives back.
pub const MAX_SMALL: u64 = 16 << 20;

/// Compares what has the name of a small object with what was to get it, as it is read.
struct Compare<'a> {
    expected: &'a [u8],
    hash: Sha256,
    len: u64,
    /// What was read, as far as anybody may ask for it.
    read: Vec<u8>,
}

impl<'a> Compare<'a> {
    fn new(expected: &'a [u8]) -> Self {
        Self { expected, hash: Sha256::new(), len: 0, read: Vec::new() }
    }

    /// Whether an object of `len` bytes is worth reading: if not, why.
    fn length(&self, len: u64) -> Result<(), String> {
        let expected = self.expected.len() as u64;
        if len == expected || len <= MAX_SMALL {
            return Ok(());
        }
        Err(format!(
            "another object has the name: expected {expected} bytes, found {len}, which is larger than a small object; move it away"
        ))
    }

    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        if self.len <= MAX_SMALL {
            self.read.extend_from_slice(bytes);
        }
    }

    fn end(self) -> Result<PutSmall, String> {
        self.length(self.len)?;
        if self.len == self.expected.len() as u64 && self.hash.finalize() == Sha256::digest(self.expected) {
            return Ok(PutSmall::Same);
        }
        if self.len > MAX_SMALL {
            return Err(format!("another object of the same {} bytes has the name; move it away", self.len));
        }
        Ok(PutSmall::Exists(self.read))
    }
}

/// An object's name is relative, no part is empty, `.` or `..`, none begins with `.` (those are temporary), has a NUL
/// or more than 255 bytes.
///
/// # Errors
/// [`SinkError::Permanent`] with the name.
pub fn check_name(name: &str) -> SinkResult<()> {
    let part_ok = |p: &str| !p.is_empty() && !p.starts_with('.') && p.len() <= 255 && !p.contains('\0');
    if name.split('/').all(part_ok) {
        return Ok(());
    }
    let source = io::Error::new(io::ErrorKind::InvalidInput, "not a relative name of visible parts");
    Err(SinkError::Permanent { context: format!("object name {name:?}"), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_lake_are_refused() {
        for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/.b", "a\0b", &"x".repeat(256)] {
            assert!(matches!(check_name(bad), Err(SinkError::Permanent { .. })), "{bad:?}");
        }
        for good in ["a", "db/a%2Fb/date=2026-01-01/hour=00/x.parquet", "_arc/1/plan-1"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn errors_by_number() {
        let of = |n: i32| SinkError::from_io("x", io::Error::from_raw_os_error(n));
        assert!(matches!(of(libc::ENOSPC), SinkError::NoSpace { .. }));
        assert!(matches!(of(libc::EDQUOT), SinkError::NoSpace { .. }));
        assert!(matches!(of(libc::EIO), SinkError::Transient { .. }));
        assert!(matches!(of(libc::ESTALE), SinkError::Transient { .. }));
        assert!(matches!(of(libc::EROFS), SinkError::Permanent { .. }));
        assert!(matches!(of(libc::EACCES), SinkError::Permanent { .. }));
    }
}
