//! A key in a PKCS#11 token: made there, used there, gone from there when its certificate is.
//!
//! Only P-256, which every token has. A call may take as long as the chip takes (a TPM signs in some 100 ms); it is made
//! once for each session with the facade and once for each certificate. A token that was reset forgets the session; then
//! one is opened anew, once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as TokenError, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use pki::x509::Fingerprint;
use rcgen::PublicKeyData as _;
use rustls::{SignatureAlgorithm, SignatureScheme};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::uri::is_own;
use super::{SignerError, TokenUri, read_outside};

/// The curve P-256 as an object identifier in DER (RFC 5480 2.1.1.1).
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// An uncompressed point of P-256.
const POINT_BYTES: usize = 65;

/// A key in a token.
#[derive(Debug)]
pub struct TokenKey {
    uri: TokenUri,
    point: Vec<u8>,
    open: Mutex<Open>,
}

/// The session in which the key was found.
#[derive(Debug)]
struct Open {
    session: Session,
    key: ObjectHandle,
}

impl TokenKey {
    /// The key that is in the token.
    pub(super) fn find(uri: &TokenUri) -> Result<Self, SignerError> {
        let session = log_in(uri)?;
        let missing = || failed("find the key", uri)("no key there has this name");
        look_up(&session, uri)?.ok_or_else(missing).map(|found| Self::new(uri, session, found))
    }

    /// The key, made if it is not there and may be made.
    pub(super) fn find_or_make(uri: &TokenUri) -> Result<Self, SignerError> {
        let session = log_in(uri)?;
        if look_up(&session, uri)?.is_none() && uri.is_own() {
            // What a power cut left of it.
            remove(&session, uri, |id| Some(id) == uri.id())?;
            make(&session, uri)?;
        }
        let missing = || failed("find the key", uri)("no key there has this name");
        look_up(&session, uri)?.ok_or_else(missing).map(|found| Self::new(uri, session, found))
    }

    fn new(uri: &TokenUri, session: Session, (key, point): (ObjectHandle, Vec<u8>)) -> Self {
        Self { uri: uri.clone(), point, open: Mutex::new(Open { session, key }) }
    }

    /// Which key it is.
    pub(super) fn uri(&self) -> &TokenUri {
        &self.uri
    }

    /// The SHA-256 of the public key (its `SubjectPublicKeyInfo`).
    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.subject_public_key_info())
    }

    /// ECDSA with SHA-256, in the DER form that certificates and TLS use.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        let hash = Sha256::digest(message);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let raw = match open.session.sign(&Mechanism::Ecdsa, open.key, &hash) {
            Ok(raw) => raw,
            Err(error) => {
                tracing::debug!(%error, "the token refused to sign; trying with a new session");
                let session = log_in(&self.uri)?;
                let missing = || failed("find the key", &self.uri)("no key there has this name");
                let (key, _) = look_up(&session, &self.uri)?.ok_or_else(missing)?;
                *open = Open { session, key };
                let signed = open.session.sign(&Mechanism::Ecdsa, open.key, &hash);
                signed.map_err(|error| failed("sign", &self.uri)(error))?
            }
        };
        signature(&raw)
            .ok_or_else(|| failed("sign", &self.uri)("it answers with something else than a signature"))
    }
}

impl rcgen::PublicKeyData for TokenKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for TokenKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign(message).map_err(|error| {
            tracing::error!(error = crate::error_chain(&error), "no certificate request");
            rcgen::Error::RemoteKeyError
        })
    }
}

/// The key as TLS uses it.
#[derive(Clone, Debug)]
pub(super) struct TlsKey(pub(super) Arc<TokenKey>);

impl rustls::sign::SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let known = offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256);
        known.then(|| Box::new(self.clone()) as Box<dyn rustls::sign::Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl rustls::sign::Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0.sign(message).map_err(|error| rustls::Error::General(crate::error_chain(&error)))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// Removes the keys that the agent made under the name of `place`, but for one.
pub(super) fn remove_others(place: &TokenUri, keep: Option<&TokenUri>) -> Result<(), SignerError> {
    let keep = keep.and_then(TokenUri::id);
    let session = log_in(place)?;
    remove(&session, place, |id| is_own(id) && Some(id) != keep)
}

/// A library is started once for a process, and stays.
static LIBRARIES: Mutex<BTreeMap<PathBuf, Pkcs11>> = Mutex::new(BTreeMap::new());

fn library(uri: &TokenUri) -> Result<Pkcs11, SignerError> {
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = libraries.get(uri.module()) {
        return Ok(library.clone());
    }
    let library = Pkcs11::new(uri.module()).map_err(|error| failed("load the library", uri)(error))?;
    match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(failed("start the library", uri)(error)),
    }
    libraries.insert(uri.module().to_owned(), library.clone());
    Ok(library)
}

