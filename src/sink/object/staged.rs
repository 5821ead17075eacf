//! An object in the making.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use object_store::PutPayload;
use object_store::multipart::PartId;
use object_store::path::Path;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::super::{Published, SinkError, SinkResult, Staged};
use super::errors::{Class, Failed};
use super::{MOST_PARTS, Shared, Verify, lock};
use crate::metrics::StoreOp;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Writing,
    Sealed,
    /// A part could not be sent: what the store has of it is not known.
    Spoiled,
}

struct Upload {
    id: String,
    /// Parts handed to the store, in order; those whose answer is awaited are in `waiting`.
    sent: usize,
    parts: Vec<PartId>,
    waiting: VecDeque<JoinHandle<Result<PartId, Failed>>>,
}

pub(super) struct ObjectStaged {
    shared: Arc<Shared>,
    name: String,
    path: Path,
    /// What is not sent yet: at most a part.
    buf: Vec<u8>,
    len: u64,
    hash: Option<Sha256>,
    upload: Option<Upload>,
    state: State,
}

impl ObjectStaged {
    pub(super) fn new(shared: Arc<Shared>, name: String, path: Path) -> Self {
        let hash = (shared.settings.verify == Verify::Read).then(Sha256::new);
        Self { shared, name, path, buf: Vec::new(), len: 0, hash, upload: None, state: State::Writing }
    }

    fn misused(&self, what: &str) -> SinkError {
        let source = io::Error::new(io::ErrorKind::InvalidInput, format!("{what} in state {:?}", self.state));
        SinkError::Permanent { context: self.name.clone(), source }
    }

    /// Sends what is buffered as a part.
    fn send(&mut self) -> SinkResult<()> {
        let shared = Arc::clone(&self.shared);
        shared.driver.block_on(self.send_part()).map_err(SinkError::from)
    }

    async fn send_part(&mut self) -> Result<(), Failed> {
        let s = Arc::clone(&self.shared);
        let upload = match &mut self.upload {
            Some(u) => u,
            none => {
                lock(&s.beginning).insert(self.name.clone());
                let begun = s.begin_upload(&self.path).await.inspect(|id| s.begun(id));
                lock(&s.beginning).remove(&self.name);
                let id = begun.inspect_err(|f| {
                    if f.class.unclear() {
                        s.doom(&self.name, None);
                    }
                })?;
                none.insert(Upload { id, sent: 0, parts: Vec::new(), waiting: VecDeque::new() })
            }
        };
        if upload.sent >= MOST_PARTS {
            let text = format!("more than {MOST_PARTS} parts of {} bytes: raise storage.part_size", s.settings.part_size);
            return Err(Failed::new(Class::Refused, s.context(StoreOp::Part, &self.path), text));
        }
        upload.settle(s.settings.parts_in_flight.max(1) - 1).await?;
        let (n, bytes) = (upload.sent, PutPayload::from(std::mem::take(&mut self.buf)));
        upload.sent += 1;
        let (path, id) = (self.path.clone(), upload.id.clone());
        upload.waiting.push_back(tokio::spawn(async move { s.put_part(&path, &id, n, bytes).await }));
        Ok(())
    }

    /// Gives up whatever the store has of this object.
    fn discard(&mut self) {
        let Some(u) = self.upload.take() else { return };
        u.waiting.iter().for_each(JoinHandle::abort);
        // A process that is being ended does nothing more in a simulation.
        if !std::thread::panicking() {
            self.shared.doom(&self.name, Some(u.id.clone()));
        }
    }

    async fn publish_now(&mut self) -> Result<Published, Failed> {
        let s = Arc::clone(&self.shared);
        let published = if let Some(u) = &mut self.upload {
            let published = u.publish(&s, &self.path).await?;
            if published == Published::Created {
                s.ended(&u.id);
                self.upload = None;
            }
            published
        } else {
            let bytes = PutPayload::from(std::mem::take(&mut self.buf));
            if s.create(&self.path, bytes).await? { Published::Created } else { Published::AlreadyThere }
        };
        if published == Published::Created {
            let sha256 = self.hash.take().map(|h| h.finalize().into());
            s.verify(&self.path, self.len, sha256).await?;
        }
        Ok(published)
    }
}

