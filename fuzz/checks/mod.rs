//! What the fuzz targets check: one function over bytes for each.
//!
//! The fuzzers (`fuzz/targets`) and the test that replays the checked-in corpus (`tests/it/corpus.rs`) call the same functions,
//! so that what a fuzzer found stays found without one.
#![allow(clippy::unwrap_used)]

pub mod build;
pub mod held;
pub mod memory;
pub mod parquet_rows;
pub mod rows;

pub mod compression;
pub mod http;
pub mod line_protocol;
pub mod line_protocol_differential;
pub mod manifest;
pub mod msgpack;
pub mod msgpack_differential;
pub mod ops;
pub mod payload;
pub mod record_roundtrip;
pub mod recover_dir;
pub mod scan;
pub mod segment_header;

/// A fuzz target: its name, which is also that of its binary and of its corpus folder, and its check.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("compression", compression::check),
    ("http", http::check),
    ("line_protocol", line_protocol::check),
    ("line_protocol_differential", line_protocol_differential::check),
    ("manifest", manifest::check),
    ("msgpack", msgpack::check),
    ("msgpack_differential", msgpack_differential::check),
    ("ops", ops::check),
    ("payload", payload::check),
    ("record_roundtrip", record_roundtrip::check),
    ("recover_dir", recover_dir::check),
    ("scan", scan::check),
    ("segment_header", segment_header::check),
];
