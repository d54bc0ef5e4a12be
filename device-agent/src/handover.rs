//! Makes a release the one that is handed over, or goes back to the one before; and takes back what nobody needs.
//!
//! Every function here may be repeated after a crash. What is current and what was current before it stays, with its
//! content, so that going back needs no network.

use pki::digest::Digest;
use pki::oci::{ArtifactName, Platform};
use thiserror::Error;

use crate::lifecycle::{Assigned, Fault, Release, Standing};
use crate::runtime::{Image, ImageError, Runtime, RuntimeError};

/// Why a release was not handed over.
#[derive(Debug, Error)]
#[error("{artifact} could not be handed over")]
pub struct HandoverError {
    artifact: ArtifactName,
    #[source]
    source: ImageError,
}

impl HandoverError {
    fn new(assigned: &Assigned) -> impl Fn(ImageError) -> Self {
        let artifact = assigned.artifact.clone();
        move |source| Self { artifact: artifact.clone(), source }
    }

    /// Which artifact it was.
    pub fn artifact(&self) -> &ArtifactName {
        &self.artifact
    }

    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        matches!(&self.source, ImageError::Runtime(RuntimeError::NoSpace { .. }))
    }

    /// What the store has lost, if it was that.
    pub fn lost(&self) -> Option<&ArtifactName> {
        self.damaged().map(|_| &self.artifact)
    }

    /// The content that is not what it should be, if it was that.
    pub fn damaged(&self) -> Option<Digest> {
        if let ImageError::Runtime(error) = &self.source { error.damaged() } else { None }
    }

    /// Whether waiting may help.
    pub fn is_transient(&self) -> bool {
        matches!(&self.source, ImageError::Runtime(error) if error.is_transient())
    }

    /// Whether the release is bad, or something else was in the way.
    pub fn fault(&self) -> Fault {
        match &self.source {
            ImageError::Runtime(RuntimeError::WrongLayer { .. }) => Fault::Release,
            ImageError::Runtime(_) => Fault::Circumstance,
            ImageError::Document { .. }
            | ImageError::Config { .. }
            | ImageError::Choice(_)
            | ImageError::LayerCount { .. } => Fault::Release,
        }
    }
}

/// Hands a release over whose content is all there.
pub async fn activate(
    runtime: &dyn Runtime,
    release: &Release,
    platform: &Platform,
) -> Result<(), HandoverError> {
    // All are imported before the first alias moves: a release changes as a whole or not at all.
    for assigned in release.assigned() {
        import(runtime, assigned, platform).await.map_err(HandoverError::new(assigned))?;
    }
    for assigned in release.assigned() {
        let promoted = runtime.promote(&assigned.artifact).await;
        promoted.map_err(ImageError::Runtime).map_err(HandoverError::new(assigned))?;
    }
    Ok(())
}

async fn import(runtime: &dyn Runtime, assigned: &Assigned, platform: &Platform) -> Result<(), ImageError> {
    let lease = runtime.open(&assigned.artifact).await?;
    let image = Image::load(runtime, &assigned.artifact, &assigned.root(), platform).await?;
    runtime.import(&lease, &image).await?;
    runtime.close(&lease).await?;
    Ok(())
}

/// Takes back what only `failed` needs.
pub async fn leave(
    runtime: &dyn Runtime,
    standing: &Standing,
    failed: &Release,
) -> Result<(), HandoverError> {
    for assigned in failed.assigned() {
        let artifact = &assigned.artifact;
        if !standing.current.has(artifact) && !standing.previous.has(artifact) {
            take_back(runtime, artifact)
                .await
                .map_err(ImageError::Runtime)
                .map_err(HandoverError::new(assigned))?;
        }
    }
    Ok(())
}

/// Takes back one image; it may be gone already.
pub async fn take_back(runtime: &dyn Runtime, artifact: &ArtifactName) -> Result<(), RuntimeError> {
    match runtime.remove(artifact).await {
        Ok(()) | Err(RuntimeError::Unknown { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
