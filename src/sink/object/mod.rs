//! An object store as the lake: S3 and what speaks like it, Azure, Google.
//!
//! A small object is held in memory until it is published, by one create-only put. A larger one is sent in parts while it is written; its
//! publication completes the upload, which a reader sees as one event. No object of another name is ever made, but for the probe of
//! [`ObjectSink::prepare`].
//!
//! INVARIANT(published-is-whole) here: a create-only put never replaces. The completion of an upload is conditional too where the store
//! was seen to honour that; elsewhere it comes only after a look at the name, under a name that no other log and no other plan uses, and
//! after every earlier upload for that name was aborted, so that no completion that was given up can come later
//! (INVARIANT(abort-before-retry)).
//!
//! Everything waits in `Driver::block_on`, on the threads of whoever calls: never on those that serve requests.

mod backends;
mod errors;
mod http;
mod listing;
mod race;
mod renew;
pub mod sim_s3;
mod staged;
mod uploads;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, ObjectStore, PutMode, PutOptions, PutPayload};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

pub use backends::{AzureSettings, Endpoint, GcsSettings, S3Settings};
use errors::{Class, Failed, watched};
use renew::Renew;
use staged::ObjectStaged;
use uploads::Lister;

use super::{Backoff, Compare, MAX_SMALL, ObjectInfo, PutSmall, Sink, SinkError, SinkResult, Staged, Swept, check_name};
use crate::clock::SharedClock;
use crate::metrics::{Metrics, StoreCall, StoreOp, StoreOutcome};
use crate::types::LogId;

/// Longest key that every store takes, in bytes.
const MOST_KEY: usize = 1024;
/// Parts that every store takes of one object.
pub const MOST_PARTS: usize = 10_000;
/// Tries of a call that can be repeated without harm; what fails longer is left to the caller, who tries for ever.
const TRIES: u32 = 3;
/// Between two probes, the first of which speaks against the store.
const PROBE_AGAIN: Duration = Duration::from_secs(3);
/// Least time between two renewals of credentials that the store refuses.
const RENEWAL: Duration = Duration::from_secs(10);
/// The completion of a large upload may take a store minutes.
const COMPLETION: u32 = 4;

/// What is looked at after an object was published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verify {
    /// That it is there with the right length.
    Head,
    /// All of its bytes.
    Read,
}

/// Whether a store is believed to let exactly one of several creates of one name win.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateOnly {
    /// It is tried, and a store that does not is refused.
    Probe,
    /// What is seen is logged, and the store is used.
    Trust,
}

/// Names that are raced for unless told otherwise. A store that lets two win for 1 name in 100 passes with a chance of about 1 in 2.
pub const RACE_KEYS: usize = 64;

/// How a store is used.
#[derive(Clone, Debug)]
pub struct ObjectSettings {
    /// Before every name, without `/` at either end; may be empty.
    pub prefix: String,
    /// Objects up to this many bytes are put in one piece, larger ones in parts of it.
    pub part_size: usize,
    /// Parts of one object on their way at one time.
    pub parts_in_flight: usize,
    /// Objects published at one time.
    pub puts: usize,
    /// For every request; the completion of an upload gets four times as long.
    pub timeout: Duration,
    pub verify: Verify,
    /// What a store that does not keep create-only puts is met with.
    pub create_only: CreateOnly,
    /// Names that the check of create-only puts races for; 0: no race.
    pub race_keys: usize,
}

/// Where the futures of the store run.
#[derive(Debug)]
pub struct Driver {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
    mode: Mode,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Threads,
    Here,
    Apart,
}

