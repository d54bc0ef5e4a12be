//! Whose word about the address of a caller is taken: the reverse proxies that the operator named.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use axum::http::HeaderMap;
use ipnet::IpNet;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The networks of the proxies in front of the operator door; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl FromStr for TrustedProxies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let networks = text.split(',').map(str::trim).map(|part| {
            let address = || part.parse::<IpAddr>().map(IpNet::from).ok();
            part.parse::<IpNet>().ok().or_else(address).ok_or_else(|| {
                format!("{part:?} is neither an address nor a network (for example 127.0.0.1, 10.0.0.0/8)")
            })
        });
        networks.collect::<Result<_, _>>().map(Self)
    }
}

impl TrustedProxies {
    /// The address that a request comes from: that of the connection, or, where that is a trusted proxy, the last one in
    /// `X-Forwarded-For` that is none. What stands before it could have been written by anybody.
    pub(super) fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut address = peer.to_canonical();
        let lines = headers.get_all(FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok());
        let hops: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
        for hop in hops.into_iter().rev() {
            if !self.0.iter().any(|network| network.contains(&address)) {
                break;
            }
            let Some(before) = read(hop) else { break };
            address = before.to_canonical();
        }
        address
    }
}

/// An address, which some proxies write with a port.
fn read(hop: &str) -> Option<IpAddr> {
    let bare = hop.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| hop.parse().ok().map(|address: SocketAddr| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(trusted: &str, peer: &str, lines: &[&'static str]) -> String {
        let trusted = if trusted.is_empty() { TrustedProxies::default() } else { trusted.parse().unwrap() };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, axum::http::HeaderValue::from_static(line));
        }
        trusted.caller(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn takes_nobodys_word_by_default() {
        assert_eq!(caller("", "192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(caller("10.0.0.0/8", "192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
    }

    #[test]
    fn takes_the_last_address_that_is_no_trusted_proxy() {
        let two = "127.0.0.1, 10.0.0.0/8";
        assert_eq!(caller(two, "127.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(caller(two, "127.0.0.1", &["203.0.113.9, 198.51.100.7", "10.1.2.3"]), "198.51.100.7");
        assert_eq!(caller(two, "::ffff:127.0.0.1", &["[2001:db8::7]:4711"]), "2001:db8::7");
        assert_eq!(caller(two, "127.0.0.1", &["198.51.100.7:80"]), "198.51.100.7");
    }

    #[test]
    fn stays_with_what_is_known_where_the_header_says_nothing_that_can_be_read() {
        assert_eq!(caller("127.0.0.1", "127.0.0.1", &[]), "127.0.0.1");
        assert_eq!(caller("127.0.0.1", "127.0.0.1", &["198.51.100.7, unknown"]), "127.0.0.1");
    }

    #[test]
    fn rejects_what_is_no_network() {
        for text in ["", "proxy.example", "10.0.0.0/33", "127.0.0.1,,"] {
            assert!(text.parse::<TrustedProxies>().is_err(), "{text:?}");
        }
    }
}
