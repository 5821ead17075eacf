//! How each kind of value is read from text, written back, and described in an error.

use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

/// 1024 bytes: sizes in the configuration are all 1024-based.
pub const KB: u64 = 1 << 10;
/// 1024 KB.
pub const MB: u64 = 1 << 20;
/// 1024 MB.
pub const GB: u64 = 1 << 30;

/// What a key holds, as far as the TOML type and the form in the reference depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Text,
    Integer,
    Bool,
    /// Bytes: an integer, or a string with a unit.
    Size,
    /// A time span: an integer in seconds, or a string with a unit.
    Duration,
    /// One of a few words.
    Choice,
}

impl Kind {
    /// Whether the value stands in quotes in a TOML file.
    pub fn quoted(self) -> bool {
        !matches!(self, Self::Integer | Self::Bool)
    }
}

/// Reads and writes the value of one kind of key.
pub trait Codec {
    type Value;
    const KIND: Kind;
    /// Values are printed nowhere, not even in errors.
    const SECRET: bool = false;
    /// Where something is on this machine.
    const PATH: bool = false;
    /// For errors: "expected ...".
    fn expected() -> String;
    fn parse(text: &str) -> Option<Self::Value>;
    fn show(value: &Self::Value) -> String;
    fn json(value: &Self::Value) -> serde_json::Value {
        Self::show(value).into()
    }
}

/// Non-empty text.
#[derive(Debug)]
pub struct Text;

impl Codec for Text {
    type Value = String;
    const KIND: Kind = Kind::Text;
    fn expected() -> String {
        "a non-empty string".into()
    }
    fn parse(text: &str) -> Option<String> {
        let clean = !text.trim().is_empty() && !text.chars().any(char::is_control);
        clean.then(|| text.to_owned())
    }
    fn show(value: &String) -> String {
        value.clone()
    }
}

/// A path; a relative one counts from the working directory of the process.
#[derive(Debug)]
pub struct Directory;

impl Codec for Directory {
    type Value = PathBuf;
    const KIND: Kind = Kind::Text;
    const PATH: bool = true;
    fn expected() -> String {
        "a directory path".into()
    }
    fn parse(text: &str) -> Option<PathBuf> {
        Text::parse(text).map(PathBuf::from)
    }
    fn show(value: &PathBuf) -> String {
        value.to_string_lossy().into_owned()
    }
}

/// Origins as browsers send them: scheme, host and port, separated by commas or spaces; `*` for any.
#[derive(Debug)]
pub struct OriginList;

impl Codec for OriginList {
    type Value = String;
    const KIND: Kind = Kind::Text;
    fn expected() -> String {
        "origins such as https://a.example or http://b.example:3000 (no path), separated by commas, or *, empty for none".into()
    }
    fn parse(text: &str) -> Option<String> {
        let is_origin = |entry: &str| {
            let host = entry.strip_prefix("https://").or_else(|| entry.strip_prefix("http://"));
            entry == "*" || host.is_some_and(|h| !h.is_empty() && h.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@*'\"".contains(&b)))
        };
        let text = text.trim();
        text.split([',', ' ']).filter(|e| !e.is_empty()).all(is_origin).then(|| text.to_owned())
    }
    fn show(value: &String) -> String {
        value.clone()
    }
}

/// The path of a file; a relative one counts from the working directory of the process.
#[derive(Debug)]
pub struct FilePath;

impl Codec for FilePath {
    type Value = PathBuf;
    const KIND: Kind = Kind::Text;
    const PATH: bool = true;
    fn expected() -> String {
        "the path of a file".into()
    }
    fn parse(text: &str) -> Option<PathBuf> {
        Text::parse(text).map(PathBuf::from)
    }
    fn show(value: &PathBuf) -> String {
        value.to_string_lossy().into_owned()
    }
}

/// Text that may be empty: not set.
#[derive(Debug)]
pub struct Maybe;

impl Codec for Maybe {
    type Value = String;
    const KIND: Kind = Kind::Text;
    fn expected() -> String {
        "a string without control characters, empty for none".into()
    }
    fn parse(text: &str) -> Option<String> {
        (!text.chars().any(char::is_control)).then(|| text.trim().to_owned())
    }
    fn show(value: &String) -> String {
        value.clone()
    }
}

/// A path that may be empty: not set.
#[derive(Debug)]
pub struct MaybeFile;

impl Codec for MaybeFile {
    type Value = PathBuf;
    const KIND: Kind = Kind::Text;
    const PATH: bool = true;
    fn expected() -> String {
        "a path, empty for none".into()
    }
    fn parse(text: &str) -> Option<PathBuf> {
        Maybe::parse(text).map(PathBuf::from)
    }
    fn show(value: &PathBuf) -> String {
        value.to_string_lossy().into_owned()
    }
}

/// Text that nothing prints; may be empty: not set.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

/// What stands for a secret wherever a configuration is shown.
const MASK: &str = "******";

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { MASK })
    }
}

