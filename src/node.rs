//! An open log with everything that works on it: committer, preallocator, compactor, catalog, keys. The server drives the machines
//! by threads, a simulation step by step.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Catalog;
use crate::clock::SharedClock;
use crate::compact::control::Control;
use crate::compact::lake::LakeCheck;
use crate::compact::worker::{Compactor, Settings as CompactSettings, plan_object};
use crate::format::payload::PayloadView;
use crate::idempotency::{Keys, Newest};
use crate::metrics::Metrics;
use crate::sink::Sink;
use crate::types::LogId;
use crate::vfs::Vfs;
use crate::wal::Shared;
use crate::wal::commit::Committer;
use crate::wal::prealloc::Preallocator;
use crate::wal::recover::{OpenError, Progress, open as open_log};
use crate::wal::shared::LogSettings;

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
    pub idempotency_window: Duration,
    pub idempotency_max_keys: usize,
    /// Where the lake is, for errors.
    pub lake: String,
    /// A lake that does not hold what this log has stored there is taken all the same.
    pub accept_new_lake: bool,
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
    let catalog = Catalog::new(settings.max_columns, settings.max_tables);
    let keys = Keys::new(settings.idempotency_window, settings.idempotency_max_keys, clock.clone());
    let mut fold_error = None;
    // The checkpoint is folded in after the log: definitions are idempotent, and keys are put in order below.
    let mut log_keys = Newest::new(settings.idempotency_max_keys);
    let opened = open_log(
        vfs,
        settings.log,
        clock.clone(),
        metrics,
        &mut |v| match PayloadView::parse(v.payload) {
            Ok(p) => {
                if let Some(k) = p.index.key {
                    log_keys.push(v.header.sequence, k);
                }
                let sequence = v.header.sequence;
                let folded = if v.behind_loss { catalog.fold_behind_loss(sequence, &p) } else { catalog.fold(sequence, &p) };
                if let Err(e) = folded {
                    fold_error.get_or_insert(format!("record {} of segment {}: {e}", v.header.sequence, v.segment));
                }
            }
            Err(e) => {
                fold_error.get_or_insert(format!("record {} of segment {}: {e}", v.header.sequence, v.segment));
            }
        },
        progress,
    )?;
    if let Some(e) = fold_error {
        // A record that passes its CRC and cannot be read is a bug: the compactor will set it aside.
        tracing::error!(error = %e, "a record cannot be read");
    }
    let state = &opened.manifest.state;
    catalog.restore(state.tables.values()).map_err(NodeError::Other)?;
    keys.resume(state.running_ms);
    let checkpoint = &opened.report.state.keys;
    for (s, k) in checkpoint {
        keys.restore(*s, *k);
    }
    let through = checkpoint.last().map_or(0, |(s, _)| *s);
    for (s, k) in log_keys.entries().filter(|(s, _)| *s > through) {
        keys.restore(s, k);
    }
    let shipped_last = state.plans.iter().rev().find(|(_, p)| p.shipped).map(|(k, _)| *k);
    let sink = sink(opened.shared.log).map_err(NodeError::Other)?;
    let known_object = shipped_last.filter(|_| !settings.accept_new_lake).map(|plan| plan_object(opened.shared.log, plan));
    let check = LakeCheck { known_object, lake: settings.lake };
    // A store that is away does not keep a server from taking writes: the compactor asks it what a start wants to know.
    let check = if sink.is_remote() {
        Some(check)
    } else {
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
        None
    };
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
