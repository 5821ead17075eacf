//! What must hold in a simulated world: at every step, at every start, and at its end.

use std::collections::{BTreeMap, HashMap};

use arc_ingest::batch::Values;
use arc_ingest::compact::quarantine;
use arc_ingest::compact::worker::plan_object;
use arc_ingest::format::manifest::Entry;
use arc_ingest::format::payload::PayloadView;
use arc_ingest::limits::RECORD_HEADER_BYTES;
use arc_ingest::wal::manifest;
use sha2::{Digest, Sha256};

use super::super::model::{Row, read_store};
use super::*;

/// Table, time and number of every row in a payload.
pub(super) fn rids(payload: &[u8]) -> Vec<(String, i64, i64)> {
    let mut out = Vec::new();
    let Some(batch) = PayloadView::parse(payload).ok().and_then(|p| p.to_batch().ok()) else { return out };
    for t in batch.tables() {
        if let Some(Values::Int64(v)) = t.columns.iter().find(|c| c.name == "rid").map(|c| &c.values) {
            out.extend(t.time.iter().zip(v).map(|(time, rid)| (t.table.to_string(), *time, *rid)));
        }
    }
    out
}

pub(super) fn file_name(p: &Path) -> String {
    p.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned()
}

/// In hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The manifest as a power cut would leave it.
pub(super) fn durable_manifest(disk: &SimDisk) -> Result<Option<manifest::Loaded>, String> {
    let copy = disk.durable_copy(|p| files::parse_segment(&file_name(p)).is_none());
    manifest::load(&*copy.vfs(), Path::new(WAL)).map_err(|e| e.to_string())
}

/// INVARIANT(intent-before-publish) and INVARIANT(plan-object), looked at when a file of the lake becomes visible.
pub(super) fn is_announced(disk: &SimDisk, there: &dyn Fn(&str) -> bool, name: &str, bytes: &[u8]) -> Result<(), String> {
    if !name.ends_with(".parquet") {
        return Ok(());
    }
    let Some(loaded) = durable_manifest(disk)? else { return Err(format!("{name} is put, and there is no durable manifest")) };
    let place = |p: &manifest::PlanState| p.plan.outputs.iter().position(|o| o.name == name).map(|n| n as u32);
    let Some((plan, n)) = loaded.state.plans.values().find_map(|p| Some((p, place(p)?))) else {
        return Err(format!("{name} is put, and the durable manifest has no plan for it"));
    };
    let sha256 = sha256(bytes);
    let intents = loaded.state.intents_of(plan.plan.plan, n);
    if !intents.iter().any(|f| f.length == bytes.len() as u64 && f.sha256 == sha256) {
        return Err(format!("{name} is put with {} bytes, {sha256}; the durable manifest has the intents {intents:?}", bytes.len()));
    }
    let object = plan_object(loaded.header.log, plan.plan.plan);
    if !there(&object) { Err(format!("{name} is put, and {object} is not in the store")) } else { Ok(()) }
}

impl World {
    /// What must hold as soon as the log is open: no damage without rot, every acknowledged sequence and column known.
    pub(super) fn check_opened(&self, node: &Node) -> Result<(), String> {
        for d in node.control.damage() {
            let Entry::Damage { segment, from, label, first_missing, last_missing, .. } = &d else { continue };
            let invented = (*first_missing..=*last_missing).find(|s| *s > 0 && !self.rotted.contains(s));
            if !self.rot || (*segment > 0 && invented.is_some()) {
                return Err(format!(
                    "damage is reported where nothing was damaged: segment {segment}, offset {from}, {label}, missing {first_missing} to {last_missing}"
                ));
            }
        }
        let w = node.shared.watermarks();
        let sound = self.model.requests.iter().filter(|r| !r.rotten);
        let acked = sound.filter_map(|r| if let Fate::Acked(s) = r.fate { Some(s) } else { None }).max();
        if acked.is_some_and(|s| s > w.durable) {
            return Err(format!("sequence {} was acknowledged, the log goes to {}", acked.unwrap_or(0), w.durable));
        }
        let mut columns: BTreeMap<(String, String), u8> = BTreeMap::new();
        for t in node.catalog.entries() {
            for c in &t.columns {
                columns.insert((t.table.clone(), c.name.clone()), c.ty);
            }
        }
        for r in self.model.requests.iter().filter(|r| matches!(r.fate, Fate::Acked(_)) && !r.rotten) {
            let stored = |i: &usize| match &r.lines {
                None => true,
                Some(l) => l.dropped.as_ref().is_some_and(|d| !d.contains(i)),
            };
            for row in (0..r.rows.len()).filter(stored).map(|i| &r.rows[i]) {
                for (c, v) in &row.cells {
                    let Some(ty) = columns.get(&(row.table.clone(), c.clone())) else {
                        return Err(format!("column {c} of {} was acknowledged and is not in the catalog", row.table));
                    };
                    let name = arc_ingest::types::ColumnType::from_u8(*ty).map_or("unknown", |t| t.name());
                    let fits = match v {
                        serde_json::Value::Number(n) if n.is_i64() => matches!(name, "int64" | "float64"),
                        serde_json::Value::Number(_) => name == "float64",
                        serde_json::Value::String(_) => name == "string",
                        _ => name == "bool",
                    };
                    if !fits {
                        return Err(format!("column {c} of {} was acknowledged with {v}, the catalog says {name}", row.table));
                    }
                }
            }
        }
        Ok(())
    }

