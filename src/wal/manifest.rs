//! The manifest on disk: appended in synced groups, rewritten at every open and when it has grown.
//!
//! INVARIANT(manifest-first): a plan, an intent, a commit and a release are durable here before anything acts on them.

mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files;
use super::reader::{FileBytes, read_file, read_header, scan};
use super::shared::lock;
use crate::clock::SharedClock;
use crate::format::file_header::{DeclaredEnd, ENTRIES_OF_1_1, FORMAT_MINOR, FileHeader, FileKind};
use crate::format::manifest::{Entry, SegmentEntry, StoredKey, get_keys, put_keys};
use crate::format::record::{RecordHeader, RecordKind, pad_len, put_pad, record_len};
use crate::format::scan::{Known, Label, Scanner};
use crate::limits::{BLOCK, FILE_HEADER_BYTES};
use crate::sync::Mutex;
use crate::types::{LogId, Sequence};
use crate::vfs::{File, SyncMode, Vfs, is_no_space};

pub use state::{HISTORY_BYTES, ManifestState, OutputFile, PlanState, Waiting};

/// The file grows by this much at a time, so that a full disk shows up before a write.
/// A fuzzer opens many thousands of logs, and reaches the growth as well.
const GROWTH: u64 = if cfg!(fuzzing) { 64 << 10 } else { 1 << 20 };
/// The same on a full disk, where a start has little room.
const LEAST_GROWTH: u64 = 64 << 10;
/// Keys of one record.
const KEYS_PER_RECORD: usize = 10_000;
/// A manifest longer than this and twice its live size is rewritten.
const REWRITE_ABOVE: u64 = 16 << 20;

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
    /// Notes of what cannot be read and was never used.
    pub unused: Option<String>,
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
    let mut state = ManifestState { next_plan: 1, ..ManifestState::default() };
    let mut stopped = false;
    for r in v.records.iter().filter(|r| r.kind.numbered()) {
        let p = Scanner::payload(&bytes.bytes, r);
        let bad = |what: String| damaged(format!("record {} at offset {}: {what}", r.sequence, r.offset));
        match r.kind {
            RecordKind::Entry => {
                let e = Entry::decode(p).map_err(|e| bad(e.to_string()))?;
                stopped = matches!(e, Entry::Durable { .. });
                state.apply(e).map_err(bad)?;
            }
            RecordKind::Keys => state.keys.extend(get_keys(p).map_err(|e| bad(e.to_string()))?),
            _ => return Err(bad(format!("a {} record does not belong in a manifest", r.kind.name()))),
        }
    }
    if v.last_sequence < header.first_sequence {
        return Err(damaged("it holds no entry".into()));
    }
    // A block that cannot be read stands as zeros here, and zeros behind the last group would be a clean end. A group begins at the end of the
    // one before: with that block in order, or after a stop, there was none, and what cannot be read was never used.
    let mut unused = None;
    if let Some(block) = bytes.unreadable.iter().find(|b| **b >= v.end) {
        if *block < v.end + BLOCK as u64 && !stopped {
            return Err(damaged(format!(
                "the block at offset {block} cannot be read (an I/O error), and the last entries may have been there; copy the directory to \
                 a disk that can be read, or see `arc wal repair` of a later version"
            )));
        }
        unused =
            Some(format!("the block at offset {block} of {} cannot be read (an I/O error); it was never used", files::manifest_name(id)));
    }
    let stale = ids.into_iter().map(|i| dir.join(files::manifest_name(i))).collect();
    Ok(Some(Loaded { header, path, state, last_sequence: v.last_sequence, end: v.end, stale, torn, unused }))
}

/// What an entry for the newest segment takes: one block, one for its mark, and one for a mark that is to be written again.
const ENTRY_ROOM: u64 = 3 * BLOCK as u64;

/// The file of the manifest. Two write to it: the compactor, through [`Manifest`], and the committer, through [`Acknowledging`].
#[derive(Debug)]
struct Writer {
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
    /// INVARIANT(poison-is-final), for both that write here: after a failed write or sync nothing is appended any more.
    failed: bool,
    /// Length right after the last rewrite.
    base: u64,
    /// As [`ManifestState::acknowledged`], whoever has written it.
    acknowledged: Option<SegmentEntry>,
}

