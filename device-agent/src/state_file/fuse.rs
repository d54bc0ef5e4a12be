//! Ends everything at a step of its own choosing, as a kill or a power cut does: for tests that walk all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Lets so many more steps through, and none after them. As it is made it lets all of them through.
#[derive(Clone, Debug)]
pub struct Fuse(Arc<AtomicI64>);

const NEVER: i64 = -1;

impl Default for Fuse {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(NEVER)))
    }
}

impl Fuse {
    /// From now on, so many.
    pub fn burn_after(&self, steps: u32) {
        self.0.store(i64::from(steps), Ordering::Relaxed);
    }

    /// Takes one step; whether it may still be done.
    pub fn step(&self) -> bool {
        let less = |left: i64| (left > 0).then(|| left - 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() || !self.is_burnt()
    }

    /// Whether it lets nothing through any more.
    pub fn is_burnt(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_through_what_it_was_told_and_nothing_after() {
        let fuse = Fuse::default();
        assert!((0..100).all(|_| fuse.step()));
        fuse.burn_after(2);
        assert_eq!([fuse.step(), fuse.step(), fuse.step()], [true, true, false]);
        assert!(fuse.is_burnt());
    }
}
