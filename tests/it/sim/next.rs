//! The steps of a life, for who decides them all.

use std::time::Duration;

use super::model::Traffic;

/// What a life is told to do next by who drives it.
#[derive(Clone, Debug)]
pub enum Next {
    /// A new request, made of the numbers of `seed`; its client waits so long.
    Send {
        seed: u64,
        traffic: Traffic,
        patience: Duration,
    },
    /// A request with a key once more, counted from the newest one backwards; nothing without any.
    Again {
        back: usize,
        patience: Duration,
    },
    Committer,
    Preallocator,
    /// Unless it waits: for something that takes time, or `early`, as by a wake-up.
    Compactor {
        early: bool,
    },
    Advance(Duration),
    /// The life ends: without power.
    PowerCut,
    Kill,
    /// The life ends: everything is shipped, and the server stops in good order; killed after so many rounds without that.
    Drain(u32),
}

/// Patience without an end.
pub const PATIENT: Duration = Duration::from_secs(3600);
