//! The data directory: what `facade init` makes in it, and what `facade serve` needs from it.
//!
//! Every file is made once and never replaced. They are made in an order in which each needs only those before it, so a
//! run that was interrupted anywhere is completed by the next. A key is there before anything that vouches for it.

mod files;
mod load;
mod offline;
mod rekey;
mod renew;
mod roll;
#[cfg(test)]
mod tests;
mod vault;

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use pki::key::{PublicKey, SigningKey};
use pki::metadata::Root;
use pki::metadata::publish::sign;
use pki::metadata::roles::{RoleKeys, RootRoles};
use pki::seal::SealingKey;
use pki::x509::{Authority, Fingerprint, PrivateKey, ServerName, TrustDomain, pem};
use thiserror::Error;
use zeroize::Zeroizing;

use self::files::Files;
pub use self::load::DataDir;
pub use self::offline::Offline;
pub use self::rekey::{RekeyError, next_keyring};
pub use self::renew::renew_server_certificate;
pub use self::roll::{Rolled, retire, roll};
pub use self::vault::Vault;

const TRUST_DOMAIN: &str = "trust-domain";
const ROOT_KEY: &str = "ca/root.key";
const ROOT: &str = "ca/root.pem";
/// What former roots say of those that followed them, the newest first.
const LINKS: &str = "ca/links.pem";
const ISSUING_KEY: &str = "ca/issuing.key";
const ISSUING: &str = "ca/issuing.pem";
const SERVER_KEY: &str = "tls/server.key";
const SERVER: &str = "tls/server.pem";
const SEAL_KEY: &str = "keys/seal.key";
const ADMIN_TOKEN: &str = "admin.token";
const ADMIN_HASH: &str = "admin.token.hash";
const FIRST_TARGETS: &str = "tuf/images/1.targets.json";

const REPOSITORIES: [&str; 2] = ["images", "director"];
const ROLES: [&str; 4] = ["root", "targets", "snapshot", "timestamp"];
const ADMIN_PREFIX: &str = "drayage-admin.";
/// Devices walk through expired roots to newer ones; the end is announced long before.
const ROOT_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 365 * 5);

/// What to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub data_dir: PathBuf,
    /// Names and addresses under which devices reach the facade.
    pub hostnames: Vec<String>,
    /// The trust domain of device identities; otherwise the one in use, or the default one.
    pub trust_domain: Option<String>,
    /// Where root keys, and the targets key of the images repository, are left with the operator; otherwise they are made
    /// in the data directory.
    pub offline: Option<Offline>,
    /// The time.
    pub now: Timestamp,
}

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The files, in the order in which they were made; empty where nothing was missing.
    pub created: Vec<String>,
    /// Whether the directory was there, empty and open to others, and was made private.
    pub made_private: bool,
}

