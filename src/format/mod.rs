//! The log's bytes, as published in `wal-format.md`. Pure: byte slices in, values out.
//!
//! Nothing here touches files, time or threads, nothing panics on any input, and nothing allocates by a length that
//! the input merely claims.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod bytes;
pub mod file_header;
pub mod manifest;
pub mod payload;
pub mod record;
pub mod scan;

#[cfg(test)]
mod doc_test;
