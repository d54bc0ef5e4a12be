//! Enrollment: from a token to a whole identity, or to nothing.
//!
//! The facade is checked before the secret leaves the device: a first session that believes anybody and carries no
//! secret fetches the CA certificates; only if the one that the token pins is among them does a second session, which
//! believes that one alone, carry the secret. Everything is prepared under `enrolling/` and moved into place when it is
//! complete. The key is stored before the request goes out and is used again by a repeated attempt, so that the facade
//! can tell a retry after a power cut from a second device.

use std::time::Duration;

use pki::wire::{EnrollmentToken, RootPin, TokenId};
use pki::x509::{Fingerprint, Identity as Leaf};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};

use super::est::{self, Issued};
use super::keys::{Keys, Signer};
use super::{
    ANCHORS_FILE, CERTIFICATE_FILE, DISOWNED_FILE, FACADE_FILE, Facade, Identity, IdentityError, KEY_FILE,
    certificate, credentials, to_pem,
};
use crate::clock::Clock;
use crate::config::Proxy;
use crate::facade_client::{FacadeClient, TlsSettings};
use crate::state_file::StateDir;

const STAGED_KEY: &str = "enrolling/key.pem";
const STAGED_TOKEN: &str = "enrolling/token.json";
const STAGED_CERTIFICATE: &str = "enrolling/cert.pem";
const STAGED_ANCHORS: &str = "enrolling/ca.pem";
/// Written last: from here on the enrollment is complete and only has to be moved.
const STAGED_FACADE: &str = "enrolling/facade.json";
/// RFC 7030 leaves the waiting to us; nobody approves a device for longer than this while it waits.
const LONGEST_APPROVAL: Duration = Duration::from_secs(3600);
const MAX_ROOT_BYTES: u64 = 1024 * 1024;

/// Whether an identity that is there already may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// Refuse.
    Never,
    /// The operator asked for it.
    Existing,
}

/// What enrollment needs of its surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Where everything goes.
    pub state: &'a StateDir,
    /// The time.
    pub clock: &'a Clock,
    /// The way out.
    pub proxy: Option<&'a Proxy>,
    /// Where the key comes from.
    pub keys: &'a Keys,
}

#[derive(Serialize, Deserialize)]
struct Begun {
    token: String,
}

/// Enrolls with a token, or finds that a complete attempt was cut and finishes it.
pub async fn enroll(
    around: Surroundings<'_>,
    token: &EnrollmentToken,
    replace: Replace,
) -> Result<Identity, IdentityError> {
    recover(around.state)?;
    if replace == Replace::Never {
        refuse_existing(around)?;
    }
    let (root, heap) = pinned_root(around, token).await?;
    let key = staged_key(around, token.id)?;
    let trusting = TlsSettings::new(std::slice::from_ref(&root), None, around.clock)?;
    let client = FacadeClient::new(&token.url, &trusting, around.proxy)?;
    let request = key.request(None)?;
    let issued = request_until_answered(&client, &request, token).await?;
    let chain = check_issued(&issued, &key, &root, heap, around.clock)?;
    stage(around, token, &root, &chain, &key).await?;
    recover(around.state)?;
    let identity = Identity::read(around.state, around.keys)?.ok_or(IdentityError::NotEnrolled)?;
    around.keys.retire(around.state);
    Ok(identity)
}

fn refuse_existing(around: Surroundings<'_>) -> Result<(), IdentityError> {
    if around.state.has(DISOWNED_FILE)? {
        return Ok(());
    }
    match Identity::load(around.state, around.keys) {
        Ok(None) | Err(IdentityError::Damaged { .. } | IdentityError::Mismatch) => Ok(()),
        Ok(Some(identity)) => Err(IdentityError::AlreadyEnrolled {
            device: identity.device().clone(),
            facade: identity.facade().url.clone(),
        }),
        Err(error) => Err(error),
    }
}

