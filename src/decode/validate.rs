//! From decoded tables to a record that may be appended: structure, catalog, size.

use std::sync::Arc;

use crate::batch::{TableBatch, ValidBatch, Values};
use crate::catalog::{Catalog, Reservation};
use crate::error::RequestError;
use crate::format::payload::{EncodedRecord, KeyEntry, encode};

/// A request that may be appended, and what it holds in the catalog until its outcome is known.
#[derive(Debug)]
pub struct Admitted {
    pub record: EncodedRecord,
    pub reservation: Reservation,
    pub rows: u64,
}

/// Validates and encodes a decoded request. Columns without a single value are left out: they read as NULL, and define
/// nothing while their type is not known.
///
/// # Errors
/// [`RequestError`]: 400 for what cannot be stored, 413 over `max_record` bytes.
pub async fn admit(
    catalog: &Arc<Catalog>,
    database: &str,
    mut tables: Vec<TableBatch>,
    key: Option<KeyEntry>,
    receive_time_us: i64,
    max_record: usize,
) -> Result<Admitted, RequestError> {
    for t in &mut tables {
        t.columns.retain(|c| !matches!(c.values, Values::Null));
    }
    let mut batch = ValidBatch::new(database.to_owned(), tables)?;
    let reservation = catalog.resolve(&mut batch).await?;
    let rows = batch.rows() as u64;
    let record = encode(&batch, key, reservation.defines(), receive_time_us, max_record).map_err(|n| {
        RequestError::TooLarge(format!(
            "the request takes {n} bytes in the log, at most {max_record} are allowed (ingest.max_record_size); send fewer rows at a time"
        ))
    })?;
    Ok(Admitted { record, reservation, rows })
}
