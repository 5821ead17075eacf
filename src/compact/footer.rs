//! The end of a finished Parquet file: how its columns are ordered for minimum and maximum, and which of them have bounds.
//!
//! The `parquet` crate names `IEEE754_TOTAL_ORDER` for columns of doubles and has no setting for it. Readers older than that
//! order refuse the whole file, and those that know it expect a count of NaN that older ones ignore. `TYPE_ORDER` is known
//! to all of them. Both are written in three bytes, so the footer is changed in place.
//!
//! INVARIANT(bounds-of-all-or-none): a column has bounds in every row group with values, or in none. A reader that adds up the bounds
//! of a file (DataFusion 45 and 55) leaves out the row groups that have none: it then skips files with rows of a filter, or takes
//! the greatest of the others for the greatest of all.

use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataWriter, RowGroupMetaData};
use parquet::file::statistics::{Statistics, ValueStatistics};

/// Bytes after the metadata: its length, and the magic number.
const TAIL: usize = 8;
/// A union of Thrift's compact protocol with an empty struct as field 1 (`TYPE_ORDER`): header of the field, end of the struct,
/// end of the union.
const TYPE_ORDER: [u8; 3] = [0x1c, 0, 0];
/// The same with field 2.
const TOTAL_ORDER: [u8; 3] = [0x2c, 0, 0];

/// Which columns have row groups with bounds and row groups with values and no bounds.
#[derive(Default)]
pub(super) struct Bounds(Vec<(bool, bool)>);

impl Bounds {
    /// Takes account of a chunk of column `i`.
    pub(super) fn add(&mut self, i: usize, chunk: &ColumnChunkMetaData) {
        if self.0.len() <= i {
            self.0.resize(i + 1, (false, false));
        }
        let Some((with, without)) = self.0.get_mut(i) else { return };
        match chunk.statistics() {
            Some(s) if s.min_bytes_opt().is_some() => *with = true,
            // NULLs have no bounds anywhere.
            Some(s) if s.null_count_opt().is_some_and(|n| i64::try_from(n) == Ok(chunk.num_values())) => {}
            _ => *without = true,
        }
    }

    fn is_mixed(&self, i: usize) -> bool {
        self.0.get(i) == Some(&(true, true))
    }

    fn any_mixed(&self) -> bool {
        (0..self.0.len()).any(|i| self.is_mixed(i))
    }
}

/// Writes the footer anew without the bounds of those columns that have them in some row groups only. `end` as in
/// [`set_type_order`]; `metadata` is what the footer there says.
///
/// # Errors
/// When the footer does not look as the `parquet` crate of this version writes it.
pub(super) fn drop_mixed_bounds(end: &mut Vec<u8>, metadata: ParquetMetaData, bounds: &Bounds) -> Result<()> {
    if !bounds.any_mixed() {
        return Ok(());
    }
    let too_short = || ParquetError::General("footer: too short".to_owned());
    let tail = end.len().checked_sub(TAIL).ok_or_else(too_short)?;
    let length = end.get(tail..).and_then(|t| t.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b));
    end.truncate(tail.checked_sub(length as usize).ok_or_else(too_short)?);
    let mut metadata = metadata.into_builder();
    let groups: Result<Vec<RowGroupMetaData>> = metadata.take_row_groups().into_iter().map(|g| without(g, bounds)).collect();
    ParquetMetaDataWriter::new(end, &metadata.set_row_groups(groups?).build()).finish()
}

fn without(group: RowGroupMetaData, bounds: &Bounds) -> Result<RowGroupMetaData> {
    let mut group = group.into_builder();
    let mut columns = group.take_columns();
    for (i, c) in columns.iter_mut().enumerate().filter(|(i, _)| bounds.is_mixed(*i)) {
        let nulls = c.statistics().and_then(Statistics::null_count_opt);
        let statistics = match c.statistics() {
            Some(Statistics::Double(_)) => Statistics::Double(ValueStatistics::new(None, None, None, nulls, false)),
            Some(Statistics::ByteArray(_)) => Statistics::ByteArray(ValueStatistics::new(None, None, None, nulls, false)),
            _ => return Err(ParquetError::General(format!("column {i}: bounds in some row groups only"))),
        };
        *c = c.clone().into_builder().set_statistics(statistics).build()?;
    }
    group.set_column_metadata(columns).build()
}

/// Sets the order of every column to `TYPE_ORDER`. `end`: the last bytes of a file of `columns` columns, the whole footer
/// among them.
///
/// `column_orders` (field 7) is the last field of the metadata and follows `created_by` (field 6).
///
/// # Errors
/// When the footer does not look as the `parquet` crate of this version writes it.
pub(super) fn set_type_order(end: &mut [u8], columns: usize) -> Result<()> {
    let unexpected = |what: &str| ParquetError::General(format!("footer: {what}"));
    // The metadata ends with the end of its struct, one byte.
    let last = end.len().checked_sub(TAIL + 1).ok_or_else(|| unexpected("too short"))?;
    if !end.ends_with(b"PAR1") || end.get(last) != Some(&0) {
        return Err(unexpected("expected the end of the metadata, its length and PAR1"));
    }
    let first = last.checked_sub(columns * TYPE_ORDER.len()).ok_or_else(|| unexpected("too short for its columns"))?;
    let (before, orders) = end.split_at_mut_checked(first).ok_or_else(|| unexpected("too short"))?;
    if !before.ends_with(&list_header(columns)) {
        return Err(unexpected("expected the orders of the columns as its last field"));
    }
    let (orders, _) = orders.as_chunks_mut::<3>();
    for order in orders.iter_mut().take(columns) {
        if *order != TYPE_ORDER && *order != TOTAL_ORDER {
            return Err(unexpected("unknown order of a column"));
        }
        *order = TYPE_ORDER;
    }
    Ok(())
}

/// Headers of the field and of its list of structs.
fn list_header(elements: usize) -> Vec<u8> {
    const FIELD: u8 = 0x19;
    const STRUCT: u8 = 0x0c;
    match u8::try_from(elements) {
        Ok(n @ ..15) => vec![FIELD, n << 4 | STRUCT],
        _ => {
            use crate::format::bytes::Writer as _;
            let mut header = vec![FIELD, 0xf0 | STRUCT];
            header.put_varint(elements as u64);
            header
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footer_of_another_form_is_refused() {
        let good = [&[0x19, 0x2c, 0x1c, 0, 0, 0x2c, 0, 0, 0, 9, 0, 0, 0][..], b"PAR1"].concat();
        let mut changed = good.clone();
        set_type_order(&mut changed, 2).unwrap();
        assert_eq!(changed.get(2..8), Some(&[0x1c, 0, 0, 0x1c, 0, 0][..]));
        for n in 0..good.len() {
            assert!(set_type_order(&mut good[n + 1..].to_vec(), 2).is_err());
        }
        for at in [0, 1, 2, 3, 5, 8, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(set_type_order(&mut bad, 2).is_err(), "byte {at}");
        }
        assert!(set_type_order(&mut good.clone(), 1).is_err());
        assert!(set_type_order(&mut good.clone(), 3).is_err());
    }
}
