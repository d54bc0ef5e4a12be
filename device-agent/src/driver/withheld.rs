//! Files of metadata that do not come although the facade was reached: a lost connection, or somebody who holds back news.
//!
//! One round shows neither. A device that is cut off tells nobody anything; one that reaches its facade round after round
//! and never gets the same answers through is being kept in the past, and its operator hears of it.

use serde::{Deserialize, Serialize};

use super::Agent;
use crate::refresh::RefreshError;

/// Kept on disk, because `device-agent sync` is a new process every time.
const FILE: &str = "withheld.json";

/// Rounds in a row after which it is told.
const TOLD_AFTER: u32 = 3;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Withheld {
    rounds: u32,
}

impl Agent {
    /// Whether a failed check is something that the facade is told as a refusal.
    pub(super) fn is_refusal(&self, error: &RefreshError) -> bool {
        error.is_verification() || error.is_missing() || (error.is_silence() && self.note_silence())
    }

    /// Counts a round in which a file did not come; whether there have been enough.
    fn note_silence(&self) -> bool {
        let Withheld { rounds } = self.dir.read_json(FILE, "remove it").ok().flatten().unwrap_or_default();
        if rounds >= TOLD_AFTER {
            return true;
        }
        let rounds = rounds + 1;
        if let Err(error) = self.dir.write_json(FILE, &Withheld { rounds }) {
            tracing::warn!(error = crate::error_chain(&error), "what is withheld cannot be counted");
        }
        rounds >= TOLD_AFTER
    }

    /// Everything came.
    pub(super) fn note_answers(&self) {
        if let Ok(None) = self.dir.read(FILE) {
            return;
        }
        if let Err(error) = self.dir.remove(FILE) {
            tracing::warn!(error = crate::error_chain(&error), "what was withheld is still counted");
        }
    }
}
