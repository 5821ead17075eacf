//! CPU time from payloads to a finished Parquet file: a million rows of time, three strings, three floats, in slices
//! of 1,000 rows. Read the reported time as CPU-seconds per million rows; `cargo bench --bench parquet`.

use std::hint::black_box;
use std::time::Duration;

use arc_ingest::batch::{Column, Strings, TableBatch, ValidBatch, Values};
use arc_ingest::compact::{Codecs, Layout, OutputSpec, Payloads, SchemaColumn, SliceRef, WriterSettings, build};
use arc_ingest::format::payload::encode;
use arc_ingest::types::{ColumnType, hour_of};
use criterion::{Criterion, criterion_group, criterion_main};

const ROWS: usize = 1_000_000;
/// Some hour; the shape's times stay within it.
const START_US: i64 = 1_767_225_600_000_000;

struct Log(Vec<Vec<u8>>, Vec<SliceRef>);

impl Payloads for Log {
    fn payload(&self, s: &SliceRef) -> &[u8] {
        self.0.get(s.segment as usize).map_or(&[], |p| p.as_slice())
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// `dictionaries`: the decoder found the strings' dictionaries. `overlapping`: every slice covers the same second.
fn log(slice_rows: usize, dictionaries: bool, overlapping: bool) -> Log {
    let hosts: Vec<String> = (0..1000).map(|i| format!("server{i:03}")).collect();
    let regions = ["us-east", "us-west", "eu-central"].map(str::to_owned);
    let envs = ["prod", "staging", "dev"].map(str::to_owned);
    let mut r = Random(1);
    let mut log = Log(Vec::new(), Vec::new());
    for k in 0..ROWS / slice_rows {
        let first = if overlapping { 0 } else { k * slice_rows };
        let time = (first..first + slice_rows).map(|i| START_US + i as i64 * 1000).collect();
        let mut text = |name: &str, of: &[String]| {
            let codes: Vec<u16> = (0..slice_rows).map(|_| r.below(of.len() as u64) as u16).collect();
            let mut distinct = codes.clone();
            distinct.sort_unstable();
            distinct.dedup();
            let mut all = Strings::default();
            let values = if dictionaries {
                distinct.iter().for_each(|c| all.push(of[*c as usize].as_bytes()));
                let place = |c: &u16| distinct.binary_search(c).map_or(0, |i| i as u16);
                Values::Utf8Dict { codes: codes.iter().map(place).collect(), dictionary: all }
            } else {
                codes.iter().for_each(|c| all.push(of[*c as usize].as_bytes()));
                Values::Utf8(all)
            };
            Column { name: name.into(), tag: true, values, validity: None, defines: false }
        };
        let mut columns = vec![text("host", &hosts), text("region", &regions), text("env", &envs)];
        for name in ["usage_idle", "usage_user", "usage_system"] {
            let v = (0..slice_rows).map(|_| r.below(1 << 30) as f64 * 100.0 / (1u64 << 30) as f64).collect();
            columns.push(Column { name: name.into(), tag: false, values: Values::Float64(v), validity: None, defines: false });
        }
        let batch = ValidBatch::new("db".into(), vec![TableBatch { table: "cpu".into(), time, columns }]).expect("a valid batch");
        let e = encode(&batch, None, false, 0, 1 << 30).expect("a payload within bounds");
        log.1.push(SliceRef::new(k as u64 + 1, k as u32, 0, e.payload_len(), 0, slice_rows as u32, true));
        log.0.push(e.payload().to_vec());
    }
    log
}

fn spec(compression: Codecs) -> OutputSpec {
    let column = |name: &str, ty, tag| SchemaColumn { name: name.into(), ty, tag };
    let mut columns: Vec<SchemaColumn> = ["host", "region", "env"].map(|n| column(n, ColumnType::Utf8, true)).into();
    columns.extend(["usage_idle", "usage_user", "usage_system"].map(|n| column(n, ColumnType::Float64, false)));
    OutputSpec {
        database: "db".into(),
        table: "cpu".into(),
        hour: hour_of(START_US),
        layout: Layout::Hive,
        columns,
        settings: WriterSettings { compression, ..WriterSettings::default() },
        metadata: vec![],
    }
}

/// Nanoseconds this thread has spent on a CPU, as the scheduler counts them (updated at its ticks).
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

fn bench(c: &mut Criterion) {
    let mut g = c.benchmark_group("build");
    g.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for (shape, log) in [
        ("plain strings", log(1000, false, false)),
        ("dictionaries", log(1000, true, false)),
        ("dictionaries, overlapping", log(1000, true, true)),
        ("one-row slices", log(1, false, false)),
    ] {
        for (name, codec) in [("none", Codecs::None), ("zstd 1", Codecs::Zstd(1)), ("snappy", Codecs::Snappy)] {
            let spec = spec(codec);
            let mut out = Vec::with_capacity(64 << 20);
            g.bench_function(format!("{shape}, {name}"), |b| {
                b.iter_custom(|n| {
                    let from = cpu();
                    for _ in 0..n {
                        out.clear();
                        black_box(build(&spec, &log.1, &log, &[], &mut out).expect("a file"));
                    }
                    cpu().saturating_sub(from)
                });
            });
            println!("{shape}, {name}: {:.1} bytes a row, payload {:.1}", out.len() as f64 / ROWS as f64, {
                log.0.iter().map(Vec::len).sum::<usize>() as f64 / ROWS as f64
            });
        }
    }
    g.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
