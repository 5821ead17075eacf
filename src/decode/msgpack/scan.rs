//! The structure of a MessagePack body, by its markers alone.
//!
//! INVARIANT(bounded-lengths): after [`check`] every declared length is covered by bytes that exist and nesting is at most
//! [`limits::MAX_NESTING`], so the readers behind it may trust both.

use crate::error::RequestError;
use crate::limits;
use rmp::Marker;
use std::borrow::Cow;

/// One object without its content.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Head<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    /// An integer above `i64::MAX`.
    Unsigned(u64),
    Float(f64),
    /// UTF-8 or not.
    Str(&'a [u8]),
    Binary(&'a [u8]),
    Extension(i8, &'a [u8]),
    /// The given number of objects follow.
    Array(usize),
    /// The given number of pairs of objects follow.
    Map(usize),
}

impl Head<'_> {
    /// The type as errors name it.
    pub fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Nil => "nil",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Unsigned(_) => "integer",
            Self::Float(_) => "float",
            Self::Str(_) => "string",
            Self::Binary(_) => "binary",
            Self::Extension(kind, _) => return Cow::Owned(format!("extension type {kind}")),
            Self::Array(_) => "array",
            Self::Map(_) => "map",
        })
    }
}

/// Reads objects from the front of a body.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }

    /// Bytes read.
    pub fn position(&self) -> usize {
        self.at
    }

    pub fn is_empty(&self) -> bool {
        self.at >= self.body.len()
    }

    fn left(&self) -> usize {
        self.body.len() - self.at.min(self.body.len())
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], RequestError> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.body.len());
        match end.and_then(|end| self.body.get(self.at..end)) {
            Some(bytes) => {
                self.at += n;
                Ok(bytes)
            }
            None => Err(RequestError::Invalid(format!(
                "MessagePack is cut short: {n} bytes are declared at byte {}, {} are left",
                self.at,
                self.left()
            ))),
        }
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], RequestError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn length<const N: usize>(&mut self) -> Result<usize, RequestError> {
        Ok(self.take(N)?.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    }

    fn counted(&self, n: usize, each: usize, what: &str) -> Result<usize, RequestError> {
        if n.saturating_mul(each) > self.left() {
            return Err(RequestError::Invalid(format!(
                "MessagePack is cut short: {what} of {n} at byte {}, {} bytes are left",
                self.at,
                self.left()
            )));
        }
        Ok(n)
    }

    fn extension(&mut self, n: usize) -> Result<Head<'a>, RequestError> {
        let kind = self.take(1)?.iter().fold(0, |_, b| *b as i8);
        Ok(Head::Extension(kind, self.take(n)?))
    }

    /// The next object; of arrays and maps only the marker and the length.
    pub fn head(&mut self) -> Result<Head<'a>, RequestError> {
        let at = self.at;
        let marker = Marker::from_u8(self.take(1)?.iter().fold(0, |_, b| *b));
        Ok(match marker {
            Marker::Null => Head::Nil,
            Marker::True => Head::Bool(true),
            Marker::False => Head::Bool(false),
            Marker::FixPos(n) => Head::Int(i64::from(n)),
            Marker::FixNeg(n) => Head::Int(i64::from(n)),
            Marker::U8 => Head::Int(i64::from(u8::from_be_bytes(self.fixed()?))),
            Marker::U16 => Head::Int(i64::from(u16::from_be_bytes(self.fixed()?))),
            Marker::U32 => Head::Int(i64::from(u32::from_be_bytes(self.fixed()?))),
            Marker::U64 => {
                let n = u64::from_be_bytes(self.fixed()?);
                i64::try_from(n).map_or(Head::Unsigned(n), Head::Int)
            }
            Marker::I8 => Head::Int(i64::from(i8::from_be_bytes(self.fixed()?))),
            Marker::I16 => Head::Int(i64::from(i16::from_be_bytes(self.fixed()?))),
            Marker::I32 => Head::Int(i64::from(i32::from_be_bytes(self.fixed()?))),
            Marker::I64 => Head::Int(i64::from_be_bytes(self.fixed()?)),
            Marker::F32 => Head::Float(f64::from(f32::from_be_bytes(self.fixed()?))),
            Marker::F64 => Head::Float(f64::from_be_bytes(self.fixed()?)),
            Marker::FixStr(n) => Head::Str(self.take(usize::from(n))?),
            Marker::Str8 => Head::Str(self.length::<1>().and_then(|n| self.take(n))?),
            Marker::Str16 => Head::Str(self.length::<2>().and_then(|n| self.take(n))?),
            Marker::Str32 => Head::Str(self.length::<4>().and_then(|n| self.take(n))?),
            Marker::Bin8 => Head::Binary(self.length::<1>().and_then(|n| self.take(n))?),
            Marker::Bin16 => Head::Binary(self.length::<2>().and_then(|n| self.take(n))?),
            Marker::Bin32 => Head::Binary(self.length::<4>().and_then(|n| self.take(n))?),
            Marker::FixExt1 => self.extension(1)?,
            Marker::FixExt2 => self.extension(2)?,
            Marker::FixExt4 => self.extension(4)?,
            Marker::FixExt8 => self.extension(8)?,
            Marker::FixExt16 => self.extension(16)?,
            Marker::Ext8 => self.length::<1>().and_then(|n| self.extension(n))?,
            Marker::Ext16 => self.length::<2>().and_then(|n| self.extension(n))?,
            Marker::Ext32 => self.length::<4>().and_then(|n| self.extension(n))?,
            Marker::FixArray(n) => Head::Array(self.counted(usize::from(n), 1, "an array")?),
            Marker::Array16 => Head::Array(self.length::<2>().and_then(|n| self.counted(n, 1, "an array"))?),
            Marker::Array32 => Head::Array(self.length::<4>().and_then(|n| self.counted(n, 1, "an array"))?),
            Marker::FixMap(n) => Head::Map(self.counted(usize::from(n), 2, "a map")?),
            Marker::Map16 => Head::Map(self.length::<2>().and_then(|n| self.counted(n, 2, "a map"))?),
            Marker::Map32 => Head::Map(self.length::<4>().and_then(|n| self.counted(n, 2, "a map"))?),
            Marker::Reserved => {
                return Err(RequestError::Invalid(format!("not MessagePack: the marker 0xc1 at byte {at} is never used")));
            }
        })
    }

    /// Reads one whole object; returns how many strings of it are not UTF-8.
    pub fn skip(&mut self) -> Result<u64, RequestError> {
        self.walk::<true>()
    }

    fn walk<const CHECK_UTF8: bool>(&mut self) -> Result<u64, RequestError> {
        // Objects still to come at each open level; a level closes when its count reaches zero.
        let mut open = [0usize; limits::MAX_NESTING];
        let mut depth = 0usize;
        let mut invalid = 0;
        loop {
            if let Some(n) = self.plain(!CHECK_UTF8) {
                self.at += n;
                if close(&mut open, &mut depth) {
                    return Ok(invalid);
                }
                continue;
            }
            let children = match self.head()? {
                Head::Str(s) if CHECK_UTF8 => {
                    invalid += u64::from(simdutf8::basic::from_utf8(s).is_err());
                    0
                }
                Head::Array(n) => n,
                Head::Map(n) => n * 2,
                _ => 0,
            };
            if children > 0 {
                let Some(level) = open.get_mut(depth) else {
                    return Err(RequestError::Invalid(format!(
                        "MessagePack is nested deeper than {} levels at byte {}",
                        limits::MAX_NESTING,
                        self.at
                    )));
                };
                *level = children;
                depth += 1;
                continue;
            }
            if close(&mut open, &mut depth) {
                return Ok(invalid);
            }
        }
    }

    /// Bytes of the next object when it is a number, a boolean, nil or (if `strings`) a short string and is all there: what
    /// most objects are, told by one byte. Everything else, errors included, is [`Self::head`]'s.
    fn plain(&self, strings: bool) -> Option<usize> {
        let marker = *self.body.get(self.at)?;
        let n = match marker {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 1,
            0xcc | 0xd0 => 2,
            0xcd | 0xd1 => 3,
            0xca | 0xce | 0xd2 => 5,
            0xcb | 0xcf | 0xd3 => 9,
            0xa0..=0xbf if strings => 1 + usize::from(marker & 0x1f),
            _ => return None,
        };
        (n <= self.left()).then_some(n)
    }

    /// The bytes of the next object. Strings are not looked at.
    pub fn raw(&mut self) -> Result<&'a [u8], RequestError> {
        let from = self.at;
        match self.plain(true) {
            Some(n) => self.at += n,
            None => self.walk::<false>().map(|_| ())?,
        }
        Ok(self.body.get(from..self.at).unwrap_or_default())
    }

    /// The next object's head, without reading it.
    pub fn peek(mut self) -> Result<Head<'a>, RequestError> {
        self.head()
    }
}

