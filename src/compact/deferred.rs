//! Outputs that cannot be published for a long time: their records move to side segments, so that the rest of the plan is released.
//!
//! INVARIANT(deferred-is-durable): a plan counts an output as deferred only after a side segment with all its records, under their own sequences,
//! has been synced with its name, and a manifest record says so. The side segment goes only after the output's commit.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::SliceRef;
use super::builder::{Stop, Trouble};
use super::plan::{Mapped, Slices};
use super::worker::{Compactor, Current, FEW, Failing};
use crate::format::file_header::{FORMAT_MINOR, FileHeader, FileKind};
use crate::format::manifest::{Entry, Plan};
use crate::format::payload::{PayloadView, one_table};
use crate::format::record::{RecordHeader, record_len};
use crate::format::scan::{Finding, Label};
use crate::limits::{FILE_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::vfs::{Mapping, SyncMode, is_no_space};
use crate::wal::aside::{damage_entry, keep_bytes};
use crate::wal::files;
use crate::wal::side::read_side;

/// Header and payload of a record whose CRCs are right.
fn parts(record: &[u8]) -> Option<(RecordHeader, &[u8])> {
    let (h, payload) = record.split_at_checked(RECORD_HEADER_BYTES)?;
    let h = RecordHeader::parse(h)?;
    (crc32fast::hash(payload) == h.payload_crc).then_some((h, payload))
}

/// What a side segment needs of a record: the directory of a payload with the slice's table alone, and that table's body. A request of many
/// tables, all of which wait, would stand there many times otherwise.
fn narrow<'a>(payload: &'a [u8], s: &SliceRef) -> (Vec<u8>, &'a [u8]) {
    let one = PayloadView::parse(payload).and_then(|p| one_table(&p, s.table as usize));
    // What cannot be parsed goes as it stands: the build will say why.
    one.unwrap_or((Vec::new(), payload))
}

/// Bytes of a side segment with these records.
fn side_len(list: &[SliceRef], mapped: &Mapped) -> u64 {
    let record = |s: &SliceRef| {
        let (directory, body) =
            narrow(mapped.record(s.segment as usize, s.offset, s.len).get(RECORD_HEADER_BYTES..).unwrap_or_default(), s);
        record_len(directory.len() + body.len()) as u64
    };
    FILE_HEADER_BYTES as u64 + list.iter().map(record).sum::<u64>()
}

impl Slices {
    /// Bytes that the side segment of output `n` would take.
    pub(super) fn side_len(&self, n: u32) -> u64 {
        self.outputs.get(n as usize).map_or(0, |list| side_len(list, &self.mapped))
    }
}

fn is_whole(mapped: &Mapped, s: &SliceRef) -> bool {
    parts(mapped.record(s.segment as usize, s.offset, s.len)).is_some()
}

/// How long a deferred output waits after its first attempt, and while the store is away; each further attempt doubles it.
const RETRY: Duration = Duration::from_secs(5);
/// The longest wait: an attempt may build a file, send it and read what is there, which takes time and, at a cloud, money.
const LONGEST_RETRY: Duration = Duration::from_secs(600);
/// After this long a pass over deferred outputs ends, and as long a rest belongs to the plans of everything else.
const PASS: Duration = Duration::from_secs(5);

/// Attempts of this process at an output that is deferred.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts {
    /// Failed while the store answered, those before it was deferred included.
    failed: u32,
    /// Waits so far.
    waits: u32,
    due: Duration,
    /// Why the last one failed.
    pub(super) last: Option<Stop>,
}

impl Attempts {
    fn fail(&mut self, stop: Stop, now: Duration) {
        let factor = 1u32.checked_shl(self.waits).unwrap_or(u32::MAX);
        self.due = now.saturating_add(RETRY.saturating_mul(factor).min(LONGEST_RETRY));
        self.waits = self.waits.saturating_add(1);
        self.failed = self.failed.saturating_add(1);
        self.last = Some(stop);
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.failed >= FEW || self.last.as_ref().is_some_and(|s| s.lasting)
    }
}

impl Compactor {
    /// Whether what waits behind a stopped output takes more than a quarter of the log.
    pub(super) fn pins_too_much(&self) -> bool {
        self.shared.backlog().0.saturating_sub(self.shared.side_bytes()) > self.shared.settings.max_size / 4
    }