/// A session with the token, as its user.
fn log_in(uri: &TokenUri) -> Result<Session, SignerError> {
    let library = library(uri)?;
    let slots =
        library.get_slots_with_initialized_token().map_err(|error| failed("list tokens", uri)(error))?;
    let mut found = Vec::new();
    let mut others = Vec::new();
    for slot in slots {
        let token = library.get_token_info(slot).map_err(|error| failed("list tokens", uri)(error))?;
        let named = uri.token().is_none_or(|label| label == token.label())
            && uri.serial().is_none_or(|serial| serial == token.serial_number());
        if named { found.push(slot) } else { others.push(token.label().to_owned()) }
    }
    let [slot] = found.as_slice() else {
        let problem = match found.len() {
            0 => format!("there is no such token (there are: {})", others.join(", ")),
            count => format!("{count} tokens have this name; add serial="),
        };
        return Err(failed("find the token", uri)(problem));
    };
    let session = library.open_rw_session(*slot).map_err(|error| failed("open a session", uri)(error))?;
    let Some(file) = uri.pin_source() else {
        return Ok(session);
    };
    let (pin, mode) = read_outside(file).map_err(|error| failed("read the PIN", uri)(error))?;
    if mode & 0o007 != 0 {
        return Err(SignerError::Exposed { path: file.to_owned() });
    }
    let pin = Zeroizing::new(String::from_utf8_lossy(&pin).trim_end().to_owned());
    match session.login(UserType::User, Some(&AuthPin::new(pin.as_str().into()))) {
        Ok(()) | Err(TokenError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
        Err(error) => Err(failed("log in", uri)(error)),
    }
}

/// The private key and its public point.
fn look_up(session: &Session, uri: &TokenUri) -> Result<Option<(ObjectHandle, Vec<u8>)>, SignerError> {
    let unusable = |error: TokenError| failed("look for the key", uri)(error);
    let find = |class| {
        let mut template = vec![Attribute::Class(class), Attribute::Label(uri.object().as_bytes().to_vec())];
        template.extend(uri.id().map(|id| Attribute::Id(id.to_vec())));
        session.find_objects(&template).map_err(unusable)
    };
    let (private, public) = (find(ObjectClass::PRIVATE_KEY)?, find(ObjectClass::PUBLIC_KEY)?);
    let ([private], [public]) = (private.as_slice(), public.as_slice()) else {
        if private.len() > 1 || public.len() > 1 {
            return Err(failed("find the key", uri)("several keys there have this name; add id="));
        }
        return Ok(None);
    };
    let attributes = session.get_attributes(*public, &[AttributeType::EcPoint]).map_err(unusable)?;
    let [Attribute::EcPoint(point)] = attributes.as_slice() else {
        return Err(failed("read the key", uri)("it is not a key on a curve"));
    };
    // CKA_EC_POINT is an OCTET STRING in DER around the point; some tokens leave the wrapping out.
    let point = point.strip_prefix(&[0x04, 0x41]).filter(|point| point.len() == POINT_BYTES).unwrap_or(point);
    if point.len() != POINT_BYTES || point.first() != Some(&4) {
        return Err(failed("read the key", uri)("it is not a key on the curve P-256"));
    }
    Ok(Some((*private, point.to_vec())))
}

fn make(session: &Session, uri: &TokenUri) -> Result<(), SignerError> {
    let label = Attribute::Label(uri.object().as_bytes().to_vec());
    let id = Attribute::Id(uri.id().unwrap_or_default().to_vec());
    let public = [
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::EcParams(P256.to_vec()),
        label.clone(),
        id.clone(),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        label,
        id,
    ];
    let made = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private);
    made.map(|_| ()).map_err(|error| failed("make a key", uri)(error))
}

fn remove(session: &Session, uri: &TokenUri, which: impl Fn(&[u8]) -> bool) -> Result<(), SignerError> {
    let unusable = |error: TokenError| failed("remove an old key", uri)(error);
    for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
        let template = [Attribute::Class(class), Attribute::Label(uri.object().as_bytes().to_vec())];
        for object in session.find_objects(&template).map_err(unusable)? {
            let attributes = session.get_attributes(object, &[AttributeType::Id]).map_err(unusable)?;
            if let [Attribute::Id(id)] = attributes.as_slice() {
                if which(id) {
                    session.destroy_object(object).map_err(unusable)?;
                }
            }
        }
    }
    Ok(())
}

/// Two numbers side by side, as PKCS#11 has them, in the form of RFC 3279 2.2.3: a SEQUENCE of two INTEGERs.
fn signature(raw: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = raw.split_at_checked(32)?;
    if s.len() != 32 {
        return None;
    }
    let content = [integer(r)?, integer(s)?].concat();
    let mut der = vec![0x30, u8::try_from(content.len()).ok()?];
    der.extend(content);
    Some(der)
}

fn integer(number: &[u8]) -> Option<Vec<u8>> {
    let significant: Vec<u8> = number.iter().copied().skip_while(|byte| *byte == 0).collect();
    // A first bit that is set would make it negative.
    let sign = significant.first().is_none_or(|first| first & 0x80 != 0);
    let length = u8::try_from(significant.len() + usize::from(sign)).ok()?;
    let mut der = vec![0x02, length];
    der.extend(sign.then_some(0));
    der.extend(significant);
    Some(der)
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    doing: &'static str,
    uri: &TokenUri,
) -> impl FnOnce(E) -> SignerError {
    let uri = uri.clone();
    move |source| SignerError::Token { doing, uri, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_signatures_as_der_has_them() {
        let mut raw = [0; 64];
        raw[0] = 0x80;
        raw[63] = 0x7f;
        let der = signature(&raw).unwrap();
        let mut expected = vec![0x30, 0x26, 0x02, 0x21, 0x00, 0x80];
        expected.extend([0; 31]);
        expected.extend([0x02, 0x01, 0x7f]);
        assert_eq!(der, expected);
        for length in [0, 32, 63, 65] {
            assert_eq!(signature(&vec![1; length]), None, "{length}");
        }
    }
}
