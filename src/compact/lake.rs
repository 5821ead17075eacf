//! Whether the lake is the one that this log has shipped to, and a store that can be trusted: asked before anything is shipped.

use super::builder::Trouble;
use super::worker::{Compactor, plan_object};
use crate::sink::{Sink, SinkError, SinkResult};

/// What is looked for in the lake.
#[derive(Clone, Debug, Default)]
pub struct LakeCheck {
    /// An object that this log has stored before, if there is one.
    pub known_object: Option<String>,
    /// The first plan whose object the lake must hold: above 1 in a lake that took the place of another.
    pub from_plan: u64,
    /// Where the lake is, for errors.
    pub lake: String,
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
            Ok(None) => Ok(()),
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
