//! Labels of devices: what operators tell them apart by.

use std::str::FromStr;

use thiserror::Error;

const MAX_BYTES: usize = 63;

/// Words that selectors understand by themselves.
pub(super) const RESERVED: [&str; 8] = ["all", "arch", "group", "id", "in", "notin", "os", "variant"];

/// The name of a label: `[a-z0-9][a-z0-9._/-]{0,62}`, and none of the words that selectors have.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelKey(Box<str>);

/// The value of a label: `[A-Za-z0-9._-]{1,63}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelValue(Box<str>);

/// The text is no part of a label.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LabelError {
    /// It cannot be a name.
    #[error(
        "{0:?} is not the name of a label (expected 1 to 63 of a-z, 0-9, '.', '_', '/', '-', the first a letter or digit)"
    )]
    Key(String),
    /// The name has a meaning of its own.
    #[error(
        "{0:?} has a meaning of its own in selectors and cannot be the name of a label (reserved: {reserved})",
        reserved = RESERVED.join(", ")
    )]
    Reserved(String),
    /// It cannot be a value.
    #[error("{0:?} is not the value of a label (expected 1 to 63 of A-Z, a-z, 0-9, '.', '_', '-')")]
    Value(String),
}

impl LabelKey {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl LabelValue {
    /// The value as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabelKey {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let first = text.bytes().next().is_some_and(alphanumeric);
        let rest = text.bytes().all(|byte| alphanumeric(byte) || matches!(byte, b'.' | b'_' | b'-' | b'/'));
        if !first || !rest || text.len() > MAX_BYTES {
            return Err(LabelError::Key(text.chars().take(80).collect()));
        }
        if RESERVED.contains(&text) {
            return Err(LabelError::Reserved(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl FromStr for LabelValue {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        if is_value(text) {
            Ok(Self(text.into()))
        } else {
            Err(LabelError::Value(text.chars().take(80).collect()))
        }
    }
}

/// Whether a text can be the value of a label, or of anything else that selectors compare.
pub fn is_value(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

pki::text_newtypes!(LabelKey, LabelValue);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_names_and_values_that_are_not_of_labels() {
        for text in ["", "-a", "A", "a b", "a=b", "é", "<b>", &"a".repeat(64)] {
            assert!(matches!(text.parse::<LabelKey>(), Err(LabelError::Key(_))), "{text:?}");
        }
        for text in RESERVED {
            assert!(matches!(text.parse::<LabelKey>(), Err(LabelError::Reserved(_))), "{text:?}");
        }
        for text in ["", "a b", "a,b", "(a)", "<b>", &"a".repeat(64)] {
            assert!(text.parse::<LabelValue>().is_err(), "{text:?}");
        }
        assert_eq!("site.example/floor".parse::<LabelKey>().unwrap().as_str(), "site.example/floor");
        assert_eq!("Berlin-2".parse::<LabelValue>().unwrap().as_str(), "Berlin-2");
    }
}
