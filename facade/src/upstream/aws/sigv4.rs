//! Signature version 4, as far as two POST requests of AWS need it. ◇
//!
//! The official `aws-sigv4` crate would bring some twenty crates of the AWS runtime for this one function; this one is
//! held against AWS's published test vectors and, in the integration tests, against an endpoint that verifies.

use data_encoding::HEXLOWER;
use pki::digest::Digest;
use ring::hmac;

use crate::secret::Secret;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The keys that sign.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: Secret,
    pub(super) session_token: Option<Secret>,
}

/// What is signed. The path is `/` or already encoded; there is no query.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    /// Lower-case names in ascending order, `host` and `x-amz-date` among them.
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: &'a [u8],
    /// `20150830T123600Z`.
    pub(super) time: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

impl Call<'_> {
    /// The value of the `Authorization` header.
    pub(super) fn authorization(&self, keys: &Keys) -> String {
        let day = self.time.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        let signed_headers = names.join(";");
        let canonical = self.canonical(&signed_headers);
        let to_sign =
            format!("{ALGORITHM}\n{}\n{scope}\n{}", self.time, Digest::sha256(canonical.as_bytes()).hex());
        let mut key = format!("AWS4{}", keys.secret_access_key.expose()).into_bytes();
        for part in [day, self.region, self.service, "aws4_request"] {
            key = mac(&key, part);
        }
        let signature = HEXLOWER.encode(&mac(&key, &to_sign));
        let id = &keys.access_key_id;
        format!("{ALGORITHM} Credential={id}/{scope}, SignedHeaders={signed_headers}, Signature={signature}")
    }

    fn canonical(&self, signed_headers: &str) -> String {
        let lines = self.headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim()));
        let headers: String = lines.collect::<Vec<_>>().concat();
        let body = Digest::sha256(self.body).hex();
        format!("{}\n{}\n\n{headers}\n{signed_headers}\n{body}", self.method, self.path)
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `get-vanilla`, `post-vanilla` of AWS's Signature Version 4 test suite.
    #[test]
    fn agrees_with_the_published_vectors() {
        let keys = Keys {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()),
            session_token: None,
        };
        for (method, signature) in [
            ("GET", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("POST", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        ] {
            let call = Call {
                method,
                path: "/",
                headers: &[("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
                body: b"",
                time: "20150830T123600Z",
                region: "us-east-1",
                service: "service",
            };
            assert_eq!(
                call.authorization(&keys),
                format!(
                    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                     SignedHeaders=host;x-amz-date, Signature={signature}"
                )
            );
        }
    }
}
