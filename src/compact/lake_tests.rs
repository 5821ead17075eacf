//! A lake that goes away, or becomes another one, while the server runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::worker::plan_object;
use super::worker_tests::Core;
use crate::sink::{ObjectInfo, PutSmall, Sink, SinkError, SinkResult, Staged, Swept};

/// Another directory has the lake's name, as after an unmount: rows are taken, nothing is shipped or released, and all of it goes on when
/// the lake is back.
#[test]
fn lake_replaced_while_running_gets_nothing_and_releases_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    c.append(0, &["a"]);
    assert!(c.ship());
    let (lake, away) = (c.lake.clone(), dir.path().join("away"));
    for there in [true, false] {
        std::fs::rename(&lake, &away).unwrap();
        if there {
            std::fs::create_dir(&lake).unwrap();
        }
        let before = c.shared.watermarks();
        c.append(1, &["a", "b"]);
        assert!(!c.ship());
        let w = c.shared.watermarks();
        assert_eq!((w.shipped, w.released), (before.shipped, before.released));
        let why = c.shared.last_error().unwrap();
        assert!(why.contains("lake") && (why.contains("another directory") || why.contains("gone")), "{why}");
        assert_eq!(
            (c.files().len(), c.control.deferred().outputs),
            (0, 0),
            "records move aside for an output, not for a lake that is away"
        );
        if there {
            std::fs::remove_dir(&lake).unwrap();
        }
        std::fs::rename(&away, &lake).unwrap();
        assert!(c.ship());
    }
    assert_eq!(c.rows(), 5);
    assert_eq!(c.shared.last_error(), None);
}

/// The lake goes away after the last file has got its name and before that is recorded.
#[test]
fn lake_away_after_publish_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    let away = Arc::new(AtomicBool::new(true));
    c.compactor.sink = Arc::new(NotInPlace { lake: Arc::clone(&c.compactor.sink), away: Arc::clone(&away) });
    c.append(0, &["a", "b"]);
    assert!(!c.ship());
    assert!(!c.files().is_empty(), "they were published");
    let state = &c.compactor.manifest.state;
    assert_eq!((state.shipped, state.plans.values().map(|p| p.commits.len()).sum::<usize>()), (0, 0));
    away.store(false, Ordering::Relaxed);
    assert!(c.ship());
    assert_eq!(c.rows(), 2);
}

/// A lake that was emptied or exchanged while the server runs, whatever kind of store it is.
#[test]
fn lake_without_the_plan_before_gets_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    for n in 0..2 {
        c.append(n, &["a"]);
        assert!(c.ship());
    }
    let plan = c.lake.join(plan_object(c.shared.log, 2));
    let kept = c.lake.join("kept");
    std::fs::rename(&plan, &kept).unwrap();
    c.append(2, &["a"]);
    assert!(!c.ship());
    let why = c.shared.last_error().unwrap();
    assert!(why.contains("does not hold") && why.contains("plan-2") && why.contains("accept_new_lake"), "{why}");
    assert_eq!((c.files().len(), c.control.forked()), (2, None));
    std::fs::rename(&kept, &plan).unwrap();
    assert!(c.ship());
    assert_eq!(c.rows(), 3);
}

/// With `storage.accept_new_lake` the plans of the old lake are not looked for; those of the new one are.
#[test]
fn accepted_lake_holds_the_plans_from_there_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    for n in 0..2 {
        c.append(n, &["a"]);
        assert!(c.ship());
    }
    std::fs::remove_dir_all(c.lake.join("_arc")).unwrap();
    c.append(2, &["a"]);
    assert!(!c.ship());
    c.compactor.lake_from = 3;
    assert!(c.ship());
    std::fs::remove_dir_all(c.lake.join("_arc")).unwrap();
    c.append(3, &["a"]);
    assert!(!c.ship(), "plan 3 went into the new lake");
}

/// A lake of which somebody says that it is away, and which works.
struct NotInPlace {
    lake: Arc<dyn Sink>,
    away: Arc<AtomicBool>,
}

impl Sink for NotInPlace {
    fn stage(&self, name: &str) -> SinkResult<Box<dyn Staged>> {
        self.lake.stage(name)
    }
    fn describe(&self, name: &str) -> SinkResult<Option<ObjectInfo>> {
        self.lake.describe(name)
    }
    fn holds_any(&self, directory: &str) -> SinkResult<bool> {
        self.lake.holds_any(directory)
    }
    fn confirm(&self, name: &str) -> SinkResult<()> {
        self.lake.confirm(name)
    }
    fn put_small(&self, name: &str, bytes: &[u8]) -> SinkResult<PutSmall> {
        self.lake.put_small(name, bytes)
    }
    fn device(&self) -> Option<u64> {
        None
    }
    fn sweep(&self) -> SinkResult<Swept> {
        self.lake.sweep()
    }
    fn in_place(&self) -> SinkResult<()> {
        let gone = || SinkError::from_io("lake", std::io::Error::other("another directory"));
        if self.away.load(Ordering::Relaxed) { Err(gone()) } else { Ok(()) }
    }
}
