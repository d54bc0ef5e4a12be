//! Which targets files a change rewrites, and what they then say.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use pki::metadata::names::TargetPath;
use pki::metadata::roles::{Root, Target, Targets};
use serde_json::Map;

use super::{Images, Published, TOP, bins, end_of};
use crate::publish::PublishingError;
use crate::publish::publishers::{self, Publisher};
use crate::publish::trust::KeyRing;

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) add: Vec<(TargetPath, Target)>,
    pub(super) remove: Vec<TargetPath>,
    /// Files that are signed again though they say nothing new.
    pub(super) renew: BTreeSet<String>,
    /// The root that will be in force.
    pub(super) root: Option<Root>,
    /// The publishers that there will be.
    pub(super) publishers: Option<Vec<Publisher>>,
}

/// The next version of every targets file that the work changes.
pub(super) async fn plan(
    images: &Images,
    published: &Published,
    work: &Work,
    root: &Root,
    ring: &KeyRing,
) -> Result<Vec<(String, Targets)>, PublishingError> {
    let publishers = work.publishers.clone().unwrap_or_else(|| publishers::of(&published.targets));
    let split = bins::is_split(&published.targets);
    let mut sheets = Sheets { images, published, publishers, ring, split, changed: BTreeMap::new() };
    for (path, target) in &work.add {
        let role = sheets.home(path);
        sheets.open(&role).await?.targets.insert(path.clone(), target.clone());
    }
    for path in &work.remove {
        if let Some(role) = images.listing(published, path).await? {
            sheets.open(&role).await?.targets.remove(path);
        }
    }
    for role in &work.renew {
        sheets.open(role).await?;
    }
    if work.publishers.is_some() {
        sheets.rehome().await?;
    }
    sheets.split_if_long().await?;
    sheets.delegate(root)?;
    let expires = end_of(images.parts.clock.now(), images.parts.lifetimes.targets);
    Ok(numbered(sheets.changed, published, expires))
}

/// The targets files on the desk: those that change, in their next state.
struct Sheets<'a> {
    images: &'a Images,
    published: &'a Published,
    publishers: Vec<Publisher>,
    ring: &'a KeyRing,
    split: bool,
    changed: BTreeMap<String, Targets>,
}

impl Sheets<'_> {
    /// Takes a file to hand, to be changed or only to be signed again.
    async fn open(&mut self, role: &str) -> Result<&mut Targets, PublishingError> {
        if !self.changed.contains_key(role) {
            let document = self.images.document(self.published, role).await?;
            self.changed.insert(role.to_owned(), document);
        }
        Ok(self.changed.entry(role.to_owned()).or_insert_with(nothing))
    }

    /// Where something new is listed.
    fn home(&self, path: &TargetPath) -> String {
        match publishers::covering(&self.publishers, path) {
            Some(publisher) => publisher.role(),
            None if self.split => bins::of(path),
            None => TOP.to_owned(),
        }
    }

    /// Brings everything to where devices look for it under the new delegations. What bins list of a repository that has
    /// a publisher now goes to the top, where it is found before the publisher is asked; and back when there is none.
    async fn rehome(&mut self) -> Result<(), PublishingError> {
        self.open(TOP).await?;
        let before = publishers::of(&self.published.targets);
        let new: Vec<Publisher> =
            self.publishers.iter().filter(|publisher| !before.contains(publisher)).cloned().collect();
        if self.split {
            for bin in bins::all() {
                let listed = self.images.document(self.published, &bin).await?.targets;
                let covered: Vec<TargetPath> =
                    listed.into_keys().filter(|path| publishers::covering(&new, path).is_some()).collect();
                self.move_all(&bin, covered, |_| TOP.to_owned()).await?;
            }
            let top: Vec<TargetPath> = self.open(TOP).await?.targets.keys().cloned().collect();
            let free = top.into_iter().filter(|path| publishers::covering(&self.publishers, path).is_none());
            let free: Vec<TargetPath> = free.collect();
            self.move_all(TOP, free, bins::of).await?;
        }
        for publisher in new {
            // A publisher whose key is here begins with an empty file; another begins with what it signs first.
            if self.ring.holds(publisher.key.id()) {
                self.changed.insert(publisher.role(), nothing());
            }
        }
        Ok(())
    }

    async fn move_all(
        &mut self,
        from: &str,
        paths: Vec<TargetPath>,
        to: impl Fn(&TargetPath) -> String,
    ) -> Result<(), PublishingError> {
        for path in paths {
            if let Some(target) = self.open(from).await?.targets.remove(&path) {
                let role = to(&path);
                self.open(&role).await?.targets.insert(path, target);
            }
        }
        Ok(())
    }

    /// Moves a list that has become long into bins; what comes before a publisher stays.
    async fn split_if_long(&mut self) -> Result<(), PublishingError> {
        let Some(top) = self.changed.get(TOP) else {
            return Ok(());
        };
        let free = top.targets.keys().filter(|path| publishers::covering(&self.publishers, path).is_none());
        let free: Vec<TargetPath> = free.cloned().collect();
        if self.split || free.len() <= bins::FLAT {
            return Ok(());
        }
        self.split = true;
        for bin in bins::all() {
            self.changed.insert(bin, nothing());
        }
        self.move_all(TOP, free, bins::of).await
    }

    /// The bins follow the keys of the targets role.
    fn delegate(&mut self, root: &Root) -> Result<(), PublishingError> {
        let delegations = publishers::delegations(root, &self.publishers, self.split)?;
        if let Some(top) = self.changed.get_mut(TOP) {
            top.delegations = delegations;
        }
        Ok(())
    }
}

/// A file that lists nothing; what is not known of it yet is filled in when it is numbered.
pub(super) fn nothing() -> Targets {
    Targets {
        version: 0,
        expires: Timestamp::UNIX_EPOCH,
        targets: BTreeMap::new(),
        delegations: None,
        extra: Map::new(),
    }
}

/// All files of one step bear one number, that of the snapshot which will list them: so the highest snapshot that anybody
/// has seen is above every file.
fn numbered(
    changed: BTreeMap<String, Targets>,
    published: &Published,
    expires: Timestamp,
) -> Vec<(String, Targets)> {
    let version = published.snapshot.version.saturating_add(1);
    let number = |(role, targets)| (role, Targets { version, expires, ..targets });
    changed.into_iter().map(number).collect()
}