/// Why a data directory cannot be made or used.
#[derive(Debug, Error)]
pub enum InitError {
    /// The system refuses.
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
    /// Another `init` is at work.
    #[error("another facade init is at work in {0}")]
    Busy(PathBuf),
    /// Others can read or change it.
    #[error(
        "{path} has mode {mode:03o}: others on this machine could take the keys and issue identities for any device \
         (chmod {wanted:03o} {path}; if they may have been read, make new ones)"
    )]
    Exposed {
        /// What is open.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode that it should have.
        wanted: u32,
    },
    /// It is another user's.
    #[error(
        "{path} belongs to user {owner}, who could replace the keys; run as that user, or chown it to {user}"
    )]
    Foreign {
        /// What.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// A symbolic link: who made it decides what is read.
    #[error("{0} is a symbolic link; the data directory has to hold the file itself")]
    Link(PathBuf),
    /// It is not there.
    #[error("{path} is missing (facade init --data-dir {data_dir} --hostname NAME makes what is missing)")]
    Missing {
        /// What.
        path: PathBuf,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// It is not what it should be.
    #[error("{path} cannot be used: {reason} (restore it from a backup)")]
    Unusable {
        /// What.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The server certificate is none that devices take.
    #[error(
        "no device of this facade would accept tls/server.pem: it has to lead to ca/root.pem and be valid now"
    )]
    Untrusted {
        /// What a device would say.
        #[source]
        source: Box<rustls::Error>,
    },
    /// No name for the server certificate.
    #[error("devices need a name or an address to reach the facade by (--hostname NAME)")]
    NoHostname,
    /// Not a name for a server certificate.
    #[error("cannot use --hostname")]
    Hostname(#[source] pki::x509::ServerNameError),
    /// Not a trust domain.
    #[error("cannot use --trust-domain")]
    TrustDomain(#[source] pki::x509::TrustDomainError),
    /// The server certificate is for other names.
    #[error(
        "the server certificate is for {found}, not for {wanted}; to have another, move {path} away and run init again"
    )]
    OtherNames {
        /// The certificate.
        path: PathBuf,
        /// The names in it.
        found: String,
        /// The names asked for.
        wanted: String,
    },
    /// Identities are in another domain.
    #[error(
        "identities here are in the trust domain {found}, which cannot become {wanted}; use a new data directory"
    )]
    OtherTrustDomain {
        /// The domain in use.
        found: TrustDomain,
        /// The domain asked for.
        wanted: TrustDomain,
    },
    /// An offline key cannot be made or opened.
    #[error("cannot use the offline key {path}")]
    OfflineKey {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: crate::keyfile::KeyFileError,
    },
    /// Offline keys would be in the data directory, and in each of its backups.
    #[error("{0} is in the data directory; offline keys belong where the server cannot read them")]
    NotOffline(PathBuf),
    /// It could not be generated.
    #[error("cannot make {file}")]
    Generate {
        /// What.
        file: String,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl InitError {
    fn unusable(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Unusable { path: path.to_owned(), reason: reason.to_string() }
    }

    fn generate(file: &str, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Generate { file: file.to_owned(), source: Box::new(source) }
    }
}

/// Makes what is missing, and changes nothing that is there.
pub fn init(options: &Options) -> Result<Outcome, InitError> {
    let names = options.hostnames.iter().map(|text| text.parse().map_err(InitError::Hostname));
    let names: Vec<ServerName> = names.collect::<Result<_, _>>()?;
    if names.is_empty() {
        return Err(InitError::NoHostname);
    }
    let wanted = options.trust_domain.as_deref().map(str::parse).transpose();
    let wanted = wanted.map_err(InitError::TrustDomain)?;
    let mut making = Making {
        files: Files::create(&options.data_dir)?,
        offline: options.offline.clone(),
        now: options.now,
        created: Vec::new(),
    };
    making.trust_domain(wanted)?;
    making.authority()?;
    making.server(&names)?;
    for repository in REPOSITORIES {
        making.repository(repository)?;
    }
    making.sealing_key()?;
    making.admin_token()?;
    making.check()?;
    Ok(Outcome { made_private: making.files.made_private(), created: making.created })
}

/// One run of `init`.
struct Making {
    files: Files,
    offline: Option<Offline>,
    now: Timestamp,
    created: Vec<String>,
}

impl Making {
    fn trust_domain(&mut self, wanted: Option<TrustDomain>) -> Result<(), InitError> {
        if self.files.find(TRUST_DOMAIN)?.is_none() {
            let domain = wanted.unwrap_or_default();
            return self.publish(TRUST_DOMAIN, format!("{domain}\n").as_bytes());
        }
        let found = load::trust_domain(&self.files)?;
        match wanted.filter(|wanted| *wanted != found) {
            Some(wanted) => Err(InitError::OtherTrustDomain { found, wanted }),
            None => Ok(()),
        }
    }

    fn authority(&mut self) -> Result<(), InitError> {
        if self.files.find(ROOT)?.is_none() {
            let root = Authority::new_root(&self.private_key(ROOT_KEY)?, self.now);
            let root = root.map_err(|error| InitError::generate(ROOT, error))?;
            self.publish(ROOT, root.pem().as_bytes())?;
        }
        // Once this is there, the root's key may be taken offline.
        if self.files.find(ISSUING)?.is_none() {
            let root = load::certificate(&self.files, ROOT)?;
            let root_key = load::private_key(&self.files, ROOT_KEY)?;
            let key = self.private_key(ISSUING_KEY)?;
            let issuing = Authority::new_issuing(&root, &root_key, &key, self.now);
            let issuing = issuing.map_err(|error| InitError::generate(ISSUING, error))?;
            self.publish(ISSUING, issuing.pem().as_bytes())?;
        }
        Ok(())
    }

    fn server(&mut self, names: &[ServerName]) -> Result<(), InitError> {
        if self.files.find(SERVER)?.is_some() {
            return self.check_names(names);
        }
        let key = self.private_key(SERVER_KEY)?;
        let authority = load::authority(&self.files)?;
        let server = authority.issue_server(names, &key, self.now);
        let server = server.map_err(|error| InitError::generate(SERVER, error))?;
        let chain = server.pem() + &pem::certificate(authority.issuing());
        self.publish(SERVER, chain.as_bytes())
    }

    fn check_names(&self, wanted: &[ServerName]) -> Result<(), InitError> {
        let sorted = |mut names: Vec<ServerName>| {
            names.sort();
            names.dedup();
            names
        };
        let (found, wanted) = (sorted(load::server_names(&self.files)?), sorted(wanted.to_vec()));
        if found == wanted {
            return Ok(());
        }
        let list = |names: &[ServerName]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            names.join(", ")
        };
        Err(InitError::OtherNames {
            path: self.files.path(SERVER),
            found: list(&found),
            wanted: list(&wanted),
        })
    }

    fn repository(&mut self, repository: &str) -> Result<(), InitError> {
        let root_file = root_file(repository, 1);
        // Once a root has vouched for them, keys are rotated, taken offline, or restored; never made again under it.
        if self.files.find(&root_file)?.is_some() {
            return Ok(());
        }
        let mut keys = Vec::new();
        for role in ROLES {
            keys.push(self.role_key(repository, role)?);
        }
        let [root, targets, snapshot, timestamp] = keys.as_slice() else {
            return Ok(());
        };
        if repository == "images" && self.offline.is_some() && self.files.find(FIRST_TARGETS)?.is_none() {
            let empty = offline::empty_targets(self.now, targets)?;
            self.publish(FIRST_TARGETS, &empty)?;
        }
        let bytes = self.first_root(&root_file, [root, targets, snapshot, timestamp])?;
        self.publish(&root_file, &bytes)?;
        match &self.offline {
            Some(offline) => offline.leave_root(repository, &bytes),
            None => Ok(()),
        }
    }

    fn role_key(&mut self, repository: &str, role: &str) -> Result<SigningKey, InitError> {
        match &self.offline {
            Some(offline) if role == "root" || (repository, role) == ("images", "targets") => {
                offline.key(&self.files, repository, role)
            }
            _ => self.signing_key(&key_file(repository, role)),
        }
    }

    fn first_root(&self, file: &str, keys: [&SigningKey; 4]) -> Result<Vec<u8>, InitError> {
        let [root, targets, snapshot, timestamp] = keys.map(SigningKey::public);
        let role = |key: &PublicKey| RoleKeys::new(&[key], 1);
        // TUF has whole seconds.
        let expires =
            Timestamp::from_second(self.now.as_second()).and_then(|now| now.checked_add(ROOT_LIFETIME));
        let document = Root {
            version: 1,
            expires: expires.map_err(|error| InitError::generate(file, error))?,
            consistent_snapshot: true,
            keys: [root, targets, snapshot, timestamp].map(|key| (key.id(), key.clone())).into(),
            roles: RootRoles {
                root: role(root),
                timestamp: role(timestamp),
                snapshot: role(snapshot),
                targets: role(targets),
                extra: serde_json::Map::new(),
            },
            extra: serde_json::Map::new(),
        };
        let [signer, ..] = keys;
        sign(&document, &[signer]).map_err(|error| InitError::generate(file, error))
    }

    fn sealing_key(&mut self) -> Result<(), InitError> {
        if self.files.find(SEAL_KEY)?.is_some() {
            return Ok(());
        }
        let key = SealingKey::generate().map_err(|error| InitError::generate(SEAL_KEY, error))?;
        self.publish(SEAL_KEY, key.to_text().as_bytes())
    }

    /// The server keeps the hash; the token itself may be moved to where it is used, and does not come back.
    fn admin_token(&mut self) -> Result<(), InitError> {
        if self.files.find(ADMIN_HASH)?.is_some() {
            return Ok(());
        }
        if self.files.find(ADMIN_TOKEN)?.is_none() {
            let mut secret = Zeroizing::new([0; 32]);
            getrandom::fill(&mut *secret).map_err(|error| InitError::generate(ADMIN_TOKEN, error))?;
            let text = Zeroizing::new(data_encoding::BASE64URL_NOPAD.encode(&*secret));
            let line = Zeroizing::new(format!("{ADMIN_PREFIX}{}\n", *text));
            self.publish(ADMIN_TOKEN, line.as_bytes())?;
        }
        let token = self.files.read(ADMIN_TOKEN)?;
        let hash = Fingerprint::of(token.trim().as_bytes());
        self.publish(ADMIN_HASH, format!("{hash}\n").as_bytes())
    }

    /// Nobody is told that all is there when it would not serve, or is open to others.
    fn check(&self) -> Result<(), InitError> {
        for file in [ROOT_KEY, ADMIN_TOKEN] {
            self.files.find(file)?;
        }
        DataDir::read(&self.files, None).map(drop)
    }

    fn private_key(&mut self, file: &str) -> Result<PrivateKey, InitError> {
        if self.files.find(file)?.is_none() {
            let key = PrivateKey::generate().map_err(|error| InitError::generate(file, error))?;
            self.publish(file, key.to_pem().as_bytes())?;
        }
        load::private_key(&self.files, file)
    }

    fn signing_key(&mut self, file: &str) -> Result<SigningKey, InitError> {
        if self.files.find(file)?.is_none() {
            let key = SigningKey::generate().map_err(|error| InitError::generate(file, error))?;
            self.publish(file, pem::ed25519_key(&key.seed()).as_bytes())?;
        }
        load::signing_key(&self.files, file)
    }

    fn publish(&mut self, file: &str, content: &[u8]) -> Result<(), InitError> {
        self.files.publish(file, content)?;
        self.created.push(file.to_owned());
        Ok(())
    }
}

fn key_file(repository: &str, role: &str) -> String {
    format!("keys/{repository}-{role}.key")
}

fn root_file(repository: &str, version: u64) -> String {
    format!("tuf/{repository}/{version}.root.json")
}
