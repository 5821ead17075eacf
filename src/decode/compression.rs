//! Inflates request bodies, recognised by their first bytes.
//!
//! INVARIANT(inflate-bound): the output buffer never grows past the limit plus one byte, and grows only as inflated
//! bytes arrive: a body that declares a huge size costs nothing.

use crate::error::RequestError;
use bytes::Bytes;
use flate2::{Crc, Decompress, FlushDecompress, Status};
use std::cell::RefCell;
use std::io;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Bytes 1 to 3 of a skippable frame (RFC 8878, section 3.1.2); byte 0 is 0x50 to 0x5f.
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Bytes that tell whether a body is compressed.
pub const MAGIC_BYTES: usize = 4;

/// First size of the output buffer when the compressed body is smaller than this.
const FIRST_CHUNK: usize = 16 << 10;
/// Window of the zstd decoder that each thread keeps: every level but `--ultra` and `--long` fits.
const KEPT_WINDOW_LOG: u32 = 23;
/// Largest window accepted at all. Its decoder is dropped after use, so a thread does not hold 128 MiB for ever.
const MAX_WINDOW_LOG: u32 = 27;

thread_local! {
    static DEFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
    static ZSTD_DECODER: RefCell<Option<Decoder<'static>>> = const { RefCell::new(None) };
}

/// The body as sent, or inflated when its first bytes are those of gzip or zstd. Neither can start a valid
/// MessagePack or line protocol request.
///
/// # Errors
/// [`RequestError::TooLarge`] over `max_raw` bytes as sent or `max_inflated` bytes inflated, [`RequestError::Invalid`] if
/// the compressed data is damaged, cut short or followed by anything else.
pub fn inflate(body: Bytes, max_raw: usize, max_inflated: usize) -> Result<Bytes, RequestError> {
    if body.len() > max_raw {
        return Err(RequestError::TooLarge(format!(
            "body has {} bytes, at most {max_raw} are allowed (server.max_payload_size); split it",
            body.len()
        )));
    }
    if body.starts_with(&GZIP) {
        return DEFLATE
            .with(|d| gunzip(&mut d.borrow_mut(), &body, max_inflated))
            .map(Bytes::from)
            .map_err(|e| e.into_request("gzip", max_inflated));
    }
    if is_zstd(&body) {
        return unzstd(&body, max_inflated).map(Bytes::from).map_err(|e| e.into_request("zstd", max_inflated));
    }
    Ok(body)
}

/// The same for a body that may be compressed more than once: up to `layers` times. Each layer is recognised by its first bytes, so that a
/// layer that is not there is no error.
///
/// # Errors
/// As [`inflate`], for each layer.
pub fn inflate_layers(body: Bytes, layers: usize, max_raw: usize, max_inflated: usize) -> Result<Bytes, RequestError> {
    let mut body = inflate(body, max_raw, max_inflated)?;
    for _ in 1..layers {
        if !is_compressed(&body) {
            break;
        }
        body = inflate(body, usize::MAX, max_inflated)?;
    }
    Ok(body)
}

/// Whether the first bytes are those of gzip or zstd.
pub fn is_compressed(body: &[u8]) -> bool {
    body.starts_with(&GZIP) || is_zstd(body)
}

/// A zstd body may begin with skippable frames. No text and no MessagePack request begins with their bytes.
fn is_zstd(body: &[u8]) -> bool {
    body.starts_with(&ZSTD) || is_skippable(body)
}

fn is_skippable(body: &[u8]) -> bool {
    matches!(body, [0x50..=0x5f, rest @ ..] if rest.starts_with(&SKIPPABLE))
}

/// The body without the skippable frames at its start.
fn after_skippable(mut body: &[u8]) -> &[u8] {
    while is_skippable(body)
        && let Some(length) = body.get(4..).and_then(<[u8]>::first_chunk::<4>)
    {
        body = body.get(8..).and_then(|b| b.get(u32::from_le_bytes(*length) as usize..)).unwrap_or_default();
    }
    body
}

/// What a compressed body says of its size when inflated, 0 if nothing. Only a hint: with several members it is that of one, and it may lie.
pub fn declared(body: &[u8]) -> u64 {
    if body.starts_with(&GZIP) {
        return body.last_chunk::<4>().map_or(0, |l| u64::from(u32::from_le_bytes(*l)));
    }
    let body = after_skippable(body);
    if body.starts_with(&ZSTD) {
        return zstd::zstd_safe::get_frame_content_size(body).ok().flatten().unwrap_or(0);
    }
    0
}

