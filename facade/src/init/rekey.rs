//! The file of the sealing key, while the facade serves.
//!
//! In the data directory the facade makes the next key itself. A key that is kept elsewhere is the operator's to make; it
//! is taken only if the file still has the one before on a further line, or a crash would leave secrets that nobody opens.

use std::path::{Path, PathBuf};

use pki::seal::SealingKey;
use thiserror::Error;

use super::files::{Files, read_elsewhere};
use super::{InitError, SEAL_KEY};
use crate::catalog::keyring::Keyring;

/// Why there is no next key.
#[derive(Debug, Error)]
pub enum RekeyError {
    /// The files refuse.
    #[error(transparent)]
    Files(#[from] InitError),
    /// The operator's key file has the same key still.
    #[error(
        "{0} still begins with the key in use; put a new key on its first line, leave the old one on the second, and try again"
    )]
    NoNewKey(PathBuf),
    /// The operator's key file has lost the key in use.
    #[error(
        "{0} does not have the key in use any more; put it back on the second line until the change is done"
    )]
    OldKeyGone(PathBuf),
}

/// The keys to go on with: what the key file begins with if that is another key than the one in use, or a new key.
pub fn next_keyring(
    data_dir: &Path,
    elsewhere: Option<&Path>,
    held: &Keyring,
) -> Result<Keyring, RekeyError> {
    let files = Files::create(data_dir)?;
    let path = elsewhere.map_or_else(|| files.path(SEAL_KEY), Path::to_owned);
    let text = match elsewhere {
        Some(path) => read_elsewhere(path)?,
        None => files.find(SEAL_KEY)?,
    };
    let text =
        text.ok_or_else(|| InitError::Missing { path: path.clone(), data_dir: data_dir.to_owned() })?;
    let found = Keyring::from_text(&text).map_err(|error| InitError::unusable(&path, error))?;
    if !found.has(held.id()) {
        return Err(RekeyError::OldKeyGone(path));
    }
    if found.id() != held.id() {
        return Ok(found);
    }
    if elsewhere.is_some() {
        return Err(RekeyError::NoNewKey(path));
    }
    let key = SealingKey::generate().map_err(|error| InitError::generate(SEAL_KEY, error))?;
    let next = held.followed_by(key);
    files.replace(SEAL_KEY, next.to_text().as_bytes())?;
    Ok(next)
}
