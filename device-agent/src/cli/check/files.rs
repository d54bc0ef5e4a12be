//! The state directory: whether it is the agent's alone, and whether there is room in it.

use super::Doctor;
use crate::cli::Exit;
use crate::state_file::StateDir;

/// Metadata, a certificate and a key, each beside the one it replaces.
const ROOM_BYTES: u64 = 16 << 20;

impl Doctor {
    pub(super) fn examine_permissions(&mut self, dir: &StateDir) {
        let flaws = match dir.flaws() {
            Ok(flaws) => flaws,
            Err(error) => return self.fail("permissions", Exit::Failed, crate::error_chain(&error)),
        };
        let Some(first) = flaws.first() else {
            return self.ok("permissions", "everything in it is the agent's alone");
        };
        let more = match flaws.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        self.fail("permissions", Exit::Failed, format!("{first}{more}"));
        self.remedy("do as it says; if a key may have been read: device-agent enroll --again TOKEN");
    }

    pub(super) fn examine_room(&mut self, dir: &StateDir) {
        match dir.free_bytes() {
            Ok(free) if free < ROOM_BYTES => {
                let detail = format!("{} KiB free where the state is kept", free >> 10);
                self.fail("state disk", Exit::Failed, detail);
                self.remedy("make room: without it neither metadata nor the certificate can be renewed");
            }
            Ok(free) => self.ok("state disk", format!("{} MiB free", free >> 20)),
            Err(error) => self.warn("state disk", crate::error_chain(&error)),
        }
    }
}
