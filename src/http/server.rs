//! The accept loop and the end of it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1::{Builder, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::conn::{ConnState, Ended, Http, Part, Stream, Watched, drive};
use super::routes::{ConnService, router};
use super::tls::{Tls, handshake};
use super::{App, Backend};
use crate::config::bare_host;
use crate::metrics::{Metrics, Rejected};

/// Largest read buffer of a connection: a body of the usual size still comes in few pieces.
const READ_BUFFER: usize = 256 << 10;
/// Largest head of a request; over it hyper answers 431.
const MAX_HEAD: usize = 32 << 10;
/// Pause after an accept that failed for want of something (file descriptors, memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often histograms are folded.
const UPKEEP: Duration = Duration::from_secs(5);

/// Connections that wait for being accepted. Beyond it the kernel drops what comes, and the client tries again only after a second.
const BACKLOG: u32 = 4096;

/// Listens on the first address of `host` that can be had.
///
/// # Errors
/// Of looking the host up, and of the last address tried.
pub async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the host has no address");
    for address in lookup_host((bare_host(host), port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let listening = socket.and_then(|s| {
            s.set_reuseaddr(true)?;
            s.bind(address)?;
            s.listen(BACKLOG)
        });
        match listening {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// How serving ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Served {
    /// Connections that had not finished when the shutdown's time was up.
    pub aborted: usize,
}

fn protocol() -> Builder {
    let mut http = Builder::new();
    // Heads, bodies and idle connections are timed by `conn`.
    http.header_read_timeout(None).half_close(true).keep_alive(true).max_buf_size(READ_BUFFER).max_header_size(MAX_HEAD);
    http
}

/// Serves one connection to its end, over anything that carries bytes: what a listener's connections go through, for tests that
/// have none.
pub async fn serve_stream<B: Backend>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, app: &Arc<App<B>>) {
    let (_drain, drained) = watch::channel(false);
    let state = ConnState::new(&app.settings, None);
    let _open = Open::count(&app.metrics);
    connection(stream, state, &protocol(), router(app), app, drained).await;
}

/// Serves `listener` until `shutdown` ends, then lets requests under way finish, for `shutdown_timeout` at most.
pub async fn serve<B: Backend>(listener: TcpListener, app: Arc<App<B>>, shutdown: impl Future<Output = ()>) -> Served {
    serve_tls(listener, app, None, shutdown).await
}

/// The same, encrypted if there is a certificate.
pub async fn serve_tls<B: Backend>(
    listener: TcpListener,
    app: Arc<App<B>>,
    tls: Option<Arc<Tls>>,
    shutdown: impl Future<Output = ()>,
) -> Served {
    let (router, http) = (router(&app), protocol());
    let slots = Arc::new(Semaphore::new(app.settings.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let (drain, drained) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    let mut upkeep = interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);

    // Accepted, without a slot yet.
    let mut waiting = None;
    loop {
        let slot = tokio::select! {
            biased;
            () = &mut shutdown => break,
            _ = upkeep.tick() => {
                app.metrics.upkeep();
                continue;
            }
            slot = take_slot(&slots), if waiting.is_some() => slot,
            socket = accept(&listener, &app), if waiting.is_none() => {
                waiting = Some(socket);
                if slots.available_permits() == 0 {
                    app.lingering.give_way(true);
                }
                continue;
            }
        };
        app.lingering.give_way(false);
        let Some(socket) = waiting.take() else { continue };
        while let Some(ended) = connections.try_join_next() {
            log_join(ended);
        }
        let (http, router, app, tls, mut drained) = (http.clone(), router.clone(), Arc::clone(&app), tls.clone(), drained.clone());
        connections.spawn(async move {
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "no TCP_NODELAY");
            }
            let state = ConnState::new(&app.settings, socket.peer_addr().ok());
            let _open = Open::count(&app.metrics);
            match tls {
                None => connection(socket, state, &http, router, &app, drained).await,
                Some(tls) => {
                    if let Some(stream) = handshake(&tls, socket, &state, &app, &mut drained).await {
                        connection(stream, state, &http, router, &app, drained).await;
                    }
                }
            }
            drop(slot);
        });
    }

    app.draining.store(true, Ordering::Relaxed);
    drop(listener);
    let _ = drain.send(true);
    let finishing = async {
        while let Some(ended) = connections.join_next().await {
            log_join(ended);
        }
    };
    let in_time = timeout(app.settings.shutdown_timeout, finishing).await.is_ok();
    while let Some(ended) = connections.try_join_next() {
        log_join(ended);
    }
    let aborted = if in_time { 0 } else { connections.len() };
    if aborted > 0 {
        tracing::warn!(connections = aborted, "the shutdown's time is up: closing connections with requests under way");
        connections.shutdown().await;
    }
    Served { aborted }
}

