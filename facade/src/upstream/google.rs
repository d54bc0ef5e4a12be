//! Google service accounts: a signed assertion, exchanged for an access token that lives an hour or less.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::secret::Secret;

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
    #[error("not a service account key file (expected the JSON with \"type\": \"service_account\")")]
    NotAKeyFile,
    /// The file names a token endpoint that is not Google's.
    #[error(
        "token_uri must be below https://*.googleapis.com/ (a key file with another one would send the key's proof elsewhere)"
    )]
    TokenUri,
    /// The private key cannot be used.
    #[error("private_key is not an RSA key in PEM (expected -----BEGIN PRIVATE KEY-----)")]
    PrivateKey,
}

impl Account {
    /// Takes a downloaded key file apart: the account, and its private key as the connection's secret.
    pub fn from_key_file(_json: &Secret) -> Result<(Self, Secret), AccountError> {
        todo!()
    }
}

/// A service account with its key.
#[derive(Clone, Debug)]
pub struct ServiceAccount {}

impl ServiceAccount {
    /// Reads the private key.
    pub(super) fn open(_account: &Account, _private_key_pem: &Secret) -> Result<Self, AccountError> {
        todo!()
    }
}
