//! How fast content may leave: one budget for all devices, and one for each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use pki::x509::DeviceId;

/// What may go out at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// A budget of bytes per second.
struct Budget {
    bytes_per_second: u64,
    /// When everything that was granted so far is paid for.
    paid_at: Mutex<Instant>,
}

impl Budget {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_at: Mutex::new(Instant::now()) }
    }

    /// Grants so many bytes; says how long they have to wait.
    fn grant(&self, bytes: u64, now: Instant) -> Duration {
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = (*paid_at).max(earliest);
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.bytes_per_second);
        *paid_at = start + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        start.saturating_duration_since(now)
    }
}

/// The budgets of the device door.
pub(super) struct Bandwidth {
    total: Option<Arc<Budget>>,
    per_device: Option<u64>,
    devices: Mutex<HashMap<DeviceId, Weak<Budget>>>,
}

/// The budgets that one connection draws on.
#[derive(Clone, Default)]
pub(super) struct Throttle {
    total: Option<Arc<Budget>>,
    device: Option<Arc<Budget>>,
}

impl Bandwidth {
    pub(super) fn new(total: Option<u64>, per_device: Option<u64>) -> Self {
        Self { total: total.map(|rate| Arc::new(Budget::new(rate))), per_device, devices: Mutex::default() }
    }

    /// The budgets of a device, shared by all its connections.
    pub(super) fn throttle(&self, device: &DeviceId) -> Throttle {
        let budget = self.per_device.map(|rate| self.budget(device, rate));
        Throttle { total: self.total.clone(), device: budget }
    }

    fn budget(&self, device: &DeviceId, rate: u64) -> Arc<Budget> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = devices.get(device).and_then(Weak::upgrade) {
            return budget;
        }
        // Those without connections are forgotten whenever the table would grow.
        if devices.len() == devices.capacity() {
            devices.retain(|_, budget| budget.strong_count() > 0);
        }
        let budget = Arc::new(Budget::new(rate));
        devices.insert(device.clone(), Arc::downgrade(&budget));
        budget
    }
}

impl Throttle {
    /// Waits until so many bytes may go out.
    pub(super) async fn wait(&self, bytes: usize) {
        for budget in [&self.device, &self.total].into_iter().flatten() {
            let wait = budget.grant(bytes as u64, Instant::now());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_as_much_as_the_rate_and_a_small_burst() {
        let (budget, start) = (Budget::new(1000), Instant::now() + Duration::from_secs(10));
        assert_eq!(budget.grant(100, start), Duration::ZERO);
        assert_eq!(budget.grant(500, start), Duration::ZERO);
        assert_eq!(budget.grant(1000, start), Duration::from_millis(500));
        assert_eq!(budget.grant(1, start), Duration::from_millis(1500));
        assert_eq!(budget.grant(1, start + Duration::from_mins(1)), Duration::ZERO);
    }

    #[test]
    fn connections_of_a_device_share_its_budget() {
        let bandwidth = Bandwidth::new(None, Some(1000));
        let (one, other) = ("a".parse().unwrap(), "b".parse().unwrap());
        let (first, second) =
            (bandwidth.throttle(&one).device.unwrap(), bandwidth.throttle(&one).device.unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&first, &bandwidth.throttle(&other).device.unwrap()));
        assert!(Bandwidth::new(None, None).throttle(&one).total.is_none());
    }
}
