//! Nested values as JSON text, written while they are read.

use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::fmt::{self, Write as _};
use std::ops::Range;

/// Writes the next value to the end of `out`.
pub struct JsonSeed<'a> {
    pub out: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for JsonSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(JsonVisitor { out: self.out })
    }
}

struct JsonVisitor<'a> {
    out: &'a mut String,
}

/// Writes an array that has been opened.
pub fn write_seq<'de, A: SeqAccess<'de>>(out: &mut String, mut seq: A) -> Result<(), A::Error> {
    out.push('[');
    let mut first = true;
    loop {
        let end = out.len();
        if !first {
            out.push(',');
        }
        if seq.next_element_seed(JsonSeed { out })?.is_none() {
            out.truncate(end);
            break;
        }
        first = false;
    }
    out.push(']');
    Ok(())
}

/// Writes a map that has been opened. Keys are compared as the text they become.
pub fn write_map<'de, A: MapAccess<'de>>(out: &mut String, mut map: A) -> Result<(), A::Error> {
    let mut keys: Vec<Range<usize>> = Vec::new();
    out.push('{');
    loop {
        let end = out.len();
        if !keys.is_empty() {
            out.push(',');
        }
        let from = out.len();
        if map.next_key_seed(KeySeed { out })?.is_none() {
            out.truncate(end);
            break;
        }
        keys.push(from..out.len());
        out.push(':');
        map.next_value_seed(JsonSeed { out })?;
    }
    out.push('}');
    let text = |r: &Range<usize>| out.get(r.clone()).unwrap_or_default();
    keys.sort_unstable_by(|a, b| text(a).cmp(text(b)));
    if let Some(twice) = keys.windows(2).find_map(|w| match w {
        [a, b] if text(a) == text(b) => Some(text(a)),
        _ => None,
    }) {
        return Err(A::Error::custom(format!("key {} stands twice in a nested map", twice.chars().take(80).collect::<String>())));
    }
    Ok(())
}

impl<'de> Visitor<'de> for JsonVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can hold")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.out.push_str("null");
        Ok(())
    }

    fn visit_bool<E>(self, v: bool) -> Result<(), E> {
        self.out.push_str(if v { "true" } else { "false" });
        Ok(())
    }

    fn visit_i64<E>(self, v: i64) -> Result<(), E> {
        let _ = write!(self.out, "{v}");
        Ok(())
    }

    fn visit_u64<E>(self, v: u64) -> Result<(), E> {
        let _ = write!(self.out, "{v}");
        Ok(())
    }

    fn visit_f64<E>(self, v: f64) -> Result<(), E> {
        if v.is_finite() {
            let _ = write!(self.out, "{v:?}");
        } else {
            self.out.push_str("null");
        }
        Ok(())
    }

    fn visit_str<E>(self, v: &str) -> Result<(), E> {
        push_string(self.out, v);
        Ok(())
    }

    fn visit_bytes<E>(self, v: &[u8]) -> Result<(), E> {
        self.out.push('"');
        push_base64(self.out, v);
        self.out.push('"');
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        write_seq(self.out, seq)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        write_map(self.out, map)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        let (kind, _) = <(i8, &[u8])>::deserialize(d)?;
        Err(D::Error::custom(format!("extension type {kind} cannot stand in a nested value")))
    }
}

/// Writes a map key: always a JSON string. Arrays and maps are refused, because text within text doubles its escapes at
/// each level and a short body would become a text of any length.
struct KeySeed<'a> {
    out: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(KeyVisitor { out: self.out })
    }
}

struct KeyVisitor<'a> {
    out: &'a mut String,
}

impl KeyVisitor<'_> {
    fn quoted(self, key: impl fmt::Display) {
        let _ = write!(self.out, "\"{key}\"");
    }
}

impl<'de> Visitor<'de> for KeyVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map key that is neither array nor map nor extension")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.quoted("null");
        Ok(())
    }

    fn visit_bool<E>(self, v: bool) -> Result<(), E> {
        self.quoted(v);
        Ok(())
    }

    fn visit_i64<E>(self, v: i64) -> Result<(), E> {
        self.quoted(v);
        Ok(())
    }

    fn visit_u64<E>(self, v: u64) -> Result<(), E> {
        self.quoted(v);
        Ok(())
    }

    fn visit_f64<E>(self, v: f64) -> Result<(), E> {
        self.quoted(format_args!("{v:?}"));
        Ok(())
    }

    fn visit_str<E>(self, v: &str) -> Result<(), E> {
        push_string(self.out, v);
        Ok(())
    }

    fn visit_bytes<E>(self, v: &[u8]) -> Result<(), E> {
        self.out.push('"');
        push_base64(self.out, v);
        self.out.push('"');
        Ok(())
    }
}

fn push_string(out: &mut String, s: &str) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() && c.is_ascii() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Standard base64 with padding (RFC 4648).
pub fn push_base64(out: &mut String, bytes: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.reserve(bytes.len().div_ceil(3).saturating_mul(4));
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |w, (i, b)| w | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            let digit = ALPHABET.get((word >> (18 - 6 * i)) as usize & 63).copied().unwrap_or(b'=');
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_rfc() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")] {
            let mut out = String::new();
            push_base64(&mut out, plain.as_bytes());
            assert_eq!(out, coded);
        }
    }

    #[test]
    fn strings_are_escaped_as_json_readers_expect() {
        let s: String = (0..0x100u32).filter_map(char::from_u32).chain("\u{fffd}\u{2028}é😀".chars()).collect();
        let mut out = String::new();
        push_string(&mut out, &s);
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), s);
    }
}
