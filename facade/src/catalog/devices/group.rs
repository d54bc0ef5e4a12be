//! Groups of devices.

use std::str::FromStr;

use thiserror::Error;

const MAX_BYTES: usize = 63;

/// The name of a group: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(Box<str>);

/// The text is not the name of a group.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a group (expected 1 to 63 of a-z, 0-9, '.', '_', '-', the first a letter or digit)")]
pub struct GroupError(String);

impl Group {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Group {
    type Err = GroupError;

    fn from_str(text: &str) -> Result<Self, GroupError> {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let first = text.bytes().next().is_some_and(alphanumeric);
        let rest = text.bytes().all(|byte| alphanumeric(byte) || matches!(byte, b'.' | b'_' | b'-'));
        if first && rest && text.len() <= MAX_BYTES {
            Ok(Self(text.into()))
        } else {
            Err(GroupError(text.chars().take(80).collect()))
        }
    }
}

pki::text_newtypes!(Group);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_names_that_are_not_groups() {
        for text in ["", "-a", "A", "a b", "a/b", "é", &"a".repeat(64)] {
            assert!(text.parse::<Group>().is_err(), "{text:?}");
        }
        assert_eq!("pumps.north-1".parse::<Group>().unwrap().as_str(), "pumps.north-1");
    }
}
