//! Tokens: who may do what.
//!
//! A token is 256 random bits that are shown once. What is kept is its SHA-256, in a file that only its owner may read ([`file`]); a token
//! of so many bits needs no salt and no slow hash, so that a wrong one costs one SHA-256 and a look into a table ([`Tokens::check`]).
//!
//! * INVARIANT(no-secret-kept): the text of a token is in no file, no log line and no `Debug` output of this program. [`Secret`] has to be
//!   asked for it.
//! * INVARIANT(an-edit-is-durable): what an edit changed is on stable storage before it is reported, and in force in this process.
//! * INVARIANT(bad-file-keeps-tokens): a file that cannot be read again changes nothing.
//!
//! Edits of several processes are serialised by a lock on the file's directory, and each begins with what the file says then. A running
//! server takes over what others wrote when [`Tokens::refresh`] finds another file than before.

mod file;
mod store;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::batch::check_database_name;
use crate::clock::Clock;
use crate::compact::name::civil_from_days;

pub use store::{Denied, Tokens};

/// Longest text that is looked at as a token, in bytes.
pub const MAX_TOKEN: usize = 256;
/// Shortest token that may be preset; those made here have 68 bytes.
pub const MIN_PRESET: usize = 32;
/// Most tokens of one file.
pub const MAX_TOKENS: usize = 10_000;
/// Most databases that a token may be limited to.
const MAX_DATABASES: usize = 256;
const MAX_NAME: usize = 128;
const MAX_DESCRIPTION: usize = 1024;

/// What a token may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    Read,
    Write,
    /// Everything.
    Admin,
}

impl Permission {
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// The permission of that name.
    ///
    /// # Errors
    /// [`AuthError::Refused`], naming those that there are.
    pub fn parse(word: &str) -> Result<Self, AuthError> {
        Self::ALL
            .into_iter()
            .find(|p| p.word() == word)
            .ok_or_else(|| AuthError::Refused(format!("permission {word:?}: expected read, write or admin")))
    }
}

/// The text of a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    fn make(clock: &dyn Clock) -> Self {
        // The prefix lets scanners of source code and logs find tokens that have got lost.
        Self(format!("arc_{}", hex(&clock.random_secret())))
    }

    /// A text that somebody chose.
    ///
    /// # Errors
    /// [`AuthError::Refused`] unless it has 32 to 256 printable ASCII characters without spaces.
    pub fn preset(text: &str) -> Result<Self, AuthError> {
        if !(MIN_PRESET..=MAX_TOKEN).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_graphic()) {
            // Its length, never its text.
            return Err(AuthError::Refused(format!(
                "a preset token must have {MIN_PRESET} to {MAX_TOKEN} printable ASCII characters without spaces, found {} bytes; \
                 `openssl rand -hex 32` makes one",
                text.len()
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text itself, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Hash([u8; 32]);

impl Hash {
    fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        unhex(&text).map(Self).ok_or_else(|| serde::de::Error::custom("expected 64 hexadecimal digits"))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, b| {
        use fmt::Write as _;
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let mut out = [0; 32];
    if pairs.len() != out.len() || !rest.is_empty() {
        return None;
    }
    for (to, [high, low]) in out.iter_mut().zip(pairs) {
        let digit = |b: u8| char::from(b).to_digit(16);
        *to = u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?;
    }
    Some(out)
}

/// A token as the file has it. Times are microseconds since the Unix epoch.
///
/// Unknown fields are refused: one that a newer version wrote could be a limit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    pub id: u64,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    sha256: Hash,
    /// In order, each once, at least one.
    pub permissions: Vec<Permission>,
    /// `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub databases: Option<Vec<String>>,
    pub created_us: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_us: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_us: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_us: Option<i64>,
}

impl Token {
    /// Whether it has the permission; admin has all.
    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.iter().any(|p| *p == permission || *p == Permission::Admin)
    }

    /// Whether it may touch the database.
    pub fn may_touch(&self, database: &str) -> bool {
        self.databases.as_ref().is_none_or(|all| all.iter().any(|d| d == database))
    }

    /// Whether its time is up at `now_us`.
    pub fn expired(&self, now_us: i64) -> bool {
        self.expires_us.is_some_and(|at| now_us >= at)
    }

    /// Neither revoked nor expired.
    pub fn live(&self, now_us: i64) -> bool {
        self.revoked_us.is_none() && !self.expired(now_us)
    }

    /// One word for lists.
    pub fn state(&self, now_us: i64) -> &'static str {
        match () {
            () if self.revoked_us.is_some() => "revoked",
            () if self.expired(now_us) => "expired",
            () => "live",
        }
    }

    /// What anybody who manages tokens may see of it: all but the hash.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "id": self.id,
            "name": self.name,
            "description": self.description,
            "permissions": self.permissions,
            "databases": self.databases,
            "enabled": self.revoked_us.is_none(),
            "created_at": iso(self.created_us),
            "expires_at": self.expires_us.map(iso),
            "rotated_at": self.rotated_us.map(iso),
            "revoked_at": self.revoked_us.map(iso),
        })
    }
}

