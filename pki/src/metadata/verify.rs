//! Who signed: the one place where signatures are counted.
//!
//! [`Signed`] is a document that was read, and by whom is not known yet. [`Signed::verify`] holds it against the keys and
//! the threshold of whoever answers for it, and makes it [`Verified`]. There is no other way to get one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::MetadataError;
use super::roles::Document;
use crate::canonical;
use crate::json::{self, JsonError};
use crate::key::{KeyId, Material, PublicKey};

/// Most signatures that one file may carry.
pub const MAX_SIGNATURES: usize = 64;

/// A document as it came, with signatures that nobody has looked at.
#[derive(Clone, Debug)]
pub struct Signed<T> {
    role: String,
    document: T,
    bytes: Vec<u8>,
    canonical: Vec<u8>,
    signatures: Vec<(String, Vec<u8>)>,
}

/// A document that a threshold of its role's keys has signed.
#[derive(Clone, Debug)]
pub struct Verified<T> {
    document: T,
    bytes: Vec<u8>,
}

impl<T> Verified<T> {
    /// The file as it came, to be stored as it is.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.document
    }
}

/// The keys that answer for a role, and who says so.
#[derive(Clone, Copy, Debug)]
pub struct Authority<'a> {
    /// Who names the keys, for the error message.
    pub delegator: &'a str,
    /// All keys of the delegator.
    pub keys: &'a BTreeMap<KeyId, PublicKey>,
    /// The keys of the role.
    pub keyids: &'a [KeyId],
    /// How many distinct keys of the role must have signed.
    pub threshold: u64,
}

#[derive(Deserialize)]
struct Envelope {
    signed: Map<String, Value>,
    signatures: Vec<RawSignature>,
}

#[derive(Deserialize)]
struct RawSignature {
    keyid: String,
    sig: String,
}

impl<T: Document> Signed<T> {
    /// Reads the file of `role`, which is at most `max_bytes` long.
    pub fn parse(role: &str, bytes: &[u8], max_bytes: u64) -> Result<Self, MetadataError> {
        let unreadable = |source| MetadataError::Unreadable { role: role.to_owned(), source };
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let envelope: Envelope = json::parse_as(bytes, max_bytes).map_err(unreadable)?;
        let canonical = canonical::object_to_bytes(&envelope.signed)
            .map_err(|source| MetadataError::NotCanonical { role: role.to_owned(), source })?;
        let document = read_document(role, envelope.signed)?;
        let signatures = read_signatures(role, envelope.signatures)?;
        Ok(Self { role: role.to_owned(), document, bytes: bytes.to_vec(), canonical, signatures })
    }

    /// The document, believed by nobody yet.
    pub fn document(&self) -> &T {
        &self.document
    }

    /// The bytes that the signatures are over.
    pub fn canonical(&self) -> &[u8] {
        &self.canonical
    }

    /// How many distinct keys of the role have signed.
    ///
    /// Counted are keys, not signatures and not ids: one key under two ids is one key (python-tuf PYSEC-2020-147, tough
    /// CVE-2020-15093 and CVE-2026-6966, go-tuf f5edbde). A signature that is of no key of the role, or does not verify,
    /// counts for nothing and against nothing.
    pub fn count_signers(&self, authority: Authority<'_>) -> u64 {
        let mut signers: BTreeSet<&Material> = BTreeSet::new();
        for (keyid, signature) in &self.signatures {
            let Ok(keyid) = keyid.parse::<KeyId>() else {
                continue;
            };
            let Some(key) = authority.keys.get(&keyid) else {
                continue;
            };
            if authority.keyids.contains(&keyid) && key.verifies(&self.canonical, signature) {
                signers.insert(key.material());
            }
        }
        signers.len() as u64
    }

    /// Refuses unless a threshold of the role's keys has signed.
    pub fn demand(&self, authority: Authority<'_>) -> Result<(), MetadataError> {
        let valid = self.count_signers(authority);
        // A threshold of 0 is refused where documents are read; this keeps the rule true for any authority.
        if valid >= authority.threshold.max(1) {
            return Ok(());
        }
        Err(MetadataError::UnmetThreshold {
            role: self.role.clone(),
            version: self.document.version(),
            delegator: authority.delegator.to_owned(),
            valid,
            threshold: authority.threshold,
        })
    }

    /// Makes the document believable, if a threshold of the role's keys has signed.
    pub fn verify(self, authority: Authority<'_>) -> Result<Verified<T>, MetadataError> {
        self.demand(authority)?;
        Ok(Verified { document: self.document, bytes: self.bytes })
    }
}

impl Signed<super::roles::Root> {
    /// Makes a root believable, if a threshold of its own keys has signed.
    pub fn verify_by_itself(self) -> Result<Verified<super::roles::Root>, MetadataError> {
        self.demand(self.document.authority("root", &self.document.roles.root))?;
        Ok(Verified { document: self.document, bytes: self.bytes })
    }
}

impl super::roles::Root {
    /// The authority of this root over one of its roles.
    pub fn authority<'a>(&'a self, delegator: &'a str, role: &'a super::roles::RoleKeys) -> Authority<'a> {
        Authority { delegator, keys: &self.keys, keyids: &role.keyids, threshold: role.threshold }
    }
}

fn read_document<T: Document>(role: &str, mut signed: Map<String, Value>) -> Result<T, MetadataError> {
    let text = |value: Option<Value>| value.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
    let found = text(signed.remove("_type"));
    if found != T::TYPE {
        return Err(MetadataError::WrongType { role: role.to_owned(), expected: T::TYPE, found });
    }
    let found = text(signed.remove("spec_version"));
    if !is_supported(&found) {
        return Err(MetadataError::SpecVersion { role: role.to_owned(), found });
    }
    let document: T = serde_json::from_value(Value::Object(signed)).map_err(|source| {
        MetadataError::Unreadable { role: role.to_owned(), source: JsonError::Shape(source) }
    })?;
    document.check().map_err(|source| MetadataError::Flawed { role: role.to_owned(), source })?;
    Ok(document)
}

/// TUF 4.1: `1.x` or `1.x.y`; anything that shares our major version is compatible.
fn is_supported(spec_version: &str) -> bool {
    let mut parts = spec_version.split('.');
    let major = parts.next();
    let rest: Vec<&str> = parts.collect();
    let number =
        |part: &&str| (1..=9).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    major == Some("1") && matches!(rest.len(), 1 | 2) && rest.iter().all(number)
}

/// A signature that is not hexadecimal is a signature that does not verify, never a reason to refuse the file: others may
/// meet the threshold, and root ceremonies leave empty ones.
fn read_signatures(role: &str, raw: Vec<RawSignature>) -> Result<Vec<(String, Vec<u8>)>, MetadataError> {
    if raw.len() > MAX_SIGNATURES {
        return Err(MetadataError::TooManySignatures { role: role.to_owned(), limit: MAX_SIGNATURES });
    }
    let mut signatures: Vec<(String, Vec<u8>)> = Vec::new();
    for RawSignature { keyid, sig } in raw {
        if signatures.iter().any(|(seen, _)| *seen == keyid) {
            let keyid = keyid.chars().take(64).collect();
            return Err(MetadataError::RepeatedSignature { role: role.to_owned(), keyid });
        }
        signatures.push((keyid, HEXLOWER.decode(sig.as_bytes()).unwrap_or_default()));
    }
    Ok(signatures)
}
