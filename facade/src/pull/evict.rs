//! Which blobs the cache lets go: a pure function of what it holds.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use pki::digest::Digest;

use crate::blobs::Held;

/// What the cache may keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// All blobs together; no limit if absent.
    pub max_size_bytes: Option<u64>,
    /// Since the last use of a blob; no limit if absent.
    pub max_age: Option<Duration>,
    /// What must stay free on the disk.
    pub min_free_bytes: u64,
    /// Since the last byte of a blob that never became whole.
    pub max_partial_age: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_size_bytes: None,
            max_age: None,
            min_free_bytes: 512 * 1024 * 1024,
            max_partial_age: Duration::from_hours(7 * 24),
        }
    }
}

impl Policy {
    /// The blobs to delete so that `incoming_bytes` more fit: first what is too old, then the least recently used, never
    /// what is in `kept`. When all that is not enough, more is asked for than can be had, and the rest stays.
    pub fn victims(
        &self,
        held: &mut [Held],
        kept: &HashSet<Digest>,
        free_bytes: u64,
        incoming_bytes: u64,
        now: Timestamp,
    ) -> Vec<Held> {
        held.sort_by_key(|blob| blob.last_used);
        let total = held.iter().fold(incoming_bytes, |sum, blob| sum.saturating_add(blob.size_bytes));
        let over_size = self.max_size_bytes.map_or(0, |max| total.saturating_sub(max));
        let needed_free = self.min_free_bytes.saturating_add(incoming_bytes);
        let mut excess = over_size.max(needed_free.saturating_sub(free_bytes));
        let mut victims = Vec::new();
        for blob in held.iter().filter(|blob| !kept.contains(&blob.digest)) {
            if excess > 0 || self.is_too_old(blob, now) {
                excess = excess.saturating_sub(blob.size_bytes);
                victims.push(blob.clone());
            }
        }
        victims
    }

    /// Whether nobody will want what has arrived of a blob.
    pub fn is_abandoned(&self, partial: &Held, now: Timestamp) -> bool {
        unused_for(partial, now) > self.max_partial_age
    }

    fn is_too_old(&self, blob: &Held, now: Timestamp) -> bool {
        self.max_age.is_some_and(|max| unused_for(blob, now) > max)
    }
}

/// A clock that was set back makes a blob new, never old.
fn unused_for(blob: &Held, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(blob.last_used)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(name: &str, size_bytes: u64, last_used: i64) -> Held {
        let last_used = Timestamp::from_second(last_used).unwrap();
        Held { digest: Digest::sha256(name.as_bytes()), size_bytes, last_used }
    }

    fn victims(policy: &Policy, kept: &[&str], free: u64, incoming: u64) -> Vec<u64> {
        let mut held = [blob("c", 30, 300), blob("a", 10, 100), blob("b", 20, 200)];
        let kept = kept.iter().map(|name| Digest::sha256(name.as_bytes())).collect();
        let now = Timestamp::from_second(1000).unwrap();
        let victims = policy.victims(&mut held, &kept, free, incoming, now);
        victims.iter().map(|blob| blob.size_bytes).collect()
    }

    fn policy() -> Policy {
        Policy { min_free_bytes: 0, ..Policy::default() }
    }

    #[test]
    fn keeps_everything_while_there_is_room() {
        assert_eq!(victims(&policy(), &[], 0, 0), Vec::<u64>::new());
        assert_eq!(victims(&Policy { max_size_bytes: Some(60), ..policy() }, &[], 0, 0), Vec::<u64>::new());
    }

    #[test]
    fn evicts_the_least_recently_used_until_the_rest_fits() {
        let sized = |max| Policy { max_size_bytes: Some(max), ..policy() };
        assert_eq!(victims(&sized(59), &[], 0, 0), [10]);
        assert_eq!(victims(&sized(49), &[], 0, 0), [10, 20]);
        assert_eq!(victims(&sized(60), &[], 0, 11), [10, 20]);
        assert_eq!(victims(&sized(0), &[], 0, 0), [10, 20, 30]);
    }

    #[test]
    fn keeps_the_disk_free() {
        let free = Policy { min_free_bytes: 100, ..policy() };
        assert_eq!(victims(&free, &[], 100, 0), Vec::<u64>::new());
        assert_eq!(victims(&free, &[], 95, 0), [10]);
        assert_eq!(victims(&free, &[], 100, 25), [10, 20]);
    }

    #[test]
    fn evicts_what_nobody_used_for_too_long() {
        let aged = Policy { max_age: Some(Duration::from_secs(750)), ..policy() };
        assert_eq!(victims(&aged, &[], 0, 0), [10, 20]);
        assert_eq!(victims(&aged, &["a"], 0, 0), [20]);
    }

    #[test]
    fn never_evicts_what_is_pinned() {
        let none = Policy { max_size_bytes: Some(0), ..policy() };
        assert_eq!(victims(&none, &["a", "b", "c"], 0, 0), Vec::<u64>::new());
        assert_eq!(victims(&none, &["b"], 0, 0), [10, 30]);
    }

    #[test]
    fn a_clock_set_back_evicts_nothing() {
        let aged = Policy { max_age: Some(Duration::from_secs(1)), ..policy() };
        let mut held = [blob("a", 10, 5000)];
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(aged.victims(&mut held, &HashSet::new(), 0, 0, now), []);
        assert!(!aged.is_abandoned(&held[0], now));
    }
}
