//! The rules of MessagePack requests, each accepted and refused, and the two decoders against each other.

mod differential;
mod rules;

use super::*;
use crate::batch::Values;
use crate::limits;
use crate::types::LargeUnsigned;
use rmp::encode as enc;

/// A value to encode. Integers take their smallest format unless given raw.
#[derive(Clone, Debug)]
pub(super) enum V {
    Nil,
    Bool(bool),
    Int(i64),
    Big(u64),
    Float(f64),
    F32(f32),
    Str(String),
    Bin(Vec<u8>),
    Ext(i8, Vec<u8>),
    Array(Vec<V>),
    Map(Vec<(V, V)>),
    Raw(Vec<u8>),
}

impl V {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            V::Nil => enc::write_nil(out).unwrap(),
            V::Bool(b) => enc::write_bool(out, *b).unwrap(),
            V::Int(i) => drop(enc::write_sint(out, *i).unwrap()),
            V::Big(u) => drop(enc::write_uint(out, *u).unwrap()),
            V::Float(f) => enc::write_f64(out, *f).unwrap(),
            V::F32(f) => enc::write_f32(out, *f).unwrap(),
            V::Str(s) => enc::write_str(out, s).unwrap(),
            V::Bin(b) => enc::write_bin(out, b).unwrap(),
            V::Ext(kind, data) => {
                enc::write_ext_meta(out, data.len() as u32, *kind).unwrap();
                out.extend(data);
            }
            V::Array(items) => {
                enc::write_array_len(out, items.len() as u32).unwrap();
                items.iter().for_each(|i| i.write(out));
            }
            V::Map(pairs) => {
                enc::write_map_len(out, pairs.len() as u32).unwrap();
                pairs.iter().for_each(|(k, v)| {
                    k.write(out);
                    v.write(out);
                });
            }
            V::Raw(bytes) => out.extend(bytes),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }
}

macro_rules! into_v {
    ($($t:ty => $f:expr),* $(,)?) => { $(impl From<$t> for V { fn from(v: $t) -> V { $f(v) } })* };
}
into_v! {
    i64 => V::Int, i32 => |v| V::Int(i64::from(v)), u64 => V::Big, f64 => V::Float, f32 => V::F32, bool => V::Bool,
    &str => |v: &str| V::Str(v.to_owned()), String => V::Str, () => |()| V::Nil,
}

/// `m!{ key => value, ... }`
macro_rules! m {
    ($($k:expr => $v:expr),* $(,)?) => { V::Map(vec![$((V::from($k), V::from($v))),*]) };
}
/// `a![value, ...]`
macro_rules! a {
    ($($v:expr),* $(,)?) => { V::Array(vec![$(V::from($v)),*]) };
}
pub(super) use {a, m};

pub(super) const RECEIVED: i64 = 1_234_567_890_123_456;

pub(super) fn options() -> DecodeOptions {
    DecodeOptions {
        receive_time_us: RECEIVED,
        time_unit: None,
        nested: Nested::Json,
        hive_names: false,
        large_unsigned: LargeUnsigned::Refuse,
        bounds: Bounds { max_columns: 1024, max_tables: 100, max_partitions: 1000, max_bytes: limits::MAX_PAYLOAD },
        max_text: 64 << 20,
    }
}

/// Decodes with the generic decoder, and holds the fast one against it.
pub(super) fn run(body: &[u8], o: &DecodeOptions) -> Result<Decoded, RequestError> {
    let generic = generic::decode(body, o, &|_, _| None);
    if let Ok(fast) = fast::decode(body, o) {
        let generic = generic.as_ref().expect("the fast decoder accepted this");
        assert_eq!(logical(&fast), logical(generic));
    }
    assert_eq!(decode(body, o).map(|d| logical(&d)), generic.clone().map(|d| logical(&d)));
    generic
}

pub(super) fn ok(v: V) -> Decoded {
    run(&v.bytes(), &options()).unwrap_or_else(|e| panic!("{v:?}: {e}"))
}

/// Refused with 400 and a message that has all of `parts`.
pub(super) fn refused(v: V, parts: &[&str]) {
    refused_with(&options(), v, parts);
}

pub(super) fn refused_with(o: &DecodeOptions, v: V, parts: &[&str]) {
    let e = run(&v.bytes(), o).expect_err(&format!("{v:?}"));
    assert_eq!(e.status(), 400, "{e}");
    for p in parts {
        assert!(e.message().contains(p), "'{p}' is not in: {e}");
    }
}

/// A cell as text, whatever represents it; floats by their bits.
fn cell(c: &crate::batch::Column, row: usize) -> String {
    if c.is_null(row) {
        return "null".into();
    }
    let text = |b: &[u8]| format!("{:?}", std::str::from_utf8(b).expect("strings are UTF-8"));
    match &c.values {
        Values::Null => unreachable!(),
        Values::Int64(v) => v[row].to_string(),
        Values::Float64(v) => format!("f{:016x}", v[row].to_bits()),
        Values::Bool(v) => v.get(row).to_string(),
        Values::Utf8(s) => text(s.iter().nth(row).unwrap()),
        Values::Utf8Dict { codes, dictionary } => text(dictionary.iter().nth(codes[row] as usize).unwrap()),
        Values::Binary(s) => format!("b{:?}", s.iter().nth(row).unwrap()),
    }
}

type Logical = (u64, Vec<(String, Vec<i64>, Vec<(String, bool, String, Vec<String>)>)>);

pub(super) fn logical(d: &Decoded) -> Logical {
    let table = |t: &TableBatch| {
        let columns = t.columns.iter().map(|c| {
            assert!(!c.defines);
            assert!(c.values.rows().is_none_or(|n| n == t.rows()));
            assert!(c.validity.as_ref().is_none_or(|v| v.len() == t.rows()));
            let kind = c.values.column_type().map_or("null", |k| k.name());
            (c.name.clone(), c.tag, kind.to_owned(), (0..t.rows()).map(|r| cell(c, r)).collect())
        });
        (t.table.clone(), t.time.clone(), columns.collect())
    };
    (d.invalid_utf8, d.tables.iter().map(table).collect())
}

/// The cells of one column of the only table.
pub(super) fn cells(d: &Decoded, column: &str) -> Vec<String> {
    assert_eq!(d.tables.len(), 1);
    let (_, _, columns) = &logical(d).1[0];
    columns.iter().find(|(name, ..)| name == column).unwrap_or_else(|| panic!("no column {column} in {columns:?}")).3.clone()
}

pub(super) fn names(d: &Decoded) -> Vec<&str> {
    assert_eq!(d.tables.len(), 1);
    d.tables[0].columns.iter().map(|c| c.name.as_str()).collect()
}
