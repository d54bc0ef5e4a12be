//! Certs-only PKCS#7: the envelope in which EST hands certificates over (RFC 5272 4.1, RFC 5652 5.1).
//!
//! A degenerate `SignedData` carries certificates and signs nothing, so nothing in it is to be believed because of it.
//! Reading is strict DER with limits; anything that a certs-only message does not have is refused.

use thiserror::Error;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_1: u8 = 0xa1;
/// `OBJECT IDENTIFIER` 1.2.840.113549.1.7.2, signedData.
const SIGNED_DATA: [u8; 11] = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
/// `OBJECT IDENTIFIER` 1.2.840.113549.1.7.1, data.
const DATA: [u8; 11] = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
const MAX_BYTES: usize = 128 * 1024;
const MAX_CERTIFICATES: usize = 32;

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Pkcs7Error {
    /// Too long.
    #[error("the PKCS#7 message is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// Not DER, or not certs-only.
    #[error("the body is not a certs-only PKCS#7 message")]
    Malformed,
    /// No certificate, or more than any chain has.
    #[error("the PKCS#7 message holds {0} certificates")]
    Count(usize),
}

/// Writes certificates (in DER) as one message, in the order given.
pub fn encode<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let certificates: Vec<u8> = certificates.into_iter().flatten().copied().collect();
    let signed_data = [
        element(INTEGER, &[1]),
        element(SET, &[]),
        element(SEQUENCE, &DATA),
        element(CONTEXT_0, &certificates),
        element(SET, &[]),
    ]
    .concat();
    let content = element(CONTEXT_0, &element(SEQUENCE, &signed_data));
    element(SEQUENCE, &[&SIGNED_DATA, content.as_slice()].concat())
}

/// Reads the certificates (in DER) of one message; at least one. The certificates themselves are not looked into.
pub fn decode(message: &[u8]) -> Result<Vec<Vec<u8>>, Pkcs7Error> {
    if message.len() > MAX_BYTES {
        return Err(Pkcs7Error::TooLong);
    }
    let set = certificate_set(message).ok_or(Pkcs7Error::Malformed)?;
    let mut reader = Reader(set);
    let mut certificates = Vec::new();
    while !reader.0.is_empty() {
        if certificates.len() == MAX_CERTIFICATES {
            return Err(Pkcs7Error::Count(MAX_CERTIFICATES + 1));
        }
        // Only plain certificates: the other choices of CertificateSet are obsolete or never ours.
        let whole = reader.0;
        reader.take(SEQUENCE).ok_or(Pkcs7Error::Malformed)?;
        let length = whole.len() - reader.0.len();
        certificates.push(whole.iter().take(length).copied().collect());
    }
    if certificates.is_empty() {
        return Err(Pkcs7Error::Count(0));
    }
    Ok(certificates)
}

fn certificate_set(message: &[u8]) -> Option<&[u8]> {
    let content_info = Reader(message).take_only(SEQUENCE)?;
    let explicit = content_info.strip_prefix(&SIGNED_DATA)?;
    let content = Reader(explicit).take_only(CONTEXT_0)?;
    let mut signed_data = Reader(Reader(content).take_only(SEQUENCE)?);
    let version = signed_data.take(INTEGER)?;
    // 1 is what RFC 5652 5.1 gives for a certs-only message; some write 3.
    let plain = matches!(version, [1 | 3])
        && signed_data.take(SET)?.is_empty()
        && signed_data.take(SEQUENCE)? == DATA;
    if !plain {
        return None;
    }
    let certificates = signed_data.take(CONTEXT_0)?;
    if signed_data.0.first() == Some(&CONTEXT_1) {
        // `openssl crl2pkcs7` writes an empty list of CRLs.
        signed_data.take(CONTEXT_1)?.is_empty().then_some(())?;
    }
    let signers = signed_data.take_only(SET)?;
    signers.is_empty().then_some(certificates)
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Takes the content of the next element, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, rest) = self.0.split_first()?;
        if *found != tag {
            return None;
        }
        let (length, rest) = read_length(rest)?;
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(content)
    }

    /// Takes the content of the one element that is left.
    fn take_only(&mut self, tag: u8) -> Option<&'a [u8]> {
        let content = self.take(tag)?;
        self.0.is_empty().then_some(content)
    }
}

