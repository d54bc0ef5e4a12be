//! The bodies that agent and facade exchange, and the token by which they meet.
//!
//! Everything is parsed once, with limits, by [`crate::json`]. Unknown fields are ignored, because a fleet is never of
//! one version; a change that an older peer would misread raises the body's `version`, and an unknown version is refused.

mod policy;
mod report;
mod text;
mod token;

pub use policy::{ByteRate, Deadline, DevicePolicy, Metered, PolicyError, Window, Zone};
pub use report::{
    AgentState, MAX_REPORT_BYTES, MetadataVersions, Progress, Proof, Refusal, Report, ReportAnswer,
    ReportError, RepositoryVersions, RolledBack, Running, Subject, WaitAnswer,
};
pub use text::{Code, Line, TextError};
pub(crate) use token::is_host;
pub use token::{
    EnrollmentToken, FacadeUrl, FacadeUrlError, RootPin, TokenError, TokenId, TokenPartError, TokenSecret,
};
