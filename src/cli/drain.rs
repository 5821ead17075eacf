//! `arc drain DIR`: ships what the log of a stopped node still holds, under that log's own identity, and ends.
//!
//! It is a start of that node without a door ([`crate::node::NodeSettings::for_drain`]): recovery, plans, names and commits are those of
//! the server, so it may be killed and repeated, and the node may come back before or after it.
//!
//! Exit codes beyond the common ones: 0 every row of the log is in committed Parquet; 1 not a log, stopped or out of time; 3 a person is
//! needed (forked, files missing, an output that cannot be published, a plan that cannot begin, or rows that lie in the quarantine or were
//! lost to damage: the directory still holds what there is of them); 74 an I/O error, 75 a server has the log open.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::logging::init_logging;
use super::serve::{EXIT_DECISION, EXIT_LOCKED};
use super::{EXIT_FAILURE, EXIT_IO, Global, descriptors, print, settings};
use crate::clock::SystemClock;
use crate::compact::control::{Control, Deferred};
use crate::config::value::parse_duration;
use crate::config::{Config, LogLevel, Origin};
use crate::metrics::Metrics;
use crate::node::{self, LeftBehind, Node, NodeError};
use crate::tools::{self, ToolError};
use crate::types::{LogId, Sequence};
use crate::vfs::{OsVfs, Vfs};
use crate::wal::Shared;
use crate::wal::prealloc::Preallocator;
use crate::wal::recover::{OpenError, clear_scratch};
use crate::wal::shared::lock;

/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often it is said where there is no terminal.
const SAY: Duration = Duration::from_secs(5);
/// How long the end of a step is waited for, which may be a call of the store.
const LAST_STEP: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
pub struct DrainArgs {
    /// Directory of the log of a stopped node. `wal.directory` of the configuration is not used
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Give up after this long, such as 90s, 5m; what is shipped by then stays shipped [default: none]
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub timeout: Option<Duration>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

fn timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text).filter(|d| !d.is_zero()).ok_or_else(|| "expected a duration, such as 500ms, 20s, 5m, 2h".into())
}

/// How a drain has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Ended {
    Drained,
    /// Everything but outputs that attempts do not publish.
    Waiting,
    /// The next plan cannot begin: it and what is behind it are in the log.
    Barred(String),
    /// Forked, or not the lake of this log, or a store that cannot be used safely.
    Refused(String),
    Failed(String),
    Thread(&'static str),
    TimedOut,
    Stopped,
}

