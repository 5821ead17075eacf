//! The outputs of a plan: built, recorded, published, committed; what cannot be built goes to the quarantine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use super::builder::{Ready, SUSPICIONS, Stop, Trouble, build_one, hex, try_each};
use super::memory::build_bytes;
use super::parquet::OutputSpec;
use super::plan::Slices;
use super::quarantine::{self, Quarantined};
use super::spec::output_spec;
use super::threads::spawn;
use super::worker::{Cautious, Compactor, Current, commit_entry, same};
use crate::format::manifest::Plan;
use crate::sink::{ObjectInfo, Published, Sink, SinkError, SinkResult, Staged};
use crate::types::Sequence;
use crate::wal::manifest::OutputFile;
use crate::wal::shared::Pulse;

impl Compactor {
    /// Builds the outputs on up to `workers` threads, or on this one when that is one or none can be started, and records, publishes and
    /// commits each as it is ready. Together they take no more than `compaction.memory`.
    ///
    /// What stops one output stops it alone: those are returned with the reason. A full disk stops all.
    pub(super) fn build_all(&mut self, c: &Current, todo: &[u32]) -> Result<BTreeMap<u32, Stop>, Trouble> {
        let mut specs: BTreeMap<u32, OutputSpec> = BTreeMap::new();
        for n in todo {
            specs.insert(*n, output_spec(&c.plan, *n, self.shared.log).map_err(Trouble::Lasting)?);
        }
        // One probe file, so one builder.
        let probe = if c.cautious != Cautious::No { self.probe.take() } else { None };
        let workers = if probe.is_some() { 1 } else { self.settings.workers.clamp(1, todo.len().max(1)) };
        // Where a put takes a round trip, what is built meanwhile goes out with the next ones.
        let puts = self.sink.parallel();
        let skips = self.culprits(&c.plan);
        let sink = Arc::clone(&self.sink);
        let memory = Arc::clone(&self.memory);
        let running_for = self.shared.clock.monotonic().saturating_sub(self.started);
        let (shared, control) = (Arc::clone(&self.shared), Arc::clone(&self.control));
        let build = |n: u32| {
            let (Some(spec), Some(o), Some(list)) = (specs.get(&n), c.plan.outputs.get(n as usize), c.slices.outputs.get(n as usize))
            else {
                return Err(Trouble::Retry(format!("plan {} has no output {n}", c.plan.plan)));
            };
            let _share = memory.take(build_bytes(spec, list));
            let started = shared.clock.monotonic();
            let skip = skips.get(&n).map_or(&[][..], Vec::as_slice);
            let one = |spec: &OutputSpec| build_one(&*sink, n, &o.name, spec, list, skip, &c.slices);
            let built = match &probe {
                None => one(spec),
                Some(p) => {
                    let ends = p.ends(c.plan.plan, n);
                    if ends == 0 && c.cautious == Cautious::EachRecord {
                        try_each(p, c.plan.plan, n, spec, list, skip, &c.slices);
                    }
                    let smaller = p.begin_output(c.plan.plan, n, spec, running_for)?;
                    let built = one(&smaller);
                    p.end_output(c.plan.plan, n, built.is_ok());
                    built
                }
            };
            shared.metrics.compact_build_seconds.record(shared.clock.monotonic().saturating_sub(started).as_secs_f64());
            shared.pulses.compact.beat();
            built
        };
        let mut stopped = BTreeMap::new();
        let one_by_one = |x: &mut Self, stopped: &mut BTreeMap<u32, Stop>| {
            let mut todo = todo.iter().take_while(|_| !control.is_stopped());
            todo.try_for_each(|n| x.hand_over(c, vec![(*n, build(*n))], stopped))
        };
        let result = if workers == 1 && (puts == 1 || probe.is_some()) {
            // On this thread, so that a step of the compactor is one thread's work, in one order.
            one_by_one(self, &mut stopped)
        } else {
            let next = AtomicUsize::new(0);
            // One finished output waits at most for each worker, or for each put: what is staged is bounded.
            let (tx, rx) = mpsc::sync_channel::<(u32, Result<Ready, Trouble>)>(workers.max(puts));
            let work = |tx: mpsc::SyncSender<_>| {
                while let Some(n) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if control.is_stopped() || tx.send((*n, build(*n))).is_err() {
                        return;
                    }
                }
            };
            std::thread::scope(|scope| {
                let work = &work;
                let started = (0..workers).take_while(|_| {
                    let tx = tx.clone();
                    spawn(scope, "arc-build", move || work(tx)).is_some()
                });
                if started.count() == 0 {
                    return one_by_one(self, &mut stopped);
                }
                drop(tx);
                // The receiver goes when this scope's body ends, which ends builders that wait to hand something over.
                let rx = rx;
                while let Ok(first) = rx.recv() {
                    let mut batch = vec![first];
                    batch.extend(rx.try_iter().take(workers.max(puts)));
                    self.hand_over(c, batch, &mut stopped)?;
                }
                Ok(())
            })
        };
        self.probe = probe.or(self.probe.take());
        result.map(|()| stopped)
    }

    /// Takes outputs as the builders return them.
    fn hand_over(
        &mut self,
        c: &Current,
        batch: Vec<(u32, Result<Ready, Trouble>)>,
        stopped: &mut BTreeMap<u32, Stop>,
    ) -> Result<(), Trouble> {
        let failed_before = stopped.values().filter(|s| !s.lasting).count();
        let mut ready = Vec::new();
        for (n, r) in batch {
            match r {
                Ok(r) => ready.push(r),
                Err(Trouble::Retry(why)) => {
                    stopped.insert(n, Stop::passing(why));
                }
                Err(Trouble::Lasting(why)) => {
                    stopped.insert(n, Stop::lasting(why));
                }
                Err(e) => return Err(e),
            }
        }
        let committed = self.publish(&c.plan, &c.slices, ready, stopped)?;
        if committed == 0 && stopped.values().filter(|s| !s.lasting).count() > failed_before {
            // With the store away every further output would only be built to wait for its timeout.
            self.ask_store()?;
        }
        Ok(())
    }

    /// Records at which earlier attempts ended again and again, by output.
    fn culprits(&self, plan: &Plan) -> BTreeMap<u32, Vec<Sequence>> {
        let mut out: BTreeMap<u32, Vec<Sequence>> = BTreeMap::new();
        for ends in self.manifest.state.suspects_of(plan.plan).windows(SUSPICIONS) {
            if let Some(first @ (output, sequence)) = ends.first()
                && ends.iter().all(|e| e == first)
            {
                let list = out.entry(*output).or_default();
                if !list.contains(sequence) {
                    list.push(*sequence);
                }
            }
        }
        out
    }

    /// Quarantine, intents, names, commits: each durable before the next. Returns how many outputs were committed.
    fn publish(&mut self, plan: &Plan, slices: &Slices, ready: Vec<Ready>, stopped: &mut BTreeMap<u32, Stop>) -> Result<usize, Trouble> {
        let mut intents = Vec::new();
        for r in &ready {
            self.quarantine(plan, slices, r)?;
            if self.manifest.state.intents_of(plan.plan, r.output).contains(&r.file) {
                // An attempt that is made again and again says nothing new, and would let the manifest grow for as long as the store is away.
                continue;
            }
            intents.push(r.file.clone().intent(plan.plan, r.output));
        }
        self.append(intents, &[])?;
        let mut commits = Vec::new();
        let started = self.shared.clock.monotonic();
        let mut full = None;
        for (n, file, published) in publish_each(&*self.sink, plan, ready, &self.shared.pulses.compact) {
            match published.map_err(Trouble::from) {
                Ok(Put::Ours) => commits.push((n, file)),
                Err(Trouble::Retry(why)) => {
                    stopped.insert(n, Stop::passing(why));
                }
                Err(Trouble::Lasting(why)) => {
                    stopped.insert(n, Stop::lasting(why));
                }
                Err(e) => full = full.or(Some(e)),
                Ok(Put::Foreign(other)) => {
                    let why = format!(
                        "{}: another object has this name ({}), expected {} bytes with SHA-256 {}; this output waits until it is moved away",
                        plan.outputs.get(n as usize).map_or("", |o| &o.name),
                        other.map_or("gone meanwhile".into(), |i| format!("{} bytes, SHA-256 {}", i.len, hex(&i.sha256))),
                        file.length,
                        file.sha256
                    );
                    tracing::error!(error = %why, "an output is stopped");
                    stopped.insert(n, Stop::foreign(why));
                }
            }
        }
        self.shared.metrics.compact_put_seconds.record(self.shared.clock.monotonic().saturating_sub(started).as_secs_f64());
        if !commits.is_empty() {
            self.sink.in_place()?;
        }
        let entries = commits.iter().map(|(n, f)| commit_entry(plan.plan, *n, f)).collect();
        self.append(entries, &[])?;
        self.count_commits(&commits);
        full.map_or(Ok(commits.len()), Err)
    }

    fn quarantine(&mut self, plan: &Plan, slices: &Slices, r: &Ready) -> Result<(), Trouble> {
        let (Some(o), Some(list)) = (plan.outputs.get(r.output as usize), slices.outputs.get(r.output as usize)) else { return Ok(()) };
        let Some(schema) = plan.schemas.get(o.schema as usize) else { return Ok(()) };
        for a in &r.file.set_aside {
            tracing::error!(sequence = a.sequence, table = %schema.table, rows = a.rows, reason = %a.reason, "a slice cannot be turned into Parquet: set aside");
            let Some(s) = list.iter().find(|s| s.sequence == a.sequence) else { continue };
            let record = slices.mapped.record(s.segment as usize, s.offset, s.len);
            let q = Quarantined {
                sequence: a.sequence,
                database: schema.database.clone(),
                table: schema.table.clone(),
                hour: o.hour,
                rows: a.rows,
                plan: plan.plan,
                reason: a.reason.clone(),
                bytes: record.len() as u64,
            };
            quarantine::put(&*self.vfs, &self.shared.settings.directory, &q, record)?;
        }
        if !r.file.set_aside.is_empty() {
            self.count_quarantine();
        }
        Ok(())
    }
}