    /// Committed, or its records are in a side segment.
    pub(super) fn is_settled(&self, plan: &Plan, n: u32) -> bool {
        self.is_committed(plan, n) || self.manifest.state.deferred.contains_key(&(plan.plan, n))
    }

    /// Moves the records of these outputs aside, which failed for these reasons; false when `wal.max_size` leaves no room for them.
    pub(super) fn defer(&mut self, c: &Current, outputs: &BTreeMap<u32, Stop>) -> Result<bool, Trouble> {
        if outputs.is_empty() {
            return Ok(true);
        }
        if let Some(why) = self.no_room_aside(&c.plan, outputs.keys().map(|n| c.slices.side_len(*n)).sum()) {
            self.trouble(&why);
            self.control.set_barred(Some(why));
            return Ok(false);
        }
        let dir = self.shared.settings.directory.join(files::SIDE);
        let mut entries = Vec::new();
        for n in outputs.keys() {
            let Some(list) = c.slices.outputs.get(*n as usize) else { continue };
            // What has gone bad since it was planned is lost, the others are not.
            let (list, bad): (Vec<SliceRef>, Vec<SliceRef>) = list.iter().partition(|s| is_whole(&c.slices.mapped, s));
            let lost = self.keep_lost(&c.plan, &bad)?;
            self.record_lost(lost)?;
            let bytes = self.write_side(&c.plan, *n, &list, &c.slices.mapped)?;
            tracing::warn!(plan = c.plan.plan, output = n, bytes, "this output cannot be published: its records move to a side segment");
            entries.push(Entry::Deferred { plan: c.plan.plan, output: *n, bytes });
        }
        self.vfs.sync_dir(&dir)?;
        self.append(entries, &[])?;
        let now = self.shared.clock.monotonic();
        for (n, stop) in outputs {
            let failed = c.failing.get(n).map_or(0, Failing::attempts).saturating_sub(1);
            let a = self.attempts.entry((c.plan.plan, *n)).or_insert(Attempts { failed, ..Attempts::default() });
            a.fail(stop.clone(), now);
        }
        self.count_deferred();
        Ok(true)
    }

    /// Keeps the bytes of records that have gone bad, as far as they can be read; what the manifest is to say of them.
    fn keep_lost(&self, plan: &Plan, bad: &[SliceRef]) -> Result<Vec<Entry>, Trouble> {
        let mut out = Vec::new();
        for s in bad {
            let Some(input) = plan.inputs.get(s.segment as usize) else { continue };
            let Some(segment) = self.sealed().into_iter().find(|x| x.id == input.segment) else { continue };
            let x = Finding {
                label: Label::Damaged,
                from: s.offset - RECORD_HEADER_BYTES as u64,
                to: s.offset + u64::from(s.len),
                missing: Some((s.sequence, s.sequence)),
                expected: format!("the record of sequence {} as it was planned", s.sequence),
                found: "a wrong CRC".into(),
            };
            tracing::error!(
                file = files::segment_name(segment.id),
                offset = x.from,
                sequence = s.sequence,
                "a record has gone bad since it was planned"
            );
            keep_bytes(&*self.vfs, &self.shared.settings.directory, &segment.path, segment.file_len, segment.salt, &x)?;
            out.push(damage_entry(segment.id, &x));
        }
        Ok(out)
    }

