//! Plans: which sequences become which files. A plan is durable in the manifest, and in the store, before anything of it is
//! built, so that every attempt makes the same files.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hashbrown::HashMap;

use super::memory::EARLIER_ROW_GROUP_BYTES;
use super::name::{Layout, object_name};
use super::slices::{Payloads, SliceRef};
use crate::catalog::Catalog;
use crate::format::file_header::FileKind;
use crate::format::manifest::{Entry, Plan, PlanInput, PlanOutput, PlanSchema, PlanWriter};
use crate::format::payload::PayloadView;
use crate::format::record::RecordKind;
use crate::format::scan::{Finding, Found, Known, Scanner, judge};
use crate::limits::{FILE_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::sink::MAX_SMALL;
use crate::types::{Hour, LogId, Sequence};
use crate::vfs::{Mapping, Vfs};
use crate::wal::SealedSegment;
use crate::wal::files;
use crate::wal::reader::{FileBytes, read_file};

/// Bytes that a plan may take as the object it is in the store, after which it takes no further record. Every output brings all columns of
/// its table, so that many small tables make a plan larger than its rows.
const MOST_JSON: u64 = 8 << 20;
/// Slices of a plan, 32 bytes each: one-row requests come to a million of them in 100 MB of log.
pub const MAX_SLICES: u64 = 2 << 20;
/// Column chunks of a plan's files beside the first of each column: a file's footer describes each, in memory until the file is complete.
pub const MAX_CHUNKS: u64 = 64 << 10;
/// More than any [`PlanOutput`] takes, its name included.
const OUTPUT_JSON: u64 = 640;
/// More than any [`PlanInput`] takes.
const INPUT_JSON: u64 = 192;

const _: () = assert!(MOST_JSON * 2 <= MAX_SMALL);

/// Where a plan ends, apart from the end of what is sealed. At least one record is always taken.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub bytes: u64,
    pub rows: u64,
    pub outputs: usize,
    /// [`MAX_SLICES`].
    pub slices: u64,
    /// [`MAX_CHUNKS`].
    pub chunks: u64,
}

/// What an output is made of.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct OutputKey {
    database: Arc<str>,
    table: Arc<str>,
    version: usize,
    hour: Hour,
}

#[derive(Debug, Default)]
struct Draft {
    width: Width,
    slices: Vec<SliceRef>,
    rows: u64,
}

/// Slices of the outputs of a plan, found in the mapped segments.
#[derive(Debug)]
pub struct Slices {
    pub mapped: Mapped,
    /// One list an output, in the order of the plan's outputs.
    pub outputs: Vec<Vec<SliceRef>>,
    /// What a scan of the sealed segments found that had been fine when they were sealed.
    pub findings: Vec<(u64, Finding)>,
    /// Payloads that passed their CRC and cannot be parsed: a bug. Sequence, segment index, offset, length, reason.
    pub unparsable: Vec<(Sequence, usize, u64, u32, String)>,
}

/// The segments of a plan, mapped read-only.
#[derive(Debug, Default)]
pub struct Mapped {
    pub segments: Vec<Mapping>,
    handed_out: std::sync::atomic::AtomicU64,
}

/// Bytes that may be touched before the pages are given back: what bounds the resident part of the mapped window.
const WINDOW: u64 = 64 << 20;

impl Mapped {
    /// One file that stands for all the inputs of a plan.
    pub fn single(map: Mapping) -> Self {
        Self { segments: vec![map], ..Self::default() }
    }

    pub fn record(&self, segment: usize, payload_offset: u64, len: u32) -> &[u8] {
        let from = usize::try_from(payload_offset).unwrap_or(usize::MAX).saturating_sub(RECORD_HEADER_BYTES);
        let to = from.saturating_add(RECORD_HEADER_BYTES + len as usize);
        self.segments.get(segment).and_then(|m| m.get(from..to)).unwrap_or_default()
    }
}

impl Payloads for Mapped {
    fn payload(&self, s: &SliceRef) -> &[u8] {
        use std::sync::atomic::Ordering;
        let before = self.handed_out.fetch_add(u64::from(s.len), Ordering::Relaxed);
        if before / WINDOW != (before + u64::from(s.len)) / WINDOW {
            for m in &self.segments {
                m.done_with(0, m.len());
            }
        }
        let from = usize::try_from(s.offset).unwrap_or(usize::MAX);
        self.segments.get(s.segment as usize).and_then(|m| m.get(from..from.checked_add(s.len as usize)?)).unwrap_or_default()
    }
}

/// Fixed settings of the plans of this process.
#[derive(Clone, Debug)]
pub struct PlanSettings {
    pub bounds: Bounds,
    pub writer: PlanWriter,
    pub layout: Layout,
}

