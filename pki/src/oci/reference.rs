//! Names of registries, repositories, tags and artifacts, parsed as the docker CLI parses them.
//!
//! The rules are those of `distribution/reference` (`normalize.go`, `reference.go`), ASCII only. Docker Hub's names all
//! become `docker.io`, and its official images get their `library/` prefix.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use thiserror::Error;

use crate::digest::{Digest, DigestError};

const MAX_NAME_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// Every host name under which people know Docker Hub.
const DOCKER_HUB_NAMES: [&str; 8] = [
    "docker.io",
    "index.docker.io",
    "registry-1.docker.io",
    "registry.docker.io",
    "registry.hub.docker.com",
    "hub.docker.com",
    "www.docker.com",
    "docker.com",
];

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("the name is empty (expected for example ghcr.io/owner/app)")]
    Empty,
    /// Not a registry host.
    #[error("{0:?} is not a registry host (expected for example ghcr.io or registry.example.com:5000)")]
    Host(String),
    /// Not a repository name.
    #[error(
        "{0:?} is not a repository name (lower-case letters, digits and . _ - between slashes, for example team/app)"
    )]
    Repository(String),
    /// Not a tag.
    #[error("{0:?} is not a tag (letters, digits, . _ -, at most 128, for example v1.2.3)")]
    Tag(String),
    /// Not a digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The name is too long.
    #[error("the name is longer than {MAX_NAME_BYTES} bytes")]
    TooLong,
    /// A part is missing.
    #[error("{0:?} has no digest (expected REPOSITORY@sha256:…)")]
    NoDigest(String),
    /// A part is there that must not be.
    #[error("{0:?} must be a repository without tag or digest")]
    NotBare(String),
    /// A URL that does not lead to a registry.
    #[error("{0:?} does not name a registry (paste its host, for example ghcr.io)")]
    Url(String),
}

/// At most 120 characters of a hostile text, for an error message.
fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}

/// The host, and port if any, that identifies a registry; lower case where docker can tell, Docker Hub always `docker.io`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryHost(Box<str>);

impl RegistryHost {
    /// Docker Hub.
    pub fn docker_hub() -> Self {
        Self("docker.io".into())
    }

    /// Whether this is Docker Hub.
    pub fn is_docker_hub(&self) -> bool {
        &*self.0 == "docker.io"
    }

    /// The name as text, `host` or `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The `host` or `host:port` that serves the distribution API.
    pub fn api_authority(&self) -> &str {
        if self.is_docker_hub() { "registry-1.docker.io" } else { &self.0 }
    }

    /// The host without port; an IPv6 address without brackets.
    pub fn domain(&self) -> &str {
        match self.0.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => self.0.split_once(':').map_or(&*self.0, |(domain, _)| domain),
        }
    }

    /// Reduces what people paste — a host, a browser URL, an image reference — to the registry host.
    pub fn from_pasted(pasted: &str) -> Result<Self, ReferenceError> {
        let text = pasted.trim();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let url_error = || ReferenceError::Url(shown(text));
        let rest = match text.split_once("://") {
            Some(("http" | "https" | "HTTP" | "HTTPS" | "docker" | "oci", rest)) => rest,
            Some(_) => return Err(url_error()),
            None => text,
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let host = host.strip_suffix('.').unwrap_or(host);
        let host = if text.contains("://") { without_default_port(text, host) } else { host };
        let path = rest.get(authority.len()..).unwrap_or_default();
        if matches!(host.to_ascii_lowercase().as_str(), "github.com" | "www.github.com") {
            // A package page of GitHub shows images of GHCR; any other page names no registry.
            return if path.contains("/packages/") || path.contains("/pkgs/container/") {
                Ok(Self("ghcr.io".into()))
            } else {
                Err(url_error())
            };
        }
        host.parse()
    }
}

