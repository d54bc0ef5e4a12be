//! What a request on the device door asks for: method, path and query → [`Action`], as pure data.
//!
//! Nothing is decided here about who may do it. A path has one reading: it is decoded once, and whatever would still
//! mean something else to a second reader (an encoded slash, a dot segment, a stray `%`) is refused.

use std::borrow::Cow;

use http::Method;
use pki::digest::Digest;
use pki::oci::{RegistryHost, Repository, RepositoryName};
use thiserror::Error;

use crate::catalog::closure::Kind;

/// What a device asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `/v2/`: is this a registry, and am I welcome?
    Ping,
    /// Content of a repository.
    Content(ContentAction),
    /// A file of signed metadata.
    Metadata {
        /// Of which of the two repositories.
        repository: MetadataRepository,
        /// Its name, such as `3.root.json`; a plain file name.
        file: Box<str>,
    },
    /// EST: the certificates of the CA.
    CaCerts,
    /// EST: a first certificate, for a one-time token.
    Enroll,
    /// EST: the next certificate.
    Reenroll,
    /// EST: what a request for a certificate should contain.
    CsrAttrs,
    /// What the device runs.
    Report,
    /// Is there something newer than this for me?
    Wait {
        /// The version that the device has seen.
        since: u64,
    },
}

/// A request for content by digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentAction {
    /// Under which path it was asked for.
    pub kind: Kind,
    /// The repository.
    pub repository: Repository,
    /// The content.
    pub digest: Digest,
    /// The registry as the `ns` parameter named it, to be echoed; absent in the path form.
    pub namespace: Option<RegistryHost>,
}

/// The two repositories of signed metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetadataRepository {
    /// Which artifacts exist.
    Images,
    /// What one device should have.
    Director,
}

/// Why a request asks for nothing that exists here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RouteError {
    /// Nothing is at this path.
    #[error("there is nothing at this path")]
    NotFound,
    /// Something is there, but not for this method.
    #[error("this method is not allowed here (allowed: {allow})")]
    Method {
        /// The methods that are.
        allow: &'static str,
    },
    /// A tag stands where a digest must.
    #[error("tags are not served: use a digest (NAME@sha256:HEX)")]
    Tag,
    /// What stands where a digest must is neither digest nor tag.
    #[error("{0}")]
    Digest(String),
    /// The repository or registry is not a name.
    #[error("{0}")]
    Name(String),
    /// A part of the distribution API that this door does not have.
    #[error("the facade serves manifests and blobs by digest only")]
    Unsupported,
    /// The query does not mean one thing.
    #[error("the query parameter {0} is not valid")]
    Query(&'static str),
}

/// Reads a request.
pub fn route(method: &Method, path: &str, query: Option<&str>) -> Result<Action, RouteError> {
    match path.strip_prefix("/v2") {
        Some("" | "/") => allowed(method, &[Method::GET, Method::HEAD], "GET, HEAD", Action::Ping),
        Some(rest) if rest.starts_with('/') => distribution(method, rest, query),
        _ => elsewhere(method, path, query),
    }
}

fn elsewhere(method: &Method, path: &str, query: Option<&str>) -> Result<Action, RouteError> {
    let (get, post, put) = ([Method::GET], [Method::POST], [Method::PUT]);
    match path {
        "/.well-known/est/cacerts" => allowed(method, &get, "GET", Action::CaCerts),
        "/.well-known/est/simpleenroll" => allowed(method, &post, "POST", Action::Enroll),
        "/.well-known/est/simplereenroll" => allowed(method, &post, "POST", Action::Reenroll),
        "/.well-known/est/csrattrs" => allowed(method, &get, "GET", Action::CsrAttrs),
        "/v1/report" => allowed(method, &put, "PUT", Action::Report),
        "/v1/wait" => allowed(method, &get, "GET", Action::Wait { since: since(query)? }),
        _ => allowed(method, &get, "GET", metadata(path)?),
    }
}

fn allowed(
    method: &Method,
    methods: &[Method],
    allow: &'static str,
    action: Action,
) -> Result<Action, RouteError> {
    if methods.contains(method) {
        Ok(action)
    } else {
        Err(RouteError::Method { allow })
    }
}

