//! The manifest on disk: appended in synced groups, rewritten at every open and when it has grown.
//!
//! INVARIANT(manifest-first): a plan, an intent, a commit and a release are durable here before anything acts on them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files;
use super::reader::{FileBytes, read_file, read_header, scan};
use crate::clock::SharedClock;
use crate::format::file_header::{DeclaredEnd, ENTRIES_OF_1_1, FORMAT_MINOR, FileHeader, FileKind};
use crate::format::manifest::{Entry, Plan, SetAside, StoredKey, TableEntry, get_keys, put_keys};
use crate::format::record::{RecordHeader, RecordKind, pad_len, put_pad, record_len};
use crate::format::scan::{Known, Label, Scanner};
use crate::limits::{BLOCK, FILE_HEADER_BYTES};
use crate::types::{LogId, Sequence};
use crate::vfs::{File, SyncMode, Vfs, is_no_space};

/// The file grows by this much at a time, so that a full disk shows up before a write.
/// A fuzzer opens many thousands of logs, and reaches the growth as well.
const GROWTH: u64 = if cfg!(fuzzing) { 64 << 10 } else { 1 << 20 };
/// Shipped plans whose commits are kept for `arc wal verify --lake`.
const KEEP_SHIPPED_OUTPUTS: usize = 50_000;
/// Keys of one record.
const KEYS_PER_RECORD: usize = 10_000;
/// A manifest longer than this and twice its live size is rewritten.
const REWRITE_ABOVE: u64 = 16 << 20;

/// A file that was about to be published, or is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile {
    pub length: u64,
    pub sha256: String,
    pub rows: u64,
    pub set_aside: Vec<SetAside>,
}

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
    /// Damage counted before: (segment, offset).
    pub damage: Vec<Entry>,
    /// The highest segment id named anywhere.
    pub newest_segment: u64,
}

impl ManifestState {
    pub(super) fn apply(&mut self, e: Entry) -> Result<(), String> {
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
            Entry::Suspect { plan, output, sequence } => self.plan(plan)?.suspects.push((output, sequence)),
            Entry::Intent { plan, output, length, sha256, rows, set_aside } => {
                let f = OutputFile { length, sha256, rows, set_aside };
                self.plan(plan)?.intents.entry(output).or_default().push(f);
            }
            Entry::Commit { plan, output, length, sha256, rows, set_aside } => {
                let p = self.plan(plan)?;
                if output as usize >= p.plan.outputs.len() {
                    return Err(format!("a commit names output {output} of plan {plan}, which has {}", p.plan.outputs.len()));
                }
                p.commits.insert(output, OutputFile { length, sha256, rows, set_aside });
                self.deferred.remove(&(plan, output));
            }
            Entry::Deferred { plan, output, bytes } => {
                self.plan(plan)?;
                self.deferred.insert((plan, output), bytes);
            }
            Entry::Shipped { plan, last_sequence } => {
                self.shipped = self.shipped.max(last_sequence);
                if let Some(p) = self.plans.get_mut(&plan) {
                    p.shipped = true;
                }
                self.next_plan = self.next_plan.max(plan.saturating_add(1));
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
            Entry::Durable { sequence, running_ms } => {
                self.durable = self.durable.max(sequence);
                self.running_ms = self.running_ms.max(running_ms);
            }
            d @ Entry::Damage { .. } => self.damage.push(d),
        }
        Ok(())
    }

    fn plan(&mut self, k: u64) -> Result<&mut PlanState, String> {
        self.plans.get_mut(&k).ok_or_else(|| format!("an entry names plan {k}, which no entry before it defines"))
    }

    /// The plan that is not shipped yet, if there is one: there is at most one at a time.
    pub fn open_plan(&self) -> Option<&PlanState> {
        self.plans.values().find(|p| !p.shipped)
    }

