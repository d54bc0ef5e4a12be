//! How the agent stopped last: because it was asked to, by a crash, or with the whole board.
//!
//! After a crash the release that was just being applied has a try less. After a power cut what is on the disk is
//! believed only after it was read back: cards are known to lose what they had acknowledged.

use pki::wire::Code;
use serde::{Deserialize, Serialize};

use super::{Agent, AgentError};
use crate::lifecycle::{Event, State};
use crate::report;
use crate::state_file::StateError;

const RUN_FILE: &str = "run.json";
/// Left by `device-agent verify` for whoever holds the lock.
const DOUBT_FILE: &str = "doubt";

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// Which boot of the device it was.
    boot_id: Code,
    /// Whether the agent came to its end.
    stopped: bool,
    /// Whether what is handed over is still to be read back.
    unverified: bool,
}

impl Agent {
    /// Notes that the agent runs, and draws the conclusions of how it stopped last.
    pub(super) fn note_start(&self) -> Result<(), AgentError> {
        let boot_id = report::boot_id();
        // A damaged note was not left behind by an orderly stop.
        let last: Option<Run> = self.dir.read_json(RUN_FILE, "it is made anew").unwrap_or_else(|error| {
            tracing::warn!(error = crate::error_chain(&error), "how the agent stopped last is not known");
            Some(Run { boot_id: boot_id.clone(), stopped: false, unverified: true })
        });
        let killed = last.as_ref().is_some_and(|last| !last.stopped);
        let power_cut = last.as_ref().is_some_and(|last| !last.stopped && last.boot_id != boot_id);
        let unverified = power_cut || last.is_some_and(|last| last.unverified);
        self.shared().unverified = unverified;
        self.note(&Run { boot_id, stopped: false, unverified });
        if !killed {
            return Ok(());
        }
        tracing::warn!(power_cut, "the agent did not stop by itself last time");
        let before = self.state();
        self.feed(Event::Interrupted)?;
        if matches!(self.state(), State::RollingBack { .. }) && !matches!(before, State::RollingBack { .. }) {
            self.blame(&before, "interrupted", "the device went down each time it was applied");
        }
        Ok(())
    }

    /// Notes, beside an agent that may be running, that something here is damaged: the next round reads it back and
    /// mends it.
    pub fn doubt(&self) -> Result<(), StateError> {
        self.dir.write(DOUBT_FILE, b"")
    }

    /// Takes up what `device-agent verify` left.
    pub(super) fn take_up_doubt(&self) {
        if !matches!(self.dir.has(DOUBT_FILE), Ok(true)) {
            return;
        }
        tracing::warn!("device-agent verify found damage; what is handed over is read back");
        self.shared().unverified = true;
        self.note(&Run { boot_id: report::boot_id(), stopped: false, unverified: true });
        // Only now: a doubt that stays is taken up once more, and one that is gone too early is lost.
        if let Err(error) = self.dir.remove(DOUBT_FILE) {
            tracing::warn!(error = crate::error_chain(&error), "what is handed over will be read back again");
        }
    }

    /// Notes that the agent came to its end.
    pub(super) fn note_stop(&self) {
        let unverified = self.shared().unverified;
        self.note(&Run { boot_id: report::boot_id(), stopped: true, unverified });
    }

    /// What is handed over was read back.
    pub(super) fn note_verified(&self) {
        self.shared().unverified = false;
        self.note(&Run { boot_id: report::boot_id(), stopped: false, unverified: false });
    }

    /// A full disk must not keep the agent from its work.
    fn note(&self, run: &Run) {
        if let Err(error) = self.dir.write_json(RUN_FILE, run) {
            tracing::warn!(error = crate::error_chain(&error), "whether the agent runs cannot be noted");
        }
    }
}
