//! The elements of a line: names, values, time stamps. Each function looks at bytes from a place on and says where the element ends.

use memchr::{memchr, memchr3};

/// A field's value as it stands in the body.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Value {
    Int(i64),
    /// An integer with the suffix `u` above `i64::MAX`.
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    /// The bytes between the quotes.
    Str(Text),
}

/// A part of the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Text {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) escapes: Escapes,
}

/// What backslashes in a text escape.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Escapes {
    /// It has none.
    #[default]
    None,
    Measurement,
    /// Keys and the values of tags.
    Key,
    Quoted,
}

impl Text {
    pub(super) fn of(self, body: &[u8]) -> &[u8] {
        body.get(self.from..self.to).unwrap_or_default()
    }

    /// The text without its escapes, which `scratch` is used for.
    #[inline]
    pub(super) fn plain<'b>(self, body: &'b [u8], scratch: &'b mut Vec<u8>) -> &'b [u8] {
        let specials: &[u8] = match self.escapes {
            Escapes::None => return self.of(body),
            Escapes::Measurement => b", ",
            Escapes::Key => b",= ",
            Escapes::Quoted => b"\"\\",
        };
        scratch.clear();
        unescape(self.of(body), specials, scratch);
        scratch
    }

    pub(super) fn is_empty(self) -> bool {
        self.from == self.to
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// The high bit of each byte of `v` that is zero, and perhaps of bytes above such a one.
#[inline(always)]
fn zeros(v: u64) -> u64 {
    v.wrapping_sub(ONES) & !v & HIGHS
}

/// Where the next of `,`, `=`, space, newline and backslash is, or the end.
#[inline(always)]
pub(super) fn special(body: &[u8], mut at: usize) -> usize {
    while let Some(word) = body.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let v = u64::from_le_bytes(*word);
        // Bits above the lowest may be wrong, the lowest is not.
        let hits = zeros(v ^ (ONES * b',' as u64))
            | zeros(v ^ (ONES * b'=' as u64))
            | zeros(v ^ (ONES * b' ' as u64))
            | zeros(v ^ (ONES * b'\n' as u64))
            | zeros(v ^ (ONES * b'\\' as u64));
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while let Some(b) = body.get(at) {
        if matches!(b, b',' | b'=' | b' ' | b'\n' | b'\\') {
            return at;
        }
        at += 1;
    }
    at
}

/// The text from `from` to the first unescaped `,`, space, newline, or `=` (which the name of a measurement may have), or the end.
pub(super) fn name(body: &[u8], from: usize, measurement: bool) -> Text {
    let (mut at, mut escapes) = (from, Escapes::None);
    loop {
        at = special(body, at);
        match body.get(at) {
            Some(b'\\') => {
                escapes = if measurement { Escapes::Measurement } else { Escapes::Key };
                at += match body.get(at + 1) {
                    Some(b',' | b' ') => 2,
                    Some(b'=') if !measurement => 2,
                    _ => 1,
                };
            }
            Some(b'=') if measurement => at += 1,
            _ => return Text { from, to: at, escapes },
        }
    }
}

/// The name of the measurement at `from`. A backslash before a leading `#` is not part of it: without one the line is a comment.
pub(super) fn measurement(body: &[u8], from: usize) -> Text {
    let escaped = body.get(from..).is_some_and(|b| b.starts_with(b"\\#"));
    name(body, from + usize::from(escaped), true)
}

/// Removes the backslashes that escape what follows them.
fn unescape(text: &[u8], specials: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = memchr(b'\\', rest) {
        let (before, from) = rest.split_at(at);
        out.extend_from_slice(before);
        let skip = match from.get(1) {
            Some(c) if specials.contains(c) => {
                out.push(*c);
                2
            }
            _ => {
                out.push(b'\\');
                1
            }
        };
        rest = from.get(skip..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
}

/// True at the end of a line: newline, carriage return before one, or the end of the body.
#[inline(always)]
pub(super) fn ends_line(body: &[u8], at: usize) -> bool {
    match body.get(at) {
        None | Some(b'\n') => true,
        Some(b'\r') => matches!(body.get(at + 1), None | Some(b'\n')),
        Some(_) => false,
    }
}

/// True where a field's value may end.
#[inline(always)]
pub(super) fn ends_value(body: &[u8], at: usize) -> bool {
    matches!(body.get(at), None | Some(b',' | b' ' | b'\n')) || ends_line(body, at)
}

/// Where the next thing stands that is neither space nor tab.
#[inline(always)]
pub(super) fn blanks(body: &[u8], mut at: usize) -> usize {
    while matches!(body.get(at), Some(b' ' | b'\t')) {
        at += 1;
    }
    at
}

/// A string: where its text is, where it is over, and how many newlines it has.
pub(super) struct Quoted {
    pub(super) text: Text,
    pub(super) end: usize,
    pub(super) newlines: u64,
}

/// The string whose opening quote is at `at`; None when it never closes.
#[inline]
pub(super) fn string(body: &[u8], at: usize) -> Option<Quoted> {
    let from = at + 1;
    let (mut at, mut escapes, mut newlines) = (from, Escapes::None, 0);
    loop {
        at += memchr3(b'"', b'\\', b'\n', body.get(at..)?)?;
        match body.get(at)? {
            b'"' => return Some(Quoted { text: Text { from, to: at, escapes }, end: at + 1, newlines }),
            b'\\' => {
                escapes = Escapes::Quoted;
                at += if matches!(body.get(at + 1), Some(b'"' | b'\\')) { 2 } else { 1 };
            }
            _ => {
                newlines += 1;
                at += 1;
            }
        }
    }
}

/// A number at `at`, and where it is over: the longest that can be read, so that whoever calls looks at what follows. None: there is none, or
/// it does not fit its type.
#[inline]
pub(super) fn number(body: &[u8], at: usize) -> Option<(Value, usize)> {
    let negative = body.get(at) == Some(&b'-');
    let from = at + usize::from(negative);
    let (mut end, mut mantissa) = (from, 0u64);
    while let Some(b) = body.get(end) {
        let digit = b.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
        end += 1;
    }
    let digits = end - from;
    match body.get(end) {
        Some(b'i') if digits > 0 => {
            let value = if digits <= 18 {
                if negative { -(mantissa as i64) } else { mantissa as i64 }
            } else {
                std::str::from_utf8(body.get(at..end)?).ok()?.parse().ok()?
            };
            Some((Value::Int(value), end + 1))
        }
        Some(b'u') if digits > 0 && !negative => {
            let value = if digits <= 18 { mantissa } else { std::str::from_utf8(body.get(at..end)?).ok()?.parse().ok()? };
            Some((i64::try_from(value).map_or(Value::Unsigned(value), Value::Int), end + 1))
        }
        Some(b'.' | b'e' | b'E') => float(body, at),
        // Up to 15 digits are a double exactly.
        _ if digits > 0 && digits <= 15 => {
            let value = mantissa as f64;
            Some((Value::Float(if negative { -value } else { value }), end))
        }
        _ if digits > 0 => float(body, at),
        _ => None,
    }
}

#[inline]
fn float(body: &[u8], at: usize) -> Option<(Value, usize)> {
    let (value, len) = fast_float2::parse_partial::<f64, _>(body.get(at..)?).ok()?;
    value.is_finite().then_some((Value::Float(value), at + len))
}

/// A time stamp at `at`, and where it is over.
#[inline]
pub(super) fn integer(body: &[u8], at: usize) -> Option<(i64, usize)> {
    let negative = body.get(at) == Some(&b'-');
    let from = at + usize::from(negative);
    let (mut end, mut value) = (from, 0u64);
    while let Some(b) = body.get(end) {
        let digit = b.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        end += 1;
    }
    match end - from {
        0 => None,
        1..=18 => Some((if negative { -(value as i64) } else { value as i64 }, end)),
        _ => Some((std::str::from_utf8(body.get(at..end)?).ok()?.parse().ok()?, end)),
    }
}

/// The value of a word.
#[inline]
pub(super) fn boolean(word: &[u8]) -> Option<bool> {
    match word {
        b"t" | b"T" | b"true" | b"True" | b"TRUE" => Some(true),
        b"f" | b"F" | b"false" | b"False" | b"FALSE" => Some(false),
        _ => None,
    }
}

/// The bytes from `at` to where a field's value ends.
pub(super) fn word(body: &[u8], at: usize) -> &[u8] {
    let mut end = at;
    while !ends_value(body, end) {
        end += 1;
    }
    body.get(at..end).unwrap_or_default()
}