    /// The entries that lead to this state: what a rewritten manifest begins with.
    fn snapshot(&self) -> Vec<Entry> {
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
            let open = |o: &u32| !p.shipped || self.deferred.contains_key(&(*k, *o));
            for (output, files) in p.intents.iter().filter(|(o, _)| open(o)) {
                out.extend(files.iter().map(|f| Entry::Intent {
                    plan: *k,
                    output: *output,
                    length: f.length,
                    sha256: f.sha256.clone(),
                    rows: f.rows,
                    set_aside: f.set_aside.clone(),
                }));
            }
            for (output, sequence) in p.suspects.iter().filter(|(o, _)| open(o)) {
                out.push(Entry::Suspect { plan: *k, output: *output, sequence: *sequence });
            }
            out.extend(self.deferred.range((*k, 0)..=(*k, u32::MAX)).map(|((_, o), bytes)| Entry::Deferred {
                plan: *k,
                output: *o,
                bytes: *bytes,
            }));
            out.extend(p.commits.iter().map(|(o, f)| Entry::Commit {
                plan: *k,
                output: *o,
                length: f.length,
                sha256: f.sha256.clone(),
                rows: f.rows,
                set_aside: f.set_aside.clone(),
            }));
            if p.shipped {
                out.push(Entry::Shipped { plan: *k, last_sequence: p.plan.last_sequence });
            }
        }
        out.push(Entry::Durable { sequence: self.durable, running_ms: self.running_ms });
        out.push(Entry::Released { segment: self.released_segment, last_sequence: self.released });
        out.extend(self.damage.iter().cloned());
        out
    }
}

/// Why a manifest cannot be used. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: {what}. The manifest says which rows are in Parquet; without it rows could be doubled. Restore it from a copy of the log directory"
    )]
    Damaged { path: PathBuf, what: String },
}

/// What a manifest on disk says.
#[derive(Debug)]
pub struct Loaded {
    pub header: FileHeader,
    pub path: PathBuf,
    pub state: ManifestState,
    pub last_sequence: Sequence,
    pub end: u64,
    /// Older manifests, left by a crash between rename and removal.
    pub stale: Vec<PathBuf>,
    /// Notes of a torn tail: nothing of it was acted upon.
    pub torn: Option<String>,
}

/// Reads the newest manifest of `dir`; None when there is none. Read-only.
///
/// # Errors
/// [`ManifestError`]; damage at or below the floor is never taken for an empty manifest.
pub fn load(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Loaded>, ManifestError> {
    let io_at = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ManifestError::Io { path, source }
    };
    let mut ids: Vec<u64> = vfs.list(dir).map_err(io_at(dir))?.iter().filter_map(|e| files::parse_manifest(&e.name)).collect();
    ids.sort_unstable();
    let Some(id) = ids.pop() else { return Ok(None) };
    let path = dir.join(files::manifest_name(id));
    let damaged = |what: String| ManifestError::Damaged { path: path.clone(), what };
    let (_, header) = read_header(vfs, &path, FileKind::Manifest).map_err(io_at(&path))?;
    let (header, _) = header.map_err(|[a, b]| damaged(format!("both header copies are bad: {a}; {b}")))?;
    if header.id != id {
        return Err(damaged(format!("its header says manifest {}, its name says {id}", header.id)));
    }
    let mut bytes = FileBytes::default();
    let f = vfs.open(&path, false).map_err(io_at(&path))?;
    read_file(&*f, &mut bytes).map_err(io_at(&path))?;
    let v = scan(
        &bytes,
        FileKind::Manifest,
        header.salt,
        Known { first_sequence: header.first_sequence, declared: None, floor: header.first_sequence - 1 },
    );
    let mut torn = None;
    for finding in &v.findings {
        match finding.label {
            Label::Torn | Label::BehindTorn => torn = Some(format!("torn at offset {}", finding.from)),
            Label::DamagedPad => {}
            Label::Damaged | Label::Repeated => {
                return Err(damaged(format!("offset {}: expected {}, found {}", finding.from, finding.expected, finding.found)));
            }
        }
    }
    // No crash shortens it: its first length, and the group it begins with, were durable before it got its name.
    if (bytes.bytes.len() as u64) < header.file_len {
        return Err(damaged(format!("it has {} bytes, its header says {}: it was cut short", bytes.bytes.len(), header.file_len)));
    }
    let witnessed = v.records.iter().any(|r| r.durable_floor >= header.first_sequence);
    if !witnessed && !v.end.is_multiple_of(BLOCK as u64) {
        return Err(damaged(format!("offset {}: expected the rest of what it was made with, found no record", v.end)));
    }
    // A block that cannot be read stands as zeros here, and zeros behind the last group would be a clean end.
    if let Some(block) = bytes.unreadable.iter().find(|b| **b >= v.end) {
        return Err(damaged(format!("the block at offset {block} cannot be read: an I/O error")));
    }
    let mut state = ManifestState { next_plan: 1, ..ManifestState::default() };
    for r in v.records.iter().filter(|r| r.kind.numbered()) {
        let p = Scanner::payload(&bytes.bytes, r);
        let bad = |what: String| damaged(format!("record {} at offset {}: {what}", r.sequence, r.offset));
        match r.kind {
            RecordKind::Entry => state.apply(Entry::decode(p).map_err(|e| bad(e.to_string()))?).map_err(bad)?,
            RecordKind::Keys => state.keys.extend(get_keys(p).map_err(|e| bad(e.to_string()))?),
            _ => return Err(bad(format!("a {} record does not belong in a manifest", r.kind.name()))),
        }
    }
    if v.last_sequence < header.first_sequence {
        return Err(damaged("it holds no entry".into()));
    }
    let stale = ids.into_iter().map(|i| dir.join(files::manifest_name(i))).collect();
    Ok(Some(Loaded { header, path, state, last_sequence: v.last_sequence, end: v.end, stale, torn }))
}

