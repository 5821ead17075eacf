//! From request bodies to typed columns.
//!
//! `msgpack::decode` is the way in for MessagePack; `compression::inflate` for compressed bodies.

pub mod compression;
pub mod msgpack;
