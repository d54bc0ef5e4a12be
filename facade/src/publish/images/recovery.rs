//! What devices have seen, held against what we remember, and the way out of an older copy of the database.

#[cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "another part of one noun, in a file of its own")
)]
use super::*;

impl Images {
    /// Holds what a device has seen against what we remember. Only what one of our keys has signed stops anything: a
    /// device can say whatever it likes, and must not be able to stop the others.
    pub async fn observe(
        &self,
        device: &DeviceId,
        seen: RepositoryVersions,
        proof: Option<&str>,
    ) -> Result<(), PublishingError> {
        let current = self.current.lock().await;
        let own = marks(&current);
        let proven = proof.and_then(|text| Marks::proven(text, current.trust.chain.current(), &own));
        drop(current);
        let claimed = Marks::claimed(seen, &own);
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.note(device, claimed.filter(|_| proven.is_none()));
        drop(doubts);
        let Some(proven) = proven else { return Ok(()) };
        tracing::error!(device.id = %device, seen = ?proven, "a device shows newer images metadata than there is");
        self.parts.witness.claimed(Repository::Images, device, &proven)
    }

    /// Says that the repository is behind what was published, and by whom it is known.
    pub async fn behind(&self) -> Option<(PublishingError, Marks)> {
        let current = self.current.lock().await;
        let seen = self.parts.witness.marks(Repository::Images);
        self.demand_not_behind(&current).err().map(|error| (error, seen))
    }

    /// By an operator's word: signs everything above what was seen.
    pub async fn recover(&self) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        let seen = self.parts.witness.marks(Repository::Images);
        if seen.root > current.trust.chain.current().version {
            return Err(PublishingError::RootLost { repository: NAME, seen: seen.root });
        }
        let mut raised = current.published.clone();
        raise(&mut raised, &seen);
        let before = std::mem::replace(&mut current.published, raised);
        let drafted = self.draft_recovery(&current).await;
        current.published = before;
        let request = Request { floor: Some(seen), ..drafted? };
        let outcome = self.publish_or_wait(&mut current, &Desk::Operators, request, Batch::new()).await?;
        if outcome == Outcome::Signed {
            self.take_out(&mut current).await?;
        }
        Ok(outcome)
    }

    async fn draft_recovery(&self, current: &Current) -> Result<Request, PublishingError> {
        let remove: Result<Vec<_>, _> = current.withdrawn.iter().map(target_path).collect();
        let work = Work { renew: current.published.live(), remove: remove?, ..Work::default() };
        self.draft(current, &work, vec!["recovery from an older copy".to_owned()]).await
    }

    /// By an operator's word: what devices have shown is not to be passed.
    pub async fn dismiss(&self) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        self.parts.witness.settle(Repository::Images, marks(&current))?;
        self.take_out(&mut current).await
    }

    pub(super) fn demand_not_behind(&self, current: &Current) -> Result<(), PublishingError> {
        let seen = self.parts.witness.marks(Repository::Images);
        let own = marks(current);
        if seen.is_above(&own) {
            let (own, seen) = (own.timestamp, seen.timestamp);
            return Err(PublishingError::Behind { repository: NAME, own, seen });
        }
        Ok(())
    }

    pub(super) fn witness(&self, current: &Current) -> Result<(), PublishingError> {
        self.parts.witness.published(Repository::Images, &marks(current))
    }
}

/// What is to be said of a repository that is behind, and who knows.
pub(in crate::publish) fn behind_warning(behind: Option<(PublishingError, Marks)>) -> Vec<String> {
    let Some((error, seen)) = behind else {
        return Vec::new();
    };
    let devices: Vec<String> = seen.claimed_by.iter().map(ToString::to_string).collect();
    let known = if devices.is_empty() { "witness.json".to_owned() } else { devices.join(", ") };
    vec![format!("{error}; known from {known}")]
}