/// The manifest of an open log.
#[derive(Debug)]
pub struct Manifest {
    writer: Arc<Mutex<Writer>>,
    /// What has been appended, as the next open will see it; `keys` are left out here and given by the caller of a rewrite. What the
    /// committer says of the newest segment is added by a rewrite.
    pub state: ManifestState,
    /// Made by an open, which takes over keys that are long dead: worth a rewrite when it is long, or it would grow from start to start.
    opened: bool,
}

/// The committer's hold on the manifest: it says of each new segment that rows of it are about to be acknowledged.
#[derive(Clone, Debug)]
pub struct Acknowledging(Arc<Mutex<Writer>>);

impl Acknowledging {
    /// Makes sure that there is room for the next entry, before a segment that needs it is activated.
    ///
    /// # Errors
    /// As [`Manifest::append`].
    pub fn prepare(&self) -> Result<(), AppendFailure> {
        lock(&self.0).prepare()
    }

    /// INVARIANT(known-before-ack): records of this segment are durable, and none of them is acknowledged before this has returned.
    ///
    /// # Errors
    /// As [`Manifest::append`].
    pub fn add(&self, s: SegmentEntry) -> Result<(), AppendFailure> {
        lock(&self.0).append(&[Entry::Segment(s)], &[], 0)
    }
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
        let (writer, state) = Self::make(vfs, clock, dir, log, state, previous, GROWTH).map_err(|(_, e)| e)?;
        Ok(Self { writer: Arc::new(Mutex::new(writer)), state, opened: true })
    }

    /// [`Self::create`] on a full disk: with room for what a start says, and no more.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_short(
        vfs: Arc<dyn Vfs>,
        clock: SharedClock,
        dir: &Path,
        log: LogId,
        state: ManifestState,
        previous: Option<(DeclaredEnd, Vec<PathBuf>)>,
    ) -> io::Result<Self> {
        let (writer, state) = Self::make(vfs, clock, dir, log, state, previous, LEAST_GROWTH).map_err(|(_, e)| e)?;
        Ok(Self { writer: Arc::new(Mutex::new(writer)), state, opened: true })
    }

    /// [`Self::create`]; an error says whether the new file may have its final name.
    fn make(
        vfs: Arc<dyn Vfs>,
        clock: SharedClock,
        dir: &Path,
        log: LogId,
        state: ManifestState,
        previous: Option<(DeclaredEnd, Vec<PathBuf>)>,
        growth: u64,
    ) -> Result<(Writer, ManifestState), (bool, io::Error)> {
        let id = previous.as_ref().map_or(1, |(p, _)| p.id + 1);
        let first = previous.as_ref().map_or(1, |(p, _)| p.last_sequence + 1);
        let salt = clock.random_u64();
        let mut state = state;
        state.forget_history(HISTORY_BYTES);
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
        let allocated = (end + growth).next_multiple_of(growth);
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
        let mut w = Writer {
            vfs,
            clock,
            dir: dir.to_path_buf(),
            file,
            path,
            allocated,
            header,
            end,
            next,
            mark_missing: false,
            failed: false,
            base: end,
            acknowledged: state.acknowledged,
        };
        w.mark_missing = w.witness().is_err();
        Ok((w, state))
    }

    pub fn path(&self) -> PathBuf {
        lock(&self.writer).path.clone()
    }

    /// Bytes of it that hold something: no rewrite makes it longer.
    pub fn end(&self) -> u64 {
        lock(&self.writer).end
    }

    /// Bytes of the file on disk.
    pub fn allocated(&self) -> u64 {
        lock(&self.writer).allocated
    }

    /// The newest segment from which rows were acknowledged.
    pub fn acknowledged(&self) -> Option<SegmentEntry> {
        lock(&self.writer).acknowledged
    }

    /// For the committer.
    pub fn acknowledging(&self) -> Acknowledging {
        Acknowledging(Arc::clone(&self.writer))
    }

    /// As [`Acknowledging::prepare`].
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn prepare(&self) -> Result<(), AppendFailure> {
        lock(&self.writer).prepare()
    }

    /// Whether it has grown enough to be worth a [`Self::rewrite`].
    pub fn wants_rewrite(&self) -> bool {
        let w = lock(&self.writer);
        w.end > REWRITE_ABOVE && (self.opened || w.end > w.base * 2)
    }

    /// Replaces the file by one that holds only the state; `keys` are the live ones through the released sequence.
    ///
    /// # Errors
    /// INVARIANT(one-manifest): once a newer manifest may have its name, nothing is appended to the older one, which the next open
    /// would not read: an error from there on is [`AppendFailure::Fatal`]. With the others this manifest still stands.
    pub fn rewrite(&mut self, keys: Vec<StoredKey>) -> Result<(), AppendFailure> {
        // Held to the end: what the committer says meanwhile would stand in a file that nobody reads any more.
        let mut w = lock(&self.writer);
        let old = DeclaredEnd { id: w.header.id, salt: w.header.salt, end: w.end, last_sequence: w.next - 1 };
        let state = ManifestState { keys, acknowledged: w.acknowledged, ..self.state.clone() };
        let previous = Some((old, vec![w.path.clone()]));
        match Self::make(Arc::clone(&w.vfs), w.clock.clone(), &w.dir, w.header.log, state, previous, GROWTH) {
            Ok((new, state)) => {
                *w = new;
                drop(w);
                self.state = state;
                self.opened = false;
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
        lock(&self.writer).append(&entries, keys, ENTRY_ROOM)?;
        for e in entries {
            self.state.apply(e).map_err(|e| AppendFailure::Fatal(io::Error::other(e)))?;
        }
        Ok(())
    }
}

impl Writer {
    fn prepare(&mut self) -> Result<(), AppendFailure> {
        self.make_room(self.end + ENTRY_ROOM)
    }

    /// Makes the file long enough to hold `needed` bytes.
    fn make_room(&mut self, needed: u64) -> Result<(), AppendFailure> {
        if needed <= self.allocated {
            return Ok(());
        }
        let to = (needed + GROWTH).next_multiple_of(GROWTH);
        match self.file.allocate(to).and_then(|()| self.file.sync(SyncMode::Full)) {
            Ok(()) => self.allocated = to,
            Err(e) if is_no_space(&e) => return Err(AppendFailure::NoSpace(e)),
            Err(e) => return Err(AppendFailure::Fatal(e)),
        }
        Ok(())
    }

    /// Appends one synced group and leaves room for `spare` more bytes.
    fn append(&mut self, entries: &[Entry], keys: &[StoredKey], spare: u64) -> Result<(), AppendFailure> {
        if self.failed {
            return Err(AppendFailure::Fatal(io::Error::other("an earlier write to it failed")));
        }
        let appended = self.append_group(entries, keys, spare);
        self.failed = matches!(appended, Err(AppendFailure::Fatal(_)));
        appended
    }

    fn append_group(&mut self, entries: &[Entry], keys: &[StoredKey], spare: u64) -> Result<(), AppendFailure> {
        if self.mark_missing {
            // INVARIANT(block-aligned-groups): part of it may be in its block, and the sync of a growth would cover that.
            self.witness().map_err(|e| if is_no_space(&e) { AppendFailure::NoSpace(e) } else { AppendFailure::Fatal(e) })?;
            self.mark_missing = false;
        }
        let mut payloads: Vec<(RecordKind, Vec<u8>)> = Vec::with_capacity(entries.len());
        for chunk in keys.chunks(KEYS_PER_RECORD) {
            payloads.push((RecordKind::Keys, put_keys(chunk)));
        }
        for e in entries {
            payloads.push((RecordKind::Entry, e.encode().map_err(|e| AppendFailure::Fatal(io::Error::other(e)))?));
        }
        let mut group = Vec::new();
        let next = put_group(&mut group, &payloads, self.end, self.header.salt, self.next, self.next - 1, self.clock.wall_us());
        let end = self.end + group.len() as u64;
        // Room for the witness as well.
        self.make_room(end + BLOCK as u64 + spare)?;
        self.file.write_all_at(&[&group], self.end).map_err(AppendFailure::Fatal)?;
        self.file.sync(SyncMode::Data).map_err(AppendFailure::Fatal)?;
        self.end = end;
        self.next = next;
        for e in entries {
            if let Entry::Segment(s) = e {
                self.acknowledged = Some(*s);
            }
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
