//! Walks every (state, world, outcome, crash) that can be reached.
//!
//! The world is what the machine cannot see: which release is really handed over. An effect may succeed, fail, or be cut
//! by a crash, each with or without having changed the world; a crash leaves the stored state as it was.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pki::digest::Digest;

use super::*;

/// A node: the stored state, and what is really handed over.
#[derive(Clone, Debug)]
struct Node {
    state: State,
    handed: Release,
}

fn release(name: &str) -> Release {
    let digest = Digest::sha256(name.as_bytes());
    Release::new([Assigned {
        artifact: format!("registry.example.com/{name}@{digest}").parse().unwrap(),
        media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
        size_bytes: 7,
    }])
}

fn good() -> Release {
    release("good")
}

fn better() -> Release {
    release("better")
}

fn bad() -> Release {
    release("bad")
}

impl Node {
    fn key(&self) -> String {
        let state = serde_json::to_string(&self.state).unwrap();
        format!("{state} {:?}", self.handed)
    }

    /// Everything that can happen here: the world afterwards, and the event that is fed, or `None` for a crash.
    fn outcomes(&self) -> Vec<(Release, Option<Event>)> {
        let same = self.handed.clone();
        let fails = [Fault::Release, Fault::Circumstance].map(Event::Failed);
        match self.state.resume() {
            Effect::Sleep => {
                let mut outcomes = vec![(same.clone(), Some(Event::Due)), (same.clone(), None)];
                // A store that was replaced has nothing of what was handed over.
                let here: Vec<ArtifactName> =
                    same.assigned().map(|assigned| assigned.artifact.clone()).collect();
                outcomes.push((Release::default(), Some(Event::Lost(here))));
                let previous = &self.state.standing().previous;
                let previous = previous.assigned().map(|assigned| assigned.artifact.clone()).collect();
                outcomes.push((same, Some(Event::TakenBack(previous))));
                outcomes
            }
            Effect::Enroll => vec![
                (same.clone(), Some(Event::Enrolled)),
                (same.clone(), Some(Event::Failed(Fault::Circumstance))),
                (same, None),
            ],
            Effect::Check => [good(), better(), bad(), Release::default()]
                .map(Event::Offered)
                .into_iter()
                .chain([Event::Disowned, Event::Failed(Fault::Circumstance)])
                .map(|event| (same.clone(), Some(event)))
                .chain([(same.clone(), None)])
                .collect(),
            Effect::Fetch(_) => [
                Some(Event::Fetched),
                Some(Event::Due),
                Some(Event::Disowned),
                Some(Event::Failed(Fault::Circumstance)),
                None,
            ]
            .map(|event| (same.clone(), event))
            .to_vec(),
            Effect::Activate(next) => {
                let deadline = Timestamp::UNIX_EPOCH;
                let mut outcomes = vec![
                    (next.clone(), Some(Event::Activated { deadline })),
                    (next.clone(), None),
                    (same.clone(), None),
                ];
                for event in fails {
                    outcomes.push((next.clone(), Some(event.clone())));
                    outcomes.push((same.clone(), Some(event)));
                }
                outcomes.push((next.clone(), Some(Event::Unfit)));
                outcomes
            }
            Effect::Probe(next, _) if *next == bad() => {
                let unfit = [Event::Unfit, Event::Failed(Fault::Release)];
                unfit
                    .map(|event| (same.clone(), Some(event)))
                    .into_iter()
                    .chain([(same.clone(), None)])
                    .collect()
            }
            Effect::Probe(..) => [Some(Event::Healthy), Some(Event::Unfit), None]
                .into_iter()
                .chain(fails.map(Some))
                .map(|event| (same.clone(), event))
                .collect(),
            Effect::RollBack(current) => vec![
                (current.clone(), Some(Event::RolledBack)),
                (current.clone(), None),
                (same.clone(), None),
                (current.clone(), Some(Event::Failed(Fault::Circumstance))),
                (same, Some(Event::Failed(Fault::Circumstance))),
            ],
        }
    }

    fn successors(&self) -> Vec<Self> {
        let after = |(handed, event): (Release, Option<Event>)| {
            let state = self.state.clone();
            // After a crash the agent starts again, and says so; after a stop that was asked for it does not.
            let state = state.on(event.unwrap_or(Event::Interrupted));
            Self { state, handed }
        };
        self.outcomes().into_iter().map(after).collect()
    }

