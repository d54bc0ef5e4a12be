//! Device identity and certificates.
//!
//! x509-parser reads, rcgen writes. Names in certificates are decided here and by the caller, never by a request.

mod device_id;
mod fingerprint;

pub use device_id::{DeviceId, DeviceIdError, TrustDomain, TrustDomainError};
pub use fingerprint::{Fingerprint, FingerprintError, Serial, SerialError};
