//! The whole core - log, recovery, manifest, plans, release, catalog, keys, HTTP's backend - on a simulated disk and store, in one
//! thread and in simulated time, with an oracle that knows what every client sent and heard.
//!
//! `ARC_SIM_SEED=n cargo test --test it sim::one_seed -- --nocapture` replays a seed; see docs/testing.md.

mod matrix;
mod model;
mod random;
mod world;
