//! The enrollment token: everything that a new device needs to find its facade and to know it.
//!
//! `drayage1.` and base64url of JSON. It pins the root certificate and both TUF roots, so that the device can check the
//! facade before it sends the secret (no trust on first use). Whoever reads a token can enroll one device with it, so
//! `Debug` shows no secret; `Display` gives the whole token, and is called only where the operator asked for one.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::str::FromStr;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::json::{self, JsonError};
use crate::x509::Fingerprint;

const PREFIX: &str = "drayage1.";
const MAX_TOKEN_BYTES: usize = 4096;
const MAX_URL_BYTES: usize = 300;

/// Why a text is not an enrollment token.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The prefix is missing.
    #[error(
        "not an enrollment token: it does not start with {PREFIX} (ask for one with `facade device token`)"
    )]
    Prefix,
    /// Longer than a token can be.
    #[error("not an enrollment token: longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// Not base64url: usually a part was lost in copying.
    #[error("the enrollment token is damaged: not base64url (was all of it copied?)")]
    Encoding(#[source] data_encoding::DecodeError),
    /// Not the expected JSON.
    #[error("the enrollment token is damaged: its content cannot be read")]
    Content(#[source] JsonError),
}

/// One enrollment token.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollmentToken {
    /// Where the facade's device door is.
    pub url: FacadeUrl,
    /// The root certificate of the facade's CA.
    pub ca: Fingerprint,
    /// The root metadata of the images repository.
    pub images_root: RootPin,
    /// The root metadata of the director repository.
    pub director_root: RootPin,
    /// Names the token to the facade.
    pub id: TokenId,
    /// Proves the right to enroll.
    pub secret: TokenSecret,
}

/// Which root metadata to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootPin {
    /// Its version.
    pub version: NonZeroU64,
    /// The SHA-256 of its bytes.
    pub sha256: Fingerprint,
}

impl FromStr for EnrollmentToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let json = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(TokenError::Encoding)?;
        json::parse_as(&Zeroizing::new(json), MAX_TOKEN_BYTES).map_err(TokenError::Content)
    }
}

impl fmt::Display for EnrollmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = Zeroizing::new(serde_json::to_vec(self).map_err(|_| fmt::Error)?);
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&json))
    }
}

impl fmt::Debug for EnrollmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnrollmentToken({} for {})", self.id, self.url)
    }
}

/// The origin of a facade's device door: `https://host[:port]`, nothing behind it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FacadeUrl {
    host: Box<str>,
    port: u16,
}

/// The text is not the address of a facade.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not the address of a facade (expected https://HOST or https://HOST:PORT)")]
pub struct FacadeUrlError(String);

impl FacadeUrl {
    /// The host as TLS verifies it: a DNS name, or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let authority = text.strip_prefix("https://")?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (address, rest) = rest.split_once(']')?;
            let address: std::net::Ipv6Addr = address.parse().ok()?;
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
            (address.to_string(), port)
        } else {
            let (host, port) = match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            };
            if !is_host(host) {
                return None;
            }
            (host.to_ascii_lowercase(), port)
        };
        let port = match port {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
            Some(_) => return None,
            None => 443,
        };
        (port != 0).then(|| Self { host: host.into(), port })
    }
}

/// A DNS name or an IPv4 address.
pub(crate) fn is_host(text: &str) -> bool {
    if text.parse::<IpAddr>().is_ok() {
        return true;
    }
    let label = |label: &str| {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(word)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A name whose last label is a number is an address that somebody mistyped (URL standard, "ends in a number").
    let numeric = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= 253 && !numeric && text.split('.').all(label)
}

impl FromStr for FacadeUrl {
    type Err = FacadeUrlError;

    fn from_str(text: &str) -> Result<Self, FacadeUrlError> {
        let error = || FacadeUrlError(text.chars().take(120).collect());
        if text.len() > MAX_URL_BYTES {
            return Err(error());
        }
        Self::parse(text).ok_or_else(error)
    }
}

impl fmt::Display for FacadeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl fmt::Debug for FacadeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names a token; not secret. 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId([u8; 8]);

impl TokenId {
    /// Makes a new name.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }
}

impl FromStr for TokenId {
    type Err = TokenPartError;

    fn from_str(text: &str) -> Result<Self, TokenPartError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| TokenPartError)?;
        Ok(Self(bytes.try_into().map_err(|_| TokenPartError)?))
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id or the secret of a token is malformed; which text it was is not repeated, for it may be the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not the id or the secret of an enrollment token")]
pub struct TokenPartError;

/// The secret of a token: 32 random bytes, base64url as text. Neither printed nor compared; wiped when dropped.
#[derive(Clone)]
pub struct TokenSecret(Zeroizing<[u8; 32]>);

impl TokenSecret {
    /// Makes a new secret.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes)?;
        Ok(Self(bytes))
    }

    /// The text that goes into the token and, at enrollment, into the password of HTTP Basic.
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64URL_NOPAD.encode(&*self.0))
    }

    /// What the facade stores of it. A plain hash is enough for 256 random bits.
    pub fn hash(&self) -> Fingerprint {
        Fingerprint::of(&*self.0)
    }
}