impl Ended {
    fn word(&self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Waiting | Self::Barred(_) => "waiting",
            Self::Refused(why) => {
                if why.starts_with("forked") {
                    "forked"
                } else {
                    "refused"
                }
            }
            Self::Failed(_) | Self::Thread(_) => "failed",
            Self::TimedOut => "timeout",
            Self::Stopped => "stopped",
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    status: &'static str,
    log_uuid: String,
    /// All rows through this sequence are in committed Parquet, or set aside.
    through_seq: Sequence,
    target_seq: Sequence,
    /// Committed by this run.
    files: u64,
    rows: u64,
    plans: u64,
    quarantined: Held,
    /// Places that recoveries or plans have found damaged.
    damage: u64,
    deferred: Held,
    /// Segments in the directory: one, empty, when all is done.
    segments_left: usize,
    last_error: Option<String>,
}

/// Records, or outputs, and their bytes.
#[derive(Debug, Serialize)]
struct Held {
    records: u64,
    bytes: u64,
}

/// Runs `arc drain`.
pub fn run(global: &Global, args: &DrainArgs) -> ExitCode {
    let deadline = args.timeout.and_then(|t| Instant::now().checked_add(t));
    let dir = match std::path::absolute(&args.dir) {
        Ok(d) => d,
        Err(e) => {
            global.error(format!("{}: {e}", args.dir.display()));
            return ExitCode::from(EXIT_IO);
        }
    };
    let mut global = global.clone();
    let Some(text) = dir.to_str() else {
        global.error(format!("{}: expected a path in UTF-8; give it another name", dir.display()));
        return ExitCode::from(2);
    };
    global.sets.push(format!("wal.directory={text}"));
    let (mut config, origins, warnings) = match global.load() {
        Ok(x) => x,
        Err(e) => return global.refuse(&e),
    };
    let bar = std::io::stderr().is_terminal();
    if bar && origins.get("log.level") == Some(&Origin::Default) && config.log_filter.is_none() {
        // The bar says what lines at info would.
        config.log.level = LogLevel::Warn;
    }
    init_logging(&config, &global);
    descriptors::raise();
    for w in &warnings {
        tracing::warn!("{w}");
    }
    if let Err(e) = tools::entries(&OsVfs, &dir) {
        global.error(&e);
        return ExitCode::from(if matches!(e, ToolError::NotALog(_)) { EXIT_FAILURE } else { EXIT_IO });
    }
    let node = match open(&config, &dir) {
        Ok(n) => n,
        Err(e) => return refused(&global, &e),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => {
            global.error(format!("starting the runtime: {e}"));
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let code = match runtime.block_on(drain(node, &dir, deadline, bar)) {
        Ok((ended, report)) => said(&global, &dir, &ended, &report, args.json),
        Err(e) => {
            global.error(e);
            EXIT_FAILURE
        }
    };
    ExitCode::from(code)
}

fn refused(global: &Global, e: &NodeError) -> ExitCode {
    global.error(e);
    ExitCode::from(match e {
        NodeError::Log(OpenError::Locked(_)) => EXIT_LOCKED,
        NodeError::Log(OpenError::Refused(_)) => EXIT_DECISION,
        NodeError::Log(OpenError::Io { .. }) | NodeError::Other(_) => EXIT_IO,
    })
}

fn open(config: &Config, dir: &Path) -> Result<Node, NodeError> {
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs);
    let left = LeftBehind::read(&*vfs, dir);
    if let Some(w) = &left.writer {
        let (theirs, ours) = (&w.layout, config.storage.layout.to_string());
        if *theirs != ours {
            tracing::warn!(
                "the last plan of this log has storage.layout = \"{theirs}\", here it is \"{ours}\": its files keep \"{theirs}\""
            );
        }
    }
    let settings = settings::node_settings(config).for_drain(&left).map_err(NodeError::Other)?;
    let (metrics, clock) = (Metrics::new(), SystemClock::shared());
    let store = (Arc::clone(&metrics), clock.clone());
    let sink = |log| settings::open_sink(config, log, &store.0, &store.1);
    let mut last_line = Instant::now();
    node::open(&vfs, settings, &clock, metrics, sink, &mut |p| {
        if last_line.elapsed() > SAY {
            last_line = Instant::now();
            tracing::info!(bytes_done = p.bytes_done, bytes_total = p.bytes_total, "reading the log");
        }
    })
}

/// The machines of the log that is drained.
struct Machines {
    log: LogId,
    shared: Arc<Shared>,
    control: Arc<Control>,
    prealloc: Arc<Preallocator>,
    committer: JoinHandle<()>,
    preparer: Option<JoinHandle<()>>,
    compactor: JoinHandle<()>,
    target: Sequence,
}

fn start(node: Node) -> Result<Machines, String> {
    let spawn = |name: &str, f: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.into()).spawn(f).map_err(|e| format!("starting thread {name}: {e}"))
    };
    // As in the server: nobody else may have the log while a thread of this process may be at work on it.
    std::mem::forget(node.lock);
    let w = node.shared.watermarks();
    let (committer, compactor, prealloc) = (node.committer, node.compactor, Arc::clone(&node.prealloc));
    // A spare is wanted only to seal what recovery has copied.
    let preparer = if w.durable > w.sealed { Some(spawn("arc-prealloc", Box::new(move || prealloc.run()))?) } else { None };
    let committer = spawn("arc-commit", Box::new(move || committer.run()))?;
    let compactor = spawn(
        "arc-compact",
        Box::new(move || {
            // A server on the same machine comes first.
            let _ = rustix::process::nice(5);
            compactor.run();
        }),
    )?;
    Ok(Machines {
        log: node.shared.log,
        shared: node.shared,
        control: node.control,
        prealloc: node.prealloc,
        committer,
        preparer,
        compactor,
        target: w.durable,
    })
}

