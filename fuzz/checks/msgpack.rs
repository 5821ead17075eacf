//! A MessagePack body that is accepted becomes a record that is read back, and Parquet, with all its rows.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use arc_ingest::batch::Values;
use arc_ingest::catalog::Catalog;
use arc_ingest::decode::Nested;
use arc_ingest::decode::msgpack::{DecodeOptions, decode};
use arc_ingest::decode::table::Bounds;
use arc_ingest::decode::validate::admit;
use arc_ingest::format::payload::PayloadView;
use arc_ingest::types::{LargeUnsigned, TimeUnit};

use super::{held, parquet_rows, rows};

/// The first byte says how the body is decoded.
pub fn options(how: u8) -> DecodeOptions {
    DecodeOptions {
        receive_time_us: 1_767_225_600_123_456,
        time_unit: [None, None, None, Some(TimeUnit::Seconds), Some(TimeUnit::Millis), Some(TimeUnit::Micros), Some(TimeUnit::Nanos), None]
            [usize::from(how & 7)],
        nested: if how & 8 == 0 { Nested::Json } else { Nested::Reject },
        hive_names: how & 16 == 0,
        large_unsigned: if how & 128 == 0 { LargeUnsigned::Refuse } else { LargeUnsigned::Saturate },
        max_text: 1 << 20,
        bounds: Bounds {
            max_columns: if how & 32 == 0 { 1024 } else { 3 },
            max_tables: if how & 32 == 0 { 100 } else { 2 },
            max_partitions: if how & 64 == 0 { 1000 } else { 2 },
            max_bytes: 1 << 20,
        },
    }
}

fn now<F: Future>(f: F) -> F::Output {
    match pin!(f).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(x) => x,
        Poll::Pending => panic!("nothing is on its way that this could wait for"),
    }
}

pub fn check(data: &[u8]) {
    let Some((how, body)) = data.split_first() else { return };
    let o = options(*how);
    // Cells that items left out are padded, up to `max_bytes` and as much again while a vector grows.
    let most = 200 * body.len() + 4 * o.bounds.max_bytes + (256 << 10);
    let decoded = match held::at_most(most, || decode(body, &o)) {
        Ok(d) => d,
        Err(e) => {
            assert!(matches!(e.status(), 400 | 413), "{e:?}");
            assert!(!e.message().is_empty());
            return;
        }
    };
    let mut sent = decoded.tables.clone();
    let accepted: usize = sent.iter().map(|t| t.rows()).sum();
    assert!(sent.iter().all(|t| t.rows() > 0));
    sent.iter_mut().for_each(|t| t.columns.retain(|c| !matches!(c.values, Values::Null)));
    if sent.is_empty() {
        return;
    }
    let catalog = Catalog::new(1024, 100);
    let admitted = match now(admit(&catalog, "db", decoded.tables.clone(), None, 1, 1 << 24)) {
        Ok(a) => a,
        Err(e) => {
            assert!(matches!(e.status(), 400 | 413), "{e:?}");
            return;
        }
    };
    let payload = admitted.record.payload().to_vec();
    let v = PayloadView::parse(&payload).unwrap();
    assert_eq!((admitted.rows, v.index.rows()), (accepted as u64, accepted as u64));
    assert!(v.index.defines, "the catalog is empty");
    let back = v.to_batch().unwrap();
    rows::assert_same(back.tables(), &sent);
    // With the definitions durable, live and replayed, the same request fits and defines nothing.
    admitted.reservation.settle(1);
    let replayed = Catalog::new(1024, 100);
    replayed.fold(1, &v).unwrap();
    for c in [&catalog, &replayed] {
        let second =
            now(admit(c, "db", decoded.tables.clone(), None, 1, 1 << 24)).unwrap_or_else(|e| panic!("the same request again: {e}"));
        assert!(!second.reservation.defines() && !second.record.index().defines);
        assert_eq!(second.rows, accepted as u64);
    }
    if accepted <= 2000 {
        parquet_rows::assert_ships(&payload, back.tables(), *how);
    }
}
