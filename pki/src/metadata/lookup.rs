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
                    let step = Step::Fetch { file: asked.file.clone(), max_bytes: asked.max_bytes };
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
        let stored = self.set.delegated.get(FileName::current(pending.role.as_str()).as_str());
        if let Some(targets) = stored.and_then(|bytes| self.verified(&pending, bytes).ok()) {
            self.enter(&pending, &targets);
            return Ok(());
        }
        let meta = trusted::listed(pending.role.as_str(), &self.set.snapshot)?;
        let limit = self.set.limits.targets_bytes;
        let (file, max_bytes) = trusted::location(&self.set.root, pending.role.as_str(), meta, limit);
        self.asked = Some(Asked { pending, file: file.into(), max_bytes });
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
        trusted::listed_targets(role, pending.authority(), &set.snapshot, bytes, &set.limits, set.now)
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
            self.found = Some(TrustedTarget { path, target, role: role.to_owned(), repository });
            return;
        }
        let Some(delegations) = &targets.delegations else {
            return;
        };
        let mut next = Vec::new();
        for delegated in delegations.roles.iter().filter(|delegated| delegated.scope.covers(&self.path)) {
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
            return Err(MetadataError::SearchTooWide { target, limit: widest });
        }
        if pending.depth > deepest {
            return Err(MetadataError::SearchTooDeep { target, limit: deepest });
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

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use super::super::roles::Scope;
    use super::*;

    /// Delegator, role, path pattern.
    type Edge<'a> = (&'a str, &'a str, &'a str);

    struct Graph {
        repository: Repository,
        documents: BTreeMap<String, Targets>,
    }

    impl Graph {
        /// Every role has one key of its own.
        fn new(edges: &[Edge]) -> Self {
            let mut graph = Self { repository: Repository::new(), documents: BTreeMap::new() };
            for (delegator, role, paths) in edges {
                graph.documents.entry((*role).to_owned()).or_insert_with(empty_targets);
                delegate(graph.of(delegator), role, &role_key(role), &[paths]);
            }
            graph
        }

        fn of(&mut self, role: &str) -> &mut Targets {
            match role {
                "targets" => &mut self.repository.targets,
                other => self.documents.get_mut(other).unwrap(),
            }
        }

        fn list(&mut self, role: &str, target_path: &str) {
            let entry = target(role.as_bytes());
            self.of(role).targets.insert(path(target_path), entry);
        }

        fn publish(&mut self) {
            for (role, document) in &self.documents {
                self.repository.put_delegated(role, document, &[role_key(role)]);
            }
            self.repository.publish();
        }

        /// The role that answers for a path, and the files that were asked for on the way.
        fn seek(&self, sought: &str) -> (Result<Option<String>, MetadataError>, Vec<String>) {
            let mut client = Client::new(&self.repository);
            let mut set = client.refresh(&self.repository).unwrap();
            let found = client.seek(&mut set, &self.repository.files, sought);
            (found.map(|found| found.map(|target| target.role().to_owned())), client.requests)
        }
    }

    fn role_key(role: &str) -> crate::key::SigningKey {
        key(role.bytes().fold(50, u8::wrapping_add))
    }

    #[test]
    fn visits_roles_in_pre_order_and_depth_first() {
        let cases: [(&[Edge], &[&str]); 6] = [
            (&[("targets", "A", "*"), ("targets", "B", "*")], &["A", "B"]),
            (
                &[("targets", "A", "*"), ("targets", "B", "*"), ("A", "C", "*"), ("A", "D", "*")],
                &["A", "C", "D", "B"],
            ),
            (
                &[("targets", "A", "*"), ("targets", "B", "*"), ("A", "C", "*"), ("C", "D", "*")],
                &["A", "C", "D", "B"],
            ),
            (&[("targets", "A", "*.py"), ("targets", "B", "*"), ("A", "C", "*")], &["B"]),
            // A cycle is entered once.
            (&[("targets", "A", "*"), ("A", "B", "*"), ("B", "C", "*"), ("C", "A", "*")], &["A", "B", "C"]),
            // A shared role is reached by whoever comes first.
            (
                &[("targets", "A", "*"), ("targets", "B", "*"), ("B", "C", "*"), ("A", "C", "*")],
                &["A", "C", "B"],
            ),
        ];
        for (edges, order) in cases {
            let mut graph = Graph::new(edges);
            graph.publish();
            let (found, requests) = graph.seek("missing");
            assert!(matches!(found, Ok(None)));
            let expected: Vec<String> = order.iter().map(|role| format!("1.{role}.json")).collect();
            assert_eq!(requests, expected);
        }
    }

    // tough CVE-2025-2886, go-tuf CVE-2024-47534.
    #[test]
    fn stops_at_a_terminating_role_and_its_descendants() {
        let edges =
            [("targets", "A", "*"), ("targets", "B", "*"), ("A", "C", "*"), ("A", "D", "*"), ("C", "E", "*")];
        let mut graph = Graph::new(&edges);
        graph.of("A").delegations.as_mut().unwrap().roles[0].terminating = true;
        graph.list("B", "x");
        graph.list("D", "x");
        graph.publish();
        let (found, requests) = graph.seek("x");
        assert!(matches!(found, Ok(None)));
        assert_eq!(requests, ["1.A.json", "1.C.json", "1.E.json"]);
    }

    #[test]
    fn takes_the_target_of_the_most_trusted_role() {
        let mut graph = Graph::new(&[("targets", "A", "*"), ("targets", "B", "*")]);
        graph.list("A", "x");
        graph.list("B", "x");
        graph.list("targets", "y");
        graph.list("A", "y");
        graph.publish();
        assert_eq!(graph.seek("x").0.unwrap().as_deref(), Some("A"));
        assert_eq!(graph.seek("y").0.unwrap().as_deref(), Some("targets"));
    }

    #[test]
    fn does_not_take_a_target_that_its_role_was_not_given() {
        let mut graph = Graph::new(&[("targets", "B", "releases/*/*"), ("B", "C", "releases/x/*")]);
        graph.list("C", "releases/z/1");
        graph.list("C", "releases/x/1");
        graph.publish();
        assert_eq!(graph.seek("releases/z/1").0.unwrap(), None);
        assert_eq!(graph.seek("releases/x/1").0.unwrap().as_deref(), Some("C"));
    }

    #[test]
    fn finds_targets_by_hash_prefix() {
        let mut graph = Graph::new(&[("targets", "bin", "")]);
        let digest = crate::digest::Digest::sha256(b"app/web").hex();
        graph.repository.targets.delegations.as_mut().unwrap().roles[0].scope =
            Scope::PathHashPrefixes(vec![digest[..2].to_owned()]);
        graph.list("bin", "app/web");
        graph.list("bin", "app/other");
        graph.publish();
        assert_eq!(graph.seek("app/web").0.unwrap().as_deref(), Some("bin"));
        assert_eq!(graph.seek("app/other").0.unwrap(), None);
    }

    // python-tuf #2977, sigstore-rust TOB-SIGSTORE-14.
    #[test]
    fn rejects_a_shared_role_that_only_another_delegator_has_the_keys_of() {
        let mut graph = Graph::new(&[
            ("targets", "A", "a/*"),
            ("targets", "B", "b/*"),
            ("A", "C", "*/*"),
            ("B", "C", "*/*"),
        ]);
        let delegations = graph.of("B").delegations.as_mut().unwrap();
        delegations.roles[0].keyids = vec![key(99).public().id()];
        delegations.keys.insert(key(99).public().id(), key(99).public().clone());
        graph.list("C", "a/x");
        graph.list("C", "b/x");
        graph.publish();
        let mut client = Client::new(&graph.repository);
        let mut set = client.refresh(&graph.repository).unwrap();
        assert!(client.seek(&mut set, &graph.repository.files, "a/x").unwrap().is_some());
        let refused = client.seek(&mut set, &graph.repository.files, "b/x").unwrap_err();
        assert!(matches!(&refused, MetadataError::UnmetThreshold { delegator, .. } if delegator == "B"));
        assert_eq!(graph.seek("a/x").0.unwrap().as_deref(), Some("C"));
    }

    // tough CVE-2025-2887 and CVE-2026-6967.
    #[test]
    fn rejects_a_delegated_role_by_every_check_of_a_top_level_one() {
        type Spoil = fn(&mut Graph);
        let spoils: [Spoil; 5] = [
            |graph| graph.of("A").expires = time(NOW),
            |graph| graph.of("A").version = 0,
            |graph| graph.repository.put_delegated("A", &empty_targets(), &[key(1)]),
            |graph| drop(graph.repository.snapshot.meta.remove("A.json")),
            |graph| {
                graph.repository.snapshot.meta.get_mut("A.json").unwrap().hashes =
                    Some(super::super::Hashes::of(Digest::sha256(b"")));
            },
        ];
        for (number, spoil) in spoils.into_iter().enumerate() {
            let mut graph = Graph::new(&[("targets", "A", "*"), ("targets", "B", "*")]);
            graph.list("B", "x");
            graph.publish();
            match number {
                0 => {
                    spoil(&mut graph);
                    graph.publish();
                }
                1 => {
                    // Version 1 is served where version 2 is listed.
                    graph.of("A").version = 2;
                    graph.publish();
                    let meta = graph.repository.snapshot.meta.get_mut("A.json").unwrap();
                    (meta.length, meta.hashes) = (None, None);
                    let old = graph.repository.files["1.A.json"].clone();
                    graph.repository.files.insert("2.A.json".into(), old);
                    graph.repository.publish_snapshot();
                }
                _ => {
                    spoil(&mut graph);
                    graph.repository.publish_snapshot();
                }
            }
            let (found, _) = graph.seek("x");
            let refused = found.unwrap_err();
            let expected = match number {
                0 => matches!(refused, MetadataError::Expired { .. }),
                1 => matches!(refused, MetadataError::MixAndMatch { listed: 2, found: 1, .. }),
                2 => matches!(refused, MetadataError::UnmetThreshold { .. }),
                3 => matches!(refused, MetadataError::NotInSnapshot { .. }),
                _ => matches!(refused, MetadataError::Hashes { .. }),
            };
            assert!(expected, "{number}: {refused:?}");
        }
    }

    #[test]
    fn a_missing_role_ends_the_search() {
        let mut graph = Graph::new(&[("targets", "A", "*"), ("targets", "B", "*")]);
        graph.list("B", "x");
        graph.publish();
        graph.repository.files.remove("1.A.json");
        let (found, requests) = graph.seek("x");
        assert!(matches!(found, Err(MetadataError::Missing { .. })));
        assert_eq!(requests, ["1.A.json"]);
    }

    #[test]
    fn rejects_searches_that_are_too_wide_or_too_deep() {
        let names: Vec<String> = (0..40).map(|number| format!("role-{number}")).collect();
        let wide: Vec<_> = names.iter().map(|name| ("targets", name.as_str(), "*")).collect();
        let mut graph = Graph::new(&wide);
        graph.publish();
        let (found, requests) = graph.seek("x");
        assert!(matches!(found, Err(MetadataError::SearchTooWide { limit: 32, .. })));
        assert_eq!(requests.len(), 32);
        let mut deep = vec![("targets", names[0].as_str(), "*")];
        deep.extend(names.windows(2).map(|pair| (pair[0].as_str(), pair[1].as_str(), "*")));
        let mut graph = Graph::new(&deep);
        graph.publish();
        let (found, requests) = graph.seek("x");
        assert!(matches!(found, Err(MetadataError::SearchTooDeep { limit: 16, .. })));
        assert_eq!(requests.len(), 16);
    }

    #[test]
    fn a_second_search_asks_for_nothing_that_is_there() {
        let mut graph = Graph::new(&[("targets", "../A b", "*")]);
        graph.list("../A b", "x");
        graph.publish();
        let mut client = Client::new(&graph.repository);
        let mut set = client.refresh(&graph.repository).unwrap();
        client.seek(&mut set, &graph.repository.files, "x").unwrap().unwrap();
        assert_eq!(client.requests, ["1...%2FA%20b.json"]);
        assert!(client.stored.delegated.contains_key("..%2FA%20b.json"));
        let mut set = client.refresh(&graph.repository).unwrap();
        client.seek(&mut set, &graph.repository.files, "x").unwrap().unwrap();
        assert!(client.requests.is_empty());
    }
}
