//! What EST (RFC 7030 as amended by RFC 8951) puts around the DER: paths, media types and base64.

use data_encoding::{BASE64, BASE64_MIME};
use thiserror::Error;

/// Path under which the operations live.
pub const PATH: &str = "/.well-known/est";
/// Media type of a certificate request.
pub const PKCS10: &str = "application/pkcs10";
/// Media type of the answer of `cacerts`.
pub const PKCS7: &str = "application/pkcs7-mime";
/// Media type of an issued certificate.
pub const PKCS7_CERTS_ONLY: &str = "application/pkcs7-mime; smime-type=certs-only";

/// The body is not base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the body is not base64")]
pub struct Base64Error;

/// Writes a body; in lines, because `openssl base64 -d` reads it by line, and without carriage returns, because
/// `base64 -d` of coreutils refuses them.
pub fn encode(der: &[u8]) -> String {
    BASE64_MIME.encode(der).replace('\r', "")
}

/// Reads a body. RFC 8951 3.1: white space anywhere is to be tolerated, and nothing else.
pub fn decode(body: &[u8]) -> Result<Vec<u8>, Base64Error> {
    let text: Vec<u8> = body
        .iter()
        .copied()
        .filter(|byte| !matches!(byte, b'\r' | b'\n' | b' ' | b'\t'))
        .collect();
    // The decoder reads padded pieces one after the other; a body is one piece.
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if text.iter().rev().skip(padding).any(|byte| *byte == b'=') {
        return Err(Base64Error);
    }
    BASE64.decode(&text).map_err(|_| Base64Error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_base64_however_it_is_wrapped() {
        let bytes: Vec<u8> = (0..200).collect();
        assert_eq!(decode(encode(&bytes).as_bytes()).unwrap(), bytes);
        let wrapped = BASE64.encode(&bytes).replace('A', "\r\n\t A");
        assert_eq!(decode(wrapped.as_bytes()).unwrap(), bytes);
        assert_eq!(decode(b"").unwrap(), b"");
    }

    #[test]
    fn writes_short_lines_that_every_tool_reads() {
        let text = encode(&[7; 500]);
        assert!(text.ends_with('\n') && !text.contains('\r'));
        assert!(text.lines().all(|line| line.len() <= 76));
    }

    #[test]
    fn rejects_what_is_not_base64() {
        for body in [
            &b"A"[..],
            b"AAA",
            b"AA=A",
            b"AA==AA==",
            b"A-_A",
            b"-----BEGIN CERTIFICATE REQUEST-----",
            b"\x30\x82\x00",
        ] {
            assert_eq!(decode(body), Err(Base64Error), "{body:?}");
        }
    }
}
