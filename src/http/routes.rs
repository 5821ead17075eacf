//! The table of routes, and what happens around every handler.

use std::any::Any;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{CONNECTION, HeaderName};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method};
use axum::response::Response;
use axum::routing::{MethodFilter, on};

use super::admit::Inbound;
use super::auth::{self, Grant};
use super::conn::ConnState;
use super::errors::{self, Failure};
use super::lines::{self, Dialect};
use super::linger::Sender;
use super::refusals::{Refused, cut};
use super::tokens::{self, Deed};
use super::{App, Backend, RequestId, ops, write};
use crate::metrics::{Route, RouteStatus, StatusClass};

/// Who may use a route, where there is authentication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// Anybody.
    Open,
    /// Whoever may read, without a limit of databases.
    Read,
    /// Whoever may write; the handler asks for the database.
    Write,
    Admin,
    /// The handler asks for what it needs.
    Itself,
}

/// What a route does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    WriteMsgpack,
    WriteLines(Dialect),
    Ping,
    Query,
    Spec,
    Stats,
    Flush,
    Health,
    Ready,
    Metrics,
    Status,
    Verify,
    Tokens,
    CreateToken,
    Token(Deed),
}

/// One row of the table of routes.
#[derive(Clone, Debug)]
pub struct RouteRow {
    pub method: Method,
    pub path: &'static str,
    pub tier: Tier,
    pub(super) action: Action,
    pub(super) label: Route,
}

const fn row(method: Method, path: &'static str, tier: Tier, action: Action, label: Route) -> RouteRow {
    RouteRow { method, path, tier, action, label }
}

/// Every route; HEAD goes with GET.
pub static ROUTES: &[RouteRow] = &[
    row(Method::POST, "/api/v1/write/msgpack", Tier::Write, Action::WriteMsgpack, Route::WriteMsgpack),
    row(Method::POST, "/write", Tier::Write, Action::WriteLines(Dialect::V1), Route::WriteV1),
    row(Method::POST, "/api/v2/write", Tier::Write, Action::WriteLines(Dialect::V2), Route::WriteV2),
    row(Method::POST, "/api/v3/write_lp", Tier::Write, Action::WriteLines(Dialect::V3), Route::WriteV3),
    row(Method::POST, "/api/v1/write/line-protocol", Tier::Write, Action::WriteLines(Dialect::Arc), Route::WriteLines),
    row(Method::GET, "/ping", Tier::Open, Action::Ping, Route::Ping),
    row(Method::GET, "/query", Tier::Open, Action::Query, Route::Query),
    row(Method::POST, "/query", Tier::Open, Action::Query, Route::Query),
    row(Method::GET, "/api/v1/write/msgpack/spec", Tier::Read, Action::Spec, Route::WriteSpec),
    row(Method::GET, "/api/v1/write/msgpack/stats", Tier::Read, Action::Stats, Route::WriteStats),
    row(Method::POST, "/api/v1/flush", Tier::Admin, Action::Flush, Route::Flush),
    row(Method::POST, "/api/v1/write/line-protocol/flush", Tier::Admin, Action::Flush, Route::Flush),
    row(Method::GET, "/health", Tier::Open, Action::Health, Route::Health),
    row(Method::GET, "/ready", Tier::Open, Action::Ready, Route::Ready),
    row(Method::GET, "/metrics", Tier::Open, Action::Metrics, Route::Metrics),
    row(Method::GET, "/api/v1/status", Tier::Read, Action::Status, Route::Status),
    row(Method::GET, "/api/v1/auth/verify", Tier::Itself, Action::Verify, Route::AuthVerify),
    row(Method::GET, "/api/v1/auth/tokens", Tier::Admin, Action::Tokens, Route::AuthTokens),
    row(Method::POST, "/api/v1/auth/tokens", Tier::Admin, Action::CreateToken, Route::AuthTokens),
    row(Method::GET, "/api/v1/auth/tokens/{id}", Tier::Admin, Action::Token(Deed::Show), Route::AuthTokens),
    row(Method::PATCH, "/api/v1/auth/tokens/{id}", Tier::Admin, Action::Token(Deed::Update), Route::AuthTokens),
    row(Method::DELETE, "/api/v1/auth/tokens/{id}", Tier::Admin, Action::Token(Deed::Delete), Route::AuthTokens),
    row(Method::POST, "/api/v1/auth/tokens/{id}/rotate", Tier::Admin, Action::Token(Deed::Rotate), Route::AuthTokens),
    row(Method::POST, "/api/v1/auth/tokens/{id}/revoke", Tier::Admin, Action::Token(Deed::Revoke), Route::AuthTokens),
];

/// The router, built from [`ROUTES`] alone.
pub(super) fn router<B: Backend>(app: &Arc<App<B>>) -> Router {
    let mut router = Router::new();
    for row in ROUTES {
        let app = Arc::clone(app);
        let filter = MethodFilter::try_from(row.method.clone()).unwrap_or(MethodFilter::GET);
        router = router.route(row.path, on(filter, move |request: Request| answer(app, Target::Row(row), request)));
    }
    let (missing, wrong) = (Arc::clone(app), Arc::clone(app));
    router
        .fallback(move |request: Request| answer(missing, Target::NotFound, request))
        .method_not_allowed_fallback(move |request: Request| answer(wrong, Target::MethodNotAllowed, request))
}

