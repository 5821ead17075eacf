//! The loop: connections, retries, signals, progress.

use super::RunArgs;
use super::body::{Encoder, Templates};
use super::client::{Answer, Connection, Target};
use super::ledger::{Ledger, Line, Outcome};
use super::report::{Report, Stats};
use crate::cli::trust::{Trust, client_config};
use crate::clock::{SharedClock, SystemClock};
use std::io;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

/// How often outcomes reach the ledger's file.
const FLUSH_EVERY: Duration = Duration::from_millis(50);
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

struct Shared {
    args: RunArgs,
    target: Target,
    tls: Option<TlsConnector>,
    templates: Templates,
    ledger: Mutex<Ledger>,
    run_id: String,
    /// After this no new request starts.
    deadline: Instant,
    /// Requests that may still be started.
    left: AtomicU64,
    acked: AtomicU64,
    other: AtomicU64,
    stop: watch::Sender<Option<Stop>>,
    clock: SharedClock,
}

/// Why the run ends before its time.
#[derive(Clone, Debug)]
enum Stop {
    Signal(&'static str),
    Down(String),
    Ledger(String),
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Every change to the ledger is whole before the lock is released or the process is done for.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first reason stays.
    fn stop(&self, why: Stop) {
        self.stop.send_if_modified(|s| {
            let first = s.is_none();
            s.get_or_insert(why);
            first
        });
    }
}

/// Runs the load to its end.
///
/// # Errors
/// The ledger cannot be opened or written.
pub async fn drive(args: RunArgs, target: Target) -> anyhow::Result<Report> {
    let ledger = Ledger::open(args.ledger.as_deref(), u64::from(args.rows))?;
    let first_id = ledger.next_id();
    let templates = Templates::build(args.format, args.rows as usize, args.tables as usize);
    let clock = SystemClock::shared();
    let trust = args.ca.clone().map_or(Trust::Any, Trust::File);
    let tls = if target.tls { Some(TlsConnector::from(Arc::new(client_config(&trust)?))) } else { None };
    let start = Instant::now();
    let (stop, stopped) = watch::channel(None);
    let shared = Arc::new(Shared {
        templates,
        target,
        tls,
        ledger: Mutex::new(ledger),
        run_id: format!("{:016x}", clock.random_u64()),
        deadline: start + args.duration(),
        left: AtomicU64::new(args.requests.unwrap_or(u64::MAX)),
        acked: AtomicU64::new(0),
        other: AtomicU64::new(0),
        stop,
        clock,
        args,
    });
    let helpers = [
        tokio::spawn(flush_ledger(Arc::clone(&shared))),
        tokio::spawn(watch_signals(Arc::clone(&shared))?),
        tokio::spawn(show_progress(Arc::clone(&shared), start)),
    ];
    let mut workers = Vec::new();
    for _ in 0..shared.args.connections {
        let worker = Worker {
            shared: Arc::clone(&shared),
            stopped: stopped.clone(),
            connection: None,
            encoder: Encoder::new(shared.args.encoding)?,
            stats: Stats::new()?,
        };
        workers.push(tokio::spawn(worker.work()));
    }
    let mut stats = Stats::new()?;
    let mut broken = None;
    for worker in workers {
        match worker.await {
            Ok(s) => stats.merge(&s),
            Err(e) => broken = Some(e),
        }
    }
    let elapsed = start.elapsed();
    helpers.iter().for_each(tokio::task::JoinHandle::abort);
    for helper in helpers {
        // Its progress bar is to be gone before the result is printed.
        let _ = helper.await;
    }
    shared.ledger().close()?;
    if let Some(e) = broken {
        anyhow::bail!("a connection's task failed: {e}");
    }
    let why = stopped.borrow().clone();
    let stopped_by = match why {
        Some(Stop::Ledger(e)) => anyhow::bail!(e),
        Some(Stop::Down(e)) => Some(format!("the server is away: {e}")),
        // Asked for: the result so far is a result.
        Some(Stop::Signal(name)) => {
            tracing::debug!("stopped by {name}");
            None
        }
        None => None,
    };
    let next_id = shared.ledger().next_id();
    Ok(Report {
        stats,
        rows_per_request: u64::from(shared.args.rows),
        elapsed,
        ids: (first_id, next_id),
        run_id: shared.run_id.clone(),
        stopped_by,
    })
}

async fn flush_ledger(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(FLUSH_EVERY).await;
        let flushed = shared.ledger().flush();
        if let Err(e) = flushed {
            shared.stop(Stop::Ledger(e.to_string()));
            return;
        }
    }
}

