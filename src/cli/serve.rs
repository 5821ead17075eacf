//! `arc serve`: the server.
//!
//! A second signal while it stops ends it with 1. Exit codes beyond the common ones: 3 the log needs a decision (forked, files missing, `wal.on_damage = "refuse"`), 75 the log is
//! locked by another process.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::access::{Access, BOOTSTRAP};
use super::descriptors::{self, Share};
use super::logging::{Levels, init_logging};
use super::reload::Reload;
use super::{EXIT_FAILURE, EXIT_IO, Global, notify, print_within, settings, start};
use crate::clock::{SharedClock, SystemClock};
use crate::compact::control::{Control, Shipped};
use crate::config::{self, Config};
use crate::http::engine::{Engine, Running};
use crate::http::{App, Settings as HttpSettings, listen, serve_tls};
use crate::idempotency::Keys;
use crate::log_writer;
use crate::metrics::Metrics;
use crate::node::{self, NodeError};
use crate::vfs::{OsVfs, Vfs};
use crate::wal::prealloc::Preallocator;
use crate::wal::recover::{OpenError, Progress};
use crate::wal::{Appender, Shared};

/// The log needs a decision by a person.
pub const EXIT_DECISION: u8 = 3;
/// The log is open in another process.
pub const EXIT_LOCKED: u8 = 75;
/// How long the banner may hold up the start where nobody reads stdout.
const BANNER_WAIT: Duration = Duration::from_secs(1);

