//! What an operator is about to sign, judged on the operator's own machine.
//!
//! Pure. The server that asks for a signature may be in an attacker's hands: what it shows as current counts only as far as
//! the keys that the operator trusts have signed it, and what it wants signed is held against that, entry by entry.

use std::collections::{BTreeMap, BTreeSet};

use pki::key::KeyId;
use pki::metadata::names::TargetPath;
use pki::metadata::roles::{Root, Target, Targets};
use pki::metadata::verify::{Authority, Signed};
use pki::metadata::{Limits, MetadataError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::publishers::{self, Publisher, PublisherName};
use super::trust::{Role, RootChain};
use super::{PublishingError, bins};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// Artifacts that would exist from now on.
    pub added: Vec<TargetPath>,
    /// Artifacts that would no longer exist.
    pub removed: Vec<TargetPath>,
    /// How the keys would change, in words.
    pub keys: Vec<String>,
    /// Files that are signed again without a change.
    pub renewed: usize,
    /// What somebody should look into.
    pub warnings: Vec<String>,
    /// Whose signature counts for each file.
    pub signers: BTreeMap<String, BTreeSet<KeyId>>,
    /// What to remember once it is signed.
    pub seen: Seen,
}

/// What an operator remembers from one signature to the next, so that no server can show an older state as current.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The highest version of each role that was in force.
    pub published: BTreeMap<String, u64>,
    /// The highest version of each role that was signed here.
    pub signed: BTreeMap<String, u64>,
}

/// Why nobody should sign.
#[derive(Debug, Error)]
pub enum ReviewError {
    /// A root is not what the operator's trust leads to.
    #[error("a root does not follow from the one that is trusted here")]
    Root(#[source] MetadataError),
    /// A file cannot be read.
    #[error("{role} cannot be judged")]
    File {
        /// Its role.
        role: String,
        /// Why.
        #[source]
        source: MetadataError,
    },
    /// What the server shows as current was not signed by those whom the operator trusts.
    #[error("the server shows {role} as current, and it is not signed by the keys that are trusted here")]
    Base {
        /// Its role.
        role: String,
        /// Why.
        #[source]
        source: MetadataError,
    },
    /// The server shows something older than what the operator has signed before.
    #[error("the server shows version {shown} of {role} as current; version {seen} was signed before")]
    Rollback {
        /// Its role.
        role: String,
        /// What is shown.
        shown: u64,
        /// What was signed.
        seen: u64,
    },
    /// A file does not follow the current one.
    #[error("version {draft} of {role} is not above the current {current}")]
    Version {
        /// Its role.
        role: String,
        /// To be signed.
        draft: u64,
        /// Current.
        current: u64,
    },
    /// A name that exists would mean other bytes.
    #[error("{0} exists and would become something else")]
    Changed(TargetPath),
    /// An entry is where no device looks for it, or where another bin answers.
    #[error("{path} is listed in {role}, where it does not belong")]
    Misplaced {
        /// The entry.
        path: TargetPath,
        /// Where it is.
        role: String,
    },
    /// Somebody else would be let in.
    #[error("{0} delegates to others than publishers and the bins of the targets keys")]
    Delegation(String),
    /// The server does not show who the publishers are.
    #[error("the request does not show the top-level targets in force, which name its publisher")]
    NoTop,
    /// A role that nobody here signs.
    #[error("{0} is not a file of this repository")]
    Role(String),
}

/// One file of a request, and the one in force.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its role.
    pub role: &'a str,
    /// The file to be signed.
    pub draft: &'a str,
    /// The file in force, if there is one.
    pub base: Option<&'a str>,
}

