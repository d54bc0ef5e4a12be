//! The way to the facade, step by step: proxy, name, connection, TLS, and whether it knows us. The first step that fails
//! is told with its remedy; those behind it are not tried.

use std::net::SocketAddr;
use std::time::Duration;

use http::header;
use jiff::{SignedDuration, Timestamp};
use tokio::net::TcpStream;

use super::{Doctor, exit};
use crate::cli::Exit;
use crate::clock::Clock;
use crate::config::Config;
use crate::facade_client::{Ask, ClientError, FacadeClient, TlsCause};
use crate::identity::Identity;

/// Longest time for one step.
const STEP: Duration = Duration::from_secs(10);
/// Two clocks that are further apart are not both right.
const TOLERATED: SignedDuration = SignedDuration::from_mins(5);

impl Doctor {
    pub(super) async fn examine_facade(&mut self, config: &Config, clock: &Clock, identity: &Identity) {
        let url = &identity.facade().url;
        let proxy = config.proxy.as_ref().filter(|proxy| proxy.is_for(url.host()));
        let (host, port) = proxy.map_or((url.host(), url.port()), |proxy| (proxy.host(), proxy.port()));
        match proxy {
            None => self.ok("proxy", "none, the facade is reached directly"),
            Some(_) => self.ok("proxy", format!("{host}:{port}")),
        }
        let Some(addresses) = self.examine_name(host, port).await else {
            return;
        };
        if !self.examine_connection(&addresses).await {
            return;
        }
        let client = match identity.client(clock, config.proxy.as_ref()) {
            Ok(client) => client,
            Err(error) => return self.fail("tls", Exit::Failed, crate::error_chain(&error)),
        };
        if self.examine_session(&client, &url.to_string()).await {
            self.examine_standing(&client, clock, identity).await;
        }
    }

    async fn examine_name(&mut self, host: &str, port: u16) -> Option<Vec<SocketAddr>> {
        // An IPv6 address stands in brackets in a URL, and without them here.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let found = match tokio::time::timeout(STEP, tokio::net::lookup_host((bare, port))).await {
            Ok(Ok(addresses)) => Ok(addresses.collect::<Vec<_>>()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", STEP.as_secs())),
        };
        match found {
            Ok(addresses) if !addresses.is_empty() => {
                let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
                self.ok("dns", format!("{bare} is {}", shown.join(", ")));
                Some(addresses)
            }
            Ok(_) => {
                self.fail("dns", Exit::Unreachable, format!("{bare} has no address"));
                self.remedy("look at /etc/resolv.conf, and whether the name is right");
                None
            }
            Err(reason) => {
                self.fail("dns", Exit::Unreachable, format!("{bare}: {reason}"));
                self.remedy("look at /etc/resolv.conf, and whether the name is right");
                None
            }
        }
    }

    async fn examine_connection(&mut self, addresses: &[SocketAddr]) -> bool {
        let mut reasons = Vec::new();
        for address in addresses {
            match tokio::time::timeout(STEP, TcpStream::connect(address)).await {
                Ok(Ok(_)) => {
                    self.ok("tcp", format!("{address} answers"));
                    return true;
                }
                Ok(Err(error)) => reasons.push(format!("{address}: {error}")),
                Err(_) => reasons.push(format!("{address}: no answer within {} s", STEP.as_secs())),
            }
        }
        self.fail("tcp", Exit::Unreachable, reasons.join("; "));
        self.remedy("is it running, and does a firewall or a missing proxy setting stand between?");
        false
    }

    async fn examine_session(&mut self, client: &FacadeClient, url: &str) -> bool {
        let Err(error) = client.reach().await else {
            self.ok("tls", format!("a session with {url}, and nobody in between"));
            return true;
        };
        let check = if matches!(error, ClientError::Proxy { .. }) { "proxy" } else { "tls" };
        // The line of a proxy that was only looked at gives way to what it did.
        self.findings.retain(|finding| finding.check != check);
        self.fail(check, exit(&error), crate::error_chain(&error));
        self.remedy(remedy(&error));
        false
    }

    async fn examine_standing(&mut self, client: &FacadeClient, clock: &Clock, identity: &Identity) {
        match client.ask(&Ask::get("/v2/")).await {
            Ok(answer) => {
                self.ok("facade", "knows this device");
                let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
                self.examine_time(date, clock.unchecked());
            }
            Err(error) => {
                self.fail("facade", exit(&error), crate::error_chain(&error));
                self.remedy(format!("ask its operator: facade device show {}", identity.device()));
            }
        }
    }
}

impl Doctor {
    /// Two clocks side by side. Neither decides by this: the agent believes signed times only.
    fn examine_time(&mut self, date: Option<&str>, here: Timestamp) {
        let parsed =
            date.and_then(|date| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok());
        let Some(there) = parsed else { return };
        let apart = here.duration_since(there);
        if apart.abs() <= TOLERATED {
            return self.ok("time", "agrees with the facade's");
        }
        let (minutes, way) = (apart.abs().as_mins(), if apart.is_negative() { "behind" } else { "ahead of" });
        self.warn("time", format!("the clock here is {minutes} min {way} the facade's ({there})"));
        self.remedy("whichever is wrong, start NTP there: timedatectl set-ntp true");
    }
}

/// What helps when no session comes about.
#[expect(clippy::wildcard_enum_match_arm, reason = "what has no remedy of its own has the common one")]
fn remedy(error: &ClientError) -> &'static str {
    let ClientError::Tls { cause, .. } = error else {
        return match error {
            ClientError::Proxy { .. } => {
                "look at user and password in the proxy setting, and whether it may CONNECT to the facade"
            }
            _ => "look at the network between here and the facade",
        };
    };
    match cause {
        TlsCause::Intercepted { .. } => "have the facade exempted from TLS inspection",
        TlsCause::WrongName => "enroll with the name that the facade was set up with",
        TlsCause::ServerTime => "set the clock: timedatectl set-ntp true",
        TlsCause::NotTls => "is there another service at this address?",
        _ => "ask the facade's operator",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Outcome;

    #[test]
    fn clocks_that_disagree_are_told_apart() {
        let here: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        for (date, told) in [
            ("Fri, 20 Nov 2026 12:03:00 GMT", "agrees"),
            ("Fri, 20 Nov 2026 14:00:00 GMT", "120 min behind"),
            ("Thu, 19 Nov 2026 12:00:00 GMT", "1440 min ahead of"),
        ] {
            let mut doctor = Doctor { findings: Vec::new(), exit: Exit::Success };
            doctor.examine_time(Some(date), here);
            let found = &doctor.findings[0];
            assert!(found.detail.contains(told), "{date}: {}", found.detail);
            assert!((found.outcome == Outcome::Ok) == (told == "agrees"));
        }
        let mut doctor = Doctor { findings: Vec::new(), exit: Exit::Success };
        doctor.examine_time(Some("yesterday"), here);
        doctor.examine_time(None, here);
        assert!(doctor.findings.is_empty());
    }
}
