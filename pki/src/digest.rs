//! Content digests: the only names by which Drayage moves bytes.
//!
//! [`Digest`] is parsed once and is then always well-formed; [`Verifier`] is the one place where bytes are held against
//! a digest and a length. Nothing in the workspace compares hashes of content anywhere else.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256, Sha512};
use thiserror::Error;

/// A hash algorithm registered by the OCI image specification (descriptor.md, "Registered algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// The identifier in front of the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of a hash in bytes.
    pub fn len_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A content digest such as `sha256:…`; always well-formed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    // Bytes beyond the algorithm's length stay zero, so that the derived comparisons are right.
    bytes: [u8; 64],
}

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DigestError {
    /// There is no `algorithm:` prefix.
    #[error("digest {0:?} has no algorithm (expected sha256:<64 hex digits>)")]
    NoAlgorithm(String),
    /// The algorithm is not one we can compute.
    #[error("digest algorithm {0:?} is not supported (expected sha256 or sha512)")]
    UnknownAlgorithm(String),
    /// The hash is not lower-case hexadecimal of the right length.
    #[error("digest {0:?} is not {1} lower-case hexadecimal digits")]
    Malformed(String, usize),
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::from_hash(Algorithm::Sha256, &Sha256::digest(bytes))
    }

    /// The digest of `bytes` under `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw hash.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.algorithm.len_bytes()).unwrap_or(&self.bytes)
    }

    /// The hash in lower-case hexadecimal, without the algorithm.
    pub fn hex(&self) -> String {
        HEXLOWER.encode(self.as_bytes())
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        let mut bytes = [0; 64];
        for (to, from) in bytes.iter_mut().zip(hash) {
            *to = *from;
        }
        Self { algorithm, bytes }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        // Error texts end up in logs and answers: never carry more of a hostile text than a digest could need.
        let shown = || text.chars().take(160).collect::<String>();
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(shown()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnknownAlgorithm(name.chars().take(32).collect())),
        };
        let malformed = || DigestError::Malformed(shown(), algorithm.len_bytes() * 2);
        let hash = HEXLOWER.decode(hex.as_bytes()).map_err(|_| malformed())?;
        if hash.len() != algorithm.len_bytes() {
            return Err(malformed());
        }
        Ok(Self::from_hash(algorithm, &hash))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Written for every pull, into headers and the log: without the text being allocated.
        let mut hex = [0; 128];
        let hex = hex.get_mut(..self.algorithm.len_bytes() * 2).unwrap_or_default();
        HEXLOWER.encode_mut(self.as_bytes(), hex);
        f.write_str(self.algorithm.name())?;
        f.write_str(":")?;
        f.write_str(std::str::from_utf8(hex).unwrap_or_default())
    }
}

crate::text_forms!(Digest);

/// Computes a digest piece by piece.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// Starts an empty computation.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::new(Sha512::new())),
        })
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hasher) => Digest::from_hash(Algorithm::Sha256, &hasher.finalize()),
            State::Sha512(hasher) => Digest::from_hash(Algorithm::Sha512, &hasher.finalize()),
        }
    }
}

/// How received content differs from what was promised.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Mismatch {
    /// The content ended early.
    #[error("{digest} ended after {received_bytes} of {expected_bytes} bytes")]
    Short {
        /// What was promised.
        digest: Digest,
        /// Bytes that came.
        received_bytes: u64,
        /// Bytes that were promised.
        expected_bytes: u64,
    },
    /// The content goes on past its length.
    #[error("{digest} is longer than its {expected_bytes} bytes")]
    Long {
        /// What was promised.
        digest: Digest,
        /// Bytes that were promised.
        expected_bytes: u64,
    },
    /// The bytes are other bytes.
    #[error("content of {expected} has digest {computed}")]
    Digest {
        /// What was promised.
        expected: Digest,
        /// What came.
        computed: Digest,
    },
}

/// Holds a stream of bytes against the digest and length it was promised to have.
#[derive(Clone)]
pub struct Verifier {
    expected: Digest,
    expected_bytes: u64,
    received_bytes: u64,
    hasher: Hasher,
}

impl Verifier {
    /// Starts verifying content of `expected_bytes` bytes.
    pub fn new(expected: Digest, expected_bytes: u64) -> Self {
        Self { expected, expected_bytes, received_bytes: 0, hasher: Hasher::new(expected.algorithm()) }
    }

    /// Adds the next bytes; refuses as soon as there are more than promised.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let received = self.received_bytes.saturating_add(bytes.len() as u64);
        if received > self.expected_bytes {
            return Err(Mismatch::Long { digest: self.expected, expected_bytes: self.expected_bytes });
        }
        self.hasher.update(bytes);
        self.received_bytes = received;
        Ok(())
    }

    /// Bytes seen so far.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Agrees, or says how the content differs.
    pub fn finish(self) -> Result<(), Mismatch> {
        if self.received_bytes < self.expected_bytes {
            return Err(Mismatch::Short {
                digest: self.expected,
                received_bytes: self.received_bytes,
                expected_bytes: self.expected_bytes,
            });
        }
        let computed = self.hasher.finish();
        if computed == self.expected {
            Ok(())
        } else {
            Err(Mismatch::Digest { expected: self.expected, computed })
        }
    }
}

/// Verifies content that is already whole.
pub fn verify(expected: Digest, bytes: &[u8]) -> Result<(), Mismatch> {
    let computed = Digest::of(expected.algorithm(), bytes);
    if computed == expected { Ok(()) } else { Err(Mismatch::Digest { expected, computed }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn round_trips_both_algorithms() {
        let long = format!("sha512:{}", "ab".repeat(64));
        for text in [EMPTY, long.as_str()] {
            assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        }
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
    }

    #[test]
    fn rejects_texts_that_are_not_digests() {
        let upper = EMPTY.to_uppercase();
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:abc",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &upper,
            "sha256:é",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        assert!(format!("{EMPTY}0").parse::<Digest>().is_err());
        assert!(EMPTY.replace("e3", "E3").parse::<Digest>().is_err());
    }

    #[test]
    fn verifier_agrees_only_with_the_promised_bytes() {
        let check = |bytes: &[u8], length| {
            let mut verifier = Verifier::new(Digest::sha256(b"hello"), length);
            bytes.chunks(2).try_for_each(|piece| verifier.update(piece)).and_then(|()| verifier.finish())
        };
        assert_eq!(check(b"hello", 5), Ok(()));
        assert!(matches!(check(b"hell", 5), Err(Mismatch::Short { received_bytes: 4, .. })));
        assert!(matches!(check(b"hello!", 5), Err(Mismatch::Long { .. })));
        assert!(matches!(check(b"hellO", 5), Err(Mismatch::Digest { .. })));
        assert!(matches!(check(b"hello", 6), Err(Mismatch::Short { .. })));
    }
}