/// The first session: no secret goes out, and of what comes in only the pinned certificate is believed.
async fn pinned_root(
    around: Surroundings<'_>,
    token: &EnrollmentToken,
) -> Result<(CertificateDer<'static>, Vec<CertificateDer<'static>>), IdentityError> {
    let anybody = TlsSettings::believing_anybody(around.clock)?;
    let client = FacadeClient::new(&token.url, &anybody, around.proxy)?;
    let heap = est::ca_certificates(&client).await?;
    let root = heap.iter().find(|certificate| Fingerprint::of(certificate) == token.ca);
    match root {
        Some(root) => Ok((root.clone(), heap)),
        None => Err(IdentityError::WrongFacade { facade: token.url.clone(), pinned: token.ca }),
    }
}

/// The key of this attempt: the one of an earlier attempt with the same token, or a new one, durable before it is used.
fn staged_key(around: Surroundings<'_>, token: TokenId) -> Result<Signer, IdentityError> {
    let state = around.state;
    let begun: Option<Begun> = state.read_json(STAGED_TOKEN, "remove it").unwrap_or_default();
    let token = token.to_string();
    if begun.is_none_or(|begun| begun.token != token) {
        state.remove(STAGED_KEY)?;
    }
    let key = around.keys.next(state, STAGED_KEY)?;
    state.write_json(STAGED_TOKEN, &Begun { token })?;
    Ok(key)
}

