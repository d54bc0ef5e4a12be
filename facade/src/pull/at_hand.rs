//! Small content in memory: the manifests and configs that every device of a fleet asks for.
//!
//! A copy of what the cache has, hashed once more on its way in, so that a hit costs no system call. Bounded, and short of
//! the hour to which the time of last use is exact: the file behind it is still seen to be used.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pki::digest::Digest;

/// The longest content that is kept.
pub(super) const MAX_BYTES: u64 = 64 * 1024;
const MAX_TOTAL_BYTES: usize = 4 * 1024 * 1024;
const KEPT_FOR: Duration = Duration::from_mins(30);

/// Small content in memory.
#[derive(Default)]
pub(super) struct AtHand(Mutex<Held>);

#[derive(Default)]
struct Held {
    total_bytes: usize,
    contents: HashMap<Digest, (Bytes, Instant)>,
}

impl Held {
    fn remove(&mut self, digest: Digest) {
        if let Some((bytes, _)) = self.contents.remove(&digest) {
            self.total_bytes -= bytes.len();
        }
    }
}

impl AtHand {
    /// The content, if it is here.
    pub(super) fn get(&self, digest: Digest) -> Option<Bytes> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, since) = held.contents.get(&digest)?;
        (since.elapsed() < KEPT_FOR).then(|| bytes.clone())
    }

    /// Keeps content if it is what its digest says; says whether it is.
    pub(super) fn keep(&self, digest: Digest, bytes: &Bytes) -> bool {
        if pki::digest::verify(digest, bytes).is_err() {
            return false;
        }
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(digest);
        // A fleet asks for few contents at a time: starting over is rare, and costs one read of a file for each.
        if held.total_bytes + bytes.len() > MAX_TOTAL_BYTES {
            *held = Held::default();
        }
        held.total_bytes += bytes.len();
        held.contents.insert(digest, (bytes.clone(), Instant::now()));
        true
    }

    /// Forgets content that the cache no longer has.
    pub(super) fn forget(&self, digest: Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_right_and_forgets_what_it_is_told_to() {
        let (at_hand, digest) = (AtHand::default(), Digest::sha256(b"x"));
        assert!(!at_hand.keep(digest, &Bytes::from_static(b"y")));
        assert_eq!(at_hand.get(digest), None);
        assert!(at_hand.keep(digest, &Bytes::from_static(b"x")));
        assert_eq!(at_hand.get(digest).as_deref(), Some(b"x".as_slice()));
        at_hand.forget(digest);
        assert_eq!(at_hand.get(digest), None);
    }

    #[test]
    fn stays_within_its_bounds() {
        let at_hand = AtHand::default();
        for number in 0..200_u32 {
            let bytes = Bytes::from([number.to_be_bytes().to_vec(), vec![0; 60_000]].concat());
            at_hand.keep(Digest::sha256(&bytes), &bytes);
            let held = at_hand.0.lock().unwrap();
            assert!(held.total_bytes <= MAX_TOTAL_BYTES);
            assert_eq!(held.total_bytes, held.contents.values().map(|(bytes, _)| bytes.len()).sum::<usize>());
        }
    }
}
