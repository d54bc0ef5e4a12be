//! The HTTP proxy between the device and the facade.

use std::fmt;

use data_encoding::BASE64;

/// A proxy that is asked with `CONNECT`; TLS runs inside, so it sees nothing but the address of the facade.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    authorization: Option<String>,
    exempt: Vec<String>,
}

impl Proxy {
    /// The host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The value of `Proxy-Authorization`, where the proxy wants a user; a secret.
    pub fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    /// The same, but not for the hosts of a `NO_PROXY` list.
    pub(super) fn except(mut self, list: &str) -> Self {
        self.exempt = list
            .split(',')
            .map(|entry| entry.trim().trim_start_matches('.').to_ascii_lowercase())
            .filter(|entry| !entry.is_empty())
            .collect();
        self
    }

    /// Whether this host is reached through the proxy. An entry exempts a host and all below it; `*` exempts all.
    pub fn is_for(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let below =
            |entry: &str| host.strip_suffix(entry).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        !self.exempt.iter().any(|entry| entry == "*" || below(entry))
    }

    /// Reads the setting: a URL, or `none` where the environment names a proxy that is not to be used.
    pub(super) fn parse_setting(text: &str) -> Result<Option<Self>, String> {
        if text == "none" {
            return Ok(None);
        }
        Self::parse(text).map(Some).ok_or_else(|| {
            // The text may hold a password, so it is not repeated.
            "is not a proxy (expected http://[USER:PASSWORD@]HOST:PORT, or none)".to_owned()
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://")?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, rest),
        };
        let (host, port) = authority.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'_');
        let port: u16 = port.parse().ok()?;
        if host.is_empty() || port == 0 || !host.bytes().all(plain) {
            return None;
        }
        let authorization = match user {
            Some(user) => Some(format!("Basic {}", BASE64.encode(&percent_decode(user)?))),
            None => None,
        };
        Some(Self { host: host.to_owned(), port, authorization, exempt: Vec::new() })
    }
}

/// Passwords in URLs are percent-encoded (RFC 3986, 3.2.1).
fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let pair = [bytes.next()?, bytes.next()?];
            decoded.extend(data_encoding::HEXUPPER_PERMISSIVE.decode(&pair).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proxies_with_and_without_a_user() {
        let proxy = Proxy::parse("http://u:p%40ss@proxy.example:3128/").unwrap();
        assert_eq!((proxy.host(), proxy.port()), ("proxy.example", 3128));
        assert_eq!(proxy.authorization(), Some("Basic dTpwQHNz"));
        assert_eq!(Proxy::parse("http://[::1]:3128").unwrap().host(), "::1");
    }

    #[test]
    fn leaves_out_the_hosts_of_no_proxy() {
        let proxy = Proxy::parse("http://proxy:1").unwrap().except("127.0.0.1, .corp.example,");
        for (host, through) in [
            ("127.0.0.1", false),
            ("facade.corp.example", false),
            ("corp.example", false),
            ("notcorp.example", true),
            ("facade.example", true),
        ] {
            assert_eq!(proxy.is_for(host), through, "{host}");
        }
        assert!(!Proxy::parse("http://proxy:1").unwrap().except("*").is_for("x"));
    }

    #[test]
    fn rejects_what_is_not_a_proxy_without_repeating_it() {
        for text in ["", "socks5://x:1", "http://", "http://x", "http://x:0", "http://a\r\nb:1"] {
            assert!(Proxy::parse(text).is_none(), "{text:?}");
        }
        let error = Proxy::parse_setting("http://u:hunter2@x").unwrap_err();
        assert!(!error.contains("hunter2"));
    }
}