impl FromStr for TokenSecret {
    type Err = TokenPartError;

    fn from_str(text: &str) -> Result<Self, TokenPartError> {
        let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TokenPartError)?);
        let bytes: [u8; 32] = bytes.as_slice().try_into().map_err(|_| TokenPartError)?;
        Ok(Self(Zeroizing::new(bytes)))
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

impl Serialize for TokenSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.expose())
    }
}

impl<'de> Deserialize<'de> for TokenSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        text.parse().map_err(serde::de::Error::custom)
    }
}

crate::serde_as_text!(TokenId, FacadeUrl);

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> EnrollmentToken {
        let pin = RootPin { version: NonZeroU64::MIN, sha256: Fingerprint::of(b"root") };
        EnrollmentToken {
            url: "https://facade.example.com:8443".parse().unwrap(),
            ca: Fingerprint::of(b"ca"),
            images_root: pin,
            director_root: pin,
            id: TokenId::generate().unwrap(),
            secret: TokenSecret::generate().unwrap(),
        }
    }

    #[test]
    fn round_trips_as_text() {
        let token = token();
        let text = token.to_string();
        assert!(text.starts_with("drayage1."));
        let read: EnrollmentToken = format!("\n {text} \n").parse().unwrap();
        assert_eq!(read.to_string(), text);
        assert_eq!(read.secret.hash(), token.secret.hash());
        assert_eq!(read.url.to_string(), "https://facade.example.com:8443");
    }

    #[test]
    fn does_not_print_its_secret() {
        let token = token();
        let secret = token.secret.expose();
        let printed = format!("{token:?} {:?}", token.secret);
        assert!(!printed.contains(secret.as_str()));
    }

    #[test]
    fn rejects_damaged_tokens() {
        let text = token().to_string();
        assert!(matches!(text[1..].parse::<EnrollmentToken>(), Err(TokenError::Prefix)));
        assert!(text[..text.len() - 3].parse::<EnrollmentToken>().is_err());
        assert!(format!("{text}=").parse::<EnrollmentToken>().is_err());
        assert!(text.replacen("drayage1", "drayage2", 1).parse::<EnrollmentToken>().is_err());
        let long = format!("drayage1.{}", "A".repeat(5000));
        assert!(matches!(long.parse::<EnrollmentToken>(), Err(TokenError::TooLong)));
        for json in ["{}", "null", r#"{"url":"http://x"}"#] {
            let text = format!("drayage1.{}", BASE64URL_NOPAD.encode(json.as_bytes()));
            assert!(matches!(text.parse::<EnrollmentToken>(), Err(TokenError::Content(_))), "{json}");
        }
    }

    #[test]
    fn reads_addresses_of_facades() {
        for (text, authority, host) in [
            ("https://f.example.com", "f.example.com:443", "f.example.com"),
            ("https://F.example.com:8443/", "f.example.com:8443", "f.example.com"),
            ("https://127.0.0.1:8443", "127.0.0.1:8443", "127.0.0.1"),
            ("https://[::1]:8443", "[::1]:8443", "::1"),
        ] {
            let url: FacadeUrl = text.parse().unwrap();
            assert_eq!((url.authority().as_str(), url.host()), (authority, host), "{text}");
        }
    }

    #[test]
    fn rejects_addresses_with_more_or_less_than_an_origin() {
        for text in [
            "",
            "f.example.com",
            "http://f.example.com",
            "https://",
            "https://u:p@f.example.com",
            "https://f.example.com/path",
            "https://f.example.com?x",
            "https://f.example.com#x",
            "https://f.example.com:0",
            "https://f.example.com:99999",
            "https://f.example.com:+1",
            "https://f.example.com:",
            "https://f..example.com",
            "https://-f.example.com",
            "https://1.2.3.4.5",
            "https://256.1.1.1",
            "https://[::1",
            "https://[::1]8443",
            "https://f.example.com\r\nx:y",
        ] {
            assert!(text.parse::<FacadeUrl>().is_err(), "{text:?}");
        }
    }
}
