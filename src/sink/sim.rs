//! A store in memory that misbehaves as it is told to: for tests and simulations.
//!
//! Objects are create-only, durable as soon as they are visible, and outlive whoever put them: clones share one store, so that
//! several processes, or several lives of one, can be let loose on it. Staged bytes go with the process. Single-threaded use is
//! deterministic: nothing here reads a clock, draws a random number or starts a thread.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{MAX_SMALL, ObjectInfo, Published, PutSmall, Sink, SinkError, SinkResult, Staged, Swept, check_name};

/// Which call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Call {
    Stage,
    Write,
    Seal,
    Publish,
    PutSmall,
    Describe,
    Confirm,
    Sweep,
}

/// One call, before anything of it is done.
#[derive(Clone, Copy, Debug)]
pub struct Op<'a> {
    /// Counts all calls on the store from 0.
    pub number: u64,
    pub call: Call,
    /// The object; empty for [`Call::Sweep`].
    pub name: &'a str,
}

/// What goes wrong with one call. What makes no sense for a call (a lost reply of one that changes nothing) is [`Fault::Fails`] with `EIO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done; the answer is this errno.
    Fails(i32),
    /// It is done, the answer is lost: the caller hears `ECONNRESET`.
    ReplyLost,
    /// The call hangs until it times out; nothing is done.
    Hangs,
    /// The call hangs until it times out; a put is done all the same, later: at [`SimStore::land`].
    Late,
    /// A put that breaks off: half of the object becomes visible, the caller hears `ECONNRESET`.
    Short,
    /// Somebody else's object, with these bytes, has the name just before the call.
    Foreign(Vec<u8>),
    /// The object is gone just before the call.
    Vanishes,
    /// A store that is slow to list: [`Call::Describe`] says that nothing is there.
    Unseen,
}

type Schedule = Box<dyn FnMut(&Op<'_>) -> Option<Fault> + Send>;
type Stall = Box<dyn FnMut(Duration) + Send>;
type Witness = Box<dyn FnMut(&SimStore, &str, &[u8]) + Send>;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Arc<[u8]>>,
    /// Puts that were given up by their caller and are still on their way.
    late: Vec<(String, Arc<[u8]>)>,
    /// Names whose object was put in the place of another one.
    replaced: Vec<String>,
    calls: u64,
    capacity: Option<u64>,
    device: Option<u64>,
}

struct Inner {
    state: Mutex<State>,
    schedule: Mutex<Option<Schedule>>,
    stall: Mutex<Option<Stall>>,
    witness: Mutex<Option<Witness>>,
}

/// How long a call hangs before its caller gives up.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A simulated store. Clones are the same store.
#[derive(Clone)]
pub struct SimStore {
    inner: Arc<Inner>,
}

impl Default for SimStore {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                schedule: Mutex::new(None),
                stall: Mutex::new(None),
                witness: Mutex::new(None),
            }),
        }
    }
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.state();
        f.debug_struct("SimStore").field("objects", &s.objects.keys()).field("late", &s.late.len()).field("calls", &s.calls).finish()
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno(call: Call, name: &str, n: i32) -> SinkError {
    SinkError::from_io(format!("simulated {call:?} {name}"), io::Error::from_raw_os_error(n))
}

