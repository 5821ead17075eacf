//! The short cut: a line whose keys stand as they stood in a line before is known by comparing bytes.

use super::Known;
use super::lines::{Decoder, Parsed, Target, open_row};
use super::rows::{Names, Source};
use super::scan::{Escapes, Text, Value, blanks, boolean, ends_line, integer, measurement, number, special, string, word};
use crate::error::RequestError;

/// Shapes that are remembered; lines of others go the long way.
const MAX_SHAPES: usize = 1024;

/// The bytes of a line around its values, and where these go.
pub(super) struct Shape {
    table: usize,
    /// What stands before each value, one after the other.
    keys: Vec<u8>,
    slots: Vec<Slot>,
    /// The shape of the line that followed such a line last.
    next: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    len: usize,
    column: usize,
    tag: bool,
}

#[derive(Default)]
pub(super) struct Shapes {
    all: Vec<Shape>,
    by_keys: Names,
    /// The shape that a measurement had last.
    by_measurement: Names,
    /// Of the line before.
    last: usize,
}

impl<K: Known> Decoder<'_, K> {
    /// Keeps the shape of a line whose cells went to columns.
    pub(super) fn remember(&mut self, parsed: &Parsed, table: usize) {
        let (body, shapes) = (self.body, &mut self.shapes);
        let (mut keys, mut slots, mut at) = (Vec::new(), Vec::with_capacity(self.cells.len()), parsed.start);
        for c in &self.cells {
            let Target::Old(column) = c.target else { return };
            let quote = usize::from(matches!(c.value, Value::Str(_)) && !c.tag);
            let from = match c.value {
                Value::Str(text) => text.from - quote,
                _ => c.key.to + 1,
            };
            let prefix = body.get(at..from).unwrap_or_default();
            keys.extend_from_slice(prefix);
            slots.push(Slot { len: prefix.len(), column, tag: c.tag });
            at = c.end;
        }
        let n = match shapes.by_keys.get(keys.as_slice()) {
            Some(n) => *n,
            None if shapes.all.len() < MAX_SHAPES => {
                let n = shapes.all.len() as u32;
                shapes.by_keys.insert(keys.as_slice().into(), n);
                shapes.all.push(Shape { table, keys, slots, next: n as usize });
                n
            }
            None => return,
        };
        match shapes.by_measurement.get_mut(parsed.measurement.of(body)) {
            Some(last) => *last = n,
            None => {
                shapes.by_measurement.insert(parsed.measurement.of(body).into(), n);
            }
        }
        shapes.follow(n as usize);
    }

    /// Takes the line at `start` if its keys are those of a shape and nothing about its values is unusual; None: it has left no trace.
    #[inline]
    pub(super) fn short(&mut self, start: usize) -> Result<Option<usize>, RequestError> {
        let Some(last) = self.shapes.all.get(self.shapes.last) else { return Ok(None) };
        let first = last.next;
        if let Some(end) = self.as_shape(first, start)? {
            return Ok(Some(end));
        }
        let measurement = measurement(self.body, start).of(self.body);
        match self.shapes.by_measurement.get(measurement) {
            Some(n) if *n as usize != first => self.as_shape(*n as usize, start),
            _ => Ok(None),
        }
    }

    #[inline]
    fn as_shape(&mut self, n: usize, start: usize) -> Result<Option<usize>, RequestError> {
        let body = self.body;
        let Some(shape) = self.shapes.all.get(n) else { return Ok(None) };
        self.values.clear();
        let (mut at, mut keys, mut newlines) = (start, shape.keys.as_slice(), 0);
        for slot in &shape.slots {
            let Some((prefix, rest)) = keys.split_at_checked(slot.len) else { return Ok(None) };
            keys = rest;
            let Some(from) = body.get(at..) else { return Ok(None) };
            if !from.starts_with(prefix) {
                return Ok(None);
            }
            at += prefix.len();
            let value = if slot.tag {
                let to = special(body, at);
                if to == at || !matches!(body.get(to), Some(b',' | b' ')) {
                    return Ok(None);
                }
                let text = Text { from: at, to, escapes: Escapes::None };
                at = to;
                Value::Str(text)
            } else {
                match body.get(at) {
                    Some(b'0'..=b'9' | b'-' | b'.') => {
                        let Some((value, end)) = number(body, at) else { return Ok(None) };
                        at = end;
                        value
                    }
                    Some(b'"') => {
                        let Some(q) = string(body, at) else { return Ok(None) };
                        newlines += q.newlines;
                        at = q.end;
                        Value::Str(q.text)
                    }
                    _ => {
                        let text = word(body, at);
                        let Some(b) = boolean(text) else { return Ok(None) };
                        at += text.len();
                        Value::Bool(b)
                    }
                }
            };
            self.values.push(value);
        }
        let mut time = self.options.receive_time_us;
        if !ends_line(body, at) {
            if body.get(at) != Some(&b' ') {
                return Ok(None);
            }
            at = blanks(body, at);
            if !ends_line(body, at) {
                let Some((t, end)) = integer(body, at) else { return Ok(None) };
                at = blanks(body, end);
                if !ends_line(body, at) {
                    return Ok(None);
                }
                let Some(us) = self.options.precision.to_micros(t) else { return Ok(None) };
                time = us;
            }
        }
        let Some(table) = self.tables.get_mut(shape.table) else { return Ok(None) };
        for (slot, value) in shape.slots.iter().zip(&self.values) {
            if table.columns.get(slot.column).is_none_or(|c| c.fits(value).is_err()) {
                return Ok(None);
            }
        }
        self.budget.claim(&table.name, self.values.len() + 1)?;
        let row = open_row(table)?;
        let mut of = Source { body, table: &table.name, scratch: &mut self.scratch, saturated: &mut self.report.saturated };
        for (slot, value) in shape.slots.iter().zip(&self.values) {
            if let Some(column) = table.columns.get_mut(slot.column) {
                column.push(row, value, &mut of, &mut self.budget)?;
            }
        }
        table.time.push(time);
        self.line += 1 + newlines;
        self.shapes.follow(n);
        at += usize::from(body.get(at) == Some(&b'\r'));
        Ok(Some((at + 1).min(body.len())))
    }
}

impl Shapes {
    /// The line that was taken last has this shape.
    #[inline]
    fn follow(&mut self, n: usize) {
        if let Some(last) = self.all.get_mut(self.last) {
            last.next = n;
        }
        self.last = n;
    }
}
