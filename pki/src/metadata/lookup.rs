//! The search for one target through delegations (TUF 5.6.7), as a machine that asks for what it needs.
//!
//! Pre-order and depth first, in the order in which each role lists its delegations. Every role on the way is verified with
//! the keys that its delegator on this way names. A role that is missing or refused ends the search: skipping it would let
//! whoever can withhold one file choose which role answers.

use std::collections::{BTreeMap, BTreeSet};

use super::MetadataError;
use super::names::{FileName, RoleName, TargetPath};
use super::refresh::{Fetched, Step};
use super::roles::{DelegatedRole, Delegations, Target, Targets};
use super::trusted::{self, TrustedSet};
use super::verify::{Authority, Verified};
use crate::digest::Digest;
use crate::key::{KeyId, PublicKey};

/// A target that trusted metadata lists; only a search makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedTarget {
    path: TargetPath,
    target: Target,
    role: String,
    repository: Digest,
}

impl TrustedTarget {
    /// The path by which it was sought.
    pub fn path(&self) -> &TargetPath {
        &self.path
    }

    /// What its bytes are.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The role that lists it.
    pub fn role(&self) -> &str {
        &self.role
    }

    pub(super) fn repository(&self) -> &Digest {
        &self.repository
    }
}

/// A search under way.
#[derive(Debug)]
pub struct Lookup<'a> {
    set: &'a mut TrustedSet,
    path: TargetPath,
    found: Option<TrustedTarget>,
    /// Roles still to be asked; the last is the next.
    stack: Vec<Pending>,
    visited: BTreeSet<RoleName>,
    asked: Option<Asked>,
    answer: Option<Fetched>,
    to_store: Option<Step>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Searching,
    Done,
    Failed,
}

/// A delegation that is to be followed, with the keys that its delegator has for it.
#[derive(Debug)]
struct Pending {
    role: RoleName,
    delegator: String,
    keys: BTreeMap<KeyId, PublicKey>,
    keyids: Vec<KeyId>,
    threshold: u64,
    depth: usize,
}

#[derive(Debug)]
struct Asked {
    pending: Pending,
    file: String,
    max_bytes: u64,
}

impl Pending {
    fn authority(&self) -> Authority<'_> {
        Authority {
            delegator: &self.delegator,
            keys: &self.keys,
            keyids: &self.keyids,
            threshold: self.threshold,
        }
    }
}

impl<'a> Lookup<'a> {
    pub(super) fn new(set: &'a mut TrustedSet, path: TargetPath) -> Self {
        let mut lookup = Self {
            set,
            path,
            found: None,
            stack: Vec::new(),
            visited: BTreeSet::new(),
            asked: None,
            answer: None,
            to_store: None,
            state: State::Searching,
        };
        let top = lookup.set.targets.clone();
        lookup.visit("targets", &top, 0);
        lookup
    }

    /// The next thing to do. After a failure every further call fails.
    pub fn step(&mut self) -> Result<Step, MetadataError> {
        let step = self.advance();
        if step.is_err() {
            self.state = State::Failed;
        }
        step
    }

    /// Takes what the last fetch came to.
    pub fn answer(&mut self, fetched: Fetched) {
        self.answer = Some(fetched);
    }

    /// The target, or `None` when no role that may list it does.
    pub fn into_target(self) -> Result<Option<TrustedTarget>, MetadataError> {
        match self.state {
            State::Done => Ok(self.found),
            State::Searching | State::Failed => Err(MetadataError::Incomplete),
        }
    }

    fn advance(&mut self) -> Result<Step, MetadataError> {
        loop {
            if self.state == State::Failed {
                return Err(MetadataError::Incomplete);
            }
            if let Some(step) = self.to_store.take() {
                return Ok(step);
            }
            match (self.asked.take(), self.answer.take()) {
                (Some(asked), Some(fetched)) => self.judge(&asked, fetched)?,
                (Some(asked), None) => {
                    let step = Step::Fetch {
                        file: asked.file.clone(),
                        max_bytes: asked.max_bytes,
                    };
                    self.asked = Some(asked);
                    return Ok(step);
                }
                (None, _) if self.found.is_some() => return Ok(self.done()),
                (None, _) => match self.stack.pop() {
                    Some(pending) => self.follow(pending)?,
                    None => return Ok(self.done()),
                },
            }
        }
    }

