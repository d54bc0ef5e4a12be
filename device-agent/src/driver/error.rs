//! What can keep a round from ending well, and what that means.

use thiserror::Error;

use super::deadline::Overdue;
use crate::apply::ApplyError;
use crate::facade_client::{Class, ClientError};
use crate::fetch::FetchError;
use crate::handover::HandoverError;
use crate::identity::IdentityError;
use crate::lifecycle::Fault;
use crate::probe::ProbeError;
use crate::refresh::RefreshError;
use crate::report::ReportError;
use crate::runtime::RuntimeError;
use crate::state_file::StateError;

/// Why a round did not end well.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no usable identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The metadata could not be refreshed, or is not believed.
    #[error(transparent)]
    Refresh(#[from] RefreshError),
    /// A release could not be brought in.
    #[error(transparent)]
    Fetch(Box<FetchError>),
    /// A release could not be handed over.
    #[error(transparent)]
    Handover(Box<HandoverError>),
    /// Whoever runs the images did not take the release.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The release does not work.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The place for images does not work.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The facade could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A release did not come in within its deadline.
    #[error(transparent)]
    Overdue(#[from] Overdue),
    /// The facade does not take the word of this device.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Somebody asked us to stop.
    #[error("stopped before the round was done; it goes on where it was")]
    Stopped,
}

impl From<FetchError> for AgentError {
    fn from(error: FetchError) -> Self {
        Self::Fetch(Box::new(error))
    }
}

impl From<HandoverError> for AgentError {
    fn from(error: HandoverError) -> Self {
        Self::Handover(Box::new(error))
    }
}

impl AgentError {
    /// Whether something was refused because it could not be verified.
    pub fn is_verification(&self) -> bool {
        match self {
            Self::Refresh(error) => error.is_verification() || is_impostor(error_client(error)),
            Self::Fetch(error) => error.is_verification() || error.class() == Some(Class::Impostor),
            Self::Handover(error) => error.fault() == Fault::Release,
            Self::Identity(
                IdentityError::WrongFacade { .. }
                | IdentityError::WrongRoot { .. }
                | IdentityError::Answer(_),
            ) => true,
            Self::Identity(IdentityError::Client(error)) | Self::Client(error) => is_impostor(Some(error)),
            Self::Report(error) => error.class() == Some(Class::Impostor),
            Self::Identity(_)
            | Self::State(_)
            | Self::Runtime(_)
            | Self::Apply(_)
            | Self::Probe(_)
            | Self::Overdue(_)
            | Self::Stopped => false,
        }
    }

    /// The failed request for metadata, if it was that.
    pub(super) fn client(&self) -> Option<&ClientError> {
        if let Self::Refresh(error) = self { error_client(error) } else { None }
    }

    /// What went wrong on the way to the facade, if it was that.
    pub fn class(&self) -> Option<Class> {
        match self {
            Self::Refresh(error) => error_client(error).map(ClientError::class),
            Self::Fetch(error) => error.class(),
            Self::Report(error) => error.class(),
            Self::Identity(IdentityError::TokenRefused(_)) => Some(Class::NotAllowed),
            Self::Identity(IdentityError::Client(error)) | Self::Client(error) => Some(error.class()),
            Self::Identity(_)
            | Self::State(_)
            | Self::Handover(_)
            | Self::Runtime(_)
            | Self::Apply(_)
            | Self::Probe(_)
            | Self::Overdue(_)
            | Self::Stopped => None,
        }
    }
}

fn error_client(error: &RefreshError) -> Option<&ClientError> {
    if let RefreshError::Client { source, .. } = error { Some(source) } else { None }
}

fn is_impostor(error: Option<&ClientError>) -> bool {
    error.is_some_and(|error| error.class() == Class::Impostor)
}