/// Judges a request under the roots that the operator trusts; `top` are the top-level targets in force, `seen` is what was
/// signed here before.
pub fn review(
    trusted: &RootChain,
    sides: &[Side<'_>],
    top: Option<&str>,
    seen: &Seen,
) -> Result<Review, ReviewError> {
    let current = trusted.current();
    let mut review = Review { seen: seen.clone(), ..Review::default() };
    let mut next: Root = Root::clone(current);
    if let Some(side) = sides.iter().find(|side| side.role == "root") {
        next = proposed_root(current, side.draft)?;
        review.keys = describe(current, &next);
    }
    let desk = Reviewer::new(current, &next, sides, top, seen)?;
    review.keys.extend(describe_publishers(&desk.publishers, &desk.proposed));
    review.signers = sides.iter().map(|side| (side.role.to_owned(), desk.signers(side.role))).collect();
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    let mut judged = Vec::new();
    for side in sides.iter().filter(|side| side.role != "root") {
        judged.push(desk.judge(side)?);
    }
    // Splitting takes entries from the flat list, which then has to be part of what is compared.
    let splits = judged.iter().any(|file| bins::is_bin(&file.role) && file.base.is_none());
    if let (true, Some(top), false) = (splits, &desk.top, judged.iter().any(|file| file.role == "targets")) {
        before.extend(top.targets.clone());
    }
    for file in judged {
        if let Some(base) = &file.base {
            review.warnings.extend(unpublished(&file.role, base.version, seen));
            review.seen.published.insert(file.role.clone(), base.version);
        }
        review.seen.signed.insert(file.role.clone(), file.draft.version);
        let old = file.base.map(|base| base.targets).unwrap_or_default();
        review.renewed += usize::from(old == file.draft.targets);
        before.extend(old);
        for (path, target) in file.draft.targets {
            desk.demand_in_place(&file.role, &path)?;
            after.insert(path, target);
        }
    }
    compare(&before, &after, &mut review)?;
    Ok(review)
}

/// Whoever shows the state before a signature again may be undoing what was signed.
fn unpublished(role: &str, shown: u64, seen: &Seen) -> Option<String> {
    let signed = seen.signed.get(role).filter(|signed| **signed > shown)?;
    Some(format!(
        "version {signed} of {role} was signed here and is not in force; what it added or took away is not in this request's base"
    ))
}

struct Judged {
    role: String,
    draft: Targets,
    base: Option<Targets>,
}

/// What the operator trusts, and who may sign what under it.
struct Reviewer<'a> {
    current: &'a Root,
    next: &'a Root,
    seen: &'a Seen,
    top: Option<Targets>,
    publishers: Vec<Publisher>,
    proposed: Vec<Publisher>,
}