impl SimStore {
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }

    /// Asks `schedule` before every call what goes wrong with it. It may use the methods of [`SimStore`], not those of [`Sink`].
    pub fn set_faults(&self, schedule: impl FnMut(&Op<'_>) -> Option<Fault> + Send + 'static) {
        *lock(&self.inner.schedule) = Some(Box::new(schedule));
    }

    /// Nothing goes wrong any more.
    pub fn clear_faults(&self) {
        *lock(&self.inner.schedule) = None;
    }

    /// `stall` lets simulated time pass while a call hangs; without it a hanging call times out at once.
    pub fn set_stall(&self, stall: impl FnMut(Duration) + Send + 'static) {
        *lock(&self.inner.stall) = Some(Box::new(stall));
    }

    /// Shows `witness` every object that is put, before it is visible. It may use the methods of [`SimStore`], not those of [`Sink`].
    pub fn set_witness(&self, witness: impl FnMut(&Self, &str, &[u8]) + Send + 'static) {
        *lock(&self.inner.witness) = Some(Box::new(witness));
    }

    /// Names of objects that were put in the place of another one, but for probes, which are meant to try that.
    pub fn replaced(&self) -> Vec<String> {
        self.state().replaced.clone()
    }

    /// Bytes that all objects together may have; more is `ENOSPC`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// What [`Sink::device`] says.
    pub fn set_device(&self, device: Option<u64>) {
        self.state().device = device;
    }

    /// Every visible object.
    pub fn objects(&self) -> BTreeMap<String, Arc<[u8]>> {
        self.state().objects.clone()
    }

    pub fn get(&self, name: &str) -> Option<Arc<[u8]>> {
        self.state().objects.get(name).cloned()
    }

    /// Puts an object past all rules, as somebody else with access to the store might.
    pub fn insert(&self, name: &str, bytes: &[u8]) {
        self.state().objects.insert(name.to_owned(), bytes.into());
    }

    /// What is put becomes visible.
    pub(super) fn appear(&self, name: &str, bytes: Arc<[u8]>) {
        if let Some(witness) = lock(&self.inner.witness).as_mut() {
            witness(self, name, &bytes);
        }
        let mut s = self.state();
        if s.objects.insert(name.to_owned(), bytes).is_some() && !name.contains("/probe-") && !name.contains("/race-") {
            s.replaced.push(name.to_owned());
        }
    }

    /// Removes an object past all rules; true when there was one.
    pub fn remove(&self, name: &str) -> bool {
        self.state().objects.remove(name).is_some()
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Names of the puts that are still on their way.
    pub fn late(&self) -> Vec<String> {
        self.state().late.iter().map(|(n, _)| n.clone()).collect()
    }

    /// The `i`-th of [`Self::late`] arrives: it is stored unless its name is taken. True when it was.
    pub fn land(&self, i: usize) -> bool {
        let (name, bytes) = {
            let mut s = self.state();
            if i >= s.late.len() {
                return false;
            }
            s.late.remove(i)
        };
        let free = self.get(&name).is_none();
        if free {
            self.appear(&name, bytes);
        }
        free
    }

    /// Counts the call and asks the schedule; does what happens to the store before the call.
    fn before(&self, call: Call, name: &str) -> Option<Fault> {
        let number = {
            let mut s = self.state();
            s.calls += 1;
            s.calls - 1
        };
        let fault = lock(&self.inner.schedule).as_mut()?(&Op { number, call, name })?;
        match fault {
            Fault::Foreign(bytes) => {
                self.insert(name, &bytes);
                None
            }
            Fault::Vanishes => {
                self.remove(name);
                None
            }
            Fault::Hangs | Fault::Late => {
                if let Some(stall) = lock(&self.inner.stall).as_mut() {
                    stall(CALL_TIMEOUT);
                }
                Some(fault)
            }
            fault => Some(fault),
        }
    }

    /// A call that changes nothing visible.
    fn plain(&self, call: Call, name: &str) -> SinkResult<()> {
        match self.before(call, name) {
            None | Some(Fault::Unseen | Fault::Foreign(_) | Fault::Vanishes) => Ok(()),
            Some(Fault::Fails(n)) => Err(errno(call, name, n)),
            Some(Fault::Hangs | Fault::Late) => Err(errno(call, name, libc::ETIMEDOUT)),
            Some(Fault::ReplyLost | Fault::Short) => Err(errno(call, name, libc::EIO)),
        }
    }

    /// Creates the object unless its name is taken: then the bytes there.
    fn put(&self, call: Call, name: &str, bytes: Arc<[u8]>) -> SinkResult<Option<Arc<[u8]>>> {
        let lost = errno(call, name, libc::ECONNRESET);
        let fault = self.before(call, name);
        match &fault {
            Some(Fault::Fails(n)) => return Err(errno(call, name, *n)),
            Some(Fault::Hangs) => return Err(errno(call, name, libc::ETIMEDOUT)),
            Some(Fault::Late) => {
                self.state().late.push((name.to_owned(), bytes));
                return Err(errno(call, name, libc::ETIMEDOUT));
            }
            _ => {}
        }
        {
            let s = self.state();
            if let Some(there) = s.objects.get(name) {
                return if fault.is_some() { Err(lost) } else { Ok(Some(Arc::clone(there))) };
            }
            let used: u64 = s.objects.values().map(|o| o.len() as u64).sum();
            if s.capacity.is_some_and(|c| used + bytes.len() as u64 > c) {
                return Err(errno(call, name, libc::ENOSPC));
            }
        }
        let short = fault == Some(Fault::Short);
        let bytes = if short { bytes.get(..bytes.len() / 2).unwrap_or_default().into() } else { bytes };
        self.appear(name, bytes);
        if short || fault == Some(Fault::ReplyLost) { Err(lost) } else { Ok(None) }
    }
}

struct SimStaged {
    store: SimStore,
    name: String,
    bytes: Vec<u8>,
    sealed: bool,
    /// A write or a seal failed: it may be discarded, nothing else.
    spoiled: bool,
}

impl SimStaged {
    fn misused(&self, what: &str) -> SinkError {
        let source = io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: sealed {}, spoiled {}", self.sealed, self.spoiled));
        SinkError::Permanent { context: self.name.clone(), source }
    }
}

impl Write for SimStaged {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.sealed || self.spoiled {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "write to a file that is sealed or spoiled"));
        }
        if let Err(e) = self.store.plain(Call::Write, &self.name) {
            self.spoiled = true;
            let (SinkError::NoSpace { source, .. } | SinkError::Transient { source, .. } | SinkError::Permanent { source, .. }) = e;
            return Err(source);
        }
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staged for SimStaged {
    fn seal(&mut self) -> SinkResult<()> {
        if self.sealed || self.spoiled {
            return Err(self.misused("seal"));
        }
        self.spoiled = true;
        self.store.plain(Call::Seal, &self.name)?;
        (self.sealed, self.spoiled) = (true, false);
        Ok(())
    }

    fn publish(self: Box<Self>) -> SinkResult<Published> {
        if !self.sealed {
            return Err(self.misused("publish"));
        }
        Ok(match self.store.put(Call::Publish, &self.name, self.bytes.as_slice().into())? {
            None => Published::Created,
            Some(_) => Published::AlreadyThere,
        })
    }
}

