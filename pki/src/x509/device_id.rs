//! The name of a device, and its form in a certificate: `spiffe://<trust domain>/device/<id>`.
//!
//! The only place that writes or reads that form. rustls and webpki check nothing of a URI SAN (SECURITY-NOTES 3.2), so
//! what is refused here is refused nowhere else.

use std::str::FromStr;

use thiserror::Error;

const MAX_DEVICE_ID: usize = 63;
const MAX_TRUST_DOMAIN: usize = 255;

/// The name of a device: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Box<str>);

/// The text is not the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not a device id (expected 1 to 63 of a-z, 0-9, '.', '_', '-', the first a letter or digit)"
)]
pub struct DeviceIdError(String);

impl DeviceId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the device.
    pub fn to_uri(&self, domain: &TrustDomain) -> String {
        format!("spiffe://{domain}/device/{self}")
    }

    /// Reads the SPIFFE ID of a device of `domain`; anything else, however close, is `None`.
    pub fn from_uri(uri: &str, domain: &TrustDomain) -> Option<Self> {
        // The scheme and the domain are compared as bytes: SPIFFE IDs are lower-case, and a validator that folds case
        // would let two certificates name one device.
        uri.strip_prefix("spiffe://")?.strip_prefix(domain.as_str())?.strip_prefix("/device/")?.parse().ok()
    }
}

impl FromStr for DeviceId {
    type Err = DeviceIdError;

    fn from_str(text: &str) -> Result<Self, DeviceIdError> {
        if text.len() <= MAX_DEVICE_ID && is_name(text) {
            Ok(Self(text.into()))
        } else {
            Err(DeviceIdError(text.chars().take(80).collect()))
        }
    }
}

/// The name of the set of devices that one facade's CA speaks for.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Box<str>);

/// The text is not a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not a trust domain (expected a-z, 0-9, '.', '_', '-', the first a letter or digit, such as \
     fleet.example.com)"
)]
pub struct TrustDomainError(String);

impl TrustDomain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self("drayage.internal".into())
    }
}

impl FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(text: &str) -> Result<Self, TrustDomainError> {
        if text.len() <= MAX_TRUST_DOMAIN && is_name(text) {
            Ok(Self(text.into()))
        } else {
            Err(TrustDomainError(text.chars().take(80).collect()))
        }
    }
}

/// The characters that a SPIFFE trust domain may have; a subset of those of its path segments.
fn is_name(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes().next().is_some_and(alphanumeric)
        && text.bytes().all(|byte| alphanumeric(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

crate::text_newtypes!(DeviceId, TrustDomain);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_the_uri_it_writes() {
        let domain = TrustDomain::default();
        let device: DeviceId = "pump-7.north".parse().unwrap();
        let uri = device.to_uri(&domain);
        assert_eq!(uri, "spiffe://drayage.internal/device/pump-7.north");
        assert_eq!(DeviceId::from_uri(&uri, &domain), Some(device));
    }

    #[test]
    fn rejects_names_that_are_not_device_ids() {
        let long = "a".repeat(64);
        for text in ["", ".", "..", "-a", "_a", "A", "a b", "a/b", "a%2e", "é", "a\n", &long] {
            assert!(text.parse::<DeviceId>().is_err(), "{text:?}");
        }
        assert!("a".repeat(63).parse::<DeviceId>().is_ok());
    }

    #[test]
    fn rejects_uris_that_are_not_of_a_device_of_the_domain() {
        let domain = TrustDomain::default();
        for uri in [
            "",
            "spiffe://drayage.internal",
            "spiffe://drayage.internal/",
            "spiffe://drayage.internal/device",
            "spiffe://drayage.internal/device/",
            "spiffe://drayage.internal/device/a/",
            "spiffe://drayage.internal/device/a/b",
            "spiffe://drayage.internal/device/..",
            "spiffe://drayage.internal/device/%61",
            "spiffe://drayage.internal/device/a?x",
            "spiffe://drayage.internal/device/a#x",
            "spiffe://drayage.internal/Device/a",
            "spiffe://drayage.internal/workload/a",
            "spiffe://drayage.internal:1/device/a",
            "spiffe://u@drayage.internal/device/a",
            "spiffe://DRAYAGE.internal/device/a",
            "SPIFFE://drayage.internal/device/a",
            "spiffe://drayage.internal.evil/device/a",
            "spiffe://other/device/a",
            "https://drayage.internal/device/a",
        ] {
            assert_eq!(DeviceId::from_uri(uri, &domain), None, "{uri}");
        }
    }

    #[test]
    fn rejects_trust_domains_with_more_than_a_name() {
        let long = "a".repeat(256);
        for text in ["", "Fleet", "a:1", "u@a", "a/b", "a?b", "a%20", "-a", "[::1]", &long] {
            assert!(text.parse::<TrustDomain>().is_err(), "{text:?}");
        }
    }
}