fn log_join(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}

async fn take_slot(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    match Arc::clone(slots).acquire_owned().await {
        Ok(slot) => slot,
        Err(_closed) => std::future::pending().await,
    }
}

/// The next connection. One waits here for a slot; those behind it wait in the listener's backlog.
async fn accept<B: Backend>(listener: &TcpListener, app: &App<B>) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _peer)) => return socket,
            Err(error) => {
                app.metrics.http_accept_errors_total.increment(1);
                if !of_one_connection(&error) {
                    if let Some(suppressed) = app.accept_errors.pass(app.started.elapsed()) {
                        tracing::error!(%error, suppressed, "cannot accept connections; trying again");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Errors of the connection that was to be accepted, not of the listener.
fn of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted
    )
}

struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    fn count(metrics: &'a Metrics) -> Self {
        metrics.http_connections.increment(1.0);
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.http_connections.decrement(1.0);
    }
}

async fn connection<B: Backend>(
    socket: impl Stream + Send + 'static,
    state: Arc<ConnState>,
    http: &Builder,
    router: Router,
    app: &App<B>,
    drain: watch::Receiver<bool>,
) {
    let service = ConnService { router, state: Arc::clone(&state) };
    let io = TokioIo::new(Watched { socket, state: Arc::clone(&state) });
    match drive(Http1(http.serve_connection(io, service)), &state, &app.lingering, drain).await {
        Ended::TooSlow(Part::Body) => {
            app.metrics.reject(Rejected::SlowBody);
            tracing::debug!("a body came too slowly");
        }
        Ended::TooSlow(Part::Head) => {
            app.metrics.reject(Rejected::SlowHeader);
            tracing::debug!("a head came too slowly");
        }
        Ended::TooSlow(_) | Ended::Done | Ended::Cut => {}
    }
}

struct Http1<S: Stream>(Connection<TokioIo<Watched<S>>, ConnService>);

impl<S: Stream> Http for Http1<S> {
    type Socket = S;

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        // With the shutdown: without it hyper is done while the end of the last answer still waits for room in the socket.
        Pin::new(&mut self.0).poll(cx)
    }

    fn finish(&mut self) {
        Pin::new(&mut self.0).graceful_shutdown();
    }

    fn into_io(self) -> Watched<S> {
        self.0.into_parts().io.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Settings;
    use crate::http::tests::Mock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn the_last_answer_is_whole_however_slowly_it_is_read() {
        let app = App::new(Arc::<Mock>::default(), Metrics::new(), Settings::default());
        for request in ["GET /health HTTP/1.0\r\n\r\n", "GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "no HTTP\r\n\r\n"]
        {
            let (mut client, socket) = tokio::io::duplex(16);
            let server = tokio::spawn({
                let app = Arc::clone(&app);
                async move { serve_stream(socket, &app).await }
            });
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            server.await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("half a head: {answer:?}"));
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
            assert_eq!(length.parse(), Ok(body.len()), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_burst_of_connections_waits_and_is_not_dropped() {
        let listener = listen("localhost", 0).await.unwrap();
        let address = listener.local_addr().unwrap();
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|s| s.trim().parse().ok()).unwrap_or(128);
        let mut open = Vec::new();
        for i in 0..most.min(300) {
            let socket = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(900));
            open.push(socket.unwrap_or_else(|e| panic!("connection {i}: {e}")));
        }
    }
}
