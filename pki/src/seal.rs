//! Secrets at rest: XChaCha20-Poly1305 under a key that is kept outside the database.
//!
//! A sealed value is bound to its place: the host it is for, the field and the version of the record. One that is copied
//! to another place, cut, changed, or sealed under another key does not open. What went wrong is told apart only as far
//! as an operator needs it (another key, or not authentic); no error carries a byte of the secret.

use std::fmt;
use std::str::FromStr;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use hkdf::Hkdf;
use sha2::Sha256;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// What the text form of a key begins with.
pub const KEY_PREFIX: &str = "drayage-seal-key.1.";
const SEALED_PREFIX: &str = "sealed.1.";
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// No secret of a registry is longer; a service account's key file is below 4 KiB.
const MAX_PLAINTEXT: usize = 64 * 1024;

/// Why a secret cannot be sealed or opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for sealing")]
    NoRandomness,
    /// The secret is too long.
    #[error("a secret of {0} bytes is too long to be sealed (at most {MAX_PLAINTEXT})")]
    TooLong(usize),
    /// The text is not a sealing key.
    #[error("the text is not a sealing key (expected {KEY_PREFIX}…)")]
    NotAKey,
    /// The text is not a sealed value.
    #[error("the text is not a sealed value (expected {SEALED_PREFIX}…)")]
    NotSealed,
    /// The value was sealed under another key.
    #[error("the value is sealed under key {found}, and the key at hand is {expected}")]
    OtherKey {
        /// The key it needs.
        found: SealingKeyId,
        /// The key that was used.
        expected: SealingKeyId,
    },
    /// The value was changed, or belongs to another place.
    #[error("the sealed value of {field} for {host} was changed or belongs elsewhere")]
    NotAuthentic {
        /// The host asked for.
        host: String,
        /// The field asked for.
        field: String,
    },
}

/// Where a sealed value belongs; it opens nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context<'a> {
    /// The registry host, or the name of whatever else owns the secret.
    pub host: &'a str,
    /// The field, such as `password`.
    pub field: &'a str,
    /// The version of the owning record, so that an older secret cannot be put back in its place.
    pub version: u64,
}

impl Context<'_> {
    /// Each part behind its length, so that no two contexts have the same bytes.
    fn associated_data(self) -> Vec<u8> {
        let mut bytes = b"drayage seal v1".to_vec();
        for part in [self.host, self.field] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes
    }
}

/// Which key sealed a value; says nothing about the key itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SealingKeyId([u8; 8]);

impl fmt::Display for SealingKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for SealingKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The key that seals and opens; wiped from memory when dropped.
#[derive(Clone)]
pub struct SealingKey {
    master: Zeroizing<[u8; 32]>,
    id: SealingKeyId,
}

