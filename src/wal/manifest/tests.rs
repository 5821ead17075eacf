use std::path::Path;

use super::*;
use crate::clock::SystemClock;
use crate::format::manifest::{OutputFile, Plan, PlanColumn, PlanInput, PlanOutput, PlanSchema, PlanWriter, SegmentEntry};
use crate::wal::memory::{DiskCall, MemoryDisk};

const DIR: &str = "/log";

fn writer() -> PlanWriter {
    PlanWriter {
        version: "0.1.0".into(),
        compression: "zstd".into(),
        level: 1,
        row_group_rows: 1 << 20,
        layout: "hive".into(),
        encoding: None,
        row_group_bytes: None,
    }
}

/// Plan `number` of one record: an output for each of these tables of so many columns.
fn plan(number: u64, tables: &[&str], columns: usize) -> Plan {
    let column = |c: usize| PlanColumn { name: format!("column_{c:04}"), ty: 2, tag: false };
    let schema =
        |t: &&str| PlanSchema { database: "db".into(), table: (*t).into(), version: 0, columns: (0..columns).map(column).collect() };
    let output = |n: usize| PlanOutput {
        schema: n as u32,
        hour: 490_000,
        first_sequence: number,
        last_sequence: number,
        rows: 1,
        name: format!(
            "db/{}/date=2026-01-01/hour=00/8f14e45f-ceea-467f-a09c-3c1d5b7a9002-{number:020}-{number:020}-{n:04}.parquet",
            tables[n]
        ),
    };
    Plan {
        plan: number,
        first_sequence: number,
        last_sequence: number,
        inputs: vec![PlanInput { segment: number, salt: 5, end: 12288, first_sequence: number, last_sequence: number }],
        writer: writer(),
        schemas: tables.iter().map(schema).collect(),
        outputs: (0..tables.len()).map(output).collect(),
    }
}

fn file(length: u64) -> OutputFile {
    OutputFile { length, sha256: format!("{length:064x}"), rows: 1, set_aside: vec![] }
}

fn shipped(plan: u64) -> Entry {
    Entry::Shipped { plan, last_sequence: plan }
}

fn create(disk: &MemoryDisk) -> Manifest {
    disk.create_dir_all(Path::new(DIR)).unwrap();
    let state = ManifestState { epoch: 1, next_plan: 1, ..ManifestState::default() };
    Manifest::create(Arc::new(disk.clone()), SystemClock::shared(), Path::new(DIR), LogId([3; 16]), state, None).unwrap()
}

fn loaded(disk: &MemoryDisk) -> ManifestState {
    load(disk, Path::new(DIR)).unwrap().unwrap().state
}

fn said(s: &ManifestState) -> String {
    format!("{:?}", ManifestState { keys: Vec::new(), ..s.clone() })
}

/// What outsiders found: 100 MB of manifest and 540 MB of memory after 2,000 flushes of a table of 1,000 columns.
#[test]
fn a_table_of_a_thousand_columns_does_not_make_the_manifest_grow_with_each_flush() {
    let disk = MemoryDisk::default();
    let mut m = create(&disk);
    let (mut longest, mut rewrites) = (0, 0);
    for k in 1..=1500 {
        m.append(vec![Entry::Plan(plan(k, &["wide"], 1000)), file(k).intent(k, 0)], &[]).unwrap();
        m.append(vec![file(k).commit(k, 0), shipped(k)], &[]).unwrap();
        longest = longest.max(m.allocated());
        if m.wants_rewrite() {
            m.rewrite(Vec::new()).unwrap();
            rewrites += 1;
            assert!(m.end() < 2 << 20, "plan {k}: {} bytes", m.end());
        }
    }
    assert!(rewrites >= 2 && longest < REWRITE_ABOVE + (3 << 20), "{rewrites} rewrites, {longest} bytes");
    let s = loaded(&disk);
    assert_eq!(said(&s), said(&m.state), "what is on disk and what is in memory differ");
    assert_eq!((s.plans.len(), s.shipped, s.next_plan), (1500, 1500, 1501));
    let in_memory: usize = s.plans.values().map(|p| p.plan.schemas.len() + p.plan.inputs.len() + p.intents.len()).sum();
    assert_eq!(in_memory, 0, "only the files of shipped plans are kept");
    assert!(s.plans.values().all(|p| p.commits.len() == 1 && p.plan.outputs[0].name.contains("wide")));
}

#[test]
fn files_of_shipped_plans_are_forgotten_by_their_bytes_and_the_newest_plan_is_kept() {
    let disk = MemoryDisk::default();
    let mut m = create(&disk);
    for k in 1..=20 {
        m.append(vec![Entry::Plan(plan(k, &["a", "b"], 3)), file(k).commit(k, 0), file(k).commit(k, 1), shipped(k)], &[]).unwrap();
    }
    let all = m.state.history_bytes;
    let mut s = m.state.clone();
    s.forget_history(all);
    assert_eq!(s.plans.len(), 20);
    s.forget_history(all - 1);
    assert_eq!(s.plans.keys().copied().collect::<Vec<_>>(), (2..=20).collect::<Vec<_>>());
    s.forget_history(all / 2);
    assert_eq!(s.plans.keys().copied().collect::<Vec<_>>(), (11..=20).collect::<Vec<_>>());
    s.forget_history(0);
    assert_eq!((s.plans.keys().copied().collect::<Vec<_>>(), s.shipped, s.next_plan), (vec![20], 20, 21));
    // An open plan is no history.
    s.apply(Entry::Plan(plan(21, &["a"], 3))).unwrap();
    s.forget_history(0);
    assert_eq!(s.plans.keys().copied().collect::<Vec<_>>(), [20, 21]);
    assert_eq!(s.plans[&21].plan, plan(21, &["a"], 3));
}

