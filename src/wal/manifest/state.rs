//! What the entries of a manifest add up to.
//!
//! Three kinds of plans are told apart. The *open* plan is kept whole: it may have to be built again. Of a *shipped* plan only the record of
//! its files is kept, for `arc wal verify --lake`, and only as much of it as [`HISTORY_BYTES`] allow. An output of a shipped plan that is
//! still deferred is *waiting*: it carries all that its file needs, and is kept until its commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use crate::format::manifest::OutputFile;
use crate::format::manifest::{Entry, NodeLimits, Plan, PlanOutput, PlanSchema, SegmentEntry, StoredKey, TableEntry, WaitingOutput};
use crate::types::Sequence;

/// About as many bytes of JSON are kept of the files of shipped plans, newest first.
pub const HISTORY_BYTES: u64 = 16 << 20;
/// Outputs of one `waiting` entry.
const WAITING_PER_ENTRY: usize = 256;

#[derive(Clone, Debug)]
pub struct PlanState {
    pub plan: Plan,
    /// Builds begun since one was last left in good order.
    pub attempts: u32,
    /// Every intent recorded for an output, oldest first.
    pub intents: BTreeMap<u32, Vec<OutputFile>>,
    pub commits: BTreeMap<u32, OutputFile>,
    /// (output, sequence) that was being tried at each unclean end, in order.
    pub suspects: Vec<(u32, Sequence)>,
    pub shipped: bool,
}

impl PlanState {
    fn new(plan: Plan) -> Self {
        Self { plan, attempts: 0, intents: BTreeMap::new(), commits: BTreeMap::new(), suspects: Vec::new(), shipped: false }
    }

    /// About the bytes that this plan takes in a manifest once it is shipped.
    fn history_bytes(&self) -> u64 {
        let outputs: usize = self.plan.outputs.iter().map(|o| o.name.len() + 120).sum();
        400 + outputs as u64 + self.commits.values().map(commit_bytes).sum::<u64>()
    }
}

fn commit_bytes(f: &OutputFile) -> u64 {
    let set_aside: usize = f.set_aside.iter().map(|s| s.reason.len() + 60).sum();
    (f.sha256.len() + 160 + set_aside) as u64
}

/// An output of a shipped plan whose commit is still to come, with all that its file needs.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub output: WaitingOutput,
    /// Shared by the outputs of one table, as long as its columns stay as they are.
    pub schema: Arc<PlanSchema>,
}

/// What the entries of a manifest add up to.
#[derive(Clone, Debug, Default)]
pub struct ManifestState {
    pub epoch: u64,
    pub running_ms: u64,
    pub plans: BTreeMap<u64, PlanState>,
    pub next_plan: u64,
    /// All outputs through this sequence are committed.
    pub shipped: Sequence,
    /// Segments through this id may be gone.
    pub released_segment: u64,
    pub released: Sequence,
    /// Checkpoint of the catalog through `released` (or later).
    pub tables: BTreeMap<(String, String), TableEntry>,
    pub keys: Vec<StoredKey>,
    /// Known durable at the last stop in good order.
    pub durable: Sequence,
    /// Outputs whose records stand in side segments, (plan, output), with the bytes of those.
    pub deferred: BTreeMap<(u64, u32), u64>,
    /// Those of them whose plan is shipped.
    pub waiting: BTreeMap<(u64, u32), Waiting>,
    /// Damage counted before: (segment, offset).
    pub damage: Vec<Entry>,
    /// The highest segment id named anywhere.
    pub newest_segment: u64,
    /// Deferred outputs that were committed when nothing else was known of their plan any more: their side segments may go. A rewrite
    /// does not say so again.
    pub committed_late: BTreeSet<(u64, u32)>,
    /// What the node that writes this log has promised.
    pub limits: Option<NodeLimits>,
    /// The newest segment from which rows were acknowledged: what was never acknowledged from cannot have lost anything.
    pub acknowledged: Option<SegmentEntry>,
    /// Bytes that the shipped plans take.
    pub history_bytes: u64,
}

