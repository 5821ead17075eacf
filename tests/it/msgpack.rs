//! MessagePack bodies, well formed or not.

use serde_json::Value;

/// A JSON value as MessagePack.
pub fn mp(v: &Value) -> Vec<u8> {
    rmp_serde::to_vec(v).unwrap()
}

/// A columnar request from columns that are encoded already.
pub fn columnar(table: &str, columns: &[(&str, Vec<u8>)]) -> Vec<u8> {
    map(&[("m", s(table)), ("columns", map(columns))])
}

pub fn map(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_map_len(&mut out, pairs.len() as u32).unwrap();
    for (k, v) in pairs {
        out.extend(s(k));
        out.extend(v);
    }
    out
}

pub fn arr(items: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_array_len(&mut out, items.len() as u32).unwrap();
    out.extend(items.concat());
    out
}

pub fn ints(v: &[i64]) -> Vec<u8> {
    arr(&v.iter().map(|v| i(*v)).collect::<Vec<_>>())
}

pub fn floats(v: &[f64]) -> Vec<u8> {
    arr(&v.iter().map(|v| f(*v)).collect::<Vec<_>>())
}

pub fn strs(v: &[&str]) -> Vec<u8> {
    arr(&v.iter().map(|v| s(v)).collect::<Vec<_>>())
}

pub fn s(v: &str) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_str(&mut out, v).unwrap();
    out
}

/// A string of any bytes.
pub fn raw_str(v: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_str_len(&mut out, v.len() as u32).unwrap();
    out.extend(v);
    out
}

pub fn i(v: i64) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_sint(&mut out, v).unwrap();
    out
}

pub fn u(v: u64) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_uint(&mut out, v).unwrap();
    out
}

pub fn f(v: f64) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_f64(&mut out, v).unwrap();
    out
}

pub fn b(v: bool) -> Vec<u8> {
    vec![if v { 0xc3 } else { 0xc2 }]
}

pub fn nil() -> Vec<u8> {
    vec![0xc0]
}

pub fn bin(v: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_bin(&mut out, v).unwrap();
    out
}

pub fn ext(kind: i8, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_ext_meta(&mut out, data.len() as u32, kind).unwrap();
    out.extend(data);
    out
}

pub fn gzip(v: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(v).unwrap();
    e.finish().unwrap()
}

pub fn zstd(v: &[u8]) -> Vec<u8> {
    ::zstd::bulk::compress(v, 1).unwrap()
}
