//! The real `docker-registry`, on a loopback port of its own: open, behind a password, or behind a token service.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use data_encoding::BASE64;
use pki::digest::Digest;
use tempfile::TempDir;

use crate::http;
use crate::image::{Document, Image};
use crate::process::{Outcome, Process, write};
use crate::token::TokenServer;

/// The user of a registry that asks for one.
pub const USER: &str = "robot";
/// That user's password.
pub const PASSWORD: &str = "correct horse battery staple";

/// What the registry asks of its clients.
enum Door {
    Open,
    Password,
    Token(TokenServer),
}

/// A running registry.
pub struct Registry {
    // Dropped first: a failing test shows its log, which lies in the directory.
    process: Process,
    directory: TempDir,
    door: Door,
    port: u16,
}

/// An image as it stands in a registry.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// `host:port/repository`.
    pub repository: String,
    /// The tag it was pushed under.
    pub tag: String,
    /// What the tag points at.
    pub digest: Digest,
}

impl Pushed {
    /// `host:port/repository@digest`, as an artifact is named.
    pub fn artifact(&self) -> String {
        format!("{}@{}", self.repository, self.digest)
    }

    /// The same content, reached through another address (a proxy).
    #[must_use]
    pub fn through(&self, authority: &str) -> Self {
        let path = self.repository.split_once('/').map_or("", |(_, path)| path);
        Self { repository: format!("{authority}/{path}"), ..self.clone() }
    }
}

impl Registry {
    /// A registry anyone may read and write.
    pub fn open() -> Self {
        Self::start(Door::Open)
    }

    /// A registry that asks for [`USER`] and [`PASSWORD`] (HTTP Basic).
    pub fn with_password() -> Self {
        Self::start(Door::Password)
    }

    /// A registry that sends its clients to a token service for [`USER`] and [`PASSWORD`].
    pub fn with_tokens() -> Self {
        Self::start(Door::Token(TokenServer::start(USER, PASSWORD)))
    }

    fn start(door: Door) -> Self {
        let directory = TempDir::new().expect("make a directory");
        let process = launch(directory.path(), &door, 0);
        let mut registry = Self { directory, door, port: 0, process };
        registry.learn_port();
        registry
    }

    fn learn_port(&mut self) {
        let line = self.process.wait_for_log("listening on 127.0.0.1:");
        let (_, rest) = line.split_once("listening on 127.0.0.1:").expect("the words just found");
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        self.port = digits.parse().expect("a port number");
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The token service, of a registry that has one.
    pub fn tokens(&self) -> Option<&TokenServer> {
        match &self.door {
            Door::Token(server) => Some(server),
            Door::Open | Door::Password => None,
        }
    }

    /// Whether a client needs [`USER`] and [`PASSWORD`].
    pub fn needs_credential(&self) -> bool {
        !matches!(self.door, Door::Open)
    }

    /// Stops it, as an outage would.
    pub fn stop(&mut self) {
        self.process.kill9();
    }

    /// Starts it again, on the same port with the same content.
    pub fn start_again(&mut self) {
        self.process.kill9();
        self.process = launch(self.directory.path(), &self.door, self.port);
        let ready = format!("listening on 127.0.0.1:{}", self.port);
        self.process.wait_for_log(&ready);
    }

    /// Pushes an image with everything it refers to and tags it.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) -> Pushed {
        for (digest, bytes) in &image.blobs {
            self.put_blob(repository, digest, bytes);
        }
        for child in &image.children {
            self.put_document(repository, &child.digest().to_string(), child);
        }
        self.put_document(repository, tag, &image.root);
        Pushed {
            repository: format!("{}/{repository}", self.host()),
            tag: tag.into(),
            digest: image.digest(),
        }
    }

