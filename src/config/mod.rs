//! Configuration: `--set section.key=value`, then `ARC_SECTION_KEY`, then the file, then defaults.
//!
//! [`keys`] holds the one table of keys; [`Config::load`] walks it, so a name with underscores in the environment
//! is never split by guessing. Nothing here reads the process: the environment and the working directory are
//! arguments.

pub mod cloud;
pub mod keys;
pub mod value;
mod load;
mod paths;

pub use cloud::CloudVariables;
pub use keys::{
    AuthConfig, Backend, CompactionConfig, Compression, Config, CreateOnly, IngestConfig, KEYS, Key, LargeUnsigned, Layout, LogConfig,
    LogFormat, LogLevel, Nested, OnDamage, SECTIONS, ServerConfig, StorageConfig, SyncMode, Verify, WalConfig, WalIo, reference,
};
pub use load::{bare_host, is_loopback};
pub use value::{Secret, Word};

use std::fmt;
use std::path::PathBuf;

/// Exit code of a process whose configuration is refused (`EX_CONFIG`).
pub const EXIT_CONFIG: u8 = 78;

/// Where [`Config::load`] looks.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// `--config`: this file must exist.
    pub config_path: Option<PathBuf>,
    /// `--set section.key=value`, in order; the last one for a key wins.
    pub sets: Vec<String>,
    /// The environment: `ARC_` variables, and those that the client of the store reads.
    pub env: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    /// Directory from which `arc.toml` and a relative `config_path` count.
    pub cwd: PathBuf,
    /// Read when there is no `arc.toml` in `cwd`.
    pub system_file: PathBuf,
}

impl LoadOptions {
    /// No file asked for, nothing set, an empty environment.
    pub fn new(cwd: impl Into<PathBuf>) -> Self {
        Self { config_path: None, sets: Vec::new(), env: Vec::new(), cwd: cwd.into(), system_file: PathBuf::from("/etc/arc/arc.toml") }
    }
}

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Env(String),
    Set,
}

impl Origin {
    /// Like `Display`, with the line of a file.
    pub fn place(&self) -> String {
        match self {
            Self::File { path, line } => format!("file {} line {line}", path.display()),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, .. } => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// The origin of every key, and the file that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origins {
    /// The configuration file, if there is one.
    pub file: Option<PathBuf>,
    by_key: Vec<Origin>,
}

impl Origins {
    fn new() -> Self {
        Self { file: None, by_key: vec![Origin::Default; KEYS.len()] }
    }

    /// The origin of `section.key`; an unknown one has none.
    pub fn get(&self, path: &str) -> Option<&Origin> {
        keys::find(path).and_then(|i| self.by_key.get(i))
    }

    /// Every key with its origin, in the order of the reference.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Key, &Origin)> {
        KEYS.iter().zip(&self.by_key)
    }
}

/// Something odd that does not keep the server from starting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning(pub String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or cannot be read.
    #[error("configuration file {}: cannot be read: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("configuration file {} line {line} column {column}: not valid TOML: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, column: usize, message: String },
    /// A key that does not exist.
    #[error("unknown key {name} ({place}){}; `arc config reference` lists every key", suggest(suggestion.as_deref()))]
    UnknownKey { name: String, place: String, suggestion: Option<String> },
    /// A value that the key cannot take.
    #[error("{key} ({place}): expected {expected}, found {found}")]
    Value { key: String, place: String, expected: String, found: String },
    /// A `--set` without `=`.
    #[error("--set {text}: expected section.key=value")]
    BadSet { text: String },
    /// Two keys that do not go together.
    #[error("{0}")]
    Conflict(String),
    /// Anybody on the network could write.
    #[error(
        "{host}: this address is reachable from other machines and there is no authentication; set auth.enabled = true, or server.host to \
         127.0.0.1, or server.insecure = true if whatever reaches the port may write"
    )]
    OpenBind { host: String },
}

impl ConfigError {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        EXIT_CONFIG
    }
}

fn suggest(name: Option<&str>) -> String {
    name.map(|n| format!(", did you mean {n}?")).unwrap_or_default()
}
