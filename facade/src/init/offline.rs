//! The keys that stay with the operator: all root keys, and the one that says which artifacts exist.
//!
//! They are made outside the data directory, under a passphrase, and never come into it. Beside them lies the root that
//! they signed: the operator's own start of trust when the server later asks for a signature.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use pki::key::SigningKey;
use pki::metadata::Targets;
use pki::metadata::publish::sign;
use serde_json::Map;

use super::InitError;
use super::files::Files;
use crate::keyfile;
use crate::secret::Secret;

/// How long the first, empty targets live: until the first artifact is signed.
const FIRST_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 365);

/// Where offline keys are made, and the passphrase that they are under.
#[derive(Clone, Debug)]
pub struct Offline {
    /// The directory.
    pub directory: PathBuf,
    /// The passphrase.
    pub passphrase: Secret,
}

impl Offline {
    /// The offline key of a role; what an interrupted run has made is used again.
    pub(super) fn key(&self, files: &Files, repository: &str, role: &str) -> Result<SigningKey, InitError> {
        let directory = self.outside(files.root())?;
        let path = directory.join(format!("{repository}-{role}.key"));
        let opened = if path.exists() {
            keyfile::open(&path, &self.passphrase)
        } else {
            keyfile::create(&path, &self.passphrase)
        };
        opened.map_err(|source| InitError::OfflineKey { path, source })
    }

    /// Leaves the root with the operator.
    pub(super) fn leave_root(&self, repository: &str, bytes: &[u8]) -> Result<(), InitError> {
        let path = self.directory.join(format!("{repository}.root.json"));
        fs::write(&path, bytes).map_err(|source| InitError::Io {
            action: "write",
            path,
            source,
        })
    }

    fn outside(&self, data_dir: &Path) -> Result<&Path, InitError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| InitError::Io {
                action: "make",
                path,
                source,
            }
        };
        fs::create_dir_all(&self.directory).map_err(failed(&self.directory))?;
        let here = self.directory.canonicalize().map_err(failed(&self.directory))?;
        let data_dir = data_dir.canonicalize().map_err(failed(data_dir))?;
        if here.starts_with(&data_dir) {
            return Err(InitError::NotOffline(self.directory.clone()));
        }
        Ok(&self.directory)
    }
}

/// The first targets of the images repository: nothing exists.
pub(super) fn empty_targets(now: Timestamp, key: &SigningKey) -> Result<Vec<u8>, InitError> {
    let failed = |error: jiff::Error| InitError::generate(super::FIRST_TARGETS, error);
    let now = Timestamp::from_second(now.as_second()).map_err(failed)?;
    let targets = Targets {
        version: 1,
        expires: now.checked_add(FIRST_LIFETIME).map_err(failed)?,
        targets: BTreeMap::new(),
        delegations: None,
        extra: Map::new(),
    };
    sign(&targets, &[key]).map_err(|error| InitError::generate(super::FIRST_TARGETS, error))
}
