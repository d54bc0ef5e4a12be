//! Holds all transfers of a fetch together to one rate.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pki::wire::ByteRate;
use tokio::time::{Instant, sleep_until};

/// How far a transfer may run ahead: enough that each wait is worth its timer, too little to be noticed on the link.
const BURST: Duration = Duration::from_millis(250);

/// A rate that several transfers share.
#[derive(Debug)]
pub(super) struct Throttle {
    rate: Option<ByteRate>,
    /// When everything that was let through so far would have come in at the rate.
    paid_until: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(rate: Option<ByteRate>) -> Self {
        Self { rate, paid_until: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes more are within the rate; says how long it waited.
    pub(super) async fn pass(&self, bytes: u64) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let now = Instant::now();
        let due = {
            let mut paid = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.bytes_per_second());
            // What was not used is not saved up.
            *paid = (*paid).max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4));
            *paid
        };
        if due.saturating_duration_since(now) > BURST {
            sleep_until(due - BURST).await;
        }
        now.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn several_transfers_together_keep_to_the_rate() {
        let throttle = Throttle::new("1MiB/s".parse().ok());
        let begun = Instant::now();
        let transfer = || async {
            for _ in 0..160 {
                throttle.pass(64 << 10).await;
            }
        };
        tokio::join!(transfer(), transfer());
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(19) && took <= Duration::from_secs(21), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_not_saved_up_and_no_rate_is_no_wait() {
        let throttle = Throttle::new("1KiB/s".parse().ok());
        tokio::time::advance(Duration::from_secs(3600)).await;
        throttle.pass(1024).await;
        let waited = throttle.pass(10 * 1024).await;
        assert!(waited >= Duration::from_secs(10), "{waited:?}");
        assert_eq!(Throttle::new(None).pass(u64::MAX).await, Duration::ZERO);
    }
}
