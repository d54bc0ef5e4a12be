//! The one decision about who may do what on the device door.
//!
//! Pure: a peer, what it asks for, what is known of it, and the time. A [`Permit`] exists only where this agreed.

use std::sync::Arc;

use jiff::Timestamp;
use thiserror::Error;

use crate::catalog::access::{Access, Granted, Standing};
use crate::pull::Wanted;
use crate::server::route::{Action, ContentAction};
use crate::server::tls::{Device, Peer, Validity};

/// Permission to do one thing; only [`authorize`] makes one.
#[derive(Clone, Debug)]
pub struct Permit(Permitted);

/// What is permitted.
#[derive(Clone, Debug)]
pub enum Permitted {
    /// To anybody.
    Public,
    /// To this device.
    Device(Device),
    /// To this device, this content.
    Content(Device, Wanted),
}

impl Permit {
    /// What is permitted.
    pub fn into_permitted(self) -> Permitted {
        self.0
    }
}

/// Why something is not permitted. The texts are for devices and tell nothing of what exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No certificate was shown.
    #[error("a client certificate of this facade is needed")]
    NoCertificate,
    /// The certificate is not valid yet.
    #[error("the client certificate is not valid yet")]
    NotYetValid,
    /// The certificate has expired.
    #[error("the client certificate has expired")]
    Expired,
    /// The device is unknown or was turned away, or this certificate of it was.
    #[error("the device is not welcome")]
    Unwelcome,
    /// The digest does not belong to an artifact that the device may have, whether it exists or not.
    #[error("the digest is not assigned to this device")]
    NotAssigned,
    /// The device may have the content, which is served under the other path.
    #[error("there is no such content at this path")]
    OtherPath,
}

/// Decides.
pub fn authorize(peer: &Peer, action: &Action, access: &Access, now: Timestamp) -> Result<Permit, Refusal> {
    let device = match (peer, action) {
        (_, Action::CaCerts | Action::Enroll) => return Ok(Permit(Permitted::Public)),
        (Peer::Anonymous, _) => return Err(Refusal::NoCertificate),
        (Peer::Device(device), _) => device,
    };
    match device.validity_at(now) {
        Validity::NotYet => return Err(Refusal::NotYetValid),
        // The handshake lets an expired certificate in only while its grace period lasts.
        Validity::Expired if *action != Action::Reenroll => return Err(Refusal::Expired),
        Validity::Expired | Validity::Valid => {}
    }
    let identity = device.identity();
    let welcome = access.standing(device.id()) == Standing::Active
        && !access.refuses_certificate(device.id(), identity.serial(), identity.not_before());
    // A renewal with a certificate that was replaced is how a copied device shows itself, and one of a device that was
    // turned away is something operators should see: its handler refuses both by the records, and raises the alarm.
    if !welcome && *action != Action::Reenroll {
        return Err(Refusal::Unwelcome);
    }
    let permitted = match action {
        Action::Content(content) => Permitted::Content(device.clone(), content_of(device, content, access)?),
        Action::Ping
        | Action::Metadata { .. }
        | Action::CaCerts
        | Action::Enroll
        | Action::Reenroll
        | Action::CsrAttrs
        | Action::Report
        | Action::Wait { .. } => Permitted::Device(device.clone()),
    };
    Ok(Permit(permitted))
}

fn content_of(device: &Device, asked: &ContentAction, access: &Access) -> Result<Wanted, Refusal> {
    let granted = access.grant(device.id(), &asked.repository, &asked.digest).ok_or(Refusal::NotAssigned)?;
    let Granted { descriptor, kind } = Arc::unwrap_or_clone(granted);
    if kind != asked.kind {
        return Err(Refusal::OtherPath);
    }
    Ok(Wanted { repository: asked.repository.clone(), descriptor, kind })
}
