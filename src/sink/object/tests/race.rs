//! The race of create-only puts on a store that is not atomic, and under faults.

use super::*;

#[test]
fn race_store_that_lets_two_writers_win_is_refused() {
    for leaks_every in [3, 5, 7, 20] {
        let store = SimStore::new();
        let sim = SimS3::new(store.clone());
        sim.set_leaks(leaks_every);
        sink_with(&sim, "", Verify::Head).prepare().unwrap();
        let e = racing(&sim, CreateOnly::Probe, 4).prepare().unwrap_err();
        assert!(matches!(e, SinkError::Permanent { .. }), "{e}");
        let text = e.to_string();
        assert!(text.contains(" of 8 puts that were sent together were accepted"), "{text}");
        assert!(text.contains("bucket") && text.contains("storage.create_only"), "{text}");
        assert!(store.objects().is_empty(), "no object of the race and no record stays: {:?}", store.objects().keys());
    }
}

#[test]
fn race_that_is_passed_is_recorded_and_not_repeated() {
    let store = SimStore::new();
    let sim = SimS3::new(store.clone());
    racing(&sim, CreateOnly::Probe, 4).prepare().unwrap();
    let keys: Vec<String> = store.objects().into_keys().collect();
    assert!(matches!(&keys[..], [k] if k.starts_with("_arc/create-only-")), "{keys:?}");
    // The store would fail a second race.
    sim.set_leaks(3);
    racing(&sim, CreateOnly::Probe, 4).prepare().unwrap();
    // Reached in another way it may be another store.
    let other = sink_that(remote(&sim), "p", Verify::Head, CreateOnly::Probe, 4);
    assert!(matches!(other.prepare(), Err(SinkError::Permanent { .. })));
}

#[test]
fn trust_uses_a_store_without_create_only_puts() {
    let sim = SimS3::new(SimStore::new());
    sim.set_leaks(3);
    racing(&sim, CreateOnly::Trust, 4).prepare().unwrap();
    sim.set_overwrites(true, true);
    racing(&sim, CreateOnly::Trust, 4).prepare().unwrap();
    assert!(matches!(racing(&sim, CreateOnly::Probe, 4).prepare(), Err(SinkError::Permanent { .. })));
}

#[test]
fn race_objects_of_runs_that_ended_long_ago_are_removed() {
    let store = SimStore::new();
    let sim = SimS3::new(store.clone());
    // The simulated store says that everything was modified in January 2026.
    store.insert(&format!("_arc/{LOG}/race-1"), b"x");
    sink_with(&sim, "", Verify::Head).prepare().unwrap();
    assert!(store.objects().is_empty());
}

#[test]
fn race_survives_a_fault_of_any_request() {
    use WireFault::*;
    for fault in [Answers(500, "InternalError"), AnswersAfter(500, "InternalError"), ReplyLost, Hangs, Refused, CutAnswer] {
        for at in 0..40 {
            let store = SimStore::new();
            let sim = SimS3::new(store.clone());
            let sink = racing(&sim, CreateOnly::Probe, 2);
            let f = fault.clone();
            sim.set_faults(move |w| (w.number == at).then(|| f.clone()));
            if let Err(e) = sink.prepare() {
                assert!(matches!(e, SinkError::Transient { .. }), "{fault:?} at {at}: {e}");
                sim.clear_faults();
                sink.prepare().unwrap();
            }
            assert_eq!(store.replaced(), Vec::<String>::new(), "{fault:?} at {at}");
        }
    }
}