    fn write_side(&self, plan: &Plan, n: u32, list: &[SliceRef], mapped: &Mapped) -> Result<u64, Trouble> {
        let dir = self.shared.settings.directory.join(files::SIDE);
        let name = files::deferred_name(plan.plan, n);
        let tmp = dir.join(format!("{name}.tmp"));
        let _ = self.vfs.remove(&tmp);
        // Not rounded: whatever is not a record is damage.
        let len = side_len(list, mapped);
        let salt = self.shared.clock.random_u64();
        let header = FileHeader {
            kind: FileKind::Segment,
            minor: FORMAT_MINOR,
            compatible: 0,
            incompatible: 0,
            log: self.shared.log,
            id: plan.plan,
            first_sequence: list.first().map_or(1, |s| s.sequence),
            salt,
            epoch: self.manifest.state.epoch,
            file_len: len,
            predecessor: None,
        };
        let made = (|| -> io::Result<()> {
            let f = self.vfs.create_new(&tmp)?;
            f.set_len(len)?;
            f.write_all_at(&[&header.encode_file()], 0)?;
            let mut at = FILE_HEADER_BYTES as u64;
            for s in list {
                let record = mapped.record(s.segment as usize, s.offset, s.len);
                let Some((old, payload)) = parts(record) else {
                    return Err(io::Error::other(format!("the record of sequence {} has gone bad since it was planned", s.sequence)));
                };
                let (directory, body) = narrow(payload, s);
                let mut crc = crc32fast::Hasher::new();
                crc.update(&directory);
                crc.update(body);
                let payload_len = (directory.len() + body.len()) as u32;
                let h = RecordHeader { salt, offset: at, durable_floor: s.sequence, payload_len, payload_crc: crc.finalize(), ..old };
                f.write_all_at(&[&h.encode(), &directory, body], at)?;
                at += h.record_len() as u64;
            }
            f.sync(SyncMode::Full)?;
            self.vfs.rename(&tmp, &dir.join(&name))
        })();
        match made {
            Ok(()) => Ok(len),
            Err(e) => {
                let _ = self.vfs.remove(&tmp);
                Err(if is_no_space(&e) {
                    Trouble::NoSpace(format!("side segment {name}: {e}"))
                } else {
                    Trouble::Retry(format!("side segment {name}: {e}"))
                })
            }
        }
    }

    /// Tries to publish the deferred outputs that are due; true when one was committed.
    pub(super) fn retry_deferred(&mut self) -> Result<bool, Trouble> {
        let now = self.shared.clock.monotonic();
        if self.manifest.state.deferred.is_empty() || self.control.is_paused() || self.deferred_due.is_some_and(|d| now < d) {
            return Ok(false);
        }
        let asked = self.control.take_hurry();
        if asked.is_some() {
            // Who asks may have mended what they wait for.
            self.attempts.values_mut().for_each(|a| a.due = Duration::ZERO);
        }
        let due = |key: &(u64, u32)| self.attempts.get(key).map_or(Duration::ZERO, |a| a.due);
        // Whoever has waited longest comes first: a pass that ends early is gone on with by the next.
        let mut list: Vec<_> = self.manifest.state.deferred.keys().map(|k| (due(k), *k)).filter(|(at, _)| *at <= now).collect();
        if list.is_empty() {
            return Ok(false);
        }
        list.sort_unstable();
        // Set first: an error of these must not keep the rest of the log from being shipped and released.
        self.deferred_due = Some(now + RETRY);
        if let Err(e) = self.sink.ready() {
            self.trouble(&e.to_string());
            return Ok(false);
        }
        if let Err(Trouble::Retry(why) | Trouble::Lasting(why)) = self.check_newest() {
            self.trouble(&why);
            return Ok(false);
        }
        self.doubtful = false;
        let tried = self.retry_each(list.into_iter().map(|(_, key)| key), now);
        if tried.is_err() {
            self.deferred_due = Some(self.shared.clock.monotonic() + RETRY);
        }
        if let Some(flush) = asked {
            self.control.looked(flush);
        }
        self.count_deferred();
        if matches!(tried, Ok(true)) {
            self.trouble_is_over();
        }
        tried
    }

    fn retry_each(&mut self, due: impl Iterator<Item = (u64, u32)>, began: Duration) -> Result<bool, Trouble> {
        let mut committed = false;
        for key in due {
            if self.control.is_stopped() {
                return Ok(committed);
            }
            // So that an error that ends the pass does not end the next one before it comes to the others.
            self.attempts.entry(key).or_default().due = began + RETRY;
            let stop = self.retry_one(key)?;
            let now = self.shared.clock.monotonic();
            match stop {
                None => committed = true,
                Some(stop) => {
                    self.trouble(&format!("output {} of plan {} still waits: {}", key.1, key.0, stop.why));
                    self.attempts.entry(key).or_default().fail(stop, now);
                }
            }
            if now >= began + PASS {
                self.deferred_due = Some(now + PASS);
                return Ok(committed);
            }
        }
        self.deferred_due = None;
        Ok(committed)
    }

