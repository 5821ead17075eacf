//! Durable ingest: HTTP requests are validated, appended to a segmented write-ahead log, acknowledged once they are
//! on stable storage, and compacted into Parquet files, each acknowledged row exactly once.
//!
//! The modules below stand in layer order: a module imports only from those above it (`tests/it/layering.rs` checks).

pub mod limits;
pub mod types;
pub mod error;
pub mod clock;

pub mod config;
pub mod metrics;
pub mod batch;
pub mod format;
pub mod vfs;
pub mod wal;
pub mod catalog;
pub mod idempotency;
pub mod decode;
pub mod sink;
pub mod compact;
pub mod http;
pub mod tools;
pub mod cli;
