use std::io::Write;
use std::sync::atomic::AtomicUsize;

use super::super::{MAX_SMALL, Published, SimStore};
use super::sim_s3::{SimS3, WireFault};
use super::*;
use crate::clock::SystemClock;
use crate::config::Secret;

mod race;

const NAME: &str = "db/t%2Fx/date=2026-01-01/hour=00/11111111-1111-1111-1111-111111111111-1-2-0000.parquet";
const LOG: LogId = LogId([0x11; 16]);
const PART: usize = 10;

fn remote(sim: &SimS3) -> Remote {
    let settings = S3Settings {
        bucket: "bucket".into(),
        endpoint: "http://127.0.0.1:1".into(),
        access_key: "key".into(),
        secret_key: Secret::new("secret"),
        checksums: true,
        ..S3Settings::default()
    };
    let endpoint = Endpoint { timeout: Duration::from_secs(30), env: Default::default(), connector: Some(Arc::new(sim.clone())) };
    Remote::s3(&settings, &endpoint).unwrap()
}

fn sink_with(sim: &SimS3, prefix: &str, verify: Verify) -> ObjectSink {
    sink_on(remote(sim), prefix, verify)
}

fn sink_on(remote: Remote, prefix: &str, verify: Verify) -> ObjectSink {
    sink_that(remote, prefix, verify, CreateOnly::Probe, 0)
}

