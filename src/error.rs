//! What a request can be told, in one place: kind, HTTP status, and what the client should do.

use std::fmt;

/// Why a request got 503. The word is the `reason` of the error body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Reason {
    /// Nothing of the request was stored; send it again.
    NotStored,
    /// The request may be found after a restart; send it again with the same `Idempotency-Key`.
    UnknownOutcome,
    /// The log has reached `wal.max_size`.
    Backlog,
    /// No room on the disk that holds the log.
    DiskFull,
    /// A sync failed; the process must be restarted.
    Poisoned,
    /// The log is being recovered.
    Recovering,
    /// The process is stopping.
    Shutdown,
    /// `compaction.paused` is set and the request needs the compactor.
    Paused,
    /// Rows that the request waits for are in a file that cannot be read.
    Damaged,
}

impl Reason {
    pub fn word(self) -> &'static str {
        match self {
            Self::NotStored => "not_stored",
            Self::UnknownOutcome => "unknown_outcome",
            Self::Backlog => "backlog",
            Self::DiskFull => "disk_full",
            Self::Poisoned => "poisoned",
            Self::Recovering => "recovering",
            Self::Shutdown => "shutdown",
            Self::Paused => "paused",
            Self::Damaged => "damaged",
        }
    }

    /// Seconds a client should wait (`Retry-After`).
    ///
    /// Clients that follow it try three to five times and then drop the batch, so it is about as long as what it stands for usually
    /// lasts: a moment, a start, a compaction, an operator.
    pub fn retry_after(self) -> u32 {
        match self {
            Self::NotStored | Self::UnknownOutcome => 1,
            Self::Recovering | Self::Shutdown => 3,
            Self::Backlog => 10,
            Self::DiskFull => 15,
            Self::Poisoned | Self::Paused | Self::Damaged => 30,
        }
    }
}

/// The public outcome of a request that did not succeed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestError {
    /// 400: can never succeed as it is.
    Invalid(String),
    /// 413: over a size limit; split it.
    TooLarge(String),
    /// 422: the idempotency key was used with another body.
    KeyReused(String),
    /// 503 with `Retry-After`.
    Unavailable { reason: Reason, message: String },
    /// 500: a bug here.
    Internal(String),
}

impl RequestError {
    pub fn unavailable(reason: Reason, message: impl Into<String>) -> Self {
        Self::Unavailable { reason, message: message.into() }
    }

    pub fn status(&self) -> u16 {
        match self {
            Self::Invalid(_) => 400,
            Self::TooLarge(_) => 413,
            Self::KeyReused(_) => 422,
            Self::Unavailable { .. } => 503,
            Self::Internal(_) => 500,
        }
    }

    /// The `code` of the error body (interfaces: "Error codes").
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::TooLarge(_) => "request too large",
            Self::KeyReused(_) => "unprocessable entity",
            Self::Unavailable { .. } => "unavailable",
            Self::Internal(_) => "internal error",
        }
    }

    pub fn message(&self) -> &str {
        match self {
            Self::Invalid(m) | Self::TooLarge(m) | Self::KeyReused(m) | Self::Internal(m) => m,
            Self::Unavailable { message, .. } => message,
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for RequestError {}
