//! What an operator is about to sign, judged on the operator's own machine.
//!
//! Pure. The server that asks for a signature may be in an attacker's hands: what it shows as current counts only as far as
//! the keys that the operator trusts have signed it, and what it wants signed is held against that, entry by entry.

use std::collections::{BTreeMap, BTreeSet};

use pki::metadata::names::TargetPath;
use pki::metadata::roles::{Root, Target, Targets};
use pki::metadata::verify::Signed;
use pki::metadata::{Limits, MetadataError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

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
    #[error("{0} delegates to others than the bins of the targets keys")]
    Delegation(String),
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

/// Judges a request under the roots that the operator trusts; `seen` is what was signed here before.
pub fn review(
    trusted: &RootChain,
    sides: &[Side<'_>],
    top: Option<&str>,
    seen: &Seen,
) -> Result<Review, ReviewError> {
    let current = trusted.current();
    let mut review = Review {
        seen: seen.clone(),
        ..Review::default()
    };
    let mut next: Root = Root::clone(current);
    if let Some(side) = sides.iter().find(|side| side.role == "root") {
        next = proposed_root(current, side.draft)?;
        review.keys = describe(current, &next);
    }
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    let mut judged = Vec::new();
    for side in sides.iter().filter(|side| side.role != "root") {
        judged.push(judge(current, &next, side, seen)?);
    }
    // Splitting takes entries from the flat list, which then has to be part of what is compared.
    let splits = judged
        .iter()
        .any(|file| bins::is_bin(&file.role) && file.base.is_none());
    if let (true, Some(top), false) = (splits, top, judged.iter().any(|file| file.role == "targets")) {
        let base = base(current, "targets", top, seen)?;
        before.extend(base.targets);
    }
    for file in judged {
        if let Some(base) = &file.base {
            review
                .warnings
                .extend(unpublished(&file.role, base.version, seen));
            review.seen.published.insert(file.role.clone(), base.version);
        }
        review.seen.signed.insert(file.role.clone(), file.draft.version);
        let old = file.base.map(|base| base.targets).unwrap_or_default();
        review.renewed += usize::from(old == file.draft.targets);
        before.extend(old);
        for (path, target) in file.draft.targets {
            demand_in_place(&file.role, &path)?;
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

fn judge(current: &Root, next: &Root, side: &Side<'_>, seen: &Seen) -> Result<Judged, ReviewError> {
    if side.role != "targets" && !bins::is_bin(side.role) {
        return Err(ReviewError::Role(side.role.to_owned()));
    }
    let draft = read(side.role, side.draft)?.document().clone();
    let base = side
        .base
        .map(|text| base(current, side.role, text, seen))
        .transpose()?;
    let floor = base.as_ref().map_or(0, |base| base.version);
    if draft.version <= floor {
        return Err(ReviewError::Version {
            role: side.role.to_owned(),
            draft: draft.version,
            current: floor,
        });
    }
    if let Some(delegations) = &draft.delegations {
        let expected = bins::delegations(next)
            .map_err(|_: PublishingError| ReviewError::Delegation(side.role.to_owned()))?;
        if side.role != "targets" || *delegations != expected {
            return Err(ReviewError::Delegation(side.role.to_owned()));
        }
    }
    Ok(Judged {
        role: side.role.to_owned(),
        draft,
        base,
    })
}

/// A file in force, as far as it was signed by those whom the operator trusts, and not older than what was signed here.
fn base(current: &Root, role: &str, text: &str, seen: &Seen) -> Result<Targets, ReviewError> {
    let signed = read(role, text)?;
    signed
        .demand(current.authority("the root that is trusted here", &current.roles.targets))
        .map_err(|source| ReviewError::Base {
            role: role.to_owned(),
            source,
        })?;
    let base = signed.document().clone();
    let published = seen.published.get(role).copied().unwrap_or_default();
    if base.version < published {
        return Err(ReviewError::Rollback {
            role: role.to_owned(),
            shown: base.version,
            seen: published,
        });
    }
    Ok(base)
}

fn read(role: &str, text: &str) -> Result<Signed<Targets>, ReviewError> {
    Signed::<Targets>::parse(
        role,
        text.as_bytes(),
        Limits::default().targets_bytes.max(64 << 20),
    )
    .map_err(|source| ReviewError::File {
        role: role.to_owned(),
        source,
    })
}

fn demand_in_place(role: &str, path: &TargetPath) -> Result<(), ReviewError> {
    if role == "targets" || bins::of(path) == role {
        return Ok(());
    }
    Err(ReviewError::Misplaced {
        path: path.clone(),
        role: role.to_owned(),
    })
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
    review.removed = before
        .keys()
        .filter(|path| !after.contains_key(*path))
        .cloned()
        .collect();
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
        lines.extend(
            after
                .difference(&before)
                .map(|id| format!("{role}: key {id} is added")),
        );
        lines.extend(
            before
                .difference(&after)
                .map(|id| format!("{role}: key {id} goes")),
        );
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