impl ManifestState {
    pub(in crate::wal) fn apply(&mut self, e: Entry) -> Result<(), String> {
        match e {
            Entry::Opened { epoch, running_ms, segment } => {
                self.newest_segment = self.newest_segment.max(segment);
                self.epoch = self.epoch.max(epoch);
                self.running_ms = self.running_ms.max(running_ms);
            }
            Entry::Plan(p) => {
                self.next_plan = self.next_plan.max(p.plan.saturating_add(1));
                for i in &p.inputs {
                    self.newest_segment = self.newest_segment.max(i.segment);
                }
                self.plans.insert(p.plan, PlanState::new(p));
            }
            Entry::Attempt { plan } => self.plan(plan)?.attempts += 1,
            Entry::Stopped { plan } => self.plan(plan)?.attempts = 0,
            Entry::Suspect { plan, output, sequence } => match self.waiting.get_mut(&(plan, output)) {
                Some(w) => w.output.suspects.push(sequence),
                None => self.plan(plan)?.suspects.push((output, sequence)),
            },
            Entry::Intent { plan, output, length, sha256, rows, set_aside } => {
                let f = OutputFile { length, sha256, rows, set_aside };
                match self.waiting.get_mut(&(plan, output)) {
                    Some(w) => w.output.intents.push(f),
                    None => self.plan(plan)?.intents.entry(output).or_default().push(f),
                }
            }
            Entry::Commit { plan, output, length, sha256, rows, set_aside } => {
                self.commit(plan, output, OutputFile { length, sha256, rows, set_aside })?;
            }
            Entry::Deferred { plan, output, bytes } => {
                self.plan(plan)?;
                self.deferred.insert((plan, output), bytes);
            }
            Entry::Shipped { plan, last_sequence } => {
                self.shipped = self.shipped.max(last_sequence);
                self.next_plan = self.next_plan.max(plan.saturating_add(1));
                self.settle(plan);
                self.trim_history(HISTORY_BYTES);
            }
            Entry::Catalog { tables, .. } => {
                for t in tables {
                    self.tables.insert((t.database.clone(), t.table.clone()), t);
                }
            }
            Entry::Released { segment, last_sequence } => {
                self.released_segment = self.released_segment.max(segment);
                if segment > 0 {
                    // The newest segment is never released. Nothing released says nothing: a manifest is made before the first segment.
                    self.newest_segment = self.newest_segment.max(segment.saturating_add(1));
                }
                self.released = self.released.max(last_sequence);
            }
            Entry::Limits(l) => self.limits = Some(l),
            Entry::Segment(s) => {
                self.know(s);
            }
            Entry::Durable { sequence, running_ms } => {
                self.durable = self.durable.max(sequence);
                self.running_ms = self.running_ms.max(running_ms);
            }
            Entry::Waiting { schema, outputs } => {
                let schema = Arc::new(schema);
                for output in outputs {
                    let key = (output.plan, output.output);
                    self.deferred.insert(key, output.bytes);
                    self.waiting.insert(key, Waiting { output, schema: Arc::clone(&schema) });
                }
            }
            d @ Entry::Damage { .. } => self.damage.push(d),
        }
        Ok(())
    }

    /// Rows of this segment were acknowledged.
    pub fn know(&mut self, s: SegmentEntry) {
        self.newest_segment = self.newest_segment.max(s.segment);
        let known = self.acknowledged.get_or_insert(s);
        if s.segment > known.segment || (s.segment == known.segment && s.durable > known.durable) {
            *known = s;
        }
    }

    fn commit(&mut self, plan: u64, output: u32, file: OutputFile) -> Result<(), String> {
        let waited = self.waiting.remove(&(plan, output)).is_some();
        if waited && !self.plans.contains_key(&plan) {
            // What was known of the plan's other files is forgotten.
            self.deferred.remove(&(plan, output));
            self.committed_late.insert((plan, output));
            return Ok(());
        }
        let p = self.plan(plan)?;
        if output as usize >= p.plan.outputs.len() {
            return Err(format!("a commit names output {output} of plan {plan}, which has {}", p.plan.outputs.len()));
        }
        let bytes = commit_bytes(&file);
        let shipped = p.shipped;
        let before = p.commits.insert(output, file);
        if shipped {
            self.history_bytes = (self.history_bytes + bytes).saturating_sub(before.as_ref().map_or(0, commit_bytes));
        }
        self.deferred.remove(&(plan, output));
        Ok(())
    }

