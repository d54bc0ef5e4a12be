//! The data directory: what `facade init` makes in it, and what `facade serve` needs from it.
//!
//! Every file is made once, whole or not at all, and never replaced: a second `init` completes what a first one was
//! interrupted at, and otherwise changes nothing. Only the owner may look inside: with another's eyes on the keys, every
//! device's trust is another's too.

mod files;
mod load;
mod roots;

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use pki::key::SigningKey;
use pki::seal::SealingKey;
use pki::x509::{Authority, PrivateKey, ServerName, TrustDomain, pem};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use files::Files;
pub use load::{DataDir, RepositoryKeys};

/// The trust domain of device identities where none is named.
const DEFAULT_TRUST_DOMAIN: &str = "drayage.internal";

const ROLES: [&str; 4] = ["root", "targets", "snapshot", "timestamp"];
const REPOSITORIES: [&str; 2] = ["images", "director"];

/// How long a root lives. Its end is announced long before (`facade status`), and devices walk expired roots to newer ones.
const ROOT_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 365 * 5);

const ADMIN_TOKEN_PREFIX: &str = "drayage-admin.";

/// What to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub data_dir: PathBuf,
    /// Names and addresses of the server certificate.
    pub hostnames: Vec<String>,
    /// Trust domain of device identities.
    pub trust_domain: Option<String>,
    /// The time.
    pub now: Timestamp,
}

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// In words, one a thing; empty when everything was there.
    pub created: Vec<String>,
}

