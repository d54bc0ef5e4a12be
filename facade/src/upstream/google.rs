//! Google service accounts: a signed assertion, exchanged for an access token that lives an hour or less.
//!
//! The key file is taken apart when the connection is made. Its `token_uri` is only checked, never used: a file with
//! another one would send the proof of the key to whoever wrote it. The endpoint is Google's, or the one that the
//! facade's own configuration names for tests.

use std::fmt;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, StatusCode};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;

use super::client::bad;
use super::credential::Cloud;
use super::error::UpstreamError;
use super::target::{Target, form};
use super::token::Issued;
use crate::secret::Secret;

/// The user name that goes with an access token.
pub(super) const USERNAME: &str = "oauth2accesstoken";

const TOKEN_ENDPOINT: &str = "https://oauth2.googleapis.com/token";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const FORM: &str = "application/x-www-form-urlencoded";
const ASSERTION_SECONDS: i64 = 600;
const MAX_FILE_BYTES: usize = 64 * 1024;
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// A service account, without its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// `client_email` of the key file.
    pub client_email: String,
    /// `private_key_id` of the key file.
    pub private_key_id: String,
}

/// Why a service account cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AccountError {
    /// Not a key file.
    #[error(
        "not a service account key file (expected the downloaded JSON with \"type\": \"service_account\")"
    )]
    NotAKeyFile,
    /// The file names a token endpoint that is not Google's.
    #[error("token_uri is not below https://googleapis.com (expected {TOKEN_ENDPOINT})")]
    TokenUri,
    /// The private key cannot be used.
    #[error("private_key is not an RSA key in PEM (expected -----BEGIN PRIVATE KEY-----)")]
    PrivateKey,
}

#[derive(Deserialize)]
struct KeyFile {
    r#type: String,
    client_email: String,
    private_key_id: String,
    private_key: String,
    token_uri: Option<String>,
}

impl Account {
    /// Takes a downloaded key file apart: the account, and its private key as the connection's secret.
    pub fn from_key_file(file: &Secret) -> Result<(Self, Secret), AccountError> {
        let file: KeyFile = pki::json::parse_as(file.expose().as_bytes(), MAX_FILE_BYTES)
            .map_err(|_| AccountError::NotAKeyFile)?;
        let key = Secret::new(file.private_key);
        if file.r#type != "service_account" {
            return Err(AccountError::NotAKeyFile);
        }
        if !file.token_uri.as_deref().is_none_or(is_googles) {
            return Err(AccountError::TokenUri);
        }
        let account = Self { client_email: file.client_email, private_key_id: file.private_key_id };
        ServiceAccount::open(&account, &key)?;
        Ok((account, key))
    }
}

fn is_googles(token_uri: &str) -> bool {
    Target::parse(token_uri).is_some_and(|target| {
        target.scheme() == super::target::Scheme::Https
            && target.port() == 443
            && (target.host() == "accounts.google.com" || target.host().ends_with(".googleapis.com"))
    })
}

/// A service account with its key.
#[derive(Clone)]
pub struct ServiceAccount {
    account: Account,
    key: Arc<RsaKeyPair>,
}

impl ServiceAccount {
    /// Reads the private key.
    pub(super) fn open(account: &Account, private_key_pem: &Secret) -> Result<Self, AccountError> {
        let email = &account.client_email;
        if !email.contains('@') || email.len() > 320 || email.chars().any(char::is_control) {
            return Err(AccountError::NotAKeyFile);
        }
        let key = PrivateKeyDer::from_pem_slice(private_key_pem.expose().as_bytes());
        let key = match key.map_err(|_| AccountError::PrivateKey)? {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            PrivateKeyDer::Sec1(_) | _ => return Err(AccountError::PrivateKey),
        };
        Ok(Self { account: account.clone(), key: Arc::new(key.map_err(|_| AccountError::PrivateKey)?) })
    }

    /// Exchanges a fresh assertion for an access token.
    pub(super) async fn exchange(&self, cloud: &Cloud) -> Result<Issued, UpstreamError> {
        let endpoint = cloud.endpoints.google_token.as_deref().unwrap_or(TOKEN_ENDPOINT);
        let target = super::credential::endpoint(endpoint)?;
        let assertion = self
            .assertion(endpoint, cloud.clock.now().as_second())
            .ok_or_else(|| bad(&target, "no assertion could be signed"))?;
        let body = form([("grant_type", GRANT), ("assertion", assertion.expose())]).into();
        let answer = cloud.client.post(&target, HeaderMap::new(), FORM, body, vec![assertion]).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let host = target.authority().into();
                let source = answer.said().await;
                return Err(UpstreamError::Denied { host, source });
            }
            status => {
                return Err(UpstreamError::Unavailable {
                    host: target.authority().into(),
                    status: status.as_u16(),
                });
            }
        }
        let body = answer.body.read("access token", MAX_TOKEN_BYTES).await?;
        super::token::read_token(&body).ok_or_else(|| bad(&target, "sent no usable access token"))
    }

    /// The signed claim to be this account (RFC 7523; JWT with RS256).
    fn assertion(&self, audience: &str, now: i64) -> Option<Secret> {
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.account.private_key_id});
        let claims = json!({
            "iss": self.account.client_email,
            "scope": SCOPE,
            "aud": audience,
            "iat": now,
            "exp": now + ASSERTION_SECONDS,
        });
        let part = |value: &serde_json::Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).ok()?;
        Some(Secret::new(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))))
    }
}

impl fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccount").field("account", &self.account).finish_non_exhaustive()
    }
}
