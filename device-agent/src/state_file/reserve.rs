//! Room that is kept for the state itself: on a full disk the agent must still be able to write down where it stands.

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use super::{PRIVATE, StateDir};

/// A file of nothing, given up when the disk is full.
const RESERVE_FILE: &str = "reserve";
/// More than all that is written between two looks.
const RESERVE_BYTES: usize = 256 * 1024;

impl StateDir {
    /// Sets room aside, where there is none yet and the disk has some.
    pub fn keep_reserve(&self) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&self.root, RESERVE_FILE, flags, PRIVATE) else {
            return;
        };
        let mut left = RESERVE_BYTES;
        // Written, not only asked for: not every file system keeps what was only asked for.
        while left > 0 {
            match rustix::io::write(&file, &[0; 4096]) {
                Ok(written @ 1..) => left = left.saturating_sub(written),
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => {
                    // Half a reserve on a full disk only takes what others need more.
                    self.spend_reserve();
                    return;
                }
            }
        }
    }

    /// Gives the room back; whether there was any.
    pub(super) fn spend_reserve(&self) -> bool {
        rustix::fs::unlinkat(&self.root, RESERVE_FILE, AtFlags::empty()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_kept_once_and_spent_once() {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temporary.path().join("state")).unwrap();
        state.keep_reserve();
        state.keep_reserve();
        assert_eq!(std::fs::read(state.path_of(RESERVE_FILE)).unwrap(), vec![0; RESERVE_BYTES]);
        assert!(state.spend_reserve());
        assert!(!state.spend_reserve());
    }
}
