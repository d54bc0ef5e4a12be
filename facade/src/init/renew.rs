//! The server certificate, renewed before it ends.
//!
//! Only a certificate of the facade's own CA is renewed: one that an operator put there is the operator's to renew. The
//! key stays, so that one rename is the whole change and no crash leaves a certificate without its key.

use std::path::Path;

use jiff::Timestamp;
use pki::x509::pem;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::files::Files;
use super::{InitError, SERVER, SERVER_KEY, load};

/// Renews the server certificate if two thirds of its life are over. Whether it did: then [`super::DataDir::open`] has
/// the new one.
pub fn renew_server_certificate(data_dir: &Path, now: Timestamp) -> Result<bool, InitError> {
    let files = Files::create(data_dir)?;
    let authority = load::authority(&files)?;
    let leaf = load::certificate(&files, SERVER)?;
    if !is_due(&leaf, authority.issuing(), now) {
        return Ok(false);
    }
    let names = load::server_names(&files)?;
    let key = load::private_key(&files, SERVER_KEY)?;
    let issued = authority.issue_server(&names, &key, now);
    let issued = issued.map_err(|error| InitError::generate(SERVER, error))?;
    let chain = issued.pem() + &pem::certificate(authority.issuing());
    files.replace(SERVER, chain.as_bytes())?;
    Ok(true)
}

fn is_due(leaf: &[u8], issuing: &[u8], now: Timestamp) -> bool {
    let (Ok((_, leaf)), Ok((_, issuing))) = (
        X509Certificate::from_der(leaf),
        X509Certificate::from_der(issuing),
    ) else {
        return false;
    };
    let validity = leaf.validity();
    let (start, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let ours = leaf.verify_signature(Some(issuing.public_key())).is_ok();
    ours && now.as_second() >= start + (end - start) / 3 * 2
}
