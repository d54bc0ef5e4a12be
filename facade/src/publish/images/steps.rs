//! One step of publishing: from what is asked for to what is signed, stored and in force.

#[cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "the other half of one noun, in a file of its own")
)]
use super::*;

/// The repository at work: one request, drafted, signed, published.
impl Images {
    pub(super) fn request(&self, files: Vec<Draft>, reasons: Vec<String>) -> Request {
        Request::new(files, reasons, self.parts.clock.now())
    }

    /// What waits already at a desk, with more; signatures that it had are void, because its bytes change.
    pub(super) async fn extended(
        &self,
        current: &Current,
        desk: &Desk,
        additions: Vec<Addition>,
        removals: Vec<Artifact>,
    ) -> Result<Request, PublishingError> {
        let (mut all, mut gone) = (additions, removals);
        let mut work = Work::default();
        if let Some(pending) = current.pending.get(desk) {
            if pending.is_exclusive() {
                return Err(PublishingError::Waiting);
            }
            for earlier in &pending.additions {
                let name = earlier.artifact.name();
                if all.iter().all(|addition| addition.artifact.name() != name)
                    && gone.iter().all(|artifact| artifact.name() != name)
                {
                    all.push(earlier.clone());
                }
            }
            let earlier = pending
                .removals
                .iter()
                .filter(|earlier| gone.iter().all(|other| other.name() != earlier.name()));
            let earlier: Vec<_> = earlier.cloned().collect();
            gone.extend(earlier);
            work.renew.clone_from(&pending.renews);
        }
        let mut reasons = Vec::new();
        for addition in &all {
            let tag =
                addition.artifact.tag.as_ref().map_or_else(|| "by digest".to_owned(), ToString::to_string);
            reasons.push(format!("add {} ({tag})", addition.artifact.name()));
            work.add.push((target_path(addition.artifact.name())?, target(&addition.artifact)));
        }
        for artifact in &gone {
            reasons.push(format!("revoke {}", artifact.name()));
            work.remove.push(target_path(artifact.name())?);
        }
        if !work.renew.is_empty() {
            reasons.push("renewal".to_owned());
        }
        let request = self.draft(current, &work, reasons).await?;
        Ok(Request { additions: all, removals: gone, renews: work.renew, ..request })
    }

    /// Drafts the files that change, signed with the keys that are here.
    pub(super) async fn draft(
        &self,
        current: &Current,
        work: &Work,
        reasons: Vec<String>,
    ) -> Result<Request, PublishingError> {
        let Trust { chain, ring } = &current.trust;
        let root = work.root.as_ref().unwrap_or(chain.current());
        let mut files = Vec::new();
        if let Some(next) = &work.root {
            files.push(root_draft(&current.trust, next)?);
        }
        let publishers =
            work.publishers.clone().unwrap_or_else(|| publishers::of(&current.published.targets));
        let mut signing = Vec::new();
        for (role, targets) in plan::plan(self, &current.published, work, root, ring).await? {
            let publisher = publishers.iter().find(|publisher| publisher.role() == role);
            let keys = publisher.map_or_else(|| root.roles.targets.clone(), Publisher::keys);
            let bytes = sign_with(&targets, &role, &keys, ring)?;
            files.push(Draft::new(&role, targets.version, bytes)?);
            signing.extend(publisher.cloned());
        }
        let changes_signers = work.root.is_some();
        Ok(Request { publishers: signing, changes_signers, ..self.request(files, reasons) })
    }

    pub(super) async fn publish_or_wait(
        &self,
        current: &mut Current,
        desk: &Desk,
        request: Request,
        mut batch: Batch,
    ) -> Result<Outcome, PublishingError> {
        let complete =
            request.is_complete(current.trust.chain.current()).map_err(PublishingError::Refused)?;
        if complete {
            self.publish(current, desk, request, batch).await?;
            return Ok(Outcome::Signed);
        }
        batch.put_json(REQUESTS, &desk.key(), &request)?;
        self.parts.store.commit(batch).await?;
        current.pending.insert(desk.clone(), request);
        Ok(Outcome::Pending)
    }

    /// Publishes a request that has its signatures. The root first: it lies outside the database, and
    /// [`Images::catch_up`] completes from there.
    pub(super) async fn publish(
        &self,
        current: &mut Current,
        desk: &Desk,
        request: Request,
        mut batch: Batch,
    ) -> Result<(), PublishingError> {
        if let Some(draft) = request.files.iter().find(|draft| draft.role == "root")
            && draft.version > current.trust.chain.current().version
        {
            if !request.additions.is_empty() || current.pending.contains_key(desk) {
                let mut waiting = Batch::new();
                waiting.put_json(REQUESTS, &desk.key(), &request)?;
                self.parts.store.commit(waiting).await?;
            }
            let mut chain = current.trust.chain.clone();
            chain.push(draft.text.as_bytes()).map_err(PublishingError::Refused)?;
            self.parts.vault.put_root(NAME, draft.version, draft.text.as_bytes())?;
            current.trust.chain = chain;
        }
        batch.delete(REQUESTS, &desk.key());
        self.publish_online(current, request, batch).await?;
        current.pending.remove(desk);
        self.settle_publishers(current).await
    }