/// How large a body will be, as far as it can be seen: what it declares, a guess for a zstd stream that declares nothing, else its own size.
pub fn expected(body: &[u8]) -> usize {
    /// What zstd makes of lines and numbers that repeat.
    const RATIO: usize = 16;
    let declared = usize::try_from(declared(body)).unwrap_or(usize::MAX);
    let undeclared = declared == 0 && is_zstd(body);
    declared.max(if undeclared { body.len().saturating_mul(RATIO) } else { body.len() })
}

#[derive(Debug)]
enum Failure {
    TooLarge,
    Damaged(String),
}

impl Failure {
    fn into_request(self, format: &str, max: usize) -> RequestError {
        match self {
            Self::TooLarge => {
                RequestError::TooLarge(format!("body inflates to more than {max} bytes (ingest.max_inflated_size); split it"))
            }
            Self::Damaged(why) => RequestError::Invalid(format!("body is damaged {format} data: {why}")),
        }
    }
}

fn damaged<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Damaged(why.into()))
}

/// Room for more output: doubles, up to one byte past the limit, which tells "exactly the limit" from "more".
fn grow(out: &mut Vec<u8>, compressed: usize, max: usize) -> Result<(), Failure> {
    let cap = max.saturating_add(1);
    if out.len() >= cap {
        return Err(Failure::TooLarge);
    }
    if out.len() == out.capacity() {
        let want = if out.is_empty() { compressed.saturating_mul(3).max(FIRST_CHUNK) } else { out.len().saturating_mul(2) };
        out.reserve_exact(want.min(cap) - out.len());
    }
    Ok(())
}

fn gunzip(inflater: &mut Decompress, body: &[u8], max: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        rest = gzip_header(rest)?;
        inflater.reset(false);
        let from = out.len();
        loop {
            grow(&mut out, rest.len(), max)?;
            let (read, written) = (inflater.total_in(), inflater.total_out());
            let status = match inflater.decompress_vec(rest, &mut out, FlushDecompress::None) {
                Ok(s) => s,
                Err(e) => return damaged(e.to_string()),
            };
            let read = (inflater.total_in() - read) as usize;
            rest = rest.get(read..).unwrap_or_default();
            if status == Status::StreamEnd {
                break;
            }
            if read == 0 && inflater.total_out() == written && out.len() < out.capacity() {
                return damaged("it ends inside a member");
            }
        }
        if out.len() > max {
            return Err(Failure::TooLarge);
        }
        let Some((trailer, after)) = rest.split_first_chunk::<8>() else {
            return damaged("it ends inside a member");
        };
        let [c0, c1, c2, c3, l0, l1, l2, l3] = *trailer;
        let mut crc = Crc::new();
        crc.update(out.get(from..).unwrap_or_default());
        if crc.sum() != u32::from_le_bytes([c0, c1, c2, c3]) || crc.amount() != u32::from_le_bytes([l0, l1, l2, l3]) {
            return damaged("checksum or length does not match");
        }
        rest = after;
    }
    Ok(out)
}

/// What follows the header of a gzip member (RFC 1952).
fn gzip_header(member: &[u8]) -> Result<&[u8], Failure> {
    const HCRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const RESERVED: u8 = 0xe0;
    let cut = || Failure::Damaged("it ends inside a header".into());
    if !member.starts_with(&GZIP) && !GZIP.starts_with(member) {
        return damaged("it is followed by bytes that are not gzip");
    }
    let (head, mut rest) = member.split_first_chunk::<10>().ok_or_else(cut)?;
    let [_, _, method, flags, ..] = *head;
    if method != 8 || flags & RESERVED != 0 {
        return damaged("unknown method or flags");
    }
    if flags & EXTRA != 0 {
        let (len, after) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
        rest = after.get(usize::from(u16::from_le_bytes(*len))..).ok_or_else(cut)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|b| *b == 0).ok_or_else(cut)?;
            rest = rest.get(end + 1..).ok_or_else(cut)?;
        }
    }
    if flags & HCRC != 0 {
        rest = rest.get(2..).ok_or_else(cut)?;
    }
    Ok(rest)
}

fn unzstd(body: &[u8], max: usize) -> Result<Vec<u8>, Failure> {
    let first = ZSTD_DECODER.with(|kept| {
        let mut kept = kept.borrow_mut();
        let mut decoder = match kept.take() {
            Some(mut d) => match d.reinit() {
                Ok(()) => d,
                Err(_) => zstd_decoder(KEPT_WINDOW_LOG)?,
            },
            None => zstd_decoder(KEPT_WINDOW_LOG)?,
        };
        let result = zstd_frames(&mut decoder, body, max);
        *kept = Some(decoder);
        result
    });
    match first {
        // The library does not tell "window too large" from damage in a stable way; damage is rare enough to look twice.
        Err(Failure::Damaged(_)) => zstd_frames(&mut zstd_decoder(MAX_WINDOW_LOG)?, body, max),
        other => other,
    }
}

