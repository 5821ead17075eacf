//! MessagePack requests: columnar, row, batch and array form.
//!
//! Two decoders stand behind [`decode`]. `fast` reads the columnar form straight into typed columns and gives up on
//! anything it does not know. `generic` reads every form and is the authority: every verdict and every message is its own.
//!
//! INVARIANT(fast-equals-generic): what `fast` accepts, `generic` accepts with the same rows.

mod fast;
mod generic;
mod json;
mod rows;
mod scan;
mod texts;
mod value;

#[cfg(test)]
mod tests;

use super::Nested;
use super::table::{Bounds, KnownTypes};
use crate::batch::TableBatch;
use crate::error::RequestError;
use crate::types::{LargeUnsigned, TimeUnit};

/// What a request is decoded with: facts about it and limits from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct DecodeOptions {
    /// Time of rows that have none, in microseconds since the Unix epoch.
    pub receive_time_us: i64,
    /// Unit of times from the header `x-arc-time-unit`; None: by magnitude.
    pub time_unit: Option<TimeUnit>,
    pub nested: Nested,
    /// `date` and `hour` are partition columns of the storage layout: columns of that name become `<name>_value`.
    pub hive_names: bool,
    /// What is done with integers above the largest int64 in columns that are not float64.
    pub large_unsigned: LargeUnsigned,
    pub bounds: Bounds,
    /// Bytes of text that nested values, tags that are no text and invalid UTF-8 may become.
    pub max_text: usize,
}

/// What a request holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Each table once, each with at least one row; empty when there is nothing to store. Columns of which every value is
    /// nil are [`crate::batch::Values::Null`].
    pub tables: Vec<TableBatch>,
    /// Strings in which invalid UTF-8 was replaced by U+FFFD.
    pub invalid_utf8: u64,
    /// Integers that were stored as the largest int64.
    pub saturated: u64,
}

/// Decodes an uncompressed body for a database that has no tables yet.
///
/// # Errors
/// As [`decode_into`].
pub fn decode(body: &[u8], options: &DecodeOptions) -> Result<Decoded, RequestError> {
    decode_into(body, options, &|_, _| None)
}

/// Decodes an uncompressed body. What `known` says of a column decides only whether it may hold integers above the largest int64.
///
/// # Errors
/// [`RequestError::Invalid`] naming the place, what was expected and what was found; [`RequestError::TooLarge`] over a
/// bound of the request's size.
pub fn decode_into(body: &[u8], options: &DecodeOptions, known: KnownTypes<'_>) -> Result<Decoded, RequestError> {
    match fast::decode(body, options) {
        Ok(decoded) => Ok(decoded),
        Err(fast::Fallback) => generic::decode(body, options, known),
    }
}

/// What each decoder says of `body`: `fast` (None: it gives up), `generic`. For tests of the invariant above; a server calls
/// [`decode_into`].
pub fn decode_with_both(body: &[u8], options: &DecodeOptions) -> (Option<Decoded>, Result<Decoded, RequestError>) {
    (fast::decode(body, options).ok(), generic::decode(body, options, &|_, _| None))
}