impl SealingKey {
    /// Makes a new key.
    pub fn generate() -> Result<Self, SealError> {
        let mut master = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *master).map_err(|_| SealError::NoRandomness)?;
        Ok(Self::from_master(master))
    }

    /// Reads the text form of a key; white space around it is the editor's.
    pub fn from_text(text: &str) -> Result<Self, SealError> {
        let encoded = text.trim().strip_prefix(KEY_PREFIX).ok_or(SealError::NotAKey)?;
        let bytes =
            Zeroizing::new(BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| SealError::NotAKey)?);
        let master: [u8; 32] = bytes.as_slice().try_into().map_err(|_| SealError::NotAKey)?;
        Ok(Self::from_master(Zeroizing::new(master)))
    }

    /// The text form, for the key file and nothing else.
    pub fn to_text(&self) -> Zeroizing<String> {
        let encoded = Zeroizing::new(BASE64URL_NOPAD.encode(&*self.master));
        Zeroizing::new(format!("{KEY_PREFIX}{}\n", *encoded))
    }

    /// Which key this is.
    pub fn id(&self) -> SealingKeyId {
        self.id
    }

    /// Seals a secret for one place.
    pub fn seal(&self, secret: &[u8], context: Context<'_>) -> Result<Sealed, SealError> {
        if secret.len() > MAX_PLAINTEXT {
            return Err(SealError::TooLong(secret.len()));
        }
        // 192 random bits: no counter to keep, and no repetition to fear.
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| SealError::NoRandomness)?;
        let payload = Payload { msg: secret, aad: &context.associated_data() };
        let ciphertext = self
            .cipher()
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| SealError::TooLong(secret.len()))?;
        Ok(Sealed { key: self.id, nonce, ciphertext: ciphertext.into() })
    }

    /// Opens a sealed secret of one place.
    pub fn open(&self, sealed: &Sealed, context: Context<'_>) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if sealed.key != self.id {
            return Err(SealError::OtherKey { found: sealed.key, expected: self.id });
        }
        let payload = Payload { msg: &sealed.ciphertext, aad: &context.associated_data() };
        self.cipher().decrypt(&XNonce::from(sealed.nonce), payload).map(Zeroizing::new).map_err(|_| {
            SealError::NotAuthentic { host: context.host.to_owned(), field: context.field.to_owned() }
        })
    }

    fn from_master(master: Zeroizing<[u8; 32]>) -> Self {
        let mut id = [0; 8];
        derive(&master, b"drayage seal v1 key id", &mut id);
        Self { master, id: SealingKeyId(id) }
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        let mut key = Key::default();
        derive(&self.master, b"drayage seal v1 encryption", &mut key);
        let cipher = XChaCha20Poly1305::new(&key);
        key.as_mut_slice().zeroize();
        cipher
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({})", self.id)
    }
}

fn derive(master: &[u8; 32], purpose: &[u8], output: &mut [u8]) {
    // HKDF refuses only outputs above 255 hashes; ours are 8 and 32 bytes.
    let _ = Hkdf::<Sha256>::new(None, master).expand(purpose, output);
}

/// A sealed secret: `sealed.1.<key id>.<base64url of nonce and ciphertext>`. Safe to store, and safe to show.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    key: SealingKeyId,
    nonce: [u8; NONCE_BYTES],
    ciphertext: Box<[u8]>,
}

impl Sealed {
    /// The key that opens it, so that a change of keys can tell what is still to be sealed anew.
    pub fn key_id(&self) -> SealingKeyId {
        self.key
    }
}

impl FromStr for Sealed {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let (id, body) = text
            .strip_prefix(SEALED_PREFIX)
            .and_then(|rest| rest.split_once('.'))
            .ok_or(SealError::NotSealed)?;
        let id = HEXLOWER.decode(id.as_bytes()).map_err(|_| SealError::NotSealed)?;
        let body = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| SealError::NotSealed)?;
        let (nonce, ciphertext) = body.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::NotSealed)?;
        if ciphertext.len() < TAG_BYTES || ciphertext.len() > MAX_PLAINTEXT + TAG_BYTES {
            return Err(SealError::NotSealed);
        }
        Ok(Self {
            key: SealingKeyId(id.try_into().map_err(|_| SealError::NotSealed)?),
            nonce: *nonce,
            ciphertext: ciphertext.into(),
        })
    }
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = self.nonce.to_vec();
        body.extend_from_slice(&self.ciphertext);
        write!(f, "{SEALED_PREFIX}{}.{}", self.key, BASE64URL_NOPAD.encode(&body))
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(key {})", self.key)
    }
}