    /// A plan is shipped: its deferred outputs wait from here on with all that they need, and of the plan only the record of its files is
    /// kept. What they were made from (schemas, inputs, intents) may be a thousand times as long.
    fn settle(&mut self, k: u64) {
        let Some(p) = self.plans.get_mut(&k).filter(|p| !p.shipped) else { return };
        p.shipped = true;
        let mut schemas: Vec<Option<Arc<PlanSchema>>> = vec![None; p.plan.schemas.len()];
        for ((_, n), bytes) in self.deferred.range((k, 0)..=(k, u32::MAX)) {
            let Some(o) = p.plan.outputs.get(*n as usize) else { continue };
            let (Some(schema), Some(shared)) = (p.plan.schemas.get(o.schema as usize), schemas.get_mut(o.schema as usize)) else {
                continue;
            };
            let schema = Arc::clone(shared.get_or_insert_with(|| shared_schema(&self.waiting, schema)));
            let output = WaitingOutput {
                plan: k,
                output: *n,
                bytes: *bytes,
                first_sequence: p.plan.first_sequence,
                last_sequence: p.plan.last_sequence,
                writer: p.plan.writer.clone(),
                file: PlanOutput { schema: 0, ..o.clone() },
                intents: p.intents.remove(n).unwrap_or_default(),
                suspects: p.suspects.iter().filter(|(o, _)| o == n).map(|(_, s)| *s).collect(),
            };
            self.waiting.insert((k, *n), Waiting { output, schema });
        }
        p.plan.inputs = Vec::new();
        p.plan.schemas = Vec::new();
        p.plan.outputs.shrink_to_fit();
        p.attempts = 0;
        p.intents = BTreeMap::new();
        p.suspects = Vec::new();
        self.history_bytes += p.history_bytes();
    }

    /// Forgets the files of shipped plans, oldest first, until the rest takes no more than `most` bytes. The newest shipped plan stays: it
    /// says which object of the store is this log's last. What still waits is not history.
    pub fn forget_history(&mut self, most: u64) {
        self.history_bytes = self.plans.values().filter(|p| p.shipped).map(PlanState::history_bytes).sum();
        self.trim_history(most);
    }

    fn trim_history(&mut self, most: u64) {
        let newest = self.plans.iter().rev().find(|(_, p)| p.shipped).map(|(k, _)| *k);
        while self.history_bytes > most {
            let waits_here = |k: &u64| self.deferred.range((*k, 0)..=(*k, u32::MAX)).any(|(key, _)| !self.waiting.contains_key(key));
            let oldest = self.plans.iter().find(|(k, p)| p.shipped && Some(**k) != newest && !waits_here(k)).map(|(k, _)| *k);
            let Some(gone) = oldest.and_then(|k| self.plans.remove(&k)) else { return };
            self.history_bytes = self.history_bytes.saturating_sub(gone.history_bytes());
        }
    }

    /// Whether output `n` of plan `k` has its file. All outputs of a shipped plan have theirs, but for those that are deferred.
    pub fn is_committed(&self, k: u64, n: u32) -> bool {
        match self.plans.get(&k).filter(|p| !p.shipped) {
            Some(open) => open.commits.contains_key(&n),
            None => k < self.next_plan && !self.deferred.contains_key(&(k, n)),
        }
    }

    /// The intents recorded for an output that is not committed, oldest first.
    pub fn intents_of(&self, k: u64, n: u32) -> &[OutputFile] {
        match self.waiting.get(&(k, n)) {
            Some(w) => &w.output.intents,
            None => self.plans.get(&k).and_then(|p| p.intents.get(&n)).map_or(&[], Vec::as_slice),
        }
    }

    /// (output, sequence) that was being tried at each unclean end of plan `k`, in order.
    pub fn suspects_of(&self, k: u64) -> Vec<(u32, Sequence)> {
        let waiting = self.waiting.range((k, 0)..=(k, u32::MAX));
        let waiting = waiting.flat_map(|((_, n), w)| w.output.suspects.iter().map(|s| (*n, *s)));
        self.plans.get(&k).into_iter().flat_map(|p| p.suspects.iter().copied()).chain(waiting).collect()
    }

    /// The file that a deferred output is to become, and its schema.
    pub fn deferred_file(&self, k: u64, n: u32) -> Option<(&PlanOutput, &PlanSchema)> {
        if let Some(w) = self.waiting.get(&(k, n)) {
            return Some((&w.output.file, &w.schema));
        }
        let plan = &self.plans.get(&k)?.plan;
        let file = plan.outputs.get(n as usize)?;
        Some((file, plan.schemas.get(file.schema as usize)?))
    }

