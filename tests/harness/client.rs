//! Stock clients against the device door: `curl` for single requests, `skopeo` and `ctr` for whole pulls.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::containerd::Containerd;
use crate::device::Identity;
use crate::process::{Outcome, write};

/// What the device door answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code, or 0 when there was no answer: the TLS handshake failed.
    pub status: u16,
    /// The header lines, lower case names.
    pub headers: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.headers.lines().filter_map(|line| line.split_once(':'));
        let mut named = lines.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim())
    }

    /// The first code of an OCI error body.
    pub fn error_code(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(body.get("errors")?.get(0)?.get("code")?.as_str()?.to_owned())
    }
}

/// Speaks to the device door as a device, or as nobody.
pub struct DeviceClient {
    url: String,
    ca: std::path::PathBuf,
    identity: Option<Identity>,
}

impl DeviceClient {
    /// A client with a certificate.
    pub fn new(url: &str, identity: &Identity) -> Self {
        Self { url: url.into(), ca: identity.ca.clone(), identity: Some(identity.clone()) }
    }

    /// A client without one.
    pub fn anonymous(url: &str, ca: &Path) -> Self {
        Self { url: url.into(), ca: ca.into(), identity: None }
    }

    /// `GET target`.
    pub fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[])
    }

    /// One request with headers.
    pub fn send(&self, method: &str, target: &str, headers: &[&str]) -> Answer {
        self.send_body(method, target, headers, b"")
    }

    /// One request with headers and a body.
    pub fn send_body(&self, method: &str, target: &str, headers: &[&str], content: &[u8]) -> Answer {
        let directory = TempDir::new().expect("make a directory");
        let (head, body) = (directory.path().join("head"), directory.path().join("body"));
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--path-as-is"]);
        command.arg("--cacert").arg(&self.ca);
        if let Some(identity) = &self.identity {
            command.arg("--cert").arg(&identity.cert).arg("--key").arg(&identity.key);
        }
        match method {
            "HEAD" => command.arg("--head"),
            other => command.args(["--request", other]),
        };
        for header in headers {
            command.args(["--header", header]);
        }
        if !content.is_empty() {
            command.args(["--data-binary", "@-"]);
        }
        command.arg("--dump-header").arg(&head).arg("--output").arg(&body);
        command.args(["--write-out", "%{http_code}"]).arg(format!("{}{target}", self.url));
        let outcome = Outcome::of(&mut command, content);
        Answer {
            status: outcome.stdout.trim().parse().unwrap_or(0),
            headers: fs::read_to_string(&head).unwrap_or_default(),
            body: fs::read(&body).unwrap_or_default(),
        }
    }
}

/// Copies an image with `skopeo` into a directory; `identity` gives the client certificate.
pub fn skopeo_copy(source: &str, identity: &Identity, into: &Path) -> Outcome {
    let certificates = TempDir::new().expect("make a directory");
    let copy = |from: &Path, name: &str| {
        write(&certificates.path().join(name), fs::read(from).expect("read a certificate"));
    };
    copy(&identity.ca, "ca.crt");
    copy(&identity.cert, "client.cert");
    copy(&identity.key, "client.key");
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--insecure-policy", "--src-cert-dir"]).arg(certificates.path());
    command.arg(format!("docker://{source}")).arg(format!("oci:{}:pulled", into.display()));
    Outcome::of(&mut command, b"")
}

/// Pulls an image with `ctr`, sent through the facade by a `hosts.toml` that covers every registry.
pub fn ctr_pull(containerd: &Containerd, reference: &str, hosts_toml: &str) -> Outcome {
    let hosts = TempDir::new().expect("make a directory");
    write(&hosts.path().join("_default/hosts.toml"), hosts_toml);
    let directory = hosts.path().display().to_string();
    containerd.ctr(&["images", "pull", "--hosts-dir", &directory, reference])
}
