//! Items in row form: one row each.

use super::generic::{Clock, Parts, Request, given_tags, pairs};
use super::scan::{Head, Reader};
use super::value::{self, Value};
use crate::batch::shown;
use crate::decode::column::Cell;
use crate::decode::table::{invalid, stored_name, within};
use crate::error::RequestError;
use hashbrown::HashSet;
use std::borrow::Cow;

/// Tags up to which a field's name is compared with each.
const FEW_TAGS: usize = 16;
/// The tag that `h` is short for.
const HOST: &str = "host";

/// A field's name and its value, unread.
type Field<'a> = (Cow<'a, str>, &'a [u8]);
/// A tag's stored name and its value.
type Tag<'a> = (Cow<'a, str>, TagValue<'a>);

/// The value of a tag.
enum TagValue<'a> {
    Raw(&'a [u8]),
    /// What `h` says.
    Host(Cow<'a, str>),
}

impl Request<'_> {
    /// Adds one row.
    pub(super) fn row(&mut self, table: &str, parts: &Parts<'_>) -> Result<(), RequestError> {
        let in_table = |e| within(format_args!("table '{}'", shown(table)), e);
        let time = self.row_time(parts).map_err(in_table)?;
        let tags = self.tags(parts).map_err(in_table)?;
        let fields = self.fields(parts).map_err(in_table)?;
        let many: Option<HashSet<&str>> = (tags.len() > FEW_TAGS).then(|| tags.iter().map(|(name, _)| name.as_ref()).collect());
        let is_tag = |name: &str| match &many {
            Some(set) => set.contains(name),
            None => tags.iter().any(|(tag, _)| tag == name),
        };

        self.tables.claim(table, tags.len() + fields.len() + 1)?;
        let (builder, budget) = self.tables.table(table)?;
        for (name, tag) in &tags {
            let at = builder.column(name, true, budget)?;
            let text = match tag {
                TagValue::Host(host) => Some(host.as_ref()),
                TagValue::Raw(raw) => value::tag_text(raw, self.options.nested, &mut self.texts)
                    .map_err(|e| in_table(within(format_args!("tag '{}'", shown(name)), e)))?,
            };
            builder.push(at, 0, text.map_or(Cell::Null, |t| Cell::Str(t.as_bytes())))?;
        }
        for (name, raw) in &fields {
            let mut name = stored_name(name, self.options.hive_names);
            if is_tag(&name) {
                name = Cow::Owned(format!("{name}_value"));
            }
            let at = builder.column(&name, false, budget)?;
            let place = |why: String| RequestError::Invalid(format!("table '{}': field '{}': {why}", shown(table), shown(&name)));
            let value = value::read(&mut Reader::new(raw), self.options.nested, &mut self.texts)
                .map_err(|e| in_table(within(format_args!("field '{}'", shown(&name)), e)))?;
            builder.push(at, 0, value.cell(&self.texts).map_err(place)?)?;
        }
        builder.add_times(&[time])
    }

    fn row_time(&mut self, parts: &Parts<'_>) -> Result<i64, RequestError> {
        let (key, raw) = match (parts.t, parts.time) {
            (Some(_), Some(_)) => return invalid("'t' and 'time' stand in one row, expected one of them"),
            (Some(raw), None) => ("t", raw),
            (None, Some(raw)) => ("time", raw),
            (None, None) => return Ok(self.options.receive_time_us),
        };
        let value = self.value(raw)?;
        let mut clock = Clock { unit: self.options.time_unit.map(|u| (u, None)) };
        clock.micros(value, 0).map_err(|why| RequestError::Invalid(format!("'{key}' (the time of row 0): {why}")))
    }

    fn tags<'a>(&mut self, parts: &Parts<'a>) -> Result<Vec<Tag<'a>>, RequestError> {
        let given = given_tags(parts.tags, self.options.bounds.max_columns)?;
        let mut tags: Vec<Tag<'a>> = Vec::with_capacity(given.len() + 1);
        for (name, raw) in given {
            tags.push((stored_name(name, self.options.hive_names), TagValue::Raw(raw)));
        }
        let Some(host) = self.host(parts)? else { return Ok(tags) };
        match tags.iter_mut().find(|(name, _)| name == HOST) {
            Some((_, tag)) => {
                if let TagValue::Raw(raw) = tag
                    && let Some(text) =
                        value::tag_text(raw, self.options.nested, &mut self.texts).map_err(|e| within(format_args!("tag '{HOST}'"), e))?
                    && *text != *host
                {
                    return invalid(format!("'h' is '{}' and tags.host is '{}', expected one of them", shown(&host), shown(text)));
                }
                *tag = TagValue::Host(host);
            }
            None => tags.push((Cow::Borrowed(HOST), TagValue::Host(host))),
        }
        Ok(tags)
    }

    fn host<'a>(&mut self, parts: &Parts<'a>) -> Result<Option<Cow<'a, str>>, RequestError> {
        let Some(raw) = parts.h else { return Ok(None) };
        Ok(match self.value(raw)? {
            Value::Nil => None,
            Value::Str(s) => {
                Some(Cow::Borrowed(std::str::from_utf8(s).map_err(|e| RequestError::Internal(format!("a string passed as UTF-8: {e}")))?))
            }
            Value::Replaced => Some(Cow::Owned(self.texts.as_str().to_owned())),
            Value::Int(n) => Some(Cow::Owned(format!("host_{n}"))),
            Value::Unsigned(n) => Some(Cow::Owned(format!("host_{n}"))),
            other => return invalid(format!("'h' (the host) must be a string or an integer, found {}", other.name())),
        })
    }

    fn fields<'a>(&self, parts: &Parts<'a>) -> Result<Vec<Field<'a>>, RequestError> {
        let max = self.options.bounds.max_columns;
        let fields: Vec<_> = match (parts.fields, parts.f) {
            (Some(_), Some(_)) => return invalid("'fields' and 'f' stand in one row, expected one of them"),
            (Some(raw), None) => pairs(raw, "fields", max)?.into_iter().map(|(name, raw)| (Cow::Borrowed(name), raw)).collect(),
            (None, Some(raw)) => elements(raw, max)?,
            (None, None) => return invalid("neither 'columns' nor 'fields' nor 'f' is given: there is nothing to store"),
        };
        if fields.is_empty() {
            return invalid("a row needs at least one field, found none");
        }
        Ok(fields)
    }
}

/// The elements of `f`, named by position.
fn elements(raw: &[u8], max: usize) -> Result<Vec<Field<'_>>, RequestError> {
    let mut r = Reader::new(raw);
    let n = match r.head()? {
        Head::Array(n) => n,
        other => return invalid(format!("'f' must be an array, found {}", other.name())),
    };
    if n > max {
        return invalid(format!("'f' has {n} elements, at most {max} are allowed (ingest.max_columns)"));
    }
    (0..n).map(|i| Ok((Cow::Owned(format!("field_{i}")), r.raw()?))).collect()
}
