//! What the running facade adds to its data directory: keys, roots, and the witness of what it has published.
//!
//! All of it lies outside the database, so that a database restored from an older copy contradicts it.

use std::path::{Path, PathBuf};

use pki::key::{KeyId, SigningKey};
use pki::x509::pem;
use zeroize::Zeroizing;

use super::files::Files;
use super::{InitError, load, root_file};

const WITNESS: &str = "witness.json";

/// The data directory, as the publishing side writes to it.
#[derive(Clone, Debug)]
pub struct Vault(PathBuf);

impl Vault {
    /// The vault of a data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self(data_dir.to_owned())
    }

    /// Keeps a new key, before anything vouches for it.
    pub fn put_key(&self, repository: &str, role: &str, key: &SigningKey) -> Result<(), InitError> {
        let id = key.public().id().to_string();
        let short = id.get(..16).unwrap_or(&id);
        let name = format!("keys/{repository}-{role}-{short}.key");
        Files::open(&self.0)?.publish(&name, pem::ed25519_key(&key.seed()).as_bytes())
    }

    /// Removes a key that no root vouches for any more.
    pub fn remove_key(&self, repository: &str, id: KeyId) -> Result<(), InitError> {
        let files = Files::open(&self.0)?;
        for name in files.list("keys")? {
            let name = format!("keys/{name}");
            if name.starts_with(&format!("keys/{repository}-"))
                && load::signing_key(&files, &name)?.public().id() == id
            {
                files.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Keeps a root; from here on it is the current one.
    pub fn put_root(&self, repository: &str, version: u64, bytes: &[u8]) -> Result<(), InitError> {
        Files::open(&self.0)?.publish(&root_file(repository, version), bytes)
    }

    /// The witness, if there is one.
    pub fn witness(&self) -> Result<Option<Zeroizing<String>>, InitError> {
        Files::open(&self.0)?.find(WITNESS)
    }

    /// Replaces the witness.
    pub fn put_witness(&self, text: &str) -> Result<(), InitError> {
        Files::open(&self.0)?.replace(WITNESS, text.as_bytes())
    }
}
