//! An open log with everything that works on it: committer, preallocator, compactor, catalog, keys. The server drives the machines
//! by threads, a simulation step by step.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::{Catalog, Limits};
use crate::clock::SharedClock;
use crate::compact::control::Control;
use crate::compact::lake::{LakeCheck, NodeFile};
use crate::compact::worker::{Compactor, DRAIN_PATIENCE, Settings as CompactSettings, plan_object};
use crate::compact::{Layout, unknown_setting};
use crate::format::manifest::{NodeLimits, PlanWriter};
use crate::format::payload::PayloadView;
use crate::idempotency::{Keys, Newest};
use crate::limits::BLOCK;
use crate::metrics::Metrics;
use crate::sink::Sink;
use crate::types::LogId;
use crate::vfs::Vfs;
use crate::wal::commit::Committer;
use crate::wal::prealloc::Preallocator;
use crate::wal::recover::{OpenError, Progress, examine, holds_log};
use crate::wal::shared::LogSettings;
use crate::wal::{Shared, files, manifest};

/// What a node is told by its configuration.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    pub log: LogSettings,
    pub compact: CompactSettings,
    /// Nothing is shipped.
    pub paused: bool,
    /// Columns of a table, and tables.
    pub max_columns: usize,
    pub max_tables: usize,
    /// Columns of all tables together, and bytes of all names.
    pub max_total_columns: usize,
    pub max_name_bytes: usize,
    pub idempotency_window: Duration,
    pub idempotency_max_keys: usize,
    /// Where the lake is, for errors.
    pub lake: String,
    /// A lake that does not hold what this log has stored there is taken all the same.
    pub accept_new_lake: bool,
    /// A directory without a log is an error.
    pub require_existing: bool,
    /// The machine's name, which the log leaves in the lake; None: nobody's log begins here.
    pub host: Option<String>,
}

/// What the directory of a log says of the node that wrote it, for whoever drains it.
#[derive(Clone, Debug, Default)]
pub struct LeftBehind {
    /// The settings of its last plan.
    pub writer: Option<PlanWriter>,
    /// Bytes of its reserve.
    pub reserve: u64,
    /// What it has promised its clients.
    pub limits: Option<NodeLimits>,
}

impl LeftBehind {
    /// Reads it, touching nothing. What cannot be read is left to [`open`] to report.
    pub fn read(vfs: &dyn Vfs, dir: &Path) -> Self {
        let loaded = manifest::load(vfs, dir).ok().flatten();
        let limits = loaded.as_ref().and_then(|l| l.state.limits);
        let writer = loaded.and_then(|l| l.state.plans.last_key_value().map(|(_, p)| p.plan.writer.clone()));
        let reserve = vfs.open(&dir.join(files::RESERVE), false).and_then(|f| f.len()).unwrap_or(0);
        Self { writer, reserve, limits }
    }
}

/// Data area of the segment that a drain's start makes: it takes what a torn tail left, no more.
const DRAIN_SEGMENT: u64 = 16 * BLOCK as u64;
/// Longer than any key is kept.
const ALL_KEYS: Duration = Duration::from_secs(100 * 366 * 86_400);

impl NodeSettings {
    /// For a log that another node has left: nothing is written but what its rows need, and what it was told about its files and keys
    /// goes before what this machine would do.
    ///
    /// INVARIANT(drain-is-a-start): a drain is a start of the node without a door. It has no recovery, plans, names or commits of its
    /// own, so that node and drain can take over from each other at any point.
    ///
    /// # Errors
    /// When its last plan was written in a way that this version does not know.
    pub fn for_drain(mut self, left: &LeftBehind) -> Result<Self, String> {
        self.paused = false;
        self.host = None;
        self.log.segment_data = DRAIN_SEGMENT;
        // No limit of this machine's log holds for that one: it has its size already, and nothing is added.
        self.log.max_size = u64::MAX;
        self.log.reserve = left.reserve;
        self.log.pool = 0;
        self.compact.patience = DRAIN_PATIENCE;
        self.idempotency_window = ALL_KEYS;
        // INVARIANT(promises-are-kept): of keys as many are kept as the node has promised, or all there are, where it has not recorded that.
        let promised = left.limits.map_or(usize::MAX, |l| usize::try_from(l.idempotency_max_keys).unwrap_or(usize::MAX));
        self.idempotency_max_keys = self.idempotency_max_keys.max(promised);
        self.log.limits = None;
        if let Some(w) = &left.writer {
            let plan = &mut self.compact.plan;
            if let Some(why) = unknown_setting(w) {
                return Err(format!("the last plan of this log has {why}"));
            }
            // A plan of format 1.0 names no encoding: nobody has asked for one.
            let encoding = w.encoding.clone().or_else(|| plan.writer.encoding.clone());
            plan.writer = PlanWriter { version: plan.writer.version.clone(), encoding, ..w.clone() };
            plan.layout = Layout::parse(&w.layout).ok_or_else(|| format!("layout \"{}\"", w.layout))?;
        }
        Ok(self)
    }
}

/// Why a node could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Log(#[from] OpenError),
    #[error("{0}")]
    Other(String),
}

