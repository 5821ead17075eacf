//! INVARIANT(fast-equals-generic): what the fast decoder accepts, the generic one accepts with the same rows.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// An integer in one of the formats that can hold it.
fn int(v: i64, format: u8) -> V {
    let mut raw = Vec::new();
    match format % 3 {
        0 => return V::Int(v),
        1 if v >= 0 => enc::write_u64(&mut raw, v as u64).unwrap(),
        _ => enc::write_i64(&mut raw, v).unwrap(),
    }
    V::Raw(raw)
}

/// A string in one of the formats that can hold it.
fn string(s: &[u8], format: u8) -> V {
    let len = (s.len() as u32).to_be_bytes();
    let mut raw = match format % 4 {
        0 if s.len() < 32 => vec![0xa0 | s.len() as u8],
        1 if s.len() < 256 => vec![0xd9, len[3]],
        2 => vec![0xda, len[2], len[3]],
        _ => [&[0xdb][..], &len].concat(),
    };
    raw.extend(s);
    V::Raw(raw)
}

fn any_int() -> BoxedStrategy<i64> {
    prop_oneof![4 => -200i64..200, 1 => any::<i64>(), 1 => (1i64 << 53) - 2..(1i64 << 53) + 3, 1 => any::<i32>().prop_map(i64::from)]
        .boxed()
}

fn text() -> BoxedStrategy<Vec<u8>> {
    prop_oneof![
        4 => "[a-c]{0,3}".prop_map(String::into_bytes),
        2 => "[a-z]{0,40}".prop_map(String::into_bytes),
        1 => "\\PC{0,8}".prop_map(String::into_bytes),
        1 => "[ab]{300}".prop_map(String::into_bytes),
        1 => prop_oneof![Just(vec![0xc3]), Just(vec![0xa9]), Just(vec![b'a', 0xff])],
    ]
    .boxed()
}

fn ints(n: usize) -> BoxedStrategy<Vec<V>> {
    vec((any_int(), any::<u8>()).prop_map(|(v, f)| int(v, f)), n).boxed()
}

fn floats(n: usize) -> BoxedStrategy<Vec<V>> {
    vec(prop_oneof![9 => any::<f64>().prop_map(V::Float), 1 => any::<f32>().prop_map(V::F32)], n).boxed()
}

fn strings(n: usize) -> BoxedStrategy<Vec<V>> {
    let valid = text().prop_filter("valid", |s| std::str::from_utf8(s).is_ok());
    prop_oneof![
        vec((valid, any::<u8>()).prop_map(|(s, f)| string(&s, f)), n),
        vec((text(), any::<u8>()).prop_map(|(s, f)| string(&s, f)), n),
    ]
    .boxed()
}

fn odd() -> BoxedStrategy<V> {
    prop_oneof![
        Just(V::Nil),
        any::<bool>().prop_map(V::Bool),
        any::<u64>().prop_map(V::Big),
        any_int().prop_map(V::Int),
        any::<f64>().prop_map(V::Float),
        (text(), any::<u8>()).prop_map(|(s, f)| string(&s, f)),
        vec(any::<u8>(), 0..20).prop_map(V::Bin),
        (any::<i8>(), vec(any::<u8>(), 0..17)).prop_map(|(k, d)| V::Ext(k, d)),
        (any::<u8>()).prop_map(|b| a![i64::from(b), m! {"k" => ()}]),
    ]
    .boxed()
}

/// A column of one type, mostly; with NULLs, sometimes one odd value.
fn column(n: usize) -> BoxedStrategy<V> {
    let mixed = (ints(n), floats(n), vec(any::<bool>(), n))
        .prop_map(|(i, f, pick)| i.into_iter().zip(f).zip(pick).map(|((i, f), p)| if p { i } else { f }).collect());
    let values = prop_oneof![
        2 => ints(n),
        2 => floats(n),
        3 => strings(n),
        1 => vec(any::<bool>().prop_map(V::Bool), n),
        1 => vec(Just(V::Nil), n),
        1 => mixed,
    ];
    (values, proptest::option::weighted(0.3, vec(any::<bool>(), n)), proptest::option::weighted(0.1, (any::<usize>(), odd())))
        .prop_map(move |(mut values, nulls, odd)| {
            for (v, _) in values.iter_mut().zip(nulls.into_iter().flatten()).filter(|(_, null)| *null) {
                *v = V::Nil;
            }
            if let Some((at, v)) = odd
                && n > 0
            {
                values[at % n] = v;
            }
            V::Array(values)
        })
        .boxed()
}

fn time(n: usize) -> BoxedStrategy<V> {
    let unit = prop_oneof![Just(1i64), Just(1_000), Just(1_000_000), Just(1_000_000_000)];
    (unit, vec((-100_000i64..100_000, any::<u8>()), n), proptest::option::weighted(0.1, (any::<usize>(), odd())))
        .prop_map(move |(unit, offsets, odd)| {
            let mut values: Vec<V> = offsets.iter().map(|(o, f)| int((1_700_000_000 + o) * unit + o, *f)).collect();
            if let Some((at, v)) = odd
                && n > 0
            {
                values[at % n] = v;
            }
            V::Array(values)
        })
        .boxed()
}