impl Driver {
    /// On threads of their own.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn threads() -> std::io::Result<Self> {
        let b = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("arc-store").enable_all().build()?;
        Ok(Self { runtime: Some(b), mode: Mode::Threads })
    }

    /// On the thread that waits, by a runtime of one thread: with its clock paused a run can be repeated.
    pub fn here(runtime: Runtime) -> Self {
        Self { runtime: Some(runtime), mode: Mode::Here }
    }

    /// Like [`Self::here`], on another thread for each call: for callers that are in a runtime themselves.
    pub fn apart(runtime: Runtime) -> Self {
        Self { runtime: Some(runtime), mode: Mode::Apart }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("only a dropped driver has no runtime")
    }

    fn block_on<T: Send>(&self, f: impl Future<Output = T> + Send) -> T {
        let rt = self.runtime();
        if self.mode != Mode::Apart {
            return rt.block_on(f);
        }
        std::thread::scope(|s| s.spawn(|| rt.block_on(f)).join()).unwrap_or_else(|p| std::panic::resume_unwind(p))
    }

    /// Without threads of their own it runs along with the next call.
    fn spawn(&self, f: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime().spawn(f));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The default would wait, and panics where waiting is not allowed.
        if let Some(rt) = self.runtime.take() {
            rt.shutdown_background();
        }
    }
}

/// The store behind an [`ObjectSink`].
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    parts: Arc<dyn MultipartStore>,
    lister: Option<Lister>,
    /// See [`http::Connector`].
    conditional: Arc<AtomicBool>,
    /// Asks for credentials anew; None where they stand in the configuration.
    renew: Option<Renew>,
    /// Scheme, bucket, endpoint: for people.
    description: String,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.description)
    }
}

/// An upload that is not to be completed any more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Doomed {
    name: String,
    /// None: the store may have begun one without our hearing its id.
    upload: Option<String>,
}

#[derive(Debug)]
struct Shared {
    remote: Remote,
    settings: ObjectSettings,
    log: LogId,
    driver: Driver,
    metrics: Arc<Metrics>,
    clock: SharedClock,
    /// Uploads of this process that are still wanted.
    live: Mutex<HashSet<String>>,
    doomed: Mutex<BTreeSet<Doomed>>,
    /// Names for which an upload is being begun: the store may know its id before we do.
    beginning: Mutex<HashSet<String>>,
    /// When credentials were last asked for because the store refused those in use.
    renewed: Mutex<Option<Duration>>,
}

