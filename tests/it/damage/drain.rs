use super::oracle::{BLOCK, DATA, Kind};
use super::*;

/// Opens a damaged log, ships it, and gives the rows of the lake.
fn drain(what: &str, l: &Log, vfs: &MemVfs) -> (Core, Vec<(i64, String)>) {
    let sink = l.sink.fork();
    let mut c = Core::open(vfs, &sink, &l.clock, settings(DATA_AREA)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(c.ship(), "{what}: {:?}", c.shared.last_error());
    (c, sink.rows())
}

fn rows<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Vec<(i64, String)> {
    let mut rows: Vec<_> = batches.into_iter().flat_map(Batch::rows).collect();
    rows.sort();
    rows
}

/// Each record of each segment in turn, hit in its header or its payload, and some larger losses: opened, shipped, opened again.
#[test]
fn what_is_left_of_a_damaged_log_reaches_parquet_once() {
    let mut cases = 0;
    for left in ALL {
        let l = build(left);
        let first = if left == Left::Closed || exhaustive() { 0 } else { l.newest() };
        for n in first..l.segments.len() {
            let s = &l.segments[n];
            let mut damaged: Vec<(String, Vec<u8>)> = Vec::new();
            for r in &s.records {
                for at in [r.at + 33, r.at + 70].into_iter().take(if r.kind == Kind::Write { 2 } else { 1 }) {
                    let mut now = s.clean.clone();
                    now[at] ^= 2;
                    damaged.push((format!("byte {at}"), now));
                }
            }
            for at in [DATA, DATA + BLOCK] {
                let mut now = s.clean.clone();
                let to = (at + BLOCK).min(now.len());
                now[at..to].fill(0);
                damaged.push((format!("block {at}"), now));
                damaged.push((format!("cut to {at}"), s.clean[..at].to_vec()));
            }
            if n < l.newest() {
                damaged.push(("all".into(), vec![0; s.clean.len()]));
            }
            for (what, now) in damaged {
                let what = format!("{left:?}, segment {}, {what}", s.id);
                let (_, j) = l.expected(n, &now);
                let vfs = l.vfs.fork();
                vfs.put(&s.path, now);
                let (report, _) = look(&vfs);
                let before = vfs.snapshot();
                let (c, lake) = drain(&what, &l, &vfs);
                let kept = j.kept.iter().map(|s| &l.acked[s]);
                assert_eq!(lake, rows(l.released.values().chain(kept)), "{what}");
                let after = vfs.snapshot();
                for f in report.findings.iter().filter(|f| f.finding.to > f.finding.from) {
                    let s = l.segments.iter().find(|s| s.id == f.segment).unwrap();
                    let salt = oracle::u64_at(&s.clean, 64);
                    let name = format!("{salt:016x}-{:016x}-{}.bin", f.finding.from, f.finding.label.name());
                    // What was cut off cannot be kept.
                    let to = (f.finding.to as usize).min(before[&s.path].len());
                    let from = (f.finding.from as usize).min(to);
                    let bytes = before[&s.path].get(from..to).unwrap_or_default();
                    let kept = after.get(&Path::new(DIR).join("side").join(&name)).map(Vec::as_slice).unwrap_or_default();
                    assert!(kept == bytes, "{what}: the bytes of {f:?} are not kept as {name}");
                }
                // A restart finds the rest shipped.
                drop(c);
                let c = Core::open(&vfs, &l.sink, &l.clock, settings(DATA_AREA)).unwrap();
                let w = c.shared.watermarks();
                assert_eq!((w.shipped, w.durable), (j.last, j.last), "{what}");
                cases += 1;
            }
        }
    }
    assert!(cases > 80, "{cases}");
}

/// The record that defines the columns is lost: the rows of the others still have them.
#[test]
fn a_lost_definition_costs_only_its_own_record() {
    let (vfs, sink, clock) = (MemVfs::default(), MemSink::default(), TestClock::new(5));
    let mut c = Core::open(&vfs, &sink, &clock, settings(DATA_AREA)).unwrap();
    let batches = [1, 2, 3].map(|id| Batch::new(id, 2, 10));
    for b in &batches {
        c.store(*b);
        c.rotate();
    }
    drop(c);
    let s = segments_of(&vfs);
    let first = s.iter().flat_map(|l| &l.records).find(|r| r.kind == Kind::Write).unwrap();
    vfs.edit(&s[0].path, |b| b[first.at + 70] ^= 1);
    let mut c = Core::open(&vfs, &sink, &clock, settings(DATA_AREA)).unwrap();
    assert_eq!(c.seen.iter().map(|(s, _)| *s).collect::<Vec<_>>(), [2, 3]);
    assert!(c.ship(), "{:?}", c.shared.last_error());
    assert_eq!(sink.rows(), rows(&batches[1..]));
}

/// A log put back as it was before it was drained, with the lake as it is now, and the one whose manifest alone is older.
#[test]
fn a_log_put_back_from_a_copy_doubles_nothing() {
    let l = build(Left::Marked);
    let copy = l.vfs.fork();
    let expected = rows(l.released.values().chain(l.acked.values()));
    let mut c = Core::open(&l.vfs, &l.sink, &l.clock, settings(DATA_AREA)).unwrap();
    let early = manifest_of(&l.vfs);
    let early = (early.clone(), l.vfs.get(&early));
    c.ship_some(8);
    drop(c);
    assert!(l.sink.rows().len() > rows(l.released.values()).len(), "something was shipped");
    let older = l.vfs.fork();
    let newer = manifest_of(&older);
    older.edit(&newer, |b| *b = early.1.clone());
    for (what, vfs) in [("all of it", copy), ("the manifest", older)] {
        let sink = l.sink.fork();
        let Ok(mut c) = Core::open(&vfs, &sink, &l.clock, settings(DATA_AREA)) else { continue };
        c.ship();
        let rows = sink.rows();
        assert!(rows.windows(2).all(|w| w[0] != w[1]), "{what}: rows are doubled");
        assert!(rows.iter().all(|r| expected.contains(r)), "{what}");
    }
}

/// The mark of the last group was written and not synced when the power went: whatever arrived of it, over what an earlier use of
/// the file left, is no damage, to the first recovery or the next.
#[test]
fn a_torn_mark_is_no_damage_to_a_later_recovery() {
    let l = build(Left::Marked);
    let s = &l.segments[l.newest()];
    let mark = s.records.iter().rfind(|r| r.kind == Kind::Mark).unwrap().at;
    for lost in (0usize..256).step_by(if exhaustive() { 1 } else { 9 }).chain([254, 255]) {
        for older in [false, true] {
            let vfs = l.vfs.fork();
            vfs.edit(&s.path, |b| {
                for at in (0..8).filter(|k| lost & (1 << k) != 0).map(|k| k * 512) {
                    b[mark + at..mark + at + 512].copy_from_slice(if older { &l.old[0].1[DATA + at..DATA + at + 512] } else { &[0; 512] });
                }
            });
            for round in 0..3 {
                let c = Core::open(&vfs, &l.sink.fork(), &l.clock, settings(DATA_AREA)).unwrap();
                assert!(!c.report.is_damaged(), "lost {lost:b}, older {older}, recovery {round}: {:?}", c.report.findings);
                assert_eq!(c.seen.len(), l.acked.len());
            }
        }
    }
}