    /// Tries to publish one deferred output; why it still waits, if it does.
    fn retry_one(&mut self, (k, n): (u64, u32)) -> Result<Option<Stop>, Trouble> {
        let Some(plan) = self.manifest.state.plan_of_deferred(k, n) else {
            return Ok(Some(Stop::lasting(format!("the manifest does not hold plan {k}"))));
        };
        let path = self.shared.settings.directory.join(files::SIDE).join(files::deferred_name(k, n));
        let (slices, lost) = match self.side_slices(&plan, n, &path) {
            Ok(read) => read,
            Err(e) => {
                let name = files::deferred_name(k, n);
                return Ok(Some(Stop::lost(format!(
                    "{}: expected the side segment with its records, which cannot be read: {e}; put the file back, or stop the server and \
                     give its rows up with \"arc wal deferred give-up {name}\"",
                    path.display()
                ))));
            }
        };
        self.record_lost(lost)?;
        let c = Current::of_side(plan, slices);
        let mut looked = self.adopt_published(&c, &[n])?;
        if self.is_committed(&c.plan, n) {
            return Ok(None);
        }
        if let Some(stop) = looked.failed.remove(&n) {
            self.ask_store()?;
            return Ok(Some(stop));
        }
        let last = self.attempts.get(&(k, n)).and_then(|a| a.last.clone());
        if let Some(stop) = last.filter(|s| s.foreign && looked.foreign.contains(&n)) {
            // What this process would build is among the intents: building it again changes nothing while that object is there.
            return Ok(Some(stop));
        }
        match self.build_all(&c, &[n]) {
            Ok(_) if self.is_committed(&c.plan, n) => Ok(None),
            Ok(mut stopped) => Ok(Some(stopped.remove(&n).unwrap_or_else(|| Stop::passing("it was left for now".into())))),
            Err(Trouble::Retry(why)) if !self.doubtful => Ok(Some(Stop::passing(why))),
            Err(Trouble::Lasting(why)) if !self.doubtful => Ok(Some(Stop::lasting(why))),
            Err(e) => Err(e),
        }
    }

    /// INVARIANT(rot-is-kept) for side segments.
    fn record_lost(&mut self, lost: Vec<Entry>) -> Result<(), Trouble> {
        let new: Vec<Entry> = lost.into_iter().filter(|e| !self.manifest.state.damage.contains(e)).collect();
        self.shared.metrics.wal_damage_findings_total.increment(new.len() as u64);
        self.append(new, &[])?;
        self.control.set_damage(self.manifest.state.damage.clone());
        Ok(())
    }

    /// The slices of a side segment, and the damage in it. What was lost before its records moved here was reported then.
    fn side_slices(&self, plan: &Plan, n: u32, path: &std::path::Path) -> io::Result<(Slices, Vec<Entry>)> {
        let o = plan.outputs.get(n as usize).ok_or_else(|| io::Error::other("the plan has no such output"))?;
        let schema = plan.schemas.get(o.schema as usize).ok_or_else(|| io::Error::other("the plan has no such schema"))?;
        let side = read_side(&*self.vfs, path)?;
        let mut lost = Vec::new();
        for b in &side.bad {
            tracing::error!(side = %path.display(), offset = b.from, expected = b.expected, found = b.found, "damage in a side segment");
            lost.push(Entry::Damage {
                segment: 0,
                from: b.from,
                to: b.to,
                label: format!("damaged_side {}", files::deferred_name(plan.plan, n)),
                first_missing: o.first_sequence,
                last_missing: o.last_sequence,
            });
            let (expected, found) = (b.expected.clone(), b.found.clone());
            let x = Finding { label: Label::Damaged, from: b.from, to: b.to, missing: None, expected, found };
            keep_bytes(&*self.vfs, &self.shared.settings.directory, path, side.bytes.len() as u64, side.salt, &x)?;
        }
        let mut list = Vec::new();
        for r in &side.records {
            let p = PayloadView::parse(side.payload(r)).map_err(|e| io::Error::other(e.to_string()))?;
            for (i, t) in p.index.tables.iter().enumerate().filter(|(_, t)| *t.table == *schema.table) {
                if let Some((_, rows)) = t.hours.iter().find(|(h, _)| *h == o.hour) {
                    let offset = r.offset + RECORD_HEADER_BYTES as u64;
                    list.push(SliceRef::new(r.sequence, 0, offset, r.payload_len, i as u32, *rows, t.hours.len() == 1));
                }
            }
        }
        let mut outputs = vec![Vec::new(); plan.outputs.len()];
        if let Some(x) = outputs.get_mut(n as usize) {
            *x = list;
        }
        let map = Mapping::Memory(side.bytes.into());
        Ok((Slices { mapped: Mapped::single(map), outputs, findings: Vec::new(), unparsable: Vec::new() }, lost))
    }
}
