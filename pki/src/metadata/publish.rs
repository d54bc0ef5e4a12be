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
        Self { keyid: signature.keyid.to_string(), sig: data_encoding::HEXLOWER.encode(&signature.bytes) }
    }
}

/// Signs a document with each of `keys`: the bytes to store and to serve.
pub fn sign<T: Document>(document: &T, keys: &[&SigningKey]) -> Result<Vec<u8>, PublishError> {
    document.check().map_err(|source| PublishError::Flawed {
        role: T::TYPE,
        version: document.version(),
        source,
    })?;
    let unwritable = |source| PublishError::Unwritable { role: T::TYPE, source };
    let mut signed: Map<String, Value> =
        serde_json::to_value(document).and_then(serde_json::from_value).map_err(unwritable)?;
    signed.insert("_type".to_owned(), T::TYPE.into());
    signed.insert("spec_version".to_owned(), SPEC_VERSION.into());
    let mut envelope = Envelope { signatures: Vec::new(), signed };
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
        serde_json::to_vec(self).map_err(|source| PublishError::Unwritable { role: "signed", source })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::*;
    use super::super::verify::{Authority, Signed};
    use super::*;

    #[test]
    fn several_signers_sign_one_file_one_after_another() {
        let repository = Repository::new();
        let keys = [1, 2, 3].map(key);
        let mut file = sign(&repository.targets, &[]).unwrap();
        for key in [&keys[0], &keys[1], &keys[0]] {
            file = add_signature(&file, key).unwrap();
        }
        let public = keys.iter().map(|key| (key.public().id(), key.public().clone())).collect();
        let keyids: Vec<_> = keys.iter().map(|key| key.public().id()).collect();
        let authority = Authority { delegator: "test", keys: &public, keyids: &keyids, threshold: 3 };
        let count = |file: &[u8]| {
            Signed::<Targets>::parse("targets", file, 1 << 20).unwrap().count_signers(authority)
        };
        assert_eq!(count(&file), 2);
        file = add_signature(&file, &keys[2]).unwrap();
        assert_eq!(count(&file), 3);
        assert!(Signed::<Targets>::parse("targets", &file, 1 << 20).unwrap().verify(authority).is_ok());
    }

    #[test]
    fn rejects_a_signature_from_elsewhere_that_does_not_verify() {
        let repository = Repository::new();
        let file = sign(&repository.targets, &[]).unwrap();
        let (one, other) = (key(1), key(2));
        let good = one.sign(&message(&file).unwrap());
        assert!(attach_signature(&file, one.public(), good.clone()).is_ok());
        assert!(matches!(attach_signature(&file, other.public(), good), Err(PublishError::BadSignature(_))));
        let over_other_bytes = one.sign(b"something else");
        let refused = attach_signature(&file, one.public(), over_other_bytes);
        assert!(matches!(refused, Err(PublishError::BadSignature(_))));
    }

    #[test]
    fn rejects_to_sign_what_no_client_accepts() {
        let mut repository = Repository::new();
        repository.root.roles.targets.threshold = 0;
        assert!(matches!(sign(&repository.root, &[&key(1)]), Err(PublishError::Flawed { .. })));
        repository.targets.version = 0;
        assert!(matches!(sign(&repository.targets, &[]), Err(PublishError::Flawed { .. })));
        repository.targets.version = 1;
        repository.targets.extra.insert("ratio".into(), json!(0.5));
        assert!(matches!(sign(&repository.targets, &[]), Err(PublishError::NotCanonical(_))));
    }

    #[test]
    fn a_successor_differs_in_version_and_expiry_only() {
        let repository = Repository::new();
        let next = repository.root.successor(time(NOW));
        assert_eq!((next.version, next.expires), (2, time(NOW)));
        assert_eq!(Root { version: 1, expires: repository.root.expires, ..next }, repository.root);
    }
}
