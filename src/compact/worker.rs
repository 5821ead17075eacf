//! The compactor: chooses plans, builds and publishes their outputs, commits them, releases the log.
//!
//! A machine with a `step`, driven by a thread here. A step never sleeps, and starts threads only to build several outputs at once
//! (`workers` above 1).
//!
//! INVARIANT(commit-before-release): a segment is removed only after a synced manifest record says that every sequence of it is in a
//! committed output (or set aside in one), and after the checkpoints of catalog and keys through it.
//! INVARIANT(intent-before-publish): an object appears under its final name only after its length and hash are durable in the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::builder::{Probe, Stop, Trouble, UNCLEAN_ENDS, hex};
use super::control::Control;
use super::deferred::Attempts;
use super::lake::LakeCheck;
use super::memory::BuildMemory;
use super::paths::TablePaths;
use super::plan::{PlanSettings, Slices, make, resume};
use super::quarantine::{self, Quarantined};
use crate::catalog::Catalog;
use crate::format::manifest::{Entry, Plan, StoredKey};
use crate::format::payload::PayloadView;
use crate::idempotency::Keys;
use crate::sink::{Backoff, ObjectInfo, PutSmall, Sink};
use crate::types::{LogId, Sequence};
use crate::vfs::Vfs;
use crate::wal::aside::{damage_entry, is_same_damage, keep_bytes};
use crate::wal::files;
use crate::wal::manifest::{AppendFailure, Manifest, OutputFile};
use crate::wal::prealloc::Preallocator;
use crate::wal::reserve::reserve_length;
use crate::wal::shared::{Blocked, lock};
use crate::wal::{SealedSegment, Shared};

/// When and how to compact.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Log bytes from which on a plan is made.
    pub trigger_size: u64,
    /// Age of the oldest record at which a plan is made.
    pub max_delay: Duration,
    pub plan: PlanSettings,
    /// Outputs built at one time.
    pub workers: usize,
    /// Bytes that all builds together may take.
    pub memory: usize,
    /// How long an output may fail while the store as a whole answers, before its records move aside: [`PATIENCE`] or [`DRAIN_PATIENCE`].
    pub patience: Duration,
}

/// While one output fails, no plan after its own is made, of any table. A part of a store that is being replaced, or rights that are being
/// changed, are over in less; the log holds far more than comes in during it. Moving aside costs a copy of the records and loses nothing.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// In a drain nothing comes in, and somebody waits for its end.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(30);

/// The same for an output that will not be publishable by itself, and for a plan that cannot begin: time enough for a person who is at it.
const LASTING_PATIENCE: Duration = Duration::from_secs(30);

/// Attempts without which nothing is concluded from time that has passed: most of it the store may have been away.
pub(super) const FEW: u32 = 3;

/// How long a plan is put off for the active segment to be sealed.
const SEAL_WAIT: Duration = Duration::from_millis(100);

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    Worked,
    /// Nothing to do, or nothing to be done yet: look again after this.
    Wait(Duration),
    /// It will never do anything again: forked or poisoned beyond use.
    Done,
}

/// A plan being carried out.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) plan: Plan,
    pub(super) slices: Slices,
    /// Sequences of unparsable payloads were set aside.
    pub(super) unparsable_kept: bool,
    /// The plan's object is in the store.
    pub(super) announced: bool,
    pub(super) cautious: Cautious,
    /// The outputs that failed at the last attempt.
    pub(super) failing: BTreeMap<u32, Failing>,
    /// The plan's object could not be put, for a reason that will not go away by itself.
    pub(super) barred: Option<Failing>,
}

/// What is put on record before an output is built, so that the next process knows of it if this one ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cautious {
    No,
    /// Earlier attempts ended uncleanly: each record is tried on its own first.
    EachRecord,
    /// The output as a whole: it comes out of a side segment, perhaps because it has ended processes.
    Output,
}

/// What has failed again and again while the store answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    since: Duration,
    attempts: u32,
}

