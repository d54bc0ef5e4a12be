//! How much the device door takes, and the count of what it has taken.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How much the device door takes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Open connections from one address; from one network of 64 bits with IPv6.
    pub connections_per_address: usize,
    /// Until a handshake is done.
    pub handshake: Duration,
    /// Until the head of a request is there; with HTTP/1.1 also how long an idle connection is kept.
    pub header: Duration,
    /// How long a connection without requests is kept.
    pub idle: Duration,
    /// How long a reader that takes nothing is kept; it will resume.
    pub stuck: Duration,
    /// After which age a connection takes no further requests.
    pub age: Duration,
    /// How long requests may go on after the facade was told to stop.
    pub drain: Duration,
    /// HTTP/2 streams of one connection.
    pub streams: u32,
    /// Bytes of content per second to all devices together; no limit if absent.
    pub bandwidth: Option<u64>,
    /// Bytes of content per second to one device; no limit if absent.
    pub bandwidth_per_device: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_address: 4_000,
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(30),
            idle: Duration::from_mins(1),
            stuck: Duration::from_mins(10),
            age: Duration::from_mins(10),
            drain: Duration::from_secs(30),
            streams: 64,
            bandwidth: None,
            bandwidth_per_device: None,
        }
    }
}

/// The connections that are open.
pub(super) struct Places {
    total: usize,
    per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place; free again when it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            total: limits.connections,
            per_address: limits.connections_per_address,
            taken: Mutex::default(),
        }
    }

    /// A place for one more connection, if there is one.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = network(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.total >= self.total {
            return None;
        }
        let here = taken.by_address.entry(address).or_default();
        if *here >= self.per_address {
            return None;
        }
        *here += 1;
        taken.total += 1;
        Some(Place { places: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total = taken.total.saturating_sub(1);
        if let Entry::Occupied(mut here) = taken.by_address.entry(self.address) {
            *here.get_mut() -= 1;
            if *here.get() == 0 {
                here.remove();
            }
        }
    }
}

/// Whoever has one IPv6 address has 2⁶⁴ of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_connections_by_address_and_in_all() {
        let limits = Limits { connections: 3, connections_per_address: 2, ..Limits::default() };
        let places = Arc::new(Places::new(&limits));
        let take = |address: &str| places.take(address.parse().unwrap());
        let first = take("192.0.2.1");
        let second = take("::ffff:192.0.2.1");
        assert!(first.is_some() && second.is_some());
        assert!(take("192.0.2.1").is_none());
        let third = take("2001:db8::1");
        assert!(third.is_some() && take("192.0.2.9").is_none());
        drop(second);
        assert!(take("192.0.2.1").is_some());
        drop((first, third));
        let (a, b) = (take("2001:db8::1"), take("2001:db8::2"));
        assert!(a.is_some() && b.is_some() && take("2001:db8::3").is_none());
        drop((a, b));
        assert!(places.taken.lock().unwrap().by_address.is_empty());
    }
}
