//! Where a request may go: a URL taken apart once, without user name, password or fragment. ◇
//!
//! Registries choose redirects, token realms and `Link` targets; everything they say is read here and nowhere else.

use std::fmt;
use std::net::Ipv6Addr;

use http::Uri;

const MAX_URL_BYTES: usize = 16 * 1024;

/// The scheme of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scheme {
    Http,
    Https,
}

/// A URL that a request may go to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    scheme: Scheme,
    /// Lower case; an IPv6 address without brackets.
    host: Box<str>,
    port: u16,
    path_and_query: Box<str>,
}

impl Target {
    /// Reads an absolute URL; none if it is not one that we would ever request.
    pub(super) fn parse(url: &str) -> Option<Self> {
        if url.len() > MAX_URL_BYTES {
            return None;
        }
        let without_fragment = url.split('#').next().unwrap_or_default();
        Self::of_uri(&without_fragment.parse().ok()?)
    }

    /// Reads an absolute URL.
    pub(super) fn of_uri(uri: &Uri) -> Option<Self> {
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return None,
        };
        let authority = uri.authority()?;
        // `https://registry@evil/` shows one host and means another.
        if authority.as_str().contains('@') {
            return None;
        }
        let host = authority.host().to_ascii_lowercase();
        // `Authority::port` says nothing about a port that is no port.
        let port = match authority.as_str().get(host.len()..)?.strip_prefix(':') {
            Some(port) => port.parse().ok()?,
            None => scheme.default_port(),
        };
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        if host.is_empty() || port == 0 {
            return None;
        }
        let path_and_query = uri.path_and_query().map_or("/", |path| path.as_str());
        Some(Self { scheme, host: host.into(), port, path_and_query: path_and_query.into() })
    }

    /// Reads a reference as it stands in `Location` or `realm`, relative to this URL (RFC 3986, section 5.2).
    pub(super) fn join(&self, reference: &str) -> Option<Self> {
        let reference = reference.split('#').next().unwrap_or_default();
        let first = reference.split(['/', '?']).next().unwrap_or_default();
        if first.contains(':') {
            return Self::parse(reference);
        }
        if reference.starts_with("//") {
            return Self::parse(&format!("{}:{reference}", self.scheme));
        }
        if reference.starts_with('/') {
            return Self::parse(&format!("{}{reference}", self.origin()));
        }
        if reference.starts_with('?') {
            return Self::parse(&format!("{}{}{reference}", self.origin(), self.path()));
        }
        let directory = self.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        Self::parse(&format!("{}{directory}/{reference}", self.origin()))
    }

    /// The same place with another path and query.
    pub(super) fn at(&self, path_and_query: &str) -> Self {
        Self { path_and_query: path_and_query.into(), ..self.clone() }
    }

    /// This URL with further query parameters.
    pub(super) fn with_query<'a>(&self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let query = form(pairs);
        let separator = match self.path_and_query.split_once('?') {
            None => "?",
            Some((_, "")) => "",
            Some(_) => "&",
        };
        self.at(&format!("{}{separator}{query}", self.path_and_query))
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host without port; an IPv6 address without brackets.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or("/")
    }

    /// Path and query, as they are requested.
    pub(super) fn path_and_query(&self) -> &str {
        &self.path_and_query
    }

    /// Whether both have scheme, host and port in common: only then may credentials for one go to the other.
    pub(super) fn same_origin(&self, other: &Self) -> bool {
        self.scheme == other.scheme && self.host == other.host && self.port == other.port
    }

    /// Host and, unless it is the usual one, port.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.parse::<Ipv6Addr>().is_ok() {
            format!("[{}]", self.host)
        } else {
            self.host.to_string()
        };
        if self.port == self.scheme.default_port() { host } else { format!("{host}:{}", self.port) }
    }

    fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority())
    }

    /// For the HTTP client; none only if path and query were built of characters that no URL has.
    pub(super) fn uri(&self) -> Option<Uri> {
        format!("{}{}", self.origin(), self.path_and_query).parse().ok()
    }
}

impl Scheme {
    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// Shows no path and no query: those of a CDN hold signatures.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin())
    }
}

/// `name=value&…`, percent-encoded.
pub(super) fn form<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let encoded = pairs.into_iter().map(|(name, value)| format!("{}={}", percent(name), percent(value)));
    encoded.collect::<Vec<_>>().join("&")
}

/// Percent-encodes everything but the unreserved characters of RFC 3986.
pub(super) fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push_str(&data_encoding::HEXUPPER.encode(&[byte]));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(target: &Target) -> String {
        format!("{}{}", target.origin(), target.path_and_query())
    }

    #[test]
    fn joins_references_as_registries_write_them() {
        let base = Target::parse("https://r.example:5000/v2/a/tags/list?n=2").unwrap();
        for (reference, expected) in [
            ("/v2/x?y=1", "https://r.example:5000/v2/x?y=1"),
            ("?n=2&last=b", "https://r.example:5000/v2/a/tags/list?n=2&last=b"),
            ("list?last=b", "https://r.example:5000/v2/a/tags/list?last=b"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("HTTPS://CDN.example:443/x#f", "https://cdn.example/x"),
            ("http://[::1]:80/x", "http://[::1]/x"),
            ("/x?u=https://a@b/", "https://r.example:5000/x?u=https://a@b/"),
        ] {
            assert_eq!(base.join(reference).map(|t| shown(&t)).as_deref(), Some(expected), "{reference}");
        }
    }

    #[test]
    fn rejects_urls_that_are_never_requested() {
        let base = Target::parse("https://r.example/v2/").unwrap();
        for reference in [
            "file:///etc/passwd",
            "ftp://x/y",
            "https://user@evil/",
            "https://user:pw@evil/",
            "https://",
            "https:///x",
            "https://x:0/",
            "https://x:99999/",
            "javascript:alert(1)",
            "https://a b/",
            "//u@evil/x",
            "https://x/\r\nHost: y",
        ] {
            assert_eq!(base.join(reference), None, "{reference}");
        }
        assert_eq!(Target::parse(&format!("https://x/{}", "a".repeat(MAX_URL_BYTES))), None);
    }

    #[test]
    fn tells_origins_apart_by_scheme_host_and_port() {
        let target = |url: &str| Target::parse(url).unwrap();
        assert!(target("https://r.example/a").same_origin(&target("https://R.example:443/b")));
        for other in
            ["http://r.example/", "https://r.example:8443/", "https://x.r.example/", "https://r.example./"]
        {
            assert!(!target("https://r.example/").same_origin(&target(other)), "{other}");
        }
    }

    #[test]
    fn encodes_queries() {
        let realm = Target::parse("https://a.example/token?x=1").unwrap();
        assert_eq!(
            realm.with_query([("scope", "repository:a/b:pull"), ("service", "a b&c")]).path_and_query(),
            "/token?x=1&scope=repository%3Aa%2Fb%3Apull&service=a%20b%26c"
        );
    }
}
