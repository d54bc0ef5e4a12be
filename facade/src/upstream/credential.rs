//! What a connection can prove, and the login it becomes when a request needs one.
//!
//! Long-lived secrets stay here; what goes out to a registry is a [`Login`], which for Google and AWS is short-lived.

use super::aws;
use super::google;
use crate::secret::Secret;

/// The credential of a connection, opened from its seal just before use.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Nothing.
    Anonymous,
    /// A user name and a password or token.
    Static {
        /// The user name.
        username: String,
        /// The password or token.
        password: Secret,
    },
    /// A Google service account, exchanged for an access token.
    ServiceAccount(google::ServiceAccount),
    /// A role of AWS, exchanged for an ECR password.
    Role(aws::Role),
}

/// A user name and password as a registry or its token server takes them.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: Secret,
}