fn metadata(path: &str) -> Result<Action, RouteError> {
    let rest = path.strip_prefix("/metadata/").ok_or(RouteError::NotFound)?;
    let (repository, file) = match rest.split_once('/') {
        Some(("images", file)) => (MetadataRepository::Images, file),
        Some(("director", file)) => (MetadataRepository::Director, file),
        _ => return Err(RouteError::NotFound),
    };
    let plain = file
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    // Names of delegated roles become file names somewhere: no directories, no hidden files (python-tuf PYSEC-2021-376).
    if !plain || file.starts_with('.') || file.strip_suffix(".json").is_none() || file.len() > 255 {
        return Err(RouteError::NotFound);
    }
    Ok(Action::Metadata {
        repository,
        file: file.into(),
    })
}

fn since(query: Option<&str>) -> Result<u64, RouteError> {
    match parameter(query, "since")? {
        None => Ok(0),
        Some(text) => text.parse().map_err(|_| RouteError::Query("since")),
    }
}

/// `/<name>/manifests/<digest>` and `/<name>/blobs/<digest>`; `rest` begins with the slash.
fn distribution(method: &Method, rest: &str, query: Option<&str>) -> Result<Action, RouteError> {
    if ![Method::GET, Method::HEAD].contains(method) {
        return Err(RouteError::Method { allow: "GET, HEAD" });
    }
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    let (before, reference) = rest.rsplit_once('/').ok_or(RouteError::Unsupported)?;
    let (name, kind) = match before.rsplit_once('/') {
        Some((name, "manifests")) => (name, Kind::Document),
        Some((name, "blobs")) => (name, Kind::Blob),
        _ => return Err(RouteError::Unsupported),
    };
    let digest = digest(kind, &decoded(reference).ok_or(RouteError::NotFound)?)?;
    let name = decoded(name).ok_or_else(|| RouteError::Name("the repository name is not valid".into()))?;
    let (repository, namespace) = repository(&name, parameter(query, "ns")?)?;
    Ok(Action::Content(ContentAction {
        kind,
        repository,
        digest,
        namespace,
    }))
}

fn digest(kind: Kind, text: &str) -> Result<Digest, RouteError> {
    text.parse()
        .map_err(|error: pki::digest::DigestError| match kind {
            Kind::Document if text.parse::<pki::oci::Tag>().is_ok() => RouteError::Tag,
            Kind::Document | Kind::Blob => RouteError::Digest(error.to_string()),
        })
}

/// The repository: its registry comes from `ns` (containerd's mirror convention) or leads the path; a path without
/// registry means Docker Hub, as it does everywhere in docker's world.
fn repository(name: &str, ns: Option<String>) -> Result<(Repository, Option<RegistryHost>), RouteError> {
    let invalid = |error: pki::oci::reference::ReferenceError| RouteError::Name(error.to_string());
    let Some(ns) = ns else {
        return Ok((with_port(name).parse().map_err(invalid)?, None));
    };
    let host: RegistryHost = ns.parse().map_err(invalid)?;
    let leads = |first: &str| first.parse().is_ok_and(|named: RegistryHost| named == host);
    let name = match name.split_once('/') {
        // `override_path` in a hosts.toml sends both forms at once.
        Some((first, path)) if leads(first) => path,
        _ => name,
    };
    let name: RepositoryName = name.parse().map_err(invalid)?;
    Ok((Repository::new(host.clone(), name), Some(host)))
}

/// `host__5000/path` as `host:5000/path`: docker's and skopeo's references cannot have a colon in a path, and a host name
/// cannot have an underscore.
fn with_port(name: &str) -> Cow<'_, str> {
    let Some((host, port, path)) = name.split_once('/').and_then(|(first, path)| {
        let (host, port) = first.split_once("__")?;
        Some((host, port, path))
    }) else {
        return Cow::Borrowed(name);
    };
    let is_port = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    if host.is_empty() || !is_port {
        return Cow::Borrowed(name);
    }
    Cow::Owned(format!("{host}:{port}/{path}"))
}

/// The value of a query parameter; twice the same parameter would mean two things to two readers.
fn parameter(query: Option<&str>, name: &'static str) -> Result<Option<String>, RouteError> {
    let mut found = None;
    for pair in query.unwrap_or_default().split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key != name {
            continue;
        }
        let value = decoded(value).ok_or(RouteError::Query(name))?;
        if found.replace(value).is_some() {
            return Err(RouteError::Query(name));
        }
    }
    Ok(found)
}

