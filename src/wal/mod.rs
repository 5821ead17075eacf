//! The write-ahead log: appending, group commit, segments, recovery.
//!
//! One thread owns the active segment (`commit::Committer`); it is a machine with a `step`, driven by a loop here and by a
//! scheduler in a simulation. Requests reach it through [`Appender`]; the compactor sees [`SealedSegment`]s.
//!
//! INVARIANT(watermarks): `released <= shipped <= sealed <= durable <= appended`, asserted at every change.
//! INVARIANT(ack-after-sync): a waiter hears of its sequence only after the sync that covers it has returned.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod aside;
mod by_content;
pub mod commit;
pub mod files;
pub mod manifest;
pub mod offline;
pub mod prealloc;
pub mod queue;
pub mod reader;
pub mod recover;
pub mod reserve;
pub mod shared;
pub mod side;
pub mod start;

pub use queue::{AppendError, Appender, Completion};
pub use shared::{SealedSegment, Shared, Watermarks};

#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod start_tests;
#[cfg(test)]
mod prealloc_tests;
#[cfg(all(test, feature = "shuttle"))]
mod shuttle_tests;
#[cfg(test)]
mod tests;