impl Current {
    /// A plan one of whose outputs comes out of its side segment.
    pub(super) fn of_side(plan: Plan, slices: Slices) -> Self {
        Self { plan, slices, unparsable_kept: true, announced: true, cautious: Cautious::Output, failing: BTreeMap::new(), barred: None }
    }
}

impl Failing {
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    fn again(before: Option<Self>, now: Duration) -> Self {
        before.map_or(Self { since: now, attempts: 1 }, |f| Self { attempts: f.attempts.saturating_add(1), ..f })
    }

    fn is_over(&self, patience: Duration, now: Duration) -> bool {
        self.attempts >= FEW && now >= self.since + patience
    }
}

pub struct Compactor {
    pub(super) shared: Arc<Shared>,
    pub(super) control: Arc<Control>,
    pub(super) vfs: Arc<dyn Vfs>,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) manifest: Manifest,
    pub(super) catalog: Arc<Catalog>,
    pub(super) keys: Arc<Keys>,
    pub(super) prealloc: Arc<Preallocator>,
    pub(super) settings: Settings,
    pub(super) current: Option<Current>,
    pub(super) backoff: Backoff,
    pub(super) reserve_tried: Option<Duration>,
    /// How long the reserve must be beside the manifest.
    pub(super) reserve_length: u64,
    /// When deferred outputs are looked at again, whichever of them is due by itself.
    pub(super) deferred_due: Option<Duration>,
    /// Deferred outputs, by plan and number, that this process has tried.
    pub(super) attempts: BTreeMap<(u64, u32), Attempts>,
    /// Files of the side directory that nothing names and that have been reported.
    pub(super) strays: BTreeSet<String>,
    /// Since when a plan has been put off for the active segment to be sealed.
    seal_asked: Option<Duration>,
    /// What the last step waits for: sequences sealed through this.
    awaited: Option<Sequence>,
    /// The log and the lake are on one filesystem.
    shares_disk: bool,
    /// When the manifest was last told how far the log is durable.
    pub(super) told: Duration,
    pub(super) probe: Option<Probe>,
    pub(super) memory: Arc<BuildMemory>,
    /// When this process began to compact.
    pub(super) started: Duration,
    paths: TablePaths,
    /// What is to be asked of the store before anything is shipped.
    pub(super) unchecked: Option<LakeCheck>,
    /// The first plan whose object the lake must hold: earlier ones are in a lake that was used before.
    pub(super) lake_from: u64,
    /// The last attempt failed in a way that a store that is away explains.
    pub(super) doubtful: bool,
    /// The last error as the compactor told it, while it stands.
    said: Option<String>,
}