/// Decodes the percent-encoding of what may stand encoded in a name: `:`, `[`, `]` and the like, never a slash, a dot, a
/// percent sign or anything that is not printable ASCII.
fn decoded(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut plain = String::with_capacity(text.len());
    let mut pieces = text.split('%');
    plain.push_str(pieces.next()?);
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        let digits = code.bytes().all(|byte| byte.is_ascii_hexdigit());
        let byte = u8::from_str_radix(code, 16).ok().filter(|_| digits)?;
        if !byte.is_ascii_graphic() || matches!(byte, b'/' | b'\\' | b'.' | b'%') {
            return None;
        }
        plain.push(char::from(byte));
        plain.push_str(rest);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(target: &str) -> Result<Action, RouteError> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        route(&Method::GET, path, query)
    }

    fn content(target: &str) -> (Kind, String, Option<String>) {
        match get(&target.replace("DIGEST", DIGEST)) {
            Ok(Action::Content(action)) => {
                assert_eq!(action.digest.to_string(), DIGEST);
                let namespace = action.namespace.map(|host| host.to_string());
                (action.kind, action.repository.to_string(), namespace)
            }
            other => panic!("{target}: {other:?}"),
        }
    }

    #[test]
    fn reads_both_forms_of_content_requests() {
        for (target, kind, repository, namespace) in [
            ("/v2/ghcr.io/o/r/blobs/DIGEST", Kind::Blob, "ghcr.io/o/r", None),
            (
                "/v2/ghcr.io/o/r/manifests/DIGEST",
                Kind::Document,
                "ghcr.io/o/r",
                None,
            ),
            (
                "/v2/127.0.0.1:5000/team/app/manifests/DIGEST",
                Kind::Document,
                "127.0.0.1:5000/team/app",
                None,
            ),
            (
                "/v2/127.0.0.1__5000/team/app/blobs/DIGEST",
                Kind::Blob,
                "127.0.0.1:5000/team/app",
                None,
            ),
            (
                "/v2/library/my__5000/app/blobs/DIGEST",
                Kind::Blob,
                "docker.io/library/my__5000/app",
                None,
            ),
            (
                "/v2/127.0.0.1%3A5000/team/app/blobs/DIGEST",
                Kind::Blob,
                "127.0.0.1:5000/team/app",
                None,
            ),
            (
                "/v2/[::1]:5000/app/blobs/DIGEST",
                Kind::Blob,
                "[::1]:5000/app",
                None,
            ),
            (
                "/v2/%5B::1%5d:5000/app/blobs/DIGEST",
                Kind::Blob,
                "[::1]:5000/app",
                None,
            ),
            (
                "/v2/docker.io/nginx/blobs/DIGEST",
                Kind::Blob,
                "docker.io/library/nginx",
                None,
            ),
            (
                "/v2/registry-1.docker.io/a/b/blobs/DIGEST",
                Kind::Blob,
                "docker.io/a/b",
                None,
            ),
            (
                "/v2/library/nginx/blobs/DIGEST",
                Kind::Blob,
                "docker.io/library/nginx",
                None,
            ),
            (
                "/v2/library/nginx/blobs/DIGEST?ns=docker.io",
                Kind::Blob,
                "docker.io/library/nginx",
                Some("docker.io"),
            ),
            (
                "/v2/o/r/manifests/DIGEST?x=1&ns=ghcr.io",
                Kind::Document,
                "ghcr.io/o/r",
                Some("ghcr.io"),
            ),
            (
                "/v2/o/r/blobs/DIGEST?ns=localhost%3A5000",
                Kind::Blob,
                "localhost:5000/o/r",
                Some("localhost:5000"),
            ),
            (
                "/v2/ghcr.io/o/r/blobs/DIGEST?ns=ghcr.io",
                Kind::Blob,
                "ghcr.io/o/r",
                Some("ghcr.io"),
            ),
            (
                "/v2/o/blobs/manifests/DIGEST?ns=ghcr.io",
                Kind::Document,
                "ghcr.io/o/blobs",
                Some("ghcr.io"),
            ),
        ] {
            assert_eq!(
                content(target),
                (kind, repository.into(), namespace.map(Into::into)),
                "{target}"
            );
        }
        let encoded = DIGEST.replace(':', "%3a");
        assert!(get(&format!("/v2/ghcr.io/o/r/blobs/{encoded}")).is_ok());
    }

    #[test]
    fn rejects_tags_and_malformed_digests() {
        assert_eq!(get("/v2/ghcr.io/o/r/manifests/v1.2"), Err(RouteError::Tag));
        for reference in [
            "sha256:abc",
            "sha256:",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "",
            "a b",
        ] {
            let answer = get(&format!("/v2/ghcr.io/o/r/manifests/{reference}"));
            assert!(
                matches!(answer, Err(RouteError::Digest(_))),
                "{reference}: {answer:?}"
            );
        }
        assert!(matches!(
            get("/v2/ghcr.io/o/r/blobs/latest"),
            Err(RouteError::Digest(_))
        ));
    }

    #[test]
    fn rejects_paths_that_could_mean_something_else() {
        for name in [
            "ghcr.io/../etc",
            "ghcr.io/o/%2e%2e/r",
            "ghcr.io/o%2fr",
            "ghcr.io//r",
            "ghcr.io/o/",
            "/o/r",
            "ghcr.io/O/R",
            "ghcr.io/o/r%00",
            "ghcr.io/o/r%zz",
            "ghcr.io/o/r%2",
            "ghcr.io/o/r%+1",
            "ghcr.io/o\\r",
            "ghcr.io:x/o/r",
            "o/r:v1",
            "ghcr.io/o/r@x",
            "ghcr.io/%25%32%66",
            "ghcr.io/o/r%e2%82",
        ] {
            let answer = get(&format!("/v2/{name}/blobs/{DIGEST}"));
            assert!(matches!(answer, Err(RouteError::Name(_))), "{name}: {answer:?}");
        }
        for target in [
            "/v2/o/r/blobs/DIGEST?ns=",
            "/v2/o/r/blobs/DIGEST?ns=x%2fy",
            "/v2/o/r/blobs/DIGEST?ns=a.b&ns=c.d",
        ] {
            assert!(get(&target.replace("DIGEST", DIGEST)).is_err(), "{target}");
        }
    }

    #[test]
    fn rejects_whatever_else_the_distribution_api_has() {
        for target in [
            "/v2/_catalog",
            "/v2/o/r/tags/list",
            "/v2/o/r/blobs/uploads/",
            "/v2//",
            "/v2/x",
            "/v2/manifests/DIGEST",
            "/v2/o/r/referrers/DIGEST",
        ] {
            assert!(get(&target.replace("DIGEST", DIGEST)).is_err(), "{target}");
        }
        for method in [
            Method::PUT,
            Method::POST,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
            Method::TRACE,
        ] {
            let answer = route(&method, "/v2/o/r/blobs/uploads/", None);
            assert_eq!(answer, Err(RouteError::Method { allow: "GET, HEAD" }));
        }
        assert_eq!(get("/v2x/"), Err(RouteError::NotFound));
        assert_eq!(get("/V2/"), Err(RouteError::NotFound));
    }

    #[test]
    fn reads_the_routes_outside_the_distribution_api() {
        let metadata = |repository, file: &str| {
            Ok(Action::Metadata {
                repository,
                file: file.into(),
            })
        };
        assert_eq!(get("/v2/"), Ok(Action::Ping));
        assert_eq!(get("/v2"), Ok(Action::Ping));
        assert_eq!(
            get("/metadata/images/1.root.json"),
            metadata(MetadataRepository::Images, "1.root.json")
        );
        assert_eq!(
            get("/metadata/director/timestamp.json"),
            metadata(MetadataRepository::Director, "timestamp.json")
        );
        assert_eq!(get("/.well-known/est/cacerts"), Ok(Action::CaCerts));
        assert_eq!(get("/v1/wait?since=7"), Ok(Action::Wait { since: 7 }));
        assert_eq!(get("/v1/wait"), Ok(Action::Wait { since: 0 }));
        assert_eq!(
            route(&Method::POST, "/.well-known/est/simpleenroll", None),
            Ok(Action::Enroll)
        );
        assert_eq!(
            route(&Method::POST, "/.well-known/est/simplereenroll", None),
            Ok(Action::Reenroll)
        );
        assert_eq!(route(&Method::PUT, "/v1/report", None), Ok(Action::Report));
        assert_eq!(get("/v1/report"), Err(RouteError::Method { allow: "PUT" }));
        assert_eq!(get("/v1/wait?since=x"), Err(RouteError::Query("since")));
        for path in [
            "/metadata/images/",
            "/metadata/images/../x.json",
            "/metadata/x/1.root.json",
            "/metadata/images/.json",
            "/metadata/images/a%2fb.json",
            "/metadata/images/a.txt",
            "/",
            "",
        ] {
            assert_eq!(get(path), Err(RouteError::NotFound), "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(path in "[/a-z0-9.:%@?&=\\-]{0,80}") {
            let _ = get(&path);
            let _ = get(&format!("/v2/{path}/blobs/{DIGEST}"));
        }
    }
}
