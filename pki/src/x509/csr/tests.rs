//! Requests as openssl and rcgen write them, and as an attacker would.

use rcgen::{Attribute, CertificateParams, CustomExtension, DnType, KeyPair, KeyUsagePurpose, SanType};

use super::*;

const P256: &[u8] = include_bytes!("fixtures/p256.der");

fn request(edit: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    edit(&mut params);
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().der().to_vec()
}

fn with_attribute(oid: &'static [u64], values: Vec<u8>) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let attributes = vec![Attribute { oid, values }];
    CertificateParams::default().serialize_request_with_attributes(&key, attributes).unwrap().der().to_vec()
}

fn names_refused(names: Vec<SanType>) -> bool {
    let csr = Csr::parse(&request(|params| params.subject_alt_names = names)).unwrap();
    let checked = csr.check_names(&"pump-7".parse().unwrap(), &TrustDomain::default());
    matches!(checked, Err(CsrError::ForeignName(_)))
}

#[test]
fn accepts_requests_of_openssl_with_the_keys_that_devices_use() {
    for (der, algorithm) in [
        (P256, KeyAlgorithm::P256),
        (&include_bytes!("fixtures/ed25519.der")[..], KeyAlgorithm::Ed25519),
        (&include_bytes!("fixtures/rsa2048.der")[..], KeyAlgorithm::Rsa),
    ] {
        assert_eq!(Csr::parse(der).unwrap().algorithm, algorithm);
    }
}

#[test]
fn rejects_weak_and_unusual_keys() {
    for der in [
        &include_bytes!("fixtures/rsa1024.der")[..],
        include_bytes!("fixtures/rsa2048-e3.der"),
        include_bytes!("fixtures/p384.der"),
    ] {
        assert_eq!(Csr::parse(der), Err(CsrError::WeakKey));
    }
}

#[test]
fn rejects_a_signature_over_sha1() {
    let der = include_bytes!("fixtures/rsa2048-sha1.der");
    assert_eq!(Csr::parse(der), Err(CsrError::WeakSignature));
}

#[test]
fn rejects_a_request_that_its_key_did_not_sign() {
    let mut der = P256.to_vec();
    *der.last_mut().unwrap() ^= 1;
    assert_eq!(Csr::parse(&der), Err(CsrError::NotProven));
    // The subject is changed after signing.
    let changed: Vec<u8> = P256.to_vec();
    let position = changed.windows(6).position(|bytes| bytes == b"pump-7").unwrap();
    let mut changed = changed;
    changed[position] = b'j';
    assert_eq!(Csr::parse(&changed), Err(CsrError::NotProven));
}

#[test]
fn rejects_bytes_that_are_not_one_request() {
    let mut longer = P256.to_vec();
    longer.push(0);
    for der in [&b""[..], b"junk", &longer, &P256[..100], &[0x30; 500]] {
        assert_eq!(Csr::parse(der), Err(CsrError::Malformed));
    }
    assert_eq!(Csr::parse(&[0x30; 9000]), Err(CsrError::TooLong));
}

#[test]
fn rejects_a_subject_of_twenty_kilobytes_and_one_of_two() {
    let with_name = |length: usize| {
        request(|params| {
            params.distinguished_name.push(DnType::CommonName, "x".repeat(length));
        })
    };
    assert_eq!(Csr::parse(&with_name(20_000)), Err(CsrError::TooLong));
    assert_eq!(Csr::parse(&with_name(2_000)), Err(CsrError::SubjectTooLong));
}

#[test]
fn rejects_requests_for_the_powers_of_an_authority() {
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let der = request(|params| params.key_usages = vec![usage]);
        assert_eq!(Csr::parse(&der), Err(CsrError::Authority));
    }
    let ca = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0xff]);
    let der = request(|params| params.custom_extensions = vec![ca]);
    assert_eq!(Csr::parse(&der), Err(CsrError::Authority));
}

#[test]
fn rejects_repeated_extensions_and_too_many() {
    let extension = |last| CustomExtension::from_oid_content(&[1, 2, 3, last], vec![5, 0]);
    let der = request(|params| params.custom_extensions = vec![extension(1), extension(1)]);
    assert_eq!(Csr::parse(&der), Err(CsrError::Attributes));
    let der = request(|params| params.custom_extensions = (0..17).map(extension).collect());
    assert_eq!(Csr::parse(&der), Err(CsrError::Attributes));
    let der = request(|params| params.custom_extensions = (0..16).map(extension).collect());
    assert!(Csr::parse(&der).is_ok());
}

#[test]
fn rejects_a_challenge_password() {
    let der = with_attribute(&[1, 2, 840, 113_549, 1, 9, 7], vec![0x31, 4, 0x0c, 2, b'p', b'w']);
    assert_eq!(Csr::parse(&der), Err(CsrError::ChallengePassword));
}

#[test]
fn rejects_names_that_are_not_the_devices() {
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
    let own = "spiffe://drayage.internal/device/pump-7";
    for names in [
        vec![uri("spiffe://drayage.internal/device/other")],
        vec![uri(own), uri("spiffe://drayage.internal/device/other")],
        vec![uri("spiffe://elsewhere/device/pump-7")],
        vec![dns("*")],
        vec![dns("*.example.com")],
        vec![dns("facade.example.com")],
        vec![SanType::IpAddress("127.0.0.1".parse().unwrap())],
        vec![SanType::Rfc822Name("root@example.com".try_into().unwrap())],
    ] {
        assert!(names_refused(names.clone()), "{names:?}");
    }
    assert!(!names_refused(vec![]));
    assert!(!names_refused(vec![uri(own), dns("pump-7")]));
}

#[test]
fn rejects_a_renewal_that_changes_the_subject() {
    let device: DeviceId = "pump-7".parse().unwrap();
    let refused = |der: &[u8]| Csr::parse(der).unwrap().check_subject(&device).is_err();
    assert!(!refused(P256));
    assert!(!refused(&request(|params| params.distinguished_name = rcgen::DistinguishedName::new())));
    assert!(refused(&request(|params| params.distinguished_name.push(DnType::CommonName, "other"))));
    assert!(refused(&request(|params| {
        params.distinguished_name.push(DnType::CommonName, "pump-7");
        params.distinguished_name.push(DnType::OrganizationName, "pumps");
    })));
}

proptest::proptest! {
    #[test]
    fn takes_no_other_key_from_a_damaged_request(index in 0_usize..206, byte in proptest::prelude::any::<u8>()) {
        let mut der = P256.to_vec();
        der[index] = byte;
        // A bit outside of what is signed may not matter; what is granted does not change.
        if let Ok(csr) = Csr::parse(&der) {
            proptest::prop_assert_eq!(csr, Csr::parse(P256).unwrap());
        }
    }

    #[test]
    fn reads_any_bytes_without_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        proptest::prop_assert!(Csr::parse(&bytes).is_err());
    }
}