/// What was pasted in place of a registry, without the user and the password that a URL may carry, and whether there was
/// a password: it must not get into logs with the rest.
pub fn without_user_info(pasted: &str) -> (String, bool) {
    let start = pasted.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = pasted.split_at(start);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, host)) => {
            let path = rest.get(authority.len()..).unwrap_or_default();
            (format!("{scheme}{host}{path}"), user.contains(':'))
        }
        None => (pasted.to_owned(), false),
    }
}

fn without_default_port<'a>(url: &str, host: &'a str) -> &'a str {
    let port =
        if url.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("http:")) { ":80" } else { ":443" };
    host.strip_suffix(port).unwrap_or(host)
}

impl FromStr for RegistryHost {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error = || ReferenceError::Host(shown(text));
        let lower = text.to_ascii_lowercase();
        let (domain, port) = split_port(&lower).ok_or_else(error)?;
        if !is_domain(domain) || port.is_some_and(|port| !is_port(port)) || lower.len() > MAX_NAME_BYTES {
            return Err(error());
        }
        if port.is_none_or(|port| port == "443") && DOCKER_HUB_NAMES.contains(&domain) {
            return Ok(Self::docker_hub());
        }
        if is_host_component(&lower) {
            return Ok(Self(lower.into()));
        }
        // Without dot or port only an upper-case letter makes docker take it for a host, so the letter stays.
        if is_host_component(text) { Ok(Self(text.into())) } else { Err(error()) }
    }
}

fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    if authority.starts_with('[') {
        let end = authority.find(']')?;
        let (address, rest) = authority.split_at_checked(end + 1)?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((address, Some(port))),
            None => rest.is_empty().then_some((address, None)),
        };
    }
    Some(match authority.split_once(':') {
        Some((domain, port)) => (domain, Some(port)),
        None => (authority, None),
    })
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_domain(domain: &str) -> bool {
    if let Some(address) = domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    domain.split('.').all(|label| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        !label.is_empty() && label.len() <= 63 && inner && !label.starts_with('-') && !label.ends_with('-')
    })
}

/// The name of a repository within its registry, such as `library/nginx`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Box<str>);

impl RepositoryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_NAME_BYTES {
            return Err(ReferenceError::TooLong);
        }
        if text.is_empty() || !text.split('/').all(is_path_component) {
            return Err(ReferenceError::Repository(shown(text)));
        }
        Ok(Self(text.into()))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (distribution specification, "Pulling manifests").
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separator = String::new();
    let mut started = false;
    for byte in component.bytes() {
        if alphanumeric(byte) {
            if !started && !separator.is_empty() {
                return false;
            }
            if !matches!(separator.as_str(), "" | "." | "_" | "__")
                && separator.bytes().any(|byte| byte != b'-')
            {
                return false;
            }
            separator.clear();
            started = true;
        } else if matches!(byte, b'.' | b'_' | b'-') {
            separator.push(char::from(byte));
        } else {
            return false;
        }
    }
    started && separator.is_empty()
}

/// A tag: a movable name, for finding, never for shipping.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Box<str>);

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let first = text.bytes().next().is_some_and(word);
        let rest = text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
        if first && rest && text.len() <= MAX_TAG_BYTES {
            Ok(Self(text.into()))
        } else {
            Err(ReferenceError::Tag(shown(text)))
        }
    }
}

/// A repository of a registry, such as `ghcr.io/owner/app`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    host: RegistryHost,
    name: RepositoryName,
}

impl Repository {
    /// Joins host and name; on Docker Hub a name without a slash is an official image.
    pub fn new(host: RegistryHost, name: RepositoryName) -> Self {
        if host.is_docker_hub() && !name.as_str().contains('/') {
            let official = format!("library/{}", name.as_str());
            return Self { host, name: RepositoryName(official.into()) };
        }
        Self { host, name }
    }

    /// The registry.
    pub fn host(&self) -> &RegistryHost {
        &self.host
    }

    /// The name within the registry.
    pub fn name(&self) -> &RepositoryName {
        &self.name
    }
}