/// The manifest of an open log.
#[derive(Debug)]
pub struct Manifest {
    vfs: Arc<dyn Vfs>,
    clock: SharedClock,
    dir: PathBuf,
    file: Arc<dyn File>,
    path: PathBuf,
    header: FileHeader,
    allocated: u64,
    end: u64,
    next: Sequence,
    /// The mark behind the last group was not written whole.
    mark_missing: bool,
    /// What has been appended, as the next open will see it; `keys` are left out here and given by the caller of a rewrite.
    pub state: ManifestState,
    /// Length right after the last rewrite.
    base: u64,
    /// Made by an open, which takes over keys that are long dead: worth a rewrite when it is long, or it would grow from start to start.
    opened: bool,
}

impl Manifest {
    /// Writes a new manifest file that holds `state` and makes it the log's: temporary name, sync, rename, directory sync;
    /// older ones are removed after that.
    ///
    /// # Errors
    /// Of the filesystem. The new manifest may have its name nevertheless: whoever has an older one open must not use that any more.
    pub fn create(
        vfs: Arc<dyn Vfs>,
        clock: SharedClock,
        dir: &Path,
        log: LogId,
        state: ManifestState,
        previous: Option<(DeclaredEnd, Vec<PathBuf>)>,
    ) -> io::Result<Self> {
        Self::make(vfs, clock, dir, log, state, previous).map_err(|(_, e)| e)
    }

