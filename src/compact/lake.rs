//! Whether the lake is the one that this log has shipped to, and a store that can be trusted: asked before anything is shipped.

use super::builder::Trouble;
use super::worker::Compactor;
use crate::sink::{Sink, SinkError, SinkResult};

/// What is looked for in the lake.
#[derive(Clone, Debug)]
pub struct LakeCheck {
    /// An object that this log has stored before, if there is one.
    pub known_object: Option<String>,
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
        Ok(Some(format!(
            "{lake}: the lake does not hold {name}, which this log has stored there: expected the lake that was used before. Mount it or correct \
             storage.local_path (or the bucket and prefix); if it was moved or emptied on purpose, start once with storage.accept_new_lake = true"
        )))
    }
}

impl Compactor {
    /// Nothing is shipped before the store was seen to be safe and this check has passed; it is tried until the store answers.
    pub fn check_first(&mut self, check: Option<LakeCheck>) {
        self.unchecked = check;
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
