//! Which characters a new name of a table or column may have.
//!
//! Two names that look alike must be alike: invisible characters are refused, and so is white space at either end. What real names need
//! stays: joiners between letters (Persian, Indic scripts, emoji) and variation selectors behind a character (emoji, ideographs).
//!
//! The rules hold for names that come in. Names in a log from before them are read and replayed as they are.

/// True for a character that shows nothing, or turns the direction of what stands around it. Joiners and variation selectors count: where
/// they may stand is up to [`check_visible`].
pub fn is_invisible(c: char) -> bool {
    matches!(
        u32::from(c),
        0xad | 0x34f | 0x61c                  // soft hyphen, grapheme joiner, Arabic letter mark
            | 0x115f..=0x1160 | 0x3164 | 0xffa0 // Hangul fillers
            | 0x17b4..=0x17b5                 // Khmer inherent vowels
            | 0x180b..=0x180f                 // Mongolian selectors and vowel separator
            | 0x200b..=0x200f                 // zero-width space, joiners, direction marks
            | 0x2028..=0x202e                 // line and paragraph separators, directions
            | 0x2060..=0x206f                 // word joiner, invisible operators, isolates
            | 0x2800                          // empty Braille pattern
            | 0xfe00..=0xfe0f | 0xe0100..=0xe01ef // variation selectors
            | 0xfeff | 0xfff9..=0xfffb        // byte-order mark, annotations
            | 0x1_bca0..=0x1_bca3 | 0x1_d173..=0x1_d17a
            | 0xe0000..=0xe007f               // tags
    ) || is_noncharacter(c)
}

fn is_noncharacter(c: char) -> bool {
    let v = u32::from(c);
    (0xfdd0..=0xfdef).contains(&v) || v & 0xfffe == 0xfffe
}

fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}')
}

fn is_selector(c: char) -> bool {
    matches!(u32::from(c), 0xfe00..=0xfe0f | 0xe0100..=0xe01ef)
}

/// A character that a joiner or a variation selector may stand beside.
fn carries(c: Option<char>) -> bool {
    c.is_some_and(|c| !c.is_ascii() && !c.is_whitespace() && !is_invisible(c))
}

/// Refuses a name that cannot be seen as what it is.
///
/// # Errors
/// What is wrong with it.
pub fn check_visible(name: &str) -> Result<(), String> {
    // Almost every name; control characters aside, nothing in ASCII is invisible.
    if name.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    if let Some(c) = name.chars().find(|c| c.is_control()) {
        return Err(format!("control characters are not allowed (U+{:04X})", u32::from(c)));
    }
    if name.starts_with(char::is_whitespace) || name.ends_with(char::is_whitespace) {
        return Err("white space at the beginning or the end is not allowed".to_owned());
    }
    let (mut before, mut chars) = (None, name.chars().peekable());
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        let allowed = if is_joiner(c) {
            // An emoji in front of a joiner may have a variation selector.
            before.is_some_and(|b| carries(Some(b)) || is_selector(b)) && carries(next)
        } else if is_selector(c) {
            carries(before) || (before.is_some_and(|b| matches!(b, '0'..='9' | '#' | '*')) && next == Some('\u{20e3}'))
        } else {
            !is_invisible(c)
        };
        if !allowed {
            return Err(format!("the invisible character U+{:04X} is not allowed{}", u32::from(c), place(c)));
        }
        before = Some(c);
    }
    Ok(())
}

fn place(c: char) -> &'static str {
    match c {
        '\u{feff}' => " (a byte-order mark)",
        c if is_joiner(c) => " except between two characters that are not ASCII",
        c if is_selector(c) => " except behind a character that is not ASCII",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_people_use_are_allowed() {
        for name in [
            "cpu",
            "cpu load",
            "a.b/c-d:e",
            "°C",
            "温度",
            "Température extérieure",
            "می\u{200c}خواهم",
            "क्\u{200d}ष",
            "👩\u{200d}💻",
            "❤\u{fe0f}",
            "🏳\u{fe0f}\u{200d}🌈",
            "1\u{fe0f}\u{20e3}",
            "🌡\u{fe0f} Wohnzimmer",
            "葛\u{e0100}城",
            "e\u{301}",
            "ไทย",
            "a\u{a0}b",
            "\u{fffd}x",
        ] {
            assert_eq!(check_visible(name), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn names_with_what_nobody_sees_are_refused_by_the_character() {
        for (name, why) in [
            ("\u{feff}cpu", "U+FEFF"),
            ("cpu\u{200b}", "U+200B"),
            ("c\u{2060}pu", "U+2060"),
            ("c\u{ad}pu", "U+00AD"),
            ("\u{202e}upc", "U+202E"),
            ("cpu\u{200e}", "U+200E"),
            ("a\u{2066}b", "U+2066"),
            ("a\u{2028}b", "U+2028"),
            ("a\u{61c}b", "U+061C"),
            ("\u{3164}", "U+3164"),
            ("\u{2800}", "U+2800"),
            ("a\u{e0041}b", "U+E0041"),
            ("a\u{ffff}", "U+FFFF"),
            ("a\tb", "U+0009"),
            ("a\u{0}", "U+0000"),
            ("a\u{7f}", "U+007F"),
            ("a\u{85}b", "U+0085"),
            ("cpu\u{200d}load", "U+200D"),
            ("\u{200c}می", "U+200C"),
            ("می\u{200c}", "U+200C"),
            ("می\u{200c}\u{200c}خ", "U+200C"),
            ("cpu\u{fe0f}", "U+FE0F"),
            ("❤\u{fe0f}\u{fe0f}", "U+FE0F"),
            ("\u{e0100}葛", "U+E0100"),
            (" cpu", "white space"),
            ("cpu ", "white space"),
            ("cpu\u{a0}", "white space"),
            ("\u{3000}温度", "white space"),
        ] {
            let e = check_visible(name).unwrap_err();
            assert!(e.contains(why), "{name:?}: {e}");
        }
    }
}
