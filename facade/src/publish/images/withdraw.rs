//! Revocation: an artifact is refused at once, and its entry goes as soon as those who signed it have signed that.
//!
//! What is revoked is remembered, in the batch that revokes it, until no device finds it in the metadata any more. So
//! neither a repository that is behind, nor a request that was dropped, nor a change of keys under way loses it.

#[cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "another part of one noun, in a file of its own")
)]
use super::*;

/// What is revoked and may still be listed, by name.
const WITHDRAWN: Table = Table("images-withdrawn");

/// What is revoked and may still be listed.
pub(super) async fn load(store: &dyn Store) -> Result<BTreeSet<ArtifactName>, PublishingError> {
    let withdrawn: Vec<(String, ArtifactName)> = scan_json(store, WITHDRAWN, Scan::ALL).await?;
    Ok(withdrawn.into_iter().map(|(_, name)| name).collect())
}

impl Images {
    /// Records that artifacts are revoked, and takes them out as far as that can be signed here and now.
    pub async fn revoke(&self, artifacts: &[Artifact]) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        let mut batch = Batch::new();
        for artifact in artifacts {
            self.parts.artifacts.put(&mut batch, artifact)?;
            batch.put_json(WITHDRAWN, &artifact.name().to_string(), artifact.name())?;
        }
        self.parts.store.commit(batch).await?;
        current.withdrawn.extend(artifacts.iter().map(|artifact| artifact.name().clone()));
        self.take_out(&mut current).await
    }

    /// Asks for the removal of everything that is revoked and still listed, unless that is asked for already.
    pub(super) async fn take_out(&self, current: &mut Current) -> Result<(), PublishingError> {
        if current.withdrawn.is_empty() || self.demand_not_behind(current).is_err() {
            return Ok(());
        }
        let mut due: BTreeMap<Desk, Vec<Artifact>> = BTreeMap::new();
        for name in current.withdrawn.clone() {
            let Some(desk) = self.listed_by(current, &name).await? else {
                continue;
            };
            if let Some(artifact) = self.parts.artifacts.get(&name).await? {
                due.entry(desk).or_default().push(artifact);
            }
        }
        for (desk, artifacts) in due {
            let pending = current.pending.get(&desk);
            let asked = |artifact: &Artifact| {
                pending
                    .is_some_and(|pending| pending.removals.iter().any(|gone| gone.name() == artifact.name()))
            };
            let exclusive = pending.is_some_and(Request::is_exclusive);
            if exclusive || artifacts.iter().all(asked) {
                continue;
            }
            let request = self.extended(current, &desk, Vec::new(), artifacts).await?;
            self.publish_or_wait(current, &desk, request, Batch::new()).await?;
        }
        self.forget_withdrawn(current).await
    }

    async fn listed_by(
        &self,
        current: &Current,
        name: &ArtifactName,
    ) -> Result<Option<Desk>, PublishingError> {
        let role = self.listing(&current.published, &target_path(name)?).await?;
        let desk = |role: String| PublisherName::of_role(&role).map_or(Desk::Operators, Desk::Publisher);
        Ok(role.map(desk))
    }

    /// What no device finds any more needs no remembering.
    async fn forget_withdrawn(&self, current: &mut Current) -> Result<(), PublishingError> {
        let mut batch = Batch::new();
        let mut gone = Vec::new();
        for name in &current.withdrawn {
            if self.listed_by(current, name).await?.is_none() {
                batch.delete(WITHDRAWN, &name.to_string());
                gone.push(name.clone());
            }
        }
        self.parts.store.commit(batch).await?;
        current.withdrawn.retain(|name| !gone.contains(name));
        Ok(())
    }
}