fn watch_signals(shared: Arc<Shared>) -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        shared.stop(Stop::Signal(name));
    })
}

async fn show_progress(shared: Arc<Shared>, start: Instant) {
    let rows = u64::from(shared.args.rows);
    let line = |rate: f64| {
        let (acked, other) = (shared.acked.load(Relaxed), shared.other.load(Relaxed));
        format!("{acked} acked, {other} refused or unanswered, {rate:.0} rows/s")
    };
    let terminal = std::io::stderr().is_terminal();
    let every = if terminal { Duration::from_millis(250) } else { Duration::from_secs(5) };
    let total = shared.deadline.saturating_duration_since(start);
    let bar = terminal.then(|| {
        let length = shared.args.requests.unwrap_or(total.as_millis() as u64);
        let bar = indicatif::ProgressBar::new(length);
        if let Ok(style) = indicatif::ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {msg}") {
            bar.set_style(style);
        }
        Clearing(bar)
    });
    let (mut last, mut last_at) = (0, start);
    loop {
        tokio::time::sleep(every).await;
        let (acked, now) = (shared.acked.load(Relaxed), Instant::now());
        let rate = ((acked - last) * rows) as f64 / (now - last_at).as_secs_f64().max(1e-6);
        (last, last_at) = (acked, now);
        match &bar {
            Some(bar) => {
                let done = acked + shared.other.load(Relaxed);
                bar.0.set_position(if shared.args.requests.is_some() { done } else { start.elapsed().as_millis() as u64 });
                bar.0.set_message(line(rate));
            }
            None => {
                use std::io::Write as _;
                // Progress is a courtesy: a closed stderr does not stop the run.
                let _ = writeln!(std::io::stderr(), "{:.0} s: {}", start.elapsed().as_secs_f64(), line(rate));
            }
        }
    }
}

/// Takes the bar off the terminal however its task ends.
struct Clearing(indicatif::ProgressBar);

impl Drop for Clearing {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// What is known about a request so far.
#[derive(Default)]
struct Fate {
    attempts: u32,
    /// Some attempt may have been stored without our knowing.
    doubt: bool,
    answer: Option<Answer>,
    reason: Option<String>,
}

impl Fate {
    fn acked(&self) -> bool {
        self.answer.as_ref().is_some_and(|a| a.status == 204)
    }

    /// Whether sending it again could tell more.
    fn open(&self) -> bool {
        match self.answer.as_ref().map(|a| a.status) {
            None | Some(429 | 503) => true,
            Some(_) => self.doubt && !self.settled(),
        }
    }

    /// The last answer says for certain what happened, whatever came before: 204, or a 4xx about the request itself.
    fn settled(&self) -> bool {
        matches!(self.answer.as_ref().map(|a| a.status), Some(204 | 400..=428 | 430..=499))
    }

    fn outcome(&self) -> Outcome {
        match &self.answer {
            _ if self.acked() => Outcome::Acked,
            _ if self.settled() => Outcome::Refused,
            Some(_) if !self.doubt => Outcome::Refused,
            None if !self.doubt => Outcome::Refused,
            _ => Outcome::Unanswered,
        }
    }