/// What has the name of an output after it was published.
enum Put {
    /// Its own bytes, durably.
    Ours,
    Foreign(Option<ObjectInfo>),
}

/// Gives one output its name.
fn publish_one(sink: &dyn Sink, name: &str, file: &OutputFile, staged: Box<dyn Staged>) -> SinkResult<Put> {
    if staged.publish()? == Published::Created {
        return Ok(Put::Ours);
    }
    let there = sink.describe(name)?;
    if there.as_ref().is_some_and(|i| same(file, i)) {
        sink.confirm(name)?;
        return Ok(Put::Ours);
    }
    Ok(Put::Foreign(there))
}

/// Publishes on this thread, in order, or on as many as the sink can use. Every intent is durable.
fn publish_each(sink: &dyn Sink, plan: &Plan, ready: Vec<Ready>, pulse: &Pulse) -> Vec<(u32, OutputFile, SinkResult<Put>)> {
    let one = |r: Ready| {
        let put = match (plan.outputs.get(r.output as usize), r.staged) {
            (Some(o), Some(staged)) => publish_one(sink, &o.name, &r.file, staged),
            (Some(_), None) => Ok(Put::Ours),
            (None, _) => Err(SinkError::from_io(format!("output {}", r.output), std::io::Error::other("the plan has no such output"))),
        };
        pulse.beat();
        (r.output, r.file, put)
    };
    let threads = sink.parallel().min(ready.len());
    if threads <= 1 {
        return ready.into_iter().map(one).collect();
    }
    let queue = Mutex::new(ready.into_iter());
    let take = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        let work = || std::iter::from_fn(take).map(one).collect::<Vec<_>>();
        let running: Vec<_> = (0..threads).map_while(|_| spawn(scope, "arc-put", work)).collect();
        // Whatever could not be given to a thread is done here.
        let here = if running.is_empty() { work() } else { Vec::new() };
        let there = running.into_iter().flat_map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        here.into_iter().chain(there).collect()
    })
}