/// What a token is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewToken {
    /// 1 to 128 characters, no other token's.
    pub name: String,
    pub description: Option<String>,
    pub permissions: Vec<Permission>,
    /// `None` for all.
    pub databases: Option<Vec<String>>,
    /// Microseconds from now.
    pub lifetime_us: Option<i64>,
}

/// What is to change of a token; `None` stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    pub name: Option<String>,
    pub description: Option<String>,
    pub permissions: Option<Vec<Permission>>,
    /// Microseconds from now.
    pub lifetime_us: Option<i64>,
}

/// Why something could not be done with tokens.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("token file {}: {what}: {source}", path.display())]
    Io {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// Others may read the hashes, or write their own.
    #[error("token file: {} has mode {mode:04o}, expected {expected}; `chmod {chmod} {}` mends it", path.display(), path.display())]
    Exposed { path: PathBuf, mode: u32, expected: &'static str, chmod: &'static str },
    #[error("token file {}: expected {expected}, found {found}; restore it from a copy, or move it away to begin with no tokens", path.display())]
    Corrupt { path: PathBuf, expected: &'static str, found: String },
    #[error("token file {}: another process has been changing it for {seconds} s; try again", path.display())]
    Locked { path: PathBuf, seconds: u64 },
    /// The edit cannot be done as it is.
    #[error("{0}")]
    Refused(String),
    #[error("token {0} not found")]
    NoSuch(String),
}

/// A span such as `90s`, `15m`, `24h`, `30d`, `2w`, `1y` (365 days) or a bare number of seconds, in microseconds.
///
/// # Errors
/// [`AuthError::Refused`] for anything else, zero, and more than 100 years.
pub fn lifetime(text: &str) -> Result<i64, AuthError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let us = match unit {
        "ms" => 1_000,
        "" | "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        "w" => 7 * 86_400_000_000,
        "y" => 365 * 86_400_000_000,
        _ => 0,
    };
    let most = 100 * 365 * 86_400_000_000;
    number.parse::<i64>().ok().and_then(|n| n.checked_mul(us)).filter(|us| (1..=most).contains(us)).ok_or_else(|| {
        AuthError::Refused(format!(
            "lifetime {text:?}: expected a whole number and one of ms, s, m, h, d, w, y (or none, for seconds), above 0 and at most 100y"
        ))
    })
}

/// `2026-01-31T12:00:00.000000Z`
pub fn iso(us: i64) -> String {
    let (seconds, fraction) = (us.div_euclid(1_000_000), us.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:06}Z", second / 3600, second / 60 % 60, second % 60)
}

fn check_name(name: &str) -> Result<(), AuthError> {
    if name.trim().is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(AuthError::Refused(format!("the name of a token must have 1 to {MAX_NAME} characters and no control characters")));
    }
    Ok(())
}

fn check_description(text: &str) -> Result<(), AuthError> {
    if text.chars().count() > MAX_DESCRIPTION || text.chars().any(char::is_control) {
        return Err(AuthError::Refused(format!(
            "the description of a token may have {MAX_DESCRIPTION} characters at most and no control characters"
        )));
    }
    Ok(())
}

/// In order, each once.
fn check_permissions(all: &[Permission]) -> Result<Vec<Permission>, AuthError> {
    let mut all = all.to_vec();
    all.sort_unstable();
    all.dedup();
    if all.is_empty() {
        return Err(AuthError::Refused("a token needs one of the permissions read, write, admin at least".to_owned()));
    }
    Ok(all)
}

/// An admin can make tokens without a limit, so a limit of its own would be none.
fn check_databases(databases: Option<&[String]>, permissions: &[Permission]) -> Result<(), AuthError> {
    let Some(all) = databases else { return Ok(()) };
    if permissions.contains(&Permission::Admin) {
        return Err(AuthError::Refused("an admin token cannot be limited to databases: it can make tokens without a limit".to_owned()));
    }
    if all.is_empty() || all.len() > MAX_DATABASES {
        return Err(AuthError::Refused(format!("a token is limited to 1 to {MAX_DATABASES} databases, or to none by leaving them out")));
    }
    all.iter().try_for_each(|d| check_database_name(d).map_err(|e| AuthError::Refused(e.to_string())))
}
