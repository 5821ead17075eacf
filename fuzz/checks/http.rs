//! Any bytes at the socket: the server answers with valid HTTP or closes, within its limits.
//!
//! The connection is a pipe in memory and time stands still but where everything waits, so that limits of minutes cost nothing.

use std::sync::Arc;
use std::time::Duration;

use arc_ingest::decode::line_protocol::{Empty, LineOptions, decode};
use arc_ingest::decode::table::Bounds;
use arc_ingest::error::{Reason, RequestError};
use arc_ingest::http::{
    App, Backend, FlushOutcome, LineOutcome, LineRequest, Readiness, Settings, TablePage, WriteOutcome, WriteRequest, serve_stream,
};
use arc_ingest::metrics::Metrics;
use arc_ingest::types::LargeUnsigned;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};

/// Behaves as the first byte of a body says.
struct Double;

impl Backend for Double {
    fn before_body(&self) -> Result<(), RequestError> {
        Ok(())
    }

    async fn write_msgpack(&self, request: WriteRequest) -> Result<WriteOutcome, RequestError> {
        let sequence = Some(7);
        assert!(request.body.len() <= MAX_BODY && !request.database.is_empty() && request.database.len() <= 64);
        assert!(request.idempotency_key.is_none_or(|k| (1..=128).contains(&k.len())));
        match request.body.first() {
            None => Ok(WriteOutcome { sequence: None, replayed: false }),
            Some(b'r') => Ok(WriteOutcome { sequence, replayed: true }),
            Some(b'i') => Err(RequestError::Invalid("no such thing \r\n\"\u{7f}".into())),
            Some(b'l') => Err(RequestError::TooLarge("inflated".into())),
            Some(b'u') => Err(RequestError::unavailable(Reason::DiskFull, "no room")),
            Some(b's') => {
                sleep(Duration::from_secs(3)).await;
                Ok(WriteOutcome { sequence, replayed: false })
            }
            Some(_) => Ok(WriteOutcome { sequence, replayed: false }),
        }
    }

    async fn write_lines(&self, request: LineRequest) -> Result<LineOutcome, RequestError> {
        assert!(request.body.len() <= MAX_BODY && !request.database.is_empty() && request.database.len() <= 64);
        let bounds = Bounds { max_columns: 100, max_tables: 10, max_partitions: 10, max_bytes: 1 << 20 };
        let options = LineOptions {
            receive_time_us: 0,
            precision: request.precision,
            hive_names: true,
            large_unsigned: LargeUnsigned::Refuse,
            bounds,
        };
        let lines = decode(&request.body, &options, &Empty)?;
        let stored = !lines.tables.is_empty() && (request.accept_partial || lines.report.bad == 0);
        let status = request.dialect.status(&lines.report);
        Ok(LineOutcome { sequence: stored.then_some(7), replayed: false, status, report: lines.report })
    }

    async fn flush(&self, timeout: Duration) -> FlushOutcome {
        assert!(timeout <= Duration::from_secs(3600));
        FlushOutcome::Done { files: 2, rows: 30, through_seq: 9 }
    }

    fn databases(&self) -> Vec<String> {
        vec!["d".to_owned()]
    }

    fn status(&self, _: TablePage) -> Value {
        json!({"version": "x"})
    }

    fn readiness(&self) -> Readiness {
        Readiness { ready: true, ..Readiness::default() }
    }

    fn spec(&self) -> Value {
        json!({"spec": true})
    }

    fn stats(&self) -> Value {
        json!({"stats": true})
    }
}

const MAX_BODY: usize = 4096;

fn app() -> Arc<App<Double>> {
    let settings = Settings { max_payload_size: MAX_BODY, max_in_flight: 3 * MAX_BODY, max_connections: 4, ..Settings::default() };
    App::new(Arc::new(Double), Metrics::new(), settings)
}

thread_local! {
    static SERVER: (Runtime, Arc<App<Double>>) = {
        let r = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let app = r.block_on(async { app() });
        (r, app)
    };
}

/// How the client behaves, from the first bytes.
#[derive(Clone, Copy)]
struct Client {
    /// Largest piece that is sent at once; 0: everything.
    piece: usize,
    pause: Duration,
    /// Says that it is done, or stays and says nothing.
    closes: bool,
    reads: bool,
    /// Bytes that fit in the pipe.
    pipe: usize,
}

pub fn check(data: &[u8]) {
    let Some(([how, piece], bytes)) = data.split_first_chunk::<2>() else { return };
    let client = Client {
        piece: usize::from(*piece),
        pause: [Duration::ZERO, Duration::ZERO, Duration::from_millis(1), Duration::from_secs(4)][usize::from(how & 3)],
        closes: how & 4 == 0,
        reads: how & 8 == 0,
        pipe: if how & 16 == 0 { 64 << 10 } else { 64 },
    };
    SERVER.with(|(runtime, app)| {
        runtime.block_on(async {
            let answers = exchange(app, client, bytes).await;
            if client.reads {
                assert_answers(&answers, bytes);
            }
            // Whatever came, the server is as it was: a share of memory that is not given back would show here.
            if how & 32 != 0 {
                let whole =
                    format!("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY}\r\n\r\n{}", "x".repeat(MAX_BODY));
                let polite = Client { piece: 0, pause: Duration::ZERO, closes: true, reads: true, pipe: 64 << 10 };
                let answer = exchange(app, polite, whole.as_bytes()).await;
                assert!(answer.starts_with(b"HTTP/1.1 204 "), "{}", String::from_utf8_lossy(&answer));
            }
        });
    });
}

