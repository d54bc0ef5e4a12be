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

crate::text_forms!(KeyId);

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
        let keyval = object.get("keyval").and_then(Value::as_object).ok_or(KeyError::Member("keyval"))?;
        let public = member(keyval, "public")?;
        let material = Material::parse(keytype, scheme, public).unwrap_or(Material::Unusable);
        Ok(Self { id: KeyId::of(&object)?, object, material })
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
            ("keyval".to_owned(), Value::Object(Map::from_iter([("public".to_owned(), hex.into())]))),
        ]);
        let id = KeyId(Sha256::digest(canonical.as_bytes()).into());
        Self { id, object, material: Material::Ed25519(public) }
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
            Material::EcdsaP256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(message, signature).is_ok()
            }
            Material::RsaPss(public) => {
                UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, public).verify(message, signature).is_ok()
            }
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
    object.get(name).and_then(Value::as_str).ok_or(KeyError::Member(name))
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
    let names_algorithm = info.algorithm.algorithm.to_id_string() == algorithm;
    let names_curve = |curve: &str| {
        let parameters = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        parameters.is_some_and(|oid| oid.to_id_string() == curve)
    };
    let fits = rest.is_empty() && names_algorithm && curve.is_none_or(names_curve);
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
        Signature { keyid: self.public.id, bytes: self.secret.sign(message).to_bytes().to_vec() }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    // Keys and signatures over "drayage" made by securesystemslib 1.6.0: keytype, scheme, public, id, signature.
    const FOREIGN: [[&str; 5]; 3] = [
        [
            "ed25519",
            "ed25519",
            "621d756e2c4bb4cfb609e80be213cbddcef5af242a94814685cc43e240a1f16c",
            "02ee1d7fb98bd316c50999d2121cc4e58e416f60057d83bb9c2644625219906a",
            "f20cc3cf6b47c424c7155900752bd67ee82f7ab0cb1c6c28ee22d3778ccdd37d82e89a3b7998756ec36800893b\
             0f745572c0fa25a4ecdc1a4e26505e219ccc01",
        ],
        [
            "ecdsa",
            "ecdsa-sha2-nistp256",
            "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEYh4T32zwrXsT9cJ3EbF51bhvrf\
             5m\nZmTS03r3XApi6KJNktB9saDS83jSriATw/jSIEUxwp6fc+Eo0zm/M6xnuA==\n-----END PUBLIC KEY-----\
             \n",
            "303d1b34ca652e2dc0ae19ca0879248dd502abed759f6cdee12b94c315379ab0",
            "3044022017058d5d47027a207c691706657f866f28f997dc8560dd2ac3bd12114279db0d022068c5967b88fa45\
             0afd138d5547825c34e6e857d2a72fd58dd3605c12332b49c0",
        ],
        [
            "rsa",
            "rsassa-pss-sha256",
            "-----BEGIN PUBLIC KEY-----\nMIIBojANBgkqhkiG9w0BAQEFAAOCAY8AMIIBigKCAYEAtFdWho5EI9CarHs4Ed\
             Pq\ntNK2g8mTW2ERY2UvOl4iyMCCMteQNbchYpT7nbvCQI7VUSpRxEiukvCORKh2IgjR\nTVjZ38l2KT/L8Yw32wrR\
             0QwST9RakwoLnuH5N1fJAbuRHdQpLLzzBJB2d3NFMfOZ\n8/Cp2IFRIPS1AVVljnwpvxzfdTfG3ZSpR3V6l4OUDQwc\
             cnlnoiZH/Ps2Dzb+R8Tn\nPE9hozK950OkhEZYWg6yWfgxK5PJRxG/cbujMMvZt0M+/8+taYIl05ZRFcQ46Cjr\nw4\
             fAglWvR9sbDCKXjkk1I1rELbsXaQBFoIvPElQ7NS8NrR6w4RMGhn2sLDJqwc2M\nkTWcX+X69eaNbkjJLgx9Vz49Py\
             jP10SDzaZWoZGYdOkpNXZ0nMLDFBup41yhkl0+\n3FCr2Gh1XqKefXdutaXE7W2DzFXEDjehGoKMrf4vqrQNCsmzU8\
             CunuDD37LydlKh\n1r8LSGKCfQpsnNhZnvGYjXMGQSnevpPAIFlbEZxKAUt3AgMBAAE=\n-----END PUBLIC KEY-\
             ----\n",
            "a3a04a0e41459baeafca18f7031d95032b28f77590f34935fb6f1740bfe0633f",
            "b1b15ebce0c4d654234c32ffe77efdc80ed0a4a720fb3640bfefc8768c63253d96ed34e4ed5e85c6c2586d22ee\
             b1f838c8157f8845af2f217d83554a3694fbf25c08d07018bd62c5af4b029f252b20bf59582d422120157d6647\
             13df2f24f6b335174d877402093037eb84361aa0e3a9493ceb3da263dcb718cffc671b71d8f63bdb139bc196d0\
             ef70ce17133fe0c9fbfe56f55c6e0b7f566908b63bb8579641fad4cd0cb7a7a626a4d74db0e120e25848a46bf5\
             a626352960707e8a65109537a4758f73e29aaa268cd44145d148a11f34ec400f7e5c4febc6c5ce0e8652e7652c\
             1def450881b50cb7d2070834baa0be981ac699dc5f699ce50c3fc21cd5b752879a532b1fd27dad469f6e1893b5\
             6a9ef32c202b97fa417f0bad27dbc2abe07eb5a3631752e9ffd1cadee04072004c51fbeea7cb810cb500fe47ce\
             14e999640eaf3cfb8e43f9553d6677cc21a89307df62f31b68e6863d67ac89f7f5923a754836f865ddf9945ea3\
             c949b387004af82e07fbbd14e45b87a6519045f932a8775f",
        ],
    ];

    fn foreign(entry: &[&str; 5]) -> PublicKey {
        let [keytype, scheme, public, _, _] = entry;
        object(&json!({"keytype": keytype, "scheme": scheme, "keyval": {"public": public}}))
    }

    fn object(value: &Value) -> PublicKey {
        PublicKey::from_object(value.as_object().unwrap().clone()).unwrap()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        HEXLOWER.decode(hex.as_bytes()).unwrap()
    }

    #[test]
    fn verifies_what_securesystemslib_signs() {
        for entry in &FOREIGN {
            let key = foreign(entry);
            assert_eq!(key.id().to_string(), entry[3]);
            assert!(key.is_usable());
            assert!(key.verifies(b"drayage", &bytes(entry[4])), "{}", entry[0]);
            assert!(!key.verifies(b"drayagE", &bytes(entry[4])), "{}", entry[0]);
            assert!(!key.verifies(b"drayage", b""));
        }
    }

    #[test]
    fn rejects_signatures_with_any_bit_flipped() {
        for entry in &FOREIGN {
            let (key, mut signature) = (foreign(entry), bytes(entry[4]));
            for bit in 0..signature.len() * 8 {
                signature[bit / 8] ^= 1 << (bit % 8);
                assert!(!key.verifies(b"drayage", &signature), "{} bit {bit}", entry[0]);
                signature[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn takes_the_bare_point_of_an_ecdsa_key_as_the_same_key() {
        let pem = foreign(&FOREIGN[1]);
        let Material::EcdsaP256(point) = pem.material() else { panic!("not ecdsa") };
        let bare = object(&json!({
            "keytype": "ecdsa-sha2-nistp256",
            "scheme": "ecdsa-sha2-nistp256",
            "keyval": {"public": HEXLOWER.encode(point)},
        }));
        assert_ne!(bare.id(), pem.id());
        assert_eq!(bare.material(), pem.material());
        assert!(bare.verifies(b"drayage", &bytes(FOREIGN[1][4])));
    }

    #[test]
    fn key_id_covers_unknown_fields() {
        let key = SigningKey::from_seed(&[7; 32]);
        let mut with_more = key.public().object().clone();
        with_more.insert("x-owner".to_owned(), "someone".into());
        let with_more = PublicKey::from_object(with_more).unwrap();
        assert_ne!(with_more.id(), key.public().id());
        assert_eq!(with_more.material(), key.public().material());
        assert_eq!(object(&json!(key.public().object())).id(), key.public().id());
    }

    #[test]
    fn keeps_keys_it_cannot_use_and_never_verifies_with_them() {
        let hex = HEXLOWER.encode(&[1; 32]);
        for (keytype, scheme, public) in [
            ("sphincs", "sphincs-shake-128s", hex.as_str()),
            ("ed25519", "ed25519ph", &hex),
            ("ed25519", "ed25519", &hex[2..]),
            ("ed25519", "ed25519", "not hexadecimal"),
            ("ed25519", "ed25519", FOREIGN[1][2]),
            ("ecdsa", "ecdsa-sha2-nistp256", FOREIGN[2][2]),
            ("ecdsa", "ecdsa-sha2-nistp256", "04"),
            ("rsa", "rsassa-pss-sha256", FOREIGN[1][2]),
            ("rsa", "rsassa-pss-sha256", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----"),
        ] {
            let key = object(&json!({"keytype": keytype, "scheme": scheme, "keyval": {"public": public}}));
            assert!(!key.is_usable(), "{keytype} {scheme}");
            assert!(!key.verifies(b"drayage", &[0; 64]));
        }
    }

    #[test]
    fn rejects_objects_that_are_not_keys() {
        for value in [
            json!({}),
            json!({"keytype": "ed25519", "scheme": "ed25519"}),
            json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": null}),
            json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": null}}),
            json!({"keytype": 1, "scheme": "ed25519", "keyval": {"public": ""}}),
        ] {
            let object = value.as_object().unwrap().clone();
            assert!(matches!(PublicKey::from_object(object), Err(KeyError::Member(_))), "{value}");
        }
        let fraction = json!({"keytype": "a", "scheme": "b", "keyval": {"public": ""}, "x": 1.5});
        let object = fraction.as_object().unwrap().clone();
        assert!(matches!(PublicKey::from_object(object), Err(KeyError::Canonical(_))));
    }

    #[test]
    fn rejects_ed25519_keys_of_small_order() {
        // Under the identity point, the zero signature fits every message unless verification is strict.
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!PublicKey::ed25519(identity).verifies(b"anything", &signature));
    }

    #[test]
    fn rejects_key_ids_that_are_not_64_lower_case_digits() {
        let good = FOREIGN[0][3];
        assert_eq!(good.parse::<KeyId>().unwrap().to_string(), good);
        for text in ["", &good[1..], &good.to_uppercase(), &format!("{good}0"), &"z".repeat(64), "é"] {
            assert!(text.parse::<KeyId>().is_err(), "{text}");
        }
    }

    #[test]
    fn signing_key_does_not_print_its_secret() {
        let key = SigningKey::from_seed(&[0xab; 32]);
        assert_eq!(format!("{key:?}"), format!("SigningKey({})", key.public().id()));
        assert_eq!(*key.seed(), [0xab; 32]);
        assert_ne!(SigningKey::generate().unwrap().seed(), SigningKey::generate().unwrap().seed());
    }

    proptest! {
        #[test]
        fn signs_what_its_public_half_verifies(seed: [u8; 32], message: Vec<u8>) {
            let key = SigningKey::from_seed(&seed);
            let signature = key.sign(&message);
            prop_assert_eq!(signature.keyid, key.public().id());
            prop_assert!(key.public().verifies(&message, &signature.bytes));
        }
    }
}
