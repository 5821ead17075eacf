//! The whole core - log, recovery, manifest, plans, release, catalog, keys, HTTP's backend - on a simulated disk and store, in one
//! thread and in simulated time, with an oracle that knows what every client sent and heard.
//!
//! `ARC_SIM_SEED=n cargo test --test it sim::one_seed -- --nocapture` replays a seed; see docs/testing.md.

#[cfg(test)]
mod matrix;
pub mod model;
pub mod next;
#[cfg(test)]
mod random;
// The fuzz targets include this file for the machine alone.
pub mod world;
