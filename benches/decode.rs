//! From the bytes of a request to typed columns, in rows (lines) a second on one core; `cargo bench --bench decode`.
//!
//! The crate `influxdb-line-protocol` reads the same bytes beside it: it splits and parses lines, and makes no columns.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use arc_ingest::cli::bench::{Format, body::Templates};
use arc_ingest::decode::Nested;
use arc_ingest::decode::line_protocol::{self, Empty, LineOptions, Precision};
use arc_ingest::decode::msgpack::{self, DecodeOptions};
use arc_ingest::decode::table::Bounds;
use arc_ingest::types::LargeUnsigned;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};

const ROWS: usize = 1000;
/// Some hour; all rows stay within it.
const START_MS: u64 = 1_767_225_600_000;
const BOUNDS: Bounds = Bounds { max_columns: 1024, max_tables: 100, max_partitions: 1000, max_bytes: 64 << 20 };

/// What an agent sends: four measurements in turn, each with keys of its own.
fn agent() -> String {
    let mut text = String::new();
    for i in 0..ROWS {
        let (host, at) = (i % 20, (START_MS + i as u64) * 1_000_000);
        let _ = match i % 4 {
            0 => writeln!(
                text,
                "cpu,host=server{host:03},cpu=cpu{} usage_user={}.25,usage_system={}.5,usage_idle=88.125 {at}",
                i % 8,
                i % 50,
                i % 30
            ),
            1 => writeln!(
                text,
                "mem,host=server{host:03} used={}i,free={}i,used_percent=61.25 {at}",
                8_000_000_000_u64 + i as u64,
                900_000 + i
            ),
            2 => writeln!(text, "disk,host=server{host:03},path=/var/lib,fstype=ext4 used={}i,inodes_free=100000i {at}", 7_000_000 + i),
            _ => writeln!(text, "log,host=server{host:03},level=info message=\"request {i} \\\"GET /\\\" done\",status=200i {at}"),
        };
    }
    text
}

fn line(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, text: &str) {
    let options = LineOptions {
        receive_time_us: 0,
        precision: Precision::Nanos,
        hive_names: true,
        large_unsigned: LargeUnsigned::Refuse,
        bounds: BOUNDS,
    };
    let rows = |l: &line_protocol::Lines| l.tables.iter().map(|t| t.time.len()).sum::<usize>();
    let once = line_protocol::decode(text.as_bytes(), &options, &Empty).expect("a body within the bounds");
    assert_eq!((rows(&once), once.report.bad), (ROWS, 0));
    group.bench_function(format!("line protocol, {name}"), |b| {
        b.iter(|| line_protocol::decode(black_box(text.as_bytes()), &options, &Empty).map(|l| l.tables.len()));
    });
    group.bench_function(format!("line protocol, {name}, without the short cut"), |b| {
        b.iter(|| line_protocol::decode_the_long_way(black_box(text.as_bytes()), &options, &Empty).map(|l| l.tables.len()));
    });
    group.bench_function(format!("line protocol, {name}, influxdb-line-protocol (no columns)"), |b| {
        b.iter(|| influxdb_line_protocol::parse_lines(black_box(text)).filter(Result::is_ok).count());
    });
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.sample_size(50).measurement_time(Duration::from_secs(3)).throughput(Throughput::Elements(ROWS as u64));
    let options = DecodeOptions {
        receive_time_us: 0,
        time_unit: None,
        nested: Nested::Json,
        hive_names: true,
        large_unsigned: LargeUnsigned::Refuse,
        bounds: BOUNDS,
        max_text: BOUNDS.max_bytes,
    };
    for (name, format) in [("columnar", Format::Columnar), ("rows", Format::Row)] {
        let mut body = Vec::new();
        let templates = Templates::build(format, ROWS, 1);
        templates.pick(0).expect("a template").render(0, START_MS + ROWS as u64, &mut body);
        group.bench_function(format!("msgpack, {name}"), |b| {
            b.iter(|| msgpack::decode(black_box(&body), &options).map(|d| d.tables.len()));
        });
    }
    let mut same = Vec::new();
    Templates::build(Format::Line, ROWS, 1).pick(0).expect("a template").render(0, START_MS + ROWS as u64, &mut same);
    line(&mut group, "one measurement", std::str::from_utf8(&same).expect("text"));
    line(&mut group, "four measurements", &agent());
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
