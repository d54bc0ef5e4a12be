//! Device identity and certificates.
//!
//! [`Identity`] is what the facade may believe of a client certificate after TLS has verified its chain; [`Csr`] is a
//! request whose sender has proved possession of the key; [`Authority`] issues. Names in certificates are decided here
//! and by the caller, never by a request. x509-parser reads, rcgen writes; the only DER of our own is [`pkcs7`].

mod csr;
mod device_id;
pub mod est;
mod fingerprint;
mod identity;
mod issue;
mod key;
pub mod pem;
pub mod pkcs7;
mod server_name;

pub use csr::{Csr, CsrError};
pub use device_id::{DeviceId, DeviceIdError, TrustDomain, TrustDomainError};
pub use fingerprint::{Fingerprint, FingerprintError, Serial, SerialError};
pub use identity::{Identity, IdentityError};
pub use issue::{Authority, DEVICE_LIFETIME, IssueError, Issued};
pub use key::{KeyError, KeyKind, KeyKindError, PrivateKey, request};
pub use server_name::{ServerName, ServerNameError};