impl Repository {
    /// The repository that a pasted reference or page shows, if it shows one: `ghcr.io/owner/app`, a page of Docker Hub
    /// (`hub.docker.com/r/owner/app`, `hub.docker.com/_/nginx`), of Quay, or of a package of GitHub. A page of any other
    /// kind shows none.
    pub fn from_pasted(pasted: &str) -> Result<Option<Self>, ReferenceError> {
        let host = RegistryHost::from_pasted(pasted)?;
        let text = pasted.trim();
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = path.split_once('/').unwrap_or((path, ""));
        let path = path.trim_matches('/');
        if path.is_empty() {
            return Ok(None);
        }
        let shown = match page_of(&host, authority, path) {
            Page::Repository(name) => name,
            Page::Other => return Ok(None),
            // A reference may have a tag or digest behind it.
            Page::Reference => match format!("{host}/{path}").parse::<Reference>() {
                Ok(reference) => return Ok(Some(reference.repository)),
                Err(_) if text.contains("://") => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        Ok(shown.parse().ok().map(|name| Self::new(host, name)))
    }
}

/// What a path at a registry's host shows.
enum Page {
    Repository(String),
    Reference,
    Other,
}

fn page_of(host: &RegistryHost, authority: &str, path: &str) -> Page {
    let segments: Vec<&str> = path.split('/').collect();
    let github = authority.to_ascii_lowercase().ends_with("github.com");
    let two = |owner: &str, name: &str| Page::Repository(format!("{owner}/{}", name.replace("%2F", "/")));
    match segments.as_slice() {
        ["orgs" | "users", owner, "packages", "container", "package", name, ..]
        | ["orgs" | "users", owner, "packages", "container", name, ..]
        | [owner, _, "pkgs", "container", name, ..]
            if github =>
        {
            two(&owner.to_ascii_lowercase(), name)
        }
        ["_", name, ..] if host.is_docker_hub() => Page::Repository((*name).to_owned()),
        ["r" | "repository", owner, name, ..] if host.is_docker_hub() && *owner != "docker" => {
            two(owner, name)
        }
        ["repository", "docker", owner, name, ..] if host.is_docker_hub() => two(owner, name),
        ["repository", owner, name, ..] if host.as_str() == "quay.io" => two(owner, name),
        ["v1" | "v2", ..] => Page::Other,
        _ if github => Page::Other,
        _ => Page::Reference,
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let reference: Reference = text.parse()?;
        if reference.tag.is_some() || reference.digest.is_some() {
            return Err(ReferenceError::NotBare(shown(text)));
        }
        Ok(reference.repository)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

/// A docker reference: a repository with a tag, a digest, both or neither.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The repository.
    pub repository: Repository,
    /// The tag after `:`.
    pub tag: Option<Tag>,
    /// The digest after `@`.
    pub digest: Option<Digest>,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        // A bare image ID is not a name (distribution/reference, `ParseNormalizedNamed`).
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::Repository(shown(text)));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.parse()?)),
            _ => (rest, None),
        };
        let (host, path) = split_host(name);
        let host = host.map_or(Ok(RegistryHost::docker_hub()), str::parse)?;
        let repository = Repository::new(host, path.parse()?);
        if repository.host.0.len() + 1 + repository.name.0.len() > MAX_NAME_BYTES {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self { repository, tag, digest })
    }
}

/// What before the first slash is a host, and what is part of the path.
fn split_host(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, path)) if is_host_component(first) => (Some(first), path),
        _ => (None, name),
    }
}

/// `splitDockerDomain` of distribution/reference: whether a first component is a host.
fn is_host_component(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The name of a signed artifact, `REPOSITORY@sha256:…`; also its target path in the TUF repositories.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArtifactName {
    repository: Repository,
    digest: Digest,
}

impl ArtifactName {
    /// Pins a repository to a digest.
    pub fn new(repository: Repository, digest: Digest) -> Self {
        Self { repository, digest }
    }

    /// Where the artifact comes from.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The digest of its manifest or index.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl FromStr for ArtifactName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let reference: Reference = text.parse()?;
        let digest = reference.digest.ok_or_else(|| ReferenceError::NoDigest(shown(text)))?;
        Ok(Self { repository: reference.repository, digest })
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.digest)
    }
}

