//! The real `docker-registry` with TLS, for clients with a certificate.

use std::fs;
use std::path::Path;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

use crate::process::{Process, write};

/// `docker-registry` with TLS that wants client certificates of its own authority.
pub struct TlsRegistry {
    // Dropped first: a failing test shows its log, which lies in the directory.
    _process: Process,
    directory: TempDir,
    port: u16,
}

impl TlsRegistry {
    /// Starts one whose certificate is for `name`. Files: `ca.pem`, `client.key`, and `client.pem` with certificate and
    /// key.
    pub fn start(name: &str) -> Self {
        let directory = TempDir::new().expect("make a directory");
        let path = directory.path();
        certificates(path, name);
        let at = path.display();
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {at}/data\nhttp:\n  \
             addr: 127.0.0.1:0\n  secret: x\n  tls:\n    certificate: {at}/server.pem\n    key: {at}/server.key\n    \
             clientcas:\n      - {at}/ca.pem\n"
        );
        write(&path.join("config.yml"), config);
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path.join("config.yml"));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let mut process = Process::start("docker-registry", &mut command, &path.join("log"));
        let line = process.wait_for_log("listening on 127.0.0.1:");
        let (_, rest) = line.split_once("listening on 127.0.0.1:").expect("the words just found");
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Self { _process: process, port: digits.parse().expect("a port number"), directory }
    }

    /// Where it listens, whatever its certificate says.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// What one of its files holds.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).expect("read a file of the registry")
    }
}

/// Leaves in `path` an authority (`ca.pem`), and by it `server.{pem,key}` for `name` and `client.{pem,key}`.
pub(crate) fn certificates(path: &Path, name: &str) {
    let mut params = CertificateParams::new(Vec::new()).expect("certificate parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("make a key");
    let authority = CertifiedIssuer::self_signed(params, key).expect("sign a certificate");
    write(&path.join("ca.pem"), authority.pem());
    for (file, name) in [("server", name), ("client", "facade")] {
        let key = KeyPair::generate().expect("make a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("certificate parameters");
        let certificate = params.signed_by(&key, &authority).expect("sign a certificate");
        write(&path.join(format!("{file}.key")), key.serialize_pem());
        let both = certificate.pem() + &key.serialize_pem();
        write(&path.join(format!("{file}.pem")), both);
    }
}
