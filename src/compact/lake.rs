//! Whether the lake is the one that this log has shipped to, and a store that can be trusted: asked before anything is shipped.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::builder::Trouble;
use super::name::civil_from_days;
use super::worker::{Compactor, plan_object};
use crate::sink::{Sink, SinkError, SinkResult};
use crate::types::LogId;

/// Logs of a lake that a new log looks at.
const MAX_LOGS: usize = 1000;
/// Objects of one log that are looked through for its last plan.
const MAX_PLANS: usize = 200_000;

/// The machine and the directory in which a log began: `_arc/<log>/node.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    pub host: String,
    /// The log's directory, absolute.
    pub directory: PathBuf,
    /// RFC 3339.
    pub first_start: String,
}

impl NodeFile {
    /// For a log in `directory` whose node starts at `now_us`, in microseconds since 1970.
    pub fn new(host: String, directory: &Path, now_us: i64) -> Self {
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
        Self { host, directory, first_start: rfc3339(now_us) }
    }
}

/// The second of a time in microseconds since 1970.
fn rfc3339(us: i64) -> String {
    let seconds = us.div_euclid(1_000_000);
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let s = seconds.rem_euclid(86_400);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// The name of the object that says where a log began.
pub fn node_object(log: LogId) -> String {
    format!("_arc/{log}/node.json")
}

/// Another log of the same host in the lake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OtherLog {
    pub log_uuid: String,
    pub directory: PathBuf,
    pub first_start: String,
    /// The number of its newest plan in the lake.
    pub last_plan: Option<u64>,
}

/// The logs of the same host that the lake holds beside `log`.
fn others(sink: &dyn Sink, log: LogId, node: &NodeFile) -> SinkResult<Vec<OtherLog>> {
    let mut out = Vec::new();
    let own = log.to_string();
    // Beside the logs there are notes on the store.
    for name in sink.children("_arc", MAX_LOGS)?.into_iter().filter(|n| n.len() == own.len() && *n != own) {
        let dir = format!("_arc/{name}");
        let Some(bytes) = sink.get_small(&format!("{dir}/node.json"))? else { continue };
        let Ok(other) = serde_json::from_slice::<NodeFile>(&bytes) else { continue };
        if other.host != node.host {
            continue;
        }
        let plans = sink.children(&dir, MAX_PLANS)?;
        let last_plan = plans.iter().filter_map(|n| n.strip_prefix("plan-")?.parse().ok()).max();
        out.push(OtherLog { log_uuid: name, directory: other.directory, first_start: other.first_start, last_plan });
    }
    Ok(out)
}

/// What is looked for in the lake.
#[derive(Clone, Debug, Default)]
pub struct LakeCheck {
    /// An object that this log has stored before, if there is one.
    pub known_object: Option<String>,
    /// The first plan whose object the lake must hold: above 1 in a lake that took the place of another.
    pub from_plan: u64,
    /// Where the lake is, for errors.
    pub lake: String,
    /// What this log leaves there of its node.
    pub node: Option<NodeFile>,
    /// The log begins with this start.
    pub new_log: bool,
}

impl LakeCheck {
    /// Why this is not the lake, if it is not.
    ///
    /// # Errors
    /// [`SinkError`]: it could not be asked.
    pub fn run(&self, sink: &dyn Sink) -> SinkResult<Option<String>> {
        let (Some(name), lake) = (&self.known_object, &self.lake) else { return Ok(None) };
        if sink.describe(name)?.is_some() {
            return Ok(None);
        }
        Ok(Some(not_the_lake(lake, name)))
    }
}

fn not_the_lake(lake: &str, name: &str) -> String {
    format!(
        "{lake}: the lake does not hold {name}, which this log has stored there: expected the lake that was used before. Mount it or correct \
         storage.local_path (or the bucket and prefix); if it was moved or emptied on purpose, start once with storage.accept_new_lake = true"
    )
}

impl Compactor {
    /// Nothing is shipped before the store was seen to be safe and this check has passed; it is tried until the store answers.
    pub fn check_first(&mut self, check: LakeCheck) {
        self.lake_from = check.from_plan;
        self.unchecked = Some(check);
    }

    /// Leaves the log's node in the lake, and tells of a new log beside another one of the same machine: the disk of the old one may not be
    /// mounted. Neither keeps anything from being shipped.
    fn register(&mut self, check: &LakeCheck) -> Result<(), Trouble> {
        let Some(node) = &check.node else { return Ok(()) };
        let log = self.shared.log;
        let bytes = serde_json::to_vec(node).map_err(|e| Trouble::Retry(e.to_string()))?;
        let put = self.sink.put_small(&node_object(log), &bytes).map(|_| ());
        let found = if check.new_log { put.and_then(|()| others(&*self.sink, log, node)) } else { put.map(|()| Vec::new()) };
        let found = match found {
            Err(e @ SinkError::Transient { .. }) => return Err(e.into()),
            Err(e) => {
                tracing::warn!(error = %e, "the lake does not say which logs it holds");
                return Ok(());
            }
            Ok(found) => found,
        };
        for o in &found {
            tracing::error!(
                new_log = %log,
                new_directory = %node.directory.display(),
                old_log = o.log_uuid,
                old_directory = %o.directory.display(),
                old_first_start = o.first_start,
                old_last_plan = o.last_plan,
                host = node.host,
                "a new log begins although the lake holds another log of this host: expected the old one to go on. Is the disk of \
                 wal.directory mounted? Rows that are not in the lake yet are in the old log: stop this server, mount its disk or correct \
                 wal.directory, and start again. wal.require_existing = true refuses to begin a new log"
            );
        }
        self.control.set_other_logs(found);
        Ok(())
    }

    /// INVARIANT(plan-follows-plan): before plan k writes data, the lake holds the object of plan k-1. A lake that was emptied or
    /// exchanged while the server runs gets nothing.
    pub(super) fn check_previous(&self, plan: u64) -> Result<(), Trouble> {
        let Some(before) = plan.checked_sub(1).filter(|p| *p >= self.lake_from.max(1)) else { return Ok(()) };
        let name = plan_object(self.shared.log, before);
        if self.sink.describe(&name)?.is_some() {
            return Ok(());
        }
        Err(Trouble::Lasting(not_the_lake("before the next plan", &name)))
    }

    /// The same before deferred outputs are published: the newest plan is looked for.
    pub(super) fn check_newest(&self) -> Result<(), Trouble> {
        let shipped = self.manifest.state.plans.iter().rev().find(|(_, p)| p.shipped);
        shipped.map_or(Ok(()), |(k, _)| self.check_previous(k + 1))
    }

    /// INVARIANT(checked-before-shipped): a remote store is asked for nothing else before it has shown that it keeps create-only puts and that
    /// it is the lake of this log.
    pub(super) fn check_lake(&mut self) -> Result<(), Trouble> {
        let Some(check) = self.unchecked.take() else { return Ok(()) };
        let checked = match self.sink.prepare() {
            Ok(()) => check.run(&*self.sink),
            Err(e @ SinkError::Permanent { .. }) => Ok(Some(format!("lake {}: {e}", check.lake))),
            Err(e) => Err(e),
        };
        match checked {
            Ok(None) => match self.register(&check) {
                Err(e) => {
                    self.unchecked = Some(check);
                    Err(e)
                }
                done => done,
            },
            Ok(Some(why)) => {
                self.control.set_refused(why);
                Err(Trouble::Fatal)
            }
            Err(e) => {
                self.unchecked = Some(check);
                Err(e.into())
            }
        }
    }
}