crate::text_newtypes!(RegistryHost, RepositoryName, Tag);
crate::text_forms!(Repository, ArtifactName);

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn parses_references_as_docker_does() {
        for (text, expected) in [
            ("nginx", "docker.io/library/nginx"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("docker.io/nginx", "docker.io/library/nginx"),
            ("index.docker.io/nginx", "docker.io/library/nginx"),
            ("registry-1.docker.io/library/nginx", "docker.io/library/nginx"),
            ("team/app", "docker.io/team/app"),
            ("ghcr.io/nginx", "ghcr.io/nginx"),
            ("ghcr.io/o/r:v1", "ghcr.io/o/r:v1"),
            ("localhost/app", "localhost/app"),
            ("localhost", "docker.io/library/localhost"),
            ("example.com", "docker.io/library/example.com"),
            ("index.docker.io/team/app", "docker.io/team/app"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("127.0.0.1:5000/team/app:x", "127.0.0.1:5000/team/app:x"),
            ("[::1]:5000/app", "[::1]:5000/app"),
            ("Foo/bar", "Foo/bar"),
            ("GHCR.io/o/r", "ghcr.io/o/r"),
            ("a/b/c/d", "docker.io/a/b/c/d"),
            ("my__app/x.y-z--q", "docker.io/my__app/x.y-z--q"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), expected, "{text}");
        }
        // The longest there are: 255 bytes of name, the host with it, and 128 of tag.
        let name = format!("ghcr.io/{}", "a".repeat(255 - "ghcr.io/".len()));
        assert!(name.parse::<Reference>().is_ok());
        assert_eq!(format!("{name}a").parse::<Reference>(), Err(ReferenceError::TooLong));
        assert!(format!("a:{}", "_".repeat(128)).parse::<Reference>().is_ok());
        for tag in ["_".repeat(129), ".a".into(), "-a".into(), "a+b".into()] {
            assert!(format!("a:{tag}").parse::<Reference>().is_err(), "{tag}");
        }
        let both = format!("ghcr.io/o/r:v1@{DIGEST}").parse::<Reference>().unwrap();
        assert_eq!(both.to_string(), format!("ghcr.io/o/r:v1@{DIGEST}"));
    }

    #[test]
    fn rejects_references_that_docker_rejects() {
        let id = "a".repeat(64);
        let long = "a".repeat(260);
        for text in [
            "",
            "nginx:",
            ":tag",
            "Nginx",
            "team/App",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "a._b",
            "-a",
            "a-",
            ".a",
            "busybox:é",
            "busybox:тег",
            "ghcr.io/o/r@sha256:ABC",
            "x@md5:aa",
            "a b",
            "http://ghcr.io/x",
            "ghcr.io:x/y",
            "ghcr.io:99999/y",
            "ghcr.io:0/y",
            "[::g]:1/x",
            &id,
            &long,
            "a/../b",
            "a%2fb",
            "-x.io/a",
            "x-.io/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn takes_user_and_password_out_of_what_was_pasted() {
        for (pasted, expected) in [
            ("https://user:pw@ghcr.io/foo", ("https://ghcr.io/foo", true)),
            ("user:p@w@ghcr.io:5000", ("ghcr.io:5000", true)),
            ("https://user@ghcr.io", ("https://ghcr.io", false)),
            ("ghcr.io/foo@sha256:ab", ("ghcr.io/foo@sha256:ab", false)),
        ] {
            assert_eq!(without_user_info(pasted), (expected.0.to_owned(), expected.1), "{pasted}");
        }
    }

    #[test]
    fn reduces_pasted_urls_to_the_registry_host() {
        for (pasted, expected) in [
            ("ghcr.io", "ghcr.io"),
            (" https://ghcr.io/ ", "ghcr.io"),
            ("https://quay.io/repository/org/app?tab=tags", "quay.io"),
            ("https://user:pw@registry.example.com:5000/v2/", "registry.example.com:5000"),
            ("HTTPS://Registry.Example.COM:443/", "registry.example.com"),
            ("http://registry.example.com:80", "registry.example.com"),
            ("https://github.com/orgs/o/packages/container/p", "ghcr.io"),
            ("https://github.com/o/r/pkgs/container/p", "ghcr.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("https://hub.docker.com/_/nginx", "docker.io"),
            ("hub.docker.com/r/ns/repo", "docker.io"),
            ("https://www.docker.com/", "docker.io"),
            ("registry.hub.docker.com", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("[::1]:5000", "[::1]:5000"),
            ("example.com.", "example.com"),
        ] {
            assert_eq!(RegistryHost::from_pasted(pasted).unwrap().as_str(), expected, "{pasted}");
        }
        for pasted in [
            "",
            "  ",
            "ftp://x",
            "https://",
            "https://github.com/o/r",
            "ex ample.com",
            "a_b.com",
            "https://:5000",
            // Names beyond ASCII are pasted as punycode: two that look alike are two registries.
            "https://b\u{fc}cher.example/",
        ] {
            assert!(RegistryHost::from_pasted(pasted).is_err(), "{pasted}");
        }
    }

    #[test]
    fn docker_hub_talks_to_the_host_that_serves_the_api() {
        assert_eq!(RegistryHost::docker_hub().api_authority(), "registry-1.docker.io");
        assert_eq!("ghcr.io".parse::<RegistryHost>().unwrap().api_authority(), "ghcr.io");
        assert_eq!("[::1]:5000".parse::<RegistryHost>().unwrap().domain(), "::1");
    }

    #[test]
    fn artifact_names_round_trip_and_need_a_digest() {
        let name = format!("127.0.0.1:5000/team/app@{DIGEST}");
        assert_eq!(name.parse::<ArtifactName>().unwrap().to_string(), name);
        assert!("ghcr.io/o/r:v1".parse::<ArtifactName>().is_err());
        assert!(format!("ghcr.io/o/r@{DIGEST}").parse::<Repository>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_parses_to_the_same(text in "[a-zA-Z0-9._:/@-]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }

    #[test]
    fn finds_the_repository_of_a_pasted_page() {
        for (pasted, expected) in [
            ("ghcr.io", None),
            ("https://ghcr.io/", None),
            ("ghcr.io/owner/app", Some("ghcr.io/owner/app")),
            ("ghcr.io/owner/app:v1", Some("ghcr.io/owner/app")),
            ("127.0.0.1:5000/team/app", Some("127.0.0.1:5000/team/app")),
            ("docker.io/nginx", Some("docker.io/library/nginx")),
            ("https://hub.docker.com/_/nginx", Some("docker.io/library/nginx")),
            ("https://hub.docker.com/r/grafana/grafana/tags?page=2", Some("docker.io/grafana/grafana")),
            ("https://hub.docker.com/repository/docker/me/app/general", Some("docker.io/me/app")),
            ("https://index.docker.io/v1/", None),
            ("https://quay.io/repository/coreos/etcd?tab=tags", Some("quay.io/coreos/etcd")),
            ("https://github.com/orgs/Octo/packages/container/package/app", Some("ghcr.io/octo/app")),
            ("https://github.com/orgs/octo/packages/container/a%2Fb", Some("ghcr.io/octo/a/b")),
            ("https://github.com/octo/repo/pkgs/container/app/123?tag=v1", Some("ghcr.io/octo/app")),
            ("https://harbor.example/harbor/projects/1/Repositories", None),
        ] {
            let found = Repository::from_pasted(pasted).unwrap();
            assert_eq!(found.as_ref().map(ToString::to_string).as_deref(), expected, "{pasted}");
        }
        for pasted in ["", "ghcr.io/UPPER", "https://github.com/octo/app"] {
            assert!(Repository::from_pasted(pasted).is_err(), "{pasted}");
        }
    }
}
