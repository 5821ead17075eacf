//! Entries of the manifest, and manifests made of them.

use std::path::Path;
use std::sync::Arc;

use arbitrary::Unstructured;
use arc_ingest::format::file_header::{DeclaredEnd, FileHeader, FileKind};
use arc_ingest::format::manifest::{
    ColumnEntry, Entry, Plan, PlanColumn, PlanInput, PlanOutput, PlanSchema, PlanWriter, SetAside, StoredKey, TableEntry, get_keys,
    put_keys,
};
use arc_ingest::format::payload::KeyEntry;
use arc_ingest::format::record::RecordKind;
use arc_ingest::limits::{BLOCK, FILE_HEADER_BYTES};
use arc_ingest::types::LogId;
use arc_ingest::vfs::Vfs;
use arc_ingest::wal::files::manifest_name;
use arc_ingest::wal::manifest::{Loaded, Manifest, ManifestError, ManifestState, load, put_group};

use super::build::{Damage, flag, one_in, upto};
use super::held;
use super::memory::{MemVfs, StillClock};

pub fn check(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode % 4 {
        0 => entry(rest),
        1 => keys(rest),
        2 => any_payloads(rest),
        _ => history(&mut Unstructured::new(rest)),
    }
}

fn entry(data: &[u8]) {
    let Ok(e) = Entry::decode(data) else { return };
    let bytes = e.encode().unwrap();
    assert_eq!(Entry::decode(&bytes).unwrap(), e);
    fold(&[(RecordKind::Entry, bytes)]);
}

fn keys(data: &[u8]) {
    let Ok(k) = held::at_most(8 * data.len() + 4096, || get_keys(data)) else { return };
    assert_eq!(put_keys(&k), data, "a list of keys has one encoding");
}

/// One payload a line, as entry or (after `!`) as keys.
fn any_payloads(data: &[u8]) {
    let payloads: Vec<(RecordKind, Vec<u8>)> = data
        .split(|b| *b == b'\n')
        .take(30)
        .map(|l| match l.split_first() {
            Some((b'!', k)) => (RecordKind::Keys, k.to_vec()),
            _ => (RecordKind::Entry, l.to_vec()),
        })
        .collect();
    fold(&payloads);
}

const SALT: u64 = 5;

fn dir() -> &'static Path {
    Path::new("/log")
}

fn file(payloads: &[(RecordKind, Vec<u8>)]) -> Vec<u8> {
    let mut group = Vec::new();
    if !payloads.is_empty() {
        put_group(&mut group, payloads, FILE_HEADER_BYTES as u64, SALT, 1, 0, 0);
    }
    let header = FileHeader {
        kind: FileKind::Manifest,
        minor: 0,
        compatible: 0,
        incompatible: 0,
        log: LogId([1; 16]),
        id: 1,
        first_sequence: 1,
        salt: SALT,
        epoch: 1,
        file_len: (FILE_HEADER_BYTES + group.len()) as u64,
        predecessor: None,
    };
    let mut out = header.encode_file();
    out.extend(group);
    out
}

fn read(vfs: &dyn Vfs) -> Option<Loaded> {
    match load(vfs, dir()) {
        Ok(l) => l,
        Err(ManifestError::Damaged { .. }) => None,
        Err(e) => panic!("{e}"),
    }
}

/// Reads a manifest of these payloads; when it can be read, its rewritten form is read too.
fn fold(payloads: &[(RecordKind, Vec<u8>)]) -> Option<ManifestState> {
    let vfs = MemVfs::default();
    vfs.put(&dir().join(manifest_name(1)), file(payloads));
    let state = read(&vfs)?.state;
    // It need not add up, but its snapshot must be readable, or refused for what it says, without a panic.
    rewritten(&state);
    Some(state)
}

/// The state as a new manifest says it.
fn rewritten(state: &ManifestState) -> Option<ManifestState> {
    let vfs = Arc::new(MemVfs::default());
    let as_vfs: Arc<dyn Vfs> = vfs.clone();
    let before = DeclaredEnd { id: 1, salt: SALT, end: 12288, last_sequence: 9 };
    Manifest::create(as_vfs, StillClock::shared(1), dir(), LogId([1; 16]), state.clone(), Some((before, vec![]))).unwrap();
    vfs.trim(&dir().join(manifest_name(2)));
    Some(read(&*vfs)?.state)
}