    /// [`Self::create`]; an error says whether the new file may have its final name.
    fn make(
        vfs: Arc<dyn Vfs>,
        clock: SharedClock,
        dir: &Path,
        log: LogId,
        state: ManifestState,
        previous: Option<(DeclaredEnd, Vec<PathBuf>)>,
    ) -> Result<Self, (bool, io::Error)> {
        let id = previous.as_ref().map_or(1, |(p, _)| p.id + 1);
        let first = previous.as_ref().map_or(1, |(p, _)| p.last_sequence + 1);
        let salt = clock.random_u64();
        let mut state = prune(state);
        let keys = std::mem::take(&mut state.keys);
        let mut payloads: Vec<(RecordKind, Vec<u8>)> = Vec::new();
        for e in state.snapshot() {
            payloads.push((RecordKind::Entry, e.encode().map_err(|e| (false, io::Error::other(e)))?));
        }
        for chunk in keys.chunks(KEYS_PER_RECORD) {
            payloads.push((RecordKind::Keys, put_keys(chunk)));
        }
        let mut group = Vec::new();
        let base = FILE_HEADER_BYTES as u64;
        let next = put_group(&mut group, &payloads, base, salt, first, first - 1, clock.wall_us());
        let end = base + group.len() as u64;
        let allocated = (end + GROWTH).next_multiple_of(GROWTH);
        let header = FileHeader {
            kind: FileKind::Manifest,
            minor: FORMAT_MINOR,
            compatible: 0,
            incompatible: ENTRIES_OF_1_1,
            log,
            id,
            first_sequence: first,
            salt,
            epoch: state.epoch,
            file_len: allocated,
            predecessor: previous.as_ref().map(|(p, _)| *p),
        };
        let path = dir.join(files::manifest_name(id));
        let tmp = dir.join(format!("{}.tmp", files::manifest_name(id)));
        let _ = vfs.remove(&tmp);
        let mut named = false;
        let made = (|| {
            let file = vfs.create_new(&tmp)?;
            file.allocate(allocated)?;
            file.write_all_at(&[&header.encode_file(), &group], 0)?;
            file.sync(SyncMode::Full)?;
            named = true;
            vfs.rename(&tmp, &path)?;
            vfs.sync_dir(dir)?;
            Ok(file)
        })();
        let file = match made {
            Ok(f) => f,
            Err(e) => {
                let _ = vfs.remove(&tmp);
                return Err((named, e));
            }
        };
        for old in previous.map(|(_, o)| o).unwrap_or_default() {
            // One that stays is older by its number.
            if let Err(e) = vfs.remove(&old) {
                tracing::warn!(path = %old.display(), error = %e, "an older manifest cannot be removed");
            }
        }
        vfs.sync_dir(dir).map_err(|e| (true, e))?;
        let mut m = Self {
            vfs,
            clock,
            dir: dir.to_path_buf(),
            file,
            path,
            header,
            allocated,
            end,
            next,
            mark_missing: false,
            state,
            base: end,
            opened: true,
        };
        m.mark_missing = m.witness().is_err();
        Ok(m)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file on disk.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Whether it has grown enough to be worth a [`Self::rewrite`].
    pub fn wants_rewrite(&self) -> bool {
        self.end > REWRITE_ABOVE && (self.opened || self.end > self.base * 2)
    }

    /// Replaces the file by one that holds only the state; `keys` are the live ones through the released sequence.
    ///
    /// # Errors
    /// INVARIANT(one-manifest): once a newer manifest may have its name, nothing is appended to the older one, which the next open
    /// would not read: an error from there on is [`AppendFailure::Fatal`]. With the others this manifest still stands.
    pub fn rewrite(&mut self, keys: Vec<StoredKey>) -> Result<(), AppendFailure> {
        let old = DeclaredEnd { id: self.header.id, salt: self.header.salt, end: self.end, last_sequence: self.next - 1 };
        let state = ManifestState { keys, ..self.state.clone() };
        let previous = Some((old, vec![self.path.clone()]));
        match Self::make(Arc::clone(&self.vfs), self.clock.clone(), &self.dir, self.header.log, state, previous) {
            Ok(m) => {
                *self = Self { opened: false, ..m };
                Ok(())
            }
            Err((true, e)) => Err(AppendFailure::Fatal(e)),
            Err((false, e)) if is_no_space(&e) => Err(AppendFailure::NoSpace(e)),
            Err((false, e)) => Err(AppendFailure::Stands(e)),
        }
    }

    /// Appends entries, and keys, as one synced group.
    ///
    /// # Errors
    /// `NoSpace` leaves the manifest as it was and may be retried. Any other error is final: see [`AppendFailure`].
    pub fn append(&mut self, entries: Vec<Entry>, keys: &[StoredKey]) -> Result<(), AppendFailure> {
        if self.mark_missing {
            // INVARIANT(block-aligned-groups): part of it may be in its block, and the sync of a growth would cover that.
            self.witness().map_err(|e| if is_no_space(&e) { AppendFailure::NoSpace(e) } else { AppendFailure::Fatal(e) })?;
            self.mark_missing = false;
        }
        let mut payloads: Vec<(RecordKind, Vec<u8>)> = Vec::with_capacity(entries.len());
        for chunk in keys.chunks(KEYS_PER_RECORD) {
            payloads.push((RecordKind::Keys, put_keys(chunk)));
        }
        for e in &entries {
            payloads.push((RecordKind::Entry, e.encode().map_err(|e| AppendFailure::Fatal(io::Error::other(e)))?));
        }
        let mut group = Vec::new();
        let next = put_group(&mut group, &payloads, self.end, self.header.salt, self.next, self.next - 1, self.clock.wall_us());
        let end = self.end + group.len() as u64;
        // Room for the witness as well.
        let needed = end + BLOCK as u64;
        if needed > self.allocated {
            let to = (needed + GROWTH).next_multiple_of(GROWTH);
            match self.file.allocate(to).and_then(|()| self.file.sync(SyncMode::Full)) {
                Ok(()) => self.allocated = to,
                Err(e) if is_no_space(&e) => return Err(AppendFailure::NoSpace(e)),
                Err(e) => return Err(AppendFailure::Fatal(e)),
            }
        }
        self.file.write_all_at(&[&group], self.end).map_err(AppendFailure::Fatal)?;
        self.file.sync(SyncMode::Data).map_err(AppendFailure::Fatal)?;
        self.end = end;
        self.next = next;
        for e in entries {
            self.state.apply(e).map_err(|e| AppendFailure::Fatal(io::Error::other(e)))?;
        }
        self.mark_missing = self.witness().is_err();
        Ok(())
    }

    /// A mark behind the last group. It needs no sync: it is only ever evidence that the sync before it returned.
    fn witness(&mut self) -> io::Result<()> {
        let last = self.next - 1;
        let now = self.clock.wall_us();
        let mut b = Vec::with_capacity(BLOCK);
        let h = RecordHeader {
            kind: RecordKind::Mark,
            payload_len: 0,
            payload_crc: crc32fast::hash(&[]),
            salt: self.header.salt,
            offset: self.end,
            sequence: last,
            durable_floor: last,
            receive_time_us: now,
        };
        b.extend_from_slice(&h.encode());
        let behind = self.end + b.len() as u64;
        put_pad(&mut b, pad_len(behind), behind, self.header.salt, last, last, now);
        self.file.write_all_at(&[&b], self.end)?;
        self.end += b.len() as u64;
        Ok(())
    }
}

/// Drops what a rewritten manifest need not say again: shipped plans beyond the newest, unless an output of theirs is deferred.
fn prune(mut s: ManifestState) -> ManifestState {
    let mut kept = 0usize;
    let mut drop = Vec::new();
    for (k, p) in s.plans.iter().rev() {
        kept += p.plan.outputs.len();
        if p.shipped && kept > KEEP_SHIPPED_OUTPUTS && s.deferred.range((*k, 0)..=(*k, u32::MAX)).next().is_none() {
            drop.push(*k);
        }
    }
    for k in drop {
        s.plans.remove(&k);
    }
    s
}

/// Why an append failed.
#[derive(Debug)]
pub enum AppendFailure {
    /// Nothing was written.
    NoSpace(io::Error),
    /// A rewrite failed before anything had its name: the manifest is as it was.
    Stands(io::Error),
    /// A write or sync failed: what the file holds is not known before the next recovery. The log must be poisoned.
    Fatal(io::Error),
}

impl std::fmt::Display for AppendFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSpace(e) | Self::Stands(e) | Self::Fatal(e) => write!(f, "manifest: {e}"),
        }
    }
}

/// Appends the payloads as one group that stands at file offset `at`; returns the next sequence.
pub fn put_group(
    out: &mut Vec<u8>,
    payloads: &[(RecordKind, Vec<u8>)],
    at: u64,
    salt: u64,
    first: Sequence,
    floor: Sequence,
    now_us: i64,
) -> Sequence {
    let base = out.len();
    let mut sequence = first;
    for (kind, p) in payloads {
        let from = out.len();
        let h = RecordHeader {
            kind: *kind,
            payload_len: p.len() as u32,
            payload_crc: crc32fast::hash(p),
            salt,
            offset: at + (from - base) as u64,
            sequence,
            durable_floor: floor,
            receive_time_us: now_us,
        };
        out.extend_from_slice(&h.encode());
        out.extend_from_slice(p);
        out.resize(from + record_len(p.len()), 0);
        sequence += 1;
    }
    let end = at + (out.len() - base) as u64;
    put_pad(out, pad_len(end), end, salt, sequence - 1, floor, now_us);
    sequence
}