    fn take(&mut self, answer: Option<Answer>) {
        self.attempts += 1;
        self.reason = answer.as_ref().filter(|a| a.status == 503).and_then(Answer::reason);
        self.doubt |= match &answer {
            // Success that is not 204 is no acknowledgement, but no refusal either.
            Some(a) => a.status != 204 && a.status < 400 || self.reason.as_deref() == Some("unknown_outcome"),
            None => true,
        };
        self.answer = answer;
    }
}

struct Worker {
    shared: Arc<Shared>,
    stopped: watch::Receiver<Option<Stop>>,
    connection: Option<Connection>,
    encoder: Encoder,
    stats: Stats,
}

impl Worker {
    async fn work(mut self) -> Stats {
        let shared = Arc::clone(&self.shared);
        let (mut body, mut request) = (Vec::new(), Vec::new());
        let rows = u64::from(shared.args.rows);
        while self.connect(shared.deadline).await && Instant::now() < shared.deadline {
            if shared.left.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_err() {
                break;
            }
            let taken = shared.ledger().take();
            let first_id = match taken {
                Ok(id) => id,
                Err(e) => {
                    shared.stop(Stop::Ledger(e.to_string()));
                    break;
                }
            };
            let Some(template) = shared.templates.pick(first_id / rows) else { break };
            let key = shared.args.keys.then(|| format!("{}-{}", shared.run_id, first_id));
            body.clear();
            let now_ms = u64::try_from(shared.clock.wall_us() / 1000).unwrap_or(0);
            template.render(first_id, now_ms, &mut body);
            let encoded = match self.encoder.encode(&body) {
                Ok(encoded) => encoded,
                Err(e) => {
                    shared.stop(Stop::Ledger(format!("cannot compress a body: {e}")));
                    break;
                }
            };
            let payload = encoded.as_deref().unwrap_or(&body);
            request.clear();
            shared.target.head(super::DATABASE, shared.args.encoding.header(), key.as_deref(), payload.len(), &mut request);
            request.extend_from_slice(payload);

            let begun = Instant::now();
            let fate = self.pursue(&request).await;
            let outcome = fate.outcome();
            self.count(&fate, outcome, begun);
            let mut line = Line::new(first_id, first_id + rows - 1, outcome);
            line.tables.clone_from(&template.tables);
            line.key = key;
            line.status = fate.answer.as_ref().map(|a| a.status);
            line.seq = fate.answer.as_ref().filter(|a| a.status == 204).and_then(|a| a.sequence);
            line.reason = fate.reason;
            line.attempts = (fate.attempts > 1).then_some(fate.attempts);
            shared.ledger().record(&line);
            let pause = fate.answer.is_some_and(|a| matches!(a.status, 429 | 503));
            if pause && !self.pause(BACKOFF_MIN * 5).await {
                break;
            }
        }
        self.stats
    }

