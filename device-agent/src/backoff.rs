//! How long to wait before the next try: exponential, capped, with full jitter.
//!
//! Pure: the caller brings the randomness and does the waiting. Full jitter spreads a fleet that lost its link at one
//! moment over the whole interval, where a fixed delay would bring it back as one wave.

use std::time::Duration;

/// The first delay is drawn from up to this.
pub const FIRST: Duration = Duration::from_secs(1);
/// No delay is longer.
pub const LONGEST: Duration = Duration::from_secs(300);

/// Counts failures since the last progress.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay before the next try; `random` is any number, evenly distributed.
    pub fn next(&mut self, random: u64) -> Duration {
        let ceiling = ceiling(self.failures);
        self.failures = self.failures.saturating_add(1);
        within(ceiling, random)
    }

    /// Forgets the failures: something moved.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last progress.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// A delay evenly distributed over `(0, ceiling]`, for jitter on its own.
pub fn within(ceiling: Duration, random: u64) -> Duration {
    let millis = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(random % millis + 1)
}

fn ceiling(failures: u32) -> Duration {
    FIRST
        .checked_mul(2_u32.checked_pow(failures).unwrap_or(u32::MAX))
        .map_or(LONGEST, |delay| delay.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_five_minutes_and_starts_over_after_progress() {
        let mut backoff = Backoff::default();
        let longest: Vec<u64> = (0..12)
            .map(|_| backoff.next(u64::MAX - u64::MAX % 300_000 - 1))
            .map(|delay| delay.as_secs())
            .collect();
        assert!(longest.iter().all(|&seconds| seconds <= 300));
        assert_eq!(ceiling(3), Duration::from_secs(8));
        assert_eq!(ceiling(40), LONGEST);
        backoff.reset();
        assert!(backoff.next(u64::MAX) <= FIRST);
    }

    proptest::proptest! {
        #[test]
        fn never_zero_and_never_beyond_the_ceiling(failures in 0_u32..100, random: u64) {
            let delay = Backoff { failures }.next(random);
            proptest::prop_assert!(delay > Duration::ZERO && delay <= ceiling(failures));
        }
    }
}
