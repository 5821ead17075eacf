//! The file of tokens: who may read it, how it is replaced, and what it says.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{AuthError, MAX_TOKENS, Token, check_databases, check_description, check_name, check_permissions};
use crate::vfs::{OsVfs, Vfs as _};

/// The layout of the file.
const FORMAT: u32 = 1;
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    format: u32,
    /// Ids are never given twice, also not those of deleted tokens.
    pub(super) next_id: u64,
    pub(super) tokens: Vec<Token>,
}

impl Default for Contents {
    fn default() -> Self {
        Self { format: FORMAT, next_id: 1, tokens: Vec::new() }
    }
}

impl Contents {
    /// What holds for every file that is used, also for one that a person has edited.
    fn check(&self) -> Result<(), String> {
        if self.tokens.len() > MAX_TOKENS {
            return Err(format!("{} tokens, more than {MAX_TOKENS}", self.tokens.len()));
        }
        let (mut ids, mut names, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        for t in &self.tokens {
            let ok = check_name(&t.name)
                .and_then(|()| t.description.as_deref().map_or(Ok(()), check_description))
                .and_then(|()| check_databases(t.databases.as_deref(), &t.permissions))
                .and_then(|()| check_permissions(&t.permissions));
            match ok {
                Err(e) => return Err(format!("token {}: {e}", t.id)),
                Ok(sorted) if sorted != t.permissions => return Err(format!("token {}: permissions out of order or twice", t.id)),
                Ok(_) => {}
            }
            if t.id == 0 || t.id >= self.next_id {
                return Err(format!("token id {} with next_id {}", t.id, self.next_id));
            }
            ids.push(t.id);
            names.push(t.name.as_str());
            hashes.push(t.sha256.0);
        }
        fn twice<T: Ord>(mut all: Vec<T>) -> bool {
            all.sort_unstable();
            all.windows(2).any(|w| w[0] == w[1])
        }
        if twice(ids) || twice(names) || twice(hashes) {
            return Err("an id, a name or a hash that two tokens have".to_owned());
        }
        Ok(())
    }
}

/// Tells one state of the file from another. None if there is no file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Stamp(Option<(u64, u64, u64, i64, i64, u32)>);

impl Stamp {
    fn of(m: &std::fs::Metadata) -> Self {
        let ns = |s: i64, ns: i64| s.wrapping_mul(1_000_000_000).wrapping_add(ns);
        Self(Some((m.dev(), m.ino(), m.len(), ns(m.mtime(), m.mtime_nsec()), ns(m.ctime(), m.ctime_nsec()), m.mode())))
    }

    /// Of the file as it is now.
    ///
    /// # Errors
    /// [`AuthError::Io`]; no file is none.
    pub(super) fn now(path: &Path) -> Result<Self, AuthError> {
        match std::fs::metadata(path) {
            Ok(m) => Ok(Self::of(&m)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self(None)),
            Err(e) => Err(io_error(path, "cannot be looked at", e)),
        }
    }

    pub(super) fn is_missing(self) -> bool {
        self.0.is_none()
    }
}

fn io_error(path: &Path, what: &'static str, source: io::Error) -> AuthError {
    AuthError::Io { path: path.to_path_buf(), what, source }
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if p != Path::new("") => p.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Reads the file; `None` if there is none.
///
/// # Errors
/// [`AuthError::Io`], [`AuthError::Exposed`] if others than its owner have any right to it, [`AuthError::Corrupt`].
pub(super) fn read(path: &Path) -> Result<Option<(Contents, Stamp)>, AuthError> {
    // Opened without waiting: a pipe would.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(path, "cannot be opened", e)),
    };
    let meta = file.metadata().map_err(|e| io_error(path, "cannot be looked at", e))?;
    let corrupt = |expected: &'static str, found: String| AuthError::Corrupt { path: path.to_path_buf(), expected, found };
    if !meta.is_file() {
        return Err(corrupt("a file", "a directory, a pipe or a device".to_owned()));
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(AuthError::Exposed { path: path.to_path_buf(), mode, expected: "0600: others may read it", chmod: "600" });
    }
    if meta.len() > MAX_FILE {
        return Err(corrupt("at most 64 MiB", format!("{} bytes", meta.len())));
    }
    let mut bytes = Vec::new();
    (&file).take(MAX_FILE).read_to_end(&mut bytes).map_err(|e| io_error(path, "cannot be read", e))?;
    // These texts quote what stands there, and somebody may have put a secret there.
    let quotes =
        |text: &str| ["invalid type", "invalid value", "invalid length", "unknown variant"].iter().any(|start| text.starts_with(start));
    let place = |e: serde_json::Error| {
        let text = e.to_string();
        if quotes(&text) { format!("another kind of value at line {} column {}", e.line(), e.column()) } else { text }
    };
    let contents: Contents = serde_json::from_slice(&bytes).map_err(|e| corrupt("tokens in JSON", place(e)))?;
    if contents.format != FORMAT {
        return Err(corrupt("format 1", format!("format {}", contents.format)));
    }
    contents.check().map_err(|found| corrupt("sound tokens", found))?;
    Ok(Some((contents, Stamp::of(&meta))))
}

/// Keeps other edits of the file out, those of other processes too, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _directory: File,
}

