//! Which CA certificates the facade is trusted by: those of the token at first, then those of the signed metadata.
//!
//! The set is taken only as a whole, only from metadata that was verified, and only after it has worked once: a device
//! that believed a set which its facade does not fit would never hear of a better one.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::enroll::Surroundings;
use super::{ANCHORS_FILE, Identity, IdentityError, to_pem};

/// More roots than this at a time no facade has.
const MAX_ANCHORS: usize = 8;
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Takes the anchors that the signed metadata names, if they are others than those in use; whether they are.
pub async fn adopt(around: Surroundings<'_>, identity: &Identity, pem: &str) -> Result<bool, IdentityError> {
    let anchors: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let anchors = anchors.map_err(|_| IdentityError::Answer("trust anchors that cannot be read"))?;
    if anchors.is_empty() || anchors.len() > MAX_ANCHORS {
        return Err(IdentityError::Answer("no trust anchors, or too many"));
    }
    if anchors == identity.anchors {
        return Ok(false);
    }
    let next = Identity {
        anchors,
        ..identity.clone()
    };
    next.client(around.clock, around.proxy)?
        .get("/v2/", MAX_ANSWER_BYTES)
        .await?;
    around
        .state
        .write(ANCHORS_FILE, to_pem(&next.anchors).as_bytes())?;
    Ok(true)
}
