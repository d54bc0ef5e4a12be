//! Making metadata: signing it, adding signatures, and describing one file in the next.
//!
//! A publisher changes a document, raises its version, and signs it; the bytes that come out are stored and served as they
//! are. Several signers who never meet each add their signature to the same bytes. What is published passes the same checks
//! as what is received.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::roles::{self, Document, Flaw, Root, Snapshot, Targets};
use crate::canonical::{self, CanonicalError};
use crate::json::{self, JsonError};
use crate::key::{PublicKey, Signature, SigningKey};

/// The version of the TUF specification that we write.
pub const SPEC_VERSION: &str = "1.0.34";

/// Longest file to which a signature is added.
const MAX_FILE: usize = 4 << 20;

/// Why a document is not signed.
#[derive(Debug, Error)]
pub enum PublishError {
    /// No client would accept the document.
    #[error("{role} version {version} must not be signed")]
    Flawed {
        /// The role's type.
        role: &'static str,
        /// The version.
        version: u64,
        /// What is wrong.
        #[source]
        source: Flaw,
    },
    /// The document cannot be written as JSON.
    #[error("writing {role} metadata")]
    Unwritable {
        /// The role's type.
        role: &'static str,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The document has no canonical bytes.
    #[error("metadata has no canonical form")]
    NotCanonical(#[source] CanonicalError),
    /// The file to be signed is not signed metadata.
    #[error("file to be signed is not metadata")]
    Unreadable(#[source] JsonError),
    /// The signature is not of that key over this file.
    #[error("signature of key {0} does not verify for this file")]
    BadSignature(crate::key::KeyId),
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    signatures: Vec<WireSignature>,
    signed: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct WireSignature {
    keyid: String,
    sig: String,
}

impl From<Signature> for WireSignature {
    fn from(signature: Signature) -> Self {
        Self {
            keyid: signature.keyid.to_string(),
            sig: data_encoding::HEXLOWER.encode(&signature.bytes),
        }
    }
}

/// Signs a document with each of `keys`: the bytes to store and to serve.
pub fn sign<T: Document>(document: &T, keys: &[&SigningKey]) -> Result<Vec<u8>, PublishError> {
    document.check().map_err(|source| PublishError::Flawed {
        role: T::TYPE,
        version: document.version(),
        source,
    })?;
    let unwritable = |source| PublishError::Unwritable {
        role: T::TYPE,
        source,
    };
    let mut signed: Map<String, Value> = serde_json::to_value(document)
        .and_then(serde_json::from_value)
        .map_err(unwritable)?;
    signed.insert("_type".to_owned(), T::TYPE.into());
    signed.insert("spec_version".to_owned(), SPEC_VERSION.into());
    let mut envelope = Envelope {
        signatures: Vec::new(),
        signed,
    };
    let message = envelope.message()?;
    for key in keys {
        envelope.put(key.sign(&message));
    }
    envelope.write()
}

/// What it takes to publish a document again under the next version.
pub trait Successor: Document + Clone {
    /// The same document with the next version and another expiry, to be changed and signed.
    #[must_use]
    fn successor(&self, expires: Timestamp) -> Self;
}

macro_rules! successor {
    ($($role:ty),*) => {$(
        impl Successor for $role {
            fn successor(&self, expires: Timestamp) -> Self {
                Self { version: self.version.saturating_add(1), expires, ..self.clone() }
            }
        }
    )*};
}

successor!(Root, Snapshot, Targets, roles::Timestamp);

/// The bytes that a signer of `file` signs, for keys that live in a token or behind a command.
pub fn message(file: &[u8]) -> Result<Vec<u8>, PublishError> {
    Envelope::read(file)?.message()
}

/// Adds (or renews) the signature of one more key: m signers who never meet sign one file.
pub fn add_signature(file: &[u8], key: &SigningKey) -> Result<Vec<u8>, PublishError> {
    let signature = key.sign(&message(file)?);
    attach_signature(file, key.public(), signature)
}

/// Adds (or renews) a signature that was made elsewhere, once it verifies.
pub fn attach_signature(file: &[u8], key: &PublicKey, signature: Signature) -> Result<Vec<u8>, PublishError> {
    let mut envelope = Envelope::read(file)?;
    if signature.keyid != key.id() || !key.verifies(&envelope.message()?, &signature.bytes) {
        return Err(PublishError::BadSignature(signature.keyid));
    }
    envelope.put(signature);
    envelope.write()
}

impl Envelope {
    fn read(file: &[u8]) -> Result<Self, PublishError> {
        json::parse_as(file, MAX_FILE).map_err(PublishError::Unreadable)
    }

    fn message(&self) -> Result<Vec<u8>, PublishError> {
        canonical::object_to_bytes(&self.signed).map_err(PublishError::NotCanonical)
    }

    /// One signature per key id: clients refuse a file with two.
    fn put(&mut self, signature: Signature) {
        let signature = WireSignature::from(signature);
        self.signatures.retain(|other| other.keyid != signature.keyid);
        self.signatures.push(signature);
    }

    fn write(&self) -> Result<Vec<u8>, PublishError> {
        serde_json::to_vec(self).map_err(|source| PublishError::Unwritable {
            role: "signed",
            source,
        })
    }
}