impl Codec for Secret {
    type Value = Self;
    const KIND: Kind = Kind::Text;
    const SECRET: bool = true;
    fn expected() -> String {
        format!("a string without control characters, empty for none, and not the {MASK} that is shown in its place")
    }
    fn parse(text: &str) -> Option<Self> {
        Maybe::parse(text).filter(|t| t != MASK).map(Self)
    }
    fn show(value: &Self) -> String {
        if value.is_empty() { String::new() } else { MASK.into() }
    }
}

#[derive(Debug)]
pub struct Flag;

impl Codec for Flag {
    type Value = bool;
    const KIND: Kind = Kind::Bool;
    fn expected() -> String {
        "true or false".into()
    }
    fn parse(text: &str) -> Option<bool> {
        text.parse().ok()
    }
    fn show(value: &bool) -> String {
        value.to_string()
    }
    fn json(value: &bool) -> serde_json::Value {
        (*value).into()
    }
}

/// An integer from `LO` to `HI`.
#[derive(Debug)]
pub struct Int<T, const LO: u64, const HI: u64>(PhantomData<T>);

impl<T, const LO: u64, const HI: u64> Codec for Int<T, LO, HI>
where
    T: TryFrom<u64> + Copy + std::fmt::Display,
{
    type Value = T;
    const KIND: Kind = Kind::Integer;
    fn expected() -> String {
        format!("an integer from {LO} to {HI}")
    }
    fn parse(text: &str) -> Option<T> {
        let n = digits(&text.replace('_', ""))?;
        (LO..=HI).contains(&n).then(|| T::try_from(n).ok()).flatten()
    }
    fn show(value: &T) -> String {
        value.to_string()
    }
    fn json(value: &T) -> serde_json::Value {
        serde_json::from_str(&value.to_string()).unwrap_or(serde_json::Value::Null)
    }
}

/// Bytes from `LO` to `HI`.
#[derive(Debug)]
pub struct Size<const LO: u64, const HI: u64>;

impl<const LO: u64, const HI: u64> Codec for Size<LO, HI> {
    type Value = u64;
    const KIND: Kind = Kind::Size;
    fn expected() -> String {
        format!(
            "a size from {} to {}, as integer bytes or with one of B KB MB GB KiB MiB GiB (1024-based), such as \"64MB\"",
            show_size(LO),
            show_size(HI)
        )
    }
    fn parse(text: &str) -> Option<u64> {
        parse_size(text).filter(|n| (LO..=HI).contains(n))
    }
    fn show(value: &u64) -> String {
        show_size(*value)
    }
    fn json(value: &u64) -> serde_json::Value {
        (*value).into()
    }
}

/// A time span that is not zero: a timeout of zero would fail every request.
#[derive(Debug)]
pub struct Span;

/// Longer spans are surely a mistake of unit, and this keeps sums of spans far from overflow.
const MAX_SPAN: Duration = Duration::from_secs(366 * 24 * 3600);

impl Codec for Span {
    type Value = Duration;
    const KIND: Kind = Kind::Duration;
    fn expected() -> String {
        format!("a duration from 1ms to {}, as integer seconds or with one of ms s m h, such as \"30s\"", show_duration(MAX_SPAN))
    }
    fn parse(text: &str) -> Option<Duration> {
        parse_duration(text).filter(|d| !d.is_zero() && *d <= MAX_SPAN)
    }
    fn show(value: &Duration) -> String {
        show_duration(*value)
    }
}

/// A key that takes one of a few words.
pub trait Word: Copy + PartialEq + 'static {
    const ALL: &'static [Self];
    fn word(self) -> &'static str;
}

#[derive(Debug)]
pub struct OneOf<T>(PhantomData<T>);

impl<T: Word> Codec for OneOf<T> {
    type Value = T;
    const KIND: Kind = Kind::Choice;
    fn expected() -> String {
        let words: Vec<String> = T::ALL.iter().map(|w| format!("\"{}\"", w.word())).collect();
        match words.as_slice() {
            [one] => one.clone(),
            _ => format!("one of {}", words.join(", ")),
        }
    }
    fn parse(text: &str) -> Option<T> {
        T::ALL.iter().copied().find(|w| w.word() == text)
    }
    fn show(value: &T) -> String {
        value.word().to_owned()
    }
}