impl Upload {
    async fn publish(&mut self, s: &Shared, path: &Path) -> Result<Published, Failed> {
        if s.head(path).await?.is_some() {
            return Ok(Published::AlreadyThere);
        }
        match s.complete_upload(path, &self.id, std::mem::take(&mut self.parts)).await {
            Ok(()) => Ok(Published::Created),
            // Without an answer, or with one that says that the upload is over: the name tells.
            Err(f) if f.class == Class::Exists || f.class == Class::NoUpload || f.class.unclear() => match s.head(path).await {
                Ok(Some(_)) => Ok(Published::AlreadyThere),
                _ if f.class == Class::Exists => {
                    let text = "the store said that the name is taken, and then that nothing is there";
                    Err(Failed::new(Class::Garbled, s.context(StoreOp::Complete, path), text))
                }
                _ => Err(f),
            },
            Err(f) => Err(f),
        }
    }

    /// Waits until at most `most` parts are on their way.
    async fn settle(&mut self, most: usize) -> Result<(), Failed> {
        while self.waiting.len() > most {
            let Some(first) = self.waiting.front_mut() else { break };
            let done = first.await;
            self.waiting.pop_front();
            match done {
                Ok(part) => self.parts.push(part?),
                Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                Err(_) => unreachable!("a part is aborted only with its upload"),
            }
        }
        Ok(())
    }
}

impl Write for ObjectStaged {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.state != State::Writing {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "write to an object that is sealed or spoiled"));
        }
        let room = self.shared.settings.part_size.saturating_sub(self.buf.len());
        if room == 0 {
            self.state = State::Spoiled;
            self.send().map_err(into_io)?;
            self.state = State::Writing;
        }
        let room = self.shared.settings.part_size.saturating_sub(self.buf.len());
        let taken = buf.get(..buf.len().min(room)).unwrap_or_default();
        self.buf.extend_from_slice(taken);
        self.len += taken.len() as u64;
        if let Some(h) = &mut self.hash {
            h.update(taken);
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps what a retry depends on through [`SinkError::from_io`].
fn into_io(e: SinkError) -> io::Error {
    let kind = match &e {
        SinkError::NoSpace { .. } => io::ErrorKind::StorageFull,
        SinkError::Permanent { .. } => io::ErrorKind::Unsupported,
        SinkError::Transient { .. } => io::ErrorKind::Other,
    };
    io::Error::new(kind, e.to_string())
}

impl Staged for ObjectStaged {
    /// What is small enough for one put is sealed in memory: nothing is visible or promised before [`Self::publish`] either way.
    fn seal(&mut self) -> SinkResult<()> {
        if self.state != State::Writing {
            return Err(self.misused("seal"));
        }
        self.state = State::Spoiled;
        if self.upload.is_some() {
            if !self.buf.is_empty() {
                self.send()?;
            }
            let shared = Arc::clone(&self.shared);
            if let Some(u) = &mut self.upload {
                shared.driver.block_on(u.settle(0)).map_err(SinkError::from)?;
            }
        }
        self.state = State::Sealed;
        Ok(())
    }

    fn publish(mut self: Box<Self>) -> SinkResult<Published> {
        if self.state != State::Sealed {
            return Err(self.misused("publish"));
        }
        let shared = Arc::clone(&self.shared);
        let started = shared.clock.monotonic();
        let published = shared.driver.block_on(self.publish_now()).map_err(SinkError::from);
        shared.metrics.store_put_seconds.record(shared.clock.monotonic().saturating_sub(started).as_secs_f64());
        published
    }
}

impl Drop for ObjectStaged {
    fn drop(&mut self) {
        self.discard();
    }
}