struct Gather<'a> {
    catalog: &'a Catalog,
    widenings: HashMap<(Arc<str>, Arc<str>), Vec<Sequence>>,
    index: HashMap<OutputKey, usize>,
    drafts: Vec<(OutputKey, Draft)>,
    rows: u64,
    bytes: u64,
    /// What the plan is going to take as JSON, at most; counted for a new one only.
    json: Option<u64>,
    schemas: HashMap<(Arc<str>, Arc<str>, usize), Width>,
    slices: u64,
    /// Column chunks times bytes of a row group.
    chunk_bytes: u64,
    row_group_bytes: u64,
}

/// Columns of an output, `time` included, and bytes of a row, strings aside: none for a plan that was made earlier.
#[derive(Clone, Copy, Debug, Default)]
struct Width {
    columns: u64,
    row: u64,
}

impl Gather<'_> {
    /// Takes account of one more output of this key.
    fn measure(&mut self, key: &OutputKey) -> Width {
        let Some(json) = &mut self.json else { return Width::default() };
        *json += OUTPUT_JSON;
        let schema = (Arc::clone(&key.database), Arc::clone(&key.table), key.version);
        *self.schemas.entry(schema).or_insert_with(|| {
            let schema = PlanSchema {
                database: key.database.to_string(),
                table: key.table.to_string(),
                version: key.version as u32,
                // Later records of the plan may define more of them.
                columns: self.catalog.schema(&key.database, &key.table, key.version, Sequence::MAX),
            };
            *json += serde_json::to_vec(&schema).map_or(0, |b| b.len() as u64);
            let columns = schema.columns.len() as u64 + 1;
            Width { columns, row: 8 * columns }
        })
    }

    fn fills(&self, b: Bounds) -> bool {
        let chunks = self.chunk_bytes / self.row_group_bytes;
        self.bytes >= b.bytes || self.rows >= b.rows || self.drafts.len() >= b.outputs || self.slices >= b.slices || chunks >= b.chunks
    }

    fn add(&mut self, sequence: Sequence, segment: u32, offset: u64, len: u32, p: &PayloadView<'_>) {
        self.bytes += u64::from(len) + RECORD_HEADER_BYTES as u64;
        for (i, t) in p.index.tables.iter().enumerate() {
            let name = (Arc::clone(&p.index.database), Arc::clone(&t.table));
            let catalog = self.catalog;
            let widened = self.widenings.entry(name).or_insert_with(|| catalog.widenings(&p.index.database, &t.table));
            let version = widened.partition_point(|w| *w <= sequence);
            for (hour, rows) in &t.hours {
                let key = OutputKey { database: Arc::clone(&p.index.database), table: Arc::clone(&t.table), version, hour: *hour };
                let at = match self.index.get(&key) {
                    Some(at) => *at,
                    None => {
                        let width = self.measure(&key);
                        self.index.insert(key.clone(), self.drafts.len());
                        self.drafts.push((key, Draft { width, ..Draft::default() }));
                        self.drafts.len() - 1
                    }
                };
                if let Some((_, d)) = self.drafts.get_mut(at) {
                    d.slices.push(SliceRef::new(sequence, segment, offset, len, i as u32, *rows, t.hours.len() == 1));
                    d.rows += u64::from(*rows);
                    self.rows += u64::from(*rows);
                    self.slices += 1;
                    // Strings of the table's columns count at most twice.
                    let bytes = u64::from(*rows) * d.width.row + 2 * t.bytes as u64 * u64::from(*rows) / u64::from(t.rows.max(1));
                    self.chunk_bytes += bytes * d.width.columns;
                }
            }
        }
    }
}

/// What a scan yields besides the gathered slices.
struct Scanned {
    mapped: Mapped,
    inputs: Vec<PlanInput>,
    last_sequence: Sequence,
    findings: Vec<(u64, Finding)>,
    unparsable: Vec<(Sequence, usize, u64, u32, String)>,
}

