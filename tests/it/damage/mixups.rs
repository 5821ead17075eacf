use super::oracle::{BLOCK, DATA, Kind};
use super::*;

#[test]
fn missing_segments_are_refused_or_known_to_be_missing() {
    for left in ALL {
        let l = build(left);
        let known = l.inspect().0.state.newest_segment;
        for n in 0..l.segments.len() {
            let s = &l.segments[n];
            let vfs = l.vfs.fork();
            vfs.take(&s.path);
            if n < l.newest() {
                refused(&l, &vfs, &format!("{left:?}, without segment {}", s.id), "missing before");
            } else if known >= s.id {
                refused(&l, &vfs, &format!("{left:?}, without the newest"), "the manifest knows segment");
            } else {
                // The page's known limit, unless the log was closed in good order.
                let (report, seen) = look(&vfs);
                let there: Vec<Sequence> = l.payloads.keys().copied().filter(|q| *q < s.first).collect();
                assert_eq!(seen.iter().map(|(q, _)| *q).collect::<Vec<_>>(), there);
                let missing: Vec<_> = report.findings.iter().filter_map(|f| f.finding.missing).collect();
                let last = *l.payloads.keys().last().unwrap();
                assert_eq!(missing, if left == Left::Closed { vec![(s.first, last)] } else { vec![] });
            }
        }
    }
}

#[test]
fn segments_under_other_names_are_refused() {
    let l = build(Left::Marked);
    let other = {
        let o = build_with(Left::Marked, 99);
        o.segments.iter().map(|s| (s.path.clone(), s.clean.clone())).collect::<Vec<_>>()
    };
    let next = l.segments[l.newest()].id + 1;
    for (n, s) in l.segments.iter().enumerate() {
        let named = format!("its header says segment {}", s.id);
        // Copied over another one, or to the name behind the last.
        for to in l.segments.iter().map(|x| x.id).chain([next]).filter(|id| *id != s.id) {
            let vfs = l.vfs.fork();
            vfs.put(&segment(to), s.clean.clone());
            refused(&l, &vfs, &format!("{} as {to}", s.id), &format!("{named}, its name says {to}"));
        }
        for x in &l.segments[n + 1..] {
            let vfs = l.vfs.fork();
            vfs.put(&s.path, x.clean.clone());
            vfs.put(&x.path, s.clean.clone());
            refused(&l, &vfs, "swapped", &format!("its header says segment {}, its name says {}", x.id, s.id));
        }
        // Renamed to the name behind the last.
        let vfs = l.vfs.fork();
        vfs.take(&s.path);
        vfs.put(&segment(next), s.clean.clone());
        refused(&l, &vfs, "renamed", &named);
        // What the file held when it had another number.
        for (_, bytes) in &l.old {
            let vfs = l.vfs.fork();
            vfs.put(&s.path, bytes.clone());
            refused(&l, &vfs, "the use before", &format!("its name says {}", s.id));
        }
        // Of another log.
        let vfs = l.vfs.fork();
        vfs.put(&s.path, other[n].1.clone());
        refused(&l, &vfs, "another log's", "belongs to log");
        // No file at all.
        let vfs = l.vfs.fork();
        vfs.take(&s.path);
        vfs.make_dir(&s.path);
        refused(&l, &vfs, "a directory", "expected a file");
    }
}

#[test]
fn a_released_segment_that_came_back_is_removed_or_left_alone() {
    let l = build(Left::Marked);
    for (path, bytes) in &l.old {
        for damage in [None, Some(300), Some(DATA), Some(DATA + 70)] {
            let vfs = l.vfs.fork();
            let mut b = bytes.clone();
            damage.into_iter().for_each(|at| b[at] ^= 1);
            vfs.put(path, b);
            let c = Core::open(&vfs, &l.sink.fork(), &l.clock, settings(DATA_AREA)).unwrap();
            assert_eq!(c.seen.iter().map(|(s, _)| *s).collect::<Vec<_>>(), l.acked.keys().copied().collect::<Vec<_>>());
            assert!(c.report.findings.is_empty() && !vfs.snapshot().contains_key(path));
        }
        let vfs = l.vfs.fork();
        vfs.put(path, vec![0; bytes.len()]);
        let c = Core::open(&vfs, &l.sink.fork(), &l.clock, settings(DATA_AREA)).unwrap();
        assert!(c.report.findings.is_empty() && vfs.snapshot().contains_key(path), "what nobody can read is not removed");
    }
}

