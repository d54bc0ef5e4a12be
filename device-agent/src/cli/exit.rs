//! Exit codes (SPEC 8), and failures on their way to one.

use std::process::ExitCode;

use serde::Serialize;

use crate::driver::AgentError;
use crate::facade_client::Class;
use crate::identity::IdentityError;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Success = 0,
    /// The work failed.
    Failed = 1,
    /// It was used wrongly.
    Usage = 2,
    /// The facade could not be reached.
    Unreachable = 4,
    /// The facade does not allow it.
    NotAllowed = 5,
    /// Something could not be verified; never reported as anything milder.
    Verification = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// The code of an error.
    pub fn of(error: &AgentError) -> Self {
        if error.is_verification() {
            return Self::Verification;
        }
        match error.class() {
            Some(Class::Unreachable | Class::Busy) => Self::Unreachable,
            Some(Class::NotAllowed) => Self::NotAllowed,
            Some(Class::Impostor) => Self::Verification,
            Some(Class::Broken) => Self::Failed,
            None => Self::of_own(error),
        }
    }

    fn of_own(error: &AgentError) -> Self {
        let AgentError::Identity(error) = error else {
            return Self::Failed;
        };
        if matches!(error, IdentityError::AlreadyEnrolled { .. }) {
            Self::Usage
        } else if matches!(error, IdentityError::NotApproved) {
            Self::NotAllowed
        } else {
            Self::Failed
        }
    }
}

/// Why the process ends badly.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// How it ends.
    pub exit: Exit,
    /// What went wrong.
    pub error: String,
    /// What lies under it, outermost first.
    pub causes: Vec<String>,
}

impl Failure {
    /// A failure with this code.
    pub fn new(exit: Exit, error: &dyn std::error::Error) -> Self {
        let mut causes = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        Self { exit, error: error.to_string(), causes }
    }

    /// Wrong use.
    pub fn usage(error: &dyn std::error::Error) -> Self {
        Self::new(Exit::Usage, error)
    }

    /// The work failed.
    pub fn failed(error: &dyn std::error::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_facade_is_a_failed_verification() {
        let error = AgentError::Identity(IdentityError::WrongFacade {
            facade: "https://facade.example:8443".parse().unwrap(),
            pinned: pki::x509::Fingerprint::of(b"ca"),
        });
        assert_eq!(Exit::of(&error), Exit::Verification);
    }

    #[test]
    fn not_being_enrolled_is_not_a_network_problem() {
        let error = AgentError::Identity(IdentityError::NotEnrolled);
        assert_eq!(Exit::of(&error), Exit::Failed);
    }
}