/// Scans `segments` for write records from `from` through `through` with the log's own scanner, stopping at `bounds`.
fn scan(
    vfs: &dyn Vfs,
    segments: &[Arc<SealedSegment>],
    from: Sequence,
    through: Sequence,
    bounds: Option<Bounds>,
    gather: &mut Gather<'_>,
) -> io::Result<Scanned> {
    let mut s =
        Scanned { mapped: Mapped::default(), inputs: Vec::new(), last_sequence: from - 1, findings: Vec::new(), unparsable: Vec::new() };
    'segments: for seg in segments {
        if seg.last_sequence < from || seg.first_sequence > through {
            continue;
        }
        let file = vfs.open(&seg.path, false).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", seg.path.display())))?;
        let map = if seg.tainted {
            // A block that cannot be read would end the process with SIGBUS under a mapping; here it reads as zeros.
            let mut bytes = FileBytes::default();
            read_file(&*file, &mut bytes)?;
            Mapping::Memory(bytes.bytes.into())
        } else {
            // Not further: what stands behind the end is nobody's, and need not be readable.
            file.map(seg.end.min(seg.file_len))?
        };
        let found: Vec<Found> = Scanner::new(&map, seg.salt, FILE_HEADER_BYTES as u64, seg.end).only(FileKind::Segment).collect();
        let known = Known { first_sequence: seg.first_sequence, declared: Some((seg.end, seg.last_sequence)), floor: seg.last_sequence };
        let v = judge(known, &found);
        drop(found);
        s.findings.extend(v.findings.iter().filter(|f| f.label.is_damage()).map(|f| (seg.id, f.clone())));
        let at = s.mapped.segments.len();
        s.inputs.push(PlanInput {
            segment: seg.id,
            salt: seg.salt,
            end: seg.end,
            first_sequence: seg.first_sequence,
            last_sequence: seg.last_sequence,
        });
        for r in v.records.iter().filter(|r| r.kind == RecordKind::Write && r.sequence >= from && r.sequence <= through) {
            let too_long = gather.json.is_some_and(|j| j + INPUT_JSON * s.inputs.len() as u64 >= MOST_JSON);
            let full = too_long || bounds.is_some_and(|b| gather.fills(b));
            if full && gather.bytes > 0 {
                s.mapped.segments.push(map);
                break 'segments;
            }
            let offset = r.offset + RECORD_HEADER_BYTES as u64;
            match PayloadView::parse(Scanner::payload(&map, r)) {
                Ok(p) => gather.add(r.sequence, at as u32, offset, r.payload_len, &p),
                Err(e) => {
                    gather.bytes += u64::from(r.payload_len);
                    s.unparsable.push((r.sequence, at, offset, r.payload_len, e.to_string()));
                }
            }
            s.last_sequence = r.sequence;
        }
        // Sequences that could not be read count as covered: they are reported, and nothing will ever bring them.
        s.last_sequence = seg.last_sequence.min(through).max(s.last_sequence);
        map.done_with(0, map.len());
        s.mapped.segments.push(map);
        if seg.tainted && bounds.is_some() {
            // It is in memory as a whole: one of them in a new plan.
            break;
        }
    }
    Ok(s)
}

fn gather(catalog: &Catalog) -> Gather<'_> {
    Gather {
        catalog,
        widenings: HashMap::new(),
        index: HashMap::new(),
        drafts: Vec::new(),
        rows: 0,
        bytes: 0,
        json: None,
        schemas: HashMap::new(),
        slices: 0,
        chunk_bytes: 0,
        row_group_bytes: EARLIER_ROW_GROUP_BYTES,
    }
}

/// Makes plan `number` of the sealed sequences above `shipped`. None when there is nothing to plan. `directory` gives that of a table,
/// by database and name.
///
/// # Errors
/// Of opening or mapping a segment; those of `directory`.
#[allow(clippy::too_many_arguments)]
pub fn make<E: From<io::Error>>(
    vfs: &dyn Vfs,
    segments: &[Arc<SealedSegment>],
    catalog: &Catalog,
    log: LogId,
    settings: &PlanSettings,
    number: u64,
    shipped: Sequence,
    mut directory: impl FnMut(&str, &str) -> Result<String, E>,
) -> Result<Option<(Plan, Slices)>, E> {
    let through = segments.last().map_or(0, |s| s.last_sequence);
    if through <= shipped {
        return Ok(None);
    }
    let first = shipped + 1;
    let row_group_bytes = settings.writer.row_group_bytes.unwrap_or(EARLIER_ROW_GROUP_BYTES).max(1);
    let mut g = Gather { json: Some(0), row_group_bytes, ..gather(catalog) };
    let s = scan(vfs, segments, first, through, Some(settings.bounds), &mut g)?;
    let last = s.last_sequence;
    // Sorted, so that the numbers of the outputs say nothing of the order of arrival.
    let mut drafts = g.drafts;
    drafts.sort_by(|(a, _), (b, _)| (&a.database, &a.table, a.version, a.hour).cmp(&(&b.database, &b.table, b.version, b.hour)));
    let mut schemas: Vec<PlanSchema> = Vec::new();
    let mut outputs = Vec::with_capacity(drafts.len());
    let mut lists = Vec::with_capacity(drafts.len());
    for (n, (key, d)) in drafts.into_iter().enumerate() {
        let same =
            schemas.last().is_some_and(|x| *x.database == *key.database && *x.table == *key.table && x.version == key.version as u32);
        if !same {
            schemas.push(PlanSchema {
                database: key.database.to_string(),
                table: key.table.to_string(),
                version: key.version as u32,
                columns: catalog.schema(&key.database, &key.table, key.version, last),
            });
        }
        outputs.push(PlanOutput {
            schema: schemas.len() as u32 - 1,
            hour: key.hour,
            first_sequence: d.slices.first().map_or(first, |s| s.sequence),
            last_sequence: d.slices.last().map_or(last, |s| s.sequence),
            rows: d.rows,
            name: object_name(
                &key.database,
                &directory(&key.database, &key.table)?,
                settings.layout,
                key.hour,
                log,
                (first, last),
                n as u32,
            ),
        });
        lists.push(d.slices);
    }
    let plan = Plan {
        plan: number,
        first_sequence: first,
        last_sequence: last,
        inputs: s.inputs,
        writer: settings.writer.clone(),
        schemas,
        outputs,
    };
    let slices = Slices { mapped: s.mapped, outputs: lists, findings: s.findings, unparsable: s.unparsable };
    Ok(Some((plan, slices)))
}