    fn check(&self) {
        let standing = self.state.standing();
        assert_ne!(standing.current, bad(), "a bad release was confirmed: {self:?}");
        assert_ne!(standing.previous, bad(), "a bad release was confirmed: {self:?}");
        if let State::Fetching { next, .. } | State::Activating { next, .. } = &self.state {
            assert_eq!(standing.objection(next), None, "a rejected release is tried again: {self:?}");
        }
        let at_rest = matches!(
            self.state,
            State::Unenrolled { .. }
                | State::Enrolling { .. }
                | State::Idle { .. }
                | State::Checking { .. }
                | State::Fetching { .. }
        );
        if at_rest {
            assert_eq!(self.handed, standing.current, "what is handed over was not confirmed: {self:?}");
        }
    }
}

/// Every reachable node, with its successors.
fn walk() -> BTreeMap<String, (Node, Vec<String>)> {
    let mut graph = BTreeMap::new();
    let mut queue = VecDeque::from([Node { state: State::default(), handed: Release::default() }]);
    while let Some(node) = queue.pop_front() {
        if graph.contains_key(&node.key()) {
            continue;
        }
        let successors = node.successors();
        let keys = successors.iter().map(Node::key).collect();
        graph.insert(node.key(), (node, keys));
        queue.extend(successors);
    }
    graph
}

#[test]
fn every_reachable_state_keeps_the_promises() {
    let graph = walk();
    assert!(graph.len() > 100, "walked only {} nodes", graph.len());
    for (node, _) in graph.values() {
        node.check();
    }
}

#[test]
fn idle_can_always_be_reached() {
    let graph = walk();
    let mut reaches: BTreeSet<&String> = graph
        .iter()
        .filter(|(_, (node, _))| matches!(node.state, State::Idle { .. }))
        .map(|(key, _)| key)
        .collect();
    loop {
        let more: Vec<&String> = graph
            .iter()
            .filter(|(key, (_, next))| {
                !reaches.contains(key) && next.iter().any(|next| reaches.contains(next))
            })
            .map(|(key, _)| key)
            .collect();
        if more.is_empty() {
            break;
        }
        reaches.extend(more);
    }
    assert_eq!(reaches.len(), graph.len());
}

#[test]
fn what_is_stored_is_what_is_read_back() {
    for (node, _) in walk().values() {
        let stored = serde_json::to_vec(&node.state).unwrap();
        assert_eq!(serde_json::from_slice::<State>(&stored).unwrap(), node.state);
    }
}

#[test]
fn an_event_out_of_place_changes_nothing() {
    let events = [Event::Enrolled, Event::Fetched, Event::Healthy, Event::RolledBack, Event::Disowned];
    for (node, _) in walk().values() {
        if let State::Idle { .. } = node.state {
            for event in events.clone() {
                assert_eq!(node.state.clone().on(event), node.state);
            }
        }
    }
}

#[test]
fn a_release_that_takes_the_device_down_each_time_is_left_and_not_tried_again() {
    let standing = Standing::default().confirm(good());
    let mut state = State::Activating { standing, next: bad(), interruptions: 0 };
    let mut crashes = 0;
    while !matches!(state, State::RollingBack { .. }) {
        // It gets as far as being watched, and then the board is gone.
        state = state.on(Event::Activated { deadline: Timestamp::UNIX_EPOCH }).on(Event::Interrupted);
        crashes += 1;
        assert!(crashes < 20, "it is tried for ever");
    }
    let state = state.on(Event::RolledBack);
    assert_eq!(state.standing().current, good());
    let again = state.on(Event::Due).on(Event::Offered(bad()));
    assert!(matches!(again, State::Idle { .. }), "{again:?}");
}

#[test]
fn a_bad_artifact_is_not_tried_again_beside_another() {
    let both =
        |left: &Release, right: &Release| Release::new(left.assigned().chain(right.assigned()).cloned());
    let standing = Standing::default().confirm(good()).reject(both(&good(), &bad()));
    assert!(!standing.wants(&both(&bad(), &better())));
    assert!(standing.wants(&both(&good(), &better())), "what was there before is not to blame");
    let removal = standing.confirm(both(&good(), &better())).reject(good());
    assert!(removal.wants(&better()), "a removal that failed forbids nothing but itself");
}

#[test]
fn losing_the_identity_does_not_forget_what_is_handed_over() {
    let standing = Standing::default().confirm(good()).reject(bad());
    let state = State::Checking { standing: standing.clone() }.on(Event::Disowned);
    assert_eq!(state, State::Unenrolled { standing });
}
