//! Nested values as JSON text, written while they are read.

use super::scan::{Head, Reader};
use super::texts::Texts;
use crate::batch::shown;
use crate::decode::table::invalid;
use crate::error::RequestError;
use std::ops::Range;

/// Writes the next value of `r` to the end of `out`. Nesting is bounded by the scan before, see [`super::scan`].
///
/// # Errors
/// [`RequestError::Invalid`] for what JSON cannot hold, [`RequestError::TooLarge`] for too much text.
pub fn write(out: &mut Texts, r: &mut Reader<'_>) -> Result<(), RequestError> {
    match r.head()? {
        Head::Nil => out.push_str("null"),
        Head::Bool(b) => out.push_str(if b { "true" } else { "false" }),
        Head::Int(i) => out.push(i),
        Head::Unsigned(u) => out.push(u),
        Head::Float(f) if f.is_finite() => out.push(format_args!("{f:?}")),
        Head::Float(_) => out.push_str("null"),
        Head::Str(s) => string(out, s),
        Head::Binary(b) => binary(out, b),
        Head::Array(n) => array(out, r, n),
        Head::Map(n) => map(out, r, n),
        Head::Extension(kind, _) => invalid(format!("extension type {kind} cannot stand in a nested value")),
    }
}

fn array(out: &mut Texts, r: &mut Reader<'_>, n: usize) -> Result<(), RequestError> {
    out.push_str("[")?;
    for _ in 0..n {
        write(out, r)?;
        out.push_str(",")?;
    }
    if n > 0 {
        out.pop();
    }
    out.push_str("]")
}

/// Keys are compared as the text that they become.
fn map(out: &mut Texts, r: &mut Reader<'_>, n: usize) -> Result<(), RequestError> {
    let mut keys: Vec<Range<usize>> = Vec::new();
    out.push_str("{")?;
    for _ in 0..n {
        out.open_key()?;
        let from = out.len();
        key(out, r)?;
        keys.push(from..out.len());
        out.push_str(":")?;
        write(out, r)?;
        out.push_str(",")?;
    }
    if n > 0 {
        out.pop();
    }
    out.push_str("}")?;
    let text = |r: &Range<usize>| out.as_str().get(r.clone()).unwrap_or_default();
    keys.sort_unstable_by(|a, b| text(a).cmp(text(b)));
    let twice = keys.windows(2).find_map(|w| match w {
        [a, b] if text(a) == text(b) => Some(text(a)),
        _ => None,
    });
    if let Some(twice) = twice {
        return invalid(format!("key {} stands twice in a nested map", shown(twice)));
    }
    out.close_keys(n);
    Ok(())
}

/// A key is always a JSON string. Arrays and maps are refused, because text within text doubles its escapes at each level and a short body
/// would become a text of any length. A name that is not UTF-8 is refused here as everywhere.
fn key(out: &mut Texts, r: &mut Reader<'_>) -> Result<(), RequestError> {
    match r.head()? {
        Head::Nil => out.push_str("\"null\""),
        Head::Bool(b) => out.push(format_args!("\"{b}\"")),
        Head::Int(i) => out.push(format_args!("\"{i}\"")),
        Head::Unsigned(u) => out.push(format_args!("\"{u}\"")),
        Head::Float(f) => out.push(format_args!("\"{f:?}\"")),
        Head::Str(s) if !out.is_utf8(s) => {
            invalid(format!("the key '{}' of a nested map is not valid UTF-8", crate::batch::shown_bytes(s)))
        }
        Head::Str(s) => string(out, s),
        Head::Binary(b) => binary(out, b),
        other => invalid(format!("a map key of a nested value must be neither array nor map nor extension, found {}", other.name())),
    }
}

fn binary(out: &mut Texts, bytes: &[u8]) -> Result<(), RequestError> {
    out.push_str("\"")?;
    out.push_base64(bytes)?;
    out.push_str("\"")
}

fn string(out: &mut Texts, s: &[u8]) -> Result<(), RequestError> {
    out.push_str("\"")?;
    out.push_lossy(s, escaped)?;
    out.push_str("\"")
}

/// Adds `s` with the escapes that JSON asks for.
fn escaped(out: &mut Texts, s: &str) -> Result<(), RequestError> {
    let mut rest = s;
    while let Some(at) = rest.find(|c: char| matches!(c, '"' | '\\') || c.is_ascii_control()) {
        let (plain, from) = rest.split_at(at);
        out.push_str(plain)?;
        let mut chars = from.chars();
        match chars.next() {
            Some('"') => out.push_str("\\\"")?,
            Some('\\') => out.push_str("\\\\")?,
            Some('\n') => out.push_str("\\n")?,
            Some('\r') => out.push_str("\\r")?,
            Some('\t') => out.push_str("\\t")?,
            Some(c) => out.push(format_args!("\\u{:04x}", u32::from(c)))?,
            None => {}
        }
        rest = chars.as_str();
    }
    out.push_str(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_json_readers_expect() {
        let s: String = (0..0x100u32).filter_map(char::from_u32).chain("\u{fffd}\u{2028}é😀".chars()).collect();
        let mut out = Texts::new(10_000, true);
        string(&mut out, s.as_bytes()).unwrap();
        assert_eq!(serde_json::from_str::<String>(out.as_str()).unwrap(), s);
    }
}