/// Finds the slices of a plan made earlier.
///
/// A record that was lost when the plan was made and can be read again (`damage` names it, or no output covers a part of it) is none of the
/// plan's: it comes back as unparsable, whole, for the quarantine.
///
/// # Errors
/// Of opening or mapping a segment; an input that is not there any more.
pub fn resume(vfs: &dyn Vfs, segments: &[Arc<SealedSegment>], catalog: &Catalog, plan: &Plan, damage: &[Entry]) -> io::Result<Slices> {
    for i in &plan.inputs {
        let there = segments.iter().any(|s| s.id == i.segment && s.salt == i.salt && s.end == i.end && s.last_sequence == i.last_sequence);
        if !there {
            return Err(io::Error::other(format!(
                "plan {} needs {} (segment {}, salt {:016x}, end {}, last sequence {}), which is not in the log",
                plan.plan,
                files::segment_name(i.segment),
                i.segment,
                i.salt,
                i.end,
                i.last_sequence
            )));
        }
    }
    let mut g = gather(catalog);
    let s = scan(vfs, segments, plan.first_sequence, plan.last_sequence, None, &mut g)?;
    let mut outputs = vec![Vec::new(); plan.outputs.len()];
    // By sequence, not by schema version: the record that widened a column may have rotted since, and with it where the version began.
    let mut by_place: HashMap<(&str, &str, Hour), Vec<usize>> = HashMap::new();
    for (n, o) in plan.outputs.iter().enumerate() {
        if let Some(x) = plan.schemas.get(o.schema as usize) {
            by_place.entry((&x.database, &x.table, o.hour)).or_default().push(n);
        }
    }
    let was_lost = |sequence: Sequence| {
        let covers = |d: &Entry| matches!(d, Entry::Damage { segment, first_missing, last_missing, .. } if *segment > 0 && (*first_missing..=*last_missing).contains(&sequence));
        damage.iter().any(covers)
    };
    let mut placed = Vec::new();
    let mut strangers: BTreeMap<Sequence, SliceRef> = BTreeMap::new();
    let mut rows = vec![0u64; plan.outputs.len()];
    for (key, d) in g.drafts {
        let there = by_place.get(&(&*key.database, &*key.table, key.hour)).map_or(&[][..], Vec::as_slice);
        for slice in d.slices {
            let covers = |n: &&usize| plan.outputs.get(**n).is_some_and(|o| (o.first_sequence..=o.last_sequence).contains(&slice.sequence));
            match there.iter().find(covers) {
                Some(n) => {
                    if let Some(r) = rows.get_mut(*n) {
                        *r += u64::from(slice.rows());
                    }
                    placed.push((*n, slice));
                }
                None => drop(strangers.insert(slice.sequence, slice)),
            }
        }
    }
    // More than was planned: what was lost then is here again.
    let too_many = |n: usize| plan.outputs.get(n).zip(rows.get(n)).is_some_and(|(o, r)| *r > o.rows);
    for (n, slice) in &placed {
        if too_many(*n) && was_lost(slice.sequence) {
            strangers.insert(slice.sequence, *slice);
        }
    }
    for (n, slice) in placed {
        if let Some(list) = outputs.get_mut(n).filter(|_| !strangers.contains_key(&slice.sequence)) {
            list.push(slice);
        }
    }
    let mut unparsable = s.unparsable;
    unparsable.extend(strangers.into_values().map(|s| {
        let why = format!("plan {} was made when this record could not be read", plan.plan);
        (s.sequence, s.segment as usize, s.offset, s.len, why)
    }));
    for list in &mut outputs {
        list.sort_by_key(|s: &SliceRef| s.sequence);
    }
    Ok(Slices { mapped: s.mapped, outputs, findings: s.findings, unparsable })
}