crate::serde_as_text!(Sealed);

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Context<'_> = Context { host: "ghcr.io", field: "password", version: 3 };

    fn sealed() -> (SealingKey, Sealed) {
        let key = SealingKey::generate().unwrap();
        let sealed = key.seal(b"hunter2", PLACE).unwrap();
        (key, sealed)
    }

    #[test]
    fn opens_what_it_sealed_after_both_went_through_text() {
        let (key, sealed) = sealed();
        let key = SealingKey::from_text(&key.to_text()).unwrap();
        let sealed: Sealed = serde_json::from_str(&serde_json::to_string(&sealed).unwrap()).unwrap();
        assert_eq!(key.open(&sealed, PLACE).unwrap().as_slice(), b"hunter2");
        assert_eq!(sealed.key_id(), key.id());
    }

    #[test]
    fn seals_the_same_secret_differently_each_time() {
        let (key, first) = sealed();
        assert_ne!(first, key.seal(b"hunter2", PLACE).unwrap());
    }

    #[test]
    fn rejects_another_key_and_names_both() {
        let (_, sealed) = sealed();
        let other = SealingKey::generate().unwrap();
        let error = other.open(&sealed, PLACE).unwrap_err();
        assert_eq!(error, SealError::OtherKey { found: sealed.key_id(), expected: other.id() });
    }

    #[test]
    fn rejects_a_value_that_claims_another_keys_id() {
        let (_, mut sealed) = sealed();
        let other = SealingKey::generate().unwrap();
        sealed.key = other.id();
        assert!(matches!(other.open(&sealed, PLACE), Err(SealError::NotAuthentic { .. })));
    }

    #[test]
    fn rejects_a_value_moved_to_another_host_field_or_version() {
        let (key, sealed) = sealed();
        for place in [
            Context { host: "quay.io", ..PLACE },
            Context { field: "username", ..PLACE },
            Context { version: 2, ..PLACE },
            // The boundary between the parts is authenticated too.
            Context { host: "ghcr.iop", field: "assword", ..PLACE },
        ] {
            assert!(matches!(key.open(&sealed, place), Err(SealError::NotAuthentic { .. })), "{place:?}");
        }
    }

    #[test]
    fn rejects_a_value_with_any_bit_flipped() {
        let (key, sealed) = sealed();
        for index in 0..sealed.ciphertext.len() {
            let mut changed = sealed.clone();
            changed.ciphertext[index] ^= 1;
            assert!(key.open(&changed, PLACE).is_err(), "byte {index}");
        }
        let mut changed = sealed;
        changed.nonce[0] ^= 1;
        assert!(key.open(&changed, PLACE).is_err());
    }

    #[test]
    fn rejects_texts_that_are_not_sealed_values() {
        let (_, sealed) = sealed();
        let text = sealed.to_string();
        let cut = &text[..SEALED_PREFIX.len() + 16 + 1 + 40];
        for text in [
            "",
            "sealed.1.",
            "hunter2",
            cut,
            &text.replace("sealed.1.", "sealed.2."),
            &format!("{text}="),
            &format!(" {text}"),
        ] {
            assert_eq!(text.parse::<Sealed>(), Err(SealError::NotSealed), "{text}");
        }
    }

    #[test]
    fn rejects_texts_that_are_not_keys() {
        let text = SealingKey::generate().unwrap().to_text();
        for text in ["", "drayage-seal-key.1.AAAA", &text.replace(".1.", ".2."), &text[..30]] {
            assert!(matches!(SealingKey::from_text(text), Err(SealError::NotAKey)), "{text}");
        }
    }

    #[test]
    fn rejects_secrets_beyond_the_limit() {
        let key = SealingKey::generate().unwrap();
        assert!(key.seal(&vec![0; MAX_PLAINTEXT], PLACE).is_ok());
        assert_eq!(key.seal(&vec![0; MAX_PLAINTEXT + 1], PLACE), Err(SealError::TooLong(MAX_PLAINTEXT + 1)));
    }

    #[test]
    fn does_not_print_what_it_holds() {
        let (key, sealed) = sealed();
        assert_eq!(format!("{key:?}"), format!("SealingKey({})", key.id()));
        assert_eq!(format!("{sealed:?}"), format!("Sealed(key {})", key.id()));
    }
}
