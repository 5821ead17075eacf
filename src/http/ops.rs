//! Everything that is not a write: health, readiness, metrics, flush.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Query;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Uri};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::admit::granules;
use super::errors::{self, Failure};
use super::{App, Backend, FlushOutcome, Readiness, TablePage};
use crate::error::{Reason, RequestError};

/// How long a flush may take when the request does not say.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest it may ask for.
const FLUSH_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// `GET /health`
pub(super) fn health<B: Backend>(app: &App<B>) -> Response {
    let body = json!({
        "status": "pass",
        "name": "arc",
        "message": "ready for queries and writes",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_sec": app.started.elapsed().as_secs(),
    });
    errors::json(200, &body)
}

fn readiness<B: Backend>(app: &App<B>) -> Readiness {
    let mut readiness = app.backend.readiness();
    if app.draining() {
        readiness.ready = false;
        readiness.reason = Some(Reason::Shutdown.word().to_owned());
    }
    readiness
}

/// `GET /ready`
pub(super) fn ready<B: Backend>(app: &App<B>) -> Response {
    let readiness = readiness(app);
    let (status, word) = if readiness.ready { (200, "ready") } else { (503, "not_ready") };
    errors::json(status, &json!({"status": word, "reason": readiness.reason, "progress": readiness.progress}))
}

/// `GET /metrics`
pub(super) async fn metrics<B: Backend>(app: &App<B>) -> Result<Response, Failure> {
    let metrics = Arc::clone(&app.metrics);
    metrics.http_ready.set(f64::from(u8::from(readiness(app).ready)));
    large(app, "text/plain; version=0.0.4; charset=utf-8", move || metrics.render().into()).await
}

/// `GET /api/v1/status?offset=0&limit=100`
pub(super) async fn status<B: Backend>(app: &App<B>, uri: &Uri) -> Result<Response, Failure> {
    let page = table_page(&query(uri)?)?;
    let backend = Arc::clone(&app.backend);
    let refused = json!(app.refusals.list());
    let make = move || {
        let mut status = backend.status(page);
        if let Some(status) = status.as_object_mut() {
            status.insert("refused_writes".to_owned(), refused);
        }
        serde_json::to_vec(&status).unwrap_or_default().into()
    };
    large(app, "application/json", make).await
}

/// The page of tables that a status is asked for.
fn table_page(query: &[(String, String)]) -> Result<TablePage, RequestError> {
    let number = |name: &str, most: usize, otherwise: usize| match query.iter().find(|(k, _)| k == name) {
        None => Ok(otherwise),
        Some((_, text)) => text.parse().ok().filter(|n| *n <= most).ok_or_else(|| {
            RequestError::Invalid(format!("{name} must be a whole number up to {most}, found '{}'", crate::batch::shown(text)))
        }),
    };
    let default = TablePage::default();
    Ok(TablePage {
        offset: number("offset", u32::MAX as usize, default.offset)?,
        limit: number("limit", TablePage::MAX_LIMIT, default.limit)?,
    })
}

/// Bytes of all large answers that clients have not taken yet.
const LARGE_TOTAL: usize = 32 << 20;
/// What an answer may have without counting; also the piece in which a larger one goes out.
const PIECE: usize = 64 << 10;

/// Answers that may be large: they grow with the catalog, and clients may take their time to read them.
#[derive(Debug)]
pub(super) struct LargeAnswers {
    /// One is made at a time: many at once would stand before everything else.
    making: Arc<Semaphore>,
    /// In granules.
    unread: Arc<Semaphore>,
}

impl Default for LargeAnswers {
    fn default() -> Self {
        Self { making: Arc::new(Semaphore::new(1)), unread: Arc::new(Semaphore::new(granules(LARGE_TOTAL) as usize)) }
    }
}

async fn large<B: Backend>(
    app: &App<B>,
    content_type: &'static str,
    make: impl FnOnce() -> Bytes + Send + 'static,
) -> Result<Response, Failure> {
    let busy = || RequestError::unavailable(Reason::NotStored, "too many large answers at a time; ask again");
    let wait = app.settings.admit_wait;
    let Ok(Ok(turn)) = timeout(wait, Arc::clone(&app.large_answers.making).acquire_owned()).await else {
        return Err(busy().into());
    };
    // The turn goes with the work: a client that leaves does not end it. It lasts until the text has room: one text at a time has none.
    let made = tokio::task::spawn_blocking(move || (make(), turn));
    let (text, _turn) = match made.await {
        Ok(made) => made,
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => return Err(busy().into()),
        },
    };
    let unread = if text.len() <= PIECE {
        None
    } else {
        let want = granules(text.len()).min(granules(LARGE_TOTAL));
        match timeout(wait, Arc::clone(&app.large_answers.unread).acquire_many_owned(want)).await {
            Ok(Ok(permit)) => Some(permit),
            _ => return Err(busy().into()),
        }
    };
    let mut response = Response::new(Body::new(Pieces { rest: text, _unread: unread }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

/// A body that goes out piece by piece, so that it is held until the client has taken nearly all of it.
struct Pieces {
    rest: Bytes,
    _unread: Option<OwnedSemaphorePermit>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let n = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(n)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// `POST /api/v1/flush?timeout=60s`
pub(super) async fn flush<B: Backend>(app: &App<B>, uri: &Uri) -> Result<Response, Failure> {
    let timeout = match query(uri)?.into_iter().find(|(k, _)| k == "timeout") {
        Some((_, text)) => duration(&text).filter(|d| *d <= FLUSH_TIMEOUT_MAX).ok_or_else(|| {
            RequestError::Invalid("timeout must be a whole number and one of ms, s, m, h (or none, for seconds), at most 1h".to_owned())
        })?,
        None => FLUSH_TIMEOUT,
    };
    match app.backend.flush(timeout).await {
        FlushOutcome::Done { files, rows, through_seq } => {
            Ok(errors::json(200, &json!({"status": "success", "files": files, "rows": rows, "through_seq": through_seq})))
        }
        FlushOutcome::TimedOut { through_seq, target_seq } => {
            Ok(errors::json(504, &json!({"status": "timeout", "through_seq": through_seq, "target_seq": target_seq})))
        }
        FlushOutcome::Failed(error) => Err(error.into()),
    }
}

/// The pairs of the query string, decoded.
pub(super) fn query(uri: &Uri) -> Result<Vec<(String, String)>, RequestError> {
    if uri.query().is_none_or(str::is_empty) {
        return Ok(Vec::new());
    }
    match Query::<Vec<(String, String)>>::try_from_uri(uri) {
        Ok(Query(pairs)) => Ok(pairs),
        Err(_) => Err(RequestError::Invalid("the query string cannot be read".to_owned())),
    }
}

/// A whole number and `ms`, `s`, `m` or `h`; without one, seconds.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_tables() {
        let page = |q: &str| table_page(&query(&q.parse().unwrap()).unwrap());
        assert_eq!(page("/s"), Ok(TablePage { offset: 0, limit: 100 }));
        assert_eq!(page("/s?offset=7&limit=1000"), Ok(TablePage { offset: 7, limit: 1000 }));
        assert_eq!(page("/s?limit=0"), Ok(TablePage { offset: 0, limit: 0 }));
        for bad in ["/s?limit=1001", "/s?offset=-1", "/s?limit=all", "/s?offset="] {
            assert!(matches!(page(bad), Err(RequestError::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("60s"), Some(Duration::from_secs(60)));
        assert_eq!(duration("7"), Some(Duration::from_secs(7)));
        assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Some(Duration::from_secs(3600)));
        for bad in ["", "s", "-1s", "1.5s", "1 s", "1d", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
