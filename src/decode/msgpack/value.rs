//! Single MessagePack values.

use super::json;
use super::scan::{Head, Reader};
use super::texts::Texts;
use crate::decode::Nested;
use crate::decode::column::Cell;
use crate::error::RequestError;
use std::borrow::Cow;

/// A value where a cell, a name or a time is expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    /// An integer above `i64::MAX`.
    Unsigned(u64),
    Float(f64),
    /// Valid UTF-8.
    Str(&'a [u8]),
    /// A string that was not UTF-8; what it became is in the scratch text.
    Replaced,
    Binary(&'a [u8]),
    Extension(i8, &'a [u8]),
    /// An array or a map, whose JSON text is in the scratch text.
    Json,
    /// An array, refused by configuration.
    Array,
    /// A map, refused by configuration.
    Map,
}

impl Value<'_> {
    /// The type as errors name it.
    pub fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Nil => "nil",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Unsigned(_) => "integer",
            Self::Float(_) => "float",
            Self::Str(_) | Self::Replaced => "string",
            Self::Binary(_) => "binary",
            Self::Extension(kind, _) => return Cow::Owned(format!("extension type {kind}")),
            Self::Json => "array or map",
            Self::Array => "array",
            Self::Map => "map",
        })
    }

    /// The value as a cell, or why it cannot be one. `texts` is the scratch text that it was read with.
    pub fn cell<'a>(&self, texts: &'a Texts) -> Result<Cell<'a>, String>
    where
        Self: 'a,
    {
        Ok(match *self {
            Self::Nil => Cell::Null,
            Self::Bool(b) => Cell::Bool(b),
            Self::Int(i) => Cell::Int(i),
            Self::Unsigned(u) => Cell::Unsigned(u),
            Self::Float(f) => Cell::Float(f),
            Self::Str(s) => Cell::Str(s),
            Self::Binary(b) => Cell::Binary(b),
            Self::Replaced | Self::Json => Cell::Str(texts.as_str().as_bytes()),
            Self::Extension(-1, _) => return Err("a timestamp extension (type -1) is accepted as time only".into()),
            Self::Extension(kind, _) => {
                return Err(format!("extension type {kind} is not supported (a time stamp is extension type -1, in the column time)"));
            }
            Self::Array | Self::Map => return Err(format!("a nested {} is refused (ingest.nested)", self.name())),
        })
    }
}

/// Reads one value; arrays and maps become JSON text in `texts`, or are skipped.
///
/// # Errors
/// [`RequestError::Invalid`] for a nested value that JSON cannot hold, [`RequestError::TooLarge`] for too much text.
pub fn read<'a>(r: &mut Reader<'a>, nested: Nested, texts: &mut Texts) -> Result<Value<'a>, RequestError> {
    let mut ahead = *r;
    let head = ahead.head()?;
    Ok(match head {
        Head::Array(_) | Head::Map(_) if nested == Nested::Json => {
            texts.clear();
            json::write(texts, r)?;
            return Ok(Value::Json);
        }
        Head::Array(_) | Head::Map(_) => {
            r.raw()?;
            return Ok(if matches!(head, Head::Array(_)) { Value::Array } else { Value::Map });
        }
        other => {
            *r = ahead;
            match other {
                Head::Bool(b) => Value::Bool(b),
                Head::Int(i) => Value::Int(i),
                Head::Unsigned(u) => Value::Unsigned(u),
                Head::Float(f) => Value::Float(f),
                Head::Str(s) if texts.is_utf8(s) => Value::Str(s),
                Head::Str(s) => {
                    texts.clear();
                    texts.push_lossy(s, Texts::push_str)?;
                    Value::Replaced
                }
                Head::Binary(b) => Value::Binary(b),
                Head::Extension(kind, data) => Value::Extension(kind, data),
                Head::Nil | Head::Array(_) | Head::Map(_) => Value::Nil,
            }
        }
    })
}

/// The one value of `raw` as the text of a tag; None is nil.
///
/// # Errors
/// As [`read`]; [`RequestError::Invalid`] for what no tag can be.
pub fn tag_text<'t>(raw: &'t [u8], nested: Nested, texts: &'t mut Texts) -> Result<Option<&'t str>, RequestError> {
    let value = read(&mut Reader::new(raw), nested, texts)?;
    match value {
        Value::Nil => return Ok(None),
        Value::Str(s) => {
            return std::str::from_utf8(s).map(Some).map_err(|e| RequestError::Internal(format!("a string passed as UTF-8: {e}")));
        }
        Value::Replaced | Value::Json => return Ok(Some(texts.as_str())),
        _ => texts.clear(),
    }
    match value {
        Value::Bool(b) => texts.push(b)?,
        Value::Int(i) => texts.push(i)?,
        Value::Unsigned(u) => texts.push(u)?,
        Value::Float(f) => texts.push(format_args!("{f:?}"))?,
        Value::Binary(b) => texts.push_base64(b)?,
        refused => return refused.cell(texts).map_or_else(|why| Err(RequestError::Invalid(why)), |_| Ok(None)),
    }
    Ok(Some(texts.as_str()))
}
