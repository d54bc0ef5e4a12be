//! The time: the only place in the facade that reads a clock.
//!
//! Everything that decides by time takes a [`Clock`], so that a test can set it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// Tells the time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The clock of the machine.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still until it is moved with [`Clock::set`].
    pub fn manual(now: Timestamp) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(now.as_millisecond()))))
    }

    /// The time now, to the millisecond: what is finer only makes records and listings harder to read.
    pub fn now(&self) -> Timestamp {
        let millis = match &self.0 {
            Source::System => Timestamp::now().as_millisecond(),
            Source::Manual(millis) => millis.load(Ordering::SeqCst),
        };
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }

    /// Moves a manual clock; the clock of the machine stays as it is.
    pub fn set(&self, now: Timestamp) {
        if let Source::Manual(millis) = &self.0 {
            millis.store(now.as_millisecond(), Ordering::SeqCst);
        }
    }
}