    fn count(&mut self, fate: &Fate, outcome: Outcome, begun: Instant) {
        self.stats.requests += 1;
        self.stats.retries += u64::from(fate.attempts.saturating_sub(1));
        if outcome == Outcome::Acked {
            self.stats.acked += 1;
            self.stats.replayed += u64::from(fate.answer.as_ref().is_some_and(|a| a.replayed));
            self.stats.latency.saturating_record(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
            self.shared.acked.fetch_add(1, Relaxed);
            return;
        }
        self.shared.other.fetch_add(1, Relaxed);
        match outcome {
            Outcome::Refused => self.stats.refused += 1,
            _ => self.stats.unanswered += 1,
        }
    }

    /// Sends the request, with `--keys` until the outcome is certain or time is up.
    async fn pursue(&mut self, request: &[u8]) -> Fate {
        let mut fate = Fate::default();
        let last = self.shared.deadline + self.shared.args.retry_for;
        let mut backoff = BACKOFF_MIN;
        loop {
            self.attempt(request, &mut fate).await;
            if !self.shared.args.keys || !fate.open() {
                return fate;
            }
            // A stop, or the end of patience, leaves the request as it stands.
            if Instant::now() + backoff >= last || !self.pause(backoff).await || !self.connect(last).await {
                return fate;
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn attempt(&mut self, request: &[u8], fate: &mut Fate) {
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        self.stats.bytes_sent += request.len() as u64;
        let answer = tokio::select! {
            biased;
            _ = self.stopped.wait_for(Option::is_some) => None,
            answered = tokio::time::timeout(self.shared.args.timeout, connection.exchange(request)) => match answered {
                Ok(Ok(answer)) => Some(answer),
                Ok(Err(e)) => {
                    self.stats.first_error.get_or_insert_with(|| e.to_string());
                    None
                }
                Err(_) => {
                    self.stats.first_error.get_or_insert_with(|| format!("no answer within {:?}", self.shared.args.timeout));
                    None
                }
            },
        };
        if let Some(a) = answer.as_ref().filter(|a| a.status != 204) {
            self.stats.first_error.get_or_insert_with(|| a.error());
        }
        if answer.as_ref().is_none_or(|a| a.close) {
            self.connection = None;
        }
        if let Some(a) = &answer {
            *self.stats.statuses.entry(a.status).or_default() += 1;
        }
        fate.take(answer);
        if let Some(reason) = &fate.reason {
            *self.stats.reasons.entry(reason.clone()).or_default() += 1;
        }
    }

    /// Makes sure of a connection; false when the run is over before there is one.
    async fn connect(&mut self, until: Instant) -> bool {
        let mut backoff = BACKOFF_MIN;
        while self.connection.is_none() {
            if self.stopped.borrow().is_some() || Instant::now() >= until {
                return false;
            }
            let Shared { target, args, .. } = &*self.shared;
            let opened = tokio::select! {
                biased;
                _ = self.stopped.wait_for(Option::is_some) => return false,
                opened = Connection::open(target, self.shared.tls.as_ref(), args.allow_remote, args.timeout) => opened,
            };
            match opened {
                Ok(connection) => {
                    self.stats.connects += 1;
                    self.connection = Some(connection);
                }
                Err(e) => {
                    self.stats.first_error.get_or_insert_with(|| format!("no connection: {e}"));
                    if !args.tolerate_down || e.kind() == io::ErrorKind::PermissionDenied {
                        self.shared.stop(Stop::Down(e.to_string()));
                        return false;
                    }
                    if !self.pause(backoff.min(until.saturating_duration_since(Instant::now()))).await {
                        return false;
                    }
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
        self.stopped.borrow().is_none()
    }

    /// False if the run was stopped meanwhile.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::select! {
            biased;
            _ = self.stopped.wait_for(Option::is_some) => false,
            () = tokio::time::sleep(time) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Book;
    use super::*;
    use clap::Parser as _;
    use std::collections::HashMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    /// What the server does with the nth request; None hangs up without an answer.
    type Script = fn(u64) -> Option<&'static str>;

    /// Head, by key the bodies that came with it.
    type Seen = Arc<Mutex<HashMap<String, Vec<Vec<u8>>>>>;

    const OK: &str = "HTTP/1.1 204 No Content\r\nx-arc-sequence: 9\r\n\r\n";
    const BAD: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}";
    const NOT_STORED: &str = "HTTP/1.1 503 x\r\ncontent-length: 23\r\n\r\n{\"reason\":\"not_stored\"}";
    const UNKNOWN: &str = "HTTP/1.1 503 x\r\ncontent-length: 28\r\n\r\n{\"reason\":\"unknown_outcome\"}";

    async fn serve(mut stream: TcpStream, script: Script, count: Arc<AtomicU64>, seen: Seen) {
        let mut buffer = Vec::new();
        loop {
            let at = loop {
                if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                    break at + 4;
                }
                if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                    return;
                }
            };
            let head = String::from_utf8(buffer.drain(..at).collect()).unwrap();
            let value = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
            let length: usize = value("content-length:").unwrap().parse().unwrap();
            while buffer.len() < length {
                assert_ne!(stream.read_buf(&mut buffer).await.unwrap(), 0);
            }
            let body: Vec<u8> = buffer.drain(..length).collect();
            assert_eq!(value("x-arc-database:").unwrap(), "bench");
            seen.lock().unwrap().entry(value("idempotency-key:").unwrap_or_default()).or_default().push(body);
            match script(count.fetch_add(1, Relaxed)) {
                Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                None => return,
            }
        }
    }

    fn bench(script: Script, flags: &[&str]) -> (Report, Book, HashMap<String, Vec<Vec<u8>>>, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen: Seen = Seen::default();
        let report = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let (count, seen) = (Arc::new(AtomicU64::new(0)), Arc::clone(&seen));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, script, Arc::clone(&count), Arc::clone(&seen)));
                }
            });
            let ledger = path.to_str().unwrap();
            let mut line = vec!["bench", "--url", &url, "--ledger", ledger, "--rows", "10", "--connections", "2"];
            line.extend_from_slice(flags);
            let args = Cli::parse_from(line).run;
            let target = Target::parse(args.url.as_deref().unwrap(), "/api/v1/write/msgpack").unwrap();
            drive(args, target).await.unwrap()
        });
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        (report, Book::load(&path).unwrap(), seen, std::fs::read_to_string(&path).unwrap())
    }

    fn count(book: &Book, outcome: Outcome) -> usize {
        book.ranges.iter().filter(|r| r.outcome == outcome).count()
    }

    #[test]
    fn without_keys_each_request_is_sent_once() {
        let script: Script = |n| match n % 5 {
            1 => None,
            2 => Some(BAD),
            3 => Some(NOT_STORED),
            4 => Some(UNKNOWN),
            _ => Some(OK),
        };
        let (report, book, seen, text) = bench(script, &["--requests", "50"]);
        let s = &report.stats;
        assert_eq!((s.requests, s.acked, s.refused, s.unanswered, s.retries), (50, 10, 20, 20, 0));
        assert_eq!(seen[""].len(), 50);
        assert_eq!(count(&book, Outcome::Acked), 10);
        assert_eq!(count(&book, Outcome::Refused), 20);
        assert_eq!(count(&book, Outcome::Unanswered), 20);
        assert_eq!(s.reasons["unknown_outcome"], 10);
        assert_eq!(s.statuses[&503], 20);
        assert_eq!(report.ids, (1, 501));
        assert!(text.contains("\"outcome\":\"acked\",\"tables\":[\"bench_0\"],\"status\":204,\"seq\":9"), "{text}");
    }

    #[test]
    fn with_keys_requests_are_repeated_until_they_are_answered() {
        let script: Script = |n| match n % 4 {
            0 => Some(OK),
            1 => None,
            2 => Some(NOT_STORED),
            _ => Some(UNKNOWN),
        };
        let (report, book, seen, _) = bench(script, &["--requests", "20", "--keys", "--encoding", "gzip"]);
        assert_eq!((report.stats.acked, report.stats.unanswered), (20, 0));
        assert_eq!(count(&book, Outcome::Acked), 20);
        assert_eq!(seen.len(), 20, "a key a request");
        assert!(seen.keys().all(|k| k.starts_with(&report.run_id)));
        assert!(seen.values().all(|bodies| bodies.iter().all(|b| *b == bodies[0])), "the same body each time");
        assert_eq!(report.stats.retries, seen.values().map(|b| b.len() as u64 - 1).sum::<u64>());
    }

    #[test]
    fn doubt_stays_until_it_is_settled() {
        let get = |answers: &[Option<&str>]| {
            let mut fate = Fate::default();
            for a in answers {
                let status = a.map(|a| a[..3].parse().unwrap());
                let body = a.map_or_else(Vec::new, |a| format!("{{\"reason\":\"{}\"}}", a[3..].trim()).into_bytes());
                fate.take(status.map(|status| Answer { status, body, ..Answer::default() }));
            }
            (fate.outcome(), fate.open())
        };
        assert_eq!(get(&[Some("204")]), (Outcome::Acked, false));
        assert_eq!(get(&[None]), (Outcome::Unanswered, true));
        assert_eq!(get(&[Some("503 unknown_outcome")]), (Outcome::Unanswered, true));
        assert_eq!(get(&[Some("503 backlog")]), (Outcome::Refused, true));
        assert_eq!(get(&[None, Some("503 backlog")]), (Outcome::Unanswered, true));
        assert_eq!(get(&[None, Some("500")]), (Outcome::Unanswered, true));
        assert_eq!(get(&[Some("500")]).0, Outcome::Refused);
        assert_eq!(get(&[None, Some("429")]), (Outcome::Unanswered, true));
        assert_eq!(get(&[None, Some("422")]), (Outcome::Refused, false));
        assert_eq!(get(&[None, Some("204")]), (Outcome::Acked, false));
        assert_eq!(get(&[Some("200")]).0, Outcome::Unanswered);
    }

    #[test]
    fn a_run_without_a_server_ends() {
        let url = "http://127.0.0.1:9";
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (flag, down) in [("--tolerate-down=true", false), ("--tolerate-down=false", true)] {
            let args = Cli::parse_from(["bench", "--url", url, "--duration", "100ms", flag]).run;
            let report = runtime.block_on(drive(args, Target::parse(url, "/api/v1/write/msgpack").unwrap())).unwrap();
            assert_eq!((report.stats.requests, report.stopped_by.is_some()), (0, down));
        }
    }
}
