//! A log directory of known content, damaged, and then opened: what recovery keeps was written, each record once, and what it must
//! keep is there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Unstructured;
use arc_ingest::batch::{TableBatch, ValidBatch};
use arc_ingest::format::file_header::{DeclaredEnd, FileHeader, FileKind};
use arc_ingest::format::manifest::Entry;
use arc_ingest::format::payload::encode;
use arc_ingest::format::record::{RecordHeader, RecordKind, pad_len, put_pad, record_len};
use arc_ingest::format::scan::Label;
use arc_ingest::limits::{BLOCK, FILE_HEADER_BYTES, RECORD_HEADER_BYTES};
use arc_ingest::metrics::Metrics;
use arc_ingest::types::{LogId, Sequence};
use arc_ingest::vfs::{Engine, SyncMode, Vfs};
use arc_ingest::wal::files::{manifest_name, segment_name};
use arc_ingest::wal::manifest::put_group;
use arc_ingest::wal::recover::{OpenError, OpenedLog, open};
use arc_ingest::wal::shared::LogSettings;

use super::build::{Damage, flag, one_in, upto};
use super::memory::{MemVfs, StillClock};

const LOG: LogId = LogId([9; 16]);

fn dir() -> PathBuf {
    PathBuf::from("/log")
}

fn settings(set_aside_damage: bool) -> LogSettings {
    LogSettings {
        directory: dir(),
        segment_data: 8192,
        max_size: 64 << 20,
        reserve: 0,
        pool: 0,
        engine: Engine::Pwrite,
        sync: SyncMode::Data,
        queue_timeout: Duration::from_secs(2),
        mark_delay: Duration::from_millis(50),
        queue_bytes: 1 << 20,
        set_aside_damage,
        limits: None,
    }
}

/// A record as it was written.
#[derive(Clone, Debug)]
struct Written {
    segment: usize,
    /// Header and payload.
    place: (usize, usize),
    payload: Vec<u8>,
    receive_time_us: i64,
}

/// A log before it is damaged.
struct Made {
    segments: Vec<(u64, Vec<u8>)>,
    manifest: Vec<u8>,
    written: BTreeMap<Sequence, Written>,
    /// Where the last group of the newest segment begins that has no witness; the segment's end when it has one.
    unwitnessed: usize,
    /// Every sequence through this one was acknowledged for sure.
    durable: Sequence,
    last: Sequence,
}

fn payload(sequence: u64, rows: usize) -> Vec<u8> {
    let time = (0..rows as i64).map(|i| sequence as i64 + i * (1 << 40)).collect();
    let t = TableBatch { table: "t".into(), time, columns: vec![] };
    encode(&ValidBatch::new("db".into(), vec![t]).unwrap(), None, false, 0, 1 << 20).unwrap().payload().to_vec()
}