/// A plain decimal number; a sign or an empty string is none.
fn digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.bytes().position(|b| !b.is_ascii_digit() && b != b'_').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    Some((digits(&number.replace('_', ""))?, unit.trim()))
}

/// Integer bytes, or an integer with `B`, `KB`, `MB`, `GB`, `KiB`, `MiB`, `GiB` in any case, all 1024-based.
pub fn parse_size(text: &str) -> Option<u64> {
    let (n, unit) = split_unit(text)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" | "kib" => KB,
        "mb" | "mib" => MB,
        "gb" | "gib" => GB,
        _ => return None,
    };
    n.checked_mul(factor)
}

/// The exact size with the largest unit that divides it.
pub fn show_size(bytes: u64) -> String {
    for (unit, name) in [(GB, "GB"), (MB, "MB"), (KB, "KB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    format!("{bytes}B")
}

/// Integer seconds, or an integer with `ms`, `s`, `m` or `h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (n, unit) = split_unit(text)?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(n)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    n.checked_mul(seconds).map(Duration::from_secs)
}

/// The span with a unit that keeps it exact to the millisecond.
pub fn show_duration(d: Duration) -> String {
    let ms = d.as_millis();
    if !ms.is_multiple_of(1000) {
        return format!("{ms}ms");
    }
    let s = d.as_secs();
    // Up to two minutes people think in seconds: 90s and 120s, not 2m.
    if s == 0 || s <= 120 || !s.is_multiple_of(60) {
        format!("{s}s")
    } else if s.is_multiple_of(3600) {
        format!("{}h", s / 3600)
    } else {
        format!("{}m", s / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, n) in [
            ("0", 0),
            ("123", 123),
            ("1_000", 1000),
            ("5B", 5),
            ("4KB", 4096),
            ("4kib", 4096),
            ("64MB", 64 * MB),
            ("64 MiB", 64 * MB),
            (" 2GiB ", 2 * GB),
            ("16gb", 16 * GB),
        ] {
            assert_eq!(parse_size(text), Some(n), "{text}");
        }
        for bad in ["", "MB", "-1", "+1", "1.5GB", "1TB", "1 M B", "64M", "18446744073709551616", "99999999999999GB", "0x10", "é"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
        for n in [0, 1, 1023, 1024, 4096, 64 * MB, 16 * GB, GB + 1, u64::MAX] {
            assert_eq!(parse_size(&show_size(n)), Some(n));
        }
        assert_eq!(Size::<4096, 8192>::parse("4095"), None);
        assert_eq!(Size::<4096, 8192>::parse("8KB"), Some(8192));
    }

    #[test]
    fn durations() {
        for (text, ms) in [("5", 5000), ("5s", 5000), ("50ms", 50), ("2m", 120_000), ("1h", 3_600_000), ("10 s", 10_000)] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "-1s", "1.5s", "1d", "1h30m", "1S", "99999999999999999999s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        for (ms, text) in [(50, "50ms"), (1500, "1500ms"), (90_000, "90s"), (120_000, "120s"), (600_000, "10m"), (3_600_000, "1h")] {
            assert_eq!(show_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(Span::parse("0"), None, "a zero timeout is refused");
        assert_eq!(Span::parse("99999h"), None);
    }

    #[test]
    fn origins_are_scheme_host_and_port() {
        for good in ["", "*", " https://a.example ", "http://localhost:3000, https://A.example", "http://[::1]:8080 https://b"] {
            assert!(OriginList::parse(good).is_some(), "{good}");
        }
        for bad in ["a.example", "https://", "https://a.example/", "https://a.example/page", "https://*.example", "ftp://a", "null"] {
            assert!(OriginList::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn integers_and_text() {
        assert_eq!(Int::<u16, 0, 65535>::parse("8000"), Some(8000));
        assert_eq!(Int::<u16, 0, 65535>::parse("65536"), None);
        assert_eq!(Int::<u16, 0, 65535>::parse("-1"), None);
        assert_eq!(Int::<i32, 1, 22>::parse("0"), None);
        assert_eq!(Flag::parse("true"), Some(true));
        assert_eq!(Flag::parse("yes"), None);
        assert_eq!(Text::parse("  "), None);
        assert_eq!(Text::parse("a\nb"), None);
    }
}
