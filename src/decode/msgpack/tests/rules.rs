//! One test a rule.

use super::*;

fn columns(columns: V) -> V {
    m! {"m" => "t", "columns" => columns}
}

fn row(fields: V) -> V {
    m! {"m" => "t", "t" => 1_700_000_000, "fields" => fields}
}

fn with(f: impl FnOnce(&mut DecodeOptions)) -> DecodeOptions {
    let mut o = options();
    f(&mut o);
    o
}

const T: i64 = 1_700_000_000;

#[test]
fn columnar_in_any_key_order_with_unknown_keys() {
    let c = m! {"time" => a![T, T + 1], "f" => a![1.5, 2.5], "s" => a!["x", "y"], "i" => a![1, -1], "b" => a![true, false]};
    for body in [
        m! {"m" => "t", "columns" => c.clone()},
        m! {"columns" => c.clone(), "m" => "t"},
        m! {"x" => m!{"y" => a![1, m!{}]}, "columns" => c.clone(), "z" => (), "m" => "t", 7 => 8},
        m! {"columns" => c.clone(), "z" => V::Raw(vec![0xd9, 1, b'a']), "m" => "t"},
    ] {
        let d = ok(body);
        assert_eq!(d.tables[0].table, "t");
        assert_eq!(d.tables[0].time, [T * 1_000_000, (T + 1) * 1_000_000]);
        assert_eq!(names(&d), ["f", "s", "i", "b"]);
        assert_eq!(cells(&d, "s"), ["\"x\"", "\"y\""]);
        assert_eq!(cells(&d, "i"), ["1", "-1"]);
    }
}

#[test]
fn table_names() {
    let c = || m! {"a" => a![1]};
    assert_eq!(ok(m! {"m" => 7, "columns" => c()}).tables[0].table, "measurement_7");
    assert_eq!(ok(m! {"m" => u64::MAX, "columns" => c()}).tables[0].table, "measurement_18446744073709551615");
    assert_eq!(ok(m! {"m" => "a.b/c é", "columns" => c()}).tables[0].table, "a.b/c é");
    refused(m! {"columns" => c()}, &["'m'", "missing"]);
    refused(m! {"m" => (), "columns" => c()}, &["'m'", "nil"]);
    refused(m! {"m" => 1.5, "columns" => c()}, &["'m'", "float"]);
    refused(m! {"m" => V::Bin(b"x".to_vec()), "columns" => c()}, &["binary"]);
    for bad in ["", "..", "a\0", "a\n"] {
        refused(m! {"m" => bad, "columns" => c()}, &["invalid table name"]);
        refused(m! {"m" => bad, "fields" => c()}, &["invalid table name"]);
    }
}

#[test]
fn shape_of_columns() {
    refused(columns(m! {"a" => a![1, 2], "b" => a![1]}), &["'t'", "'a' has 2", "'b' has 1"]);
    refused(columns(m! {"time" => a![T], "b" => a![1, 2]}), &["'time' has 1", "'b' has 2"]);
    refused(columns(m! {"a" => a![1], "b" => 5}), &["'b' must be an array", "integer"]);
    refused(columns(m! {}), &["empty"]);
    refused(columns(a![1]), &["'columns' must be a map", "array"]);
    refused(columns(V::Nil), &["'columns' must be a map", "nil"]);
    refused(columns(m! {1 => a![1]}), &["must be a string", "integer"]);
    refused(m! {"m" => "t", "columns" => m!{"a" => a![1]}, "fields" => m!{"a" => 1}}, &["'columns' and 'fields'"]);
    assert!(ok(columns(m! {"a" => a![], "time" => a![]})).tables.is_empty());
    let d = ok(columns(m! {"time" => a![T]}));
    assert_eq!((d.tables[0].rows(), d.tables[0].columns.len()), (1, 0));
}

#[test]
fn exactly_one_object() {
    let mut body = columns(m! {"a" => a![1]}).bytes();
    assert!(run(&body, &options()).is_ok());
    body.push(0xc0);
    assert!(run(&body, &options()).unwrap_err().message().contains("1 bytes follow"));
    for top in [V::Nil, V::Int(1), V::Str("m".into())] {
        refused(top, &["expected a map or an array"]);
    }
    assert_eq!(run(&[], &options()).unwrap_err().status(), 400);
}

#[test]
fn the_same_key_twice() {
    refused(V::Map(vec![("m".into(), "a".into()), ("m".into(), "a".into()), ("columns".into(), m! {"a" => a![1]})]), &["'m'", "twice"]);
    refused(columns(m! {"a" => a![1], "a" => a![1]}), &["'a'", "twice"]);
    refused(columns(m! {"time" => a![T], "time" => a![T], "a" => a![1]}), &["'time'", "twice"]);
    refused(m! {"m" => "t", "x" => 1, "columns" => m!{"a" => a![1]}, "x" => 1}, &["'x'", "twice"]);
    refused(row(m! {"a" => 1, "a" => 1}), &["'a'", "twice"]);
    refused(m! {"m" => "t", "tags" => m!{"a" => "1", "a" => "1"}, "fields" => m!{"f" => 1}}, &["'a'", "twice"]);
    refused(columns(m! {"a" => a![m!{"k" => 1, "k" => 2}]}), &["'a'", "row 0", "twice"]);
    refused(columns(m! {"a" => a![(), m!{"1" => 1, 1 => 2}]}), &["row 1", "twice"]);
    refused(m! {"batch" => a![], "batch" => a![]}, &["'batch'", "twice"]);
}