/// Where the router sent a request.
#[derive(Clone, Copy)]
enum Target {
    Row(&'static RouteRow),
    NotFound,
    MethodNotAllowed,
}

/// A request as handlers see it.
pub(super) struct Call {
    pub(super) head: Parts,
    pub(super) body: Inbound,
    pub(super) id: RequestId,
    pub(super) grant: Grant,
    /// Set once it is known, for the record of refusals.
    pub(super) database: Option<String>,
}

/// The connection of a request, in its extensions.
#[derive(Clone)]
pub(super) struct OnConn(pub(super) Arc<ConnState>);

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Runs a handler and does what every answer needs: the request id, the error body, the rest of the request's body,
/// the counters; and turns a panic into a 500.
async fn answer<B: Backend>(app: Arc<App<B>>, target: Target, request: Request) -> Response {
    let started = Instant::now();
    let (mut head, body) = request.into_parts();
    let conn = head.extensions.remove::<OnConn>().map_or_else(|| ConnState::new(&app.settings, None), |c| c.0);
    let id = app.ids.of(&head.headers);
    let body = Inbound::new(&head, body, conn);
    let mut call = Call { head, body, id, grant: Grant::Nothing, database: None };

    let label = match target {
        Target::Row(row) => row.label,
        Target::NotFound | Target::MethodNotAllowed => Route::Other,
    };
    let result = match catch(handle(&app, target, &mut call)).await {
        Ok(result) => result,
        Err(panic) => {
            app.metrics.http_panics_total.increment(1);
            tracing::error!(request_id = %call.id, route = label.word(), panic = panic_text(&*panic), "a handler panicked");
            Err(Failure::Panicked)
        }
    };
    let v1 = matches!(label, Route::WriteV1 | Route::Query);
    let failed = result.is_err();
    if let Err(failure) = &result {
        note_refusal(&app, target, &call, failure);
    }
    let known = app.tokens.is_none() || matches!(call.grant, Grant::Token(_)) || matches!(result, Err(Failure::Forbidden(_)));
    let sender = if known { Sender::Known } else { Sender::Unknown };
    let mut response = result.unwrap_or_else(|failure| errors::response(failure, &call.id, &app.metrics, v1));
    if call.body.settle(failed, sender).await {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        // For a client of HTTP/1.0 that asked for it, hyper would put "keep-alive" beside it in an answer of version 1.1.
        *response.version_mut() = call.head.version;
    }
    response.headers_mut().insert(X_REQUEST_ID, call.id.header());
    app.settings.origins.mark(&call.head, response.headers_mut());

    let status = response.status().as_u16();
    let took = started.elapsed();
    app.metrics.http_requests_total.get(RouteStatus(label, StatusClass::of(status))).increment(1);
    app.metrics.http_request_seconds.get(label).record(took.as_secs_f64());
    tracing::debug!(request_id = %call.id, route = label.word(), status, micros = took.as_micros(), "answered");
    response
}

/// Keeps a refused write for the status, and logs it unless there are many of its kind.
fn note_refusal<B: Backend>(app: &App<B>, target: Target, call: &Call, failure: &Failure) {
    let Target::Row(row) = target else { return };
    if row.tier != Tier::Write {
        return;
    }
    let (reason, status, message) = (failure.counted_as(), failure.status(), failure.text());
    let (peer, database) = (call.body.peer().map(|p| p.ip()), call.database.as_deref());
    let refused = Refused { at_us: wall_us(), peer, route: row.label, reason, status, database, message: &message };
    if let Some(suppressed) = app.refusals.add(&refused, app.started.elapsed()) {
        let (route, reason) = (row.label.word(), reason.word());
        let peer = peer.map(|p| p.to_string());
        tracing::warn!(request_id = %call.id, peer, route, status, reason, database, suppressed, "write refused: {}", cut(&message));
    }
}

/// Microseconds since the Unix epoch.
fn wall_us() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

async fn handle<B: Backend>(app: &App<B>, target: Target, call: &mut Call) -> Result<Response, Failure> {
    let row = match target {
        Target::Row(row) => row,
        Target::NotFound => return Err(Failure::NotFound),
        Target::MethodNotAllowed => return app.settings.origins.preflight(&call.head).ok_or(Failure::MethodNotAllowed),
    };
    call.grant = auth::admit(app, row, call)?;
    match row.action {
        Action::WriteMsgpack => write::msgpack(app, call).await,
        Action::WriteLines(dialect) => lines::write(app, call, dialect).await,
        Action::Ping => lines::ping(call),
        Action::Query => lines::query(app, call).await,
        Action::Flush => ops::flush(app, &call.head.uri).await,
        Action::Spec => Ok(errors::json(200, &app.backend.spec())),
        Action::Stats => Ok(errors::json(200, &app.backend.stats())),
        Action::Status => ops::status(app, &call.head.uri).await,
        Action::Health => Ok(ops::health(app)),
        Action::Ready => Ok(ops::ready(app)),
        Action::Metrics => ops::metrics(app).await,
        Action::Verify => tokens::verify(app, row, call),
        Action::Tokens => tokens::list(app),
        Action::CreateToken => tokens::create(app, call).await,
        Action::Token(deed) => tokens::one(app, call, deed).await,
    }
}

/// Polls `future` to its end or to its panic. What it borrows is used afterwards only to answer 500 and to throw the
/// rest of the body away, for which a half-done state is good enough.
async fn catch<F: Future>(future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut future = std::pin::pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The service of one connection.
pub(super) struct ConnService {
    pub(super) router: Router,
    pub(super) state: Arc<ConnState>,
}

impl hyper::service::Service<hyper::Request<hyper::body::Incoming>> for ConnService {
    type Response = Response;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, mut request: hyper::Request<hyper::body::Incoming>) -> Self::Future {
        self.state.request_started();
        request.extensions_mut().insert(OnConn(Arc::clone(&self.state)));
        let answer = tower::ServiceExt::oneshot(self.router.clone(), request);
        let state = Arc::clone(&self.state);
        Box::pin(async move {
            let answer = answer.await;
            state.response_ready();
            answer
        })
    }
}
