//! Keys of signed metadata: what verifies, what signs, and the ids by which metadata names them.
//!
//! We sign with Ed25519. Verification also takes ECDSA P-256 and RSA-PSS, so that roots made by other TUF tools can be
//! followed. A key object is kept as it was received, because its id covers every field of it, also those unknown to us;
//! a key that this build cannot use is kept too, and never verifies anything.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use ed25519_dalek::Signer as _;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::Zeroizing;

use crate::canonical::{self, CanonicalError};

/// Why something is not a key, or cannot be made one.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The text is not 64 lower-case hexadecimal digits.
    #[error("key id {0:?} is not 64 lower-case hexadecimal digits")]
    KeyId(String),
    /// A member that every key object has is missing or of another type.
    #[error("key object has no usable {0:?}")]
    Member(&'static str),
    /// The key object cannot be written canonically, so it has no id.
    #[error("key object has no canonical form")]
    Canonical(#[source] CanonicalError),
    /// The operating system gave no randomness.
    #[error("drawing randomness for a new key")]
    Randomness(#[source] getrandom::Error),
}

/// The id of a key: SHA-256 over the canonical bytes of its key object (TUF 4.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 32]);

impl KeyId {
    fn of(object: &Map<String, Value>) -> Result<Self, KeyError> {
        let bytes = canonical::object_to_bytes(object).map_err(KeyError::Canonical)?;
        Ok(Self(Sha256::digest(&bytes).into()))
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let malformed = || KeyError::KeyId(text.chars().take(80).collect());
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| malformed())?;
        bytes.try_into().map(Self).map_err(|_| malformed())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A public key as metadata carries it.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    object: Map<String, Value>,
    material: Material,
}

/// What verifies: the algorithm and the key's own bytes, without the wrapping they came in.
///
/// Two keys of equal material are one key, whatever their ids say (tough CVE-2020-15093, go-tuf f5edbde).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Material {
    Ed25519([u8; 32]),
    EcdsaP256(Vec<u8>),
    RsaPss(Vec<u8>),
    Unusable,
}

impl PublicKey {
    /// Takes a key object as it stands in metadata.
    pub fn from_object(object: Map<String, Value>) -> Result<Self, KeyError> {
        let keytype = member(&object, "keytype")?;
        let scheme = member(&object, "scheme")?;
        let keyval = object
            .get("keyval")
            .and_then(Value::as_object)
            .ok_or(KeyError::Member("keyval"))?;
        let public = member(keyval, "public")?;
        let material = Material::parse(keytype, scheme, public).unwrap_or(Material::Unusable);
        Ok(Self {
            id: KeyId::of(&object)?,
            object,
            material,
        })
    }

    /// The key object of a raw Ed25519 key.
    pub fn ed25519(public: [u8; 32]) -> Self {
        let hex = HEXLOWER.encode(&public);
        // The canonical form is written out here, because this one cannot fail.
        let canonical =
            format!(r#"{{"keytype":"ed25519","keyval":{{"public":"{hex}"}},"scheme":"ed25519"}}"#);
        let object = Map::from_iter([
            ("keytype".to_owned(), Value::from("ed25519")),
            ("scheme".to_owned(), Value::from("ed25519")),
            (
                "keyval".to_owned(),
                Value::Object(Map::from_iter([("public".to_owned(), hex.into())])),
            ),
        ]);
        let id = KeyId(Sha256::digest(canonical.as_bytes()).into());
        Self {
            id,
            object,
            material: Material::Ed25519(public),
        }
    }

    /// The key's id, computed from all of its object.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The key object as metadata carries it.
    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    /// Whether this build can verify with the key.
    pub fn is_usable(&self) -> bool {
        self.material != Material::Unusable
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        use ring::signature::{ECDSA_P256_SHA256_ASN1, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
        match &self.material {
            Material::Ed25519(public) => verifies_ed25519(public, message, signature),
            Material::EcdsaP256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
                .verify(message, signature)
                .is_ok(),
            Material::RsaPss(public) => UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, public)
                .verify(message, signature)
                .is_ok(),
            Material::Unusable => false,
        }
    }

    pub(crate) fn material(&self) -> &Material {
        &self.material
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_object(Map::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

fn member<'a>(object: &'a Map<String, Value>, name: &'static str) -> Result<&'a str, KeyError> {
    object
        .get(name)
        .and_then(Value::as_str)
        .ok_or(KeyError::Member(name))
}

/// Strict: refuses keys of small order, under which one signature fits many messages.
fn verifies_ed25519(public: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = ed25519_dalek::VerifyingKey::from_bytes(public) else {
        return false;
    };
    let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else {
        return false;
    };
    key.verify_strict(message, &signature).is_ok()
}

impl Material {
    fn parse(keytype: &str, scheme: &str, public: &str) -> Option<Self> {
        match (keytype, scheme) {
            ("ed25519", "ed25519") => {
                let bytes = HEXLOWER.decode(public.as_bytes()).ok()?;
                bytes.try_into().ok().map(Self::Ed25519)
            }
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                // securesystemslib writes PEM; early sigstore roots carry the bare point in hexadecimal.
                let point = HEXLOWER
                    .decode(public.as_bytes())
                    .ok()
                    .or_else(|| spki_key(public, EC_PUBLIC_KEY, Some(P256)))?;
                (point.len() == 65).then_some(Self::EcdsaP256(point))
            }
            ("rsa", "rsassa-pss-sha256") => spki_key(public, RSA_ENCRYPTION, None).map(Self::RsaPss),
            _ => None,
        }
    }
}

const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const RSA_ENCRYPTION: &str = "1.2.840.113549.1.1.1";

/// The key bits of a PEM `PUBLIC KEY` with the given algorithm and, where it has one, curve.
fn spki_key(pem: &str, algorithm: &str, curve: Option<&str>) -> Option<Vec<u8>> {
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (rest, info) = SubjectPublicKeyInfo::from_der(&der).ok()?;
    let found = info.algorithm.algorithm.to_id_string();
    let parameters = info.algorithm.parameters.as_ref();
    let found_curve = parameters
        .and_then(|any| any.as_oid().ok())
        .map(|oid| oid.to_id_string());
    let fits = rest.is_empty() && found == algorithm && found_curve.as_deref() == curve;
    fits.then(|| info.subject_public_key.data.to_vec())
}

/// A signature and the id of the key that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Whose signature it is.
    pub keyid: KeyId,
    /// The signature as its scheme writes it.
    pub bytes: Vec<u8>,
}

/// An Ed25519 key that signs metadata. Its secret is neither printed nor left in memory.
pub struct SigningKey {
    secret: ed25519_dalek::SigningKey,
    public: PublicKey,
}

impl SigningKey {
    /// Draws a new key.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(KeyError::Randomness)?;
        Ok(Self::from_seed(&seed))
    }

    /// The key that grows from a stored seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let secret = ed25519_dalek::SigningKey::from_bytes(seed);
        let public = PublicKey::ed25519(secret.verifying_key().to_bytes());
        Self { secret, public }
    }

    /// The seed, to be stored where only its owner reads it.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.secret.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature {
            keyid: self.public.id,
            bytes: self.secret.sign(message).to_bytes().to_vec(),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.id)
    }
}
