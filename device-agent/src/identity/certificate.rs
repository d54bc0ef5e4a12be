//! What the device reads in certificates before it has an identity of its own: who issued them, for which domain.
//!
//! Nothing here is a check; what a certificate is worth is said by TLS and by [`pki::x509::Identity`].

use pki::x509::TrustDomain;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Who issued a certificate, for people.
pub fn issuer(der: &[u8]) -> Option<String> {
    parse(der).map(|certificate| certificate.issuer().to_string())
}

/// The trust domain of the first URI name, `spiffe://<trust-domain>/…`.
pub fn trust_domain(der: &[u8]) -> Option<TrustDomain> {
    let certificate = parse(der)?;
    let names = certificate.subject_alternative_name().ok()??;
    let uri = names.value.general_names.iter().find_map(|name| {
        if let GeneralName::URI(uri) = name {
            Some(*uri)
        } else {
            None
        }
    })?;
    uri.strip_prefix("spiffe://")?.split('/').next()?.parse().ok()
}

/// Whoever could have issued a leaf, out of a heap of certificates.
pub fn issuers(
    leaf: &CertificateDer<'static>,
    heap: &[CertificateDer<'static>],
) -> Vec<CertificateDer<'static>> {
    let mut found: Vec<CertificateDer<'static>> = Vec::new();
    for candidate in heap {
        if found.len() < MAX_ISSUERS && !found.contains(candidate) && issued(candidate, leaf) {
            found.push(candidate.clone());
        }
    }
    found
}

fn issued(issuer: &[u8], subject: &[u8]) -> bool {
    let (Some(issuer), Some(subject)) = (parse(issuer), parse(subject)) else {
        return false;
    };
    issuer.is_ca() && issuer.subject().as_raw() == subject.issuer().as_raw()
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

const MAX_ISSUERS: usize = 4;
