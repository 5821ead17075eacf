//! Between looking at a log and opening it: what a start wants to know before it changes anything.

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::commit::Committer;
use super::files;
use super::manifest::{Manifest, ManifestState};
use super::prealloc::Preallocator;
use super::recover::{OpenError, Progress, Report, Visited, act, examine};
use super::shared::{LogSettings, Shared};
use crate::clock::SharedClock;
use crate::metrics::Metrics;
use crate::types::LogId;
use crate::vfs::Vfs;

/// An open log, its machines not yet running.
#[derive(Debug)]
pub struct OpenedLog {
    pub shared: Arc<Shared>,
    pub manifest: Manifest,
    pub committer: Committer,
    pub prealloc: Arc<Preallocator>,
    pub report: Report,
    /// Held as long as the log is open.
    pub lock: Box<dyn Any + Send + Sync>,
}

/// A log that was examined and is locked. Nothing of it was changed.
#[derive(Debug)]
pub struct Examined {
    pub(super) vfs: Arc<dyn Vfs>,
    pub(super) settings: LogSettings,
    pub(super) report: Report,
    pub(super) lock: Box<dyn Any + Send + Sync>,
}

impl Examined {
    /// The directory holds no log yet: [`Self::open`] begins one.
    pub fn is_new(&self) -> bool {
        self.report.manifest.is_none()
    }

    /// The log's id; of a new one, the id that it will have.
    pub fn log(&mut self, clock: &SharedClock) -> LogId {
        *self.report.log.get_or_insert_with(|| clock.random_id())
    }

    /// What the manifest says.
    pub fn state(&self) -> &ManifestState {
        &self.report.state
    }

    /// Opens it for writing.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(self, clock: SharedClock, metrics: Arc<Metrics>) -> Result<OpenedLog, OpenError> {
        act(&self.vfs, self.settings, clock, metrics, self.report, self.lock)
    }
}

/// Opens the log in `settings.directory` for writing, making it when there is none.
///
/// `visit` sees every kept record whose sequence is above the manifest's checkpoint.
///
/// # Errors
/// [`OpenError`]; with `Locked` and `Refused` nothing has been changed.
pub fn open(
    vfs: &Arc<dyn Vfs>,
    settings: LogSettings,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    visit: &mut dyn FnMut(Visited<'_>),
    progress: &mut dyn FnMut(Progress),
) -> Result<OpenedLog, OpenError> {
    examine(vfs, settings, visit, progress)?.open(clock, metrics)
}

/// Whether a directory holds files of a log.
///
/// # Errors
/// It cannot be listed. One that does not exist holds none.
pub fn holds_log(vfs: &dyn Vfs, dir: &Path) -> io::Result<bool> {
    let log_file = |name: &str| files::parse_segment(name).is_some() || files::parse_manifest(name).is_some();
    match vfs.list(dir) {
        Ok(list) => Ok(list.iter().any(|e| log_file(&e.name))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
