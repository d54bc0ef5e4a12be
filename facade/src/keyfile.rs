//! Key files under a passphrase, for keys that stay with an operator.
//!
//! Argon2id makes a key of the passphrase, and that key seals the signing key's seed. The public key stands in the open, so
//! that a colleague can be told it; it is part of what is sealed, so that no other can be put in its place.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::BASE64URL_NOPAD;
use pki::key::{KeyError, PublicKey, SigningKey};
use pki::seal::{Context, SealError, Sealed, SealingKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// 64 MiB and three passes: the second recommendation of RFC 9106, section 4.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;

/// A file may not make us compute for longer than this much memory takes.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;
const MAX_PASSES: u32 = 16;

const MAX_BYTES: usize = 64 * 1024;
const MIN_PASSPHRASE: usize = 12;

/// Why a key file cannot be made or opened.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// The system refuses.
    #[error("cannot {action} the file")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// It is not a key file.
    #[error("not a key file of this version")]
    Malformed,
    /// The passphrase is too easily guessed.
    #[error("the passphrase is shorter than {MIN_PASSPHRASE} characters")]
    Passphrase,
    /// Wrong passphrase, or the file was changed.
    #[error("the passphrase is wrong, or the file was changed")]
    Wrong,
    /// No key could be made.
    #[error("no key could be made")]
    Key(#[source] KeyError),
    /// It could not be sealed.
    #[error("the key could not be sealed")]
    Seal(#[source] SealError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    drayage_key: u32,
    public: PublicKey,
    salt: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    sealed: Sealed,
}

/// Makes a key and keeps it in a new file.
pub fn create(path: &Path, passphrase: &Secret) -> Result<SigningKey, KeyFileError> {
    if passphrase.expose().chars().count() < MIN_PASSPHRASE {
        return Err(KeyFileError::Passphrase);
    }
    let key = SigningKey::generate().map_err(KeyFileError::Key)?;
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|error| KeyFileError::Key(KeyError::Randomness(error)))?;
    let sealing = derive(passphrase, &salt, MEMORY_KIB, PASSES, LANES)?;
    let id = key.public().id().to_string();
    let sealed = sealing
        .seal(&*key.seed(), place(&id))
        .map_err(KeyFileError::Seal)?;
    let file = File {
        drayage_key: 1,
        public: key.public().clone(),
        salt: BASE64URL_NOPAD.encode(&salt),
        memory_kib: MEMORY_KIB,
        passes: PASSES,
        lanes: LANES,
        sealed,
    };
    let text = serde_json::to_string_pretty(&file).map_err(|_| KeyFileError::Malformed)?;
    write(path, text.as_bytes()).map_err(|source| KeyFileError::Io {
        action: "write",
        source,
    })?;
    Ok(key)
}

/// The public half, which takes no passphrase.
pub fn public(path: &Path) -> Result<PublicKey, KeyFileError> {
    Ok(read(path)?.public)
}

/// Opens a key file.
pub fn open(path: &Path, passphrase: &Secret) -> Result<SigningKey, KeyFileError> {
    let file = read(path)?;
    let salt = BASE64URL_NOPAD
        .decode(file.salt.as_bytes())
        .map_err(|_| KeyFileError::Malformed)?;
    let sealing = derive(passphrase, &salt, file.memory_kib, file.passes, file.lanes)?;
    let id = file.public.id().to_string();
    // The id of the sealing key is derived from the passphrase too, and is bound to it: rebuild what we would have sealed.
    let seed = sealing
        .open(&file.sealed, place(&id))
        .map_err(|_| KeyFileError::Wrong)?;
    let seed: Zeroizing<[u8; 32]> =
        Zeroizing::new(seed.as_slice().try_into().map_err(|_| KeyFileError::Wrong)?);
    let key = SigningKey::from_seed(&seed);
    if key.public().id() == file.public.id() {
        Ok(key)
    } else {
        Err(KeyFileError::Wrong)
    }
}

fn place(id: &str) -> Context<'_> {
    Context {
        host: "offline-key",
        field: id,
        version: 1,
    }
}

fn derive(
    passphrase: &Secret,
    salt: &[u8],
    memory: u32,
    passes: u32,
    lanes: u32,
) -> Result<SealingKey, KeyFileError> {
    if memory > MAX_MEMORY_KIB || passes > MAX_PASSES {
        return Err(KeyFileError::Malformed);
    }
    let parameters = Params::new(memory, passes, lanes, Some(32)).map_err(|_| KeyFileError::Malformed)?;
    let mut master = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
        .hash_password_into(passphrase.expose().as_bytes(), salt, &mut *master)
        .map_err(|_| KeyFileError::Malformed)?;
    let encoded = Zeroizing::new(BASE64URL_NOPAD.encode(&*master));
    SealingKey::from_text(&format!("{}{}", pki::seal::KEY_PREFIX, *encoded)).map_err(KeyFileError::Seal)
}

fn read(path: &Path) -> Result<File, KeyFileError> {
    let bytes = std::fs::read(path).map_err(|source| KeyFileError::Io {
        action: "read",
        source,
    })?;
    let file: File = pki::json::parse_as(&bytes, MAX_BYTES).map_err(|_| KeyFileError::Malformed)?;
    if file.drayage_key == 1 {
        Ok(file)
    } else {
        Err(KeyFileError::Malformed)
    }
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn opens_with_its_passphrase_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.key");
        let passphrase = secret("correct horse battery");
        let key = create(&path, &passphrase).unwrap();
        assert_eq!(open(&path, &passphrase).unwrap().public(), key.public());
        assert_eq!(public(&path).unwrap(), *key.public());
        assert!(matches!(
            open(&path, &secret("correct horse batterz")),
            Err(KeyFileError::Wrong)
        ));
        let text = std::fs::read_to_string(&path).unwrap();
        let seed = data_encoding::HEXLOWER.encode(&*key.seed());
        assert!(!text.contains(&seed));
        // An existing key is never written over.
        assert!(matches!(create(&path, &passphrase), Err(KeyFileError::Io { .. })));
    }

    #[test]
    fn rejects_a_short_passphrase_and_a_public_key_that_was_put_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.key");
        assert!(matches!(
            create(&path, &secret("short")),
            Err(KeyFileError::Passphrase)
        ));
        let passphrase = secret("correct horse battery");
        create(&path, &passphrase).unwrap();
        let mut file = read(&path).unwrap();
        file.public = SigningKey::generate().unwrap().public().clone();
        std::fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
        assert!(matches!(open(&path, &passphrase), Err(KeyFileError::Wrong)));
    }
}