fn request() -> BoxedStrategy<Vec<u8>> {
    let rows = prop_oneof![8 => 0usize..12, 2 => 20usize..60, 1 => 300usize..600];
    let columns = rows.prop_flat_map(|n| {
        let name =
            prop_oneof![20 => "[a-h]{1,3}", 1 => "[A-B]", 1 => Just("date".to_string()), 1 => "\\PC{0,3}", 1 => Just("time".to_string())];
        let len = prop_oneof![40 => Just(n), 1 => 0usize..12];
        let one = (name, len.prop_flat_map(column));
        let time = prop_oneof![3 => time(n).prop_map(Some), 1 => Just(None)];
        (vec(one, 0..6), time, any::<usize>())
    });
    let keys = ["m", "x", "batch", "fields", "columns", "t", "y", "tags", "h", "time", "f", "Tags", "tag", "M"];
    let key = proptest::sample::select(keys.to_vec());
    let extra = proptest::option::weighted(0.3, (key, odd(), any::<usize>()));
    let table = prop_oneof![6 => "[a-z]{1,5}".prop_map(V::Str), 1 => odd(), 1 => any_int().prop_map(V::Int)];
    (columns, table, any::<bool>(), extra)
        .prop_map(|((columns, time, at), table, swap, extra)| {
            let mut pairs: Vec<(V, V)> = columns.into_iter().map(|(name, c)| (V::Str(name), c)).collect();
            if let Some(time) = time {
                pairs.insert(at % (pairs.len() + 1), ("time".into(), time));
            }
            let mut top = vec![("m".into(), table), ("columns".into(), V::Map(pairs))];
            if swap {
                top.swap(0, 1);
            }
            if let Some((key, v, at)) = extra {
                top.insert(at % 3, (key.into(), v));
            }
            V::Map(top).bytes()
        })
        .boxed()
}

fn any_options() -> BoxedStrategy<DecodeOptions> {
    let unit = prop_oneof![3 => Just(None), 1 => Just(Some(TimeUnit::Seconds)), 1 => Just(Some(TimeUnit::Nanos))];
    (unit, any::<bool>(), any::<bool>(), prop_oneof![4 => Just(1024usize), 1 => Just(2)], prop_oneof![4 => Just(1000usize), 1 => Just(2)])
        .prop_map(|(time_unit, hive_names, reject, max_columns, max_partitions)| DecodeOptions {
            time_unit,
            hive_names,
            nested: if reject { Nested::Reject } else { Nested::Json },
            bounds: Bounds { max_columns, max_partitions, ..options().bounds },
            ..options()
        })
        .boxed()
}

/// Bytes that a decoded request holds on to.
fn held(d: &Decoded) -> usize {
    let strings = |s: &crate::batch::Strings| s.bytes.capacity() + s.lengths.capacity() * 4;
    d.tables
        .iter()
        .map(|t| {
            let columns = t.columns.iter().map(|c| match &c.values {
                Values::Int64(v) => v.capacity() * 8,
                Values::Float64(v) => v.capacity() * 8,
                Values::Utf8(s) | Values::Binary(s) => strings(s),
                Values::Utf8Dict { codes, dictionary } => codes.capacity() * 2 + strings(dictionary),
                Values::Bool(_) | Values::Null => 0,
            });
            t.time.capacity() * 8 + columns.sum::<usize>()
        })
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fast_and_generic_agree(body in request(), o in any_options()) {
        let _ = run(&body, &o);
    }

    #[test]
    fn and_on_damaged_requests(mut body in request(), o in any_options(), flips in vec((any::<usize>(), any::<u8>()), 1..4), cut in proptest::option::weighted(0.2, any::<usize>())) {
        let n = body.len();
        for (at, b) in flips {
            body[at % n] = b;
        }
        if let Some(cut) = cut {
            body.truncate(cut % n);
        }
        if let Ok(d) = run(&body, &o) {
            prop_assert!(held(&d) <= 40 * body.len() + 4096, "{} bytes held for a body of {}", held(&d), body.len());
        }
    }

    #[test]
    fn random_bytes_never_panic(body in vec(prop_oneof![any::<u8>(), 0x80u8..0xa4, Just(0xdfu8), Just(0xddu8)], 0..64)) {
        let _ = run(&body, &options());
        // The same behind a beginning that decoders go further with.
        let mut body = [&b"\x82\xa1m\xa1t\xa7columns"[..], &body].concat();
        let _ = run(&body, &options());
        body.splice(5.., b"\xa6fields".iter().copied().chain(body[13..].to_vec()));
        let _ = run(&body, &options());
    }
}

/// The property above says nothing if the fast decoder gives up on everything.
#[test]
fn fast_accepts_the_common_shapes() {
    let columns = m! {
        "time" => a![1_700_000_000, 1_700_000_001], "s" => a!["x", ()], "f" => a![0.5, 1], "i" => a![1, -70_000], "b" => a![(), true]
    };
    for body in [
        m! {"m" => "t", "columns" => columns.clone()},
        m! {"columns" => columns.clone(), "m" => 5, "other" => m!{"a" => a![()]}},
        m! {"m" => "t", "columns" => m!{"s" => a!["é", "è"], "none" => a![(), ()]}},
        m! {"m" => "t", "columns" => m!{"s" => a![]}},
    ] {
        assert!(fast::decode(&body.bytes(), &options()).is_ok(), "{body:?}");
    }
    for body in [
        m! {"m" => "t", "columns" => columns.clone(), "batch" => a![]},
        m! {"m" => "t", "columns" => m!{"a" => a![1, "x"]}},
        m! {"m" => "t", "columns" => m!{"a" => a![1], "A" => a![1]}},
        a![],
    ] {
        assert_eq!(fast::decode(&body.bytes(), &options()), Err(fast::Fallback), "{body:?}");
    }
}