async fn exchange(app: &Arc<App<Double>>, c: Client, bytes: &[u8]) -> Vec<u8> {
    let (ours, theirs) = tokio::io::duplex(c.pipe);
    let server = serve_stream(theirs, app);
    let (reading, writing) = tokio::io::split(ours);
    let pieces = if c.piece == 0 { 1 } else { bytes.len().div_ceil(c.piece) };
    // Each request may take its time; a next one begins with bytes that the client sends.
    let limits = Settings::default();
    let one = limits.header_timeout + limits.read_timeout + limits.idle_timeout + Duration::from_secs(10);
    let requests = bytes.iter().filter(|b| **b == b'\n').count() as u32 + 2;
    let most = one * requests + c.pause * pieces as u32;
    let started = Instant::now();
    let work = async {
        let client = async { tokio::join!(send(writing, c, bytes), receive(reading, c.reads)).1 };
        tokio::pin!(client);
        let mut answers = None;
        tokio::pin!(server);
        loop {
            tokio::select! {
                biased;
                a = &mut client, if answers.is_none() => answers = Some(a),
                () = &mut server => break,
            }
        }
        match answers {
            Some(a) => a,
            None if c.reads => client.await,
            None => Vec::new(),
        }
    };
    let answers = timeout(most, work).await;
    answers.unwrap_or_else(|_| panic!("the connection was still open after {:?}", started.elapsed()))
}

async fn send(mut to: tokio::io::WriteHalf<DuplexStream>, c: Client, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = if c.piece == 0 { rest.len() } else { c.piece.min(rest.len()) };
        if to.write_all(&rest[..n]).await.is_err() {
            return;
        }
        rest = &rest[n..];
        if !c.pause.is_zero() {
            sleep(c.pause).await;
        }
    }
    if c.closes {
        let _ = to.shutdown().await;
    }
}

async fn receive(mut from: tokio::io::ReadHalf<DuplexStream>, reads: bool) -> Vec<u8> {
    let mut out = Vec::new();
    if reads {
        let _ = from.read_to_end(&mut out).await;
    } else {
        // The half stays open, and nothing is read from it.
        std::future::pending::<()>().await;
    }
    out
}

/// The answers are whole, one after the other, and only the last one may be cut: by a limit, never in the middle of a head.
fn assert_answers(mut rest: &[u8], sent: &[u8]) {
    let shown = || format!("{:?} to {:?}", String::from_utf8_lossy(rest), String::from_utf8_lossy(sent));
    let heads_possible = sent.windows(4).any(|w| w == b"HEAD");
    while !rest.is_empty() {
        let Some(end) = rest.windows(4).position(|w| w == b"\r\n\r\n") else { panic!("half a head: {}", shown()) };
        let head = std::str::from_utf8(&rest[..end]).unwrap_or_else(|_| panic!("a head that is no text: {}", shown()));
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap();
        let status: u16 = first
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| first.strip_prefix("HTTP/1.0 "))
            .and_then(|r| r.get(..3)?.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {}", shown()));
        assert!((100..600).contains(&status));
        let headers: Vec<(String, &str)> = lines
            .map(|l| l.split_once(": ").unwrap_or_else(|| panic!("not a header: {l:?}")))
            .map(|(k, v)| (k.to_ascii_lowercase(), v))
            .collect();
        let get = |name: &str| headers.iter().find(|(k, _)| k == name).map(|(_, v)| *v);
        assert!(headers.iter().filter(|(k, _)| k == "content-length").count() <= 1);
        assert_eq!(get("retry-after").is_some(), status == 503, "{head}");
        assert!(get("transfer-encoding").is_none(), "bodies have a length: {head}");
        let length: usize = get("content-length").map_or(0, |l| l.parse().unwrap());
        let body = &rest[end + 4..];
        let none = status == 204 || status < 200 || heads_possible && (body.is_empty() || body.starts_with(b"HTTP/1."));
        if none {
            assert!(status != 204 || length == 0);
            rest = body;
            continue;
        }
        assert!(body.len() >= length, "half a body: {}", shown());
        if get("content-type") == Some("application/json") {
            let v: Value = serde_json::from_slice(&body[..length]).unwrap_or_else(|e| panic!("{e}: {}", shown()));
            assert!(status < 400 || v["error"].as_str().is_some_and(|e| !e.is_empty()) || v.get("ready").is_some(), "{v}");
        }
        rest = &body[length..];
    }
}
