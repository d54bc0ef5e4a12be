//! How much one device may have written down of what it does. ◇
//!
//! What a device reports and asks for goes into rings and logs of bounded size, and a hostile one can report and ask
//! without end: it must not push out what all others have done. Each key has an allowance of its own for a window of
//! time; what goes beyond it is counted, and the next window says how much that was.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

/// More keys than this are not told apart; then everything is kept.
const MAX_REMEMBERED: usize = 65_536;

/// Allowances by key.
pub(super) struct Allowances<K> {
    most: u32,
    length: SignedDuration,
    windows: Mutex<HashMap<K, Window>>,
}

struct Window {
    since: Timestamp,
    taken: u32,
    dropped: u64,
}

/// What becomes of something that a key wants to have written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is kept. So much was dropped in the window before.
    Kept { dropped: u64 },
    /// It is kept, and is the last for a while.
    Last,
    /// It is dropped.
    Dropped,
}

impl<K: Eq + Hash> Allowances<K> {
    /// So many for each key in each window.
    pub(super) fn new(most: u32, length: SignedDuration) -> Self {
        Self { most, length, windows: Mutex::default() }
    }

    pub(super) fn take(&self, key: K, now: Timestamp) -> Verdict {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= MAX_REMEMBERED && !windows.contains_key(&key) {
            windows.retain(|_, window| window.is_open(now, self.length));
            if windows.len() >= MAX_REMEMBERED {
                return Verdict::Kept { dropped: 0 };
            }
        }
        let window = windows.entry(key).or_insert(Window { since: now, taken: 0, dropped: 0 });
        let mut dropped = 0;
        if !window.is_open(now, self.length) {
            dropped = window.dropped;
            *window = Window { since: now, taken: 0, dropped: 0 };
        }
        if window.taken >= self.most {
            window.dropped = window.dropped.saturating_add(1);
            return Verdict::Dropped;
        }
        window.taken += 1;
        if window.taken == self.most { Verdict::Last } else { Verdict::Kept { dropped } }
    }
}

impl Window {
    /// A clock that was set back opens a new window, rather than keeping the old one open until it has caught up.
    fn is_open(&self, now: Timestamp, length: SignedDuration) -> bool {
        let age = now.duration_since(self.since);
        !age.is_negative() && age < length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    #[test]
    fn whoever_never_stops_has_an_allowance_and_takes_nothing_from_others() {
        let (allowances, now) = (Allowances::new(8, HOUR), Timestamp::UNIX_EPOCH);
        let mut verdicts = (0..1000).map(|_| allowances.take("loud", now)).collect::<Vec<_>>();
        assert_eq!(verdicts.remove(7), Verdict::Last);
        assert_eq!(verdicts.into_iter().filter(|verdict| *verdict != Verdict::Dropped).count(), 7);
        assert_eq!(allowances.take("quiet", now), Verdict::Kept { dropped: 0 });
    }

    #[test]
    fn the_next_window_says_how_much_was_dropped() {
        let (allowances, now) = (Allowances::new(8, HOUR), Timestamp::UNIX_EPOCH);
        for _ in 0..20 {
            allowances.take("loud", now);
        }
        assert_eq!(allowances.take("loud", now + HOUR), Verdict::Kept { dropped: 12 });
        assert_eq!(allowances.take("loud", now + HOUR), Verdict::Kept { dropped: 0 });
        let set_back = Verdict::Kept { dropped: 0 };
        assert_eq!(allowances.take("loud", now), set_back, "a clock that was set back");
    }

    #[test]
    fn a_full_table_keeps_everything() {
        let (allowances, now) = (Allowances::new(1, HOUR), Timestamp::UNIX_EPOCH);
        for key in 0..MAX_REMEMBERED {
            allowances.take(key, now);
        }
        for _ in 0..3 {
            assert_eq!(allowances.take(usize::MAX, now), Verdict::Kept { dropped: 0 });
        }
        allowances.take(usize::MAX, now + HOUR);
        assert_eq!(allowances.windows.lock().unwrap().len(), 1);
    }
}
