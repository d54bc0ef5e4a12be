//! Walks every (state, world, outcome, crash) that can be reached.
//!
//! The world is what the machine cannot see: which release whoever runs the images really has. An effect may succeed, fail, or be cut
//! by a crash, each with or without having changed the world; a crash leaves the stored state as it was.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pki::digest::Digest;

use super::*;

/// A node: the stored state, and what really runs.
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

/// An offer at an hour, of what may take one.
fn offer(release: Release, hour: i64) -> Offer {
    let hours = SignedDuration::from_hours;
    Offer { release, at: Some(Timestamp::UNIX_EPOCH + hours(hour)), within: Some(hours(1)) }
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
                let current = &self.state.standing().current;
                let here: Vec<ArtifactName> = same
                    .assigned()
                    .chain(current.assigned())
                    .map(|assigned| assigned.artifact.clone())
                    .collect();
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
                .map(|release| Offer { release, at: None, within: None })
                .into_iter()
                .chain([offer(better(), 0), offer(better(), 1)])
                .map(Event::Offered)
                .chain([Event::Disowned, Event::Failed(Fault::Circumstance)])
                .map(|event| (same.clone(), Some(event)))
                .chain([(same.clone(), None)])
                .collect(),
            Effect::Fetch(_) => [
                Some(Event::Fetched),
                Some(Event::Overdue),
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
            Effect::RollBack(current) => {
                let mut outcomes = vec![
                    (current.clone(), Some(Event::RolledBack)),
                    (current.clone(), None),
                    (same.clone(), None),
                    (current.clone(), Some(Event::Failed(Fault::Circumstance))),
                    (same.clone(), Some(Event::Failed(Fault::Circumstance))),
                ];
                // Of one release, so that the walk comes to an end: each order of several would be a state of its own.
                let told =
                    matches!(&self.state, State::RollingBack { told: true, next, .. } if *next == bad());
                if told {
                    outcomes.push((current.clone(), Some(Event::NotTakenBack)));
                    outcomes.push((same, Some(Event::NotTakenBack)));
                }
                outcomes
            }
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
            assert!(!standing.is_overdue(), "a release that was given up is tried again: {self:?}");
        }
        if let State::RollingBack { told: false, .. } = &self.state {
            assert!(!standing.is_astray(), "what lingers is left without a word: {self:?}");
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
            let known = standing.may_run().any(|release| *release == self.handed);
            assert!(known, "what runs was not confirmed, and is not known to linger: {self:?}");
        }
    }
}

/// Every reachable node, with its successors.
fn walk() -> BTreeMap<String, (Node, Vec<String>)> {
    let mut graph = BTreeMap::new();
    let start = Node { state: State::default(), handed: Release::default() };
    let mut queue = VecDeque::from([(start.key(), start)]);
    while let Some((key, node)) = queue.pop_front() {
        if graph.contains_key(&key) {
            continue;
        }
        let successors: Vec<(String, Node)> =
            node.successors().into_iter().map(|node| (node.key(), node)).collect();
        let keys = successors.iter().map(|(key, _)| key.clone()).collect();
        graph.insert(key, (node, keys));
        queue.extend(successors);
    }
    graph
}

/// One walk for all that holds everywhere: it takes its time.
#[test]
fn every_reachable_state_keeps_the_promises() {
    let graph = walk();
    assert!(graph.len() > 100, "walked only {} nodes", graph.len());
    for (node, _) in graph.values() {
        node.check();
        assert_is_read_back_as_it_was_stored(&node.state);
        assert_no_event_out_of_place_changes(&node.state);
    }
    assert_idle_can_always_be_reached(&graph);
}

fn assert_idle_can_always_be_reached(graph: &BTreeMap<String, (Node, Vec<String>)>) {
    let mut leads_here: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for (key, (_, next)) in graph {
        for next in next {
            leads_here.entry(next).or_default().push(key);
        }
    }
    let idle = graph.iter().filter(|(_, (node, _))| matches!(node.state, State::Idle { .. }));
    let mut queue: VecDeque<&String> = idle.map(|(key, _)| key).collect();
    let mut reaches: BTreeSet<&String> = queue.iter().copied().collect();
    while let Some(key) = queue.pop_front() {
        for before in leads_here.get(key).into_iter().flatten() {
            if reaches.insert(before) {
                queue.push_back(before);
            }
        }
    }
    assert_eq!(reaches.len(), graph.len());
}

fn assert_is_read_back_as_it_was_stored(state: &State) {
    let stored = serde_json::to_vec(state).unwrap();
    assert_eq!(serde_json::from_slice::<State>(&stored).unwrap(), *state);
}