    fn done(&mut self) -> Step {
        self.state = State::Done;
        Step::Done
    }

    /// Asks the role if it has not been asked yet: from disk if what lies there is current, else from the server.
    fn follow(&mut self, pending: Pending) -> Result<(), MetadataError> {
        if self.visited.contains(&pending.role) {
            return Ok(());
        }
        self.demand_within_limits(&pending)?;
        let stored = self
            .set
            .delegated
            .get(FileName::current(pending.role.as_str()).as_str());
        if let Some(targets) = stored.and_then(|bytes| self.verified(&pending, bytes).ok()) {
            self.enter(&pending, &targets);
            return Ok(());
        }
        let meta = trusted::listed(pending.role.as_str(), &self.set.snapshot)?;
        let limit = self.set.limits.targets_bytes;
        let (file, max_bytes) = trusted::location(&self.set.root, pending.role.as_str(), meta, limit);
        self.asked = Some(Asked {
            pending,
            file: file.into(),
            max_bytes,
        });
        Ok(())
    }

    fn judge(&mut self, asked: &Asked, fetched: Fetched) -> Result<(), MetadataError> {
        let bytes = fetched.demand(&asked.file, asked.max_bytes)?;
        let targets = self.verified(&asked.pending, &bytes)?;
        self.enter(&asked.pending, &targets);
        let file = String::from(FileName::current(asked.pending.role.as_str()));
        self.set.delegated.insert(file.clone(), bytes.clone());
        self.to_store = Some(Step::Store { file, bytes });
        Ok(())
    }

    fn verified(&self, pending: &Pending, bytes: &[u8]) -> Result<Verified<Targets>, MetadataError> {
        let set = &*self.set;
        let role = pending.role.as_str();
        trusted::listed_targets(
            role,
            pending.authority(),
            &set.snapshot,
            bytes,
            &set.limits,
            set.now,
        )
    }

    fn enter(&mut self, pending: &Pending, targets: &Targets) {
        self.visited.insert(pending.role.clone());
        self.visit(pending.role.as_str(), targets, pending.depth);
    }

    /// Looks in one role, and puts the roles that it delegates the path to on top of the stack.
    fn visit(&mut self, role: &str, targets: &Targets, depth: usize) {
        if let Some(target) = targets.targets.get(&self.path) {
            let (path, target) = (self.path.clone(), target.clone());
            let repository = self.set.identity();
            self.found = Some(TrustedTarget {
                path,
                target,
                role: role.to_owned(),
                repository,
            });
            return;
        }
        let Some(delegations) = &targets.delegations else {
            return;
        };
        let mut next = Vec::new();
        for delegated in delegations
            .roles
            .iter()
            .filter(|delegated| delegated.scope.covers(&self.path))
        {
            next.push(Pending::new(role, delegations, delegated, depth + 1));
            if delegated.terminating {
                // TUF 5.6.7.2.1: neither what is listed after it nor what was still to be asked (tough CVE-2025-2886).
                self.stack.clear();
                break;
            }
        }
        self.stack.extend(next.into_iter().rev());
    }

    fn demand_within_limits(&self, pending: &Pending) -> Result<(), MetadataError> {
        let (widest, deepest) = (self.set.limits.visited_roles, self.set.limits.delegation_depth);
        let target = self.path.to_string();
        if self.visited.len() >= widest {
            return Err(MetadataError::SearchTooWide {
                target,
                limit: widest,
            });
        }
        if pending.depth > deepest {
            return Err(MetadataError::SearchTooDeep {
                target,
                limit: deepest,
            });
        }
        Ok(())
    }
}

impl Pending {
    /// Takes only the keys that the role names, not all that the delegator has.
    fn new(delegator: &str, delegations: &Delegations, role: &DelegatedRole, depth: usize) -> Self {
        let key = |keyid: &KeyId| Some((*keyid, delegations.keys.get(keyid)?.clone()));
        Self {
            role: role.name.clone(),
            delegator: delegator.to_owned(),
            keys: role.keyids.iter().filter_map(key).collect(),
            keyids: role.keyids.clone(),
            threshold: role.threshold,
            depth,
        }
    }
}
