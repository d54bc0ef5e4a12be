//! What tells one certificate from another: the SHA-256 of its DER, and its serial number.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The SHA-256 of a certificate's DER, or of a root metadata file, in lower-case hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

/// The text is not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a fingerprint (expected 64 lower-case hexadecimal digits)")]
pub struct FingerprintError(String);

impl Fingerprint {
    /// The fingerprint of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The hash itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let error = || FingerprintError(text.chars().take(80).collect());
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| error())?;
        Ok(Self(bytes.try_into().map_err(|_| error())?))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// The serial number of a certificate, in lower-case hexadecimal: 1 to 20 octets (RFC 5280 4.1.2.2).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Box<[u8]>);

/// The text is not a serial number.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a serial number (expected 2 to 40 lower-case hexadecimal digits)")]
pub struct SerialError(String);

impl Serial {
    /// Takes the octets of a DER INTEGER; leading zeros do not make another number.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SerialError> {
        let significant = bytes.iter().skip_while(|byte| **byte == 0).count();
        let number: Vec<u8> = bytes.iter().skip(bytes.len() - significant).copied().collect();
        if number.is_empty() || number.len() > 20 {
            return Err(SerialError(HEXLOWER.encode(bytes).chars().take(80).collect()));
        }
        Ok(Self(number.into()))
    }

    /// The octets, most significant first.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, SerialError> {
        let error = || SerialError(text.chars().take(80).collect());
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| error())?;
        Self::from_bytes(&bytes)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

crate::text_forms!(Fingerprint, Serial);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_as_text() {
        let fingerprint = Fingerprint::of(b"");
        assert_eq!(
            fingerprint.to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        let serial = Serial::from_bytes(&[0, 0x7f, 1]).unwrap();
        assert_eq!(serial.to_string(), "7f01");
        assert_eq!("7f01".parse(), Ok(serial));
    }

    #[test]
    fn rejects_texts_of_the_wrong_length_or_case() {
        for text in ["", "ab", &"AB".repeat(32), &"ab".repeat(33), &"zz".repeat(32)] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
        for text in ["", "0", "00", "AB", &"ab".repeat(21)] {
            assert!(text.parse::<Serial>().is_err(), "{text}");
        }
    }
}
