//! Who was refused, and why: the last refused writes for the status, and a log line for each sender and reason.
//!
//! INVARIANT(refusals-bounded): at most [`MAX_KEPT`] entries, each of at most some 700 bytes; at most [`MAX_LINES`] log lines in ten seconds.
//! Nothing of a token or a header is kept. Of a refused line its first error is kept, not its text.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::log_limit::{LogLimit, QUIET};
use crate::metrics::{Rejected, Route};
use crate::sync::Mutex;
use crate::wal::shared::lock;

/// Most refusals that are kept. Equal ones are one entry with a count.
const MAX_KEPT: usize = 64;
/// Most bytes of a kept message.
const MAX_MESSAGE: usize = 300;
/// Most senders and reasons whose log lines are limited each for itself.
const MAX_GATES: usize = 256;
/// Most log lines in ten seconds, whoever they are about.
const MAX_LINES: u32 = 20;

/// A refused write.
#[derive(Clone, Debug)]
pub(super) struct Refused<'a> {
    /// Microseconds since the Unix epoch.
    pub(super) at_us: i64,
    pub(super) peer: Option<IpAddr>,
    pub(super) route: Route,
    pub(super) reason: Rejected,
    pub(super) status: u16,
    pub(super) database: Option<&'a str>,
    pub(super) message: &'a str,
}

/// An entry of the status.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Kept {
    last: String,
    peer: Option<String>,
    route: &'static str,
    status: u16,
    reason: &'static str,
    database: Option<String>,
    table: Option<String>,
    message: String,
    count: u64,
}

impl Kept {
    fn is_like(&self, other: &Self) -> bool {
        let key = |k: &Self| (k.route, k.status, k.reason);
        key(self) == key(other) && self.peer == other.peer && self.database == other.database && self.table == other.table
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Newest first.
    kept: VecDeque<Kept>,
    gates: VecDeque<((Option<IpAddr>, Rejected), LogLimit)>,
    /// When the present ten seconds began, and their lines.
    window: (Duration, u32),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Inner>);

impl Refusals {
    /// Keeps a refusal. `now` is time since a fixed point. Returns whether it is to be logged, with the number of those of the same sender
    /// and reason that were not.
    pub(super) fn add(&self, refused: &Refused<'_>, now: Duration) -> Option<u64> {
        let kept = Kept {
            last: crate::auth::iso(refused.at_us),
            peer: refused.peer.map(|p| p.to_string()),
            route: refused.route.word(),
            status: refused.status,
            reason: refused.reason.word(),
            database: refused.database.map(str::to_owned),
            table: table_of(refused.message).map(str::to_owned),
            message: cut(refused.message).to_owned(),
            count: 1,
        };
        let mut inner = lock(&self.0);
        inner.keep(kept);
        inner.pass(refused.peer, refused.reason, now)
    }

    /// The last refusals, newest first.
    pub(super) fn list(&self) -> Vec<Kept> {
        lock(&self.0).kept.iter().cloned().collect()
    }
}

impl Inner {
    fn keep(&mut self, mut new: Kept) {
        if let Some(old) = self.kept.iter().position(|k| k.is_like(&new)).and_then(|at| self.kept.remove(at)) {
            new.count += old.count;
        }
        self.kept.push_front(new);
        self.kept.truncate(MAX_KEPT);
    }

    fn pass(&mut self, peer: Option<IpAddr>, reason: Rejected, now: Duration) -> Option<u64> {
        let key = (peer, reason);
        let gate = match self.gates.iter().position(|(k, _)| *k == key).and_then(|at| self.gates.remove(at)) {
            Some(gate) => gate,
            None => (key, LogLimit::new()),
        };
        let suppressed = gate.1.pass(now);
        self.gates.push_front(gate);
        self.gates.truncate(MAX_GATES);
        let suppressed = suppressed?;
        if now >= self.window.0 + QUIET {
            self.window = (now, 0);
        }
        self.window.1 += 1;
        (self.window.1 <= MAX_LINES).then_some(suppressed)
    }
}

/// The beginning of a text.
pub(super) fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_MESSAGE)).unwrap_or(text)
}

/// The table that a message names, in the words of the decoders or in those of InfluxDB.
fn table_of(message: &str) -> Option<&str> {
    let (end, rest) = match (message.split_once("table '"), message.split_once("measurement \"")) {
        (Some((_, rest)), _) => ('\'', rest),
        (None, Some((_, rest))) => ('"', rest),
        (None, None) => return None,
    };
    let (name, _) = rest.split_once(end)?;
    (name.len() <= crate::limits::MAX_TABLE_NAME).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(peer: u8, database: &'static str, message: &'static str) -> Refused<'static> {
        Refused {
            at_us: 1_767_225_600_000_000,
            peer: Some([127, 0, 0, peer].into()),
            route: Route::WriteV1,
            reason: Rejected::Invalid,
            status: 400,
            database: Some(database),
            message,
        }
    }

    #[test]
    fn equal_refusals_are_one_entry_and_the_list_is_bounded() {
        let list = Refusals::default();
        for n in 0..1000u32 {
            list.add(&refused(1, "d", "table 'cpu': column 'v': expected int64, found text"), Duration::from_millis(u64::from(n)));
        }
        let kept = list.list();
        assert_eq!((kept.len(), kept[0].count, kept[0].table.as_deref()), (1, 1000, Some("cpu")));
        assert_eq!((kept[0].last.as_str(), kept[0].peer.as_deref()), ("2026-01-01T00:00:00.000000Z", Some("127.0.0.1")));
        let long: &'static str = Box::leak("é".repeat(1 << 16).into_boxed_str());
        for peer in 0..=255 {
            list.add(&refused(peer, "d", long), Duration::ZERO);
        }
        let kept = list.list();
        assert_eq!((kept.len(), kept[0].peer.as_deref()), (MAX_KEPT, Some("127.0.0.255")));
        assert!(serde_json::to_string(&kept).unwrap().len() < MAX_KEPT * 700);
    }

    #[test]
    fn a_sender_and_reason_is_logged_once_in_ten_seconds_and_all_of_them_seldom() {
        let list = Refusals::default();
        let at = |ms| Duration::from_millis(ms);
        assert_eq!(list.add(&refused(1, "d", "x"), at(0)), Some(0));
        for ms in 1..100 {
            assert_eq!(list.add(&refused(1, "d", "x"), at(ms)), None);
        }
        assert_eq!(list.add(&refused(2, "d", "x"), at(100)), Some(0), "another sender");
        let other = Refused { reason: Rejected::TooLarge, ..refused(1, "d", "x") };
        assert_eq!(list.add(&other, at(101)), Some(0), "another reason");
        assert_eq!(list.add(&refused(1, "d", "x"), at(10_000)), Some(99));
        let many = (0..=255).filter(|peer| list.add(&refused(*peer, "d", "x"), at(30_000)).is_some()).count();
        assert_eq!(many, MAX_LINES as usize);
        assert!(lock(&list.0).gates.len() <= MAX_GATES);
    }
}
