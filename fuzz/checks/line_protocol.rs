//! Bodies of line protocol: the short cut changes nothing; what is stored becomes a record that is read back, and Parquet, with all its rows;
//! and once it is durable, the same body comes to the same.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use arc_ingest::catalog::Catalog;
use arc_ingest::decode::line_protocol::{Empty, InCatalog, LineOptions, Lines, Precision, decode, decode_the_long_way};
use arc_ingest::decode::table::Bounds;
use arc_ingest::decode::validate::admit;
use arc_ingest::format::payload::PayloadView;
use arc_ingest::types::LargeUnsigned;

use super::{held, parquet_rows, rows};

/// The first byte says how the body is decoded.
pub fn options(how: u8) -> LineOptions {
    use Precision::*;
    LineOptions {
        receive_time_us: 1_767_225_600_123_456,
        precision: [Nanos, Auto, Micros, Millis, Seconds, Minutes, Hours, Nanos][usize::from(how & 7)],
        hive_names: how & 16 == 0,
        large_unsigned: if how & 128 == 0 { LargeUnsigned::Refuse } else { LargeUnsigned::Saturate },
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
    one(*how, body);
    // Lines that repeat take the short cut.
    one(*how, &[body, b"\n", body, b"\n", body].concat());
}

fn one(how: u8, body: &[u8]) {
    let o = options(how);
    let most = 400 * body.len() + 4 * o.bounds.max_bytes + (256 << 10);
    let lines = match held::at_most(most, || decode(body, &o, &Empty)) {
        Ok(l) => l,
        Err(e) => {
            assert_eq!(e.status(), 413, "{e:?}");
            assert!(decode_the_long_way(body, &o, &Empty).is_err());
            return;
        }
    };
    assert_sound(&lines, body);
    let long = decode_the_long_way(body, &o, &Empty).unwrap_or_else(|e| panic!("the long way refuses what the short cut takes: {e}"));
    assert_eq!(lines.report, long.report);
    rows::assert_same(&lines.tables, &long.tables);
    if lines.tables.is_empty() {
        return;
    }
    let accepted: u64 = lines.tables.iter().map(|t| t.rows() as u64).sum();
    let catalog = Catalog::new(1024, 100);
    let admitted =
        now(admit(&catalog, "db", lines.tables.clone(), None, 1, 1 << 24)).unwrap_or_else(|e| panic!("lines that fit are refused: {e}"));
    let payload = admitted.record.payload().to_vec();
    let v = PayloadView::parse(&payload).unwrap();
    assert_eq!((admitted.rows, v.index.rows()), (accepted, accepted));
    let back = v.to_batch().unwrap();
    rows::assert_same(back.tables(), &lines.tables);
    // Against what it has defined itself, the body comes to the same.
    admitted.reservation.settle(1);
    // Only a column of floats takes an integer above int64: one that a later line has made does so the second time.
    let digits = body.split(|b| !b.is_ascii_digit() && *b != b'u').any(|n| n.len() > 19 && n.ends_with(b"u"));
    if digits && o.large_unsigned == LargeUnsigned::Refuse {
        return;
    }
    let again = decode(body, &o, &InCatalog { catalog: &catalog, database: "db" }).unwrap();
    // Which of two faults of a line is told first may change with what is defined.
    let told = |l: &Lines| l.report.details.iter().map(|d| d.line).collect::<Vec<_>>();
    assert_eq!((again.report.lines, again.report.bad, told(&again)), (lines.report.lines, lines.report.bad, told(&lines)));
    let second = now(admit(&catalog, "db", again.tables, None, 1, 1 << 24)).unwrap_or_else(|e| panic!("the same request again: {e}"));
    assert!(!second.reservation.defines() && second.rows == accepted);
    if accepted <= 500 {
        parquet_rows::assert_ships(&payload, back.tables(), how);
    }
}

fn assert_sound(lines: &Lines, body: &[u8]) {
    let r = &lines.report;
    let stored: u64 = lines.tables.iter().map(|t| t.rows() as u64).sum();
    assert_eq!(stored + r.bad, r.lines, "{r:?}");
    let last = body.iter().filter(|b| **b == b'\n').count() as u64 + 1;
    assert!(r.conflicts <= r.bad && r.details.len() as u64 <= r.bad && r.details.is_empty() == (r.bad == 0));
    assert!(r.details.iter().all(|d| d.line <= last && !d.message.is_empty() && !d.message.chars().any(char::is_control)));
    assert!(r.details.windows(2).all(|w| w[0].line < w[1].line));
    assert!(lines.tables.iter().all(|t| t.rows() > 0 && t.columns.iter().all(|c| c.values.rows() == Some(t.rows()))));
}