pub fn run(global: &Global) -> ExitCode {
    let (config, origins, warnings) = match global.load() {
        Ok(x) => x,
        Err(e) => return global.refuse(&e),
    };
    let levels = init_logging(&config, global);
    for w in &warnings {
        tracing::warn!("{w}");
    }
    let share = descriptors::divide(descriptors::raise(), &config);
    descriptors::warn(&share, &config);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().thread_name("arc-http").build() {
        Ok(r) => r,
        Err(e) => {
            global.error(format!("starting the runtime: {e}"));
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let code = runtime.block_on(main(global, config, origins.file.as_deref(), levels, share));
    // A build that is under way may take longer than the deadline: every step of it can be repeated.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// The machines of an open log.
struct Machines {
    shared: Arc<Shared>,
    control: Arc<Control>,
    keys: Arc<Keys>,
    prealloc: Arc<Preallocator>,
    preparer: JoinHandle<()>,
    committer: JoinHandle<()>,
    compactor: JoinHandle<()>,
}

async fn main(global: &Global, config: Config, file: Option<&Path>, levels: Levels, share: Share) -> u8 {
    let clock = SystemClock::shared();
    let metrics = Metrics::new();
    let listener = match listen(&config.server.host, config.server.port).await {
        Ok(l) => l,
        Err(e) => {
            let (text, is_config) = start::listen_error(&config, &e);
            global.error(text);
            return if is_config { config::EXIT_CONFIG } else { EXIT_FAILURE };
        }
    };
    let address = match listener.local_addr() {
        Ok(a) => a,
        Err(e) => {
            global.error(format!("listening socket: {e}"));
            return EXIT_FAILURE;
        }
    };
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (mut term, mut int, mut hup) = match signals {
        (Ok(t), Ok(i), Ok(h)) => (t, i, h),
        (Err(e), _, _) | (_, Err(e), _) | (_, _, Err(e)) => {
            global.error(format!("signals: {e}"));
            return EXIT_FAILURE;
        }
    };
    let preset = match std::env::var_os(BOOTSTRAP).filter(|v| !v.is_empty()).map(std::ffi::OsString::into_string).transpose() {
        Ok(preset) => preset,
        Err(_) => {
            global.error(format!("{BOOTSTRAP}: expected printable ASCII"));
            return config::EXIT_CONFIG;
        }
    };
    let filesystem = match start::filesystem(&config) {
        Ok(kind) => kind,
        Err(why) => {
            global.error(why);
            return config::EXIT_CONFIG;
        }
    };
    metrics.wal_unsafe_filesystem.set(f64::from(u8::from(filesystem.is_some())));
    if config.compaction.paused {
        tracing::warn!("compaction.paused = true: nothing is shipped to the lake, and writes stop once the log is full");
    }
    let (access, first) = match Access::open(&config, &clock, preset.as_deref()) {
        Ok(opened) => opened,
        Err((why, code)) => {
            global.error(why);
            return code;
        }
    };
    let shown = print_within(banner(&config, &access.banner(address, first.as_ref()), file), BANNER_WAIT);
    if !shown && first.is_some() {
        tracing::warn!("the first token could not be shown on stdout; `arc token create NAME --permissions admin` makes another");
    }
    drop((preset, first));
    let mut reload = Reload::new(global, &config, levels, access.clone(), Arc::clone(&metrics));
    tokio::spawn(async move {
        while hup.recv().await.is_some() {
            // Reads files: beside the requests, one at a time.
            let again = tokio::task::spawn_blocking(move || {
                reload.run();
                reload
            });
            reload = match notify::reloading(again).await {
                Ok(reload) => reload,
                Err(e) => return tracing::error!("a reload ended by a panic, there will be no other: {e}"),
            };
        }
    });
    tokio::spawn(access.clone().follow(clock.clone(), Arc::clone(&metrics)));
    let engine = Engine::new(settings::write_settings(&config), clock.clone(), Arc::clone(&metrics));
    metrics.http_max_connections.set(share.connections as f64);
    let http = HttpSettings { max_connections: share.connections, ..settings::http_settings(&config) };
    let app = App::with_tokens(Arc::clone(&engine), Arc::clone(&metrics), http, access.tokens);
    engine.note_process("max_connections", share.connections);
    engine.note_process("open_files_limit", share.limit);
    engine.note_process("wal_filesystem", filesystem);
    let (stop_http, stopped) = tokio::sync::oneshot::channel::<()>();
    let http = tokio::spawn(serve_tls(listener, app, access.tls, async move {
        let _ = stopped.await;
    }));

    let opening = {
        let (config, engine, metrics, clock) = (config.clone(), Arc::clone(&engine), Arc::clone(&metrics), clock.clone());
        tokio::task::spawn_blocking(move || open_log(&config, &engine, metrics, clock))
    };
    let opened = tokio::select! {
        r = opening => r,
        _ = term.recv() => return 0,
        _ = int.recv() => return 0,
    };
    let machines = match opened {
        Ok(Ok(m)) => m,
        Ok(Err(NodeError::Log(e))) => {
            global.error(&e);
            return match e {
                OpenError::Locked(_) => EXIT_LOCKED,
                OpenError::Refused(_) => EXIT_DECISION,
                OpenError::Io { .. } => EXIT_IO,
            };
        }
        Ok(Err(NodeError::Other(e))) => {
            global.error(e);
            return EXIT_IO;
        }
        Err(e) => {
            global.error(format!("recovery ended by a panic: {e}"));
            return EXIT_FAILURE;
        }
    };
    tracing::info!(log = %machines.shared.log, address = %address, durable = machines.shared.watermarks().durable, "ready");
    notify::ready();
    tokio::spawn(notify::watch(Arc::clone(&machines.shared)));

    let why = watch(&machines, &config, &mut term, &mut int).await;
    notify::stopping(config.server.shutdown_timeout);
    match why {
        Ended::Signal => {}
        Ended::Poisoned => {
            global.error("a sync of the log failed: every acknowledged row is on disk; check the disk and restart");
            return EXIT_IO;
        }
        Ended::Forked(e) => {
            global.error(e);
            return EXIT_DECISION;
        }
        Ended::Thread(name) => {
            global.error(format!("the {name} thread ended by itself, which is a bug: every acknowledged row is on disk; restart"));
            return EXIT_FAILURE;
        }
    }
    let again = async {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    };
    tokio::select! {
        code = shut_down(&config, machines, stop_http, http) => code,
        () = again => {
            tracing::warn!("second signal: ending at once; what is acknowledged is in the log");
            EXIT_FAILURE
        }
    }
}

enum Ended {
    Signal,
    Poisoned,
    Forked(String),
    Thread(&'static str),
}

async fn watch(m: &Machines, config: &Config, term: &mut tokio::signal::unix::Signal, int: &mut tokio::signal::unix::Signal) -> Ended {
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let mut poisoned_at: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = term.recv() => return Ended::Signal,
            _ = int.recv() => return Ended::Signal,
            _ = tick.tick() => {}
        }
        let (bytes, age) = m.shared.backlog();
        m.shared.metrics.process_log_lines_dropped_total.absolute(log_writer::dropped());
        m.shared.metrics.keys_live.set(m.keys.len() as f64);
        m.shared.metrics.ingest_key_evictions_total.absolute(m.keys.early_evictions());
        m.shared.metrics.wal_backlog_bytes.set(bytes as f64);
        m.shared.metrics.wal_backlog_age_seconds.set(age.map_or(0.0, |a| a.as_secs_f64()));
        if let Some(why) = m.control.forked() {
            return Ended::Forked(why);
        }
        if m.shared.is_poisoned() {
            let at = *poisoned_at.get_or_insert_with(Instant::now);
            if at.elapsed() >= config.wal.poison_exit_after {
                return Ended::Poisoned;
            }
        } else if m.committer.is_finished() {
            return Ended::Thread("committer");
        } else if m.compactor.is_finished() {
            return Ended::Thread("compactor");
        } else if m.preparer.is_finished() {
            return Ended::Thread("preallocator");
        }
    }
}

/// Stops accepting, finishes the requests whose body is there (503 to the others), ships what the deadline allows, seals. What is not shipped stays in the log.
async fn shut_down(
    config: &Config,
    m: Machines,
    stop_http: tokio::sync::oneshot::Sender<()>,
    http: tokio::task::JoinHandle<crate::http::Served>,
) -> u8 {
    let deadline = tokio::time::Instant::now() + config.server.shutdown_timeout;
    tracing::info!("stopping: no new requests, finishing what has come");
    m.shared.stop();
    let _ = stop_http.send(());
    let _ = tokio::time::timeout_at(deadline, http).await;
    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
    if !m.control.is_paused() && !m.shared.is_poisoned() && !left.is_zero() {
        // A second is kept for the end.
        match m.control.flush(left.saturating_sub(Duration::from_secs(1)).max(Duration::from_millis(100))).await {
            Shipped::Done { files, rows, .. } => tracing::info!(files, rows, "everything acknowledged is in Parquet"),
            Shipped::Lost(why) => tracing::warn!(error = %why, "everything else is in Parquet"),
            Shipped::TimedOut { through, target } => {
                tracing::info!(through, target, "the deadline is near: the log keeps the rest for the next start")
            }
        }
    }
    m.control.stop();
    m.prealloc.stop();
    m.shared.close_queue();
    let poisoned = m.shared.is_poisoned();
    let (committer, compactor) = (m.committer, m.compactor);
    while !(committer.is_finished() && compactor.is_finished()) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if poisoned { EXIT_IO } else { 0 }
}

fn open_log(config: &Config, engine: &Arc<Engine>, metrics: Arc<Metrics>, clock: SharedClock) -> Result<Machines, NodeError> {
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs);
    let mut last_line = Instant::now();
    notify::recovering(Progress { bytes_done: 0, bytes_total: 0 });
    let store = (Arc::clone(&metrics), clock.clone());
    let sink = |log| settings::open_sink(config, log, &store.0, &store.1);
    let node = node::open(&vfs, settings::node_settings(config), &clock, metrics, sink, &mut |p| {
        engine.recovering(p);
        if last_line.elapsed() > Duration::from_secs(2) {
            last_line = Instant::now();
            notify::recovering(p);
            tracing::info!(bytes_done = p.bytes_done, bytes_total = p.bytes_total, "recovering");
        }
    })?;
    let spawn = |name: &str, f: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.into()).spawn(f).map_err(|e| NodeError::Other(format!("starting thread {name}: {e}")))
    };
    // Held to the end of the process: its threads may still be at work on the log when everything else has ended, and nobody else may have
    // it then.
    std::mem::forget(node.lock);
    let (committer, compactor, prealloc) = (node.committer, node.compactor, Arc::clone(&node.prealloc));
    let preparer = spawn("arc-prealloc", Box::new(move || prealloc.run()))?;
    let committer = spawn("arc-commit", Box::new(move || committer.run()))?;
    let compactor = spawn(
        "arc-compact",
        Box::new(move || {
            // Acknowledgements come first: building waits for them, back-pressure for the building.
            let _ = rustix::process::nice(5);
            compactor.run();
        }),
    )?;
    engine.start(Running {
        shared: Arc::clone(&node.shared),
        appender: Appender::new(Arc::clone(&node.shared)),
        catalog: node.catalog,
        keys: Arc::clone(&node.keys),
        control: Arc::clone(&node.control),
    });
    Ok(Machines { shared: node.shared, control: node.control, keys: node.keys, prealloc: node.prealloc, preparer, committer, compactor })
}

fn banner(config: &Config, (address, access): &(String, String), file: Option<&Path>) -> String {
    let file = file.map_or("defaults (no arc.toml found)".to_owned(), |f| f.display().to_string());
    let sync = match config.wal.sync_mode {
        config::SyncMode::Fdatasync => "fdatasync",
        config::SyncMode::Fsync => "fsync",
        config::SyncMode::UnsafeNone => "NOTHING (wal.sync_mode = \"unsafe-none\": a crash of the machine loses acknowledged rows)",
    };
    format!(
        "arc {version}\n  listening   {address}\n  log         {log}\n  lake        {lake}\n  config      {file}\n  \
         204 means   the rows are in the log and {sync} has returned; they reach Parquet exactly once\n{access}",
        version = env!("CARGO_PKG_VERSION"),
        log = config.wal.directory.display(),
        lake = settings::lake_name(config),
    )
}