/// A lake in an object store.
#[derive(Clone, Debug)]
pub struct ObjectSink {
    shared: Arc<Shared>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ObjectSink {
    /// Nothing is asked of the store yet: see [`Sink::prepare`].
    pub fn new(remote: Remote, settings: ObjectSettings, log: LogId, driver: Driver, metrics: Arc<Metrics>, clock: SharedClock) -> Self {
        let shared = Shared {
            remote,
            settings,
            log,
            driver,
            metrics,
            clock,
            live: Mutex::default(),
            doomed: Mutex::default(),
            beginning: Mutex::default(),
            renewed: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    fn block_on<T: Send>(&self, f: impl Future<Output = Result<T, Failed>> + Send) -> SinkResult<T> {
        self.shared.driver.block_on(f).map_err(SinkError::from)
    }
}

/// What a panic in the client library comes to: the error of one call.
fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the client of the store panicked, which is a bug of it: {}", text.unwrap_or("no message"))
}

impl Shared {
    fn path(&self, name: &str) -> SinkResult<Path> {
        check_name(name)?;
        let key = if self.settings.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.settings.prefix) };
        let refuse = |text: String| SinkError::Permanent {
            context: format!("object name {key:?}"),
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, text),
        };
        if key.len() > MOST_KEY {
            return Err(refuse(format!("{} bytes, more than the {MOST_KEY} of a key", key.len())));
        }
        Path::parse(&key).map_err(|e| refuse(e.to_string()))
    }

    fn context(&self, op: StoreOp, path: &Path) -> String {
        format!("{}: {} {path}", self.remote.description, op.word())
    }

    /// One request, within `limit`.
    async fn once<T>(
        &self,
        op: StoreOp,
        path: &Path,
        limit: Duration,
        request: impl Future<Output = object_store::Result<T>> + Send,
    ) -> Result<T, Failed> {
        let result = match tokio::time::timeout(limit, watched(AssertUnwindSafe(request).catch_unwind())).await {
            Ok((Ok(r), seen)) => r.map_err(|e| Failed::from_store(self.context(op, path), &e, &seen)),
            Ok((Err(panic), _)) => Err(Failed::new(Class::Garbled, self.context(op, path), panicked(&*panic))),
            Err(_) => Err(Failed::new(Class::Timeout, self.context(op, path), format!("no answer within {limit:?} (storage.timeout)"))),
        };
        if result.as_ref().is_err_and(|f| f.stale) {
            self.renew();
        }
        let outcome = result.as_ref().err().map_or(StoreOutcome::Ok, |f| f.class.outcome());
        self.metrics.store_requests_total.get(StoreCall(op, outcome)).increment(1);
        result
    }

    fn renew(&self) {
        let (Some(renew), now) = (&self.remote.renew, self.clock.monotonic()) else { return };
        let mut last = lock(&self.renewed);
        if last.is_none_or(|l| now >= l + RENEWAL) {
            *last = Some(now);
            renew();
        }
    }

    /// A request that can be repeated without harm.
    async fn repeat<T, F: Future<Output = object_store::Result<T>> + Send>(
        &self,
        op: StoreOp,
        path: &Path,
        request: impl Fn() -> F,
    ) -> Result<T, Failed> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2), self.clock.random_u64());
        loop {
            let r = self.once(op, path, self.settings.timeout, request()).await;
            match r {
                Err(f) if f.class.unclear() && backoff.attempts() + 1 < TRIES => {
                    self.metrics.store_retries_total.increment(1);
                    tokio::time::sleep(backoff.next_wait()).await;
                }
                r => return r,
            }
        }
    }

    /// The length of what has the name.
    async fn head(&self, path: &Path) -> Result<Option<u64>, Failed> {
        let head = || self.remote.store.get_opts(path, GetOptions { head: true, ..GetOptions::default() });
        match self.repeat(StoreOp::Head, path, head).await {
            Ok(r) => {
                self.tagged(StoreOp::Head, path, &r.meta)?;
                Ok(Some(r.meta.size))
            }
            Err(f) if f.class == Class::Missing => Ok(None),
            Err(f) => Err(f),
        }
    }

    /// Every store tags its objects: an answer without a tag is that of something between, such as the page of a proxy.
    fn tagged(&self, op: StoreOp, path: &Path, meta: &ObjectMeta) -> Result<(), Failed> {
        if meta.e_tag.is_some() {
            return Ok(());
        }
        Err(Failed::new(Class::Garbled, self.context(op, path), "an answer without an entity tag: not from the store"))
    }

    /// Puts the object unless its name is taken; true when it was put. What became of a put without an answer is looked up.
    async fn create(&self, path: &Path, bytes: PutPayload) -> Result<bool, Failed> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.remote.store.put_opts(path, bytes, options);
        match self.once(StoreOp::Put, path, self.settings.timeout, put).await {
            Ok(_) => Ok(true),
            Err(f) if f.class == Class::Exists || f.class.unclear() => match self.head(path).await {
                Ok(Some(_)) => Ok(false),
                Ok(None) if f.class == Class::Exists => {
                    let text = "the store said that the name is taken, and then that nothing is there";
                    Err(Failed::new(Class::Garbled, self.context(StoreOp::Put, path), text))
                }
                // It may still come: the next attempt finds it then.
                _ => Err(f),
            },
            Err(f) => Err(f),
        }
    }

    /// Reads the object piece by piece; None when there is none. Of one with more than `most` bytes nothing is read.
    async fn read(&self, path: &Path, most: u64, mut each: impl FnMut(&[u8]) + Send) -> Result<Option<u64>, Failed> {
        let opened = self.repeat(StoreOp::Get, path, || self.remote.store.get_opts(path, GetOptions::default())).await;
        let got = match opened {
            Ok(g) => g,
            Err(f) if f.class == Class::Missing => return Ok(None),
            Err(f) => return Err(f),
        };
        self.tagged(StoreOp::Get, path, &got.meta)?;
        let (size, mut stream, mut read) = (got.meta.size, got.into_stream(), 0u64);
        if size > most {
            let text = format!("holds {size} bytes, expected at most the {most} of a small object: move it away");
            return Err(Failed::new(Class::Refused, self.context(StoreOp::Get, path), text));
        }
        loop {
            let next = async { stream.next().await.transpose() };
            match self.once(StoreOp::Read, path, self.settings.timeout, next).await? {
                Some(bytes) => {
                    read += bytes.len() as u64;
                    each(&bytes);
                }
                None if read == size => return Ok(Some(read)),
                None => {
                    let text = format!("{read} of {size} bytes came");
                    return Err(Failed::new(Class::Garbled, self.context(StoreOp::Read, path), text));
                }
            }
        }
    }

    /// Whether any key continues this path by a `/`.
    async fn holds_any(&self, path: &Path) -> Result<bool, Failed> {
        let first = || async { self.remote.store.list(Some(path)).next().await.transpose() };
        Ok(self.repeat(StoreOp::List, path, first).await?.is_some())
    }

    async fn describe(&self, path: &Path) -> Result<Option<ObjectInfo>, Failed> {
        let mut hash = Sha256::new();
        let len = self.read(path, u64::MAX, |b| hash.update(b)).await?;
        Ok(len.map(|len| ObjectInfo { len, sha256: hash.finalize().into() }))
    }

    /// Looks at what was published as `storage.verify` says: a store may answer 200 and keep something else, or nothing.
    async fn verify(&self, path: &Path, len: u64, sha256: Option<[u8; 32]>) -> Result<(), Failed> {
        let found = match sha256 {
            None => self.head(path).await?.map(|len| ObjectInfo { len, sha256: [0; 32] }),
            Some(_) => self.describe(path).await?,
        };
        let context = || self.context(StoreOp::Head, path);
        match found {
            Some(i) if i.len == len && sha256.is_none_or(|s| s == i.sha256) => Ok(()),
            None => Err(Failed::new(Class::Garbled, context(), "the store said that the object is stored, and it is not there")),
            Some(i) => {
                self.metrics.store_mismatches_total.increment(1);
                let hash = if i.len == len { ", with other contents" } else { "" };
                let text = format!(
                    "the store said that the object is stored, and holds {} bytes, expected {len}{hash}: move the object away and check the store",
                    i.len
                );
                Err(Failed::new(Class::Refused, context(), text))
            }
        }
    }

    /// Whether create-only puts are honest, and whether uploads can be completed conditionally. What speaks against a store has to be seen
    /// twice, because another process of this log may remove what it takes for a leftover. That a request is refused speaks against
    /// nobody: something between may answer for the store, for minutes.
    async fn probe(&self) -> Result<(), Failed> {
        if self.probe_once().await?.is_none() {
            return Ok(());
        }
        tokio::time::sleep(PROBE_AGAIN).await;
        let Some(unsafe_store) = self.probe_once().await? else { return Ok(()) };
        Err(unsafe_store)
    }

    /// One create-only put after another, then several at one time; as `storage.create_only` says.
    async fn check_create_only(&self) -> Result<(), Failed> {
        let probed = self.probe().await;
        if self.settings.create_only == CreateOnly::Probe {
            probed?;
            return self.race().await;
        }
        match probed {
            Err(f) if f.class == Class::Refused => {
                tracing::warn!(error = %SinkError::from(f), "the store is used all the same (storage.create_only = \"trust\")");
                Ok(())
            }
            r => r,
        }
    }

    /// What was seen to speak against the store.
    async fn probe_once(&self) -> Result<Option<Failed>, Failed> {
        let name = format!("_arc/{}/probe-{:016x}", self.log, self.clock.random_u64());
        let path = self.path(&name).map_err(|e| Failed::new(Class::Refused, name, e.to_string()))?;
        let probed = self.probe_at(&path).await.map_err(|f| self.asked_again(&path, f));
        // Without the right to delete, a few bytes stay.
        if let Err(f) = self.remove(&path).await {
            tracing::warn!(error = %SinkError::from(f), "the probe object stays");
        }
        probed
    }

    fn asked_again(&self, path: &Path, f: Failed) -> Failed {
        if f.class != Class::Refused {
            return f;
        }
        let text = format!(
            "{f}: tried again, because something between may have answered; a store that does not know create-only puts (If-None-Match) or \
             uploads in parts cannot be used"
        );
        Failed::new(Class::Server, self.context(StoreOp::Put, path), text)
    }

    async fn probe_at(&self, path: &Path) -> Result<Option<Failed>, Failed> {
        let context = || self.context(StoreOp::Put, path);
        if !self.create(path, PutPayload::from_static(b"first")).await? {
            return Err(Failed::new(Class::Garbled, context(), "a probe was answered without its being clear whether it is stored"));
        }
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let again = self.remote.store.put_opts(path, PutPayload::from_static(b"second"), options);
        let unsafe_store = |what: String| {
            let text = format!(
                "this store does not keep create-only puts ({what}): expected a second put to the same name to be refused. Two copies of a log \
                 could then both ship to it and double rows; use a store that honours If-None-Match on puts"
            );
            Ok(Some(Failed::new(Class::Refused, context(), text)))
        };
        match self.once(StoreOp::Put, path, self.settings.timeout, again).await {
            Err(f) if f.class == Class::Exists => {}
            Ok(_) => return unsafe_store("it was accepted".into()),
            Err(f) => return Err(f),
        }
        let mut kept = Vec::new();
        if self.read(path, MAX_SMALL, |b| kept.extend_from_slice(b)).await?.is_none() {
            return Err(Failed::new(Class::Garbled, context(), "the probe object is gone"));
        }
        if kept != b"first" {
            return unsafe_store(format!("it was refused, and yet the object is now {:?}", String::from_utf8_lossy(&kept)));
        }
        self.probe_completion(path).await?;
        Ok(None)
    }

    /// Tries to complete an upload over an object: a store that refuses that is trusted to refuse it always. Only an answer to the question
    /// settles it; without one it is asked again.
    async fn probe_completion(&self, path: &Path) -> Result<(), Failed> {
        let id = self.begin_upload(path).await?;
        self.remote.conditional.store(true, Ordering::Relaxed);
        let part = self.put_part(path, &id, 0, PutPayload::from_static(b"third")).await;
        let completed = match part {
            Ok(p) => self.complete_upload(path, &id, vec![p]).await,
            Err(f) => Err(f),
        };
        let honest = matches!(&completed, Err(f) if f.class == Class::Exists);
        self.remote.conditional.store(honest, Ordering::Relaxed);
        if completed.is_err()
            && let Err(f) = self.abort_upload(path, &id).await
        {
            // It only takes room, and the next start's sweep looks for it.
            tracing::warn!(error = %SinkError::from(f), "the probe's upload stays");
        }
        match completed {
            Err(f) if !honest && f.class != Class::Refused => Err(f),
            _ => Ok(()),
        }
    }

    /// Probes of runs that ended within their probe. Plan objects come before them in the order of names.
    async fn remove_probes(&self) -> Result<(), Failed> {
        let bad = |e: SinkError| Failed::new(Class::Refused, "the prefix".into(), e.to_string());
        let (dir, first) =
            (self.path(&format!("_arc/{}", self.log)).map_err(bad)?, self.path(&format!("_arc/{}/probe-", self.log)).map_err(bad)?);
        let mut found = self.remote.store.list_with_offset(Some(&dir), &first);
        loop {
            let next = async { found.next().await.transpose() };
            let Some(meta) = self.once(StoreOp::List, &dir, self.settings.timeout, next).await? else { return Ok(()) };
            let modified = meta.last_modified.timestamp_micros();
            if meta.location.filename().is_some_and(|n| n.starts_with("probe-") || self.is_stale_race(n, modified)) {
                self.remove(&meta.location).await?;
            }
        }
    }

    async fn remove(&self, path: &Path) -> Result<(), Failed> {
        use object_store::ObjectStoreExt as _;
        self.repeat(StoreOp::Delete, path, || self.remote.store.delete(path)).await
    }
}