async fn request_until_answered(
    client: &FacadeClient,
    request: &[u8],
    token: &EnrollmentToken,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut waited = Duration::ZERO;
    loop {
        match est::enroll(client, request, token).await? {
            Issued::Certificates(certificates) => return Ok(certificates),
            Issued::Later(wait) => {
                waited += wait;
                if waited > LONGEST_APPROVAL {
                    return Err(IdentityError::NotApproved);
                }
                tracing::info!(
                    retry_seconds = wait.as_secs(),
                    "waiting until an operator approves this device"
                );
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Finds our certificate in the answer and holds it against key and root; returns it with its issuers.
fn check_issued(
    issued: &[CertificateDer<'static>],
    key: &Signer,
    root: &CertificateDer<'static>,
    mut heap: Vec<CertificateDer<'static>>,
    clock: &Clock,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    heap.extend(issued.iter().cloned());
    let ours = issued.iter().find(|certificate| {
        certificate::trust_domain(certificate)
            .and_then(|domain| Leaf::from_certificate(certificate, &domain).ok())
            .is_some_and(|leaf| leaf.key() == key.fingerprint())
    });
    let leaf = ours.ok_or(IdentityError::Answer("no certificate for our key"))?;
    let path = certificate::issuers(leaf, &heap);
    // The token may name a root that others have followed: what leads from one to the next is in the heap too.
    verify_chain(leaf, &heap, root, clock)?;
    Ok(std::iter::once(leaf.clone()).chain(path).collect())
}

/// Verifies our own certificate as the facade will.
fn verify_chain(
    leaf: &CertificateDer<'static>,
    path: &[CertificateDer<'static>],
    root: &CertificateDer<'static>,
    clock: &Clock,
) -> Result<(), IdentityError> {
    let refused = || IdentityError::Answer("a certificate that does not end in the pinned CA");
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).map_err(|_| refused())?;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(std::sync::Arc::new(roots), provider)
        .build()
        .map_err(|_| refused())?;
    // With a clock that is behind, the certificate itself tells the earliest time it can be.
    let begins = certificate::trust_domain(leaf)
        .and_then(|domain| Leaf::from_certificate(leaf, &domain).ok())
        .map(|leaf| leaf.not_before());
    let now = begins.map_or(clock.now(), |begins| begins.max(clock.now()));
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    match verifier.verify_client_cert(leaf, path, now) {
        Ok(_) => Ok(()),
        Err(_) => Err(refused()),
    }
}

async fn stage(
    around: Surroundings<'_>,
    token: &EnrollmentToken,
    root: &CertificateDer<'static>,
    chain: &[CertificateDer<'static>],
    key: &Signer,
) -> Result<(), IdentityError> {
    let state = around.state;
    state.write(STAGED_CERTIFICATE, to_pem(chain).as_bytes())?;
    state.write(STAGED_ANCHORS, to_pem(std::slice::from_ref(root)).as_bytes())?;
    let shown = Some(credentials(chain, key)?);
    let tls = TlsSettings::new(std::slice::from_ref(root), shown, around.clock)?;
    let client = FacadeClient::new(&token.url, &tls, around.proxy)?;
    for (repository, pin) in [("images", token.images_root), ("director", token.director_root)] {
        let bytes = pinned_metadata(&client, repository, pin).await?;
        state.write(&format!("enrolling/{repository}.root.json"), &bytes)?;
    }
    let leaf = chain.first().ok_or(IdentityError::Answer("no certificate for our key"))?;
    let domain =
        certificate::trust_domain(leaf).ok_or(IdentityError::Answer("a certificate without a name"))?;
    let identity = Leaf::from_certificate(leaf, &domain).map_err(IdentityError::Certificate)?;
    let facade = Facade { url: token.url.clone(), trust_domain: domain, device: identity.id().clone() };
    Ok(state.write_json(STAGED_FACADE, &facade)?)
}

async fn pinned_metadata(
    client: &FacadeClient,
    repository: &str,
    pin: RootPin,
) -> Result<Vec<u8>, IdentityError> {
    let file = format!("{repository}/{}.root.json", pin.version);
    let wrong = || IdentityError::WrongRoot { file: file.clone() };
    let path = format!("/metadata/{file}");
    let bytes = client.get(&path, MAX_ROOT_BYTES).await?.ok_or_else(wrong)?;
    if Fingerprint::of(&bytes) == pin.sha256 { Ok(bytes) } else { Err(wrong()) }
}

/// Moves a complete enrollment into place; does nothing when there is none. May be cut and repeated at any step.
pub fn recover(state: &StateDir) -> Result<(), IdentityError> {
    if !state.has(STAGED_FACADE)? {
        return Ok(());
    }
    for repository in ["images", "director"] {
        place_root(state, repository)?;
    }
    for abandoned in ["identity/next/key.pem", "identity/next/cert.pem", DISOWNED_FILE] {
        state.remove(abandoned)?;
    }
    state.rename(STAGED_KEY, KEY_FILE)?;
    state.rename(STAGED_CERTIFICATE, CERTIFICATE_FILE)?;
    state.rename(STAGED_ANCHORS, ANCHORS_FILE)?;
    state.remove(STAGED_TOKEN)?;
    Ok(state.rename(STAGED_FACADE, FACADE_FILE)?)
}

/// Puts the pinned root metadata in place. With the facade that the device already belongs to, the versions it has seen
/// are kept: enrolling again must not be a way to roll a device back.
fn place_root(state: &StateDir, repository: &str) -> Result<(), IdentityError> {
    let staged = format!("enrolling/{repository}.root.json");
    if !state.has(&staged)? {
        return Ok(());
    }
    let current = format!("metadata/{repository}/root.json");
    // While this runs the anchors in place are still the old ones, or already the same as the staged ones.
    let same = shares_anchor(state)?;
    if same && root_version(state, &current)? >= root_version(state, &staged)? {
        return Ok(state.remove(&staged)?);
    }
    if !same {
        for file in state.list(&format!("metadata/{repository}"))? {
            state.remove(&format!("metadata/{repository}/{file}"))?;
        }
    }
    Ok(state.rename(&staged, &current)?)
}

/// Whether the facade of the staged enrollment is the one the device already belongs to: they have a root in common. A
/// device that has seen the CA change knows more roots than a token names.
fn shares_anchor(state: &StateDir) -> Result<bool, IdentityError> {
    let read = |file: &str| -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let pem = state.read(file)?.unwrap_or_default();
        Ok(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect())
    };
    let (known, staged) = (read(ANCHORS_FILE)?, read(STAGED_ANCHORS)?);
    Ok(staged.iter().any(|anchor| known.contains(anchor)))
}

/// The version that root metadata says it has; 0 for none.
fn root_version(state: &StateDir, file: &str) -> Result<u64, IdentityError> {
    let bytes = state.read(file)?.unwrap_or_default();
    let value: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    Ok(value.and_then(|value| value.pointer("/signed/version")?.as_u64()).unwrap_or_default())
}
