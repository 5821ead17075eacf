//! Whether exactly one of several creates of one name wins when they arrive together.
//!
//! A store that checks for the name first and writes afterwards refuses a second put that comes later, and accepts both of two puts that
//! come at one time. Two nodes, or two copies of one log, could then both publish an object and each take it for its own. The race cannot
//! prove that a store is atomic: it finds one that lets two writers win for few of its names only by chance.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use object_store::path::Path;
use object_store::{PutMode, PutOptions, PutPayload};
use sha2::{Digest, Sha256};

use super::errors::{Class, Failed};
use super::{MAX_SMALL, Shared};
use crate::metrics::StoreOp;
use crate::sink::SinkError;

/// Creates of one name that are sent together.
pub(super) const WRITERS: usize = 8;
/// Names that are raced for at one time.
const KEYS_AT_ONCE: usize = 4;
/// Age in microseconds from which a race object belongs to no running race.
const STALE_AFTER_US: i64 = 86_400 * 1_000_000;
/// Begins the last part of a race object's name.
pub(super) const RACE_PREFIX: &str = "race-";

/// How the race for one name ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// One writer won, and its bytes are what the name holds.
    OneWinner,
    /// Too many answers were missing or unclear.
    Unclear,
    /// What speaks against the store.
    Unsafe(String),
}

/// What a writer heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Created,
    Taken,
    /// The put may have been carried out.
    Unknown,
}

/// Judges one race by the answers and by the number of the writer whose bytes the object holds: `None`, no object; `Some(None)`, bytes of
/// no writer.
pub(super) fn judge(answers: &[Answer], kept: Option<Option<usize>>) -> Verdict {
    let winners: Vec<usize> = answers.iter().enumerate().filter(|(_, a)| **a == Answer::Created).map(|(n, _)| n).collect();
    if winners.len() > 1 {
        return Verdict::Unsafe(format!("{} of {} puts that were sent together were accepted", winners.len(), answers.len()));
    }
    match (winners.first(), kept) {
        (Some(w), Some(Some(k))) if *w == k => Verdict::OneWinner,
        (Some(w), Some(Some(k))) => Verdict::Unsafe(format!("the put of writer {w} was accepted, and the object holds that of writer {k}")),
        (Some(_), None) => Verdict::Unclear,
        (None, Some(Some(k))) if answers.get(k) == Some(&Answer::Unknown) => Verdict::OneWinner,
        (None, Some(Some(k))) => Verdict::Unsafe(format!("the put of writer {k} was refused, and the object holds its bytes")),
        (_, Some(None)) => Verdict::Unsafe("the object holds bytes of no writer".into()),
        (None, None) => Verdict::Unclear,
    }
}

impl Shared {
    /// Races for `settings.race_keys` names unless the store's record says that this was done before.
    ///
    /// # Errors
    /// [`Class::Refused`]: the store let two writers win. Others: not now.
    pub(super) async fn race(&self) -> Result<(), Failed> {
        let keys = self.settings.race_keys;
        if keys == 0 {
            return Ok(());
        }
        let record = self.race_record()?;
        if self.head(&record).await?.is_some() {
            return Ok(());
        }
        // After a verdict no further race begins; those under way end, so that they remove their objects.
        let ended = AtomicBool::new(false);
        let mut races = stream::iter(0..keys).map(|_| self.race_for_one_name(&ended)).buffer_unordered(KEYS_AT_ONCE);
        let (mut settled, mut against) = (0, None);
        while let Some(raced) = races.next().await {
            if !matches!(raced, Ok(Verdict::OneWinner | Verdict::Unclear)) {
                ended.store(true, Ordering::Relaxed);
            }
            match raced {
                Ok(Verdict::OneWinner) => settled += 1,
                Ok(Verdict::Unclear) => {}
                // What was seen of the store weighs more than a request that failed.
                Err(f) => against = against.or(Some(f)),
                Ok(Verdict::Unsafe(seen)) => {
                    let text = format!(
                        "this store does not keep create-only puts when they race ({seen}): expected exactly one to be accepted. Two nodes, or two \
                         copies of a log, could then both publish and double rows; use a store that honours If-None-Match atomically, or set \
                         storage.create_only = \"trust\" if only one process ever writes here"
                    );
                    against = Some(Failed::new(Class::Refused, self.remote.description.clone(), text));
                }
            }
        }
        if let Some(f) = against {
            return Err(f);
        }
        if settled * 2 < keys {
            let text = format!("{settled} of {keys} races of create-only puts had a clear end, expected at least half: tried again");
            return Err(Failed::new(Class::Server, self.remote.description.clone(), text));
        }
        let body = serde_json::json!({"checked": "create-only", "keys": keys, "settled": settled, "writers": WRITERS});
        if let Err(f) = self.create(&record, PutPayload::from(body.to_string())).await {
            tracing::warn!(error = %SinkError::from(f), "the record of the create-only race could not be stored; the next start races again");
        }
        Ok(())
    }