impl Sink for ObjectSink {
    fn stage(&self, name: &str) -> SinkResult<Box<dyn Staged>> {
        let path = self.shared.path(name)?;
        self.block_on(self.shared.reap(Some(name)))?;
        Ok(Box::new(ObjectStaged::new(Arc::clone(&self.shared), name.to_owned(), path)))
    }

    fn describe(&self, name: &str) -> SinkResult<Option<ObjectInfo>> {
        let path = self.shared.path(name)?;
        self.block_on(self.shared.describe(&path))
    }

    fn holds_any(&self, directory: &str) -> SinkResult<bool> {
        let path = self.shared.path(directory)?;
        self.block_on(self.shared.holds_any(&path))
    }

    fn confirm(&self, name: &str) -> SinkResult<()> {
        let path = self.shared.path(name)?;
        let there = self.block_on(self.shared.head(&path))?;
        let gone = || Failed::new(Class::Missing, self.shared.context(StoreOp::Head, &path), "the object is gone");
        there.map(|_| ()).ok_or_else(|| gone().into())
    }

    fn put_small(&self, name: &str, bytes: &[u8]) -> SinkResult<PutSmall> {
        let path = self.shared.path(name)?;
        let s = &self.shared;
        self.block_on(async {
            if s.create(&path, PutPayload::from(bytes.to_vec())).await? {
                s.verify(&path, bytes.len() as u64, None).await?;
                return Ok(PutSmall::Created);
            }
            let other = |why: String| Failed::new(Class::Refused, s.context(StoreOp::Get, &path), why);
            let gone = || Failed::new(Class::Garbled, s.context(StoreOp::Get, &path), "the object that had the name is gone");
            let mut there = Compare::new(bytes);
            // What is too large is not read only to say so.
            there.length(s.head(&path).await?.ok_or_else(gone)?).map_err(other)?;
            s.read(&path, u64::MAX, |b| there.add(b)).await?.ok_or_else(gone)?;
            there.end().map_err(other)
        })
    }

