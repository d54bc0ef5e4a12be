//! Remembers what did not fit when it was unpacked: how much it takes is known only then, and to fetch it again and again
//! to find that out would wear the card and the link.

use pki::oci::ArtifactName;
use serde::{Deserialize, Serialize};

use super::Agent;
use crate::lifecycle::Release;

const ROOM_FILE: &str = "room.json";

/// `room.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Room {
    /// What did not fit.
    artifacts: Vec<ArtifactName>,
    /// How much its unpacked form takes at least.
    unpacked_bytes: u64,
}

fn artifacts(release: &Release) -> Vec<ArtifactName> {
    release.assigned().map(|assigned| assigned.artifact.clone()).collect()
}

impl Agent {
    /// Notes that so much was not enough to unpack a release.
    pub(super) fn note_unpack(&self, release: &Release, free_bytes: u64) {
        // A little more than what was too little.
        let unpacked_bytes = free_bytes.saturating_add(free_bytes / 8).max(1 << 20);
        let room = Room { artifacts: artifacts(release), unpacked_bytes };
        if let Err(error) = self.dir.write_json(ROOM_FILE, &room) {
            tracing::warn!(error = crate::error_chain(&error), "what did not fit cannot be noted");
        }
    }

    /// How much the unpacked form of a release is known to take at least.
    pub(super) fn unpack_bytes(&self, release: &Release) -> u64 {
        let room: Option<Room> = self.dir.read_json(ROOM_FILE, "it is made anew").ok().flatten();
        room.filter(|room| room.artifacts == artifacts(release)).map_or(0, |room| room.unpacked_bytes)
    }
}