fn make(u: &mut Unstructured<'_>) -> Made {
    let released = if one_in(u, 4) { upto(u, 2) as u64 } else { 0 };
    let shipped = released * 3;
    let mut m =
        Made { segments: Vec::new(), manifest: Vec::new(), written: BTreeMap::new(), unwitnessed: 0, durable: shipped, last: shipped };
    let count = 1 + upto(u, 2);
    let mut predecessor =
        (released > 0).then_some(DeclaredEnd { id: released, salt: 40, end: (FILE_HEADER_BYTES + BLOCK) as u64, last_sequence: shipped });
    let mut sequence = shipped;
    for s in 0..count {
        let (id, salt) = (released + 1 + s as u64, 50 + s as u64);
        let first_sequence = sequence + 1;
        let newest = s + 1 == count;
        let mut file = vec![0; FILE_HEADER_BYTES];
        let groups = if newest { upto(u, 3) } else { 1 + upto(u, 1) };
        m.unwitnessed = file.len();
        for _ in 0..groups {
            let floor = sequence;
            m.durable = sequence;
            m.unwitnessed = file.len();
            for _ in 0..=upto(u, 2) {
                sequence += 1;
                let payload = payload(sequence, [1, 1, 2, 60][upto(u, 3)]);
                let receive_time_us = u.arbitrary::<u16>().unwrap_or(0).into();
                let at = file.len();
                put(&mut file, RecordKind::Write, sequence, floor, &payload, salt, receive_time_us);
                let place = (at, at + RECORD_HEADER_BYTES + payload.len());
                m.written.insert(sequence, Written { segment: s, place, payload, receive_time_us });
            }
            pad(&mut file, sequence, floor, salt);
        }
        if groups > 0 && (!newest || flag(u)) {
            // A power cut can still come while the mark is written: by then all before it is durable.
            m.unwitnessed = file.len();
            put(&mut file, RecordKind::Mark, sequence, sequence, &[], salt, 0);
            pad(&mut file, sequence, sequence, salt);
            m.durable = sequence;
        }
        let end = file.len() as u64;
        if released > 0 && one_in(u, 4) {
            // What an older generation of the file left behind: it was released.
            put(&mut file, RecordKind::Write, 1, 0, b"older", 30, 0);
            file.resize(file.len().next_multiple_of(BLOCK), 0);
        }
        file.resize(file.len() + BLOCK * upto(u, 1), 0);
        let header = header(FileKind::Segment, id, first_sequence, salt, file.len() as u64, predecessor);
        file[..FILE_HEADER_BYTES].copy_from_slice(&header.encode_file());
        predecessor = Some(DeclaredEnd { id, salt, end, last_sequence: sequence });
        m.segments.push((id, file));
    }
    m.last = sequence;
    let newest = released + count as u64;
    let mut entries = vec![Entry::Opened { epoch: 1, running_ms: 5, segment: if flag(u) { newest } else { released + 1 } }];
    if released > 0 {
        entries.push(Entry::Shipped { plan: 1, last_sequence: shipped });
        entries.push(Entry::Released { segment: released, last_sequence: shipped });
    }
    if one_in(u, 3) {
        entries.push(Entry::Durable { sequence: m.durable, running_ms: 7 });
    }
    let payloads: Vec<(RecordKind, Vec<u8>)> = entries.iter().map(|e| (RecordKind::Entry, e.encode().unwrap())).collect();
    m.manifest = vec![0; FILE_HEADER_BYTES];
    let mut group = Vec::new();
    let next = put_group(&mut group, &payloads, FILE_HEADER_BYTES as u64, 60, 1, 0, 0);
    m.manifest.extend(group);
    put(&mut m.manifest, RecordKind::Mark, next - 1, next - 1, &[], 60, 0);
    pad(&mut m.manifest, next - 1, next - 1, 60);
    m.manifest.resize(m.manifest.len() + BLOCK, 0);
    let header = header(FileKind::Manifest, 1, 1, 60, m.manifest.len() as u64, None);
    m.manifest[..FILE_HEADER_BYTES].copy_from_slice(&header.encode_file());
    m
}

fn header(kind: FileKind, id: u64, first_sequence: Sequence, salt: u64, file_len: u64, predecessor: Option<DeclaredEnd>) -> FileHeader {
    FileHeader { kind, minor: 0, compatible: 0, incompatible: 0, log: LOG, id, first_sequence, salt, epoch: 1, file_len, predecessor }
}

fn put(file: &mut Vec<u8>, kind: RecordKind, sequence: u64, durable_floor: u64, payload: &[u8], salt: u64, receive_time_us: i64) {
    let mut crc = flate2::Crc::new();
    crc.update(payload);
    let offset = file.len() as u64;
    let payload_len = payload.len() as u32;
    let h = RecordHeader { kind, payload_len, payload_crc: crc.sum(), salt, offset, sequence, durable_floor, receive_time_us };
    let from = file.len();
    file.extend_from_slice(&h.encode());
    file.extend_from_slice(payload);
    file.resize(from + record_len(payload.len()), 0);
}

fn pad(file: &mut Vec<u8>, sequence: u64, floor: u64, salt: u64) {
    let at = file.len() as u64;
    put_pad(file, pad_len(at), at, salt, sequence, floor, 0);
}

/// What recovery kept: payload and receive time by sequence.
type Kept = BTreeMap<Sequence, (Vec<u8>, i64)>;

