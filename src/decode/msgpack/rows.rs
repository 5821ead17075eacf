//! Items in row form: one row each.

use super::generic::{Clock, Parts, Request, pairs};
use super::json::push_base64;
use super::scan::{Head, Reader};
use super::value::Value;
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
/// A tag's stored name and text; None is nil.
type Tag<'a> = (Cow<'a, str>, Option<Cow<'a, str>>);

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
        for (name, text) in &tags {
            let at = builder.column(name, true, budget)?;
            builder.push(at, 0, text.as_ref().map_or(Cell::Null, |t| Cell::Str(t.as_bytes())))?;
        }
        for (name, raw) in &fields {
            let mut name = stored_name(name, self.options.hive_names);
            if is_tag(&name) {
                name = Cow::Owned(format!("{name}_value"));
            }
            let at = builder.column(&name, false, budget)?;
            let place = |why: String| RequestError::Invalid(format!("table '{}': field '{}': {why}", shown(table), shown(&name)));
            let value = super::value::read(raw, self.options.nested, &mut self.json).map_err(|e| place(e.message().to_owned()))?;
            builder.push(at, 0, value.cell(&self.json).map_err(place)?)?;
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
        let max = self.options.bounds.max_columns;
        let given = match parts.tags.map(|raw| (raw, Reader::new(raw).head())) {
            // Serializers write an absent map as nil.
            None | Some((_, Ok(Head::Nil))) => Vec::new(),
            Some((raw, _)) => pairs(raw, "tags", max, self.replaced)?,
        };
        let mut tags: Vec<Tag<'a>> = Vec::with_capacity(given.len() + 1);
        for (name, raw) in given {
            let text = self.tag_text(raw).map_err(|e| within(format_args!("tag '{}'", shown(name)), e))?;
            tags.push((stored_name(name, self.options.hive_names), text));
        }
        let Some(host) = self.host(parts)? else { return Ok(tags) };
        match tags.iter_mut().find(|(name, _)| name == HOST) {
            Some((_, Some(tag))) if *tag != host => {
                invalid(format!("'h' is '{}' and tags.host is '{}', expected one of them", shown(&host), shown(tag)))
            }
            Some((_, text)) => {
                *text = Some(host);
                Ok(tags)
            }
            None => {
                tags.push((Cow::Borrowed(HOST), Some(host)));
                Ok(tags)
            }
        }
    }

    fn host<'a>(&mut self, parts: &Parts<'a>) -> Result<Option<Cow<'a, str>>, RequestError> {
        let Some(raw) = parts.h else { return Ok(None) };
        Ok(match self.value(raw)? {
            Value::Nil => None,
            Value::Str(s) => Some(Cow::Borrowed(s)),
            Value::Int(n) => Some(Cow::Owned(format!("host_{n}"))),
            Value::Big(n) => Some(Cow::Owned(format!("host_{n}"))),
            other => return invalid(format!("'h' (the host) must be a string or an integer, found {}", other.name())),
        })
    }

    fn tag_text<'a>(&mut self, raw: &'a [u8]) -> Result<Option<Cow<'a, str>>, RequestError> {
        let value = self.value(raw)?;
        Ok(Some(match value {
            Value::Nil => return Ok(None),
            Value::Str(s) => Cow::Borrowed(s),
            Value::Bool(b) => Cow::Owned(b.to_string()),
            Value::Int(i) => Cow::Owned(i.to_string()),
            Value::Big(u) => Cow::Owned(u.to_string()),
            Value::Float(f) => Cow::Owned(format!("{f:?}")),
            Value::Binary(b) => {
                let mut text = String::new();
                push_base64(&mut text, b);
                Cow::Owned(text)
            }
            Value::Json => Cow::Owned(self.json.clone()),
            Value::Extension(..) | Value::Array | Value::Map => match value.cell(&self.json) {
                Err(why) => return invalid(why),
                Ok(_) => return Err(RequestError::Internal("a nested tag passed as a cell".into())),
            },
        }))
    }

    fn fields<'a>(&self, parts: &Parts<'a>) -> Result<Vec<Field<'a>>, RequestError> {
        let max = self.options.bounds.max_columns;
        let fields: Vec<_> = match (parts.fields, parts.f) {
            (Some(_), Some(_)) => return invalid("'fields' and 'f' stand in one row, expected one of them"),
            (Some(raw), None) => {
                pairs(raw, "fields", max, self.replaced)?.into_iter().map(|(name, raw)| (Cow::Borrowed(name), raw)).collect()
            }
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
