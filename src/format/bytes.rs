//! Little-endian and varint reading with every bound checked, and the writing counterpart.

/// Why bytes were refused: where, relative to the slice that was parsed, and what was expected there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed {
    pub at: usize,
    pub what: &'static str,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "byte {}: expected {}", self.at, self.what)
    }
}

impl std::error::Error for Malformed {}

pub type Parsed<T> = Result<T, Malformed>;

/// A cursor over untrusted bytes.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    whole: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(whole: &'a [u8]) -> Self {
        Self { whole, at: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn remaining(&self) -> usize {
        self.whole.len() - self.at
    }

    pub fn fail<T>(&self, what: &'static str) -> Parsed<T> {
        Err(Malformed { at: self.at, what })
    }

    pub fn take(&mut self, n: usize, what: &'static str) -> Parsed<&'a [u8]> {
        let Some(end) = self.at.checked_add(n) else { return self.fail(what) };
        let Some(s) = self.whole.get(self.at..end) else { return self.fail(what) };
        self.at = end;
        Ok(s)
    }

    pub fn array<const N: usize>(&mut self, what: &'static str) -> Parsed<[u8; N]> {
        let at = self.at;
        <[u8; N]>::try_from(self.take(N, what)?).map_err(|_| Malformed { at, what })
    }

    pub fn u8(&mut self, what: &'static str) -> Parsed<u8> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    pub fn u16(&mut self, what: &'static str) -> Parsed<u16> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub fn u32(&mut self, what: &'static str) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &'static str) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Unsigned LEB128, at most ten bytes, shortest form only: a value has one encoding.
    pub fn varint(&mut self, what: &'static str) -> Parsed<u64> {
        let mut v = 0u64;
        for shift in (0..70).step_by(7) {
            let b = self.u8(what)?;
            let bits = u64::from(b & 0x7f);
            if shift == 63 && bits > 1 {
                return self.fail(what);
            }
            v |= bits.checked_shl(shift).unwrap_or(0);
            if b & 0x80 == 0 {
                if b == 0 && shift > 0 {
                    return self.fail(what);
                }
                return Ok(v);
            }
        }
        self.fail(what)
    }

    pub fn signed(&mut self, what: &'static str) -> Parsed<i64> {
        let v = self.varint(what)?;
        Ok((v >> 1) as i64 ^ -((v & 1) as i64))
    }

    /// A varint that counts things of at least `each` bytes still to come: bounded by the bytes that exist.
    pub fn count(&mut self, each: usize, what: &'static str) -> Parsed<usize> {
        let v = self.varint(what)?;
        match usize::try_from(v) {
            Ok(n) if n.checked_mul(each).is_some_and(|b| b <= self.remaining()) => Ok(n),
            _ => self.fail(what),
        }
    }

    /// A varint length, then that many bytes of UTF-8.
    pub fn str(&mut self, what: &'static str) -> Parsed<&'a str> {
        let n = self.count(1, what)?;
        let at = self.at;
        let b = self.take(n, what)?;
        std::str::from_utf8(b).map_err(|_| Malformed { at, what })
    }

    /// Ends the parse: nothing may be left.
    pub fn finish(&self, what: &'static str) -> Parsed<()> {
        if self.remaining() == 0 { Ok(()) } else { self.fail(what) }
    }
}

/// Appending counterpart of [`Reader`].
pub trait Writer {
    fn put_u8(&mut self, v: u8);
    fn put_slice(&mut self, v: &[u8]);

    fn put_u16(&mut self, v: u16) {
        self.put_slice(&v.to_le_bytes());
    }
    fn put_u32(&mut self, v: u32) {
        self.put_slice(&v.to_le_bytes());
    }
    fn put_u64(&mut self, v: u64) {
        self.put_slice(&v.to_le_bytes());
    }
    fn put_varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.put_u8((v as u8 & 0x7f) | 0x80);
            v >>= 7;
        }
        self.put_u8(v as u8);
    }
    fn put_signed(&mut self, v: i64) {
        self.put_varint(((v << 1) ^ (v >> 63)) as u64);
    }
    fn put_str(&mut self, s: &str) {
        self.put_varint(s.len() as u64);
        self.put_slice(s.as_bytes());
    }
}

impl Writer for Vec<u8> {
    fn put_u8(&mut self, v: u8) {
        self.push(v);
    }
    fn put_slice(&mut self, v: &[u8]) {
        self.extend_from_slice(v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_have_one_encoding() {
        for v in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut b = Vec::new();
            b.put_varint(v);
            let mut r = Reader::new(&b);
            assert_eq!(r.varint("v"), Ok(v));
            assert_eq!(r.remaining(), 0);
        }
        assert!(Reader::new(&[0x80, 0]).varint("v").is_err(), "overlong zero");
        assert!(Reader::new(&[0xff; 11]).varint("v").is_err(), "too long");
        for v in [0, -1, 1, i64::MIN, i64::MAX] {
            let mut b = Vec::new();
            b.put_signed(v);
            assert_eq!(Reader::new(&b).signed("v"), Ok(v));
        }
    }

    #[test]
    fn counts_are_bounded_by_the_bytes_that_exist() {
        let mut b = Vec::new();
        b.put_varint(1 << 40);
        assert!(Reader::new(&b).count(1, "n").is_err());
    }
}
