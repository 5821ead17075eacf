//! Compressed bodies: damaged ones end in an error, none grows past the limit, valid ones come back.

use std::io::Write as _;

use arbitrary::Unstructured;
use arc_ingest::decode::compression::{declared, inflate};
use bytes::Bytes;

use super::build::{Damage, flag, one_in, upto};
use super::held;

/// A decoder that a thread keeps, and its first buffer.
const FIXED: usize = 512 << 10;

pub fn check(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode % 4 {
        0 => drop(any(rest, 100_000)),
        1 => drop(any(&[&[0x1f, 0x8b, 8][..], rest].concat(), 100_000)),
        2 => drop(any(&[&[0x28, 0xb5, 0x2f, 0xfd][..], rest].concat(), 100_000)),
        _ => members(&mut Unstructured::new(rest)),
    }
}

fn any(body: &[u8], max: usize) -> Option<Bytes> {
    let _ = declared(body);
    match held::at_most(2 * max + 4 * body.len() + FIXED, || inflate(Bytes::copy_from_slice(body), 1 << 24, max)) {
        Ok(out) => {
            let passed = !body.starts_with(&[0x1f, 0x8b]) && !body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
            assert!(out.len() <= max || passed, "{} bytes of at most {max}", out.len());
            assert!(!passed || out == body);
            Some(out)
        }
        Err(e) => {
            assert!(matches!(e.status(), 400 | 413), "{e:?}");
            None
        }
    }
}

fn members(u: &mut Unstructured<'_>) {
    let gzip = flag(u);
    let (mut plain, mut body) = (Vec::new(), Vec::new());
    let mut ends = vec![0];
    for _ in 0..=upto(u, 3) {
        let content = content(u);
        body.extend(if gzip { gz(u, &content) } else { zst(u, &content) });
        if !gzip && one_in(u, 4) {
            // A frame that decoders pass over.
            body.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        }
        plain.extend(content);
        ends.push(body.len());
    }
    assert_eq!(any(&body, plain.len()).as_deref(), Some(&plain[..]), "whole");
    assert_eq!(inflate(Bytes::from(body.clone()), body.len() - 1, plain.len()).unwrap_err().status(), 413);
    if !plain.is_empty() {
        let less = upto(u, plain.len() - 1);
        assert_eq!(inflate(Bytes::from(body.clone()), body.len(), less).unwrap_err().status(), 413, "a limit of {less}");
    }
    let cut = upto(u, body.len() - 1);
    match any(&body[..cut], plain.len()) {
        // Between members, between frames, or before the magic is whole.
        Some(out) => assert!(cut < 4 || gzip && ends.contains(&cut) || !gzip && plain.starts_with(&out), "cut at {cut} of {ends:?}"),
        None => assert!(!ends[1..].contains(&cut)),
    }
    let to = body.len();
    Damage::make(u, 0, to).apply(&mut body, to);
    any(&body, plain.len() + 100);
    // The thread's decoders are fit for use after a failure.
    let small = if gzip { gz(u, b"after") } else { zst(u, b"after") };
    assert_eq!(any(&small, 5).as_deref(), Some(&b"after"[..]));
}

fn content(u: &mut Unstructured<'_>) -> Vec<u8> {
    let n = upto(u, 40).min(u.len());
    let seed = u.bytes(n).unwrap_or_default().to_vec();
    let times = match upto(u, 9) {
        0..=4 => 1,
        5..=7 => upto(u, 100),
        8 => upto(u, 5000),
        _ => 20_000,
    };
    seed.repeat(times)
}

fn gz(u: &mut Unstructured<'_>, data: &[u8]) -> Vec<u8> {
    let mut b = flate2::GzBuilder::new();
    if one_in(u, 4) {
        b = b.filename("name").comment("comment").extra(vec![1, 2, 3]);
    }
    let level = if flag(u) { flate2::Compression::fast() } else { flate2::Compression::none() };
    let mut e = b.write(Vec::new(), level);
    e.write_all(data).unwrap();
    e.finish().unwrap()
}

fn zst(u: &mut Unstructured<'_>, data: &[u8]) -> Vec<u8> {
    if flag(u) {
        return zstd::bulk::compress(data, 1).unwrap();
    }
    // A stream: the frame does not declare its size.
    zstd::stream::encode_all(data, 1).unwrap()
}
