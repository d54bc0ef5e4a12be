//! Letting publishers sign for some repositories, and taking that back.

#[cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "another part of one noun, in a file of its own")
)]
use super::*;
use crate::publish::publishers::{MAX_PUBLISHERS, MAX_REPOSITORIES};
use crate::publish::trust::RootChangeError;

/// A publisher, and where its key is.
#[derive(Clone, Debug)]
pub struct Delegation {
    /// The publisher.
    pub publisher: Publisher,
    /// Whether its key is here.
    pub here: bool,
    /// When what it has signed ends; `None` before it has signed anything.
    pub expires: Option<Time>,
}

impl Images {
    /// The publishers, in the order in which devices ask them.
    pub async fn delegations(&self) -> Vec<Delegation> {
        let current = self.current.lock().await;
        let publishers = publishers::of(&current.published.targets).into_iter();
        let view = |publisher: Publisher| Delegation {
            here: current.trust.ring.holds(publisher.key.id()),
            expires: current.published.roles.get(&publisher.role()).map(|listed| listed.expires),
            publisher,
        };
        publishers.map(view).collect()
    }

    /// Lets a publisher sign for its repositories; `made` is its key where that is kept here.
    pub async fn delegate(
        &self,
        publisher: Publisher,
        made: Option<SigningKey>,
    ) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        self.demand_changeable(&current)?;
        let mut publishers = publishers::of(&current.published.targets);
        demand_new(&publisher, &publishers, current.trust.chain.current())?;
        if let Some(key) = made {
            self.parts.vault.put_key(NAME, &publisher.role(), &key)?;
            current.trust.ring.insert(key);
        }
        let reason = format!("publisher {} may sign for {}", publisher.name, listed(&publisher));
        publishers.push(publisher);
        let work = Work { publishers: Some(publishers), ..Work::default() };
        let request = self.draft(&current, &work, vec![reason]).await?;
        let request = Request { changes_signers: true, ..request };
        let outcome = self.publish_or_wait(&mut current, &Desk::Operators, request, Batch::new()).await?;
        self.take_out(&mut current).await?;
        Ok(outcome)
    }

    /// The artifacts that exist because a publisher has signed them.
    pub async fn signed_by(&self, name: &PublisherName) -> Result<Vec<Artifact>, PublishingError> {
        let current = self.current.lock().await;
        self.signed_by_publisher(&current, name).await
    }

    async fn signed_by_publisher(
        &self,
        current: &Current,
        name: &PublisherName,
    ) -> Result<Vec<Artifact>, PublishingError> {
        find(&publishers::of(&current.published.targets), name)?;
        let mut artifacts = Vec::new();
        for path in self.document(&current.published, &name.role()).await?.targets.into_keys() {
            let Ok(name) = path.as_str().parse() else { continue };
            let artifact = self.parts.artifacts.get(&name).await?;
            artifacts.extend(artifact.filter(|artifact| artifact.revoked_at.is_none()));
        }
        Ok(artifacts)
    }

    /// Takes a delegation back. What the publisher has signed and what is not revoked is signed by the targets keys from
    /// now on; what waits for the publisher's signature is dropped.
    pub async fn undelegate(&self, name: &PublisherName) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        self.demand_changeable(&current)?;
        let mut publishers = publishers::of(&current.published.targets);
        find(&publishers, name)?;
        let mut add = Vec::new();
        for artifact in self.signed_by_publisher(&current, name).await? {
            add.push((target_path(artifact.name())?, target(&artifact)));
        }
        publishers.retain(|publisher| publisher.name != *name);
        let mut reasons = vec![format!("publisher {name} may no longer sign")];
        reasons.extend(add.iter().map(|(path, _)| format!("keep {path}")));
        let work = Work { add, publishers: Some(publishers), ..Work::default() };
        let request = self.draft(&current, &work, reasons).await?;
        let request = Request { changes_signers: true, ..request };
        let outcome = self.publish_or_wait(&mut current, &Desk::Operators, request, Batch::new()).await?;
        self.take_out(&mut current).await?;
        Ok(outcome)
    }

    fn demand_changeable(&self, current: &Current) -> Result<(), PublishingError> {
        self.demand_not_behind(current)?;
        if current.pending.contains_key(&Desk::Operators) {
            return Err(PublishingError::Waiting);
        }
        Ok(())
    }

    /// Drops what waits for publishers that there no longer are, and drafts anew what was overtaken.
    pub(super) async fn settle_publishers(&self, current: &mut Current) -> Result<(), PublishingError> {
        let publishers = publishers::of(&current.published.targets);
        let desks: Vec<Desk> = current.pending.keys().cloned().collect();
        for desk in desks {
            let Desk::Publisher(name) = &desk else { continue };
            let Some(pending) = current.pending.get(&desk) else { continue };
            let known =
                find(&publishers, name).is_ok_and(|publisher| pending.publishers == [publisher.clone()]);
            if !known {
                let mut batch = Batch::new();
                batch.delete(REQUESTS, &desk.key());
                self.parts.store.commit(batch).await?;
                current.pending.remove(&desk);
                continue;
            }
            let published = current.published.roles.get(&name.role()).map_or(0, |listed| listed.version);
            if pending.files.iter().any(|draft| draft.version <= published) {
                let request = self.extended(current, &desk, Vec::new(), Vec::new()).await?;
                let mut batch = Batch::new();
                batch.put_json(REQUESTS, &desk.key(), &request)?;
                self.parts.store.commit(batch).await?;
                current.pending.insert(desk, request);
            }
        }
        self.forget_unused_keys(current)
    }

    /// Forgets the keys that nothing in force and nothing that waits needs.
    pub(super) fn forget_unused_keys(&self, current: &mut Current) -> Result<(), PublishingError> {
        let mut proposed = Vec::new();
        let mut others: BTreeSet<_> =
            publishers::of(&current.published.targets).iter().map(|publisher| publisher.key.id()).collect();
        for request in current.pending.values() {
            proposed.extend(request.root().map_err(PublishingError::Refused)?);
            others.extend(request.publishers.iter().map(|publisher| publisher.key.id()));
        }
        let mut roots: Vec<&pki::metadata::Root> = proposed.iter().collect();
        roots.push(current.trust.chain.current());
        for id in current.trust.ring.unused(&roots, &others) {
            current.trust.ring.remove(id);
            self.parts.vault.remove_key(NAME, id)?;
        }
        Ok(())
    }
}

