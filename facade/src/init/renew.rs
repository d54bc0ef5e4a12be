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
use super::{ISSUING, InitError, SERVER, SERVER_KEY, load};

/// Renews the server certificate if two thirds of its life are over, or if it has not begun. Whether it did: then [`super::DataDir::open`] has
/// the new one.
pub fn renew_server_certificate(data_dir: &Path, now: Timestamp) -> Result<bool, InitError> {
    let files = Files::create(data_dir)?;
    let authority = load::authority(&files)?;
    let leaf = load::certificate(&files, SERVER)?;
    let issuing = load::certificates(&files, ISSUING)?;
    if !is_due(&leaf, &issuing, now) {
        return Ok(false);
    }
    // A key of another kind than ours was put there by the operator, and its certificate is the operator's too.
    let Ok(key) = load::private_key(&files, SERVER_KEY) else {
        return Ok(false);
    };
    let names = load::server_names(&files)?;
    let issued = authority.issue_server(&names, &key, now);
    let issued = issued.map_err(|error| InitError::generate(SERVER, error))?;
    let mut chain = issued.pem();
    // Devices that know only a former root need what leads from there to the present one.
    for certificate in issuing.iter().take(1).chain(&load::links(&files)?) {
        chain.push_str(&pem::certificate(certificate));
    }
    files.replace(SERVER, chain.as_bytes())?;
    Ok(true)
}

/// Issued by us, and near its end, not valid yet, or by an authority that another has followed.
fn is_due(leaf: &[u8], issuing: &[Vec<u8>], now: Timestamp) -> bool {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else {
        return false;
    };
    let by = |der: &Vec<u8>| {
        X509Certificate::from_der(der)
            .is_ok_and(|(_, issuing)| leaf.verify_signature(Some(issuing.public_key())).is_ok())
    };
    let validity = leaf.validity();
    let (start, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    match issuing.split_first() {
        Some((current, _)) if by(current) => {
            // One that begins later than now was made under a clock that was wrong, and would lock every device out.
            now.as_second() < start || now.as_second() >= start + (end - start) / 3 * 2
        }
        Some((_, former)) => former.iter().any(by),
        None => false,
    }
}