    /// A plan as far as building its deferred output `n` needs it: the other outputs may be empty.
    pub fn plan_of_deferred(&self, k: u64, n: u32) -> Option<Plan> {
        let Some(Waiting { output, schema }) = self.waiting.get(&(k, n)) else {
            return self.plans.get(&k).map(|p| p.plan.clone());
        };
        let none = PlanOutput { schema: 0, hour: 0, first_sequence: 0, last_sequence: 0, rows: 0, name: String::new() };
        let mut outputs = vec![none; n as usize];
        outputs.push(output.file.clone());
        Some(Plan {
            plan: k,
            first_sequence: output.first_sequence,
            last_sequence: output.last_sequence,
            inputs: Vec::new(),
            writer: output.writer.clone(),
            schemas: vec![PlanSchema::clone(schema)],
            outputs,
        })
    }

    fn plan(&mut self, k: u64) -> Result<&mut PlanState, String> {
        self.plans.get_mut(&k).ok_or_else(|| format!("an entry names plan {k}, which no entry before it defines"))
    }

    /// The plan that is not shipped yet, if there is one: there is at most one at a time.
    pub fn open_plan(&self) -> Option<&PlanState> {
        self.plans.values().find(|p| !p.shipped)
    }

    /// The entries that lead to this state: what a rewritten manifest begins with.
    pub(super) fn snapshot(&self) -> Vec<Entry> {
        let mut out = vec![Entry::Opened { epoch: self.epoch, running_ms: self.running_ms, segment: self.newest_segment }];
        // Before the plans, so that it says nothing of one that is open; `prune` may have dropped the plan that it is the end of.
        let done = self.open_plan().map_or(self.next_plan, |p| p.plan.plan).saturating_sub(1);
        if done > 0 {
            out.push(Entry::Shipped { plan: done, last_sequence: self.shipped });
        }
        let tables: Vec<TableEntry> = self.tables.values().cloned().collect();
        for chunk in tables.chunks(500) {
            out.push(Entry::Catalog { last_sequence: self.released, tables: chunk.to_vec() });
        }
        for (k, p) in &self.plans {
            out.push(Entry::Plan(p.plan.clone()));
            out.extend((0..p.attempts).map(|_| Entry::Attempt { plan: *k }));
            for (output, files) in p.intents.iter().filter(|_| !p.shipped) {
                out.extend(files.iter().map(|f| f.clone().intent(*k, *output)));
            }
            for (output, sequence) in p.suspects.iter().filter(|_| !p.shipped) {
                out.push(Entry::Suspect { plan: *k, output: *output, sequence: *sequence });
            }
            let here = self.deferred.range((*k, 0)..=(*k, u32::MAX)).filter(|(key, _)| !self.waiting.contains_key(key));
            out.extend(here.map(|((_, o), bytes)| Entry::Deferred { plan: *k, output: *o, bytes: *bytes }));
            out.extend(p.commits.iter().map(|(o, f)| f.clone().commit(*k, *o)));
            if p.shipped {
                out.push(Entry::Shipped { plan: *k, last_sequence: p.plan.last_sequence });
            }
        }
        self.put_waiting(&mut out);
        out.push(Entry::Durable { sequence: self.durable, running_ms: self.running_ms });
        out.extend(self.limits.map(Entry::Limits));
        out.extend(self.acknowledged.map(Entry::Segment));
        out.push(Entry::Released { segment: self.released_segment, last_sequence: self.released });
        out.extend(self.damage.iter().cloned());
        out
    }

    /// The outputs that wait, those of one schema together.
    fn put_waiting(&self, out: &mut Vec<Entry>) {
        let mut by_schema: Vec<(&Arc<PlanSchema>, Vec<WaitingOutput>)> = Vec::new();
        let mut places: BTreeMap<*const PlanSchema, usize> = BTreeMap::new();
        for w in self.waiting.values() {
            let at = *places.entry(Arc::as_ptr(&w.schema)).or_insert_with(|| {
                by_schema.push((&w.schema, Vec::new()));
                by_schema.len() - 1
            });
            if let Some((_, list)) = by_schema.get_mut(at) {
                list.push(w.output.clone());
            }
        }
        for (schema, list) in by_schema {
            let chunks = list.chunks(WAITING_PER_ENTRY);
            out.extend(chunks.map(|c| Entry::Waiting { schema: PlanSchema::clone(schema), outputs: c.to_vec() }));
        }
    }
}

/// The schema as an output that waits has it already, or a new one.
fn shared_schema(waiting: &BTreeMap<(u64, u32), Waiting>, schema: &PlanSchema) -> Arc<PlanSchema> {
    let of_table = |w: &&Waiting| w.schema.table == schema.table && w.schema.database == schema.database;
    match waiting.values().rev().find(of_table) {
        Some(w) if *w.schema == *schema => Arc::clone(&w.schema),
        _ => Arc::new(schema.clone()),
    }
}
