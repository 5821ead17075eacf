//! From request bodies to typed columns.
//!
//! `msgpack::decode` is the way in for MessagePack, `line_protocol::decode` for line protocol; `compression::inflate` for compressed bodies.
#![deny(clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used))]

pub mod column;
pub mod compression;
pub mod line_protocol;
pub mod msgpack;
pub mod sniff;
pub mod strings;
pub mod table;
pub mod time;
pub mod validate;

/// What is done with arrays and maps that stand where a cell is expected (`ingest.nested`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Nested {
    /// They become JSON text in a string column.
    #[default]
    Json,
    /// The request is refused.
    Reject,
}