/// See the module. Nothing runs yet.
pub struct Node {
    pub shared: Arc<Shared>,
    pub control: Arc<Control>,
    pub catalog: Arc<Catalog>,
    pub keys: Arc<Keys>,
    pub committer: Committer,
    pub prealloc: Arc<Preallocator>,
    pub compactor: Compactor,
    /// Held as long as the log is open.
    pub lock: Box<dyn Any + Send + Sync>,
}

/// Opens the log, loads catalog and keys from all of it, opens the store, and takes up what an earlier run has left.
///
/// `sink` is called once the log's id is known; what it fails with names the setting.
///
/// # Errors
/// [`NodeError`].
pub fn open(
    vfs: &Arc<dyn Vfs>,
    settings: NodeSettings,
    clock: &SharedClock,
    metrics: Arc<Metrics>,
    sink: impl FnOnce(LogId) -> Result<Arc<dyn Sink>, String>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Node, NodeError> {
    let catalog = Catalog::with_limits(Limits {
        max_columns: settings.max_columns,
        max_tables: settings.max_tables,
        max_total_columns: settings.max_total_columns,
        max_name_bytes: settings.max_name_bytes,
    });
    let keys = Keys::new(settings.idempotency_window, settings.idempotency_max_keys, clock.clone());
    let mut fold_error = None;
    // The checkpoint is folded in after the log: definitions are idempotent, and keys are put in order below.
    let mut log_keys = Newest::new(settings.idempotency_max_keys);
    let directory = settings.log.directory.clone();
    if settings.require_existing && !holds_log(&**vfs, &directory).map_err(|e| NodeError::Other(format!("{}: {e}", directory.display())))? {
        return Err(OpenError::Refused(format!(
            "{}: holds no log, and wal.require_existing = true: expected the log of this node; mount its disk or correct wal.directory. To \
             begin a new log here, start once with wal.require_existing = false",
            directory.display()
        ))
        .into());
    }
    let mut found = examine(
        vfs,
        settings.log,
        &mut |v| match PayloadView::parse(v.payload) {
            Ok(p) => {
                if let Some(k) = p.index.key {
                    log_keys.push(v.header.sequence, k);
                }
                let sequence = v.header.sequence;
                let folded = if v.behind_loss { catalog.fold_behind_loss(sequence, &p) } else { catalog.fold(sequence, &p) };
                if let Err(e) = folded {
                    fold_error.get_or_insert(format!("{}: record {}: {e}", files::segment_name(v.segment), v.header.sequence));
                }
            }
            Err(e) => {
                fold_error.get_or_insert(format!("{}: record {}: {e}", files::segment_name(v.segment), v.header.sequence));
            }
        },
        progress,
    )?;
    if let Some(e) = fold_error {
        // A record that passes its CRC and cannot be read is a bug: the compactor will set it aside.
        tracing::error!(error = %e, "a record cannot be read");
    }
    // The lake comes before the log: a start that fails here leaves nothing behind.
    let (new_log, log) = (found.is_new(), found.log(clock));
    let state = found.state();
    catalog.restore(state.tables.values()).map_err(NodeError::Other)?;
    let shipped_last = state.plans.iter().rev().find(|(_, p)| p.shipped).map(|(k, _)| *k);
    let sink = sink(log).map_err(NodeError::Other)?;
    let known_object = shipped_last.filter(|_| !settings.accept_new_lake).map(|plan| plan_object(log, plan));
    let next = state.open_plan().map_or(state.next_plan, |p| p.plan.plan);
    let from_plan = if settings.accept_new_lake { next } else { 1 };
    let node = settings.host.map(|host| NodeFile::new(host, &directory, clock.wall_us()));
    let mut check = LakeCheck { known_object, from_plan, lake: settings.lake, node, new_log };
    // A store that is away does not keep a server from taking writes: the compactor asks it what a start wants to know.
    if !sink.is_remote() {
        match check.run(&*sink) {
            Ok(None) => {}
            Ok(Some(why)) => return Err(OpenError::Refused(why).into()),
            Err(e) => return Err(NodeError::Other(format!("lake {}: {e}", check.lake))),
        }
        match sink.sweep() {
            Ok(s) if s.removed > 0 => tracing::info!(removed = s.removed, "removed files that an earlier run had not finished"),
            Ok(_) => {}
            Err(e) => tracing::warn!(error = %e, "looking for unfinished files"),
        }
        check.known_object = None;
    }
    let opened = found.open(clock.clone(), metrics)?;
    keys.resume(opened.manifest.state.running_ms);
    let checkpoint = &opened.report.state.keys;
    keys.restore_all(checkpoint, log_keys);
    let control = Control::new(Arc::clone(&opened.shared), settings.paused);
    let mut compactor = Compactor::new(
        Arc::clone(&opened.shared),
        Arc::clone(&control),
        Arc::clone(vfs),
        sink,
        opened.manifest,
        Arc::clone(&catalog),
        Arc::clone(&keys),
        Arc::clone(&opened.prealloc),
        settings.compact,
    );
    compactor.check_first(check);
    Ok(Node {
        shared: opened.shared,
        control,
        catalog,
        keys,
        committer: opened.committer,
        prealloc: opened.prealloc,
        compactor,
        lock: opened.lock,
    })
}
