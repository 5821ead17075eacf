//! Outputs that cannot be published for a long time: their records move to side segments, so that the rest of the plan is released.
//!
//! INVARIANT(deferred-is-durable): a plan counts an output as deferred only after a side segment with all its records, under their own sequences,
//! has been synced with its name, and a manifest record says so. The side segment goes only after the output's commit.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use super::SliceRef;
use super::builder::Trouble;
use super::control::Deferred;
use super::plan::{Mapped, Slices};
use super::worker::{Compactor, Current};
use crate::format::file_header::{FORMAT_MINOR, FileHeader, FileKind};
use crate::format::manifest::{Entry, Plan};
use crate::format::payload::PayloadView;
use crate::format::record::{RecordHeader, RecordKind, record_len};
use crate::format::scan::{Finding, Found, Label, Scanner};
use crate::limits::{FILE_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::vfs::{Mapping, SyncMode, is_no_space};
use crate::wal::aside::{damage_entry, keep_bytes};
use crate::wal::files;
use crate::wal::reader::{FileBytes, read_file, read_header, salt_without_header};

/// Header and payload of a record whose CRCs are right.
fn parts(record: &[u8]) -> Option<(RecordHeader, &[u8])> {
    let (h, payload) = record.split_at_checked(RECORD_HEADER_BYTES)?;
    let h = RecordHeader::parse(h)?;
    (crc32fast::hash(payload) == h.payload_crc).then_some((h, payload))
}

fn is_whole(mapped: &Mapped, s: &SliceRef) -> bool {
    parts(mapped.record(s.segment as usize, s.offset, s.len)).is_some()
}

/// How long deferred outputs wait between attempts.
const RETRY: Duration = Duration::from_secs(5);

impl Compactor {
    /// Whether what waits behind a stopped output takes more than a quarter of the log.
    pub(super) fn pins_too_much(&self) -> bool {
        self.shared.backlog().0 > self.shared.settings.max_size / 4
    }

    /// Committed, or its records are in a side segment.
    pub(super) fn is_settled(&self, plan: &Plan, n: u32) -> bool {
        self.is_committed(plan, n) || self.manifest.state.deferred.contains_key(&(plan.plan, n))
    }

    pub(super) fn defer(&mut self, c: &Current, outputs: &[u32]) -> Result<(), Trouble> {
        if outputs.is_empty() {
            return Ok(());
        }
        let dir = self.shared.settings.directory.join(files::SIDE);
        let mut entries = Vec::new();
        for n in outputs {
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
        self.count_deferred();
        Ok(())
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
            tracing::error!(segment = segment.id, offset = x.from, sequence = s.sequence, "a record has gone bad since it was planned");
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
        let data: u64 = list.iter().map(|s| record_len(s.len as usize) as u64).sum();
        // Not rounded: whatever is not a record is damage.
        let len = FILE_HEADER_BYTES as u64 + data;
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
                let h = RecordHeader { salt, offset: at, durable_floor: s.sequence, ..old };
                f.write_all_at(&[&h.encode(), payload], at)?;
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

    /// Tries to publish one deferred output; true when one was committed.
    pub(super) fn retry_deferred(&mut self) -> Result<bool, Trouble> {
        let now = self.shared.clock.monotonic();
        if self.manifest.state.deferred.is_empty() || self.control.is_paused() || self.deferred_due.is_some_and(|d| now < d) {
            return Ok(false);
        }
        // Set first: an error of these must not keep the rest of the log from being shipped and released.
        self.deferred_due = Some(now + RETRY);
        if let Err(e) = self.sink.ready() {
            self.trouble(&e.to_string());
            return Ok(false);
        }
        let all: Vec<(u64, u32)> = self.manifest.state.deferred.keys().copied().collect();
        for (k, n) in all {
            let Some(plan) = self.manifest.state.plans.get(&k).map(|p| p.plan.clone()) else { continue };
            let path = self.shared.settings.directory.join(files::SIDE).join(files::deferred_name(k, n));
            let slices = match self.side_slices(&plan, n, &path) {
                Ok((slices, lost)) => {
                    self.record_lost(lost)?;
                    slices
                }
                Err(e) => {
                    self.trouble(&format!("{}: {e}", path.display()));
                    continue;
                }
            };
            let c = Current { plan, slices, unparsable_kept: true, announced: true, cautious: false, stopped_since: None };
            self.adopt_published(&c)?;
            if !self.is_committed(&c.plan, n) {
                let stopped = self.build_all(&c, &[n])?;
                if let Some(stop) = stopped.values().next() {
                    let changed = if stop.lasting { self.deferred_lasting.insert((k, n)) } else { self.deferred_lasting.remove(&(k, n)) };
                    if changed {
                        self.count_deferred();
                    }
                    self.trouble(&format!("output {n} of plan {k} still waits: {}", stop.why));
                    continue;
                }
            }
            if self.is_committed(&c.plan, n) {
                drop(c);
                self.vfs.remove(&path)?;
                self.count_deferred();
                self.deferred_due = None;
                return Ok(true);
            }
        }
        Ok(false)
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
        let (len, header) = read_header(&*self.vfs, path, FileKind::Segment)?;
        // Not mapped: a block that cannot be read must not end the process.
        let mut bytes = FileBytes::default();
        read_file(&*self.vfs.open(path, false)?, &mut bytes)?;
        let salt = header.as_ref().map_or_else(|_| salt_without_header(&bytes).unwrap_or(0), |(h, _)| h.salt);
        let map = Mapping::Memory(bytes.bytes.into());
        let mut list = Vec::new();
        let mut lost = Vec::new();
        let mut lose = |from: u64, to: u64, expected: String, found: String| {
            tracing::error!(side = %path.display(), offset = from, expected, found, "damage in a side segment");
            lost.push(Entry::Damage {
                segment: 0,
                from,
                to,
                label: format!("damaged_side {}", files::deferred_name(plan.plan, n)),
                first_missing: o.first_sequence,
                last_missing: o.last_sequence,
            });
            let x = Finding { label: Label::Damaged, from, to, missing: None, expected, found };
            keep_bytes(&*self.vfs, &self.shared.settings.directory, path, len, salt, &x)
        };
        match header {
            Ok((h, _)) if len < h.file_len => lose(len, h.file_len, format!("{} bytes", h.file_len), format!("{len}: it was cut short"))?,
            Ok(_) => {}
            Err([a, b]) => lose(0, FILE_HEADER_BYTES as u64, "a segment header".into(), format!("{a}; second copy: {b}"))?,
        }
        for found in Scanner::new(&map, salt, FILE_HEADER_BYTES as u64, len) {
            let r = match found {
                Found::Record(r) => r,
                Found::Bad { from, to, why } => {
                    lose(from, to, why.expected(), why.found())?;
                    continue;
                }
            };
            if r.kind != RecordKind::Write {
                continue;
            }
            let p = PayloadView::parse(Scanner::payload(&map, &r)).map_err(|e| io::Error::other(e.to_string()))?;
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
        Ok((Slices { mapped: Mapped::single(map), outputs, findings: Vec::new(), unparsable: Vec::new() }, lost))
    }

    /// Tells requests which tables have too much waiting, and removes side segments that nothing names any more.
    pub(super) fn count_deferred(&mut self) {
        let dir = self.shared.settings.directory.join(files::SIDE);
        let state = &self.manifest.state;
        for e in self.vfs.list(&dir).unwrap_or_default() {
            if files::parse_deferred(&e.name).is_some_and(|k| !state.deferred.contains_key(&k)) || e.name.ends_with(".wal.tmp") {
                let _ = self.vfs.remove(&dir.join(&e.name));
            }
        }
        let limit = self.shared.settings.max_size / 4;
        let mut by_table: HashMap<(String, String), u64> = HashMap::new();
        let mut d = Deferred::default();
        for ((k, n), bytes) in &state.deferred {
            let Some(p) = state.plans.get(k) else { continue };
            let Some(o) = p.plan.outputs.get(*n as usize) else { continue };
            d.outputs += 1;
            d.bytes += bytes;
            d.lasting += u64::from(self.deferred_lasting.contains(&(*k, *n)));
            d.from = Some(d.from.map_or(o.first_sequence, |f| f.min(o.first_sequence)));
            if let Some(s) = p.plan.schemas.get(o.schema as usize) {
                *by_table.entry((s.database.clone(), s.table.clone())).or_default() += bytes;
            }
        }
        d.refused = by_table.into_iter().filter(|(_, b)| *b > limit).map(|(t, _)| t).collect::<HashSet<_>>();
        self.control.set_deferred(d);
    }
}