#[test]
fn batches_and_arrays() {
    assert!(ok(a![]).tables.is_empty());
    assert!(ok(m! {"batch" => a![]}).tables.is_empty());
    let r = |m: &str, v: i64| m! {"m" => m, "t" => T + v, "fields" => m!{"v" => v}};
    let d = ok(a![r("x", 1), r("y", 2), r("x", 3), m! {"batch" => a![r("y", 4)]}, m! {"m" => "y", "columns" => m!{"v" => a![5, 6]}}]);
    let rows: Vec<_> = logical(&d).1.into_iter().map(|(t, _, c)| (t, c[0].3.clone())).collect();
    assert_eq!(rows, [("x".into(), vec!["1".into(), "3".into()]), ("y".to_string(), ["2", "4", "5", "6"].map(String::from).into())]);
    refused(m! {"batch" => 5}, &["'batch' must be an array"]);
    refused(a![r("x", 1), 5], &["item 1", "expected a map"]);
    refused(a![r("x", 1), a![r("x", 1)]], &["item 1", "expected a map", "array"]);
    refused(m! {"batch" => a![r("x", 1), m!{"fields" => m!{"a" => 1}}]}, &["item 1", "'m'"]);
    refused(a![m! {"batch" => a![r("x", 1), m!{"m" => "t"}]}], &["item 0: item 1"]);
    refused(a![r("x", 1), m! {"m" => "x", "fields" => m!{"v" => "s"}}], &["item 1", "'x'", "'v'", "int64", "string"]);
}

#[test]
fn items_of_one_table_are_merged() {
    let d = ok(a![
        m! {"m" => "t", "fields" => m!{"a" => 1}},
        m! {"m" => "t", "fields" => m!{"b" => "x", "a" => 0.5}},
        m! {"m" => "t", "columns" => m!{"c" => a![true, ()], "a" => a![(), 2]}},
    ]);
    assert_eq!(names(&d), ["a", "b", "c"]);
    assert_eq!(d.tables[0].columns[0].values, Values::Float64(vec![1.0, 0.5, 0.0, 2.0]));
    assert_eq!(cells(&d, "a")[2], "null");
    assert_eq!(cells(&d, "b"), ["null", "\"x\"", "null", "null"]);
    assert_eq!(cells(&d, "c"), ["null", "null", "true", "null"]);
}

#[test]
fn time_units_by_magnitude() {
    for (t, us) in [
        (V::from(T), T * 1_000_000),
        (V::from(T * 1000 + 5), T * 1_000_000 + 5_000),
        (V::from(T * 1_000_000 + 7), T * 1_000_000 + 7),
        (V::from(T * 1_000_000_000 + 1_999), T * 1_000_000 + 1),
        (V::from(-T), -T * 1_000_000),
        (V::from(-(T * 1_000_000_000) - 1), -T * 1_000_000 - 1),
        (V::from(0), 0),
        (V::from(T as f64 + 0.25), T * 1_000_000 + 250_000),
        (V::from(T as f64 * 1000.0 + 0.0625), T * 1_000_000 + 63),
        (V::Ext(-1, (T as u32).to_be_bytes().to_vec()), T * 1_000_000),
        (V::Ext(-1, ((999_999_999u64 << 34) | T as u64).to_be_bytes().to_vec()), T * 1_000_000 + 999_999),
        (V::Ext(-1, [&1_999u32.to_be_bytes()[..], &(-1i64).to_be_bytes()].concat()), -1_000_000 + 1),
    ] {
        assert_eq!(ok(columns(m! {"time" => a![t.clone()], "a" => a![1]})).tables[0].time, [us], "{t:?}");
        for key in ["t", "time"] {
            assert_eq!(ok(m! {"m" => "t", key => t.clone(), "fields" => m!{"a" => 1}}).tables[0].time, [us], "{t:?}");
        }
    }
    // One unit a column, in row form one an item.
    refused(columns(m! {"time" => a![T, T, T * 1000], "a" => a![1, 2, 3]}), &["row 2", "ms", "row 0 in s"]);
    refused(columns(m! {"time" => a![T as f64, T * 1000], "a" => a![1, 2]}), &["row 1"]);
    let d = ok(a![m! {"m" => "t", "t" => T, "f" => a![1]}, m! {"m" => "t", "t" => T * 1000, "f" => a![1]}]);
    assert_eq!(d.tables[0].time, [T * 1_000_000, T * 1_000_000]);
    // Extensions have no unit to mix.
    let d = ok(columns(m! {"time" => a![T, V::Ext(-1, vec![0, 0, 0, 1]), T + 1], "a" => a![1, 2, 3]}));
    assert_eq!(d.tables[0].time, [T * 1_000_000, 1_000_000, (T + 1) * 1_000_000]);
}

#[test]
fn time_unit_of_the_header() {
    let o = with(|o| o.time_unit = Some(TimeUnit::Millis));
    let d = run(&columns(m! {"time" => a![1, T * 1000], "a" => a![1, 2]}).bytes(), &o).unwrap();
    assert_eq!(d.tables[0].time, [1_000, T * 1_000_000]);
    let d = run(&columns(m! {"time" => a![1.5, T * 1000], "a" => a![1, 2]}).bytes(), &o).unwrap();
    assert_eq!(d.tables[0].time, [1_500, T * 1_000_000]);
    let o = with(|o| o.time_unit = Some(TimeUnit::Seconds));
    refused_with(&o, columns(m! {"time" => a![T, 253_402_300_800i64], "a" => a![1, 2]}), &["row 1", "years"]);
    let d = run(&columns(m! {"time" => a![253_402_300_799i64, -62_135_596_800i64], "a" => a![1, 2]}).bytes(), &o).unwrap();
    assert_eq!(d.tables[0].time[1], limits::MIN_TIME_US);
}

