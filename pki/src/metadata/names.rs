//! The small things that metadata is made of: role names, target paths, hashes, times, file names.
//!
//! Names are printable ASCII of bounded length, so that they mean the same bytes to every reader. A name still may not be
//! used as a path: [`FileName`] is the one way from a role to a file, and it quotes (python-tuf PYSEC-2021-376,
//! tough CVE-2026-6968, go-tuf CVE-2026-24686).

use std::collections::BTreeMap;
use std::str::FromStr;

use data_encoding::HEXUPPER;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::digest::{Digest, Mismatch};

/// Longest name of a delegated role.
pub const MAX_ROLE_NAME: usize = 128;
/// Longest name of a delegated role once it is quoted for a file name.
const MAX_QUOTED_ROLE_NAME: usize = 224;
/// Longest path of a target.
pub const MAX_TARGET_PATH: usize = 512;

const TOP_LEVEL: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];

/// Why a text within metadata is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// A delegated role bears the name of a top-level role, and would take its file.
    #[error("delegated role is named {0:?} like a top-level role")]
    Reserved(String),
    /// The role name is empty, too long or not printable ASCII.
    #[error("role name {0:?} is not 1 to 128 printable ASCII characters")]
    Role(String),
    /// The target path is empty, too long or not printable ASCII.
    #[error("target path {0:?} is not 1 to 512 printable ASCII characters")]
    Target(String),
    /// There are no hashes, or one of an algorithm we know is not a hash.
    #[error("hashes {0:?} are empty or malformed")]
    Hashes(String),
    /// The time is not written `YYYY-MM-DDTHH:MM:SSZ`.
    #[error("time {0:?} is not written YYYY-MM-DDTHH:MM:SSZ")]
    Time(String),
}

/// The name of a delegated targets role.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleName(String);

/// The path of a target: the name by which metadata lists it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetPath(String);

impl RoleName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TargetPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RoleName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if TOP_LEVEL.contains(&text) {
            return Err(NameError::Reserved(text.to_owned()));
        }
        // The quoted name is a file name, and file systems end at 255 bytes.
        if !is_name(text, MAX_ROLE_NAME) || quote(text).len() > MAX_QUOTED_ROLE_NAME {
            return Err(NameError::Role(shown(text)));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for TargetPath {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !is_name(text, MAX_TARGET_PATH) {
            return Err(NameError::Target(shown(text)));
        }
        Ok(Self(text.to_owned()))
    }
}

fn is_name(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

fn shown(text: &str) -> String {
    text.chars().take(160).collect()
}

crate::text_newtypes!(RoleName, TargetPath);

/// The name of a metadata file, on the wire or on disk: one path segment, whatever the role is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName(String);

impl FileName {
    /// The file that holds the current `role` on disk, and on the wire where it has no version in its name.
    pub fn current(role: &str) -> Self {
        Self(format!("{}.json", quote(role)))
    }

    /// The file that holds one version of `role` (TUF 6.1, consistent snapshots).
    pub fn versioned(version: u64, role: &str) -> Self {
        Self(format!("{version}.{}.json", quote(role)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

/// Percent-encodes everything but unreserved characters (RFC 3986, 2.3), also `/`.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            quoted.push(char::from(byte));
        } else {
            quoted.push('%');
            quoted.push_str(&HEXUPPER.encode(&[byte]));
        }
    }
    quoted
}

/// The hashes that metadata lists for a file; at least one, all of known algorithms well-formed.
///
/// Hashes of unknown algorithms are kept, because they are part of what is signed, and are never taken for a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Hashes(BTreeMap<String, String>);

impl Hashes {
    /// One hash.
    pub fn of(digest: Digest) -> Self {
        Self(BTreeMap::from([(digest.algorithm().name().to_owned(), digest.hex())]))
    }

    /// The hashes that can be computed here.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.0.iter().filter_map(|(name, hex)| format!("{name}:{hex}").parse().ok())
    }

    /// Holds bytes against every hash that can be computed here; without any such hash nothing is vouched for.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), HashMismatch> {
        if self.digests().next().is_none() {
            return Err(HashMismatch::NoneKnown);
        }
        for digest in self.digests() {
            crate::digest::verify(digest, bytes).map_err(HashMismatch::Differs)?;
        }
        Ok(())
    }
}

/// How bytes fail the hashes that metadata lists for them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HashMismatch {
    /// None of the listed algorithms is known here.
    #[error("no listed hash is of a known algorithm")]
    NoneKnown,
    /// The bytes are other bytes.
    #[error(transparent)]
    Differs(Mismatch),
}

impl<'de> Deserialize<'de> for Hashes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hashes = BTreeMap::<String, String>::deserialize(deserializer)?;
        let well_formed = |(name, hex): (&String, &String)| match name.as_str() {
            "sha256" | "sha512" => format!("{name}:{hex}").parse::<Digest>().is_ok(),
            _ => true,
        };
        if hashes.is_empty() || !hashes.iter().all(well_formed) {
            let listed = hashes.keys().take(8).cloned().collect::<Vec<_>>().join(", ");
            return Err(serde::de::Error::custom(NameError::Hashes(listed)));
        }
        Ok(Self(hashes))
    }
}

/// The one way in which TUF writes a time.
pub(crate) mod time {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{NameError, shown};

    pub(crate) fn parse(text: &str) -> Result<Timestamp, NameError> {
        let shape = b"dddd-dd-ddTdd:dd:ddZ";
        let fits = text.len() == shape.len()
            && text.bytes().zip(shape).all(|(byte, &expected)| match expected {
                b'd' => byte.is_ascii_digit(),
                literal => byte == literal,
            });
        let malformed = || NameError::Time(shown(text));
        if !fits {
            return Err(malformed());
        }
        text.parse().map_err(|_| malformed())
    }

    pub(crate) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&time.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