impl Sink for SimStore {
    fn stage(&self, name: &str) -> SinkResult<Box<dyn Staged>> {
        check_name(name)?;
        self.plain(Call::Stage, name)?;
        Ok(Box::new(SimStaged { store: self.clone(), name: name.to_owned(), bytes: Vec::new(), sealed: false, spoiled: false }))
    }

    fn describe(&self, name: &str) -> SinkResult<Option<ObjectInfo>> {
        check_name(name)?;
        match self.before(Call::Describe, name) {
            None => {}
            Some(Fault::Unseen) => return Ok(None),
            Some(Fault::Fails(n)) => return Err(errno(Call::Describe, name, n)),
            Some(_) => return Err(errno(Call::Describe, name, libc::ETIMEDOUT)),
        }
        Ok(self.get(name).map(|b| ObjectInfo { len: b.len() as u64, sha256: Sha256::digest(&b).into() }))
    }

    fn holds_any(&self, directory: &str) -> SinkResult<bool> {
        check_name(directory)?;
        self.plain(Call::Describe, directory)?;
        let below = format!("{directory}/");
        Ok(self.state().objects.keys().any(|name| name.starts_with(&below)))
    }

    fn confirm(&self, name: &str) -> SinkResult<()> {
        check_name(name)?;
        self.plain(Call::Confirm, name)?;
        if self.get(name).is_none() {
            return Err(errno(Call::Confirm, name, libc::ENOENT));
        }
        Ok(())
    }

    fn put_small(&self, name: &str, bytes: &[u8]) -> SinkResult<PutSmall> {
        check_name(name)?;
        match self.put(Call::PutSmall, name, bytes.into())? {
            None => Ok(PutSmall::Created),
            Some(there) if *there == *bytes => Ok(PutSmall::Same),
            Some(there) if there.len() as u64 > MAX_SMALL => Err(errno(Call::PutSmall, name, libc::EINVAL)),
            Some(there) => Ok(PutSmall::Exists(there.to_vec())),
        }
    }

    fn device(&self) -> Option<u64> {
        self.state().device
    }

    fn children(&self, dir: &str, most: usize) -> SinkResult<Vec<String>> {
        self.plain(Call::Describe, dir)?;
        let prefix = format!("{dir}/");
        let below = |n: &String| Some(n.strip_prefix(&prefix)?.split('/').next()?.to_owned());
        let names: std::collections::BTreeSet<String> = self.state().objects.keys().filter_map(below).collect();
        Ok(names.into_iter().take(most).collect())
    }

    fn get_small(&self, name: &str) -> SinkResult<Option<Vec<u8>>> {
        self.plain(Call::Describe, name)?;
        Ok(self.get(name).map(|b| b.to_vec()))
    }