/// Takes the lock; makes the directory (mode 0700) if there is none.
///
/// # Errors
/// [`AuthError::Locked`] after five seconds, [`AuthError::Exposed`] if others may write in the directory, [`AuthError::Io`].
pub(super) fn lock(path: &Path) -> Result<Lock, AuthError> {
    let dir = directory(path);
    OsVfs.create_dir_all(&dir).map_err(|e| io_error(path, "its directory cannot be created", e))?;
    let open = File::open(&dir).map_err(|e| io_error(path, "its directory cannot be opened", e))?;
    let mode = open.metadata().map_err(|e| io_error(path, "its directory cannot be looked at", e))?.mode() & 0o7777;
    // With the sticky bit others can put files there, but not replace ours.
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return Err(AuthError::Exposed { path: dir, mode, expected: "0700: others may replace the file", chmod: "go-w" });
    }
    let mut waited = Duration::ZERO;
    loop {
        match flock(&open, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock { _directory: open }),
            Err(rustix::io::Errno::WOULDBLOCK) if waited < LOCK_WAIT => {
                std::thread::sleep(LOCK_PAUSE);
                waited += LOCK_PAUSE;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(AuthError::Locked { path: path.to_path_buf(), seconds: LOCK_WAIT.as_secs() });
            }
            Err(e) => return Err(io_error(path, "its directory cannot be locked", e.into())),
        }
    }
}

/// Replaces the file durably: whoever reads it sees the old or the new one whole, and it is never open to others.
///
/// # Errors
/// [`AuthError::Refused`] for more than can be read again; [`AuthError::Io`]. The old file stands then, or (if only the sync of the directory
/// failed) the new one.
pub(super) fn write(path: &Path, contents: &Contents, _lock: &Lock) -> Result<Stamp, AuthError> {
    let dir = directory(path);
    let Some(name) = path.file_name() else {
        return Err(AuthError::Refused(format!("auth.token_file {}: expected the path of a file", path.display())));
    };
    let mut temporary = name.to_os_string();
    temporary.push(".tmp");
    let temporary = dir.join(temporary);
    let result = replace(path, &dir, &temporary, contents);
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

fn replace(path: &Path, dir: &Path, temporary: &Path, contents: &Contents) -> Result<Stamp, AuthError> {
    let text = serde_json::to_vec_pretty(contents).map_err(|e| io_error(path, "cannot be encoded", e.into()))?;
    if text.len() as u64 >= MAX_FILE {
        let (path, found) = (path.display(), text.len());
        return Err(AuthError::Refused(format!(
            "auth.token_file {path}: expected at most {MAX_FILE} bytes, it would have {found}; delete tokens, or limit them to fewer databases"
        )));
    }
    // Under the lock, what has this name is left of an edit that did not end.
    match std::fs::remove_file(temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error(path, "its temporary file cannot be removed", e)),
        _ => {}
    }
    let create = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary);
    let mut file = create.map_err(|e| io_error(path, "its temporary file cannot be created", e))?;
    let written = (|| {
        // The mask of the process may have taken rights of the owner.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        keep_owner(&file, path, dir)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        file.sync_all()
    })();
    written.map_err(|e| io_error(path, "its temporary file cannot be written", e))?;
    std::fs::rename(temporary, path).map_err(|e| io_error(path, "cannot be replaced", e))?;
    OsVfs.sync_dir(dir).map_err(|e| {
        io_error(
            path,
            "its directory cannot be synced, so the change may hold or not (`arc token list` tells; after a rotation, rotate again)",
            e,
        )
    })?;
    // By the open file: what has the name may be another's by now.
    let meta = file.metadata().map_err(|e| io_error(path, "cannot be looked at", e))?;
    Ok(Stamp::of(&meta))
}

/// A file that root replaces still belongs to the server's user, who could not read it otherwise.
fn keep_owner(file: &File, path: &Path, dir: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let like = std::fs::metadata(path).or_else(|_| std::fs::metadata(dir))?;
    fchown(file, Some(like.uid()), Some(like.gid()))
}