    fn device(&self) -> Option<u64> {
        None
    }

    fn children(&self, dir: &str, most: usize) -> SinkResult<Vec<String>> {
        let path = self.shared.path(dir)?;
        self.block_on(self.shared.children(&path, most))
    }

    fn get_small(&self, name: &str) -> SinkResult<Option<Vec<u8>>> {
        let path = self.shared.path(name)?;
        self.block_on(self.shared.get_small(&path))
    }

    fn sweep(&self) -> SinkResult<Swept> {
        self.block_on(self.shared.sweep())
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn prepare(&self) -> SinkResult<()> {
        let s = &self.shared;
        self.block_on(s.check_create_only())?;
        let conditional = s.remote.conditional.load(Ordering::Relaxed);
        let completion = if conditional { "conditional" } else { "after a look at the name" };
        tracing::info!(store = %s.remote.description, prefix = %s.settings.prefix, completion, "the store keeps create-only puts");
        match self.sweep() {
            Ok(swept) => {
                if swept.removed > 0 {
                    tracing::info!(removed = swept.removed, "aborted uploads that an earlier run had not finished");
                }
                if !swept.complete && !conditional {
                    tracing::warn!(
                        "uploads of earlier runs may be left, and this store completes by overwriting: one that is completed late could put \
                         another build of the same rows in the place of a file"
                    );
                }
            }
            // INVARIANT(abort-before-retry) rests on the sweep only where a completion may replace.
            Err(e) if conditional => tracing::warn!(error = %e, "looking for unfinished uploads"),
            Err(e) => return Err(e),
        }
        if let Err(f) = self.shared.driver.block_on(s.remove_probes()) {
            tracing::warn!(error = %SinkError::from(f), "probe objects of an earlier run stay");
        }
        Ok(())
    }

    fn ready(&self) -> SinkResult<()> {
        let s = &self.shared;
        let path = s.path(&format!("_arc/{}/plan-0", s.log))?;
        self.block_on(async {
            // Not a look at the head: that has no body to tell a missing bucket from a missing object.
            let get = s.remote.store.get_opts(&path, GetOptions::default());
            match s.once(StoreOp::Get, &path, s.settings.timeout, get).await {
                Ok(r) => s.tagged(StoreOp::Get, &path, &r.meta),
                Err(f) if f.class == Class::Missing => Ok(()),
                Err(f) => Err(f),
            }
        })
    }

    fn parallel(&self) -> usize {
        if self.shared.driver.mode == Mode::Threads { self.shared.settings.puts } else { 1 }
    }
}