/// What is not settled is never dropped, however little is kept of the rest: it is built from what the manifest says of it.
#[test]
fn a_deferred_output_outlives_all_that_is_forgotten_of_its_plan() {
    let disk = MemoryDisk::default();
    let mut m = create(&disk);
    for k in 1..=300 {
        let entries = vec![
            Entry::Plan(plan(k, &["fine", "stuck"], 1000)),
            file(k).intent(k, 1),
            file(k).commit(k, 0),
            Entry::Deferred { plan: k, output: 1, bytes: 9000 },
            shipped(k),
        ];
        m.append(entries, &[]).unwrap();
    }
    m.append(vec![file(7777).intent(3, 1), Entry::Suspect { plan: 3, output: 1, sequence: 3 }], &[]).unwrap();
    m.state.forget_history(0);
    m.rewrite(Vec::new()).unwrap();
    assert!(m.end() < 1 << 20, "300 outputs that wait share their schema: {} bytes", m.end());
    let mut s = loaded(&disk);
    assert_eq!(said(&s), said(&m.state));
    assert_eq!((s.plans.len(), s.deferred.len(), s.waiting.len()), (1, 300, 300));

    let whole = plan(3, &["fine", "stuck"], 1000);
    let p = s.plan_of_deferred(3, 1).unwrap();
    assert_eq!((p.plan, p.first_sequence, p.last_sequence, &p.writer), (3, 3, 3, &whole.writer));
    assert_eq!(p.outputs[1], PlanOutput { schema: 0, ..whole.outputs[1].clone() });
    assert_eq!(p.schemas, [whole.schemas[1].clone()]);
    let (o, schema) = s.deferred_file(3, 1).unwrap();
    assert_eq!((o.rows, schema), (1, &whole.schemas[1]));
    assert_eq!((s.intents_of(3, 1), s.suspects_of(3)), (&[file(3), file(7777)][..], vec![(1, 3)]));
    assert!(s.is_committed(3, 0) && !s.is_committed(3, 1));

    s.apply(file(7777).commit(3, 1)).unwrap();
    assert!(s.is_committed(3, 1) && s.deferred_file(3, 1).is_none());
    // Its plan is still known: the file becomes a part of it.
    s.apply(file(5).commit(300, 1)).unwrap();
    assert_eq!((s.plans[&300].commits.len(), s.deferred.len(), s.waiting.len()), (2, 298, 298));
    assert!(s.apply(file(5).commit(299, 0)).is_err(), "nothing is known of it, and nothing waits");
}

/// The state that a manifest of 1.0 leads to: shipped plans are whole there, deferred outputs are named by their plan.
#[test]
fn a_deferred_output_of_a_manifest_of_1_0_waits_with_all_it_needs() {
    let mut s = ManifestState { next_plan: 1, ..ManifestState::default() };
    for e in [
        Entry::Plan(plan(1, &["a", "b"], 2)),
        Entry::Attempt { plan: 1 },
        Entry::Deferred { plan: 1, output: 1, bytes: 1 },
        file(1).commit(1, 0),
        shipped(1),
    ] {
        s.apply(e).unwrap();
    }
    assert_eq!(s.plan_of_deferred(1, 1).unwrap().schemas, [plan(1, &["a", "b"], 2).schemas[1].clone()]);
    assert!(s.snapshot().iter().any(|e| matches!(e, Entry::Waiting { outputs, .. } if outputs.len() == 1)));
    assert!(!s.snapshot().iter().any(|e| matches!(e, Entry::Deferred { .. })));
}

/// Two write to the manifest: what failed for one is over for the other, who does not know what the file holds.
#[test]
fn after_a_failed_sync_of_the_manifest_neither_writer_appends() {
    let disk = MemoryDisk::default();
    let mut m = create(&disk);
    let entry = SegmentEntry { segment: 1, salt: 7, first_sequence: 1, durable: 1 };
    disk.set_hook(|call, _| (call == DiskCall::Sync).then_some(libc::EIO));
    assert!(matches!(m.acknowledging().add(entry), Err(AppendFailure::Fatal(_))));
    disk.set_hook(|_, _| None);
    assert!(matches!(m.append(vec![shipped(1)], &[]), Err(AppendFailure::Fatal(_))));
    assert!(matches!(m.acknowledging().add(entry), Err(AppendFailure::Fatal(_))));
    assert_eq!(m.acknowledged(), None);
}

/// What the committer has said stands in a rewritten manifest as well, and the newest of it counts.
#[test]
fn a_rewrite_keeps_what_was_said_of_the_newest_segment() {
    let disk = MemoryDisk::default();
    let mut m = create(&disk);
    let of = |segment, durable| SegmentEntry { segment, salt: 7 * segment, first_sequence: 1, durable };
    for s in [of(1, 3), of(2, 5), of(2, 9)] {
        m.acknowledging().add(s).unwrap();
    }
    assert_eq!(loaded(&disk).acknowledged, Some(of(2, 9)));
    m.rewrite(Vec::new()).unwrap();
    assert_eq!((loaded(&disk).acknowledged, loaded(&disk).newest_segment, m.acknowledged()), (Some(of(2, 9)), 2, Some(of(2, 9))));
    m.acknowledging().add(of(3, 10)).unwrap();
    assert_eq!(loaded(&disk).acknowledged, Some(of(3, 10)));
}