impl Compactor {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        shared: Arc<Shared>,
        control: Arc<Control>,
        vfs: Arc<dyn Vfs>,
        sink: Arc<dyn Sink>,
        manifest: Manifest,
        catalog: Arc<Catalog>,
        keys: Arc<Keys>,
        prealloc: Arc<Preallocator>,
        settings: Settings,
    ) -> Self {
        let seed = shared.clock.random_u64();
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5), seed);
        let shares_disk = match (vfs.device(&shared.settings.directory), sink.device()) {
            (Ok(a), Some(b)) => a == b,
            _ => false,
        };
        let probe = Probe::open(&*vfs, &shared.settings.directory);
        let memory = Arc::new(BuildMemory::new(settings.memory));
        let started = shared.clock.monotonic();
        let reserve_length = reserve_length(shared.settings.reserve, manifest.end());
        // Whatever an earlier run left unshipped is due at once.
        control.request(shared.watermarks().durable);
        let told = shared.clock.monotonic();
        let mut c = Self {
            shared,
            control,
            vfs,
            sink,
            manifest,
            catalog,
            keys,
            prealloc,
            settings,
            current: None,
            backoff,
            reserve_tried: None,
            reserve_length,
            deferred_due: None,
            attempts: BTreeMap::new(),
            strays: BTreeSet::new(),
            said: None,
            seal_asked: None,
            awaited: None,
            shares_disk,
            told,
            probe,
            memory,
            started,
            paths: TablePaths::default(),
            unchecked: None,
            lake_from: 1,
            doubtful: false,
        };
        c.count_quarantine();
        c.count_deferred();
        c.control.set_damage(c.manifest.state.damage.clone());
        c
    }

    /// Runs until stopped.
    pub fn run(mut self) {
        while !self.control.is_stopped() {
            match self.step() {
                Work::Worked => {}
                Work::Wait(t) => match self.awaited {
                    Some(through) => {
                        self.shared.wait_watermarks(t, |w| w.sealed >= through);
                    }
                    None => self.control.wait(t),
                },
                Work::Done => return,
            }
        }
        self.finish();
    }

    /// Stopped in good order.
    pub fn finish(&mut self) {
        if !self.shared.is_poisoned() {
            let mut entries = Vec::new();
            // A plan that waits for its store is left in good order as well: the next attempt at it does not follow an unclean end.
            if let Some(plan) = self.current.as_ref().map(|c| c.plan.plan)
                && self.manifest.state.plans.get(&plan).is_some_and(|p| p.attempts > 0)
            {
                entries.push(Entry::Stopped { plan });
            }
            // The next recovery then knows how much must be there, whatever has become of the files.
            let sequence = self.shared.watermarks().durable;
            entries.push(Entry::Durable { sequence, running_ms: self.keys.running_ms() });
            let _ = self.append(entries, &[]);
        }
    }

    pub fn step(&mut self) -> Work {
        self.shared.pulses.compact.beat();
        self.awaited = None;
        if self.control.forked().is_some() {
            return Work::Done;
        }
        self.restore_reserve();
        match self.advance() {
            Ok(w) => {
                if w == Work::Worked {
                    self.backoff.reset();
                }
                w
            }
            Err(Trouble::Fatal) => Work::Done,
            // Room that the log gives back is of no use where the lake is on another disk: the log goes on until it is full.
            Err(Trouble::LakeFull(why)) if !self.shares_disk => {
                self.trouble(&why);
                self.shared.metrics.compact_retries_total.increment(1);
                Work::Wait(self.backoff.next_wait())
            }
            Err(Trouble::NoSpace(why) | Trouble::LakeFull(why)) => {
                self.trouble(&why);
                if self.make_room() { Work::Worked } else { Work::Wait(Duration::from_secs(1)) }
            }
            Err(Trouble::Retry(why) | Trouble::Lasting(why)) => {
                self.trouble(&why);
                self.shared.metrics.compact_retries_total.increment(1);
                Work::Wait(self.backoff.next_wait())
            }
        }
    }

    pub(super) fn trouble(&mut self, why: &str) {
        if self.shared.last_error().as_deref() != Some(why) {
            tracing::warn!(error = %why, "compaction will be tried again");
        }
        self.shared.metrics.compact_errors_total.increment(1);
        self.shared.set_last_error(why.to_owned());
        self.said = Some(why.to_owned());
    }

    /// A plan or a deferred output went through: what the compactor said last is over, unless an output still waits.
    pub(super) fn trouble_is_over(&mut self) {
        let said = self.said.take();
        // What others have said stands: a poisoned log, a spare segment that cannot be made.
        if said.is_none() || self.shared.last_error() != said {
            return;
        }
        let waits = self.attempts.values().find_map(|a| a.last.as_ref()).map(|s| s.why.clone());
        match &waits {
            Some(why) => self.shared.set_last_error(why.clone()),
            None => self.shared.clear_last_error(),
        }
        self.said = waits;
    }

    fn advance(&mut self) -> Result<Work, Trouble> {
        self.tell_progress()?;
        if self.unchecked.is_some() {
            if self.release()? {
                return Ok(Work::Worked);
            }
            self.check_lake()?;
        }
        if self.current.is_none() {
            if self.retry_deferred()? || self.release()? {
                return Ok(Work::Worked);
            }
            if let Some(open) = self.manifest.state.open_plan() {
                let plan = open.plan.clone();
                return self.take_up(plan);
            }
            return self.choose();
        }
        self.carry_out()
    }

    /// Continues a plan that an earlier run made.
    fn take_up(&mut self, plan: Plan) -> Result<Work, Trouble> {
        let segments = self.sealed();
        tracing::info!(plan = plan.plan, first = plan.first_sequence, last = plan.last_sequence, "taking up a plan of an earlier run");
        let slices = resume(&*self.vfs, &segments, &self.catalog, &plan, &self.manifest.state.damage)?;
        self.begin(plan, slices)
    }

    /// INVARIANT(rot-is-kept): what has gone bad since its segment was sealed is set aside and recorded before the plan that passes over it
    /// is built.
    fn begin(&mut self, plan: Plan, slices: Slices) -> Result<Work, Trouble> {
        let mut entries = vec![Entry::Attempt { plan: plan.plan }];
        let sealed = self.sealed();
        for (segment, f) in &slices.findings {
            tracing::error!(
                file = files::segment_name(*segment),
                offset = f.from,
                label = f.label.name(),
                missing_sequences = f.missing_text(),
                "damage in a sealed segment"
            );
            // Recovery has counted what it saw; this is what has gone bad since.
            let entry = damage_entry(*segment, f);
            let seen = |d: &Entry| is_same_damage(d, &entry);
            if !self.manifest.state.damage.iter().any(seen) {
                if let Some(s) = sealed.iter().find(|s| s.id == *segment) {
                    keep_bytes(&*self.vfs, &self.shared.settings.directory, &s.path, s.file_len, s.salt, f)?;
                }
                self.shared.metrics.wal_damage_findings_total.increment(1);
                entries.push(entry);
            }
        }
        let attempts = self.manifest.state.plans.get(&plan.plan).map_or(0, |p| p.attempts);
        let cautious = attempts >= UNCLEAN_ENDS;
        if cautious {
            tracing::warn!(plan = plan.plan, attempts, "this plan was under way when the process ended: building it one record at a time");
            // Where the last attempt was when it ended. Once is no evidence: the process may have been killed for any reason.
            if let Some((p, output, sequence)) = self.probe.as_ref().and_then(Probe::take)
                && p == plan.plan
                && sequence > 0
                && !self.is_committed(&plan, output)
            {
                entries.push(Entry::Suspect { plan: p, output, sequence });
            }
        }
        self.append(entries, &[])?;
        self.control.set_damage(self.manifest.state.damage.clone());
        self.control.set_plan(Some(plan.plan));
        let cautious = if cautious { Cautious::EachRecord } else { Cautious::No };
        self.current =
            Some(Current { plan, slices, unparsable_kept: false, announced: false, cautious, failing: BTreeMap::new(), barred: None });
        Ok(Work::Worked)
    }

    pub(super) fn sealed(&self) -> Vec<Arc<SealedSegment>> {
        lock(&self.shared.segments).sealed.iter().cloned().collect()
    }

    /// Makes a plan if one is due.
    fn choose(&mut self) -> Result<Work, Trouble> {
        let w = self.shared.watermarks();
        let (bytes, age) = self.unshipped();
        let asked = self.control.target();
        let flush = asked > w.shipped;
        let aged = age.is_some_and(|a| a >= self.settings.max_delay);
        let large = bytes >= self.settings.trigger_size;
        let high = self.shared.segment_level() >= 0.5 || self.shared.blocked() != Blocked::No || self.shared.reserve_spent();
        if self.control.is_paused() || !(flush || aged || large || high) {
            let until_due = age.map_or(Duration::from_millis(100), |a| self.settings.max_delay.saturating_sub(a));
            return Ok(Work::Wait(until_due.clamp(Duration::from_millis(5), Duration::from_millis(100))));
        }
        // What the active segment holds is sealed first when it is asked for, old, or the log is filling up; not for bytes alone.
        let want = if flush {
            asked
        } else if aged {
            w.durable
        } else {
            0
        };
        let want = want.min(w.durable);
        if want > w.sealed && !self.shared.is_poisoned() {
            // Without room for its entry in the manifest no segment follows: the reserve is for that.
            self.written(self.manifest.prepare())?;
            self.shared.request_seal(want);
            let now = self.shared.clock.monotonic();
            let since = *self.seal_asked.get_or_insert(now);
            let left = SEAL_WAIT.saturating_sub(now.saturating_sub(since));
            // Without a spare to seal with, what is sealed already is shipped alone.
            if !left.is_zero() || w.sealed <= w.shipped {
                self.awaited = Some(want);
                return Ok(Work::Wait(left.max(Duration::from_millis(20))));
            }
        }
        self.seal_asked = None;
        let segments = self.sealed();
        let number = self.manifest.state.next_plan;
        let (paths, sink, plans) = (&mut self.paths, &*self.sink, &self.manifest.state.plans);
        let directory = |database: &str, table: &str| paths.directory(sink, plans.values().rev().map(|p| &p.plan), database, table);
        let made = make(&*self.vfs, &segments, &self.catalog, self.shared.log, &self.settings.plan, number, w.shipped, directory)?;
        let Some((plan, slices)) = made else { return Ok(Work::Wait(Duration::from_millis(20))) };
        tracing::info!(
            plan = plan.plan,
            first = plan.first_sequence,
            last = plan.last_sequence,
            segments = plan.inputs.len(),
            outputs = plan.outputs.len(),
            "plan made"
        );
        self.append(vec![Entry::Plan(plan.clone())], &[])?;
        self.begin(plan, slices)
    }

    /// Log bytes not yet shipped, sealed or active, and the age of the oldest record.
    fn unshipped(&self) -> (u64, Option<Duration>) {
        let (_, age) = self.shared.backlog();
        let shipped = self.shared.watermarks().shipped;
        let s = lock(&self.shared.segments);
        let data = crate::limits::FILE_HEADER_BYTES as u64;
        let sealed: u64 = s.sealed.iter().filter(|x| x.last_sequence > shipped).map(|x| x.end.saturating_sub(data)).sum();
        (sealed + s.active.map_or(0, |a| a.end.saturating_sub(data)), age)
    }

    fn carry_out(&mut self) -> Result<Work, Trouble> {
        let Some(mut c) = self.current.take() else { return Ok(Work::Worked) };
        let r = self.drive(&mut c);
        match r {
            Ok(true) => {
                drop(c);
                Ok(Work::Worked)
            }
            Ok(false) => {
                self.current = Some(c);
                Ok(Work::Wait(self.backoff.next_wait().max(Duration::from_secs(1))))
            }
            Err(e) => {
                self.current = Some(c);
                Err(e)
            }
        }
    }

    /// Carries the plan as far as it goes; true when it is shipped.
    fn drive(&mut self, c: &mut Current) -> Result<bool, Trouble> {
        if std::mem::take(&mut self.doubtful) {
            self.ask_store()?;
        }
        if !c.announced {
            let announced = self.announce(c);
            self.note_barred(c, &announced);
            announced?;
        }
        if !c.unparsable_kept {
            self.keep_unparsable(c)?;
        }
        let unsettled =
            |x: &Self, c: &Current| -> Vec<u32> { (0..c.plan.outputs.len() as u32).filter(|n| !x.is_settled(&c.plan, *n)).collect() };
        if let Some(stop) = self.adopt_published(c, &unsettled(self, c))?.failed.pop_first() {
            // Building it again will say why, and may defer it.
            self.trouble(&stop.1.why);
        }
        let todo = unsettled(self, c);
        if !todo.is_empty() {
            let stopped = self.build_all(c, &todo)?;
            if !stopped.is_empty() {
                // Records move aside for an output that cannot be published, not for a store that is away.
                self.ask_store()?;
            }
            if self.control.is_stopped() {
                // The next attempt at this plan does not follow an unclean end.
                self.append(vec![Entry::Stopped { plan: c.plan.plan }], &[])?;
                return Ok(false);
            }
            let failed = stopped.len();
            let aside = self.aside(c, stopped, todo.len());
            if !self.defer(c, &aside)? || aside.len() < failed {
                return Ok(false);
            }
        }
        self.ship(&c.plan)?;
        Ok(true)
    }

    /// Those of the outputs that failed whose records are to move aside. The others are committed; what stopped these may go away by itself
    /// or by a person.
    fn aside(&mut self, c: &mut Current, stopped: BTreeMap<u32, Stop>, all: usize) -> BTreeMap<u32, Stop> {
        let before = std::mem::take(&mut c.failing);
        let Some((n, stop)) = stopped.first_key_value() else {
            self.shared.set_side_wanted(0);
            return stopped;
        };
        if !stopped.keys().eq(before.keys()) {
            self.shared.set_side_wanted(stopped.keys().map(|n| c.slices.side_len(*n)).sum());
        }
        let (some, plan, why) = (stopped.len(), c.plan.plan, &stop.why);
        self.trouble(&format!("{some} of {all} outputs of plan {plan} wait; output {n}: {why}"));
        self.shared.metrics.compact_retries_total.increment(1);
        let now = self.shared.clock.monotonic();
        c.failing = stopped.keys().map(|n| (*n, Failing::again(before.get(n).copied(), now))).collect();
        let too_much = self.pins_too_much();
        let is_over = |n: &u32, s: &Stop| {
            let patience = if s.lasting { LASTING_PATIENCE } else { self.settings.patience };
            c.failing.get(n).is_some_and(|f| f.is_over(patience, now))
        };
        stopped.into_iter().filter(|(n, s)| too_much || is_over(n, s)).collect()
    }

    /// A plan whose object cannot be put holds up everything. Whoever waits for an end of that hears of it.
    fn note_barred(&mut self, c: &mut Current, announced: &Result<(), Trouble>) {
        let Err(Trouble::Lasting(why)) = announced else {
            c.barred = None;
            return self.control.set_barred(None);
        };
        let now = self.shared.clock.monotonic();
        let barred = Failing::again(c.barred, now);
        c.barred = Some(barred);
        if barred.is_over(LASTING_PATIENCE, now) {
            self.control.set_barred(Some(why.clone()));
        }
    }

    /// INVARIANT(shipped-is-settled): a plan is called shipped, which lets its segments go, only when each of its outputs is committed or its
    /// records are in a side segment.
    pub(super) fn ship(&mut self, plan: &Plan) -> Result<(), Trouble> {
        let open = (0..plan.outputs.len() as u32).find(|n| !self.is_settled(plan, *n));
        assert_eq!(open, None, "INVARIANT(shipped-is-settled): an output of plan {} is neither committed nor deferred", plan.plan);
        let last = plan.last_sequence;
        self.append(vec![Entry::Shipped { plan: plan.plan, last_sequence: last }], &[])?;
        self.shared.set_side_wanted(0);
        self.control.set_barred(None);
        self.shared.advance(|w| w.shipped = w.shipped.max(last));
        self.shared.metrics.compact_plans_total.increment(1);
        self.control.set_plan(None);
        tracing::info!(plan = plan.plan, through = last, "plan shipped");
        self.trouble_is_over();
        Ok(())
    }

    /// Whether the store as a whole answers.
    pub(super) fn ask_store(&mut self) -> Result<(), Trouble> {
        self.sink.ready().map_err(|e| {
            self.doubtful = true;
            e.into()
        })
    }

    pub(super) fn is_committed(&self, plan: &Plan, n: u32) -> bool {
        self.manifest.state.is_committed(plan.plan, n)
    }

    /// INVARIANT(plan-object): before the first data put of plan k, the store holds the create-only object of plan k, and it is this plan.
    /// Two copies of one log that diverge both want number k; the loser stops.
    fn announce(&mut self, c: &mut Current) -> Result<(), Trouble> {
        self.check_previous(c.plan.plan)?;
        let name = plan_object(self.shared.log, c.plan.plan);
        let bytes = serde_json::to_vec(&c.plan).map_err(|e| Trouble::Retry(e.to_string()))?;
        if let PutSmall::Exists(found) = self.sink.put_small(&name, &bytes)?
            && found != bytes
        {
            let stored: Option<Plan> = serde_json::from_slice(&found).ok();
            match stored {
                // Half of one, or the page of a proxy: whose plan this was cannot be told, and nobody ships over it.
                None => {
                    return Err(Trouble::Lasting(format!(
                        "{name} in the store is not a plan: expected the {} bytes of this one, found {} bytes that cannot be read; nothing is \
                         shipped until it is moved away",
                        bytes.len(),
                        found.len()
                    )));
                }
                // The same plan as another version wrote it.
                Some(p) if p == c.plan => {}
                Some(p) if p.plan == c.plan.plan && p.inputs == c.plan.inputs && p.last_sequence == c.plan.last_sequence => {
                    tracing::warn!(plan = p.plan, "the store holds this plan with other settings: adopting it");
                    self.append(vec![Entry::Plan(p.clone())], &[])?;
                    let segments = self.sealed();
                    c.slices = resume(&*self.vfs, &segments, &self.catalog, &p, &self.manifest.state.damage)?;
                    c.plan = p;
                }
                _ => {
                    self.control.set_forked(format!(
                        "{name} in the store is not the plan of this log directory: another copy of log {} has shipped from here on. \
                         Nothing was shipped or released by this one; keep one copy, and see docs/architecture.md, \"Forked\"",
                        self.shared.log
                    ));
                    return Err(Trouble::Fatal);
                }
            }
        }
        c.announced = true;
        Ok(())
    }

    /// Payloads that passed their CRC and cannot be parsed are a bug; so may be records that the plan was made without. Their bytes go to
    /// the quarantine.
    fn keep_unparsable(&mut self, c: &mut Current) -> Result<(), Trouble> {
        for (sequence, segment, offset, len, reason) in &c.slices.unparsable {
            let record = c.slices.mapped.record(*segment, *offset, *len);
            let payload = record.get(crate::limits::RECORD_HEADER_BYTES..).unwrap_or_default();
            let rows = PayloadView::parse(payload).map_or(0, |p| p.index.rows());
            let q = Quarantined {
                sequence: *sequence,
                database: "unknown".into(),
                table: "unknown".into(),
                hour: 0,
                rows,
                plan: c.plan.plan,
                reason: reason.clone(),
                bytes: u64::from(*len) + crate::limits::RECORD_HEADER_BYTES as u64,
            };
            tracing::error!(sequence, reason, "a record cannot be read: set aside");
            quarantine::put(&*self.vfs, &self.shared.settings.directory, &q, record)?;
        }
        c.unparsable_kept = true;
        if !c.slices.unparsable.is_empty() {
            self.count_quarantine();
        }
        Ok(())
    }

    /// Commits those of `outputs` whose object an earlier attempt has published under a recorded intent. Looking at one reads its object, so
    /// only those are named that somebody wants to know of.
    pub(super) fn adopt_published(&mut self, c: &Current, outputs: &[u32]) -> Result<Looked, Trouble> {
        let mut looked = Looked::default();
        let state = &self.manifest.state;
        let k = c.plan.plan;
        let mut found = Vec::new();
        for n in outputs.iter().filter(|n| !state.is_committed(k, **n) && !state.intents_of(k, **n).is_empty()) {
            let files = state.intents_of(k, *n);
            let Some(o) = c.plan.outputs.get(*n as usize) else { continue };
            let adopted = self.sink.describe(&o.name).and_then(|info| {
                let Some(info) = info else { return Ok(None) };
                let Some(f) = files.iter().find(|f| same(f, &info)) else {
                    looked.foreign.push(*n);
                    return Ok(None);
                };
                self.sink.confirm(&o.name).map(|()| Some(f.clone()))
            });
            match adopted.map_err(Trouble::from) {
                Ok(f) => found.extend(f.map(|f| (*n, f))),
                // It stops this output alone.
                Err(Trouble::Retry(why)) => drop(looked.failed.insert(*n, Stop::passing(why))),
                Err(Trouble::Lasting(why)) => drop(looked.failed.insert(*n, Stop::lasting(why))),
                Err(e) => return Err(e),
            }
        }
        self.commit(c, found)?;
        Ok(looked)
    }

    fn commit(&mut self, c: &Current, files: Vec<(u32, OutputFile)>) -> Result<(), Trouble> {
        if files.is_empty() {
            return Ok(());
        }
        self.sink.in_place()?;
        let deferred = files.iter().any(|(n, _)| self.manifest.state.deferred.contains_key(&(c.plan.plan, *n)));
        let entries = files.iter().map(|(n, f)| commit_entry(c.plan.plan, *n, f)).collect();
        self.append(entries, &[])?;
        self.count_commits(&files);
        if deferred {
            self.count_deferred();
        }
        Ok(())
    }

    pub(super) fn count_commits(&self, files: &[(u32, OutputFile)]) {
        let m = &self.shared.metrics;
        let rows: u64 = files.iter().map(|(_, f)| f.rows).sum();
        let written = files.iter().filter(|(_, f)| f.length > 0).count() as u64;
        m.compact_outputs_total.increment(written);
        m.compact_rows_total.increment(rows);
        m.compact_parquet_bytes_total.increment(files.iter().map(|(_, f)| f.length).sum());
        self.control.committed(written, rows);
    }

    pub(super) fn count_quarantine(&mut self) {
        let Ok(found) = quarantine::list(&*self.vfs, &self.shared.settings.directory) else { return };
        let bytes = found.iter().map(|f| f.entry.bytes).sum();
        self.control.set_quarantined(found.len() as u64, bytes);
        self.shared.metrics.compact_quarantined_records.set(found.len() as f64);
        self.shared.metrics.compact_quarantined_bytes.set(bytes as f64);
    }

    pub(super) fn append(&mut self, mut entries: Vec<Entry>, keys: &[StoredKey]) -> Result<(), Trouble> {
        if entries.is_empty() && keys.is_empty() {
            return Ok(());
        }
        // It takes no room of its own here.
        let progress = self.progress();
        entries.splice(0..0, progress.map(Entry::Segment));
        self.told = self.shared.clock.monotonic();
        let appended = self.manifest.append(entries, keys);
        self.written(appended)?;
        self.grow_reserve();
        Ok(())
    }

    pub(super) fn written(&self, r: Result<(), AppendFailure>) -> Result<(), Trouble> {
        match r {
            Ok(()) => Ok(()),
            Err(e @ AppendFailure::NoSpace(_)) => Err(Trouble::NoSpace(e.to_string())),
            Err(e @ AppendFailure::Stands(_)) => Err(Trouble::Retry(e.to_string())),
            Err(e @ AppendFailure::Fatal(_)) => {
                self.shared.poison(format!("{}: {e}", self.manifest.path().display()));
                Err(Trouble::Fatal)
            }
        }
    }

    /// The directory of the log.
    pub fn directory(&self) -> PathBuf {
        self.shared.settings.directory.clone()
    }

    /// Bytes of the manifest that hold something.
    pub fn manifest_end(&self) -> u64 {
        self.manifest.end()
    }

    /// All sequences through this are in committed outputs.
    pub fn shipped(&self) -> Sequence {
        self.manifest.state.shipped
    }
}

/// What [`Compactor::adopt_published`] found of outputs that it did not commit.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// At whose name an object is that no intent describes.
    pub(super) foreign: Vec<u32>,
    pub(super) failed: BTreeMap<u32, Stop>,
}

/// The name of the create-only object that makes plan `k` of a log the only one of its number.
pub fn plan_object(log: LogId, k: u64) -> String {
    format!("_arc/{log}/plan-{k}")
}

pub(super) fn commit_entry(plan: u64, output: u32, f: &OutputFile) -> Entry {
    f.clone().commit(plan, output)
}

pub(super) fn same(f: &OutputFile, info: &ObjectInfo) -> bool {
    f.length == info.len && f.sha256 == hex(&info.sha256)
}