fn reopen(vfs: &Arc<dyn Vfs>, set_aside: bool, seed: u64) -> Result<(OpenedLog, Kept), OpenError> {
    let mut seen = Vec::new();
    let log = open(
        vfs,
        settings(set_aside),
        StillClock::shared(seed),
        metrics(),
        &mut |v| seen.push((v.header.sequence, (v.payload.to_vec(), v.header.receive_time_us))),
        &mut |_| {},
    )?;
    // What was shown before a refusal does not count.
    assert!(seen.is_sorted_by(|a, b| a.0 < b.0), "a sequence twice, or out of order");
    Ok((log, seen.into_iter().collect()))
}

fn metrics() -> Arc<Metrics> {
    static METRICS: std::sync::OnceLock<Arc<Metrics>> = std::sync::OnceLock::new();
    Arc::clone(METRICS.get_or_init(Metrics::new))
}

/// What was done to a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Harm {
    None,
    /// What a power cut can do: only the last group is touched, which nothing has witnessed.
    PowerCut,
    /// Data areas of segments: rot.
    Rot,
    /// Anything.
    Any,
}

pub fn check(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    let harm = [Harm::None, Harm::PowerCut, Harm::Rot, Harm::Any][upto(u, 3)];
    let set_aside = !one_in(u, 8);
    let made = make(u);
    let vfs = Arc::new(MemVfs::default());
    let mut segments = made.segments.clone();
    let mut manifest = made.manifest.clone();
    let newest = segments.len() - 1;
    let mut unreadable: Vec<(usize, usize)> = Vec::new();
    let mut foul = false;
    match harm {
        Harm::None => {}
        Harm::PowerCut => {
            let file = &mut segments[newest].1;
            // Each sector that was not synced is old (zeros, or what an older generation left) or garbage.
            for sector in file[made.unwitnessed..].chunks_mut(512) {
                match upto(u, 3) {
                    0 => sector.fill(0),
                    1 => sector.fill(u.arbitrary::<u8>().unwrap_or(0xee)),
                    _ => {}
                }
            }
        }
        Harm::Rot => {
            for _ in 0..=upto(u, 3) {
                let s = upto(u, newest);
                let file = &mut segments[s].1;
                let to = file.len();
                if to <= FILE_HEADER_BYTES {
                    continue;
                }
                if one_in(u, 6) {
                    unreadable.push((s, FILE_HEADER_BYTES + upto(u, to - FILE_HEADER_BYTES - 1)));
                } else {
                    Damage::make(u, FILE_HEADER_BYTES, to).apply(file, to);
                }
            }
        }
        Harm::Any => {
            for _ in 0..=upto(u, 3) {
                let s = upto(u, newest + 1);
                let file = if s > newest { &mut manifest } else { &mut segments[s].1 };
                let to = file.len().max(1);
                match upto(u, 9) {
                    0..=3 => drop(Damage::make(u, 0, to).apply(file, to)),
                    4..=5 => drop(Damage::make(u, 0, FILE_HEADER_BYTES).apply(file, to)),
                    6 => file.truncate(upto(u, to)),
                    7 => unreadable.push((s, upto(u, to))),
                    8 => file.resize(to + upto(u, 9000), 0),
                    _ => {
                        foul = true;
                        let (a, b) = (upto(u, newest), upto(u, newest));
                        let other = segments[b].1.clone();
                        segments[a].1 = other;
                    }
                }
            }
        }
    }
    let remove = if harm == Harm::Any && one_in(u, 6) { Some(upto(u, newest + 1)) } else { None };
    for (s, (id, bytes)) in segments.iter().enumerate().filter(|(s, _)| remove != Some(*s)) {
        vfs.put(&dir().join(segment_name(*id)), bytes.clone());
        unreadable.iter().filter(|(t, _)| *t == s).for_each(|(_, at)| vfs.spoil(&dir().join(segment_name(*id)), *at as u64));
    }
    if remove != Some(newest + 1) {
        let path = dir().join(manifest_name(1));
        vfs.put(&path, manifest.clone());
        unreadable.iter().filter(|(t, _)| *t > newest).for_each(|(_, at)| vfs.spoil(&path, *at as u64));
    }
    let before = vfs.all();
    let as_vfs: Arc<dyn Vfs> = vfs.clone();
    let opened = reopen(&as_vfs, set_aside, 1);
    let intact = |w: &Written| {
        let (from, to) = w.place;
        let whole = segments[w.segment].1.get(from..to).is_some_and(|b| *b == made.segments[w.segment].1[from..to]);
        whole && !unreadable.iter().any(|(s, at)| *s == w.segment && from / BLOCK <= at / BLOCK && at / BLOCK <= (to - 1) / BLOCK)
    };
    let (log, kept) = match opened {
        Ok(x) => x,
        Err(OpenError::Refused(why)) => {
            assert!(harm == Harm::Any || harm == Harm::Rot && !set_aside, "refused after {harm:?}: {why}");
            let lock = dir().join("LOCK");
            let mut after = vfs.all();
            after.remove(&lock);
            assert_eq!(after, before, "a refusal changes nothing: {why}");
            return;
        }
        Err(e) => panic!("{e}"),
    };
    for (sequence, (payload, time)) in &kept {
        let w = made.written.get(sequence).unwrap_or_else(|| panic!("sequence {sequence} was never written"));
        assert!(w.payload == *payload && w.receive_time_us == *time, "sequence {sequence} is another record");
        assert!(foul || intact(w), "sequence {sequence} was damaged and is kept");
    }
    let report = &log.report;
    assert!(log.shared.watermarks().durable >= kept.keys().last().copied().unwrap_or(0));
    match harm {
        Harm::None => {
            assert_eq!(report.verdict(), "clean", "{:?}", report.findings);
            assert_eq!(kept.len(), made.written.len());
        }
        Harm::PowerCut => {
            assert!(!report.is_damaged(), "a power cut is no damage: {:?}", report.findings);
            let whole = made.written.range(..=made.durable).count();
            assert_eq!(kept.range(..=made.durable).count(), whole, "what was acknowledged is there");
            assert!(kept.keys().copied().eq(made.written.keys().copied().take(kept.len())), "the log has no hole");
        }
        Harm::Rot => {
            for (sequence, w) in &made.written {
                let sealed = w.segment < newest;
                if intact(w) && (sealed || *sequence <= report.floor) {
                    assert!(kept.contains_key(sequence), "sequence {sequence} is whole: {:?}", report.findings);
                }
                if !kept.contains_key(sequence) && (sealed || *sequence <= report.floor) {
                    let said = report.findings.iter().filter(|f| f.finding.label == Label::Damaged).filter_map(|f| f.finding.missing);
                    assert!(
                        said.into_iter().any(|(a, b)| (a..=b).contains(sequence)),
                        "sequence {sequence} is gone unsaid: {:?}",
                        report.findings
                    );
                }
            }
        }
        Harm::Any => {}
    }
    let (through, counted) = (report.through, log.manifest.state.damage.len());
    drop(log);
    twice(&vfs, &as_vfs, &kept, (through, counted), set_aside, flag(u));
}