    /// Puts the files of a request in place, and signs the snapshot and the timestamp over them.
    pub(super) async fn publish_online(
        &self,
        current: &mut Current,
        request: Request,
        mut batch: Batch,
    ) -> Result<(), PublishingError> {
        let now = self.parts.clock.now();
        let mut next = current.published.clone();
        if let Some(floor) = &request.floor {
            raise(&mut next, floor);
        }
        for draft in request.files.iter().filter(|draft| draft.role != "root") {
            put_targets(&mut next, draft, &mut batch)?;
        }
        for addition in &request.additions {
            self.parts.artifacts.put(&mut batch, &addition.artifact)?;
            self.parts.artifacts.put_tag(&mut batch, addition.tag.as_ref(), addition.artifact.name())?;
        }
        next.snapshot.version += 1;
        next.snapshot.expires = end_of(now, self.parts.lifetimes.snapshot);
        let root = current.trust.chain.current();
        let bytes = sign_with(&next.snapshot, "snapshot", &root.roles.snapshot, &current.trust.ring)?;
        next.timestamp.meta.snapshot = FileMeta::of(next.snapshot.version, &bytes);
        batch.put(FILES, &versioned(next.snapshot.version, "snapshot"), bytes);
        if let Some(old) = next.snapshot.version.checked_sub(3) {
            batch.delete(FILES, &versioned(old, "snapshot"));
        }
        let next = self.sign_timestamp(&current.trust, next, now, &mut batch)?;
        self.parts.store.commit(batch).await?;
        current.published = next;
        match request.floor {
            Some(_) => self.parts.witness.settle(Repository::Images, marks(current)),
            None => self.witness(current),
        }
    }

    pub(super) fn sign_timestamp(
        &self,
        trust: &Trust,
        mut next: Published,
        now: Time,
        batch: &mut Batch,
    ) -> Result<Published, PublishingError> {
        next.timestamp.version += 1;
        next.timestamp.expires = end_of(now, self.parts.lifetimes.timestamp);
        next.timestamp.extra = signed_at(now);
        let keys = &trust.chain.current().roles.timestamp;
        let bytes = sign_with(&next.timestamp, "timestamp", keys, &trust.ring)?;
        batch.put(FILES, TIMESTAMP_FILE, bytes);
        Ok(next)
    }
}

/// Puts one signed targets file where it is served, and forgets the one that nobody asks for any more.
pub(super) fn put_targets(
    next: &mut Published,
    draft: &Draft,
    batch: &mut Batch,
) -> Result<(), PublishingError> {
    let file = versioned(draft.version, &draft.role);
    let bytes = draft.text.as_bytes();
    let targets: Targets = crate::publish::read(&draft.role, &file, bytes)?;
    let old = next.roles.get(&draft.role);
    if let Some(oldest) = old.and_then(|state| state.previous) {
        batch.delete(FILES, &versioned(oldest, &draft.role));
    }
    let state =
        Listed { version: draft.version, previous: old.map(|state| state.version), expires: targets.expires };
    batch.put_json(ROLES, &draft.role, &state)?;
    batch.put(FILES, &file, bytes.to_vec());
    // Hashes of hundreds of bins would make every snapshot large; versions alone rule out mixing them, and signatures
    // everything else.
    let meta = if bins::is_bin(&draft.role) {
        FileMeta { version: draft.version, length: None, hashes: None, extra: Map::new() }
    } else {
        FileMeta::of(draft.version, bytes)
    };
    next.snapshot.meta.insert(format!("{}.json", draft.role), meta);
    next.roles.insert(draft.role.clone(), state);
    if draft.role == TOP {
        next.targets = targets;
    }
    Ok(())
}

/// Makes the next versions higher than any that was seen.
pub(super) fn raise(published: &mut Published, seen: &Marks) {
    published.snapshot.version = published.snapshot.version.max(seen.snapshot);
    published.timestamp.version = published.timestamp.version.max(seen.timestamp);
    // What no device comes to any more is listed for ever, and may not go back either.
    let live = published.live();
    for (file, meta) in &mut published.snapshot.meta {
        if file.strip_suffix(".json").is_some_and(|role| !live.contains(role)) {
            let version = meta.version.max(seen.snapshot);
            *meta = FileMeta { version, length: None, hashes: None, extra: Map::new() };
        }
    }
}

pub(super) fn marks(current: &Current) -> Marks {
    Marks {
        root: current.trust.chain.current().version,
        timestamp: current.published.timestamp.version,
        snapshot: current.published.snapshot.version,
        ..Marks::default()
    }
}
