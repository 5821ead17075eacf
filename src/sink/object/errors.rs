//! What a call of the store came to: told by the status and the code of the answer, never by the text of an error.

use std::cell::RefCell;
use std::future::Future;
use std::io;

use object_store::client::HttpErrorKind;

use super::super::SinkError;
use crate::metrics::StoreOutcome;

/// What the last HTTP exchange of a call showed.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) status: Option<u16>,
    /// The store's own code, such as `SlowDown`.
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) network: Option<HttpErrorKind>,
    /// The answer has no body that could show whose it is.
    pub(super) head: bool,
    /// Method and host of the request.
    pub(super) asked: Option<String>,
    /// Credentials were asked for, and not had: the store has not heard of the call.
    pub(super) no_credentials: bool,
}

tokio::task_local! {
    static SEEN: RefCell<Seen>;
}

/// Keeps what an exchange showed for the call it belongs to.
pub(super) fn note(seen: Seen) {
    let _ = SEEN.try_with(|s| *s.borrow_mut() = seen);
}

/// What the call has shown so far is why there are no credentials for it.
pub(super) fn note_no_credentials() {
    let _ = SEEN.try_with(|s| s.borrow_mut().no_credentials = true);
}

/// Runs one call; also what its last exchange showed.
pub(super) async fn watched<T>(call: impl Future<Output = T>) -> (T, Seen) {
    SEEN.scope(RefCell::default(), async {
        let r = call.await;
        (r, SEEN.with(|s| s.borrow().clone()))
    })
    .await
}

/// Why a call failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// There is no such object.
    Missing,
    /// The bucket or container is not there.
    NoBucket,
    /// The name is taken.
    Exists,
    /// No such upload: it was completed or aborted before.
    NoUpload,
    Denied,
    /// Asked to slow down.
    Busy,
    Full,
    Server,
    Timeout,
    Network,
    /// The store does not do this at all, or never with these arguments.
    Refused,
    /// An answer that makes no sense.
    Garbled,
}

impl Class {
    pub(super) fn outcome(self) -> StoreOutcome {
        match self {
            Self::Missing | Self::NoBucket | Self::NoUpload => StoreOutcome::Missing,
            Self::Exists => StoreOutcome::Exists,
            Self::Denied => StoreOutcome::Denied,
            Self::Busy => StoreOutcome::Busy,
            Self::Timeout => StoreOutcome::Timeout,
            Self::Network => StoreOutcome::Network,
            Self::Full | Self::Server | Self::Refused | Self::Garbled => StoreOutcome::Failed,
        }
    }

    /// Nothing is said of the request itself: it may have been carried out, and may succeed a moment later.
    pub(super) fn unclear(self) -> bool {
        matches!(self, Self::Busy | Self::Server | Self::Timeout | Self::Network | Self::Garbled)
    }
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) class: Class,
    /// Other credentials may do.
    pub(super) stale: bool,
    /// Whoever asks is known and must not do this: so it is until a person changes it.
    pub(super) forbidden: bool,
    context: String,
    text: String,
}

impl Failed {
    pub(super) fn new(class: Class, context: String, text: impl Into<String>) -> Self {
        Self { class, stale: false, forbidden: false, context, text: text.into() }
    }

    /// The same for good, whatever is tried.
    pub(super) fn is_lasting(&self) -> bool {
        self.forbidden || self.class == Class::Refused
    }

