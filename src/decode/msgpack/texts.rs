//! Text that is made from values: JSON of nested values, tags that are no text, U+FFFD in place of what is not UTF-8.
//!
//! INVARIANT(bounded-text): each byte of such text is counted before it is written. A body that inflates to small numbers or control
//! characters becomes several times as much text.

use crate::error::RequestError;
use std::fmt::{self, Write as _};

/// Bytes that a key of an open map takes while its map is checked for duplicates.
const KEY: usize = 32;

/// The text made last, and what all texts of the request have taken.
#[derive(Debug)]
pub struct Texts {
    out: String,
    used: usize,
    limit: usize,
    open_keys: usize,
    /// Strings may be other than UTF-8.
    lossy: bool,
    /// Strings in which U+FFFD stands now.
    pub replaced: u64,
}

impl Texts {
    /// At most `limit` bytes for one request. `lossy`: strings of the body are looked at for invalid UTF-8.
    pub fn new(limit: usize, lossy: bool) -> Self {
        Self { out: String::new(), used: 0, limit, open_keys: 0, lossy, replaced: 0 }
    }

    /// Begins a text.
    pub fn clear(&mut self) {
        self.out.clear();
    }

    /// The text made last.
    pub fn as_str(&self) -> &str {
        &self.out
    }

    /// Bytes of the present text.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// The string if it is UTF-8. Costs nothing for a body that is known to be.
    pub fn is_utf8(&self, s: &[u8]) -> bool {
        !self.lossy || simdutf8::basic::from_utf8(s).is_ok()
    }

    fn over(&self) -> RequestError {
        RequestError::TooLarge(format!(
            "nested values, tags that are no text and invalid UTF-8 become more than {} bytes of text (ingest.max_record_size); split the \
             request",
            self.limit
        ))
    }

    fn claim(&mut self, n: usize) -> Result<(), RequestError> {
        let used = self.used.saturating_add(n);
        if used.saturating_add(self.open_keys.saturating_mul(KEY)) > self.limit {
            return Err(self.over());
        }
        self.used = used;
        let need = self.out.len() + n;
        if need > self.out.capacity() {
            let most = self.out.len() + n + (self.limit - used);
            let want = need.max(self.out.capacity() * 2).max(64).min(most);
            self.out.reserve_exact(want - self.out.len());
        }
        Ok(())
    }

    /// # Errors
    /// [`RequestError::TooLarge`] when the request makes too much text; so do all below.
    pub fn push_str(&mut self, s: &str) -> Result<(), RequestError> {
        self.claim(s.len())?;
        self.out.push_str(s);
        Ok(())
    }

    /// Adds what a value displays as.
    pub fn push(&mut self, value: impl fmt::Display) -> Result<(), RequestError> {
        write!(self, "{value}").map_err(|_| self.over())
    }

    /// Adds a string, U+FFFD in place of what is not UTF-8, in pieces that `piece` may change.
    pub fn push_lossy(&mut self, s: &[u8], mut piece: impl FnMut(&mut Self, &str) -> Result<(), RequestError>) -> Result<(), RequestError> {
        if let Ok(s) = simdutf8::basic::from_utf8(s) {
            return piece(self, s);
        }
        self.replaced += 1;
        for chunk in s.utf8_chunks() {
            piece(self, chunk.valid())?;
            if !chunk.invalid().is_empty() {
                self.push_str("\u{fffd}")?;
            }
        }
        Ok(())
    }

    /// Adds standard base64 with padding (RFC 4648).
    pub fn push_base64(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        self.claim(bytes.len().div_ceil(3).saturating_mul(4))?;
        for chunk in bytes.chunks(3) {
            let word = chunk.iter().enumerate().fold(0u32, |w, (i, b)| w | u32::from(*b) << (16 - 8 * i));
            for i in 0..4 {
                let digit = ALPHABET.get((word >> (18 - 6 * i)) as usize & 63).copied().unwrap_or(b'=');
                self.out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
            }
        }
        Ok(())
    }

    /// Takes back the last byte of the present text, a separator.
    pub fn pop(&mut self) {
        self.out.pop();
    }

    /// Counts a key that is held until its map ends.
    pub fn open_key(&mut self) -> Result<(), RequestError> {
        self.open_keys += 1;
        self.claim(0)
    }

    /// Keys of a map that has ended.
    pub fn close_keys(&mut self, n: usize) {
        self.open_keys = self.open_keys.saturating_sub(n);
    }
}

impl fmt::Write for Texts {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.push_str(s).map_err(|_| fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_rfc() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")] {
            let mut t = Texts::new(100, false);
            t.push_base64(plain.as_bytes()).unwrap();
            assert_eq!(t.as_str(), coded);
        }
    }

    #[test]
    fn text_is_counted_before_it_is_written() {
        let mut t = Texts::new(10, true);
        t.push_str("12345").unwrap();
        t.clear();
        t.push(1234).unwrap();
        assert!(t.push_lossy(b"\xff", |t, s| t.push_str(s)).is_err(), "U+FFFD has three bytes");
        assert!(t.push("ab").is_err() && t.push_base64(b"x").is_err() && t.push_str("ab").is_err());
        t.push_str("5").unwrap();
        assert_eq!((t.as_str(), t.out.capacity() <= 10), ("12345", true));
        assert!(t.open_key().is_err(), "a key that is held counts");
        assert_eq!(t.over().status(), 413);
    }

    #[test]
    fn a_long_text_takes_no_more_memory_than_its_limit() {
        let mut t = Texts::new(1 << 20, false);
        while t.push_str("some text").is_ok() {
            assert!(t.out.capacity() <= 1 << 20);
        }
        assert!(t.len() > (1 << 20) - 10);
    }
}
