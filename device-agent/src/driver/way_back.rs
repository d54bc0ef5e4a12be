//! The way back to what was confirmed, and what is said for as long as it is not taken.
//!
//! Nobody says that the old release runs before whoever runs the images has said so. Until then the release that was left
//! lingers: it is kept, reported as what runs, and left again once a round, until that works or a later release does.

use super::{Agent, Outcome};
use crate::apply::{self, Direction};
use crate::handover;
use crate::lifecycle::{Event, Release, State};
use crate::state_file::StateError;

/// The stable name of what is wrong.
const CODE: &str = "rollback_hook_failed";

impl Agent {
    /// First the names, then whoever runs them, and last the images of the failed release, which are in use until then.
    pub(super) async fn roll_back(&self, state: &State) -> Outcome {
        let failed = state.next().cloned().unwrap_or_default();
        let standing = state.standing();
        let runtime = self.runtime.as_ref();
        if let Err(error) = handover::activate(runtime, &standing.current, &self.platform).await {
            // What the store has lost cannot be gone back to; it comes in again when it is assigned.
            self.throw_away(error.damaged()).await;
            let event = error.lost().map(|lost| Event::Lost(vec![lost.clone()]));
            return Outcome { event, error: Some(error.into()), waits: false };
        }
        if matches!(state, State::RollingBack { told: true, .. }) {
            let may_run = std::iter::once(&failed).chain(&standing.lingering);
            let changes = apply::changes(may_run, &standing.current, Direction::Back);
            if let Err(error) = self.config.apply.tell(&changes).await {
                return self.not_taken_back(&failed, error.into());
            }
        }
        if let Err(error) = self.note_taken_back(state) {
            return Outcome::again(error);
        }
        for left in std::iter::once(&failed).chain(&standing.lingering) {
            if let Err(error) = handover::leave(runtime, standing, left).await {
                return Outcome::again(error);
            }
        }
        Outcome::event(Event::RolledBack)
    }

    /// What was left may run all the same; that is what is reported.
    fn not_taken_back(&self, failed: &Release, error: super::AgentError) -> Outcome {
        let reason = crate::error_chain(&error);
        self.shared().not_taken_back = Some(reason);
        if let Err(error) = self.reporter().handed_over(failed, self.clock.now()) {
            return Outcome::again(error);
        }
        Outcome { event: Some(Event::NotTakenBack), error: Some(error), waits: false }
    }

    fn note_taken_back(&self, state: &State) -> Result<(), StateError> {
        self.shared().not_taken_back = None;
        let standing = state.standing();
        if standing.is_astray() {
            self.reporter().handed_over(&standing.current, self.clock.now())?;
        }
        Ok(())
    }

    /// Why something else runs than what was confirmed, for as long as that is so.
    pub(super) fn astray(&self) -> Option<String> {
        let shared = self.shared();
        let left = shared.state.standing().lingering.back()?;
        let names: Vec<String> = left.assigned().map(|assigned| assigned.artifact.to_string()).collect();
        let reason = shared.not_taken_back.as_deref().unwrap_or("it is asked again");
        Some(format!(
            "{CODE}: the release before was not taken back, and {} may still run: {reason}",
            if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
        ))
    }

    /// Tells it in every report: of what should have gone, and of what should have come back.
    pub(super) fn refuse_astray(&self) {
        let Some(reason) = self.astray() else { return };
        let state = self.state();
        let standing = state.standing();
        let Some(left) = standing.lingering.back() else { return };
        let changed = left.without(&standing.current).with(&standing.current.without(left));
        self.refuse_for(&changed, CODE, &reason);
    }
}