/// Why the data directory cannot be made or used.
#[derive(Debug, Error)]
pub enum InitError {
    /// A file or directory cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else could read or change the keys.
    #[error("{path} is open to others (mode {mode:o}); keep its keys private: chmod {wanted:o} {path}")]
    Exposed {
        /// What is open.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it must be.
        wanted: u32,
    },
    /// A symbolic link stands where a file should be.
    #[error("{0} is a symbolic link; the data directory must hold the files themselves")]
    Link(PathBuf),
    /// The directory was never initialised, or not to the end.
    #[error("{0} is missing; run: facade init --data-dir {1} --hostname NAME")]
    Missing(PathBuf, PathBuf),
    /// A file is not what it should be.
    #[error("{path} cannot be used: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A name for the server certificate is not one.
    #[error(
        "--hostname {0:?} is neither a DNS name nor an address (for example facade.example or 192.0.2.7)"
    )]
    Hostname(String),
    /// The trust domain is not one.
    #[error(
        "--trust-domain {0:?} is not a trust domain (lower-case letters, digits, . _ -, for example devices.example)"
    )]
    TrustDomain(String),
    /// The certificate that is there was made for other names.
    #[error(
        "the server certificate was made for {found}, not for {wanted}; to make another, move {path} and its key away and run init again"
    )]
    OtherNames {
        /// The certificate.
        path: PathBuf,
        /// The names in it.
        found: String,
        /// The names asked for.
        wanted: String,
    },
    /// Another trust domain is in use.
    #[error("devices are in the trust domain {found}; it cannot become {wanted}")]
    OtherTrustDomain {
        /// The one in use.
        found: String,
        /// The one asked for.
        wanted: String,
    },
    /// Something could not be generated.
    #[error("cannot make {what}")]
    Generate {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl InitError {
    fn generate(what: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Generate {
            what,
            source: Box::new(source),
        }
    }

    fn unusable(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Unusable {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// Makes what is not there.
pub fn init(options: &Options) -> Result<Outcome, InitError> {
    let names = parse_names(&options.hostnames)?;
    let domain = options.trust_domain.as_deref().unwrap_or(DEFAULT_TRUST_DOMAIN);
    let domain: TrustDomain = domain
        .parse()
        .map_err(|_| InitError::TrustDomain(domain.to_owned()))?;
    let files = Files::create(&options.data_dir)?;
    let mut making = Making {
        files: &files,
        now: options.now,
        created: Vec::new(),
    };
    making.trust_domain(&domain, options.trust_domain.is_some())?;
    making.authorities()?;
    making.server_certificate(&names)?;
    making.metadata_keys()?;
    making.roots()?;
    making.sealing_key()?;
    making.admin_token()?;
    Ok(Outcome {
        created: making.created,
    })
}

fn parse_names(hostnames: &[String]) -> Result<Vec<ServerName>, InitError> {
    let parse = |text: &String| text.parse().map_err(|_| InitError::Hostname(text.clone()));
    hostnames.iter().map(parse).collect()
}

/// One run of `init`.
struct Making<'a> {
    files: &'a Files,
    now: Timestamp,
    created: Vec<String>,
}

impl Making<'_> {
    fn note(&mut self, what: &str) {
        self.created.push(what.to_owned());
    }

    fn trust_domain(&mut self, domain: &TrustDomain, explicit: bool) -> Result<(), InitError> {
        match self.files.read_optional("trust-domain")? {
            None => {
                self.files.write_new("trust-domain", domain.as_str().as_bytes())?;
                self.note("trust domain");
                Ok(())
            }
            Some(found) if explicit && found.trim() != domain.as_str() => Err(InitError::OtherTrustDomain {
                found: found.trim().to_owned(),
                wanted: domain.to_string(),
            }),
            Some(_) => Ok(()),
        }
    }

    /// Each key is written before its certificate: a certificate on disk always has its key.
    fn authorities(&mut self) -> Result<(), InitError> {
        let root_key = self.private_key("ca/root.key")?;
        if !self.files.exists("ca/root.pem")? {
            let root = Authority::new_root(&root_key, self.now);
            let root = root.map_err(|error| InitError::generate("the root certificate", error))?;
            self.files.write_new("ca/root.pem", root.pem().as_bytes())?;
            self.note("device CA root");
        }
        let issuing_key = self.private_key("ca/issuing.key")?;
        if !self.files.exists("ca/issuing.pem")? {
            let root = load::certificate(self.files, "ca/root.pem")?;
            let issuing = Authority::new_issuing(&root, &root_key, &issuing_key, self.now);
            let issuing = issuing.map_err(|error| InitError::generate("the issuing certificate", error))?;
            self.files.write_new("ca/issuing.pem", issuing.pem().as_bytes())?;
            self.note("issuing CA");
        }
        Ok(())
    }

    fn server_certificate(&mut self, names: &[ServerName]) -> Result<(), InitError> {
        const CHAIN: &str = "tls/server.pem";
        if self.files.exists(CHAIN)? {
            return self.check_names(CHAIN, names);
        }
        let key = self.private_key("tls/server.key")?;
        let authority = load::authority(self.files)?;
        let issued = authority.issue_server(names, &key, self.now);
        let issued = issued.map_err(|error| InitError::generate("the server certificate", error))?;
        let chain = format!("{}{}", issued.pem(), pem::certificate(authority.issuing()));
        self.files.write_new(CHAIN, chain.as_bytes())?;
        let list: Vec<String> = names.iter().map(ToString::to_string).collect();
        self.note(&format!("server certificate for {}", list.join(" ")));
        Ok(())
    }

    fn check_names(&self, chain: &str, names: &[ServerName]) -> Result<(), InitError> {
        let mut found = load::server_names(self.files, chain)?;
        let mut wanted: Vec<String> = names.iter().map(ToString::to_string).collect();
        found.sort();
        wanted.sort();
        if found == wanted {
            return Ok(());
        }
        let (found, wanted) = (found.join(" "), wanted.join(" "));
        Err(InitError::OtherNames {
            path: self.files.path(chain),
            found,
            wanted,
        })
    }

    fn metadata_keys(&mut self) -> Result<(), InitError> {
        for repository in REPOSITORIES {
            let mut made = false;
            for role in ROLES {
                let file = load::key_file(repository, role);
                if !self.files.exists(&file)? {
                    let key = SigningKey::generate();
                    let key = key.map_err(|error| InitError::generate("a metadata key", error))?;
                    self.files
                        .write_new(&file, pem::ed25519_key(&key.seed()).as_bytes())?;
                    made = true;
                }
            }
            if made {
                self.note(&format!("{repository} metadata keys"));
            }
        }
        Ok(())
    }

    fn roots(&mut self) -> Result<(), InitError> {
        for repository in REPOSITORIES {
            let file = load::root_file(repository);
            if !self.files.exists(&file)? {
                let keys = RepositoryKeys::load(self.files, repository)?;
                let bytes = roots::first(&keys, self.now)?;
                self.files.write_new(&file, &bytes)?;
                self.note(&format!("{repository} root metadata"));
            }
        }
        Ok(())
    }

    fn sealing_key(&mut self) -> Result<(), InitError> {
        if !self.files.exists("keys/seal.key")? {
            let key =
                SealingKey::generate().map_err(|error| InitError::generate("the sealing key", error))?;
            self.files.write_new("keys/seal.key", key.to_text().as_bytes())?;
            self.note("sealing key");
        }
        Ok(())
    }

    /// The server keeps only the token's hash, so that the file with the token can be moved to where it is used.
    fn admin_token(&mut self) -> Result<(), InitError> {
        if self.files.exists(load::ADMIN_TOKEN_HASH)? {
            return Ok(());
        }
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| InitError::generate("the admin token", error))?;
        let token = format!(
            "{ADMIN_TOKEN_PREFIX}{}",
            data_encoding::BASE64URL_NOPAD.encode(&secret)
        );
        // A token without its hash opens nothing, and the next run makes another.
        self.files
            .replace("admin.token", format!("{token}\n").as_bytes())?;
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(token.as_bytes()));
        self.files
            .write_new(load::ADMIN_TOKEN_HASH, format!("{hash}\n").as_bytes())?;
        self.note("admin token");
        Ok(())
    }

    fn private_key(&self, file: &str) -> Result<PrivateKey, InitError> {
        if let Some(text) = self.files.read_optional(file)? {
            return PrivateKey::from_pem(&text)
                .map_err(|error| InitError::unusable(&self.files.path(file), error));
        }
        let key = PrivateKey::generate().map_err(|error| InitError::generate("a private key", error))?;
        self.files.write_new(file, key.to_pem().as_bytes())?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn options(directory: &Path) -> Options {
        Options {
            data_dir: directory.join("data"),
            hostnames: vec!["facade.example".to_owned(), "127.0.0.1".to_owned()],
            trust_domain: None,
            now: "2026-11-20T00:00:00Z".parse().unwrap(),
        }
    }

    fn all_files(directory: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(all_files(&path));
            } else {
                files.push(path);
            }
        }
        files.sort();
        files
    }

    fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        all_files(directory)
            .into_iter()
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect()
    }

    #[test]
    fn makes_everything_once_and_only_for_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        assert!(!init(&options).unwrap().created.is_empty());
        let before = contents(&options.data_dir);
        for (path, _) in &before {
            assert_eq!(
                std::fs::metadata(path).unwrap().permissions().mode() & 0o777,
                0o600,
                "{}",
                path.display()
            );
        }
        assert_eq!(
            std::fs::metadata(&options.data_dir).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(init(&options).unwrap(), Outcome::default());
        assert_eq!(contents(&options.data_dir), before);
        DataDir::open(&options.data_dir, None).unwrap();
    }

    #[test]
    fn completes_what_an_interrupted_run_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        init(&options).unwrap();
        let files = all_files(&options.data_dir);
        for cut in 0..files.len() {
            // A run makes files in an order; whatever is missing together with all that depends on it comes again.
            let path = &files[cut];
            let name = path
                .strip_prefix(&options.data_dir)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if name.ends_with("issuing.pem") || name.ends_with("server.pem") || name.ends_with("seal.key") {
                std::fs::remove_file(path).unwrap();
                if name.ends_with("issuing.pem") {
                    std::fs::remove_file(options.data_dir.join("tls/server.pem")).unwrap();
                }
                assert!(!init(&options).unwrap().created.is_empty(), "{name}");
                DataDir::open(&options.data_dir, None).unwrap();
            }
        }
    }

    #[test]
    fn rejects_other_names_than_the_certificate_has() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        init(&options).unwrap();
        let other = Options {
            hostnames: vec!["other.example".to_owned()],
            ..options
        };
        assert!(matches!(init(&other), Err(InitError::OtherNames { .. })));
    }

    #[test]
    fn rejects_names_that_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        for name in ["", "a b", "https://x", "a/b"] {
            let bad = Options {
                hostnames: vec![name.to_owned()],
                ..options.clone()
            };
            assert!(matches!(init(&bad), Err(InitError::Hostname(_))), "{name}");
        }
        assert!(!options.data_dir.exists());
    }

    #[test]
    fn rejects_a_directory_that_others_can_read() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        init(&options).unwrap();
        std::fs::set_permissions(&options.data_dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(
            DataDir::open(&options.data_dir, None),
            Err(InitError::Exposed { .. })
        ));
        std::fs::set_permissions(&options.data_dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        let key = options.data_dir.join("ca/issuing.key");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            DataDir::open(&options.data_dir, None),
            Err(InitError::Exposed { .. })
        ));
    }

    #[test]
    fn rejects_a_link_in_place_of_a_key() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        init(&options).unwrap();
        let key = options.data_dir.join("keys/seal.key");
        let elsewhere = directory.path().join("elsewhere");
        std::fs::rename(&key, &elsewhere).unwrap();
        symlink(&elsewhere, &key).unwrap();
        assert!(matches!(
            DataDir::open(&options.data_dir, None),
            Err(InitError::Link(_))
        ));
    }

    #[test]
    fn says_how_to_make_what_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let error = DataDir::open(&directory.path().join("nothing"), None)
            .err()
            .unwrap();
        assert!(error.to_string().contains("facade init"), "{error}");
    }
}
