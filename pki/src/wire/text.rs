//! Texts that come from a device and end in an operator's terminal or log.

use std::str::FromStr;

use thiserror::Error;

const MAX_LINE_BYTES: usize = 512;
const MAX_CODE_BYTES: usize = 64;

/// Why a text is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TextError {
    /// Longer than its kind may be.
    #[error("text of {0} bytes is longer than {1}")]
    TooLong(usize, usize),
    /// A control character: it could forge a log line or move a terminal's cursor.
    #[error("text contains a control character")]
    Control,
    /// Not `[a-z0-9_-]+`.
    #[error("{0:?} is not a code (expected a-z, 0-9, '_', '-')")]
    Code(String),
}

/// One line of text for people: at most 512 bytes, no control character.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Line(Box<str>);

impl Line {
    /// Makes a line of any text: control characters become spaces, and what is too long is cut.
    pub fn shortened(text: &str) -> Self {
        let mut line = String::new();
        for character in text.chars() {
            let character = if is_hostile(character) { ' ' } else { character };
            if line.len() + character.len_utf8() > MAX_LINE_BYTES {
                break;
            }
            line.push(character);
        }
        Self(line.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Line {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        if text.len() > MAX_LINE_BYTES {
            return Err(TextError::TooLong(text.len(), MAX_LINE_BYTES));
        }
        if text.chars().any(is_hostile) {
            return Err(TextError::Control);
        }
        Ok(Self(text.into()))
    }
}

/// Control characters, line separators and the marks that reverse the direction of text ("Trojan Source").
fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A stable name that scripts compare, such as `digest_mismatch`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(Box<str>);

impl Code {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Code {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let word =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        if text.is_empty() || text.len() > MAX_CODE_BYTES || !text.bytes().all(word) {
            return Err(TextError::Code(text.chars().take(MAX_CODE_BYTES).collect()));
        }
        Ok(Self(text.into()))
    }
}

crate::text_newtypes!(Line, Code);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_lines_that_could_forge_another() {
        for text in ["a\nb", "\u{1b}[2J", "a\u{202e}b", "\u{2028}", "\u{7f}"] {
            assert_eq!(text.parse::<Line>(), Err(TextError::Control), "{text:?}");
        }
        assert!("x".repeat(513).parse::<Line>().is_err());
    }

    #[test]
    fn shortens_any_text_to_a_line() {
        let line = Line::shortened(&format!("a\n{}", "é".repeat(400)));
        assert!(line.as_str().starts_with("a é"));
        assert!(line.as_str().len() <= MAX_LINE_BYTES);
        assert_eq!(line.as_str().parse(), Ok(line.clone()));
    }

    #[test]
    fn rejects_codes_that_are_not_one_word() {
        for text in ["", "Digest", "a b", "a\n", &"a".repeat(65)] {
            assert!(text.parse::<Code>().is_err(), "{text:?}");
        }
        assert!("digest_mismatch".parse::<Code>().is_ok());
    }
}