/// What more time does not change, by what is released, deferred, and in the way of the next plan.
fn come_to(released: bool, deferred: &Deferred, barred: Option<String>) -> Option<Ended> {
    if released && deferred.outputs == 0 {
        return Some(Ended::Drained);
    }
    if released && deferred.stuck >= deferred.outputs {
        return Some(Ended::Waiting);
    }
    barred.filter(|_| !released).map(Ended::Barred)
}

impl Machines {
    /// What the drain has come to, if it has come to its end.
    fn ended(&self) -> Option<Ended> {
        if let Some(why) = self.control.forked() {
            return Some(Ended::Refused(why));
        }
        if self.shared.is_poisoned() {
            return Some(Ended::Failed(self.shared.poison_message().unwrap_or_default()));
        }
        let released = self.shared.watermarks().shipped >= self.target && lock(&self.shared.segments).sealed.is_empty();
        if let Some(e) = come_to(released, &self.control.deferred(), self.control.barred()) {
            return Some(e);
        }
        if self.compactor.is_finished() {
            return Some(Ended::Thread("compactor"));
        }
        if self.committer.is_finished() {
            return Some(Ended::Thread("committer"));
        }
        // Without a spare nothing seals.
        if self.preparer.as_ref().is_some_and(JoinHandle::is_finished) {
            return Some(Ended::Thread("preallocator"));
        }
        None
    }

    fn are_finished(&self) -> bool {
        self.committer.is_finished() && self.compactor.is_finished() && self.preparer.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn report(&self, ended: &Ended) -> Report {
        let (files, rows) = self.control.totals();
        let (records, bytes) = self.control.quarantined();
        let deferred = self.control.deferred();
        let s = lock(&self.shared.segments);
        let segments_left = s.sealed.len() + usize::from(s.active.is_some());
        drop(s);
        Report {
            status: ended.word(),
            log_uuid: self.log.to_string(),
            through_seq: self.control.committed_through(),
            target_seq: self.target,
            files,
            rows,
            plans: self.control.plans().0,
            quarantined: Held { records, bytes },
            damage: self.control.damage().len() as u64,
            deferred: Held { records: deferred.outputs, bytes: deferred.bytes },
            segments_left,
            last_error: self.shared.last_error(),
        }
    }
}

async fn drain(node: Node, dir: &Path, deadline: Option<Instant>, bar: bool) -> Result<(Ended, Report), String> {
    let handler = |kind| signal(kind).map_err(|e| format!("signals: {e}"));
    let (mut term, mut int) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    let m = start(node)?;
    tracing::info!(log = %m.log, through = m.target, shipped = m.shared.watermarks().shipped, "draining");
    let mut shown = Shown::new(bar, m.control.committed_through(), m.target);
    let ended = loop {
        if let Some(e) = m.ended() {
            break e;
        }
        if deadline.is_some_and(|d| Instant::now() >= d) {
            break Ended::TimedOut;
        }
        shown.update(&m);
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = either(&mut term, &mut int) => break Ended::Stopped,
        }
    };
    m.control.stop();
    m.prealloc.stop();
    m.shared.close_queue();
    let until = Instant::now() + LAST_STEP;
    while !m.are_finished() && Instant::now() < until {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
            // Every step can be repeated.
            () = either(&mut term, &mut int) => break,
        }
    }
    shown.end();
    let report = m.report(&ended);
    if m.are_finished()
        && let Err(e) = clear_scratch(&OsVfs, dir)
    {
        tracing::warn!(error = %e, "removing what was prepared and is not needed");
    }
    Ok((ended, report))
}

async fn either(a: &mut Signal, b: &mut Signal) {
    tokio::select! { _ = a.recv() => {}, _ = b.recv() => {} }
}

