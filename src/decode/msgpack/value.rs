//! Single MessagePack values, read with serde.

use super::json;
use crate::decode::Nested;
use crate::decode::column::Cell;
use crate::error::RequestError;
use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A value where a cell, a name or a time is expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'de> {
    Nil,
    Bool(bool),
    Int(i64),
    /// An integer above `i64::MAX`.
    Big(u64),
    Float(f64),
    /// Valid UTF-8: bodies with anything else are rewritten before.
    Str(&'de str),
    Binary(&'de [u8]),
    Extension(i8, &'de [u8]),
    /// An array or a map, whose JSON text is in the scratch string.
    Json,
    /// An array, refused by configuration.
    Array,
    /// A map, refused by configuration.
    Map,
}

impl Value<'_> {
    /// The type as errors name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Big(_) => "integer",
            Self::Float(_) => "float",
            Self::Str(_) => "string",
            Self::Binary(_) => "binary",
            Self::Extension(..) => "extension",
            Self::Json => "array or map",
            Self::Array => "array",
            Self::Map => "map",
        }
    }

    /// The value as a cell, or why it cannot be one. `json` is the scratch string it was read with.
    pub fn cell<'a>(&self, json: &'a str) -> Result<Cell<'a>, String>
    where
        Self: 'a,
    {
        Ok(match *self {
            Self::Nil => Cell::Null,
            Self::Bool(b) => Cell::Bool(b),
            Self::Int(i) => Cell::Int(i),
            Self::Float(f) => Cell::Float(f),
            Self::Str(s) => Cell::Str(s.as_bytes()),
            Self::Binary(b) => Cell::Binary(b),
            Self::Json => Cell::Str(json.as_bytes()),
            Self::Big(u) => return Err(format!("the integer {u} is above {}, the largest int64", i64::MAX)),
            Self::Extension(-1, _) => return Err("a timestamp extension is accepted as time only".into()),
            Self::Extension(kind, _) => return Err(format!("extension type {kind} is not supported")),
            Self::Array | Self::Map => return Err(format!("a nested {} is refused (ingest.nested)", self.name())),
        })
    }
}

/// Reads one value; arrays and maps become JSON text in `json`, or are skipped.
pub struct ValueSeed<'a> {
    pub nested: Nested,
    pub json: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value<'de>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a MessagePack value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Nil)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value<'de>, E> {
        Ok(Value::Int(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value<'de>, E> {
        Ok(i64::try_from(v).map_or(Value::Big(v), Value::Int))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value<'de>, E> {
        Ok(Value::Float(v))
    }

    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Str(v))
    }

    fn visit_borrowed_bytes<E>(self, v: &'de [u8]) -> Result<Value<'de>, E> {
        Ok(Value::Binary(v))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Value<'de>, D::Error> {
        let (kind, data) = <(i8, &'de [u8])>::deserialize(d)?;
        Ok(Value::Extension(kind, data))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<'de>, A::Error> {
        match self.nested {
            Nested::Json => {
                self.json.clear();
                json::write_seq(self.json, seq)?;
                Ok(Value::Json)
            }
            Nested::Reject => {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Value::Array)
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        match self.nested {
            Nested::Json => {
                self.json.clear();
                json::write_map(self.json, map)?;
                Ok(Value::Json)
            }
            Nested::Reject => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Map)
            }
        }
    }
}

/// Reads the one value of `raw`.
pub fn read<'de>(raw: &'de [u8], nested: Nested, json: &mut String) -> Result<Value<'de>, RequestError> {
    let mut d = rmp_serde::Deserializer::from_read_ref(raw);
    ValueSeed { nested, json }.deserialize(&mut d).map_err(|e| RequestError::Invalid(e.to_string()))
}

/// Calls `each` with the row, the value and the JSON text of every element of the array in `raw`.
///
/// # Errors
/// The first error of `each`; one that names `place` and the row for an element that cannot be read.
pub fn for_each<'de>(
    raw: &'de [u8],
    nested: Nested,
    json: &mut String,
    place: impl fmt::Display,
    each: impl FnMut(usize, Value<'de>, &str) -> Result<(), RequestError>,
) -> Result<(), RequestError> {
    let mut failed = None;
    let mut row = 0;
    let mut d = rmp_serde::Deserializer::from_read_ref(raw);
    let cells = Cells { nested, json, each, failed: &mut failed, row: &mut row };
    let result = (&mut d).deserialize_any(cells);
    match (failed, result) {
        (Some(e), _) => Err(e),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) => Err(RequestError::Invalid(format!("{place}: row {row}: {e}"))),
    }
}

struct Cells<'a, F> {
    nested: Nested,
    json: &'a mut String,
    each: F,
    /// Serde errors carry text only: the error of `each` takes this way out.
    failed: &'a mut Option<RequestError>,
    row: &'a mut usize,
}

impl<'de, F: FnMut(usize, Value<'de>, &str) -> Result<(), RequestError>> Visitor<'de> for Cells<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while let Some(value) = seq.next_element_seed(ValueSeed { nested: self.nested, json: self.json })? {
            if let Err(e) = (self.each)(*self.row, value, self.json) {
                *self.failed = Some(e);
                return Err(A::Error::custom("refused"));
            }
            *self.row += 1;
        }
        Ok(())
    }
}
