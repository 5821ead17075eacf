//! What the service manager is told (sd_notify): that the server is ready, reloading or stopping, how far a recovery is, and, while
//! everything moves, that it lives. Without `NOTIFY_SOCKET` in the environment nothing is said.
//!
//! INVARIANT(no-blind-ping): a watchdog ping is sent by a task of the event loop, and only when every machine has moved since its
//! last look within its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::wal::Shared;
use crate::wal::recover::Progress;

/// How much longer a start may take from each sign of its progress.
const START_MORE: Duration = Duration::from_secs(300);
/// What a stop may take beyond `server.shutdown_timeout`: threads end, files are closed.
const STOP_MORE: Duration = Duration::from_secs(15);
/// The committer beats every second even when it has nothing to do: a shorter patience would find it dead in between.
const COMMIT_PATIENCE_LEAST: Duration = Duration::from_secs(3);
/// How often the state is said when there is no watchdog.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Without a beat for so long the compactor hangs. One output may take long to build, and much longer to reach a slow store.
const COMPACT_PATIENCE: Duration = Duration::from_secs(6 * 3600);
/// The same for whoever prepares spares: a segment is written with zeros.
const PREALLOC_PATIENCE: Duration = Duration::from_secs(900);

/// Says it, if there is somebody to say it to.
fn tell(states: &[NotifyState<'_>]) {
    // A service manager that does not listen is no reason to stop.
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!(error = %e, "the service manager could not be told");
    }
}

fn micros(d: Duration) -> u32 {
    u32::try_from(d.as_micros()).unwrap_or(u32::MAX)
}

/// A start goes on: how far it is, and that it needs more time than usual.
pub fn recovering(p: Progress) {
    let text = format!("recovering: {} of {} bytes of the log read", p.bytes_done, p.bytes_total);
    tell(&[NotifyState::Status(&text), NotifyState::ExtendTimeoutUsec(micros(START_MORE))]);
}

/// READY has been said, and STOPPING has not.
static SERVING: AtomicBool = AtomicBool::new(false);

/// Writes are taken from now on.
pub fn ready() {
    SERVING.store(true, Ordering::Relaxed);
    tell(&[NotifyState::Ready, NotifyState::Status("ready")]);
}

/// Says that a reload goes on while `work` does it. A reload during the recovery or the stop says nothing: READY, which ends one, would be a
/// lie then.
pub async fn reloading<T>(work: impl Future<Output = T>) -> T {
    let serving = SERVING.load(Ordering::Relaxed);
    if serving {
        let mut states = vec![NotifyState::Reloading];
        states.extend(NotifyState::monotonic_usec_now());
        tell(&states);
    }
    let done = work.await;
    if serving && SERVING.load(Ordering::Relaxed) {
        tell(&[NotifyState::Ready]);
    }
    done
}

/// The stop has begun and takes at most `within`, and a little more to end.
pub fn stopping(within: Duration) {
    SERVING.store(false, Ordering::Relaxed);
    let states = [NotifyState::Stopping, NotifyState::Status("stopping"), NotifyState::ExtendTimeoutUsec(micros(within + STOP_MORE))];
    tell(&states);
}

/// Says the state from time to time, and with it the watchdog's ping while one is due (`WATCHDOG_USEC`). Never ends.
pub async fn watch(shared: Arc<Shared>) {
    let watchdog = sd_notify::watchdog_enabled();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let mut tick = tokio::time::interval(watchdog.map_or(STATUS_EVERY, |w| w / 4));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A committer that waits for its disk longer than a quarter of the watchdog's time gets no ping, and one as soon as it moves again:
    // only what hangs for all of that time, and at most a half more, is ended.
    let mut machines = Machines::new((watchdog.unwrap_or(Duration::MAX) / 4).max(COMMIT_PATIENCE_LEAST), Instant::now());
    let mut said = None;
    loop {
        tick.tick().await;
        let p = &shared.pulses;
        let counts = [p.commit.count(), p.compact.count(), p.prealloc.count()];
        // They end one after the other then, and the whole of the stop is timed.
        let hangs = if shared.is_stopping() || shared.is_poisoned() { None } else { machines.hangs(Instant::now(), counts) };
        match hangs {
            Some((name, since)) => {
                if said != Some(name) {
                    tracing::error!(thread = name, seconds = since.as_secs(), "a thread does not move: the watchdog gets no ping");
                    tell(&[NotifyState::Status(&format!("the {name} thread does not move"))]);
                }
            }
            None if shared.is_stopping() => {
                if watchdog.is_some() {
                    tell(&[NotifyState::Watchdog]);
                }
            }
            None => {
                let text = state(&shared);
                let mut states = vec![NotifyState::Status(&text)];
                if watchdog.is_some() {
                    states.push(NotifyState::Watchdog);
                }
                tell(&states);
            }
        }
        said = hangs.map(|(name, _)| name);
    }
}

fn state(shared: &Shared) -> String {
    let w = shared.watermarks();
    let (bytes, _) = shared.backlog();
    let word = match shared.admit() {
        Ok(_) => "ready".to_owned(),
        Err(e) => format!("no writes now ({e})"),
    };
    format!("{word}: {} requests durable, {} of them in Parquet, {bytes} bytes of log wait", w.durable, w.shipped)
}

/// The machines' pulses, and since when each has stood still.
#[derive(Debug)]
struct Machines {
    seen: [(u64, Instant); 3],
    patience: [Duration; 3],
}

impl Machines {
    const NAMES: [&str; 3] = ["committer", "compactor", "preallocator"];

    fn new(commit_patience: Duration, now: Instant) -> Self {
        Self {
            seen: [(0, now); 3],
            patience: [commit_patience, COMPACT_PATIENCE.max(commit_patience), PREALLOC_PATIENCE.max(commit_patience)],
        }
    }

    /// The first machine that has not moved for longer than it may, and for how long.
    fn hangs(&mut self, now: Instant, counts: [u64; 3]) -> Option<(&'static str, Duration)> {
        let mut found = None;
        for ((seen, patience), (count, name)) in self.seen.iter_mut().zip(self.patience).zip(counts.into_iter().zip(Self::NAMES)) {
            if seen.0 != count {
                *seen = (count, now);
            }
            let still = now.saturating_duration_since(seen.1);
            if still > patience && found.is_none() {
                found = Some((name, still));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stands_still_is_found_and_forgiven_when_it_moves() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut m = Machines::new(Duration::from_secs(10), start);
        assert_eq!(m.hangs(at(10), [0, 0, 0]), None);
        assert_eq!(m.hangs(at(11), [0, 0, 0]), Some(("committer", Duration::from_secs(11))));
        assert_eq!(m.hangs(at(12), [1, 0, 0]), None);
        assert_eq!(m.hangs(at(22), [1, 0, 0]), None);
        assert_eq!(m.hangs(at(901), [2, 1, 0]), Some(("preallocator", Duration::from_secs(901))));
        assert_eq!(m.hangs(at(902), [3, 1, 1]), None);
        assert_eq!(m.hangs(at(901 + 6 * 3600), [4, 1, 2]), None);
        assert_eq!(m.hangs(at(902 + 6 * 3600), [5, 1, 3]), Some(("compactor", Duration::from_secs(6 * 3600 + 1))));
    }
}
