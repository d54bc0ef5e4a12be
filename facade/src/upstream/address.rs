//! Which hosts and addresses a connection may reach. ◇
//!
//! A registry chooses redirects, token realms and, through its name servers, addresses. Without this rule it could make
//! the facade fetch from the cloud's metadata service or from the operator's own network (SSRF). The rule is applied to
//! the very address that is then dialled, so a name that changes its mind in between gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pki::oci::RegistryHost;

use super::target::{Scheme, Target};

/// What an address is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Reachable by anyone.
    Public,
    /// Loopback, or someone's private network.
    Local,
    /// Never a registry: metadata services, link-local, multicast and what has no host behind it.
    Never,
}

/// Where one connection may go.
#[derive(Clone, Debug)]
pub(super) enum Policy {
    /// A registry that people connected; it, and not we, chooses the targets.
    Connection(Reach),
    /// An endpoint that is fixed in this code or in the facade's own configuration.
    Fixed,
}

/// What a connection says about where it may go.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    /// The registry's own name, without port.
    pub(super) domain: Box<str>,
    pub(super) plain_http: bool,
    pub(super) allow_private: bool,
    pub(super) token_host: Option<Box<str>>,
}

const NO_PLAIN_HTTP: &str = "plain HTTP is only for a connection made with --plain-http";
const NO_PUBLIC_PLAIN_HTTP: &str = "plain HTTP is only for loopback and private addresses";
const NO_PRIVATE: &str = "loopback and private addresses need a connection made with --allow-private";
const NEVER: &str = "link-local, metadata and reserved addresses are never reached";

impl Policy {
    /// Whether a request may go to the target at all, before anyone asks for its address.
    pub(super) fn permits(&self, target: &Target) -> Result<(), &'static str> {
        match self {
            Self::Fixed => Ok(()),
            Self::Connection(reach) => match target.scheme() {
                Scheme::Https => Ok(()),
                Scheme::Http if reach.may_speak_plainly_to(target) => Ok(()),
                Scheme::Http => Err(NO_PLAIN_HTTP),
            },
        }
    }

    /// Whether the target may be reached at this address.
    pub(super) fn permits_address(&self, target: &Target, address: IpAddr) -> Result<(), &'static str> {
        let Self::Connection(reach) = self else {
            return Ok(());
        };
        match (class(address), target.scheme()) {
            (Class::Never, _) => Err(NEVER),
            (Class::Public, Scheme::Https) => Ok(()),
            (Class::Public, Scheme::Http) => Err(NO_PUBLIC_PLAIN_HTTP),
            (Class::Local, _) if reach.may_be_private(target) => Ok(()),
            (Class::Local, _) => Err(NO_PRIVATE),
        }
    }

    /// Whether the connection's credentials may go to this token server.
    ///
    /// A registry that names a foreign realm collects the password of everyone who follows (CVE-2026-33540). So it must
    /// be the registry's own host, a host above or below it in the same name tree (whose owner owns both), a pair that
    /// is publicly known, or a host that the operator named.
    pub(super) fn trusts_realm(&self, realm: &Target) -> bool {
        let Self::Connection(reach) = self else {
            return true;
        };
        let (registry, host) = (&*reach.domain, realm.host());
        host == registry
            || reach.token_host.as_deref() == Some(host)
            || is_below(registry, host)
            || is_below(host, registry)
            || KNOWN_REALMS.contains(&(registry, host))
    }
}

/// Registries whose token server has a name of its own.
const KNOWN_REALMS: [(&str, &str); 1] = [("registry-1.docker.io", "auth.docker.io")];

/// Whether `name` is a subdomain of `parent`, and `parent` no top-level domain or address.
fn is_below(name: &str, parent: &str) -> bool {
    let named = name.parse::<IpAddr>().is_err() && parent.parse::<IpAddr>().is_err();
    let below = name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    named && below && parent.contains('.')
}

impl Reach {
    pub(super) fn of(
        host: &RegistryHost,
        plain_http: bool,
        allow_private: bool,
        token_host: Option<&str>,
    ) -> Self {
        let domain = if host.is_docker_hub() { host.api_authority() } else { host.domain() };
        Self {
            domain: domain.to_ascii_lowercase().into(),
            plain_http,
            allow_private,
            token_host: token_host.map(|host| host.to_ascii_lowercase().into()),
        }
    }

    fn may_speak_plainly_to(&self, target: &Target) -> bool {
        self.plain_http && self.may_be_private(target)
    }

    /// With `--plain-http` the registry itself, which people named, may be private; with `--allow-private` all may.
    fn may_be_private(&self, target: &Target) -> bool {
        self.allow_private || (self.plain_http && target.host() == &*self.domain)
    }
}

fn class(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    }
}

fn class_v4(address: Ipv4Addr) -> Class {
    let [a, b, c, _] = address.octets();
    let never = a == 0
        || a >= 224 // multicast, reserved, broadcast
        || address.is_link_local()
        || (a, b, c) == (192, 0, 0) // IETF assignments; Oracle's metadata service
        || address.is_documentation()
        || (a == 198 && (b == 18 || b == 19)) // benchmarks
        || METADATA_V4.contains(&address);
    let carrier = a == 100 && (64..128).contains(&b);
    if never {
        Class::Never
    } else if address.is_loopback() || address.is_private() || carrier {
        Class::Local
    } else {
        Class::Public
    }
}