fn find<'a>(publishers: &'a [Publisher], name: &PublisherName) -> Result<&'a Publisher, PublishingError> {
    let found = publishers.iter().find(|publisher| publisher.name == *name);
    found.ok_or_else(|| PublishingError::NoPublisher(name.clone()))
}

/// Refuses what would make two answers possible, or a document too long.
fn demand_new(
    publisher: &Publisher,
    publishers: &[Publisher],
    root: &pki::metadata::Root,
) -> Result<(), PublishingError> {
    for (what, count, limit) in [
        ("publishers", publishers.len() + 1, MAX_PUBLISHERS),
        ("repositories of one publisher", publisher.repositories.len(), MAX_REPOSITORIES),
    ] {
        if count > limit {
            return Err(PublishingError::TooMany { what, limit });
        }
    }
    let id = publisher.key.id();
    if !publisher.key.is_usable() {
        return Err(RootChangeError::Unusable(id).into());
    }
    // A publisher's key is read more easily than the operators', and must not be worth as much.
    if Role::ALL.iter().any(|role| role.keys(root).keyids.contains(&id))
        || publishers.iter().any(|other| other.key.id() == id)
    {
        return Err(RootChangeError::Shared(id).into());
    }
    for other in publishers {
        if other.name == publisher.name {
            return Err(PublishingError::KnownPublisher(other.name.clone()));
        }
        if let Some(repository) = other.repositories.intersection(&publisher.repositories).next() {
            let (repository, publisher) = (repository.clone(), other.name.clone());
            return Err(PublishingError::Delegated { repository, publisher });
        }
    }
    Ok(())
}

fn listed(publisher: &Publisher) -> String {
    publisher.repositories.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
