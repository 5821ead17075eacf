//! Which lines were refused, and why.

use crate::names::is_invisible;

/// Most lines that a report tells about one by one; all of them are counted.
const MAX_DETAILS: usize = 100;
/// Most bytes of a line that a report repeats.
const MAX_ORIGINAL: usize = 256;
/// Bytes of all details together, or an answer could be much larger than what it answers.
const MAX_TEXT: usize = 32 << 10;

/// A line that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// Of the line's first byte, from 1; every newline counts, also those within strings.
    pub line: u64,
    /// The beginning of the line, invalid UTF-8 replaced.
    pub original: String,
    /// Says what was expected and what was found; without control characters.
    pub message: String,
    /// The line can be read, but a value does not fit the type of its column.
    pub conflict: bool,
}

/// How the lines of a body fared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Lines that are neither empty nor comments.
    pub lines: u64,
    /// Comments.
    pub comments: u64,
    /// Unsigned integers that were stored as the largest int64.
    pub saturated: u64,
    /// Lines that were refused.
    pub bad: u64,
    /// Those of them whose types do not fit.
    pub conflicts: u64,
    /// The first of the refused lines, in order.
    pub details: Vec<LineError>,
    pub(super) text: usize,
}

impl Report {
    pub(super) fn refuse(&mut self, line: u64, original: &[u8], message: String, conflict: bool) {
        self.bad += 1;
        self.conflicts += u64::from(conflict);
        if self.details.len() >= MAX_DETAILS || self.text >= MAX_TEXT {
            return;
        }
        let cut = original.get(..MAX_ORIGINAL);
        let mut original = String::from_utf8_lossy(cut.unwrap_or(original)).into_owned();
        if cut.is_some() {
            // The cut may have gone through a character.
            original.truncate(original.trim_end_matches('\u{fffd}').len());
            original.push_str("...");
        }
        self.text += original.len() + message.len();
        self.details.push(LineError { line, original, message, conflict });
    }

    /// Every line that was refused was refused for its types.
    pub fn only_conflicts(&self) -> bool {
        self.conflicts == self.bad
    }
}

/// Bytes of a body as they may stand in a message: shortened, control and invisible characters escaped.
pub fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 100;
    let cut = bytes.get(..MOST);
    let text = String::from_utf8_lossy(cut.unwrap_or(bytes));
    let mut out = String::with_capacity(text.len() + 3);
    for c in text.chars() {
        if c.is_control() || is_invisible(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if cut.is_some() {
        out.push_str("...");
    }
    out
}
