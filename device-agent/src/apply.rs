//! Tells whoever runs the images that they have changed: the operator's hook, or a systemd unit to restart.
//!
//! The agent runs no containers yet; when it does, this is where it will. What is told: each artifact that came, went or
//! goes back, by name, digest and the stable alias. A hook may be told the same twice, after a crash, and must bear it.

use std::time::Duration;

use pki::oci::ArtifactName;
use thiserror::Error;

use crate::lifecycle::Release;
use crate::program::{Program, ProgramError};
use crate::runtime::current_alias;

/// Whom to tell, and how long that may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apply {
    /// Whom.
    pub whom: Whom,
    /// How long each of them has.
    pub timeout: Duration,
    /// What else a program is told: where the images are.
    pub place: Vec<(&'static str, String)>,
}

/// Whom to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// A program, once for each artifact.
    Program(Program),
    /// A systemd unit that is restarted, once for all.
    Unit(Program),
    /// Nobody: what is handed over is picked up by itself.
    Nobody,
}

/// Which way it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To a new release.
    Forward,
    /// Back to the release that was confirmed.
    Back,
}

/// What happened to one artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    action: &'static str,
    artifact: ArtifactName,
    previous: Option<ArtifactName>,
}

/// Why it could not be told, or was not well received.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// Not now, says the hook (exit code 75, `EX_TEMPFAIL`).
    #[error("the apply hook asks to wait")]
    NotNow(#[source] ProgramError),
    /// It cannot be told at all.
    #[error("nobody can be told to run {0}")]
    Untold(ArtifactName, #[source] ProgramError),
    /// It does not work.
    #[error("{0} could not be applied")]
    Unfit(ArtifactName, #[source] ProgramError),
}

/// What changes to a release from what may run before it, one of `from` or a mix of them, in the order it is told: first
/// what comes, then what goes.
pub fn changes<'a>(
    from: impl IntoIterator<Item = &'a Release>,
    to: &Release,
    direction: Direction,
) -> Vec<Change> {
    let action = match direction {
        Direction::Forward => "apply",
        Direction::Back => "roll-back",
    };
    let (mut gone, mut come) = (Release::default(), Release::default());
    for from in from {
        gone = gone.with(&from.without(to));
        come = come.with(&to.without(from));
    }
    let mut changes: Vec<Change> = Vec::new();
    for assigned in come.assigned() {
        let artifact = assigned.artifact.clone();
        let previous = gone.assigned().map(|gone| &gone.artifact);
        let mut previous = previous.filter(|gone| gone.repository() == artifact.repository());
        changes.push(Change { action, previous: previous.next().cloned(), artifact });
    }
    for assigned in gone.assigned() {
        let repository = assigned.artifact.repository();
        if !to.assigned().any(|kept| kept.artifact.repository() == repository) {
            changes.push(Change { action: "remove", artifact: assigned.artifact.clone(), previous: None });
        }
    }
    changes
}

impl Apply {
    /// Tells of every change; the first that is not well received ends it.
    pub async fn tell(&self, changes: &[Change]) -> Result<(), ApplyError> {
        match &self.whom {
            Whom::Nobody => Ok(()),
            Whom::Program(hook) => {
                for (number, change) in changes.iter().enumerate() {
                    tracing::info!(artifact = %change.artifact, action = change.action, "running the apply hook");
                    self.run(hook, change).await.map_err(|error| match error {
                        // The hook that is gone now has told of others before.
                        ApplyError::Untold(artifact, source) if number > 0 => {
                            ApplyError::Unfit(artifact, source)
                        }
                        ApplyError::Untold(..) | ApplyError::NotNow(_) | ApplyError::Unfit(..) => error,
                    })?;
                }
                Ok(())
            }
            Whom::Unit(restart) => match changes.first() {
                Some(change) => self.run(restart, change).await,
                None => Ok(()),
            },
        }
    }

    async fn run(&self, program: &Program, change: &Change) -> Result<(), ApplyError> {
        let mut environment = change.environment();
        environment.extend(self.place.iter().cloned());
        let artifact = || change.artifact.clone();
        program.run(&environment, self.timeout).await.map_err(|error| match error {
            ProgramError::Start { .. } => ApplyError::Untold(artifact(), error),
            _ if error.code() == Some(NOT_NOW) => ApplyError::NotNow(error),
            ProgramError::Failed { .. } | ProgramError::Endless { .. } => {
                ApplyError::Unfit(artifact(), error)
            }
        })
    }
}

impl Change {
    fn environment(&self) -> Vec<(&'static str, String)> {
        let digest = |artifact: &ArtifactName| artifact.digest().to_string();
        let previous = self.previous.as_ref();
        vec![
            ("DRAYAGE_ACTION", self.action.to_owned()),
            ("DRAYAGE_ARTIFACT", self.artifact.to_string()),
            ("DRAYAGE_NAME", self.artifact.repository().to_string()),
            ("DRAYAGE_DIGEST", digest(&self.artifact)),
            ("DRAYAGE_IMAGE", current_alias(self.artifact.repository())),
            ("DRAYAGE_PREVIOUS_ARTIFACT", previous.map(ToString::to_string).unwrap_or_default()),
            ("DRAYAGE_PREVIOUS_DIGEST", previous.map(digest).unwrap_or_default()),
        ]
    }
}

/// `EX_TEMPFAIL` of `sysexits.h`.
const NOT_NOW: i32 = 75;

#[cfg(test)]
mod tests {
    use pki::digest::Digest;
    use pki::oci::MediaType;

    use super::*;
    use crate::lifecycle::Assigned;

    fn release(names: &[&str]) -> Release {
        Release::new(names.iter().map(|name| {
            let (repository, content) = name.split_once(':').unwrap();
            let digest = Digest::sha256(content.as_bytes());
            Assigned {
                artifact: format!("registry.example.com/{repository}@{digest}").parse().unwrap(),
                media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
                size_bytes: 7,
            }
        }))
    }

    fn told(from: &[&str], to: &[&str], direction: Direction) -> Vec<(&'static str, String, bool)> {
        changes([&release(from)], &release(to), direction)
            .into_iter()
            .map(|change| {
                (change.action, change.artifact.repository().to_string(), change.previous.is_some())
            })
            .collect()
    }

    #[test]
    fn tells_what_came_with_what_it_replaces_and_what_went() {
        let name = |repository: &str| format!("registry.example.com/{repository}");
        assert_eq!(told(&[], &["app:1"], Direction::Forward), [("apply", name("app"), false)]);
        assert_eq!(
            told(&["app:1", "log:1", "old:1"], &["app:2", "log:1"], Direction::Forward),
            [("apply", name("app"), true), ("remove", name("old"), false)]
        );
        assert_eq!(
            told(&["app:2", "new:1"], &["app:1"], Direction::Back),
            [("roll-back", name("app"), true), ("remove", name("new"), false)]
        );
        assert_eq!(told(&["app:1"], &["app:1"], Direction::Forward), []);
    }

    #[test]
    fn tells_again_whatever_may_not_run_where_that_is_not_known() {
        let may_run = [release(&["app:1", "log:1"]), release(&["app:2", "log:1", "new:2"])];
        let told: Vec<String> = changes(&may_run, &release(&["app:1", "log:1"]), Direction::Forward)
            .iter()
            .map(|change| format!("{} {}", change.action, change.artifact.repository()))
            .collect();
        assert_eq!(told, ["apply registry.example.com/app", "remove registry.example.com/new"]);
    }

    #[test]
    fn describes_the_artifact() {
        let change = changes([&release(&["app:1"])], &release(&["app:2"]), Direction::Forward).remove(0);
        let environment: std::collections::BTreeMap<_, _> = change.environment().into_iter().collect();
        assert_eq!(environment["DRAYAGE_IMAGE"], "registry.example.com/app:current");
        assert_eq!(environment["DRAYAGE_DIGEST"], Digest::sha256(b"2").to_string());
        assert_eq!(environment["DRAYAGE_PREVIOUS_DIGEST"], Digest::sha256(b"1").to_string());
    }
}
