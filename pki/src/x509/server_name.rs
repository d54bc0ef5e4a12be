//! The names that the facade's own certificate carries.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

use crate::wire;

/// A name that a server certificate carries: a DNS name or an IP address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServerName {
    /// A DNS name, lower-case.
    Dns(Box<str>),
    /// An address.
    Ip(IpAddr),
}

/// The text is not a name for a server certificate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a host name or an IP address")]
pub struct ServerNameError(String);

impl FromStr for ServerName {
    type Err = ServerNameError;

    fn from_str(text: &str) -> Result<Self, ServerNameError> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self::Ip(address));
        }
        if wire::is_host(text) {
            return Ok(Self::Dns(text.to_ascii_lowercase().into()));
        }
        Err(ServerNameError(text.chars().take(80).collect()))
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_addresses() {
        for (text, shown) in [
            ("Facade.example.com", "facade.example.com"),
            ("localhost", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(text.parse::<ServerName>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn rejects_what_no_certificate_should_name() {
        for text in ["", "*.example.com", "a b", "a:8443", "https://a", "-a", "a..b", "1.2.3", "a\0b"] {
            assert!(text.parse::<ServerName>().is_err(), "{text:?}");
        }
    }
}
