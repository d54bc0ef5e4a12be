//! Which targets files a change rewrites, and what they then say.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use pki::metadata::names::TargetPath;
use pki::metadata::roles::{Root, Target, Targets};
use serde_json::Map;

use super::{Images, Published, bins, end_of, is_ageing, stored};
use crate::publish::PublishingError;

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) add: Vec<(TargetPath, Target)>,
    pub(super) remove: Vec<TargetPath>,
    pub(super) renew: Renew,
    /// The root that will be in force.
    pub(super) root: Option<Root>,
}

/// Which files are signed again though they say nothing new.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Renew {
    /// None.
    #[default]
    Nothing,
    /// The top-level targets.
    Top,
    /// Those with half their life behind them.
    Aged(Timestamp, Duration),
    /// All.
    All,
}

impl Renew {
    fn covers(self, role: &str, published: &Published) -> bool {
        match self {
            Self::Nothing => false,
            Self::Top => role == "targets",
            Self::All => true,
            Self::Aged(now, lifetime) => published
                .roles
                .get(role)
                .is_some_and(|state| is_ageing(state.expires, now, lifetime)),
        }
    }
}

/// The next version of every targets file that the work changes.
pub(super) async fn plan(
    images: &Images,
    published: &Published,
    work: &Work,
    root: &Root,
) -> Result<Vec<(String, Targets)>, PublishingError> {
    let expires = end_of(images.parts.clock.now(), images.parts.lifetimes.targets);
    let mut changed: BTreeMap<String, Targets> = BTreeMap::new();
    let mut top = published.targets.clone();
    if !bins::is_split(&top) {
        change(&mut top, &work.add, &work.remove);
        if top.targets.len() > bins::FLAT {
            split(&mut top, &mut changed, root)?;
            changed.insert("targets".to_owned(), top);
        } else if !work.add.is_empty() || !work.remove.is_empty() || work.renew.covers("targets", published) {
            changed.insert("targets".to_owned(), top);
        }
        return Ok(numbered(changed, published, expires));
    }
    let mut roles: Vec<String> = bins::all()
        .filter(|bin| work.renew.covers(bin, published))
        .collect();
    roles.extend(work.add.iter().map(|(path, _)| bins::of(path)));
    roles.extend(work.remove.iter().map(bins::of));
    for role in roles {
        if !changed.contains_key(&role) {
            let version = published.roles.get(&role).map_or(0, |state| state.version);
            changed.insert(role.clone(), stored(&*images.parts.store, &role, version).await?);
        }
    }
    for (path, target) in &work.add {
        if let Some(bin) = changed.get_mut(&bins::of(path)) {
            bin.targets.insert(path.clone(), target.clone());
        }
    }
    for path in &work.remove {
        if let Some(bin) = changed.get_mut(&bins::of(path)) {
            bin.targets.remove(path);
        }
    }
    if work.renew.covers("targets", published) {
        // The bins follow the keys of the targets role.
        top.delegations = Some(bins::delegations(root)?);
        changed.insert("targets".to_owned(), top);
    }
    Ok(numbered(changed, published, expires))
}

fn change(targets: &mut Targets, add: &[(TargetPath, Target)], remove: &[TargetPath]) {
    for (path, target) in add {
        targets.targets.insert(path.clone(), target.clone());
    }
    for path in remove {
        targets.targets.remove(path);
    }
}

/// Moves a flat list into bins.
fn split(
    top: &mut Targets,
    changed: &mut BTreeMap<String, Targets>,
    root: &Root,
) -> Result<(), PublishingError> {
    for bin in bins::all() {
        let empty = Targets {
            version: 0,
            expires: top.expires,
            targets: BTreeMap::new(),
            delegations: None,
            extra: Map::new(),
        };
        changed.insert(bin, empty);
    }
    for (path, target) in std::mem::take(&mut top.targets) {
        if let Some(bin) = changed.get_mut(&bins::of(&path)) {
            bin.targets.insert(path, target);
        }
    }
    top.delegations = Some(bins::delegations(root)?);
    Ok(())
}

/// All files of one step bear one number, that of the snapshot which will list them: so the highest snapshot that anybody
/// has seen is above every file.
fn numbered(
    changed: BTreeMap<String, Targets>,
    published: &Published,
    expires: Timestamp,
) -> Vec<(String, Targets)> {
    let version = published.snapshot.version.saturating_add(1);
    let number = |(role, targets)| {
        (
            role,
            Targets {
                version,
                expires,
                ..targets
            },
        )
    };
    changed.into_iter().map(number).collect()
}