/// A definite length in its shortest form (X.690 10.1).
fn read_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if *first < 0x80 {
        return Some((usize::from(*first), rest));
    }
    let count = usize::from(*first & 0x7f);
    if !(1..=3).contains(&count) {
        return None;
    }
    let (octets, rest) = rest.split_at_checked(count)?;
    let length = octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet));
    let shortest = octets.first() != Some(&0) && length >= 0x80;
    shortest.then_some((length, rest))
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => bytes.push(short),
        _ => {
            let octets = content.len().to_be_bytes();
            let octets: Vec<u8> = octets.into_iter().skip_while(|octet| *octet == 0).collect();
            // A length of `usize` has at most eight octets.
            bytes.push(0x80 | u8::try_from(octets.len()).unwrap_or(8));
            bytes.extend(octets);
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(length: usize) -> Vec<u8> {
        element(SEQUENCE, &vec![5; length])
    }

    #[test]
    fn reads_back_what_it_writes() {
        for lengths in [&[10][..], &[127, 128], &[255, 256, 70_000]] {
            let certificates: Vec<_> = lengths.iter().map(|length| certificate(*length)).collect();
            let message = encode(certificates.iter().map(Vec::as_slice));
            assert_eq!(decode(&message).unwrap(), certificates);
        }
    }

    #[test]
    fn rejects_messages_without_certificates_or_with_too_many() {
        assert_eq!(decode(&encode([])), Err(Pkcs7Error::Count(0)));
        let one = certificate(3);
        let message = encode(std::iter::repeat_n(one.as_slice(), 33));
        assert_eq!(decode(&message), Err(Pkcs7Error::Count(33)));
        assert_eq!(decode(&vec![0; MAX_BYTES + 1]), Err(Pkcs7Error::TooLong));
    }

    #[test]
    fn rejects_every_truncation_and_every_trailing_byte() {
        let message = encode([certificate(200).as_slice()]);
        for length in 0..message.len() {
            assert!(decode(&message[..length]).is_err(), "cut to {length}");
        }
        let mut longer = message;
        longer.push(0);
        assert_eq!(decode(&longer), Err(Pkcs7Error::Malformed));
    }

    #[test]
    fn rejects_messages_that_sign_or_carry_something() {
        let certificates = element(CONTEXT_0, &certificate(4));
        let build = |parts: &[Vec<u8>]| {
            let content = element(CONTEXT_0, &element(SEQUENCE, &parts.concat()));
            element(SEQUENCE, &[&SIGNED_DATA, content.as_slice()].concat())
        };
        let good = [
            element(INTEGER, &[1]),
            element(SET, &[]),
            element(SEQUENCE, &DATA),
            certificates,
            element(SET, &[]),
        ];
        assert!(decode(&build(&good)).is_ok());
        for (index, hostile) in [
            (0, element(INTEGER, &[9])),
            (1, element(SET, &[5, 0])),
            (2, element(SEQUENCE, &[&DATA[..], &[0xa0, 2, 4, 0]].concat())),
            (3, element(CONTEXT_0, &element(SET, &[1]))),
            (4, element(SET, &[5, 0])),
        ] {
            let mut parts = good.clone();
            parts[index] = hostile;
            assert!(decode(&build(&parts)).is_err(), "part {index}");
        }
    }

    #[test]
    fn rejects_lengths_that_are_not_der() {
        // Indefinite, longer than needed, and beyond the message.
        for bytes in [
            &[0x30, 0x80, 0, 0][..],
            &[0x30, 0x81, 1, 0],
            &[0x30, 0x82, 0, 1, 0],
            &[0x30, 0x84, 255, 255, 255, 255],
        ] {
            assert_eq!(decode(bytes), Err(Pkcs7Error::Malformed));
        }
    }

    proptest::proptest! {
        #[test]
        fn reads_any_bytes_without_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