/// Metadata services outside the link-local range: Azure, Alibaba.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];

/// Metadata services of AWS and Google within the private range.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

fn class_v6(address: Ipv6Addr) -> Class {
    if let Some(inner) = embedded_v4(address) {
        return class_v4(inner);
    }
    let [first, second, ..] = address.segments();
    if address.is_loopback() {
        return Class::Local;
    }
    if METADATA_V6.contains(&address) {
        return Class::Never;
    }
    if address.is_unique_local() {
        return Class::Local;
    }
    // Of all the rest only 2000::/3 is global unicast, without its documentation, Teredo and benchmark prefixes.
    let special = first == 0x2001 && (second == 0xdb8 || second < 0x200);
    if first & 0xe000 == 0x2000 && !special { Class::Public } else { Class::Never }
}

/// The IPv4 address that an IPv6 address only wraps: mapped, NAT64 (RFC 6052), 6to4 (RFC 3056).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = |from: usize| {
        let octets = address.octets();
        let found = octets.get(from..from + 4).and_then(|four| <[u8; 4]>::try_from(four).ok());
        found.map(Ipv4Addr::from)
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => octets(12),
        [0x2002, ..] => octets(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(host: &str, plain_http: bool, allow_private: bool) -> Policy {
        let host: RegistryHost = host.parse().unwrap();
        Policy::Connection(Reach::of(&host, plain_http, allow_private, Some("auth.corp.net")))
    }

    fn target(url: &str) -> Target {
        Target::parse(url).unwrap()
    }

    #[test]
    fn rejects_addresses_where_no_registry_is_whatever_the_connection_says() {
        let policy = policy("r.example", true, true);
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.0.192",
            "168.63.129.16",
            "100.100.100.200",
            "198.18.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "ff02::1",
            "::",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::169.254.169.254",
            "fec0::1",
            "2001:db8::1",
            "100::1",
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(
                policy.permits_address(&target("https://r.example/"), address),
                Err(NEVER),
                "{address}"
            );
        }
    }

    #[test]
    fn rejects_private_addresses_unless_the_connection_allows_them() {
        for address in [
            "127.0.0.1",
            "127.8.8.8",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "::1",
            "fd12::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
        ] {
            let address: IpAddr = address.parse().unwrap();
            let registry = target("https://r.example/");
            assert_eq!(
                policy("r.example", false, false).permits_address(&registry, address),
                Err(NO_PRIVATE),
                "{address}"
            );
            assert_eq!(policy("r.example", false, true).permits_address(&registry, address), Ok(()));
            // Plain HTTP opens the registry's own host only.
            let plain = policy("r.example", true, false);
            assert_eq!(plain.permits_address(&target("http://r.example:5000/"), address), Ok(()));
            assert_eq!(plain.permits_address(&target("https://cdn.example/"), address), Err(NO_PRIVATE));
        }
    }

    #[test]
    fn rejects_plain_http_to_public_addresses_and_from_connections_without_it() {
        let public: IpAddr = "93.184.216.34".parse().unwrap();
        let plain = policy("r.example", true, true);
        assert_eq!(plain.permits_address(&target("http://r.example/"), public), Err(NO_PUBLIC_PLAIN_HTTP));
        assert_eq!(plain.permits_address(&target("https://r.example/"), public), Ok(()));
        assert_eq!(
            policy("r.example", false, true).permits(&target("http://r.example/")),
            Err(NO_PLAIN_HTTP)
        );
        assert_eq!(policy("r.example", true, false).permits(&target("http://other/")), Err(NO_PLAIN_HTTP));
        assert_eq!(plain.permits(&target("http://other/")), Ok(()));
        for address in ["2606:4700::1", "1.1.1.1", "64:ff9b::101:101"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(
                policy("r.example", false, false).permits_address(&target("https://x/"), address),
                Ok(())
            );
        }
    }

    #[test]
    fn sends_credentials_only_to_token_servers_of_the_same_owner() {
        for (registry, realm, trusted) in [
            ("r.example.com", "https://r.example.com/token", true),
            ("r.example.com:5000", "https://r.example.com:5001/token", true),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            ("example.com", "https://auth.example.com/token", true),
            ("docker.io", "https://auth.docker.io/token", true),
            ("r.example.com", "https://auth.corp.net/token", true),
            ("r.example.com", "https://auth.example.com/token", false),
            ("r.example.com", "https://evil.net/token", false),
            ("r.example.com", "https://xr.example.com/token", false),
            ("r.example.com", "https://com/token", false),
            ("127.0.0.1:5000", "https://1/token", false),
            ("127.0.0.1:5000", "https://127.0.0.1:5001/token", true),
            ("docker.io", "https://auth.docker.io.evil.net/token", false),
            ("mine.azurecr.io", "https://evil.azurecr.io/oauth2/token", false),
        ] {
            assert_eq!(
                policy(registry, false, false).trusts_realm(&target(realm)),
                trusted,
                "{registry} {realm}"
            );
        }
    }
}
