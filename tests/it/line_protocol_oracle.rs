//! Lines made of pieces: against the crate `influxdb-line-protocol`, and bodies of them against themselves.

use std::collections::BTreeMap;

use arc_ingest::decode::line_protocol::{Empty, LineOptions, Precision, decode};
use arc_ingest::decode::table::Bounds;
use arc_ingest::types::LargeUnsigned;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::corpus::checks::line_protocol as whole;
use super::corpus::checks::line_protocol_differential::{Compared, compare};

/// Names, mostly good.
fn name() -> impl Strategy<Value = String> {
    let good = select(vec!["m", "cpu", "a", "b", "host", "v", "usage_idle", "é", "a.b", "x y", "a,b", "p=q", "\"q\"", "time2", "date"]);
    prop_oneof![
        8 => good.prop_map(|n: &str| n.replace(' ', "\\ ").replace(',', "\\,").replace('=', "\\=")),
        1 => select(vec!["time", "A", "V", "", "a,b", "p=q", "a\\b", "a\\\\", "\t", "x\u{7}", "\0"]).prop_map(str::to_owned),
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => any::<f64>().prop_map(|f| f.to_string()),
        4 => any::<f64>().prop_map(|f| format!("{f:e}")),
        4 => any::<i64>().prop_map(|i| format!("{i}i")),
        2 => any::<i16>().prop_map(|i| i.to_string()),
        2 => any::<u64>().prop_map(|u| format!("{u}u")),
        3 => select(vec!["t", "T", "true", "True", "TRUE", "f", "F", "false", "False", "FALSE"]).prop_map(str::to_owned),
        4 => "[a-z \\\\\",=\nµ0-9]{0,12}".prop_map(|s| format!("\"{}\"", s.replace('\\', "\\\\").replace('"', "\\\""))),
        2 => "\"[a-z\\\\ ]{0,6}\"",
        1 => select(vec!["", "1.5i", "12abc", ".5", "5.", "1e", "-", "+1", "tRUE", "NaN", "-inf", "\"x", "1e999", "0x1", "1_0", "9223372036854775808i"])
            .prop_map(str::to_owned),
    ]
}

fn line() -> impl Strategy<Value = String> {
    let pairs = |least| prop::collection::vec((name(), value()), least..4);
    let tags = prop::collection::vec((name(), prop_oneof![6 => name(), 1 => value()]), 0..4);
    let stamp = prop_oneof![
        2 => Just(String::new()),
        4 => any::<i64>().prop_map(|t| format!(" {t}")),
        1 => select(vec![" ", "  5", " 5 ", " 1.5", " x", " 5 5", " 99999999999999999999", "\t5"]).prop_map(str::to_owned),
    ];
    let blank = select(vec![" ", " ", " ", "  ", "", "\t"]);
    (name(), tags, blank, pairs(1), stamp).prop_map(|(m, tags, blank, fields, stamp)| {
        let mut l = m;
        for (k, v) in tags {
            l.push_str(&format!(",{k}={v}"));
        }
        let fields: Vec<String> = fields.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("{l}{blank}{}{stamp}", fields.join(","))
    })
}

/// A line with a few bytes changed.
fn damaged() -> impl Strategy<Value = String> {
    let change = (any::<prop::sample::Index>(), select(vec![" ", ",", "=", "\"", "\\", "i", ".", "\n", "#", ""]));
    (line(), prop::collection::vec(change, 0..3)).prop_map(|(mut l, changes)| {
        for (at, with) in changes {
            let places: Vec<usize> = l.char_indices().map(|(i, _)| i).collect();
            if !places.is_empty() {
                let from = places[at.index(places.len())];
                let to = from + l[from..].chars().next().map_or(0, char::len_utf8);
                l.replace_range(from..to, with);
            }
        }
        l
    })
}

fn cases() -> Config {
    Config {
        cases: std::env::var("ARC_LINE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000),
        failure_persistence: None,
        ..Config::default()
    }
}

#[test]
fn every_line_means_what_the_crate_says_but_for_the_listed_differences() {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut runner = TestRunner::new(cases());
    let seen = std::cell::RefCell::new(&mut counts);
    let result = runner.run(&prop_oneof![line(), damaged()], |l| {
        let compared = compare(&l);
        *seen.borrow_mut().entry(format!("{compared:?}")).or_default() += 1;
        Ok(())
    });
    if let Err(e) = result {
        panic!("{e}");
    }
    println!("{counts:?}");
    let of = |c: Compared| counts.get(&format!("{c:?}")).copied().unwrap_or(0);
    let all: u32 = counts.values().sum();
    assert!(of(Compared::BothTake) * 6 > all && of(Compared::BothRefuse) * 50 > all, "what was compared is one-sided: {counts:?}");
}

/// INVARIANT(no-trace): without its bad lines, a body comes to the same.
#[test]
fn bad_lines_leave_no_trace() {
    let bounds = Bounds { max_columns: 12, max_tables: 6, max_partitions: 100_000, max_bytes: 1 << 24 };
    let options =
        LineOptions { receive_time_us: 7, precision: Precision::Nanos, hive_names: true, large_unsigned: LargeUnsigned::Refuse, bounds };
    let mut runner = TestRunner::new(Config { cases: cases().cases / 10, ..cases() });
    // Lines of one line each, so that they can be taken out again.
    let body = prop::collection::vec(damaged().prop_map(|l| l.replace(['\n', '"'], "")), 1..40);
    let (bad, good) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let result = runner.run(&body, |lines| {
        let all = decode(lines.join("\n").as_bytes(), &options, &Empty).unwrap();
        prop_assert_eq!(all.report.details.len() as u64, all.report.bad);
        let left: Vec<&str> = lines
            .iter()
            .enumerate()
            .filter(|(i, _)| all.report.details.iter().all(|d| d.line != *i as u64 + 1))
            .map(|(_, l)| l.as_str())
            .collect();
        let again = decode(left.join("\n").as_bytes(), &options, &Empty).unwrap();
        prop_assert_eq!(&again.tables, &all.tables);
        prop_assert_eq!(again.report.bad, 0);
        bad.set(bad.get() + all.report.bad);
        good.set(good.get() + again.report.lines);
        Ok(())
    });
    if let Err(e) = result {
        panic!("{e}");
    }
    assert!(bad.get() * 20 > good.get() && good.get() * 20 > bad.get(), "{} bad, {} good", bad.get(), good.get());
}

/// The whole way of a body: see the fuzz check.
#[test]
fn bodies_of_lines_are_stored_and_read_back() {
    let mut runner = TestRunner::new(Config { cases: cases().cases / 100, ..cases() });
    let body = (any::<u8>(), prop::collection::vec(damaged(), 1..30));
    let result = runner.run(&body, |(how, lines)| {
        whole::check(&[&[how][..], lines.join("\n").as_bytes()].concat());
        Ok(())
    });
    if let Err(e) = result {
        panic!("{e}");
    }
}