#[test]
fn bad_times_name_the_row() {
    for (bad, what) in [
        (V::Nil, "nil"),
        (V::from("now"), "string"),
        (V::from(true), "bool"),
        (V::from(f64::NAN), "NaN"),
        (V::from(f64::INFINITY), "inf"),
        (V::from(1e300), ""),
        (V::from(u64::MAX), "int64"),
        (V::Ext(-1, vec![0; 5]), "4, 8 or 12"),
        (V::Ext(-1, u64::MAX.to_be_bytes().to_vec()), "nanoseconds"),
        (V::Ext(-1, [&[0; 4][..], &i64::MAX.to_be_bytes()].concat()), "years"),
        (V::Ext(3, vec![0; 4]), "extension"),
        (V::Bin(vec![1]), "binary"),
        (a![1], "array"),
    ] {
        refused(columns(m! {"a" => a![1, 2], "time" => a![T, bad.clone()]}), &["'t'", "row 1", what]);
        refused(m! {"m" => "t", "t" => bad, "fields" => m!{"a" => 1}}, &["'t'", "row 0", what]);
    }
    refused(m! {"m" => "t", "t" => T, "time" => T, "fields" => m!{"a" => 1}}, &["'t' and 'time'"]);
    assert_eq!(ok(columns(m! {"a" => a![1, 2]})).tables[0].time, [RECEIVED; 2]);
    assert_eq!(ok(m! {"m" => "t", "f" => a![1]}).tables[0].time, [RECEIVED]);
}

#[test]
fn integers_of_every_format() {
    let raws: [(&[u8], &str); 13] = [
        (&[0x7f], "127"),
        (&[0xe0], "-32"),
        (&[0xff], "-1"),
        (&[0xcc, 0xff], "255"),
        (&[0xcd, 0xff, 0xff], "65535"),
        (&[0xce, 0xff, 0xff, 0xff, 0xff], "4294967295"),
        (&[0xcf, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "9223372036854775807"),
        (&[0xd0, 0x80], "-128"),
        (&[0xd1, 0x80, 0], "-32768"),
        (&[0xd2, 0x80, 0, 0, 0], "-2147483648"),
        (&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0], "-9223372036854775808"),
        (&[0xd3, 0, 0, 0, 0, 0, 0, 0, 1], "1"),
        (&[0xcf, 0, 0, 0, 0, 0, 0, 0, 1], "1"),
    ];
    let all = V::Array(raws.iter().map(|(b, _)| V::Raw(b.to_vec())).collect());
    assert!(cells(&ok(columns(m! {"a" => all})), "a").iter().eq(raws.iter().map(|(_, text)| text)));
    refused(columns(m! {"a" => a![1, u64::MAX]}), &["'t'", "'a'", "row 1", "18446744073709551615"]);
    refused(columns(m! {"a" => a![u64::MAX, 1, 2, 3]}), &["row 0", "18446744073709551615"]);
    refused(row(m! {"a" => u64::MAX}), &["'a'", "18446744073709551615"]);
}

#[test]
fn ints_and_floats_in_one_column() {
    let float = |d: Decoded| d.tables[0].columns[0].values.clone();
    assert_eq!(float(ok(columns(m! {"a" => a![1, 0.5, 2]}))), Values::Float64(vec![1.0, 0.5, 2.0]));
    assert_eq!(float(ok(columns(m! {"a" => a![0.5, 1]}))), Values::Float64(vec![0.5, 1.0]));
    assert_eq!(float(ok(columns(m! {"a" => a![1.5f32]}))), Values::Float64(vec![1.5]));
    let big = (1i64 << 53) + 1;
    refused(columns(m! {"a" => a![0.5, big]}), &["'t'", "'a'", "row 1", "9007199254740993", "float64"]);
    refused(columns(m! {"a" => a![big, 0.5]}), &["'a'", "row 1", "9007199254740993", "row 0"]);
    assert!(matches!(float(ok(columns(m! {"a" => a![big, 1]}))), Values::Int64(_)));
    let d = ok(columns(m! {"a" => a![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0]}));
    assert_eq!(cells(&d, "a")[1], format!("f{:016x}", f64::INFINITY.to_bits()));
}

#[test]
fn other_mixes_name_place_and_types() {
    let values =
        [(V::from(1), "int64"), (V::from("x"), "string"), (V::from(true), "bool"), (V::Bin(vec![1]), "binary"), (V::from(0.5), "float64")];
    for (i, (a, x)) in values.iter().enumerate() {
        for (j, (b, y)) in values.iter().enumerate() {
            let v = columns(m! {"c" => a![a.clone(), (), b.clone()]});
            if i == j || i % 4 == 0 && j % 4 == 0 {
                ok(v);
            } else {
                refused(v, &["'t'", "'c'", "row 2", x, y]);
            }
        }
    }
}

#[test]
fn nil_is_null() {
    let d = ok(columns(m! {
        "i" => a![(), 1, ()], "f" => a![(), (), 0.5], "s" => a!["x", (), "y"], "b" => a![true, (), false], "n" => a![(), (), ()],
        "x" => a![V::Bin(vec![1]), (), V::Bin(vec![])]
    }));
    assert_eq!(cells(&d, "i"), ["null", "1", "null"]);
    assert_eq!(cells(&d, "s"), ["\"x\"", "null", "\"y\""]);
    assert_eq!(cells(&d, "b"), ["true", "null", "false"]);
    assert_eq!(cells(&d, "x"), ["b[1]", "null", "b[]"]);
    let n = d.tables[0].columns.iter().find(|c| c.name == "n").unwrap();
    assert_eq!((&n.values, n.defines), (&Values::Null, false));
}

