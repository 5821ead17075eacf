//! Payloads of write records: any bytes, and real ones with some bytes changed.

use arbitrary::Unstructured;
use arc_ingest::catalog::Catalog;
use arc_ingest::format::payload::{PayloadView, encode, parse_table, table_body};
use arc_ingest::limits::MAX_PAYLOAD;

use super::build::{Damage, batch, key, upto};
use super::{held, parquet_rows, rows};

pub fn check(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    if mode % 2 == 0 {
        return any(rest, mode / 2);
    }
    let u = &mut Unstructured::new(rest);
    let mut payload = encode(&batch(u), key(u), false, 0, MAX_PAYLOAD).unwrap().payload().to_vec();
    for _ in 0..upto(u, 4) {
        let to = payload.len();
        Damage::make(u, 0, to).apply(&mut payload, to);
    }
    any(&payload, mode / 2);
}

fn any(payload: &[u8], codec: u8) {
    let most = 64 * payload.len() + (64 << 10);
    for i in [0, 1, u32::MAX] {
        held::at_most(most, || drop(table_body(payload, i).and_then(|(rows, body)| parse_table(body, rows))));
    }
    let Ok(v) = held::at_most(most, || PayloadView::parse(payload)) else { return };
    let _ = Catalog::new(100, 100).fold(1, &v);
    // Rows of a column that holds one value take no bytes in the payload, and 8 each here: the check of the bound is in terms of rows.
    let total = v.index.rows() as usize;
    if total > 1 << 20 {
        return;
    }
    let columns: usize = (0..v.index.tables.len()).filter_map(|i| v.table(i).ok()).map(|t| 1 + t.columns.len()).sum();
    let most = 64 * payload.len() + total.saturating_mul(32).saturating_mul(columns.max(1)) + (64 << 10);
    match held::at_most(most, || v.to_batch()) {
        Ok(b) => {
            let again = encode(&b, v.index.key, v.index.defines, 0, MAX_PAYLOAD).unwrap();
            let w = PayloadView::parse(again.payload()).unwrap();
            assert_eq!(
                w.index.tables.iter().map(|t| (&t.table, t.rows, &t.hours)).collect::<Vec<_>>(),
                v.index.tables.iter().map(|t| (&t.table, t.rows, &t.hours)).collect::<Vec<_>>()
            );
            assert_eq!((w.index.key, &w.index.database), (v.index.key, &v.index.database));
            rows::assert_same(w.to_batch().unwrap().tables(), b.tables());
            parquet_rows::assert_ships(payload, b.tables(), codec);
        }
        Err(_) => set_aside(payload, &v, codec),
    }
}

/// What cannot be a batch may still come to the compactor, out of a log that another program wrote: it is set aside or built, and
/// nothing panics.
fn set_aside(payload: &[u8], v: &PayloadView<'_>, codec: u8) {
    for (i, t) in v.index.tables.iter().enumerate().take(3) {
        let Ok(view) = v.table(i) else { continue };
        for (hour, rows) in t.hours.iter().take(2) {
            let mut names: Vec<&str> = view.columns.iter().map(|c| c.name).collect();
            names.sort_unstable();
            names.dedup();
            // A plan's schema has each column once, none of them `time`, and a hour from the years that a time can have.
            if names.len() != view.columns.len() || names.iter().any(|n| n.eq_ignore_ascii_case("time")) || hour.unsigned_abs() > 1 << 32 {
                continue;
            }
            let (built, _) = parquet_rows::file(payload, v, i, &view, *hour, *rows, codec);
            let aside: u64 = built.set_aside.iter().map(|s| u64::from(s.rows)).sum();
            assert_eq!(built.rows + aside, u64::from(*rows));
            assert!(built.set_aside.iter().all(|s| !s.reason.starts_with("panic")), "{:?}", built.set_aside);
        }
    }
}
