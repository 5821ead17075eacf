//! Threads that only make things faster: where the system gives none, the work is done without.

use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Starts `f` on a thread of its own. None when the system gives none: whoever calls does the work with fewer, or itself.
pub(super) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    f: impl FnOnce() -> T + Send + 'scope,
) -> Option<ScopedJoinHandle<'scope, T>> {
    #[cfg(test)]
    if refusal::next() {
        return None;
    }
    let started = Builder::new().name(name.to_owned()).spawn_scoped(scope, f);
    started.inspect_err(|e| tracing::warn!(error = %e, name, "a thread cannot be started: going on with fewer")).ok()
}

/// In tests the system can refuse threads to the thread that asks.
#[cfg(test)]
pub(super) mod refusal {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// From now on `n` threads are started, and no more.
    pub(in crate::compact) fn after(n: usize) {
        LEFT.set(Some(n));
    }

    pub(super) fn next() -> bool {
        match LEFT.get() {
            Some(0) => true,
            Some(n) => {
                LEFT.set(Some(n - 1));
                false
            }
            None => false,
        }
    }
}
