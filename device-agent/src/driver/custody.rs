//! Looks after what was handed over: takes back what nobody needs, and finds what was lost or damaged.
//!
//! What is lost is taken out of the standing, so that the ordinary way brings it in again: with its windows, its
//! admission, and a word to whoever runs it.

use std::time::Duration;

use jiff::SignedDuration;
use pki::digest::Digest;
use pki::oci::ArtifactName;
use pki::wire::Subject;

use super::{Agent, AgentError};
use crate::handover;
use crate::keeping::{self, Leaving};
use crate::lifecycle::{Assigned, Event, Release, Standing, State};
use crate::runtime::{Image, ImageError, RuntimeError, Verification};

const LEAVING_FILE: &str = "leaving.json";
/// How often it is looked whether there is a quiet moment to read back in.
const QUIET: Duration = Duration::from_secs(2);

/// Whether images in their time of grace go, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grace {
    Kept,
    /// The room is needed.
    Over,
}

impl Agent {
    /// Takes back what `standing` does not need, and the leftovers of attempts that were given up.
    pub(super) async fn tidy(&self, standing: &Standing, next: Option<&Release>, grace: Grace) {
        if let Err(error) = self.try_tidy(standing, next, grace).await {
            self.shared().untidy = true;
            tracing::warn!(error = crate::error_chain(&error), "old images could not be taken back");
        }
    }

    async fn try_tidy(
        &self,
        standing: &Standing,
        next: Option<&Release>,
        grace: Grace,
    ) -> Result<(), AgentError> {
        let since: Leaving =
            self.dir.read_json(LEAVING_FILE, "it is made anew").ok().flatten().unwrap_or_default();
        let here: Vec<ArtifactName> =
            self.runtime.images().await?.into_iter().map(|handed| handed.artifact).collect();
        let allowed = match grace {
            Grace::Kept => SignedDuration::try_from(self.config.grace).unwrap_or(SignedDuration::MAX),
            Grace::Over => SignedDuration::ZERO,
        };
        let sorted = keeping::sort(&here, standing, next, &since, self.clock.now(), allowed);
        if sorted.leaving != since {
            self.dir.write_json(LEAVING_FILE, &sorted.leaving)?;
        }
        // What is taken back is no longer something to go back to; that is known before it is gone.
        self.feed(Event::TakenBack(sorted.gone.clone()))?;
        for artifact in &sorted.gone {
            tracing::info!(artifact = %artifact, "image is no longer needed and is taken back");
            handover::take_back(self.runtime.as_ref(), artifact).await?;
        }
        self.shared().untidy = !sorted.leaving.is_empty();
        let wanted: Vec<ArtifactName> =
            next.into_iter().flat_map(Release::assigned).map(|assigned| assigned.artifact.clone()).collect();
        self.runtime.clean(&wanted).await?;
        Ok(())
    }

    /// Finds images that somebody else took away, or that went with their containerd.
    pub(super) async fn miss(&self) -> Result<(), AgentError> {
        let state = self.state();
        let current = &state.standing().current;
        if current.is_empty() {
            return Ok(());
        }
        let here = self.runtime.images().await?;
        let lost = current.assigned().map(|assigned| assigned.artifact.clone());
        let lost: Vec<ArtifactName> =
            lost.filter(|artifact| here.iter().all(|handed| handed.artifact != *artifact)).collect();
        if !lost.is_empty() {
            tracing::error!(lost = ?lost, "images are not there any more, and are brought in again");
            self.feed(Event::Lost(lost))?;
        }
        Ok(())
    }

    /// After a power cut, or when damage was found: reads back what is handed over, in quiet moments.
    pub(super) async fn read_back_in_quiet(&self) -> Result<(), AgentError> {
        loop {
            if !self.shared().unverified || !matches!(self.state(), State::Idle { .. }) {
                tokio::time::sleep(QUIET).await;
                continue;
            }
            if let Err(error) = self.read_back().await {
                tracing::warn!(
                    error = crate::error_chain(&error),
                    "what is handed over cannot be read back yet"
                );
                tokio::time::sleep(QUIET * 15).await;
            }
        }
    }

    /// Reads back what is handed over; what is damaged is thrown away and counts as lost. Whether anything was.
    pub(super) async fn read_back(&self) -> Result<bool, AgentError> {
        let state = self.state();
        let standing = state.standing();
        let mut bytes = 0;
        let mut lost = Vec::new();
        for assigned in
            standing.current.assigned().chain(standing.previous.without(&standing.current).assigned())
        {
            let verification = self.examine(assigned).await?;
            bytes += verification.verified_bytes;
            if verification.is_sound() {
                continue;
            }
            tracing::error!(artifact = %assigned.artifact, ?verification, "an image was damaged");
            // A content without its bytes may still have its name, and would pass for present.
            for digest in verification.damaged.iter().chain(&verification.missing) {
                self.runtime.discard(*digest).await?;
            }
            let reason =
                "a part of it was lost or damaged on the disk; it is brought in again where it is assigned";
            self.reporter().refuse(
                Subject::Artifact(assigned.artifact.clone()),
                "content_damaged",
                reason,
            )?;
            lost.push(assigned.artifact.clone());
        }
        tracing::info!(bytes, damaged = lost.len(), "what is handed over was read back");
        self.feed(Event::Lost(lost.clone()))?;
        self.note_verified();
        if !lost.is_empty() {
            self.wake.notify_one();
        }
        Ok(!lost.is_empty())
    }

    /// Throws away a content that the store names and does not have as it should be: it comes in anew.
    pub(super) async fn throw_away(&self, damaged: Option<Digest>) {
        let Some(digest) = damaged else { return };
        tracing::error!(blob.digest = %digest, "content is not what the store says, and is thrown away");
        if let Err(error) = self.runtime.discard(digest).await {
            tracing::warn!(error = crate::error_chain(&error), "damaged content cannot be thrown away yet");
        }
    }

    /// Reads one image back. What cannot even be put together is missing as a whole.
    async fn examine(&self, assigned: &Assigned) -> Result<Verification, RuntimeError> {
        let runtime = self.runtime.as_ref();
        let loaded = Image::load(runtime, &assigned.artifact, &assigned.root(), &self.platform).await;
        let damage = |digest| Verification { damaged: vec![digest], ..Verification::default() };
        match loaded {
            Ok(image) => runtime.verify(&image).await,
            Err(ImageError::Runtime(RuntimeError::Missing { digest })) => {
                Ok(Verification { missing: vec![digest], ..Verification::default() })
            }
            Err(ImageError::Runtime(RuntimeError::Corrupt { digest, .. })) => Ok(damage(digest)),
            Err(ImageError::Runtime(error)) => Err(error),
            Err(
                ImageError::Document { .. }
                | ImageError::Config { .. }
                | ImageError::Choice(_)
                | ImageError::LayerCount { .. },
            ) => Ok(damage(assigned.artifact.digest())),
        }
    }
}
