//! The time: the only place in the agent that reads a clock.
//!
//! A board without a battery wakes up in 1970, and a broken one in 2099. The time that decides is never earlier than a
//! floor, which is raised by signed times only: raising it by the clock itself would let one jump to 2099 refuse every
//! update for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

/// No device runs a build before the build was made. `SOURCE_DATE_EPOCH` of the build, or the date of this source.
fn built() -> Timestamp {
    option_env!("SOURCE_DATE_EPOCH")
        .and_then(|epoch| epoch.parse().ok())
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or_else(|| Timestamp::constant(SOURCE_EPOCH_SECONDS, 0))
}

/// 2026-11-20T00:00:00Z.
const SOURCE_EPOCH_SECONDS: i64 = 1_795_132_800;

/// A clock this far behind what was signed is wrong, not late.
const TOLERATED_LAG: SignedDuration = SignedDuration::from_hours(1);

/// Tells the time that decides.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    floor: Arc<AtomicI64>,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The clock of the device, never earlier than this build.
    pub fn system() -> Self {
        Self::with(Source::System)
    }

    /// A clock that stands where it is set.
    pub fn manual(now: Timestamp) -> Self {
        Self::with(Source::Manual(Arc::new(AtomicI64::new(now.as_millisecond()))))
    }

    fn with(source: Source) -> Self {
        Self { source, floor: Arc::new(AtomicI64::new(built().as_millisecond())) }
    }

    /// The time now: the device's clock, or the floor where the clock is behind it.
    pub fn now(&self) -> Timestamp {
        self.unchecked().max(self.floor())
    }

    /// The earliest time it can be.
    pub fn floor(&self) -> Timestamp {
        from_millis(self.floor.load(Ordering::Relaxed))
    }

    /// Raises the floor to a time that was verified to be signed.
    pub fn raise(&self, signed: Timestamp) {
        self.floor.fetch_max(signed.as_millisecond(), Ordering::Relaxed);
    }

    /// Whether the device's clock shows a time before what is known to have passed.
    pub fn is_behind(&self) -> bool {
        self.unchecked() < self.floor() - TOLERATED_LAG
    }

    /// What the device's clock shows, to the millisecond; to be reported, never to decide by.
    pub fn unchecked(&self) -> Timestamp {
        from_millis(match &self.source {
            Source::System => Timestamp::now().as_millisecond(),
            Source::Manual(millis) => millis.load(Ordering::Relaxed),
        })
    }
}

fn from_millis(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_in_1970_does_not_go_below_the_build() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        assert_eq!(clock.now(), built());
        assert!(clock.is_behind());
    }

    #[test]
    fn only_signed_times_raise_the_floor() {
        let far: Timestamp = "2099-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::manual(far);
        assert_eq!(clock.now(), far);
        assert_eq!(clock.floor(), built());
        let signed: Timestamp = "2027-03-01T00:00:00Z".parse().unwrap();
        clock.raise(signed);
        clock.raise(Timestamp::UNIX_EPOCH);
        assert_eq!(clock.floor(), signed);
        assert!(!clock.is_behind());
    }
}