    /// Where it is recorded that this store, reached by this configuration, passed.
    fn race_record(&self) -> Result<Path, Failed> {
        let configuration = format!("{}\n{}", self.remote.description, self.settings.prefix);
        let hash: String = Sha256::digest(configuration).iter().take(8).map(|b| format!("{b:02x}")).collect();
        self.arc_path(&format!("_arc/create-only-{hash}.json"))
    }

    fn arc_path(&self, name: &str) -> Result<Path, Failed> {
        self.path(name).map_err(|e| Failed::new(Class::Refused, name.to_owned(), e.to_string()))
    }

    async fn race_for_one_name(&self, ended: &AtomicBool) -> Result<Verdict, Failed> {
        if ended.load(Ordering::Relaxed) {
            return Ok(Verdict::Unclear);
        }
        // Nobody else removes such a name within a day, so that a second winner is evidence the first time it is seen.
        let name = format!("_arc/{}/{RACE_PREFIX}{:016x}", self.log, self.clock.random_u64());
        let path = self.arc_path(&name)?;
        let body = |n: usize| format!("{name} {n}");
        let puts = (0..WRITERS).map(|n| {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let put = self.remote.store.put_opts(&path, PutPayload::from(body(n)), options);
            self.once(StoreOp::Put, &path, self.settings.timeout, put)
        });
        let mut answers = Vec::with_capacity(WRITERS);
        let mut failed = None;
        for r in join_all(puts).await {
            answers.push(match r {
                Ok(_) => Answer::Created,
                Err(f) if f.class == Class::Exists => Answer::Taken,
                Err(f) if f.class.unclear() => Answer::Unknown,
                Err(f) => {
                    failed = Some(f);
                    Answer::Unknown
                }
            });
        }
        let mut kept = Vec::new();
        let read = match failed {
            Some(f) => Err(f),
            None => self.read(&path, MAX_SMALL, |b| kept.extend_from_slice(b)).await,
        };
        // An unknown put that lands after this leaves a few bytes, which a later start removes.
        if let Err(f) = self.remove(&path).await {
            tracing::warn!(error = %SinkError::from(f), "an object of the create-only race stays");
        }
        let kept = read?.map(|_| (0..WRITERS).find(|n| body(*n).as_bytes() == kept));
        Ok(judge(&answers, kept))
    }

    /// Whether `name`, last modified at `modified_us` (microseconds since 1970), is left over from a race that ended long ago.
    pub(super) fn is_stale_race(&self, name: &str, modified_us: i64) -> bool {
        name.starts_with(RACE_PREFIX) && self.clock.wall_us().saturating_sub(modified_us) > STALE_AFTER_US
    }
}

#[cfg(test)]
mod tests {
    use super::Answer::{Created, Taken, Unknown};
    use super::*;

    #[test]
    fn judge_takes_exactly_one_winner_whose_bytes_are_kept() {
        assert_eq!(judge(&[Taken, Created, Taken], Some(Some(1))), Verdict::OneWinner);
        assert_eq!(judge(&[Taken, Unknown, Taken], Some(Some(1))), Verdict::OneWinner);
        for (answers, kept) in [
            ([Created, Created, Taken], Some(Some(0))),
            ([Created, Unknown, Created], None),
            ([Created, Taken, Taken], Some(Some(2))),
            ([Created, Taken, Unknown], Some(Some(2))),
            ([Taken, Taken, Taken], Some(Some(0))),
            ([Created, Taken, Taken], Some(None)),
        ] {
            assert!(matches!(judge(&answers, kept), Verdict::Unsafe(_)), "{answers:?} {kept:?}");
        }
        assert_eq!(judge(&[Taken, Unknown, Taken], None), Verdict::Unclear);
        assert_eq!(judge(&[Created, Taken, Taken], None), Verdict::Unclear);
    }
}