/// Everything that a state says, plans that are done but for what a rewrite keeps of them.
fn said(s: &ManifestState) -> String {
    let mut out = format!(
        "{:?}",
        (
            (s.epoch, s.running_ms, s.next_plan, s.shipped, s.released_segment, s.released, s.durable, (s.newest_segment, s.acknowledged)),
            (&s.tables, &s.keys, (&s.deferred, &s.waiting), &s.damage)
        )
    );
    for (k, p) in &s.plans {
        out += &format!("\n{k} {:?}", (&p.plan, p.attempts, p.shipped, &p.commits, &p.intents, &p.suspects));
    }
    out
}

/// What a server could have written: folded, rewritten and folded again it says the same; damaged, it is refused or says what the
/// undamaged one said at some earlier time.
fn history(u: &mut Unstructured<'_>) {
    let mut payloads = vec![(RecordKind::Entry, Entry::Opened { epoch: 1, running_ms: 0, segment: 1 }.encode().unwrap())];
    let mut now = Now { plan: 0, open: None, sequence: 0, segment: 0, deferred: Vec::new(), committed: Vec::new() };
    for _ in 0..upto(u, 24) {
        if one_in(u, 8) {
            payloads.push((RecordKind::Keys, put_keys(&some_keys(u))));
        } else {
            let e = now.entry(u);
            let bytes = e.encode().unwrap();
            assert_eq!(Entry::decode(&bytes).unwrap(), e);
            payloads.push((RecordKind::Entry, bytes));
        }
    }
    let vfs = MemVfs::default();
    let path = dir().join(manifest_name(1));
    vfs.put(&path, file(&payloads));
    let state = read(&vfs).expect("what was written is read").state;
    let again = rewritten(&state).expect("what was rewritten is read");
    assert_eq!(said(&again), said(&state));

    // In groups, the last one perhaps torn.
    let cut = upto(u, payloads.len() - 1).max(1);
    let mut bytes = file(&payloads[..cut]);
    let durable = bytes.len();
    let marked = flag(u);
    if cut < payloads.len() {
        let mut group = Vec::new();
        put_group(&mut group, &payloads[cut..], durable as u64, SALT, cut as u64 + 1, cut as u64, 0);
        bytes.extend(group);
    }
    let upto_cut = {
        let vfs = MemVfs::default();
        vfs.put(&path, file(&payloads[..cut]));
        read(&vfs).expect("its beginning is read").state
    };
    bytes.resize(bytes.len() + BLOCK, 0);
    let from = if marked { durable } else { 0 };
    for _ in 0..=upto(u, 2) {
        let to = bytes.len();
        Damage::make(u, from, to).apply(&mut bytes, to);
    }
    vfs.put(&path, bytes);
    let Some(l) = read(&vfs) else {
        assert!(!marked || cut < payloads.len() || from == 0, "damage behind what was durable does not refuse");
        return;
    };
    let read = said(&l.state);
    let known: Vec<String> = (1..=payloads.len())
        .map(|n| {
            let vfs = MemVfs::default();
            vfs.put(&path, file(&payloads[..n]));
            said(&super::manifest::read(&vfs).unwrap().state)
        })
        .collect();
    assert!(known.contains(&read), "it says what was never said");
    if marked && cut < payloads.len() {
        let least = said(&upto_cut);
        let at = known.iter().position(|k| *k == least).unwrap();
        assert!(known[at..].contains(&read), "what was durable is forgotten");
    }
}

fn some_keys(u: &mut Unstructured<'_>) -> Vec<StoredKey> {
    (0..upto(u, 3))
        .map(|_| {
            let n: u8 = u.arbitrary().unwrap_or(0);
            (u64::from(n), KeyEntry { id: [n; 16], body: [n ^ 1; 32], running_ms: u.arbitrary().unwrap_or(0), status: 204 })
        })
        .collect()
}

