//! What time asks for: signing again before the end, saying when something ends, and what needs an operator.

#[cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "another part of one noun, in a file of its own")
)]
use super::*;

impl Images {
    /// Signs again what is half-way to its end, and takes out what is revoked and still listed.
    pub async fn resign(&self) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        self.demand_not_behind(&current)?;
        self.take_out(&mut current).await?;
        let (now, lifetimes) = (self.parts.clock.now(), self.parts.lifetimes);
        for (desk, renew) in self.aged(&current, now) {
            let work = Work { renew, ..Work::default() };
            let request = self.draft(&current, &work, Vec::new()).await?;
            self.publish(&mut current, &desk, request, Batch::new()).await?;
        }
        let published = &current.published;
        if is_ageing(published.snapshot.expires, now, lifetimes.snapshot) {
            let request = self.request(Vec::new(), Vec::new());
            return self.publish_online(&mut current, request, Batch::new()).await;
        }
        if is_ageing(published.timestamp.expires, now, lifetimes.timestamp) {
            let mut batch = Batch::new();
            let next = self.sign_timestamp(&current.trust, published.clone(), now, &mut batch)?;
            self.parts.store.commit(batch).await?;
            current.published = next;
            self.witness(&current)?;
        }
        Ok(())
    }

    /// The files with half their life behind them that can be signed here, by whose they are.
    fn aged(&self, current: &Current, now: Time) -> BTreeMap<Desk, BTreeSet<String>> {
        let Current { trust, published, .. } = current;
        let publishers = publishers::of(&published.targets);
        let mut aged: BTreeMap<Desk, BTreeSet<String>> = BTreeMap::new();
        for role in published.live() {
            let expires = published.roles.get(&role).map_or(Time::MAX, |listed| listed.expires);
            let publisher = publishers.iter().find(|publisher| publisher.role() == role);
            let online = match publisher {
                Some(publisher) => trust.ring.holds(publisher.key.id()),
                None => trust.ring.suffices(&trust.chain.current().roles.targets),
            };
            let desk = publisher.map_or(Desk::Operators, |publisher| Desk::Publisher(publisher.name.clone()));
            let free = !current.pending.contains_key(&desk);
            if online && free && is_ageing(expires, now, self.parts.lifetimes.targets) {
                aged.entry(desk).or_default().insert(role);
            }
        }
        aged
    }

    /// Signs every targets file again, or asks whoever can to do it.
    pub async fn renew(&self) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        self.demand_not_behind(&current)?;
        if current.pending.contains_key(&Desk::Operators) {
            return Err(PublishingError::Waiting);
        }
        let mut outcome = Outcome::Signed;
        let mut desks = vec![(Desk::Operators, current.published.own())];
        for publisher in publishers::of(&current.published.targets) {
            let role = publisher.role();
            if current.published.roles.contains_key(&role) {
                desks.push((Desk::Publisher(publisher.name), BTreeSet::from([role])));
            }
        }
        for (desk, renew) in desks {
            if current.pending.contains_key(&desk) {
                continue;
            }
            let work = Work { renew: renew.clone(), ..Work::default() };
            let request = self.draft(&current, &work, vec!["renewal".to_owned()]).await?;
            let request = Request { renews: renew, ..request };
            if self.publish_or_wait(&mut current, &desk, request, Batch::new()).await? == Outcome::Pending {
                outcome = Outcome::Pending;
            }
        }
        Ok(outcome)
    }

    /// When each role's metadata ends; that of the bins is the first of them to end.
    pub async fn expires(&self) -> BTreeMap<&'static str, Time> {
        let current = self.current.lock().await;
        let published = &current.published;
        let live = published.live();
        let listed = published.roles.iter().filter(|(role, _)| live.contains(*role));
        let targets = listed.map(|(_, listed)| listed.expires).min();
        BTreeMap::from([
            ("root", current.trust.chain.current().expires),
            ("targets", targets.unwrap_or(published.targets.expires)),
            ("snapshot", published.snapshot.expires),
            ("timestamp", published.timestamp.expires),
        ])
    }

    /// What needs an operator.
    pub async fn warnings(&self) -> Vec<String> {
        let mut warnings = behind_warning(self.behind().await);
        warnings.extend(self.doubts.lock().unwrap_or_else(PoisonError::into_inner).warnings(NAME));
        let current = self.current.lock().await;
        for (desk, request) in &current.pending {
            let (changes, of) = (request.reasons.len(), desk.request_name());
            warnings.push(format!("{changes} changes of images wait for signatures (facade keys sign {of})"));
        }
        if !current.withdrawn.is_empty() {
            let count = current.withdrawn.len();
            warnings.push(format!(
                "{count} revoked artifacts are still listed in images; no device is served them (facade keys pending)"
            ));
        }
        drop(current);
        let now = self.parts.clock.now();
        let expires = self.expires().await;
        for (role, lifetime, remedy) in [
            ("root", self.parts.lifetimes.root, "facade keys rotate images root, or a ceremony"),
            ("targets", self.parts.lifetimes.targets, "facade keys renew"),
        ] {
            let end = expires.get(role).filter(|end| is_ageing(**end, now, lifetime / 2));
            warnings.extend(end.map(|end| format!("images/{role} ends {end} ({remedy})")));
        }
        warnings
    }
}