fn zstd_decoder(window_log: u32) -> Result<Decoder<'static>, Failure> {
    let make = || -> io::Result<Decoder<'static>> {
        let mut d = Decoder::new()?;
        d.set_parameter(DParameter::WindowLogMax(window_log))?;
        Ok(d)
    };
    make().map_err(|e| Failure::Damaged(e.to_string()))
}

fn zstd_frames(decoder: &mut Decoder<'static>, body: &[u8], max: usize) -> Result<Vec<u8>, Failure> {
    let mut out: Vec<u8> = Vec::new();
    let mut input = InBuffer::around(body);
    loop {
        grow(&mut out, body.len(), max)?;
        let (read, written) = (input.pos(), out.len());
        let wanted = decoder.run(&mut input, &mut OutBuffer::around_pos(&mut out, written)).map_err(|e| Failure::Damaged(e.to_string()))?;
        let stuck = input.pos() == read && out.len() == written;
        if out.len() > max {
            return Err(Failure::TooLarge);
        }
        if input.pos() == body.len() {
            if wanted == 0 {
                return Ok(out);
            }
            if out.len() < out.capacity() {
                return damaged("it ends inside a frame");
            }
        } else if stuck && out.len() < out.capacity() {
            return damaged("it does not decode");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gz(data: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    fn zst(data: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(data, 1).unwrap()
    }

    #[test]
    fn a_body_says_how_large_it_becomes() {
        let data = sample(300_000);
        assert_eq!((declared(&gz(&data)), declared(&zst(&data)), declared(&data)), (300_000, 300_000, 0));
        for cut in [&gz(&data)[..3], &zst(&data)[..5], &[]] {
            assert_eq!(declared(cut), 0);
        }
    }

    fn sample(n: usize) -> Vec<u8> {
        (0..n).map(|i| ((i * i) >> 3) as u8).collect()
    }

    fn run(body: Vec<u8>, max: usize) -> Result<Bytes, RequestError> {
        inflate(Bytes::from(body), 1 << 20, max)
    }

    #[test]
    fn other_bodies_pass_through_without_a_copy() {
        for body in [&b""[..], b"\x81\xa1m\x01", b"\x1f", b"\x28\xb5\x2f", b"cpu value=1"] {
            let body = Bytes::from(body.to_vec());
            let out = inflate(body.clone(), 100, 100).unwrap();
            assert_eq!(out.as_ptr(), body.as_ptr());
            assert_eq!(out, body);
        }
    }

    #[test]
    fn whole_and_concatenated_members_inflate() {
        for n in [0, 1, 1000, 100_000, 300_000] {
            let data = sample(n);
            for pack in [gz as fn(&[u8]) -> Vec<u8>, zst] {
                assert_eq!(run(pack(&data), n).unwrap(), data, "{n}");
                let two = [pack(&data), pack(&data)].concat();
                assert_eq!(run(two, 2 * n).unwrap(), [data.clone(), data.clone()].concat());
            }
        }
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..]].concat();
        let body = [zst(b"one"), skippable.clone(), zst(b"two"), skippable].concat();
        assert_eq!(run(body, 6).unwrap(), &b"onetwo"[..]);
    }

    #[test]
    fn gzip_headers_with_every_optional_field_are_read() {
        let mut e = flate2::GzBuilder::new().filename("f").comment("c").extra(vec![1, 2, 3]).write(Vec::new(), flate2::Compression::fast());
        e.write_all(b"hello").unwrap();
        assert_eq!(run(e.finish().unwrap(), 5).unwrap(), &b"hello"[..]);
    }

    fn skippable(nibble: u8, content: &[u8]) -> Vec<u8> {
        [&[0x50 | nibble, 0x2a, 0x4d, 0x18][..], &(content.len() as u32).to_le_bytes(), content].concat()
    }

    #[test]
    fn zstd_behind_skippable_frames_inflates() {
        let data = sample(5000);
        for head in [skippable(0, b""), skippable(15, &zst(b"not this")), [skippable(3, b"a"), skippable(4, &[0; 300])].concat()] {
            let body = [&head[..], &zst(&data)].concat();
            assert!(is_compressed(&body[..MAGIC_BYTES]));
            assert_eq!(declared(&body), 5000);
            assert_eq!(run(body.clone(), 5000).unwrap(), data);
            assert_eq!(run([&body[..], &head, &zst(b"x")].concat(), 5001).unwrap(), [&data[..], b"x"].concat(), "between frames too");
            assert_eq!(run(head.clone(), 10).unwrap(), &b""[..], "frames without content");
            assert_eq!(run(body, 4999).unwrap_err().status(), 413);
            for cut in 4..head.len() {
                assert_eq!(run(head[..cut].to_vec(), 100).map_or(400, |_| 200), if whole(&head[..cut]) { 200 } else { 400 }, "{cut}");
            }
        }
        for not in [&b"P"[..], b"P*M", b"P*N\x18", b"O*M\x18", b"`*M\x18"] {
            assert!(!is_compressed(not), "{not:?}");
            assert_eq!(run(not.to_vec(), 100).unwrap(), not);
        }
    }

    /// Whether the bytes are skippable frames and nothing else.
    fn whole(bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while let Some(length) = rest.get(4..8) {
            let end = 8 + u32::from_le_bytes(length.try_into().unwrap()) as usize;
            let Some(after) = rest.get(end..) else { return false };
            rest = after;
        }
        rest.is_empty()
    }

    #[test]
    fn layers_inflate_one_after_the_other_within_the_limit() {
        let data = sample(3000);
        let layers = |body: Vec<u8>, n, max| inflate_layers(Bytes::from(body), n, 1 << 20, max);
        let twice = gz(&zst(&data));
        assert_eq!(layers(twice.clone(), 2, 5000).unwrap(), data);
        assert_eq!(layers(twice.clone(), 1, 5000).unwrap(), zst(&data), "one layer is one layer");
        assert_eq!(layers(twice.clone(), 4, 5000).unwrap(), data);
        assert_eq!(layers(zst(&data), 2, 5000).unwrap(), data, "a layer that is not there");
        assert_eq!(layers(data.clone(), 2, 5000).unwrap(), data);
        assert_eq!(layers(gz(&zst(&vec![0; 100_000])), 2, 50_000).unwrap_err().status(), 413);
        assert_eq!(layers(gz(&zst(&data)[..40]), 2, 5000).unwrap_err().status(), 400);
    }

    #[test]
    fn limits_are_enforced_while_inflating() {
        let data = vec![0u8; 1 << 20];
        for body in [gz(&data), zst(&data), [gz(&data[..600]), gz(&data[..600])].concat(), [zst(&data[..600]), zst(&data[..600])].concat()]
        {
            let e = run(body, 1000).unwrap_err();
            assert_eq!(e.status(), 413, "{e}");
            assert!(e.message().contains("ingest.max_inflated_size") && e.message().contains("1000"), "{e}");
        }
        assert_eq!(inflate(Bytes::from(vec![0; 11]), 10, 100).unwrap_err().status(), 413);
        let mut out = Vec::with_capacity(0);
        while grow(&mut out, 10, 100_000).is_ok() {
            assert!(out.capacity() <= 100_001);
            out.resize(out.capacity(), 0);
        }
    }

    #[test]
    fn every_truncation_and_trailing_garbage_is_refused() {
        let data = sample(500);
        for whole in [gz(&data), zst(&data), [gz(&data), gz(b"x")].concat()] {
            let boundary = gz(&data).len();
            for n in 4..whole.len() {
                if n == boundary && whole.starts_with(&GZIP) {
                    continue;
                }
                let e = run(whole[..n].to_vec(), 10_000).unwrap_err();
                assert_eq!(e.status(), 400, "{n}: {e}");
            }
            for tail in [&b"garbage"[..], &[0], &[0x1f]] {
                assert_eq!(run([&whole[..], tail].concat(), 10_000).unwrap_err().status(), 400);
            }
            // The thread's decoder is fit for use after a failure.
            assert_eq!(run(zst(&data), 10_000).unwrap(), data);
            assert_eq!(run(gz(&data), 10_000).unwrap(), data);
        }
    }

    #[test]
    fn flipped_bits_never_change_what_gzip_yields() {
        let data = sample(300);
        let whole = gz(&data);
        for i in 10..whole.len() {
            let mut bad = whole.clone();
            bad[i] ^= 0x10;
            // The last byte of the deflate data has bits that mean nothing.
            assert!(run(bad, 10_000).map_or(true, |out| out == data), "{i}");
        }
    }

    #[test]
    fn windows_up_to_the_bound_are_accepted() {
        let mut e = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        e.set_parameter(zstd::zstd_safe::CParameter::WindowLog(26)).unwrap();
        e.write_all(&[1; 1000]).unwrap();
        assert_eq!(run(e.finish().unwrap(), 1000).unwrap().len(), 1000);
    }
}