    /// By what `object_store` made of the answer, and by the answer.
    pub(super) fn from_store(context: String, e: &object_store::Error, seen: &Seen) -> Self {
        let class = classify(e, seen);
        let code = seen.code.as_deref().unwrap_or_default();
        let denied = class == Class::Denied;
        let forbidden = denied && !seen.no_credentials && ["AccessDenied", "AuthorizationPermissionMismatch"].contains(&code);
        let stale = denied && !forbidden && code != "RequestTimeTooSkewed";
        Self { class, stale, forbidden, context, text: describe(class, e, seen) }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Failed> for SinkError {
    fn from(f: Failed) -> Self {
        let Failed { class, context, text, .. } = f;
        let kind = match class {
            Class::Missing | Class::NoBucket | Class::NoUpload => io::ErrorKind::NotFound,
            Class::Exists => io::ErrorKind::AlreadyExists,
            Class::Denied => io::ErrorKind::PermissionDenied,
            Class::Busy => io::ErrorKind::ResourceBusy,
            Class::Full => io::ErrorKind::StorageFull,
            Class::Timeout => io::ErrorKind::TimedOut,
            Class::Network => io::ErrorKind::ConnectionReset,
            Class::Refused => io::ErrorKind::Unsupported,
            Class::Server | Class::Garbled => io::ErrorKind::Other,
        };
        let source = io::Error::new(kind, text);
        match class {
            Class::Full => Self::NoSpace { context, source },
            Class::Refused => Self::Permanent { context, source },
            // Rights, buckets and credentials are put right while the server runs: they concern the whole store, not one object.
            _ => Self::Transient { context, source },
        }
    }
}

fn classify(e: &object_store::Error, seen: &Seen) -> Class {
    use object_store::Error as E;
    if seen.no_credentials {
        return Class::Denied;
    }
    let code = seen.code.as_deref().unwrap_or_default();
    match code {
        "NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted" | "ResourceNotFound" => return Class::NoBucket,
        "NoSuchUpload" | "InvalidBlockList" => return Class::NoUpload,
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => return Class::Full,
        "SlowDown" | "SlowDownRead" | "SlowDownWrite" | "ServerBusy" | "ServiceUnavailable" | "TooManyRequests" => return Class::Busy,
        "RequestTimeout" => return Class::Timeout,
        "InternalError" => return Class::Server,
        // The answer to a put that raced another one: it says nothing about what is there.
        "ConditionalRequestConflict" | "OperationAborted" => return Class::Busy,
        "ExpiredToken" | "TokenRefreshRequired" | "RequestTimeTooSkewed" | "InvalidToken" => return Class::Denied,
        "KeyTooLongError" | "InvalidURI" | "EntityTooLarge" | "NotImplemented" | "InvalidResourceName" => return Class::Refused,
        _ => {}
    }
    // A store says by a code what is not there; a proxy, a balancer or a wrong address does not.
    if seen.status == Some(404) && code.is_empty() && !seen.head {
        return Class::Garbled;
    }
    match e {
        E::NotFound { .. } => Class::Missing,
        E::AlreadyExists { .. } | E::Precondition { .. } => Class::Exists,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => Class::Denied,
        E::NotImplemented { .. } | E::NotSupported { .. } | E::InvalidPath { .. } => Class::Refused,
        _ => match (seen.status, seen.network) {
            (_, Some(HttpErrorKind::Timeout)) => Class::Timeout,
            (_, Some(_)) => Class::Network,
            (Some(401 | 403), _) => Class::Denied,
            (Some(404), _) => Class::Missing,
            (Some(409 | 412), _) => Class::Exists,
            (Some(408), _) => Class::Timeout,
            (Some(429 | 503), _) => Class::Busy,
            (Some(501), _) => Class::Refused,
            (Some(507), _) => Class::Full,
            (Some(500..), _) => Class::Server,
            _ => Class::Garbled,
        },
    }
}

/// Most characters of a store's own words in an error.
const MOST_TEXT: usize = 300;

/// Headers and signatures are in none of this.
fn describe(class: Class, e: &object_store::Error, seen: &Seen) -> String {
    let mut text = match (seen.status, seen.network) {
        (Some(s @ 200..300), None) if seen.no_credentials => format!("the answer {s} holds none"),
        (_, Some(kind)) => format!("no answer ({kind:?}): {}", root_cause(e)),
        (Some(s @ 200..300), None) => format!("the answer {s} is not what was asked for: {}", root_cause(e)),
        (Some(s), None) => format!(
            "answer {s}{}{}",
            seen.code.as_deref().map(|c| format!(" {c}")).unwrap_or_default(),
            seen.message.as_deref().map(|m| format!(": {m}")).unwrap_or_default()
        ),
        (None, None) => root_cause(e),
    };
    if seen.no_credentials {
        let asked = seen.asked.as_deref().map(|a| format!("{a}: ")).unwrap_or_default();
        text = format!("no credentials: {asked}{text}");
    }
    if let Some((at, _)) = text.char_indices().nth(MOST_TEXT) {
        text.truncate(at);
        text.push_str("...");
    }
    let advice = match (class, seen.code.as_deref()) {
        _ if seen.no_credentials => {
            "; without keys in the configuration they come from the environment or from this machine: set keys, or give the machine a role"
        }
        (Class::Garbled, _) if seen.status == Some(404) => "; it has no error code, so that it is not known to come from the store",
        (Class::NoBucket, _) => "; the bucket or container does not exist: create it or correct its name",
        (_, Some("RequestTimeTooSkewed")) => "; the clock of this machine is wrong",
        (_, Some("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired")) => {
            "; the credentials have expired: those of the machine are asked for again, others need a restart"
        }
        (Class::Denied, _) => "; check the credentials and their permissions",
        _ => "",
    };
    text + advice
}

/// The innermost error: the outer ones repeat the address and the request.
fn root_cause(e: &object_store::Error) -> String {
    let mut at: &dyn std::error::Error = e;
    while let Some(inner) = at.source() {
        at = inner;
    }
    at.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, code: &str) -> Class {
        let seen = Seen { status: Some(status), code: (!code.is_empty()).then(|| code.to_owned()), ..Seen::default() };
        let e = object_store::Error::Generic { store: "x", source: "y".into() };
        classify(&e, &seen)
    }

    #[test]
    fn answers_by_status_and_code() {
        assert_eq!(of(403, "QuotaExceeded"), Class::Full);
        assert_eq!(of(403, "AccessDenied"), Class::Denied);
        assert_eq!(of(400, "ExpiredToken"), Class::Denied);
        assert_eq!(of(400, "RequestTimeout"), Class::Timeout);
        assert_eq!(of(503, ""), Class::Busy);
        assert_eq!(of(500, ""), Class::Server);
        assert_eq!(of(507, ""), Class::Full);
        assert_eq!(of(404, "NoSuchBucket"), Class::NoBucket);
        assert_eq!(of(200, ""), Class::Garbled);
        assert_eq!(of(501, "NotImplemented"), Class::Refused);
        assert_eq!(of(409, "ConditionalRequestConflict"), Class::Busy);
        // Whatever the client library makes of them.
        assert_eq!(of(412, "PreconditionFailed"), Class::Exists);
        assert_eq!(of(409, "BlobAlreadyExists"), Class::Exists);
        assert_eq!(of(404, "NoSuchKey"), Class::Missing);
    }

    #[test]
    fn a_404_that_is_not_known_to_be_of_the_store_says_nothing_of_an_object() {
        let not_found = object_store::Error::NotFound { path: "k".into(), source: "y".into() };
        let seen = |head, no_credentials| Seen { status: Some(404), head, no_credentials, ..Seen::default() };
        assert_eq!(classify(&not_found, &seen(false, false)), Class::Garbled);
        assert_eq!(classify(&not_found, &seen(true, false)), Class::Missing, "an answer to HEAD has no body");
        assert_eq!(classify(&not_found, &seen(true, true)), Class::Denied);
    }

    #[test]
    fn only_a_missing_right_is_lasting() {
        let of = |status: u16, code: &str| {
            let seen = Seen { status: Some(status), code: (!code.is_empty()).then(|| code.to_owned()), ..Seen::default() };
            Failed::from_store("x".into(), &object_store::Error::Generic { store: "x", source: "y".into() }, &seen)
        };
        assert!(of(403, "AccessDenied").is_lasting() && !of(403, "AccessDenied").stale);
        for (status, code) in [(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (401, ""), (403, "")] {
            assert!(!of(status, code).is_lasting() && of(status, code).stale, "{status} {code}");
        }
        assert!(!of(403, "RequestTimeTooSkewed").is_lasting() && !of(403, "RequestTimeTooSkewed").stale);
    }

    #[test]
    fn what_concerns_the_whole_store_is_not_permanent() {
        let sink = |class| SinkError::from(Failed::new(class, "x".into(), "y"));
        for class in [Class::Denied, Class::NoBucket, Class::Busy, Class::Server, Class::Timeout, Class::Network, Class::Garbled] {
            assert!(matches!(sink(class), SinkError::Transient { .. }), "{class:?}");
        }
        assert!(matches!(sink(Class::Full), SinkError::NoSpace { .. }));
        assert!(matches!(sink(Class::Refused), SinkError::Permanent { .. }));
    }
}