/// Everything that the entries of a manifest say.
fn state(r: &Report) -> String {
    let s = &r.state;
    let mut out = format!(
        "{} {} {} {} {} {} {:?} {:?} {} {:?} {:?} {:?}",
        s.epoch,
        s.running_ms,
        s.next_plan,
        s.shipped,
        s.released_segment,
        s.released,
        s.tables,
        s.keys,
        s.durable,
        (&s.deferred, &s.waiting),
        s.damage,
        (s.newest_segment, s.acknowledged)
    );
    for p in s.plans.values() {
        let intents: BTreeMap<_, _> = p.intents.iter().collect();
        out += &format!("\n{:?} {} {intents:?} {:?} {:?} {}", p.plan, p.attempts, p.commits, p.suspects, p.shipped);
    }
    out
}

/// The manifest of a log, in the states that matter: as it was left; without the mark of its last group, which is never synced; and
/// right after it was rewritten.
fn manifests() -> Vec<(String, Log)> {
    let mut out = Vec::new();
    for left in [Left::Closed, Left::Marked] {
        for (what, groups) in [("whole", None), ("unmarked", Some(0)), ("one group", Some(1))] {
            let mut l = build(left);
            if let Some(keep) = groups {
                let marks: Vec<usize> = l.manifest.records.iter().filter(|r| r.kind == Kind::Mark).map(|r| r.at).collect();
                let from = if keep == 0 { *marks.last().unwrap() } else { marks[0] + BLOCK };
                l.vfs.edit(&l.manifest.path, |b| b[from..].fill(0));
                l.manifest = Layout::of(l.manifest.path.clone(), l.vfs.get(&l.manifest.path));
            }
            out.push((format!("{left:?}, {what}"), l));
        }
    }
    out
}

/// The manifest of `l` holds `now`.
fn check_manifest(what: &str, l: &Log, now: &[u8], clean: &str) {
    l.vfs.put(&l.manifest.path, now.to_vec());
    let (report, seen) = look(&l.vfs);
    let name = l.manifest.path.to_str().unwrap();
    let j = judge(&l.manifest, now, l.manifest.first - 1, None);
    let cut = now.len() < l.manifest.clean.len();
    let headless = !l.manifest.has_header(now);
    // What a manifest begins with was synced before it got its name: its loss is never a torn tail.
    let there: Vec<_> = l.manifest.records.iter().take_while(|r| now.get(r.at..r.end) == l.manifest.clean.get(r.at..r.end)).collect();
    let later = l.manifest.records.iter().filter(|r| r.floor >= l.manifest.first);
    let witnessed = later.into_iter().any(|r| now.get(r.at..r.end) == l.manifest.clean.get(r.at..r.end));
    let begun_lost = !witnessed && !there.last().map_or(DATA, |r| r.next).is_multiple_of(BLOCK) || j.kept.is_empty();
    let damaged = j.findings.iter().any(|f| f.0 == "damaged");
    if headless || cut || damaged || begun_lost {
        let refusal = report.refusals.iter().find(|r| r.contains(name) && r.contains("Restore it from a copy"));
        assert!(refusal.is_some(), "{what}: expected a refusal, found {:?}", report.refusals);
        if let (false, Some(f)) = (headless || cut, j.findings.iter().find(|f| f.0 == "damaged")) {
            assert!(refusal.unwrap().contains(&format!("offset {}", f.1)), "{what}: {refusal:?}, expected offset {}", f.1);
        }
        return;
    }
    assert!(report.refusals.is_empty(), "{what}: {:?}", report.refusals);
    let torn = j.findings.iter().any(|f| f.0 == "torn");
    assert_eq!(report.manifest.as_ref().unwrap().torn.is_some(), torn, "{what}");
    let all = l.manifest.records.iter().filter(|r| r.kind.numbered()).count();
    if j.kept.len() == all {
        assert_eq!(state(&report), clean, "{what}");
    }
    assert_eq!(report.manifest.as_ref().unwrap().last_sequence, j.last, "{what}");
    assert_eq!(seen.len(), l.acked.len(), "{what}: rows that are in the log are read, whatever the manifest's tail said");
}