/// Where a history is.
struct Now {
    plan: u64,
    open: Option<Plan>,
    sequence: u64,
    segment: u64,
    deferred: Vec<(u64, u32)>,
    committed: Vec<(u64, u32)>,
}

impl Now {
    fn entry(&mut self, u: &mut Unstructured<'_>) -> Entry {
        let n = u64::from(u.arbitrary::<u16>().unwrap_or(1));
        let choice = upto(u, 12);
        if let (6..=12, Some(p)) = (choice, self.open.clone()) {
            let plan = p.plan;
            let output = upto(u, p.outputs.len() - 1) as u32;
            let set_aside = || vec![SetAside { sequence: n, rows: 1, reason: "é\n".into() }];
            return match choice {
                6 => Entry::Attempt { plan },
                7 => Entry::Stopped { plan },
                8 => Entry::Suspect { plan, output, sequence: n },
                9 => Entry::Intent { plan, output, length: n, sha256: format!("{n:x}"), rows: 1, set_aside: vec![] },
                10 => {
                    self.committed.push((plan, output));
                    self.deferred.retain(|d| *d != (plan, output));
                    Entry::Commit { plan, output, length: n, sha256: format!("{n:x}"), rows: 1, set_aside: set_aside() }
                }
                // What is committed is not put off any more.
                11 if self.committed.contains(&(plan, output)) => Entry::Attempt { plan },
                11 => {
                    self.deferred.push((plan, output));
                    Entry::Deferred { plan, output, bytes: n }
                }
                _ => {
                    self.open = None;
                    Entry::Shipped { plan, last_sequence: p.last_sequence }
                }
            };
        }
        match choice {
            0 => Entry::Opened { epoch: n, running_ms: n, segment: n },
            1 if self.deferred.is_empty() => Entry::Released { segment: n, last_sequence: n },
            1 => {
                let (plan, output) = self.deferred.remove(0);
                self.deferred.retain(|d| *d != (plan, output));
                self.committed.push((plan, output));
                Entry::Commit { plan, output, length: n, sha256: String::new(), rows: 1, set_aside: vec![] }
            }
            2 => Entry::Durable { sequence: n, running_ms: n },
            3 => Entry::Damage { segment: n, from: n, to: n + 8, label: "damaged".into(), first_missing: 0, last_missing: 0 },
            4 | 5 => {
                let column = |c: u64| ColumnEntry { name: format!("c{c}"), ty: 1, tag: false, since: c, widened: (c > 2).then_some(c) };
                let table =
                    TableEntry { database: "db".into(), table: format!("t{}", n % 4), since: n, columns: (0..n % 4).map(column).collect() };
                Entry::Catalog { last_sequence: n, tables: vec![table] }
            }
            _ => Entry::Plan(self.plan(u)),
        }
    }

    fn plan(&mut self, u: &mut Unstructured<'_>) -> Plan {
        self.plan += 1;
        self.segment += 1;
        let (first, last) = (self.sequence + 1, self.sequence + 5);
        self.sequence = last;
        let output =
            |n: usize| PlanOutput { schema: 0, hour: n as i64, first_sequence: first, last_sequence: last, rows: 1, name: format!("o{n}") };
        let p = Plan {
            plan: self.plan,
            first_sequence: first,
            last_sequence: last,
            inputs: vec![PlanInput { segment: self.segment, salt: 7, end: 12288, first_sequence: first, last_sequence: last }],
            writer: PlanWriter {
                version: "x".into(),
                compression: "zstd".into(),
                level: 1,
                row_group_rows: 9,
                layout: "hive".into(),
                encoding: None,
                row_group_bytes: None,
            },
            schemas: vec![PlanSchema {
                database: "db".into(),
                table: "t".into(),
                version: 0,
                columns: vec![PlanColumn { name: "c".into(), ty: 3, tag: true }],
            }],
            outputs: (0..=upto(u, 2)).map(output).collect(),
        };
        self.open = Some(p.clone());
        p
    }
}