/// Counts one finished object in the levels that are open; true when none is open any more.
fn close(open: &mut [usize], depth: &mut usize) -> bool {
    while let Some(level) = depth.checked_sub(1).and_then(|d| open.get_mut(d)) {
        *level -= 1;
        if *level > 0 {
            break;
        }
        *depth -= 1;
    }
    *depth == 0
}

/// Checks that the body is exactly one object; returns how many strings of it are not UTF-8.
pub fn check(body: &[u8]) -> Result<u64, RequestError> {
    if body.is_empty() {
        return Err(RequestError::Invalid("body is empty, expected a MessagePack map or array".into()));
    }
    let mut r = Reader::new(body);
    let invalid = r.skip()?;
    if !r.is_empty() {
        return Err(RequestError::Invalid(format!("{} bytes follow the MessagePack object of {} bytes", r.left(), r.at)));
    }
    Ok(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_object() {
        assert_eq!(check(&[0x80]), Ok(0));
        assert_eq!(check(&[0x92, 0x80, 0x93, 1, 2, 3]), Ok(0));
        for bad in [&[][..], &[0x80, 0x80], &[0x81], &[0x92, 1], &[0xc1], &[0x91, 0xc1], &[0xcf, 0], &[0xd9, 5, b'a'], &[0xc7, 1]] {
            assert_eq!(check(bad).unwrap_err().status(), 400, "{bad:x?}");
        }
    }

    #[test]
    fn declared_lengths_are_held_against_the_bytes_left() {
        for head in [0xc6, 0xc9, 0xdb, 0xdd, 0xdf] {
            let e = check(&[head, 0xff, 0xff, 0xff, 0xff, 0, 0]).unwrap_err();
            assert!(e.message().contains("cut short"), "{e}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |n: usize| [vec![0x91; n], vec![0xc0]].concat();
        assert_eq!(check(&nested(limits::MAX_NESTING)), Ok(0));
        assert!(check(&nested(limits::MAX_NESTING + 1)).unwrap_err().message().contains("nested deeper"));
        assert!(check(&nested(1_000_000)).is_err());
    }

    #[test]
    fn invalid_strings_are_counted() {
        assert_eq!(check(&[0x93, 0xa2, 0xff, b'a', 0xc4, 1, 0xff, 0x81, 0xa1, 0x80, 0xa1, b'x']), Ok(2));
    }

    #[test]
    fn heads_of_numbers_have_their_values() {
        let body = [&[0x7f, 0xe0, 0xcc, 0xff, 0xd1, 0x80, 0][..], &[0xcf, 0x80, 0, 0, 0, 0, 0, 0, 0], &[0xca, 0x3f, 0xc0, 0, 0]].concat();
        let want = [Head::Int(127), Head::Int(-32), Head::Int(255), Head::Int(-32768), Head::Unsigned(1 << 63), Head::Float(1.5)];
        let mut r = Reader::new(&body);
        let heads: Vec<_> = std::iter::from_fn(|| (!r.is_empty()).then(|| r.head().unwrap())).collect();
        assert_eq!(heads, want);
    }
}