/// Says how it ended, and what a person should know before the directory is thrown away; the exit code.
fn said(global: &Global, dir: &Path, ended: &Ended, r: &Report, json: bool) -> u8 {
    let text = if json {
        super::wal::json_line(r)
    } else {
        format!(
            "log {}: {}, through sequence {} of {}; {} rows in {} files committed by this run; segments left: {}\n",
            r.log_uuid, r.status, r.through_seq, r.target_seq, r.rows, r.files, r.segments_left
        )
    };
    let printed = print(&text);
    let dir = dir.display();
    let mut code = 0;
    if r.quarantined.records > 0 {
        global.warn(format!(
            "{} slices are in {dir}/quarantine and in no Parquet file: keep them; `arc quarantine list {dir}` says what they are",
            r.quarantined.records
        ));
        code = EXIT_DECISION;
    }
    if r.damage > 0 {
        global.warn(format!(
            "{} places of this log were found damaged, records that stood there are lost: what could be read of them is in {dir}/side, and the \
             manifest names them. If there are copies of those segments, see docs/operations.md, \"Damage was reported\"",
            r.damage
        ));
        code = EXIT_DECISION;
    }
    match ended {
        Ended::Drained => {}
        Ended::Waiting => {
            global.error(format!(
                "{} outputs cannot be published: their records are in {dir}/side/out-*.wal, everything else is in Parquet. Last error: {}. \
                 See docs/operations.md, \"An output waits\", then drain again",
                r.deferred.records,
                r.last_error.as_deref().unwrap_or("none")
            ));
            code = EXIT_DECISION;
        }
        Ended::Barred(why) => {
            global.error(format!("{why}. What is not shipped is in {dir}. See docs/operations.md, \"An output waits\", then drain again"));
            code = EXIT_DECISION;
        }
        Ended::Refused(why) => {
            global.error(why);
            code = EXIT_DECISION;
        }
        Ended::Failed(why) => {
            global.error(format!("a sync of the log failed ({why}): check the disk, then drain again; what is committed stays so"));
            code = EXIT_IO;
        }
        Ended::Thread(name) => {
            global.error(format!("the {name} thread ended by itself, which is a bug; nothing is lost: drain again"));
            code = EXIT_FAILURE;
        }
        Ended::TimedOut | Ended::Stopped => {
            let why = if *ended == Ended::TimedOut { "out of time" } else { "stopped by a signal" };
            let last = r.last_error.as_ref().map(|e| format!(" Last error: {e}")).unwrap_or_default();
            global.error(format!("{why}: the log keeps what is not shipped yet; drain again.{last}"));
            code = EXIT_FAILURE;
        }
    }
    if printed != ExitCode::SUCCESS && code == 0 { EXIT_IO } else { code }
}

/// Progress on stderr: a bar on a terminal, else a line of the log every few seconds.
struct Shown {
    bar: Option<ProgressBar>,
    from: Sequence,
    last: Instant,
}

impl Shown {
    fn new(bar: bool, from: Sequence, target: Sequence) -> Self {
        let bar = bar.then(|| {
            let bar = ProgressBar::new(target.saturating_sub(from));
            if let Ok(style) = ProgressStyle::with_template("draining [{bar:30}] {pos}/{len} requests {eta} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, from, last: Instant::now() }
    }

    fn update(&mut self, m: &Machines) {
        let through = m.control.committed_through();
        if let Some(bar) = &self.bar {
            bar.set_position(through.saturating_sub(self.from));
            if let Some(e) = m.shared.last_error() {
                bar.set_message(e);
            }
        } else if self.last.elapsed() >= SAY {
            self.last = Instant::now();
            let (files, rows) = m.control.totals();
            tracing::info!(through, of = m.target, files, rows, last_error = m.shared.last_error(), "draining");
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A drain ends as soon as more time changes nothing: not while an output may still go by itself.
    #[test]
    fn a_drain_ends_when_all_that_is_left_needs_somebody() {
        let left = |outputs, stuck| Deferred { outputs, stuck, ..Deferred::default() };
        assert_eq!(come_to(true, &left(0, 0), None), Some(Ended::Drained));
        assert_eq!(come_to(true, &left(2, 2), None), Some(Ended::Waiting));
        assert_eq!(come_to(true, &left(2, 1), None), None);
        assert_eq!(come_to(false, &left(2, 2), None), None);
        let barred = come_to(false, &left(1, 0), Some("why".into()));
        assert_eq!(barred, Some(Ended::Barred("why".into())));
        assert_eq!(barred.map(|e| e.word()), Some("waiting"));
    }
}
