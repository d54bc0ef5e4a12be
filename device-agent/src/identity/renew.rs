//! Renewal: a new key and certificate beside the old ones, which stay until the new ones have been used.
//!
//! Where the key is not the agent's to make (a credential, a key with an id of its own in a token), it stays and only the
//! certificate is new. Two phases. First `identity/next/` gets the key, then the certificate for it; a crash leaves the old pair in use and
//! the same new key to go on with. Then the new pair makes one request; only when the facade has accepted it does it
//! take the place of the old one.

use rustls_pki_types::CertificateDer;

use super::enroll::Surroundings;
use super::est::{self, Issued};
use super::keys::Signer;
use super::{CERTIFICATE_FILE, Identity, IdentityError, KEY_FILE, certificate, certificates, to_pem};
use crate::facade_client::FacadeClient;
use crate::state_file::StateDir;

const NEXT_KEY: &str = "identity/next/key.pem";
const NEXT_CERTIFICATE: &str = "identity/next/cert.pem";

/// What came of a renewal.
#[derive(Debug)]
pub enum Renewal {
    /// The new identity, in place.
    Done(Box<Identity>),
    /// An operator must approve it first.
    Later(std::time::Duration),
}

/// Renews the certificate with a new key, and puts the new pair in place after it has worked once.
pub async fn renew(
    around: Surroundings<'_>,
    identity: &Identity,
    client: &FacadeClient,
) -> Result<Renewal, IdentityError> {
    let state = around.state;
    if !state.has(NEXT_CERTIFICATE)? {
        let key = around.keys.next(state, NEXT_KEY)?;
        let request = key.request(Some(identity.device()))?;
        let issued = match est::reenroll(client, &request).await? {
            Issued::Certificates(issued) => issued,
            Issued::Later(wait) => return Ok(Renewal::Later(wait)),
        };
        // The CA may have changed since; what is wrong with these shows when the new pair is tried out.
        let authorities = est::ca_certificates(client).await?;
        let chain = check(identity, &issued, &authorities, &key)?;
        state.write(NEXT_CERTIFICATE, to_pem(&chain).as_bytes())?;
    }
    let next = match Identity::read_pair(
        state,
        around.keys,
        identity.facade().clone(),
        NEXT_KEY,
        NEXT_CERTIFICATE,
    ) {
        Ok(next) => next,
        Err(error) => {
            // Whatever it was, it is not worth keeping: the old pair still works.
            abandon(state)?;
            return Err(error);
        }
    };
    try_out(around, &next).await?;
    state.rename(NEXT_KEY, KEY_FILE)?;
    recover(state)?;
    around.keys.retire(state);
    Ok(Renewal::Done(Box::new(next)))
}

/// Forgets a renewal that was begun; the pair in use stays.
pub fn abandon(state: &StateDir) -> Result<(), IdentityError> {
    state.remove(NEXT_CERTIFICATE)?;
    Ok(state.remove(NEXT_KEY)?)
}

/// Our new certificate, with the issuers of the old one or those that came with it.
fn check(
    identity: &Identity,
    issued: &[CertificateDer<'static>],
    authorities: &[CertificateDer<'static>],
    key: &Signer,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let domain = &identity.facade().trust_domain;
    let ours = issued.iter().find(|certificate| {
        pki::x509::Identity::from_certificate(certificate, domain)
            .is_ok_and(|leaf| leaf.key() == key.fingerprint() && leaf.id() == identity.device())
    });
    let leaf = ours.ok_or(IdentityError::Answer("no certificate for our key and name"))?;
    let heap: Vec<_> = authorities.iter().chain(issued).chain(&identity.chain).cloned().collect();
    let path = certificate::issuers(leaf, &heap);
    Ok(std::iter::once(leaf.clone()).chain(path).collect())
}

async fn try_out(around: Surroundings<'_>, next: &Identity) -> Result<(), IdentityError> {
    let client = next.client(around.clock, around.proxy)?;
    match client.get("/v2/", MAX_PING_BYTES).await {
        Ok(_) => Ok(()),
        Err(error) => {
            if error.is_disowned() {
                abandon(around.state)?;
            }
            Err(error.into())
        }
    }
}

const MAX_PING_BYTES: u64 = 64 * 1024;

/// Finishes a switch that a crash cut between its two renames: the new key is in place, its certificate is not yet.
pub fn recover(state: &StateDir) -> Result<(), IdentityError> {
    if state.has(NEXT_CERTIFICATE)? && !state.has(NEXT_KEY)? {
        // The renamed key either still lies under both names (then `has` above was true) or only in its place.
        certificates(state, NEXT_CERTIFICATE)?;
        state.rename(NEXT_CERTIFICATE, CERTIFICATE_FILE)?;
    }
    Ok(())
}