fn sink_that(remote: Remote, prefix: &str, verify: Verify, create_only: CreateOnly, race_keys: usize) -> ObjectSink {
    let settings = ObjectSettings {
        prefix: prefix.into(),
        part_size: PART,
        parts_in_flight: 2,
        puts: 1,
        timeout: Duration::from_secs(30),
        verify,
        create_only,
        race_keys,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    ObjectSink::new(remote, settings, LOG, Driver::here(runtime), Metrics::new(), SystemClock::shared())
}

/// A sink that races for `race_keys` names before it uses the store.
fn racing(sim: &SimS3, create_only: CreateOnly, race_keys: usize) -> ObjectSink {
    sink_that(remote(sim), "", Verify::Head, create_only, race_keys)
}

fn setup() -> (SimStore, SimS3, ObjectSink) {
    let store = SimStore::new();
    let sim = SimS3::new(store.clone());
    let sink = sink_with(&sim, "", Verify::Head);
    sink.prepare().unwrap();
    (store, sim, sink)
}

fn put(sink: &ObjectSink, bytes: &[u8]) -> SinkResult<Published> {
    let mut staged = sink.stage(NAME)?;
    staged.write_all(bytes).map_err(|e| SinkError::from_io("write", e))?;
    staged.seal()?;
    staged.publish()
}

/// The fault on the next request of this kind only.
fn once(sim: &SimS3, op: StoreOp, fault: WireFault) {
    let mut left = Some(fault);
    sim.set_faults(move |w| if w.op == op { left.take() } else { None });
}

/// Lets what runs in the background come to its end.
fn settle(sink: &ObjectSink) {
    // A timer is made within a runtime.
    sink.shared.driver.block_on(async { tokio::time::sleep(Duration::from_secs(100)).await });
}

const SMALL: &[u8] = b"small";
const LARGE: &[u8] = b"an object of several parts, the last one short";

#[test]
fn directory_with_objects_is_told_from_one_without() {
    for prefix in ["", "lake/eu"] {
        let sim = SimS3::new(SimStore::new());
        let sink = sink_with(&sim, prefix, Verify::Head);
        sink.prepare().unwrap();
        assert!(!sink.holds_any("db/t%2Fx").unwrap());
        put(&sink, SMALL).unwrap();
        let holds = |directory| sink.holds_any(directory).unwrap();
        assert!(holds("db/t%2Fx") && holds("db") && !holds("db/t%2F") && !holds("db/t") && !holds("db2"));
        sim.set_faults(|w| (w.op == StoreOp::List).then_some(WireFault::Answers(503, "SlowDown")));
        assert!(matches!(sink.holds_any("db"), Err(SinkError::Transient { .. })));
    }
}

#[test]
fn the_first_object_keeps_its_name() {
    for bytes in [SMALL, &LARGE[..PART], &LARGE[..2 * PART], LARGE] {
        for overwrites in [false, true] {
            let store = SimStore::new();
            let sim = SimS3::new(store.clone());
            sim.set_overwrites(false, overwrites);
            let sink = sink_with(&sim, "", Verify::Read);
            sink.prepare().unwrap();
            assert!(store.objects().is_empty(), "the probe goes");
            assert_eq!(sink.describe(NAME).unwrap(), None);
            assert!(sink.confirm(NAME).is_err());
            assert_eq!(put(&sink, bytes).unwrap(), Published::Created);
            assert_eq!(store.get(NAME).as_deref(), Some(bytes));
            assert_eq!(put(&sink, &[b'x'; 46]).unwrap(), Published::AlreadyThere);
            assert_eq!(store.get(NAME).as_deref(), Some(bytes));
            let info = sink.describe(NAME).unwrap().unwrap();
            assert_eq!(info, ObjectInfo { len: bytes.len() as u64, sha256: Sha256::digest(bytes).into() });
            sink.confirm(NAME).unwrap();
            assert_eq!(sink.put_small(NAME, b"third").unwrap(), PutSmall::Exists(bytes.to_vec()));
            settle(&sink);
            assert_eq!(sim.uploads(), Vec::<String>::new());
            assert_eq!(store.objects().len(), 1);
        }
    }
}

#[test]
fn a_prefix_stands_before_every_key() {
    let store = SimStore::new();
    let sim = SimS3::new(store.clone());
    let sink = sink_with(&sim, "a/b", Verify::Head);
    sink.prepare().unwrap();
    put(&sink, LARGE).unwrap();
    assert_eq!(sink.put_small("_arc/1/plan-1", b"x").unwrap(), PutSmall::Created);
    let keys: Vec<String> = store.objects().into_keys().collect();
    assert_eq!(keys, ["a/b/_arc/1/plan-1".to_owned(), format!("a/b/{NAME}")]);
}

/// Fault of the request that makes the object visible; the object afterwards is whole or not there, and a second attempt ends well.
#[test]
fn no_answer_to_a_put_leaves_half_an_object() {
    use WireFault::*;
    let faults = [
        Answers(500, "InternalError"),
        Answers(503, "SlowDown"),
        Answers(502, ""),
        Answers(403, "RequestTimeTooSkewed"),
        Answers(400, "ExpiredToken"),
        AnswersAfter(500, "InternalError"),
        AnswersAfter(504, ""),
        Refused,
        ReplyLost,
        Hangs,
        ErrorBody,
        ErrorBodyAfter,
    ];
    for (op, bytes) in [(StoreOp::Put, SMALL), (StoreOp::Complete, LARGE)] {
        for overwrites in [false, true] {
            for fault in &faults {
                let store = SimStore::new();
                let sim = SimS3::new(store.clone());
                sim.set_overwrites(false, overwrites);
                let sink = sink_with(&sim, "", Verify::Read);
                sink.prepare().unwrap();
                once(&sim, op, fault.clone());
                let first = put(&sink, bytes);
                let there = store.get(NAME);
                let context = format!("{op:?} {fault:?} overwrites {overwrites}: {first:?}");
                assert!(there.as_deref().is_none_or(|b| b == bytes), "{context}");
                match &first {
                    Ok(_) => assert!(there.is_some(), "{context}"),
                    Err(e) => assert!(matches!(e, SinkError::Transient { .. }) && there.is_none(), "{context}"),
                }
                let second = put(&sink, bytes).unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(second == Published::AlreadyThere, first.is_ok(), "{context}");
                assert_eq!(store.get(NAME).as_deref(), Some(bytes), "{context}");
                settle(&sink);
                assert_eq!(sim.uploads(), Vec::<String>::new(), "{context}");
            }
        }
    }
}

#[test]
fn what_the_store_keeps_is_looked_at() {
    for verify in [Verify::Head, Verify::Read] {
        let store = SimStore::new();
        let sim = SimS3::new(store.clone());
        let sink = sink_with(&sim, "", verify);
        sink.prepare().unwrap();
        once(&sim, StoreOp::Put, WireFault::KeepsHalf);
        let e = put(&sink, SMALL).unwrap_err();
        assert!(matches!(e, SinkError::Permanent { .. }), "{e}");
        assert!(e.to_string().contains("holds 2 bytes, expected 5"), "{e}");
    }
    // The same length and other bytes: only reading tells.
    let (store, sim, sink) = setup();
    let swap = store.clone();
    sim.set_faults(move |w| {
        if w.op == StoreOp::Head && swap.get(NAME).is_some() {
            swap.insert(NAME, b"SMALL");
        }
        None
    });
    assert!(put(&sink, SMALL).is_ok());
    let store = SimStore::new();
    let sim = SimS3::new(store.clone());
    let sink = sink_with(&sim, "", Verify::Read);
    let swap = store.clone();
    sim.set_faults(move |w| {
        if w.op == StoreOp::Get && swap.get(NAME).is_some() {
            swap.insert(NAME, b"SMALL");
        }
        None
    });
    let e = put(&sink, SMALL).unwrap_err();
    assert!(e.to_string().contains("with other contents"), "{e}");
}

/// INVARIANT(abort-before-retry), on a store that completes by overwriting.
#[test]
fn a_completion_that_comes_late_replaces_nothing() {
    for overwrites in [false, true] {
        let store = SimStore::new();
        let sim = SimS3::new(store.clone());
        sim.set_overwrites(false, overwrites);
        let sink = sink_with(&sim, "", Verify::Head);
        sink.prepare().unwrap();
        once(&sim, StoreOp::Complete, WireFault::Late);
        assert!(matches!(put(&sink, LARGE), Err(SinkError::Transient { .. })));
        assert_eq!((sim.late(), store.get(NAME)), (1, None));
        sim.clear_faults();
        let second = [b'y'; 33];
        assert_eq!(put(&sink, &second).unwrap(), Published::Created);
        sim.land(0);
        assert_eq!(store.get(NAME).as_deref(), Some(&second[..]), "overwrites {overwrites}");
        assert_eq!(sim.uploads(), Vec::<String>::new());
    }
}

#[test]
fn a_name_is_not_staged_again_while_its_earlier_upload_cannot_be_aborted() {
    let store = SimStore::new();
    let sim = SimS3::new(store.clone());
    sim.set_overwrites(false, true);
    let sink = sink_with(&sim, "", Verify::Head);
    sink.prepare().unwrap();
    sim.set_faults(|w| match w.op {
        StoreOp::Complete => Some(WireFault::Late),
        StoreOp::Abort => Some(WireFault::Answers(500, "InternalError")),
        _ => None,
    });
    put(&sink, LARGE).unwrap_err();
    let begun = sim.requests_of(StoreOp::Begin);
    assert!(matches!(sink.stage(NAME), Err(SinkError::Transient { .. })));
    assert!(sink.stage("db/t/other.parquet").is_ok(), "others are");
    assert_eq!(sim.requests_of(StoreOp::Begin), begun);
    // Without the right to abort it will never be: said by name, so that the output can move aside.
    sim.set_faults(|w| (w.op == StoreOp::Abort).then_some(WireFault::Answers(403, "AccessDenied")));
    let e = sink.stage(NAME).err().unwrap();
    assert!(matches!(e, SinkError::Permanent { .. }) && e.to_string().contains("AbortMultipartUpload"), "{e}");
    // Other credentials, or another clock, would do.
    for (status, code) in [(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (403, "RequestTimeTooSkewed"), (401, "")] {
        sim.set_faults(move |w| (w.op == StoreOp::Abort).then_some(WireFault::Answers(status, code)));
        let e = sink.stage(NAME).err().unwrap();
        assert!(matches!(e, SinkError::Transient { .. }), "{status} {code}: {e}");
    }
    sim.clear_faults();
    sim.land(0);
    assert_eq!(store.get(NAME).as_deref(), Some(LARGE));
    assert_eq!(put(&sink, LARGE).unwrap(), Published::AlreadyThere);
}

/// Where completions are conditional an upload that cannot be aborted only takes room.
#[test]
fn a_store_that_aborts_nothing_still_gets_its_objects() {
    let (store, sim, sink) = setup();
    once(&sim, StoreOp::Complete, WireFault::Late);
    put(&sink, LARGE).unwrap_err();
    sim.set_faults(|w| (w.op == StoreOp::Abort).then_some(WireFault::Answers(403, "AccessDenied")));
    let second = [b'z'; 25];
    assert_eq!(put(&sink, &second).unwrap(), Published::Created);
    sim.land(0);
    assert_eq!(store.get(NAME).as_deref(), Some(&second[..]));
    sim.clear_faults();
    sink.sweep().unwrap();
    assert_eq!(sim.uploads(), Vec::<String>::new());
}

/// Uploads for three names are given up; the store refuses to abort the first.
#[test]
fn an_upload_that_cannot_be_aborted_keeps_no_other_one() {
    for (overwrites, fault, asked_again) in [
        (false, WireFault::Answers(403, "AccessDenied"), false),
        (false, WireFault::Answers(501, "NotImplemented"), false),
        (false, WireFault::Answers(500, "InternalError"), true),
        (true, WireFault::Answers(403, "AccessDenied"), true),
    ] {
        let sim = SimS3::new(SimStore::new());
        sim.set_overwrites(false, overwrites);
        let sink = sink_with(&sim, "", Verify::Head);
        sink.prepare().unwrap();
        let name = |n: &str| format!("db/t/{LOG}-1-2-{n}.parquet");
        let (first, context) = (name("0000"), format!("overwrites {overwrites}, {fault:?}"));
        let refused = first.clone();
        sim.set_faults(move |w| (w.op == StoreOp::Abort && w.key == refused).then(|| fault.clone()));
        let staged: Vec<_> = ["0000", "0001", "0002"]
            .map(|n| {
                let mut staged = sink.stage(&name(n)).unwrap();
                staged.write_all(LARGE).unwrap();
                staged
            })
            .into();
        drop(staged);
        settle(&sink);
        assert_eq!(sim.uploads(), [first.as_str()], "{context}");
        let before = sim.requests_of(StoreOp::Abort);
        let again = sink.stage(&first);
        assert_eq!(again.is_err(), overwrites, "{context}");
        assert_eq!(sim.requests_of(StoreOp::Abort) > before, asked_again, "{context}");
        // A start with uploads of an earlier run.
        let path = Path::parse(name("0003")).unwrap();
        sink.shared.driver.block_on(sink.shared.begin_upload(&path)).unwrap();
        let later = sink_with(&sim, "", Verify::Head);
        assert_eq!(later.prepare().is_err(), overwrites, "{context}");
        assert_eq!(sim.uploads().len(), if overwrites || asked_again { 2 } else { 1 }, "{context}");
    }
}

/// Seen in the simulation: the upload that was taken for aborted was completed by a request that had been given up.
#[test]
fn an_abort_that_is_answered_with_an_error_under_a_200_is_not_done() {
    let (_, sim, sink) = setup();
    let (s, path) = (&sink.shared, Path::parse(NAME).unwrap());
    let id = s.driver.block_on(s.begin_upload(&path)).unwrap();
    sim.set_faults(|w| (w.op == StoreOp::Abort).then_some(WireFault::ErrorBody));
    s.driver.block_on(s.abort_upload(&path, &id)).unwrap_err();
    assert_eq!(sim.uploads().len(), 1);
    sim.clear_faults();
    s.driver.block_on(s.abort_upload(&path, &id)).unwrap();
    assert_eq!(sim.uploads(), Vec::<String>::new());
}

/// What the simulated worlds hold against the sink.
#[test]
fn the_simulated_store_notices_a_replaced_object() {
    let sim = SimS3::new(SimStore::new());
    sim.set_overwrites(false, true);
    let sink = sink_with(&sim, "", Verify::Head);
    let store = sim.store();
    sink.prepare().unwrap();
    put(&sink, LARGE).unwrap();
    assert_eq!(store.replaced(), Vec::<String>::new(), "the probe has tried it");
    let (s, path) = (&sink.shared, Path::parse(NAME).unwrap());
    let replaced = s.driver.block_on(async {
        let id = s.begin_upload(&path).await?;
        let part = s.put_part(&path, &id, 0, PutPayload::from_static(b"x")).await?;
        s.complete_upload(&path, &id, vec![part]).await
    });
    replaced.unwrap();
    assert_eq!(store.replaced(), [NAME]);
}

#[test]
fn what_is_dropped_or_fails_leaves_no_upload() {
    let (store, sim, sink) = setup();
    let mut staged = sink.stage(NAME).unwrap();
    staged.write_all(LARGE).unwrap();
    assert_eq!(sim.requests_of(StoreOp::Begin), 2, "one of them is the probe's");
    drop(staged);
    let mut staged = sink.stage(NAME).unwrap();
    staged.write_all(LARGE).unwrap();
    staged.seal().unwrap();
    assert!(staged.write_all(b"x").is_err() && staged.seal().is_err());
    drop(staged);
    // A part that fails for good, and an upload whose id was never heard.
    for (op, fault) in [(StoreOp::Part, WireFault::Answers(403, "AccessDenied")), (StoreOp::Begin, WireFault::ReplyLost)] {
        once(&sim, op, fault);
        let mut staged = sink.stage(NAME).unwrap();
        let failed = staged.write_all(LARGE).is_err() || staged.seal().is_err();
        assert!(failed && staged.seal().is_err() && staged.publish().is_err(), "{op:?}");
    }
    sim.clear_faults();
    settle(&sink);
    assert_eq!(sim.uploads(), Vec::<String>::new());
    assert!(store.objects().is_empty());
}

#[test]
fn a_sweep_aborts_the_uploads_of_its_own_log_only() {
    let (_, sim, sink) = setup();
    let mine = [NAME.to_owned(), format!("db/u/{LOG}-1-2-0001.parquet"), format!("_arc/{LOG}/probe-1")];
    let others = ["db/t/22222222-2222-2222-2222-222222222222-1-2-0000.parquet".to_owned(), format!("{LOG}/x.parquet"), "zzz".to_owned()];
    for key in mine.iter().chain(&others) {
        let path = Path::parse(key).unwrap();
        sink.shared.driver.block_on(sink.shared.begin_upload(&path)).unwrap();
    }
    let mut live = sink.stage("db/u/live.parquet").unwrap();
    live.write_all(LARGE).unwrap();
    assert_eq!(sink.sweep().unwrap(), Swept { removed: 3, complete: true });
    let mut left = sim.uploads();
    left.sort();
    let mut expected: Vec<String> = others.into_iter().chain(["db/u/live.parquet".to_owned()]).collect();
    expected.sort();
    assert_eq!(left, expected);
    // An error in a 200 is not an empty list.
    once(&sim, StoreOp::List, WireFault::ErrorBody);
    assert!(sink.sweep().is_ok(), "it is asked again");
    sim.set_faults(|w| (w.op == StoreOp::List).then_some(WireFault::ErrorBody));
    assert!(matches!(sink.sweep(), Err(SinkError::Transient { .. })));
    sim.set_faults(|w| (w.op == StoreOp::List).then_some(WireFault::Answers(501, "NotImplemented")));
    assert_eq!(sink.sweep().unwrap(), Swept { removed: 0, complete: false });
}

#[test]
fn probes_of_runs_that_ended_within_them_are_removed() {
    let store = SimStore::new();
    let sim = SimS3::new(store.clone());
    let sink = sink_with(&sim, "p", Verify::Head);
    let kept =
        [format!("p/_arc/{LOG}/plan-9"), format!("p/_arc/{LOG}x/probe-1"), "p/probe-1".to_owned(), format!("p/_arc/{LOG}/quite-else")];
    for name in kept.iter().chain(&[format!("p/_arc/{LOG}/probe-1"), format!("p/_arc/{LOG}/probe-2")]) {
        store.insert(name, b"x");
    }
    sink.prepare().unwrap();
    let mut kept = kept.to_vec();
    kept.sort();
    assert_eq!(store.objects().into_keys().collect::<Vec<_>>(), kept);
}

#[test]
fn a_store_that_overwrites_is_refused() {
    let store = SimStore::new();
    let sim = SimS3::new(store.clone());
    sim.set_overwrites(true, true);
    let sink = sink_with(&sim, "", Verify::Head);
    let e = sink.prepare().unwrap_err();
    assert!(matches!(e, SinkError::Permanent { .. }), "{e}");
    assert!(e.to_string().contains("does not keep create-only puts") && e.to_string().contains("bucket"), "{e}");
    assert!(store.objects().is_empty());
    sim.set_overwrites(false, false);
    let mut puts = 0;
    sim.set_faults(move |w| {
        puts += u32::from(w.op == StoreOp::Put);
        (w.op == StoreOp::Put && puts % 2 == 0).then_some(WireFault::Answers(501, "NotImplemented"))
    });
    let e = sink.prepare().unwrap_err();
    assert!(matches!(e, SinkError::Transient { .. }) && e.to_string().contains("If-None-Match"), "a gateway may have answered: {e}");
    sim.set_faults(|_| Some(WireFault::Answers(501, "NotImplemented")));
    let e = sink.prepare().unwrap_err();
    assert!(matches!(e, SinkError::Transient { .. }) && e.to_string().contains("answer 501 NotImplemented"), "{e}");
    // Once is no evidence: another process of this log may sweep the probe away.
    for op in [StoreOp::Put, StoreOp::Get] {
        let (swept, mut seen) = (store.clone(), 0);
        sim.set_faults(move |w| {
            seen += u32::from(w.op == op);
            if w.op == op && seen == if op == StoreOp::Put { 2 } else { 1 } {
                swept.remove(w.key);
            }
            None
        });
        assert!(!matches!(sink.prepare(), Err(SinkError::Permanent { .. })), "{op:?}");
    }
    for fault in [WireFault::Answers(403, "AccessDenied"), WireFault::Answers(404, "NoSuchBucket"), WireFault::Hangs, WireFault::Refused] {
        sim.set_faults(move |_| Some(fault.clone()));
        assert!(matches!(sink.prepare().unwrap_err(), SinkError::Transient { .. }));
        assert!(sink.ready().is_err());
    }
    sim.clear_faults();
    sink.prepare().unwrap();
    sink.ready().unwrap();
}

/// Every fault on every request of a start: it ends in an error that may be tried again, or well; and then well.
#[test]
fn a_probe_survives_faults() {
    use WireFault::*;
    for fault in
        [Answers(500, "InternalError"), AnswersAfter(500, "InternalError"), ReplyLost, Hangs, ErrorBody, ErrorBodyAfter, Refused, CutAnswer]
    {
        for at in 0..14 {
            let sim = SimS3::new(SimStore::new());
            let sink = sink_with(&sim, "", Verify::Head);
            let f = fault.clone();
            sim.set_faults(move |w| (w.number == at).then(|| f.clone()));
            if let Err(e) = sink.prepare() {
                assert!(matches!(e, SinkError::Transient { .. }), "{fault:?} at {at}: {e}");
                sim.clear_faults();
                sink.prepare().unwrap();
            }
            sim.clear_faults();
            assert!(sink.shared.remote.conditional.load(Ordering::Relaxed), "{fault:?} at {at}: completions are conditional here");
            sink.sweep().unwrap();
            assert_eq!(sim.uploads(), Vec::<String>::new(), "{fault:?} at {at}");
        }
    }
}

#[test]
fn a_store_that_refuses_aborts_can_be_used() {
    for (status, code) in [(403, "AccessDenied"), (501, "NotImplemented"), (500, "InternalError")] {
        let sim = SimS3::new(SimStore::new());
        let sink = sink_with(&sim, "", Verify::Head);
        sim.set_faults(move |w| (w.op == StoreOp::Abort).then_some(WireFault::Answers(status, code)));
        sink.prepare().unwrap_or_else(|e| panic!("{status} {code}: {e}"));
        assert!(sink.shared.remote.conditional.load(Ordering::Relaxed));
        assert_eq!(put(&sink, LARGE).unwrap(), Published::Created);
        sim.clear_faults();
        assert_eq!(sink.sweep().unwrap(), Swept { removed: 1, complete: true }, "the upload of the probe");
    }
}

#[test]
fn only_an_answer_to_its_question_ends_the_probe_of_completions() {
    let odd = [(404, "NoSuchUpload"), (404, "NoSuchKey"), (404, ""), (404, "NoSuchBucket"), (507, ""), (403, "AccessDenied"), (400, "")];
    for (status, code) in odd {
        for op in [StoreOp::Part, StoreOp::Complete] {
            let sim = SimS3::new(SimStore::new());
            let sink = sink_with(&sim, "", Verify::Head);
            sim.set_faults(move |w| (w.op == op).then_some(WireFault::Answers(status, code)));
            let e = sink.prepare().err().unwrap_or_else(|| panic!("{op:?}: {status} {code} is a verdict"));
            assert!(matches!(e, SinkError::Transient { .. } | SinkError::NoSpace { .. }), "{op:?} {status} {code}: {e}");
            sim.clear_faults();
            sink.prepare().unwrap();
            assert!(sink.shared.remote.conditional.load(Ordering::Relaxed), "{op:?} {status} {code}");
        }
    }
}

/// INVARIANT(abort-before-retry) needs the sweep there.
#[test]
fn a_store_that_completes_by_overwriting_is_used_only_when_its_uploads_can_be_listed() {
    for (overwrites, status, code, used) in
        [(true, 403, "AccessDenied", false), (true, 501, "NotImplemented", true), (false, 403, "AccessDenied", true)]
    {
        let sim = SimS3::new(SimStore::new());
        sim.set_overwrites(false, overwrites);
        let sink = sink_with(&sim, "", Verify::Head);
        sim.set_faults(move |w| (w.op == StoreOp::List).then_some(WireFault::Answers(status, code)));
        let r = sink.prepare();
        assert_eq!(r.is_ok(), used, "overwrites {overwrites}, {status}: {r:?}");
        if let Err(e) = r {
            assert!(matches!(e, SinkError::Transient { .. }) && e.to_string().contains("s3:ListBucketMultipartUploads"), "{e}");
        }
        sim.clear_faults();
        sink.prepare().unwrap();
    }
}

/// The page of a proxy, the default backend of a balancer.
#[test]
fn what_stands_between_does_not_speak_for_the_store() {
    let (_, sim, sink) = setup();
    put(&sink, LARGE).unwrap();
    let staged = sink.stage("db/t/other.parquet").and_then(|mut s| {
        s.write_all(LARGE).map_err(|e| SinkError::from_io("write", e))?;
        Ok(s)
    });
    sim.set_faults(|w| (w.op != StoreOp::Head).then_some(WireFault::Answers(404, "")));
    for (what, r) in [("ready", sink.ready()), ("describe", sink.describe(NAME).map(drop)), ("sweep", sink.sweep().map(drop))] {
        assert!(matches!(r, Err(SinkError::Transient { .. })), "{what}: {r:?}");
    }
    drop(staged);
    settle(&sink);
    assert_eq!(lock(&sink.shared.doomed).len(), 1, "an upload is not aborted because somebody answers 404");
    sim.set_faults(|_| Some(WireFault::ErrorBody));
    assert!(sink.ready().is_err(), "200 without an entity tag");
    sim.clear_faults();
    sink.ready().unwrap();
}

/// A machine without a role, one outside of a cloud, one whose identity is being renewed.
#[test]
fn the_source_of_the_credentials_does_not_speak_for_the_store() {
    let sim = SimS3::new(SimStore::new());
    let settings = S3Settings { bucket: "bucket".into(), endpoint: "https://store.example".into(), ..S3Settings::default() };
    let endpoint = Endpoint { timeout: Duration::from_secs(30), env: Default::default(), connector: Some(Arc::new(sim.clone())) };
    let remote = Remote::s3_from(object_store::aws::AmazonS3Builder::new(), false, &settings, &endpoint).unwrap();
    let sink = sink_on(remote, "", Verify::Head);
    use WireFault::{Answers, Refused};
    for fault in [Answers(404, ""), Answers(404, "NoSuchKey"), Answers(403, "AccessDenied"), Answers(503, ""), Answers(501, ""), Refused] {
        let f = fault.clone();
        sim.set_faults(move |w| {
            assert!(w.key.starts_with("api/token"), "a request without credentials: {w:?}");
            Some(f.clone())
        });
        let calls =
            [sink.ready(), sink.prepare(), sink.describe(NAME).map(drop), sink.sweep().map(drop), sink.put_small(NAME, b"x").map(drop)];
        for e in calls.map(Result::unwrap_err) {
            assert!(matches!(e, SinkError::Transient { .. }), "{fault:?}: {e}");
            let e = e.to_string();
            assert!(e.contains("no credentials: PUT http://169.254.169.254: "), "{fault:?}: {e}");
        }
    }
}

/// The thread that asked goes on, and so does the next call.
#[test]
fn client_that_panics_is_an_error_of_that_call() {
    let (_, sim, sink) = setup();
    sim.set_faults(|_| panic!("a header with a line break"));
    for e in [sink.ready().unwrap_err(), sink.describe(NAME).map(drop).unwrap_err()] {
        assert!(matches!(e, SinkError::Transient { .. }), "{e}");
        assert!(e.to_string().contains("panicked") && e.to_string().contains("a header with a line break"), "{e}");
    }
    sim.clear_faults();
    sink.ready().unwrap();
    assert_eq!(put(&sink, b"later").unwrap(), Published::Created);
}

#[test]
fn a_large_object_is_not_read_for_a_small_one() {
    let (store, _, sink) = setup();
    store.insert(NAME, &vec![0; MAX_SMALL as usize + 1]);
    let reads = || {
        let text = sink.shared.metrics.render();
        text.lines().filter(|l| l.contains("op=\"read\"")).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = reads();
    let e = sink.put_small(NAME, b"x").unwrap_err();
    assert!(matches!(e, SinkError::Permanent { .. }) && e.to_string().contains("found 16777217"), "{e}");
    assert_eq!(reads(), before);
}

#[test]
fn every_call_ends_in_time() {
    let (_, sim, sink) = setup();
    sim.set_faults(|_| Some(WireFault::Hangs));
    let now = || sink.shared.driver.block_on(async { tokio::time::Instant::now() });
    let bound = sink.shared.settings.timeout * (2 * TRIES + COMPLETION);
    let calls: [(&str, &dyn Fn() -> bool); 6] = [
        ("small", &|| put(&sink, SMALL).is_err()),
        ("large", &|| put(&sink, LARGE).is_err()),
        ("describe", &|| sink.describe(NAME).is_err()),
        ("confirm", &|| sink.confirm(NAME).is_err()),
        ("put_small", &|| sink.put_small(NAME, b"x").is_err()),
        ("sweep", &|| sink.sweep().is_err()),
    ];
    for (what, call) in calls {
        let before = now();
        assert!(call(), "{what}");
        assert!(now() - before <= bound, "{what}: {:?}", now() - before);
    }
}

#[test]
fn a_read_that_breaks_off_is_no_description() {
    let (_, sim, sink) = setup();
    put(&sink, LARGE).unwrap();
    sim.set_faults(|w| (w.op == StoreOp::Get).then_some(WireFault::CutAnswer));
    assert!(matches!(sink.describe(NAME), Err(SinkError::Transient { .. })));
    assert!(sink.put_small(NAME, b"x").is_err());
}

/// A plan is as long as it is: the second attempt at its object finds the first one's, whatever its length. What is too large and another
/// one is not read.
#[test]
fn a_small_object_of_any_length_is_known_again() {
    let (_, sim, sink) = setup();
    let mut bytes = vec![7; MAX_SMALL as usize + 1];
    assert_eq!(sink.put_small(NAME, &bytes).unwrap(), PutSmall::Created);
    assert_eq!(sink.put_small(NAME, &bytes).unwrap(), PutSmall::Same);
    bytes[0] = 8;
    let e = sink.put_small(NAME, &bytes).unwrap_err();
    assert!(matches!(&e, SinkError::Permanent { .. }) && e.to_string().contains("move it away"), "{e}");
    let read = sim.requests_of(StoreOp::Get);
    assert!(matches!(sink.put_small(NAME, b"x"), Err(SinkError::Permanent { .. })));
    assert_eq!(sim.requests_of(StoreOp::Get), read);
}

#[test]
fn children_and_small_objects_are_read_from_a_store() {
    for prefix in ["", "a/b"] {
        let sim = SimS3::new(SimStore::new());
        let sink = sink_with(&sim, prefix, Verify::Head);
        assert_eq!((sink.children("_arc", 9).unwrap(), sink.get_small("_arc/x/node.json").unwrap()), (Vec::<String>::new(), None));
        for name in ["_arc/y/plan-1", "_arc/x/node.json", "_arc/x/plan-12", "other/z"] {
            sink.put_small(name, name.as_bytes()).unwrap();
        }
        assert_eq!(sink.children("_arc", 9).unwrap(), ["x", "y"]);
        assert_eq!(sink.children("_arc", 1).unwrap(), ["x"]);
        assert_eq!(sink.children("_arc/x", 9).unwrap(), ["node.json", "plan-12"]);
        assert_eq!(sink.get_small("_arc/x/node.json").unwrap().unwrap(), b"_arc/x/node.json");
    }
}

#[test]
fn names_and_sizes_have_bounds() {
    let (_, sim, sink) = setup();
    let long = format!("{}/x", vec!["y".repeat(200); 6].join("/"));
    assert!(matches!(sink.stage(&long), Err(SinkError::Permanent { .. })));
    assert!(sink.stage("../x").is_err());
    let mut staged = sink.stage(NAME).unwrap();
    let written = AtomicUsize::new(0);
    let e = loop {
        match staged.write_all(&[7; PART]) {
            Ok(()) => written.fetch_add(1, Ordering::Relaxed),
            Err(e) => break e,
        };
    };
    assert!(e.to_string().contains("storage.part_size"), "{e}");
    assert_eq!(written.into_inner(), MOST_PARTS + 1);
    assert!(matches!(SinkError::from_io("x", e), SinkError::Permanent { .. }));
    drop(staged);
    settle(&sink);
    assert_eq!(sim.uploads(), Vec::<String>::new());
}

#[test]
fn requests_are_counted_by_their_end() {
    let (_, sim, sink) = setup();
    once(&sim, StoreOp::Put, WireFault::Answers(503, "SlowDown"));
    put(&sink, SMALL).unwrap_err();
    put(&sink, SMALL).unwrap();
    let text = sink.shared.metrics.render();
    for line in [
        "arc_store_requests_total{op=\"put\",outcome=\"busy\"} 1\n",
        "arc_store_requests_total{op=\"put\",outcome=\"exists\"} 1\n",
        "arc_store_requests_total{op=\"complete\",outcome=\"exists\"} 1\n",
        "arc_store_uploads_aborted_total 1\n",
        "arc_store_uploads 0\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn credentials_are_nowhere_in_an_error() {
    let (_, sim, sink) = setup();
    for fault in [WireFault::Answers(403, "SignatureDoesNotMatch"), WireFault::Refused, WireFault::ErrorBody, WireFault::Hangs] {
        sim.set_faults(move |_| Some(fault.clone()));
        let e = put(&sink, LARGE).unwrap_err().to_string();
        assert!(!e.contains("secret") && !e.contains("Signature="), "{e}");
        assert!(e.contains("s3 http://127.0.0.1:1/bucket") && e.contains(NAME), "{e}");
    }
}
