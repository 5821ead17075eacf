//! The fast decoder against the generic one: what the fast one accepts, the generic one accepts with the same rows.

use arc_ingest::decode::msgpack::{Decoded, decode, decode_with_both};

use super::msgpack::options;
use super::rows;

pub fn check(data: &[u8]) {
    let Some((how, body)) = data.split_first() else { return };
    one(*how, body);
    // The same behind a beginning that the fast decoder goes further with.
    one(*how, &[&b"\x82\xa1m\xa1t\xa7columns"[..], body].concat());
}

fn one(how: u8, body: &[u8]) {
    let o = options(how);
    let (fast, generic) = decode_with_both(body, &o);
    match (&fast, &generic) {
        (Some(f), Ok(g)) => assert_alike(f, g),
        (Some(_), Err(e)) => panic!("the fast decoder accepted what the generic one refuses: {e}"),
        (None, _) => {}
    }
    match (decode(body, &o), &generic) {
        (Ok(d), Ok(g)) => assert_alike(&d, g),
        (d, g) => assert_eq!(d.map(|_| ()), g.clone().map(|_| ())),
    }
}

fn assert_alike(a: &Decoded, b: &Decoded) {
    assert_eq!(a.invalid_utf8, b.invalid_utf8);
    rows::assert_same(&a.tables, &b.tables);
}
