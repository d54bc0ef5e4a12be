//! The state directory: whether it can be written to, whether it is the agent's alone, and whether there is room in it.

use super::Doctor;
use crate::cli::Exit;
use crate::state_file::{StateDir, StateError};

/// Metadata, a certificate and a key, each beside the one it replaces.
const ROOM_BYTES: u64 = 16 << 20;

/// Written and removed again, to see whether that works.
const TRIAL_FILE: &str = "check";

impl Doctor {
    /// Tries it: neither a mode nor the free bytes tell of a read-only disk.
    pub(super) fn examine_writing(&mut self, dir: &StateDir) {
        if let Err(error) = try_to_write(dir) {
            self.fail("writing", Exit::Failed, crate::error_chain(&error));
            self.remedy("mount its disk for writing (mount -o remount,rw), or make it the agent's own (chown, chmod 700)");
        } else {
            self.ok("writing", "files can be made and removed in the state directory");
        }
    }

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

fn try_to_write(dir: &StateDir) -> Result<(), StateError> {
    dir.write_volatile(TRIAL_FILE, b"")?;
    dir.remove(TRIAL_FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Outcome;

    fn examined(dir: &StateDir) -> Doctor {
        let mut doctor = Doctor { findings: Vec::new(), exit: Exit::Success };
        doctor.examine_writing(dir);
        doctor
    }

    #[test]
    fn a_state_directory_that_cannot_be_written_to_is_found_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&directory.path().join("state")).unwrap();
        let doctor = examined(&dir);
        assert_eq!(doctor.exit, Exit::Success);
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "the trial is left behind");
        // Where the file should go there is something that no file replaces: also root meets that.
        std::fs::create_dir(dir.path_of(TRIAL_FILE)).unwrap();
        let doctor = examined(&dir);
        assert_eq!(doctor.exit, Exit::Failed);
        assert!(
            doctor.findings.iter().any(|found| found.outcome == Outcome::Failed && found.remedy.is_some())
        );
    }
}