#[test]
fn every_flipped_bit_of_a_manifest_is_harmless_or_refused() {
    for (what, l) in manifests() {
        let clean = state(&l.inspect().0);
        let m = &l.manifest;
        for at in 0..m.clean.len() {
            let dense = m.at(at).is_some_and(|r| at < r.at + 64 && at.is_multiple_of(5) || r.kind.numbered() && at.is_multiple_of(23));
            let bits = match () {
                () if exhaustive() => 0..8,
                () if dense || at.is_multiple_of(127) => (at % 8) as u8..(at % 8) as u8 + 1,
                () => continue,
            };
            for bit in bits {
                let mut now = m.clean.clone();
                now[at] ^= 1 << bit;
                check_manifest(&format!("{what}, byte {at}, bit {bit}"), &l, &now, &clean);
            }
        }
    }
}

#[test]
fn every_truncated_or_zeroed_manifest_is_refused_or_torn() {
    for (what, l) in manifests() {
        let clean = state(&l.inspect().0);
        let m = &l.manifest;
        let step = if exhaustive() { 1 } else { 211 };
        let edges = m.records.iter().flat_map(|r| [r.at, r.at + 64, r.end, r.next]);
        let lengths = (0..m.clean.len()).step_by(step).chain([255, 256, 4096, 4352, 8192]).chain(edges);
        let all: std::collections::BTreeSet<usize> = lengths.collect();
        for at in all {
            check_manifest(&format!("{what}, cut to {at}"), &l, &m.clean[..at], &clean);
            let mut now = m.clean.clone();
            now[at..].fill(0);
            check_manifest(&format!("{what}, zeros from {at}"), &l, &now, &clean);
            if at.is_multiple_of(BLOCK) {
                for to in (at + BLOCK..=m.clean.len()).step_by(if exhaustive() { BLOCK } else { 3 * BLOCK }) {
                    let mut now = m.clean.clone();
                    now[at..to].fill(0);
                    check_manifest(&format!("{what}, zeros in {at}..{to}"), &l, &now, &clean);
                }
            }
        }
    }
}

#[test]
fn a_missing_or_misnamed_manifest_is_refused_and_an_older_one_beside_it_does_not_count() {
    let l = build(Left::Marked);
    let (path, id) = (&l.manifest.path, l.manifest.id);
    let other = Path::new(DIR).join(files::manifest_name(id + 1));
    let vfs = l.vfs.fork();
    vfs.take(path);
    refused(&l, &vfs, "no manifest", "no manifest");
    vfs.put(&other, l.manifest.clean.clone());
    refused(&l, &vfs, "renamed", &format!("its header says manifest {id}, its name says {}", id + 1));
    vfs.put(path, l.manifest.clean.clone());
    refused(&l, &vfs, "a copy under the next name", "its name says");
    // A segment's bytes, and another log's manifest.
    let vfs = l.vfs.fork();
    vfs.put(path, l.segments[0].clean.clone());
    refused(&l, &vfs, "a segment", "both header copies are bad");
    vfs.put(path, build_with(Left::Marked, 99).manifest.clean);
    refused(&l, &vfs, "another log's", "belongs to log");
    let vfs = l.vfs.fork();
    let older = Path::new(DIR).join(files::manifest_name(id - 1));
    for bytes in [vec![], vec![0; 16384], l.manifest.clean.clone()] {
        vfs.put(&older, bytes);
        let (report, seen) = look(&vfs);
        assert_eq!((report.verdict(), seen.len()), ("clean", l.acked.len()));
    }
    vfs.put(path, vec![0; 16384]);
    refused(&l, &vfs, "the newest is zeros", "both header copies are bad");
}