    /// INVARIANT(commit-before-release): a segment goes away only after the durable manifest says that it may.
    pub(super) fn check_removed(&self) -> Result<(), String> {
        let gone: Vec<String> = self.disk.take_removed().iter().map(|g| file_name(&g.path)).collect();
        let Some(id) = gone.iter().filter_map(|n| files::parse_segment(n)).max() else { return Ok(()) };
        let released = durable_manifest(&self.disk)?.map(|l| l.state.released_segment);
        if released.is_none_or(|r| r < id) {
            return Err(format!("{gone:?} went away, the durable manifest has released segments through {released:?}"));
        }
        Ok(())
    }

    /// What has become visible in the store was announced, and has taken the place of nothing.
    pub(super) fn check_puts(&self) -> Result<(), String> {
        if let Some(why) = self.broken.lock().unwrap().take() {
            return Err(why);
        }
        let replaced = self.store.replaced();
        if replaced.is_empty() { Ok(()) } else { Err(format!("objects were replaced: {replaced:?}")) }
    }

    /// Ends all disturbances, lets the server run until everything is shipped, and compares the store with what was sent.
    ///
    /// # Errors
    /// Whatever is lost, doubled, half there or wrong.
    pub fn verify(&mut self) -> Result<(), String> {
        self.verify_by(false)
    }

    /// [`Self::verify`], after `arc drain` on another machine instead of a last life of the server.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn verify_by(&mut self, elsewhere: bool) -> Result<(), String> {
        self.disk.set_rates(Rates::default());
        self.disk.clear_script();
        self.disk.set_capacity(u64::MAX);
        self.store.set_capacity(None);
        *self.store_crash.lock().unwrap() = None;
        self.store.clear_faults();
        if let Some((s3, _)) = &self.wire {
            s3.clear_faults();
        }
        self.clock_jumps = 0;
        self.unmounts = 0;
        self.disk_full = 0;
        for life in 0.. {
            let ended = self.boot(Boot { elsewhere, ..Boot::server(50, 0, true) })?;
            if ended == Ended::Done {
                break;
            }
            if life > 20 {
                return Err(format!("without any faults the server still ends with {ended:?}"));
            }
        }
        while !self.store.late().is_empty() {
            self.store.land(0);
        }
        if let Some((s3, _)) = self.wire.clone() {
            while s3.late() > 0 {
                s3.land(0);
            }
            // The next start sweeps.
            let ended = self.boot(Boot { steps: 10, load: 0, drain: true, elsewhere: false })?;
            if ended != Ended::Done || !s3.uploads().is_empty() {
                return Err(format!("after a last life ({ended:?}) there are uploads: {:?}", s3.uploads()));
            }
        }
        self.check_puts()?;
        let mut present = read_store(&self.objects())?;
        let aside = self.quarantined(&mut present)?;
        let loaded = manifest::load(&*self.disk.vfs(), Path::new(WAL)).map_err(|e| e.to_string())?;
        let damage = loaded.map(|l| l.state.damage).unwrap_or_default();
        let reported = |s: u64| {
            let names =
                |d: &Entry| matches!(d, Entry::Damage { first_missing, last_missing, .. } if (*first_missing..=*last_missing).contains(&s));
            aside.contains(&s) || damage.iter().any(names)
        };
        self.model.check(&present, reported)?;
        self.retry_all()
    }

    /// Adds the rows of the quarantine to those of the store: a row is in one of them. The sequences there.
    pub(super) fn quarantined(&self, present: &mut HashMap<i64, Vec<Row>>) -> Result<BTreeSet<u64>, String> {
        let vfs = self.disk.vfs();
        let mut sequences = BTreeSet::new();
        for found in quarantine::list(&*vfs, Path::new(WAL)).map_err(|e| e.to_string())? {
            let (q, record) = quarantine::read(&*vfs, &found.path).map_err(|e| e.to_string())?;
            if !self.rot {
                return Err(format!("{}: set aside without rot: {}", found.path.display(), q.reason));
            }
            sequences.insert(q.sequence);
            for (table, time_us, rid) in rids(record.get(RECORD_HEADER_BYTES..).unwrap_or_default()) {
                let named = table == q.table && arc_ingest::types::hour_of(time_us) == q.hour;
                if named || q.database == "unknown" {
                    let sent = self.model.row(rid).ok_or_else(|| format!("row {rid} in the quarantine was never sent"))?;
                    present.entry(rid).or_default().push(sent.clone());
                }
            }
        }
        Ok(sequences)
    }

    /// Every acknowledged request with a key, sent again, is answered from the remembered key.
    pub(super) fn retry_all(&mut self) -> Result<(), String> {
        let clock = self.new_process();
        let rt = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().map_err(|e| e.to_string())?;
        let _in = rt.enter();
        let r = self.open(&clock)?.map_err(|e| format!("cannot be opened for the last time: {e:?}"))?;
        let keyed: Vec<usize> = (0..self.model.requests.len()).filter(|i| self.model.requests[*i].key.is_some()).collect();
        for i in keyed {
            let q = &self.model.requests[i];
            let Fate::Acked(s) = q.fate else { continue };
            if q.rotten {
                continue;
            }
            let (key, body, dialect) = parts(q);
            let again = rt.block_on(async { tokio::time::timeout(Duration::from_secs(1), write(&r.engine, key, body, dialect)).await });
            match again {
                Ok(Ok(Outcome { sequence: Some(n), replayed: true, refused, .. })) if n == s => {
                    if !self.rot
                        && let Some(refused) = refused
                    {
                        self.model.requests[i].told(&refused).map_err(|e| format!("request {i}, sent again with its key: {e}"))?;
                    }
                }
                other => return Err(format!("request {i}, acknowledged as {s}, sent again with its key: {other:?}")),
            }
        }
        drop(r);
        self.disk.kill();
        Ok(())
    }
}