/// A log that was recovered is recovered again to the same, and takes records.
fn twice(vfs: &Arc<MemVfs>, as_vfs: &Arc<dyn Vfs>, kept: &Kept, (through, counted): (Sequence, usize), set_aside: bool, append: bool) {
    let again = |seed| {
        for e in vfs.list(&dir()).unwrap().iter().filter(|e| e.name.starts_with("manifest-")) {
            vfs.trim(&dir().join(&e.name));
        }
        reopen(as_vfs, set_aside, seed).unwrap_or_else(|e| panic!("recovered once, and then refused: {e}"))
    };
    let (log, second) = again(1000);
    assert_eq!(second, *kept, "the second recovery keeps the same");
    assert_eq!(log.report.through, through);
    assert_eq!(log.manifest.state.damage.len(), counted, "damage is counted once: {:?}", log.manifest.state.damage);
    if !append {
        return;
    }
    let added = super::memory::append(log, payload_record());
    assert_eq!(added, through + 1);
    let (_, third) = again(2000);
    assert_eq!(third.len(), kept.len() + 1);
    assert!(third.contains_key(&added) && kept.iter().all(|(k, v)| third.get(k) == Some(v)));
}

fn payload_record() -> arc_ingest::format::payload::EncodedRecord {
    let t = TableBatch { table: "t".into(), time: vec![5], columns: vec![] };
    encode(&ValidBatch::new("db".into(), vec![t]).unwrap(), None, false, 0, 1 << 20).unwrap()
}