    fn put_blob(&self, repository: &str, digest: &Digest, bytes: &[u8]) {
        let started = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), repository, &[], b"");
        assert_eq!(started.status, 202, "start an upload: {}", started.text());
        let location = started.headers.get("location").expect("an upload location");
        let target = location.split_once(&self.host()).map_or(location, |(_, path)| path);
        let separator = if target.contains('?') { '&' } else { '?' };
        let target = format!("{target}{separator}digest={digest}");
        let stored =
            self.request("PUT", &target, repository, &[("Content-Type", "application/octet-stream")], bytes);
        assert_eq!(stored.status, 201, "store a blob: {}", stored.text());
    }

    fn put_document(&self, repository: &str, reference: &str, document: &Document) {
        let target = format!("/v2/{repository}/manifests/{reference}");
        let headers = [("Content-Type", document.media_type)];
        let stored = self.request("PUT", &target, repository, &headers, &document.bytes);
        assert_eq!(stored.status, 201, "store a manifest: {}", stored.text());
    }

    /// Points a tag somewhere else, without asking whether that makes sense.
    pub fn put_raw_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) -> u16 {
        let target = format!("/v2/{repository}/manifests/{reference}");
        self.request("PUT", &target, repository, &[("Content-Type", media_type)], bytes).status
    }

    fn request(
        &self,
        method: &str,
        target: &str,
        repository: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> http::Response {
        let authorization = self.authorization(repository);
        let mut all = headers.to_vec();
        if let Some(value) = &authorization {
            all.push(("Authorization", value));
        }
        http::request(&self.host(), method, target, &all, body)
            .unwrap_or_else(|error| panic!("{method} {target} on the registry: {error}"))
    }

    fn authorization(&self, repository: &str) -> Option<String> {
        match &self.door {
            Door::Open => None,
            Door::Password => Some(basic(USER, PASSWORD)),
            Door::Token(server) => Some(format!("Bearer {}", server.mint(repository, &["pull", "push"]))),
        }
    }

    /// Flips one bit of a stored blob on the registry's disk.
    pub fn corrupt(&self, digest: &Digest, offset: u64) {
        let path = self.blob_path(digest);
        let file = fs::OpenOptions::new().read(true).write(true).open(&path);
        let file = file.unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("read the byte to change");
        file.write_all_at(&byte.map(|bits| bits ^ 1), offset).expect("change a byte");
    }

    /// Cuts a stored blob short on the registry's disk.
    pub fn truncate(&self, digest: &Digest, length: u64) {
        let file = fs::OpenOptions::new().write(true).open(self.blob_path(digest)).expect("open a blob");
        file.set_len(length).expect("cut a blob short");
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let root = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        root.join(hex.get(..2).expect("a hash")).join(hex).join("data")
    }
}

/// The value of an `Authorization` header for HTTP Basic.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
}

fn launch(directory: &Path, door: &Door, port: u16) -> Process {
    let config = directory.join("config.yml");
    write(&config, configuration(directory, door, port));
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let log = directory.join(format!("registry-{port}.log"));
    // A restarted registry is waited for in its own log: the old one still holds the old "listening" line.
    drop(fs::remove_file(&log));
    Process::start("docker-registry", &mut command, &log)
}

fn configuration(directory: &Path, door: &Door, port: u16) -> String {
    let data = directory.join("data");
    let storage = format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
         rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n  secret: upload-state\n",
        data.display()
    );
    storage + &authentication(directory, door)
}

fn authentication(directory: &Path, door: &Door) -> String {
    match door {
        Door::Open => String::new(),
        Door::Password => {
            let file = directory.join("htpasswd");
            write(&file, htpasswd());
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
        }
        Door::Token(server) => {
            let bundle = directory.join("token-service.pem");
            write(&bundle, server.certificate_pem());
            format!(
                "auth:\n  token:\n    realm: {}\n    service: {}\n    issuer: {}\n    rootcertbundle: {}\n",
                server.realm(),
                crate::token::SERVICE,
                crate::token::ISSUER,
                bundle.display()
            )
        }
    }
}

fn htpasswd() -> String {
    let mut command = Command::new("htpasswd");
    Outcome::of(command.args(["-nbB", "-C", "4", USER, PASSWORD]), b"").expect_success().stdout
}
