//! How often one address may fail to enroll.
//!
//! Secrets have 256 bits, so this keeps nobody from guessing; it keeps one address from spending our time. Each address
//! has its own allowance, so no address can lock out another; when too many addresses are at it, new ones go unlimited.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

/// One failure a second in the long run.
const INTERVAL: SignedDuration = SignedDuration::from_secs(1);
/// A hall of devices behind one address may come at once.
const BURST: i32 = 60;
const MAX_ADDRESSES: usize = 65_536;

/// Allowances by address (the generic cell rate algorithm: one time per address).
#[derive(Debug, Default)]
pub(crate) struct Limit(Mutex<HashMap<IpAddr, Timestamp>>);

impl Limit {
    /// Takes one from the allowance of an address; otherwise tells for how long there is none.
    pub(crate) fn take(&self, address: IpAddr, now: Timestamp) -> Result<(), SignedDuration> {
        let address = network(address);
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() >= MAX_ADDRESSES && !times.contains_key(&address) {
            times.retain(|_, time| *time > now);
            if times.len() >= MAX_ADDRESSES {
                return Ok(());
            }
        }
        let mut time = times.get(&address).copied().unwrap_or(now).max(now);
        let mut ahead = time.duration_since(now);
        if ahead > INTERVAL * BURST {
            // Only a clock that was set back leads here; nobody is locked out until it has caught up.
            (time, ahead) = (now, SignedDuration::ZERO);
        }
        if ahead > INTERVAL * (BURST - 1) {
            return Err(ahead - INTERVAL * (BURST - 1));
        }
        times.insert(address, time.saturating_add(INTERVAL).unwrap_or(time));
        Ok(())
    }

    /// Gives back what a success took.
    pub(crate) fn give_back(&self, address: IpAddr) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(time) = times.get_mut(&network(address)) {
            *time = time.saturating_sub(INTERVAL).unwrap_or(*time);
        }
    }
}

/// One customer of a provider holds a whole /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn of_ten_thousand_attempts_a_minute_few_get_through_and_others_are_not_locked_out() {
        let limit = Limit::default();
        let mut admitted = 0;
        for attempt in 0..10_000 {
            let time = now() + SignedDuration::from_millis(attempt * 6);
            admitted += i32::from(limit.take(address("192.0.2.1"), time).is_ok());
        }
        assert!((110..=121).contains(&admitted), "{admitted}");
        assert_eq!(limit.take(address("192.0.2.2"), now()), Ok(()));
    }

    #[test]
    fn tells_when_to_come_again_and_means_it() {
        let limit = Limit::default();
        let wait = loop {
            if let Err(wait) = limit.take(address("192.0.2.1"), now()) {
                break wait;
            }
        };
        assert!(limit.take(address("192.0.2.1"), now() + wait).is_ok());
    }

    #[test]
    fn successes_cost_nothing() {
        let limit = Limit::default();
        for _ in 0..1000 {
            limit.take(address("192.0.2.1"), now()).unwrap();
            limit.give_back(address("192.0.2.1"));
        }
    }

    #[test]
    fn an_address_of_ipv6_is_its_network_and_one_of_ipv4_itself() {
        assert_eq!(network(address("2001:db8:1:2:3:4:5:6")), address("2001:db8:1:2::"));
        assert_eq!(network(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }

    #[test]
    fn a_clock_that_was_set_back_locks_nobody_out() {
        let limit = Limit::default();
        limit.take(address("192.0.2.1"), now() + SignedDuration::from_hours(1000)).unwrap();
        assert!(limit.take(address("192.0.2.1"), now()).is_ok());
    }

    #[test]
    fn a_full_table_lets_new_addresses_in() {
        let limit = Limit::default();
        for number in 0..u32::try_from(MAX_ADDRESSES).unwrap() {
            limit.take(IpAddr::V4(number.into()), now()).unwrap();
        }
        for _ in 0..100 {
            assert!(limit.take(address("192.0.2.1"), now()).is_ok());
        }
        let later = now() + SignedDuration::from_secs(5);
        limit.take(address("192.0.2.1"), later).unwrap();
        assert_eq!(limit.0.lock().unwrap().len(), 1);
    }
}