#[test]
fn nested_values() {
    let d = ok(columns(m! {"a" => a![
        a![1, -2, 0.5, f64::NAN, (), true, "q\"\n", V::Bin(b"foob".to_vec())],
        m!{"k" => a![], 1 => m!{}, true => 1, () => 2, 1.5 => 3, V::Bin(b"f".to_vec()) => 4},
        "plain",
        a![u64::MAX, f64::INFINITY],
    ]}));
    let got = cells(&d, "a");
    let json = |i: usize| serde_json::from_str::<String>(&got[i].replace("\\'", "'")).unwrap();
    assert_eq!(json(0), r#"[1,-2,0.5,null,null,true,"q\"\n","Zm9vYg=="]"#);
    assert_eq!(json(1), r#"{"k":[],"1":{},"true":1,"null":2,"1.5":3,"Zg==":4}"#);
    assert_eq!(json(2), "plain");
    assert_eq!(json(3), "[18446744073709551615,null]");
    assert_eq!(cells(&ok(row(m! {"a" => a![1]})), "a"), ["\"[1]\""]);
    refused(columns(m! {"a" => a![a![V::Ext(-1, vec![0; 4])]]}), &["'a'", "row 0", "extension"]);
    refused(columns(m! {"a" => a![1, a![1]]}), &["row 1", "int64", "string"]);
    let o = with(|o| o.nested = Nested::Reject);
    refused_with(&o, columns(m! {"a" => a![(), a![1, m!{}]]}), &["'a'", "row 1", "array", "ingest.nested"]);
    refused_with(&o, columns(m! {"a" => a![m!{"x" => 1}]}), &["row 0", "map", "ingest.nested"]);
    refused_with(&o, row(m! {"a" => m!{}}), &["'a'", "map"]);
    refused_with(&o, m! {"m" => "t", "tags" => m!{"g" => a![]}, "f" => a![1]}, &["'g'", "array"]);
}

#[test]
fn extensions_outside_time() {
    for kind in [-1i8, 0, 5, -2] {
        for len in [0usize, 1, 2, 3, 4, 8, 12, 16, 300] {
            refused(columns(m! {"a" => a![(), V::Ext(kind, vec![0; len])]}), &["'a'", "row 1", "extension"]);
        }
        refused(row(m! {"a" => V::Ext(kind, vec![0; 4])}), &["'a'", "extension"]);
        refused(m! {"m" => "t", "tags" => m!{"g" => V::Ext(kind, vec![0])}, "f" => a![1]}, &["'g'", "extension"]);
    }
}

#[test]
fn invalid_utf8_is_replaced_and_counted() {
    let bad = || V::Raw(vec![0xa2, b'a', 0xff]);
    let d = ok(columns(m! {"s" => a![bad(), "ok", bad()], "b" => a![V::Bin(vec![0xff]), (), ()]}));
    assert_eq!(d.invalid_utf8, 2);
    assert_eq!(cells(&d, "s"), ["\"a\u{fffd}\"", "\"ok\"", "\"a\u{fffd}\""]);
    assert_eq!(cells(&d, "b")[0], "b[255]");
    let d = ok(m! {"m" => "t", "h" => bad(), "tags" => m!{"g" => bad()}, "fields" => m!{"f" => bad(), "l" => a![bad()]}});
    assert_eq!(d.invalid_utf8, 4);
    assert_eq!(cells(&d, "l"), ["\"[\\\"a\u{fffd}\\\"]\""]);
    // Halves of one character in neighbouring strings.
    let halves = columns(m! {"s" => a![V::Raw(vec![0xa1, 0xc3]), V::Raw(vec![0xa1, 0xa9])]});
    assert_eq!(ok(halves).invalid_utf8, 2);
}

/// Replaced, two names would become one.
#[test]
fn names_that_are_not_utf8_are_refused() {
    let bad = || V::Raw(vec![0xa2, b'a', 0xff]);
    refused(m! {"m" => bad(), "columns" => m!{"a" => a![1]}}, &["'m'", "'a\\xff'", "not valid UTF-8"]);
    refused(m! {"m" => bad(), "fields" => m!{"a" => 1}}, &["'a\\xff'", "not valid UTF-8"]);
    refused(a![m! {"m" => bad(), "fields" => m!{"a" => 1}}], &["item 0", "not valid UTF-8"]);
    refused(columns(m! {bad() => a![1]}), &["'columns'", "'a\\xff'", "not valid UTF-8"]);
    refused(m! {"m" => "t", "columns" => m!{"a" => a![1]}, "tags" => m!{bad() => "x"}}, &["'tags'", "not valid UTF-8"]);
    refused(m! {"m" => "t", "tags" => m!{bad() => "x"}, "fields" => m!{"f" => 1}}, &["'tags'", "not valid UTF-8"]);
    refused(m! {"m" => "t", "fields" => m!{bad() => 1}}, &["'fields'", "not valid UTF-8"]);
    refused(columns(m! {"a" => a![m!{bad() => 1}]}), &["'a'", "row 0", "nested map", "not valid UTF-8"]);
    // A name that has U+FFFD already is another thing.
    ok(columns(m! {"a\u{fffd}" => a![1], "s" => a![bad()]}));
}

#[test]
fn names_that_nobody_can_see_are_refused_by_their_character() {
    for (name, what) in
        [("\u{feff}cpu", "U+FEFF"), ("c\u{200b}pu", "U+200B"), ("cpu ", "white space"), (" cpu", "white space"), ("a\t", "control")]
    {
        refused(m! {"m" => name, "columns" => m!{"a" => a![1]}}, &["invalid table name", what]);
        refused(m! {"m" => name, "fields" => m!{"a" => 1}}, &["invalid table name", what]);
        refused(columns(m! {name => a![1]}), &["'t'", "invalid column name", what]);
        refused(m! {"m" => "t", "tags" => m!{name => "x"}, "fields" => m!{"a" => 1}}, &["'t'", "invalid column name", what]);
    }
    assert_eq!(names(&ok(columns(m! {"°C" => a![1], "温度" => a![2], "می\u{200c}خ" => a![3]}))).len(), 3);
    refused(columns(m! {"°C" => a![1], "温度" => a![1, 2]}), &["'°C' has 1", "'温度' has 2"]);
}

#[test]
fn tags_of_the_columnar_form_are_columns_of_one_value() {
    let d = ok(m! {"m" => "t", "columns" => m!{"v" => a![1, 2, 3]}, "tags" => m!{"host" => "a", "n" => 7, "none" => (), "v" => "x"}});
    assert_eq!(names(&d), ["v_value", "host", "n", "none", "v"]);
    assert_eq!(cells(&d, "host"), ["\"a\""; 3]);
    assert_eq!(cells(&d, "n"), ["\"7\""; 3]);
    assert_eq!(cells(&d, "v"), ["\"x\""; 3]);
    assert!(d.tables[0].columns.iter().all(|c| c.tag != c.name.ends_with("_value")));
    // Each item has its own.
    let item = |host: &str, n: i64| m! {"m" => "t", "columns" => m!{"v" => V::Array(vec![V::from(n); 2])}, "tags" => m!{"host" => host}};
    let d = ok(m! {"batch" => a![item("a", 1), item("b", 2), m! {"m" => "t", "columns" => m!{"v" => a![3]}}]});
    assert_eq!(cells(&d, "host"), ["\"a\"", "\"a\"", "\"b\"", "\"b\"", "null"]);
    assert_eq!(names(&ok(m! {"m" => "t", "columns" => m!{"v" => a![1]}, "tags" => ()})), ["v"]);
    refused(
        m! {"m" => "t", "columns" => m!{"v" => a![1, 2]}, "tags" => m!{"host" => a!["a", "b"]}},
        &["'t'", "'host' is an array", "columns"],
    );
    refused(m! {"m" => "t", "columns" => m!{"v" => a![1]}, "tags" => 5}, &["'t'", "'tags' must be a map"]);
    refused(m! {"m" => "t", "columns" => m!{"v" => a![1]}, "tags" => m!{"time" => "x"}}, &["'t'", "'time'"]);
    refused(m! {"m" => "t", "columns" => m!{"v" => a![1]}, "tags" => m!{"g" => V::Ext(3, vec![0])}}, &["'t'", "'g'", "extension type 3"]);
}

#[test]
fn known_keys_in_the_wrong_place_are_refused_by_name() {
    let c = || m! {"v" => a![1]};
    for key in ["t", "time", "h"] {
        refused(m! {"m" => "t", "columns" => c(), key => 1}, &["'t'", &format!("'{key}' beside 'columns'")]);
        ok(m! {"m" => "t", "columns" => c(), key => ()});
    }
    refused(m! {"m" => "t", "columns" => c(), "h" => "a", "t" => 1}, &["'t', 'h' beside 'columns'"]);
    let items = || a![m! {"m" => "t", "columns" => c()}];
    for key in ["m", "columns", "t", "time", "h", "tags", "fields", "f"] {
        refused(m! {"batch" => items(), key => 1}, &[&format!("'{key}' beside 'batch'")]);
        ok(m! {"batch" => items(), key => ()});
    }
    refused(m! {"batch" => items(), "tags" => m!{"a" => "b"}, "columns" => c()}, &["'columns', 'tags' beside 'batch'"]);
    for (key, meant) in [
        ("Tags", "tags"),
        ("TAGS", "tags"),
        ("tag", "tags"),
        ("Tag", "tags"),
        ("Columns", "columns"),
        ("column", "columns"),
        ("M", "m"),
        ("T", "t"),
        ("H", "h"),
        ("Time", "time"),
        ("Fields", "fields"),
        ("field", "fields"),
        ("F", "f"),
        ("Batch", "batch"),
    ] {
        let message = format!("unknown key '{key}': expected '{meant}'");
        refused(m! {"m" => "t", "columns" => c(), key => 1}, &[&message]);
        refused(a![m! {"m" => "t", "fields" => m!{"a" => 1}, key => 1}], &["item 0", &message]);
        refused(m! {"batch" => items(), key => 1}, &[&message]);
    }
    // What is no key of ours is skipped as before.
    for key in ["measurement", "host", "timestamp", "tagz", "batches", "s", "database"] {
        ok(m! {"m" => "t", "columns" => c(), key => 1});
    }
}

#[test]
fn integers_above_int64_go_into_float_columns_that_hold_them_exactly() {
    let float = |d: &Decoded| d.tables[0].columns[0].values.clone();
    let exact = 18_446_744_073_709_549_568u64;
    for items in [a![exact, 0.5], a![0.5, exact]] {
        assert!(matches!(float(&ok(columns(m! {"u" => items}))), Values::Float64(v) if v.contains(&(exact as f64))));
    }
    refused(columns(m! {"u" => a![0.5, u64::MAX]}), &["'u'", "row 1", "18446744073709551615", "float64"]);
    // What the table has decides where the request does not.
    let known = |table: &str, column: &str| (table == "t" && column == "u").then_some(crate::types::ColumnType::Float64);
    let body = columns(m! {"u" => a![1, exact, 1u64 << 63]}).bytes();
    let d = decode_into(&body, &options(), &known).unwrap();
    assert_eq!(float(&d), Values::Float64(vec![1.0, exact as f64, 9_223_372_036_854_775_808.0]));
    let e = decode_into(&columns(m! {"u" => a![1, u64::MAX]}).bytes(), &options(), &known).unwrap_err();
    assert!(e.message().contains("'u'") && e.message().contains("18446744073709551615 of row 1"), "{e}");
    refused(columns(m! {"u" => a![1, exact]}), &["'u'", "row 1", "ingest.large_unsigned"]);
    refused(columns(m! {"u" => a![true, exact]}), &["'u'", "row 1", "bool"]);
}

#[test]
fn integers_above_int64_are_saturated_and_counted_when_asked() {
    let o = with(|o| o.large_unsigned = LargeUnsigned::Saturate);
    let d = run(&columns(m! {"u" => a![1, u64::MAX, (), 1u64 << 63], "v" => a![1, 2, 3, 4]}).bytes(), &o).unwrap();
    assert_eq!((cells(&d, "u"), d.saturated), (vec!["1".into(), i64::MAX.to_string(), "null".into(), i64::MAX.to_string()], 2));
    let d = run(&a![row(m! {"u" => u64::MAX}), row(m! {"u" => 5})].bytes(), &o).unwrap();
    assert_eq!((cells(&d, "u"), d.saturated), (vec![i64::MAX.to_string(), "5".into()], 1));
    // Times have no such largest number.
    refused_with(&o, columns(m! {"time" => a![u64::MAX], "u" => a![1]}), &["time of row 0"]);
    assert_eq!(
        cells(&run(&m! {"m" => "t", "tags" => m!{"g" => u64::MAX}, "f" => a![1]}.bytes(), &o).unwrap(), "g"),
        ["\"18446744073709551615\""]
    );
}

#[test]
fn extensions_are_named_by_their_number() {
    let ext = || V::Ext(13, vec![0; 4]);
    refused(columns(m! {"time" => a![ext()], "a" => a![1]}), &["time of row 0", "extension type 13", "type -1"]);
    refused(m! {"m" => "t", "t" => ext(), "fields" => m!{"a" => 1}}, &["'t'", "extension type 13", "type -1"]);
    refused(columns(m! {"a" => a![ext()]}), &["'a'", "row 0", "extension type 13"]);
    refused(columns(m! {"a" => ext()}), &["'a'", "extension type 13"]);
    refused(m! {"m" => ext(), "f" => a![1]}, &["'m'", "extension type 13"]);
    refused(ext(), &["top level", "extension type 13"]);
    refused(columns(m! {ext() => a![1]}), &["extension type 13"]);
    refused(columns(m! {"a" => a![m!{ext() => 1}]}), &["extension type 13"]);
}

#[test]
fn other_formats_are_named_with_a_route_that_takes_them() {
    let found = |body: &[u8]| {
        let e = run(body, &options()).unwrap_err();
        assert_eq!(e.status(), 400);
        e.message().to_owned()
    };
    let json = br#"{"m":"cpu","columns":{"time":[1],"v":[1]}}"#;
    for body in [&json[..], b"[{\"m\":\"cpu\"}]", b"\xef\xbb\xbf{\"m\":1}"] {
        let m = found(body);
        assert!(m.contains("looks like JSON") && m.contains("/api/v1/write/line-protocol takes line protocol"), "{m}");
    }
    let m = found(b"cpu,host=a v=1 1767225600\n");
    assert!(m.contains("looks like line protocol") && m.contains("send it to /api/v1/write/line-protocol"), "{m}");
    for (body, what) in [
        (&b"PAR1\x15"[..], "Parquet"),
        (b"\x78\x9c\x4b\x04\x00", "zlib"),
        (b"c\0p\0u\0 \0v\0", "UTF-16"),
        (b"\x0a\x10\x0a\x08", "protobuf"),
    ] {
        let m = found(body);
        assert!(m.contains(what), "{what}: {m}");
    }
    assert!(!found(b"\x82\xa1m").contains("looks like"), "cut short, but MessagePack");
}

/// Text takes several times the bytes of what it is made from: it is counted while it is written.
#[test]
fn text_made_of_values_is_bounded_by_the_record() {
    let o = with(|o| {
        o.max_text = 64 << 10;
        o.bounds.max_bytes = 64 << 10;
    });
    let ones = V::Raw([&[0xdd, 0, 1, 0, 0][..], &[1; 1 << 16]].concat());
    let pairs: Vec<u8> = (0..4000u16).flat_map(|i| [&[0xcd][..], &i.to_be_bytes(), &[0xc0]].concat()).collect();
    let keys = V::Raw([&[0xde, 0x0f, 0xa0][..], &pairs].concat());
    let control = V::Str("\x01".repeat(20 << 10));
    let bytes = V::Bin(vec![1; 60 << 10]);
    let invalid = V::Raw([&[0xdb, 0, 0, 0x80, 0][..], &[0xff; 1 << 15]].concat());
    let many = V::Array((0..500).map(|_| V::Bool(false)).collect());
    for (name, body) in [
        ("numbers", columns(m! {"a" => a![ones.clone()]})),
        ("keys of a map", columns(m! {"a" => a![keys]})),
        ("control characters", columns(m! {"a" => a![a![control]]})),
        ("base64", columns(m! {"a" => a![a![bytes.clone()]]})),
        ("base64 of a tag", m! {"m" => "t", "tags" => m!{"a" => bytes.clone()}, "f" => a![1]}),
        ("base64 of a constant tag", m! {"m" => "t", "columns" => m!{"v" => a![1]}, "tags" => m!{"a" => bytes}}),
        ("numbers of a field", row(m! {"a" => ones.clone()})),
        ("numbers of a tag", m! {"m" => "t", "tags" => m!{"a" => ones}, "f" => a![1]}),
        ("replaced text", columns(m! {"a" => a![invalid.clone()]})),
        ("replaced host", m! {"m" => "t", "h" => invalid, "f" => a![1]}),
        ("many small values", columns(m! {"a" => V::Array(vec![many; 30])})),
    ] {
        let e = run(&body.bytes(), &o).expect_err(name);
        assert!(e.status() == 413 && e.message().contains("ingest.max_record_size"), "{name}: {e}");
        assert!(run(&body.bytes(), &options()).is_ok(), "{name}");
    }
}

/// A tag of the columnar form is one text for all rows; a table of many such items must not make a copy for each.
#[test]
fn a_long_tag_of_many_rows_is_never_copied_for_each_of_them() {
    let first = m! {"m" => "t", "columns" => m!{"v" => V::Array(vec![V::from(1); 10_000])}, "tags" => m!{"g" => "x".repeat(100_000)}};
    let rest = (0..70_000).map(|i| m! {"m" => "t", "columns" => m!{"v" => a![1]}, "tags" => m!{"g" => format!("{i}")}});
    let e = run(&V::Array(std::iter::once(first).chain(rest).collect()).bytes(), &options()).unwrap_err();
    assert!(e.status() == 413 && e.message().contains("'g'"), "{e}");
}

#[test]
fn many_unknown_keys_are_refused() {
    let mut pairs = vec![(V::from("m"), V::from("t")), (V::from("f"), a![1])];
    pairs.extend((0..70_000).map(|i| (V::from(format!("unknown{i}")), V::Nil)));
    refused(V::Map(pairs), &["unknown keys"]);
}

#[test]
fn row_form() {
    let d = ok(m! {
        "m" => "t", "t" => T, "h" => "web",
        "tags" => m!{"s" => "x", "i" => 5, "f" => 1.5, "b" => true, "n" => (), "l" => a![1], "bin" => V::Bin(b"f".to_vec())},
        "fields" => m!{"v" => 1, "s" => 2, "none" => ()},
    });
    let t = &d.tables[0];
    assert!(t.columns.iter().take(8).all(|c| c.tag) && t.columns.iter().skip(8).all(|c| !c.tag));
    assert_eq!(names(&d), ["s", "i", "f", "b", "n", "l", "bin", "host", "v", "s_value", "none"]);
    for (name, want) in
        [("s", "\"x\""), ("i", "\"5\""), ("f", "\"1.5\""), ("b", "\"true\""), ("n", "null"), ("l", "\"[1]\""), ("bin", "\"Zg==\"")]
    {
        assert_eq!(cells(&d, name), [want], "{name}");
    }
    assert_eq!(cells(&d, "host"), ["\"web\""]);
    assert_eq!(cells(&d, "s_value"), ["2"]);
    assert_eq!(names(&ok(m! {"m" => "t", "f" => a![1, "x", ()]})), ["field_0", "field_1", "field_2"]);
    assert_eq!(names(&ok(m! {"m" => "t", "tags" => (), "h" => (), "fields" => m!{"v" => 1}})), ["v"]);
}

#[test]
fn host() {
    let item = |h: V, tags: V| m! {"m" => "t", "h" => h, "tags" => tags, "f" => a![1]};
    assert_eq!(cells(&ok(item(V::from(7), m! {})), "host"), ["\"host_7\""]);
    assert_eq!(cells(&ok(item(V::from("a"), m! {"host" => "a"})), "host"), ["\"a\""]);
    assert_eq!(cells(&ok(item(V::from("a"), m! {"host" => ()})), "host"), ["\"a\""]);
    assert_eq!(cells(&ok(item(V::Nil, m! {"host" => "b"})), "host"), ["\"b\""]);
    refused(item(V::from("a"), m! {"host" => "b"}), &["'a'", "'b'", "tags.host"]);
    refused(item(V::from(1.5), m! {}), &["'h'", "float"]);
    let d = ok(m! {"m" => "t", "h" => "a", "fields" => m!{"host" => 1}});
    assert_eq!(names(&d), ["host", "host_value"]);
}

#[test]
fn refused_rows() {
    refused(m! {"m" => "t"}, &["fields"]);
    refused(row(m! {}), &["at least one field"]);
    refused(m! {"m" => "t", "f" => a![]}, &["at least one field"]);
    refused(m! {"m" => "t", "fields" => (), "tags" => m!{"a" => "b"}}, &["'fields' must be a map"]);
    refused(m! {"m" => "t", "f" => m!{}}, &["'f' must be an array"]);
    refused(m! {"m" => "t", "f" => a![1], "fields" => m!{"a" => 1}}, &["'fields' and 'f'"]);
    refused(m! {"m" => "t", "f" => a![1], "tags" => a![]}, &["'tags' must be a map"]);
    refused(row(m! {"time" => 1}), &["'time'"]);
    refused(m! {"m" => "t", "tags" => m!{"time" => "x"}, "f" => a![1]}, &["'time'"]);
    refused(row(m! {1 => 1}), &["must be a string"]);
    refused(m! {"m" => "t", "tags" => m!{"a" => "x"}, "fields" => m!{"a" => 1, "a_value" => 2}}, &["'a_value'", "twice"]);
}

#[test]
fn tags_and_fields_of_one_name_in_different_items() {
    let tagged = || m! {"m" => "t", "tags" => m!{"a" => "x"}, "fields" => m!{"v" => 1}};
    let field = || m! {"m" => "t", "fields" => m!{"a" => 1}};
    for items in [a![tagged(), field()], a![field(), tagged()]] {
        let d = ok(items);
        let mut all = names(&d);
        all.sort_unstable();
        assert_eq!(all, ["a", "a_value", "v"]);
    }
    refused(a![tagged(), field(), m! {"m" => "t", "fields" => m!{"a_value" => 1}}], &["'a_value'", "twice"]);
}

#[test]
fn column_names() {
    for bad in ["", "a\0", "a\n", "Time", "TIME"] {
        refused(columns(m! {bad => a![1], "time" => a![T]}), &["'t'", "invalid column name"]);
        refused(row(m! {bad => 1}), &["'t'", "invalid column name"]);
    }
    refused(columns(m! {"x".repeat(257) => a![1]}), &["256 bytes"]);
    ok(columns(m! {"x".repeat(256) => a![1]}));
    refused(columns(m! {"Ab" => a![1], "aB" => a![1]}), &["'Ab'", "'aB'", "case"]);
    refused(columns(m! {"É" => a![1], "é" => a![1]}), &["case"]);
    refused(a![row(m! {"v" => 1}), row(m! {"V" => 1})], &["case"]);
    refused(m! {"m" => "t", "tags" => m!{"A" => "x"}, "fields" => m!{"a" => 1}}, &["case"]);
    assert_eq!(names(&ok(columns(m! {"_x" => a![1], "a b" => a![1], "é" => a![1]}))), ["_x", "a b", "é"]);
}

#[test]
fn partition_columns_are_renamed_with_hive_names() {
    let c = || columns(m! {"date" => a![1], "Hour" => a![1], "day" => a![1]});
    assert_eq!(names(&ok(c())), ["date", "Hour", "day"]);
    let o = with(|o| o.hive_names = true);
    assert_eq!(names(&run(&c().bytes(), &o).unwrap()), ["date_value", "Hour_value", "day"]);
    let r = m! {"m" => "t", "tags" => m!{"hour" => "x"}, "fields" => m!{"date" => 1}};
    assert_eq!(names(&run(&r.bytes(), &o).unwrap()), ["hour_value", "date_value"]);
    refused_with(&o, columns(m! {"date" => a![1], "date_value" => a![1]}), &["'date_value'", "twice"]);
}

#[test]
fn limits_of_a_request() {
    let o = with(|o| o.bounds.max_columns = 2);
    assert!(run(&columns(m! {"time" => a![T], "a" => a![1], "b" => a![1]}).bytes(), &o).is_ok());
    refused_with(&o, columns(m! {"a" => a![1], "b" => a![1], "c" => a![1]}), &["'t'", "2", "max_columns"]);
    refused_with(&o, columns(m! {"time" => a![T], "a" => a![1], "b" => a![1], "c" => a![1]}), &["'t'", "max_columns"]);
    refused_with(&o, a![row(m! {"a" => 1, "b" => 1}), row(m! {"c" => 1})], &["item 1", "max_columns"]);
    refused_with(&o, m! {"m" => "t", "f" => a![1, 2, 3]}, &["max_columns"]);

    let r = |m: &str, t: i64| m! {"m" => m, "t" => t, "f" => a![1]};
    let o = with(|o| o.bounds.max_tables = 1);
    assert!(run(&a![r("x", T), r("x", T)].bytes(), &o).is_ok());
    refused_with(&o, a![r("x", T), r("y", T)], &["item 1", "1 tables", "max_tables"]);

    let o = with(|o| o.bounds.max_partitions = 2);
    assert!(run(&a![r("x", T), r("y", T)].bytes(), &o).is_ok());
    assert!(run(&a![r("x", T), r("x", T + 3600), r("x", T)].bytes(), &o).is_ok());
    let hours = columns(m! {"time" => a![T, T + 3600, T + 7200]});
    for body in [a![r("x", T), r("x", T + 3600), r("y", T)], a![r("x", T), r("x", T + 3600), r("x", -T)], hours] {
        let e = run(&body.bytes(), &o).unwrap_err();
        assert_eq!(e.status(), 413);
        assert!(e.message().contains("max_partitions"), "{e}");
    }
}

#[test]
fn sparse_rows_cannot_blow_up() {
    let o = with(|o| o.bounds.max_bytes = 1 << 20);
    let rows =
        |columns: usize| V::Array((0..4000).map(|i| row(V::Map(vec![(V::from(format!("c{}", i % columns)), V::from(1))]))).collect());
    assert!(run(&rows(3).bytes(), &o).is_ok());
    let e = run(&rows(1000).bytes(), &o).unwrap_err();
    assert_eq!(e.status(), 413);
    assert!(e.message().contains("max_record_size"), "{e}");
}

#[test]
fn one_byte_numbers_cannot_take_eight_times_their_bytes_without_bound() {
    let o = with(|o| o.bounds.max_bytes = 8 << 10);
    let most = o.bounds.cells();
    assert_eq!(most, 4 << 10);
    let ones = |n: usize| V::Array(vec![V::from(1); n]);
    let column = |n: usize| m! {"m" => "t", "columns" => m!{"time" => ones(n), "v" => ones(n)}};
    let row = || m! {"m" => "t", "t" => 1, "f" => a![1, 1, 1]};
    let rows = |n: usize| V::Array((0..n).map(|_| row()).collect());
    // A row has its time besides.
    for (fits, over) in [(column(most / 2), column(most / 2 + 1)), (rows(most / 4), rows(most / 4 + 1))] {
        assert!(run(&fits.bytes(), &o).is_ok());
        let e = run(&over.bytes(), &o).unwrap_err();
        assert_eq!(e.status(), 413);
        assert!(e.message().contains("ingest.max_record_size in memory"), "{e}");
    }
}

#[test]
fn nesting_is_bounded() {
    let mut v = V::from(1);
    for _ in 0..limits::MAX_NESTING {
        v = V::Array(vec![v]);
    }
    refused(columns(m! {"a" => v}), &["nested deeper"]);
}

/// Recursion is the decoders' own choice: the deepest body must not need more stack than any thread has.
#[test]
fn the_deepest_bodies_fit_a_small_stack() {
    let nest = |levels: usize, f: &dyn Fn(V) -> V| (0..levels).fold(m! {"m" => "t", "f" => a![1]}, |v, _| f(v));
    let bodies = [
        columns(m! {"a" => a![nest(59, &|v| V::Array(vec![v]))]}),
        columns(m! {"a" => a![nest(59, &|v| V::Map(vec![(V::Nil, v)]))]}),
        nest(4, &|v| m! {"batch" => V::Array(vec![v])}),
    ];
    let bodies = bodies.map(|v| v.bytes());
    let run_all = move || bodies.iter().for_each(|b| drop(run(b, &options()).unwrap()));
    std::thread::Builder::new().stack_size(512 << 10).spawn(run_all).unwrap().join().unwrap();
    refused(nest(5, &|v| m! {"batch" => V::Array(vec![v])}), &["nested deeper than 4"]);
}

#[test]
fn nested_keys_cannot_double_their_escapes() {
    let v = (0..59).fold(V::Nil, |v, _| V::Map(vec![(v, V::Nil)]));
    refused(columns(m! {"a" => a![v]}), &["'a'", "row 0", "map key"]);
    refused(columns(m! {"a" => a![m!{a![1] => 5}]}), &["map key"]);
}