fn assert_no_event_out_of_place_changes(state: &State) {
    if !matches!(state, State::Idle { .. }) {
        return;
    }
    for event in
        [Event::Enrolled, Event::Fetched, Event::Healthy, Event::RolledBack, Event::Disowned, Event::Overdue]
    {
        assert_eq!(state.clone().on(event), *state);
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
    let again = state.on(Event::Due).on(Event::Offered(offer(bad(), 0)));
    assert!(matches!(again, State::Idle { .. }), "{again:?}");
}

#[test]
fn a_roll_back_that_is_not_taken_is_tried_each_round_and_ends_with_it_or_with_a_later_release() {
    let standing = Standing::default().confirm(good());
    let leaving = State::RollingBack { standing, next: bad(), fault: Fault::Release, told: true };
    let astray = leaving.on(Event::NotTakenBack);
    assert!(matches!(astray, State::Idle { .. }));
    assert_eq!(astray.name(), "rolling_back");
    assert_eq!(astray.standing().current, good());
    let mut state = astray.clone();
    for _ in 0..40 {
        state = state.on(Event::Due);
        assert!(matches!(&state, State::RollingBack { next, told: true, .. } if *next == bad()), "{state:?}");
        state = state.on(Event::NotTakenBack).on(Event::Offered(offer(bad(), 0)));
        assert_eq!(state, astray);
    }
    let back = state.clone().on(Event::Due).on(Event::RolledBack);
    assert_eq!(back.name(), "idle");
    assert!(!back.standing().is_astray() && back.standing().objection(&bad()).is_some());
    let fetching = state.on(Event::Due).on(Event::NotTakenBack).on(Event::Offered(offer(better(), 0)));
    assert!(is_fetching(&fetching) && fetching.standing().lingers(&bad().0.first().unwrap().artifact));
    let confirmed = fetching
        .on(Event::Fetched)
        .on(Event::Activated { deadline: Timestamp::UNIX_EPOCH })
        .on(Event::Healthy);
    assert!(!confirmed.standing().is_astray());
}

#[test]
fn a_bad_artifact_is_not_tried_again_beside_another() {
    let both =
        |left: &Release, right: &Release| Release::new(left.assigned().chain(right.assigned()).cloned());
    let standing = Standing::default().confirm(good()).reject(both(&good(), &bad()));
    let wants = |standing: &Standing, release: Release| {
        let heard = standing.clone().hear(&offer(release.clone(), 0));
        heard.wants(&release)
    };
    assert!(!wants(&standing, both(&bad(), &better())));
    assert!(wants(&standing, both(&good(), &better())), "what was there before is not to blame");
    let removal = standing.confirm(both(&good(), &better())).reject(good());
    assert!(wants(&removal, better()), "a removal that failed forbids nothing but itself");
}

#[test]
fn losing_the_identity_does_not_forget_what_is_handed_over() {
    let standing = Standing::default().confirm(good()).reject(bad());
    let state = State::Checking { standing: standing.clone() }.on(Event::Disowned);
    assert_eq!(state, State::Unenrolled { standing });
}

/// What comes of an offer to a device that has `good`.
fn offered(before: State, offer: Offer) -> State {
    before.on(Event::Due).on(Event::Offered(offer))
}

fn idle() -> State {
    State::Idle { standing: Standing::default().confirm(good()) }
}

fn is_fetching(state: &State) -> bool {
    matches!(state, State::Fetching { .. })
}

#[test]
fn tries_go_on_until_the_deadline_and_end_with_it() {
    let mut state =
        offered(idle(), Offer { within: Some(SignedDuration::from_hours(10)), ..offer(better(), 0) });
    for hour in 1..10 {
        // Whatever goes wrong: the link, the agent, the whole board.
        state = state.on(Event::Interrupted).on(Event::Failed(Fault::Circumstance));
        let again = Offer { within: Some(SignedDuration::from_hours(10)), ..offer(better(), hour) };
        state = offered(state, again);
        assert!(is_fetching(&state), "given up after {hour} h of 10");
    }
    let state = state.on(Event::Overdue);
    assert!(state.standing().is_overdue());
    assert!(!is_fetching(&offered(state.clone(), offer(better(), 11))), "it is tried after its deadline");
    // A longer deadline, none at all, and another release each begin again.
    let longer = Offer { within: Some(SignedDuration::from_hours(20)), ..offer(better(), 11) };
    assert!(is_fetching(&offered(state.clone(), longer)));
    assert!(is_fetching(&offered(state.clone(), Offer { within: None, ..offer(better(), 11) })));
    assert!(is_fetching(&offered(state, offer(release("other"), 11))));
}

#[test]
fn a_clock_that_is_not_believed_starts_no_deadline_and_one_that_jumps_passes_none() {
    let unknown = Offer { at: None, ..offer(better(), 0) };
    let state = offered(offered(idle(), unknown.clone()), unknown);
    assert!(is_fetching(&state));
    // The time comes in from the network, decades after 1970: only now the deployment begins.
    let state = offered(state, offer(better(), 500_000));
    assert!(is_fetching(&state));
    assert!(!is_fetching(&offered(state.clone(), offer(better(), 500_001))));
    // Put back by years: the deadline is an hour from now again, not in years.
    let state = offered(state, offer(better(), 400_000));
    assert!(is_fetching(&state));
    assert!(!is_fetching(&offered(state, offer(better(), 400_001))));
}

#[test]
fn what_was_confirmed_or_taken_back_is_not_on_its_way_any_more() {
    let on_its_way = offered(idle(), offer(better(), 0));
    assert_eq!(offered(on_its_way.clone(), offer(good(), 0)).standing().deployment, None);
    let confirmed = on_its_way
        .on(Event::Fetched)
        .on(Event::Activated { deadline: Timestamp::UNIX_EPOCH })
        .on(Event::Healthy);
    assert_eq!(confirmed.standing().deployment, None);
}