impl<'a> Reviewer<'a> {
    fn new(
        current: &'a Root,
        next: &'a Root,
        sides: &[Side<'_>],
        top: Option<&str>,
        seen: &'a Seen,
    ) -> Result<Self, ReviewError> {
        let mut desk = Self { current, next, seen, top: None, publishers: Vec::new(), proposed: Vec::new() };
        if let Some(text) = top {
            let top = desk.base("targets", text)?;
            desk.publishers = publishers::of(&top);
            desk.top = Some(top);
        }
        desk.proposed = match sides.iter().find(|side| side.role == "targets") {
            Some(side) => publishers::of(read(side.role, side.draft)?.document()),
            None => desk.publishers.clone(),
        };
        Ok(desk)
    }

    /// Whose signature counts for a file, before or after the change.
    fn signers(&self, role: &str) -> BTreeSet<KeyId> {
        let publishers = self.publishers.iter().chain(&self.proposed);
        if PublisherName::of_role(role).is_some() {
            return publishers.filter(|known| known.role() == role).map(|known| known.key.id()).collect();
        }
        let keys = if role == "root" { Role::Root } else { Role::Targets };
        [self.current, self.next].iter().flat_map(|root| keys.keys(root).keyids.clone()).collect()
    }

    fn judge(&self, side: &Side<'_>) -> Result<Judged, ReviewError> {
        let publisher = PublisherName::of_role(side.role);
        if side.role != "targets" && !bins::is_bin(side.role) && publisher.is_none() {
            return Err(ReviewError::Role(side.role.to_owned()));
        }
        if publisher.is_some() && self.top.is_none() {
            return Err(ReviewError::NoTop);
        }
        if publisher.is_some() && !self.proposed.iter().any(|known| known.role() == side.role) {
            return Err(ReviewError::Role(side.role.to_owned()));
        }
        let draft = read(side.role, side.draft)?.document().clone();
        let base = side.base.map(|text| self.base(side.role, text)).transpose()?;
        let floor = base.as_ref().map_or(0, |base| base.version);
        if draft.version <= floor {
            return Err(ReviewError::Version {
                role: side.role.to_owned(),
                draft: draft.version,
                current: floor,
            });
        }
        self.demand_known_delegations(side.role, &draft)?;
        Ok(Judged { role: side.role.to_owned(), draft, base })
    }

    /// Delegations are those to publishers and to bins, exactly as we would write them, and only of the top.
    fn demand_known_delegations(&self, role: &str, draft: &Targets) -> Result<(), ReviewError> {
        let expected = match role {
            "targets" => publishers::delegations(self.next, &self.proposed, bins::is_split(draft))
                .map_err(|_: PublishingError| ReviewError::Delegation(role.to_owned()))?,
            _ => None,
        };
        if draft.delegations == expected { Ok(()) } else { Err(ReviewError::Delegation(role.to_owned())) }
    }

    /// A file in force, as far as it was signed by those whom the operator trusts, and not older than what was signed here.
    fn base(&self, role: &str, text: &str) -> Result<Targets, ReviewError> {
        let signed = read(role, text)?;
        let refused = |source| ReviewError::Base { role: role.to_owned(), source };
        if PublisherName::of_role(role).is_some() {
            let publisher = self.publishers.iter().find(|known| known.role() == role);
            let publisher = publisher.ok_or_else(|| ReviewError::Role(role.to_owned()))?;
            let (keys, role_keys) = (publisher.key_map(), publisher.keys());
            let (delegator, keyids) = ("the targets that are trusted here", &role_keys.keyids);
            signed.demand(Authority { delegator, keys: &keys, keyids, threshold: 1 }).map_err(refused)?;
        } else {
            let authority =
                self.current.authority("the root that is trusted here", &self.current.roles.targets);
            signed.demand(authority).map_err(refused)?;
        }
        let base = signed.document().clone();
        let published = self.seen.published.get(role).copied().unwrap_or_default();
        if base.version < published {
            return Err(ReviewError::Rollback {
                role: role.to_owned(),
                shown: base.version,
                seen: published,
            });
        }
        Ok(base)
    }

    fn demand_in_place(&self, role: &str, path: &TargetPath) -> Result<(), ReviewError> {
        let publisher = publishers::covering(&self.proposed, path);
        let in_place = match PublisherName::of_role(role) {
            Some(name) => publisher.is_some_and(|publisher| publisher.name == name),
            None => role == "targets" || (publisher.is_none() && bins::of(path) == role),
        };
        if in_place {
            return Ok(());
        }
        Err(ReviewError::Misplaced { path: path.clone(), role: role.to_owned() })
    }
}

fn read(role: &str, text: &str) -> Result<Signed<Targets>, ReviewError> {
    Signed::<Targets>::parse(role, text.as_bytes(), Limits::default().targets_bytes.max(64 << 20))
        .map_err(|source| ReviewError::File { role: role.to_owned(), source })
}

fn compare(
    before: &BTreeMap<TargetPath, Target>,
    after: &BTreeMap<TargetPath, Target>,
    review: &mut Review,
) -> Result<(), ReviewError> {
    for (path, target) in after {
        match before.get(path) {
            None => review.added.push(path.clone()),
            Some(old) if old == target => {}
            Some(_) => return Err(ReviewError::Changed(path.clone())),
        }
    }
    review.removed = before.keys().filter(|path| !after.contains_key(*path)).cloned().collect();
    Ok(())
}

fn proposed_root(current: &Root, text: &str) -> Result<Root, ReviewError> {
    let signed = Signed::<Root>::parse("root", text.as_bytes(), Limits::default().root_bytes)
        .map_err(ReviewError::Root)?;
    let next = signed.document().clone();
    if current.version.checked_add(1) != Some(next.version) {
        return Err(ReviewError::Version {
            role: "root".to_owned(),
            draft: next.version,
            current: current.version,
        });
    }
    Ok(next)
}

/// How the keys change, one line each.
fn describe(current: &Root, next: &Root) -> Vec<String> {
    let mut lines = Vec::new();
    for role in Role::ALL {
        let (old, new) = (role.keys(current), role.keys(next));
        let (before, after): (BTreeSet<_>, BTreeSet<_>) =
            (old.keyids.iter().collect(), new.keyids.iter().collect());
        lines.extend(after.difference(&before).map(|id| format!("{role}: key {id} is added")));
        lines.extend(before.difference(&after).map(|id| format!("{role}: key {id} goes")));
        if old.threshold != new.threshold || before.len() != after.len() {
            let (m, n) = (new.threshold, after.len());
            lines.push(format!(
                "{role}: {m} of {n} keys must sign (before: {} of {})",
                old.threshold,
                before.len()
            ));
        }
    }
    lines
}

/// How the publishers change, one line each.
fn describe_publishers(before: &[Publisher], after: &[Publisher]) -> Vec<String> {
    let describe = |publisher: &Publisher| {
        let repositories: Vec<String> = publisher.repositories.iter().map(ToString::to_string).collect();
        format!("publisher {}: key {} for {}", publisher.name, publisher.key.id(), repositories.join(", "))
    };
    let gone = before.iter().filter(|publisher| !after.contains(publisher));
    let new = after.iter().filter(|publisher| !before.contains(publisher));
    gone.map(|publisher| format!("{} goes", describe(publisher)))
        .chain(new.map(|publisher| format!("{} is added", describe(publisher))))
        .collect()
}
