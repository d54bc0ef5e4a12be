//! `connection test`: which layer fails, said in one line.

use serde::{Deserialize, Serialize};

/// A layer of a connection, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The name resolves, to an address that the connection may reach.
    Name,
    /// A TCP connection opens.
    Tcp,
    /// TLS is agreed on with a trusted certificate.
    Tls,
    /// `/v2/` is answered as by a registry.
    Api,
    /// The credentials are accepted.
    Credentials,
    /// They allow reading the repository.
    Permission,
    /// There is room left under the rate limit.
    RateLimit,
}

/// How one step went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// The step.
    pub step: Step,
    /// How it went.
    pub outcome: Outcome,
    /// What was seen, in one line.
    pub detail: String,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Well.
    Ok,
    /// Badly; no later step was tried.
    Failed,
    /// Not tried, because it does not apply.
    Skipped,
}

/// The outcome of a test of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Whether every step that applies went well.
    pub ok: bool,
    /// One line: that all is well, or the layer that fails and why.
    pub verdict: String,
    /// The steps that were tried.
    pub steps: Vec<StepResult>,
}