    fn sweep(&self) -> SinkResult<Swept> {
        self.plain(Call::Sweep, "")?;
        Ok(Swept { removed: 0, complete: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "db/t/x.parquet";

    fn put(s: &SimStore, bytes: &[u8]) -> SinkResult<Published> {
        let mut staged = s.stage(NAME)?;
        staged.write_all(bytes).map_err(|e| SinkError::from_io("write", e))?;
        staged.seal()?;
        staged.publish()
    }

    /// The fault on the next call of this kind only.
    fn once(s: &SimStore, call: Call, fault: Fault) {
        let mut left = Some(fault);
        s.set_faults(move |op| if op.call == call { left.take() } else { None });
    }

    #[test]
    fn the_first_object_keeps_its_name() {
        let s = SimStore::new();
        assert_eq!(s.describe(NAME).unwrap(), None);
        assert!(s.confirm(NAME).is_err());
        assert_eq!(put(&s, b"first").unwrap(), Published::Created);
        assert_eq!(put(&s, b"second").unwrap(), Published::AlreadyThere);
        assert_eq!(&*s.get(NAME).unwrap(), b"first");
        assert_eq!(s.describe(NAME).unwrap().unwrap().len, 5);
        s.confirm(NAME).unwrap();
        assert_eq!(s.put_small(NAME, b"third").unwrap(), PutSmall::Exists(b"first".to_vec()));
    }

    #[test]
    fn each_fault_does_what_it_says() {
        use Fault::*;
        // Fault of the publish, error heard, object visible afterwards, visible after a retry.
        let cases = [
            (Fails(libc::EIO), true, None, &b"whole"[..]),
            (ReplyLost, true, Some(&b"whole"[..]), b"whole"),
            (Hangs, true, None, b"whole"),
            (Short, true, Some(b"wh"), b"wh"),
            (Foreign(b"other".to_vec()), false, Some(b"other"), b"other"),
            (Vanishes, false, Some(b"whole"), b"whole"),
        ];
        for (fault, fails, visible, retried) in cases {
            let s = SimStore::new();
            once(&s, Call::Publish, fault.clone());
            assert_eq!(put(&s, b"whole").is_err(), fails, "{fault:?}");
            assert_eq!(s.get(NAME).as_deref(), visible, "{fault:?}");
            put(&s, b"whole").unwrap();
            assert_eq!(s.get(NAME).as_deref(), Some(retried), "{fault:?}");
        }
    }

    #[test]
    fn a_late_put_lands_only_where_nothing_is() {
        let s = SimStore::new();
        let stalled = Arc::new(Mutex::new(Duration::ZERO));
        let sum = Arc::clone(&stalled);
        s.set_stall(move |d| *sum.lock().unwrap() += d);
        for _ in 0..2 {
            once(&s, Call::Publish, Fault::Late);
            assert!(matches!(put(&s, b"late"), Err(SinkError::Transient { .. })));
        }
        assert_eq!((s.late().len(), s.get(NAME)), (2, None));
        assert_eq!(*stalled.lock().unwrap(), 2 * CALL_TIMEOUT);
        assert!(s.land(1));
        assert_eq!(s.get(NAME).as_deref(), Some(&b"late"[..]));
        s.insert(NAME, b"newer");
        assert!(!s.land(0) && !s.land(0));
        assert_eq!(s.get(NAME).as_deref(), Some(&b"newer"[..]));
    }

    #[test]
    fn a_full_store_takes_nothing_more() {
        let s = SimStore::new();
        s.set_capacity(Some(4));
        assert!(matches!(put(&s, b"whole"), Err(SinkError::NoSpace { .. })));
        s.set_capacity(Some(5));
        assert_eq!(put(&s, b"whole").unwrap(), Published::Created);
    }

    #[test]
    fn what_failed_before_it_was_sealed_cannot_be_published() {
        for call in [Call::Write, Call::Seal] {
            let s = SimStore::new();
            once(&s, call, Fault::Fails(libc::ENOSPC));
            let mut staged = s.stage(NAME).unwrap();
            let first = staged.write_all(b"x").is_err() || staged.seal().is_err();
            assert!(first && staged.write_all(b"x").is_err() && staged.seal().is_err() && staged.publish().is_err(), "{call:?}");
            assert_eq!(s.get(NAME), None);
        }
        let s = SimStore::new();
        put(&s, b"x").unwrap();
        once(&s, Call::Describe, Fault::Unseen);
        assert_eq!(s.describe(NAME).unwrap(), None);
        assert!(s.describe(NAME).unwrap().is_some());
    }
}
