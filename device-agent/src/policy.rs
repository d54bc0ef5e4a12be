//! Whether the device may download or apply now: what its own settings say, and what the facade signed for it.
//!
//! Both hold: the facade cannot open a window that the device's operator closed, nor the other way round. What cannot be
//! judged, because a time zone or the time itself is not known, waits and says so.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pki::wire::{ByteRate, Deadline, DevicePolicy, Metered, Window, Zone};

/// What the agent is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Fetch contents.
    Download,
    /// Hand a release over.
    Apply,
}

/// The two policies that hold for a device.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// In its own settings.
    pub local: &'a DevicePolicy,
    /// In the director's metadata.
    pub signed: &'a DevicePolicy,
    /// Whether the way out is paid by volume, and which interface it is, as far as known.
    pub metered_by: Option<&'a str>,
}

impl Rules<'_> {
    /// What speaks against a step at a moment; nothing where it may be done.
    pub fn hindrance(&self, step: Step, now: Timestamp) -> Option<String> {
        let policies = [self.local, self.signed];
        if let (Step::Download, Some(interface)) = (step, self.metered_by) {
            if policies.iter().any(|policy| policy.metered == Some(Metered::No)) {
                return Some(format!("a link that is not metered ({interface} is)"));
            }
        }
        policies.iter().find_map(|policy| match step {
            Step::Download => closed("download", policy.download_window.as_ref()?, now),
            Step::Apply => closed("apply", policy.apply_window.as_ref()?, now),
        })
    }

    /// The lower of the two rates.
    pub fn rate(&self) -> Option<ByteRate> {
        [self.local, self.signed].iter().filter_map(|policy| policy.rate_limit).min()
    }

    /// The earlier of the two deadlines.
    pub fn deadline(&self) -> Option<Deadline> {
        [self.local, self.signed].iter().filter_map(|policy| policy.deadline).min()
    }
}

fn closed(name: &str, window: &Window, now: Timestamp) -> Option<String> {
    let zone = match zone(window.zone()) {
        Ok(zone) => zone,
        Err(problem) => {
            return Some(format!("the {name} window {window}, which cannot be judged: {problem}"));
        }
    };
    if window.is_open(now, &zone) {
        return None;
    }
    Some(match window.next_opening(now, &zone) {
        Some(opening) => format!("the {name} window {window}, which opens at {opening}"),
        None => format!("the {name} window {window}"),
    })
}

/// The clocks of a zone: by its rule where that is known, else by the database of the device.
pub fn zone(zone: &Zone) -> Result<TimeZone, String> {
    if let Some(known) = zone.known() {
        return Ok(known);
    }
    match zone {
        Zone::Named { name, .. } => TimeZone::get(name).map_err(|_| {
            format!(
                "this device has no time zone data for {name}; install tzdata, or write the zone as UTC, +01:00 or \
                 with its rule ({name}=CET-1CEST,M3.5.0,M10.5.0/3)"
            )
        }),
        Zone::Utc | Zone::Local | Zone::Fixed(_) => TimeZone::try_system().map_err(|error| format!("the time zone of this device is not known ({error})")),
    }
}

/// Interfaces that are usually paid by volume.
pub const METERED_INTERFACES: &str = "wwan* ppp* rmnet* usb*";

/// The interface that leads out, if its name matches one of `patterns` (`*` at the end stands for anything).
pub fn metered_by(routes: &str, routes_v6: &str, patterns: &[String]) -> Option<String> {
    let matches = |name: &str| {
        patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        })
    };
    way_out(routes, routes_v6).filter(|name| matches(name))
}

/// The interface of the default route with the lowest metric (proc(5): `net/route`, `net/ipv6_route`).
fn way_out(routes: &str, routes_v6: &str) -> Option<String> {
    let v4 = routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, destination, _, _, _, _, metric, mask, ..] = fields.as_slice() else { return None };
        let default = *destination == "00000000" && *mask == "00000000";
        default.then(|| Some((metric.parse::<u64>().ok()?, (*name).to_owned())))?
    });
    let v6 = routes_v6.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [destination, length, _, _, _, metric, _, _, _, name] = fields.as_slice() else { return None };
        let default = *length == "00" && destination.bytes().all(|byte| byte == b'0') && *name != "lo";
        default.then(|| Some((u64::from_str_radix(metric, 16).ok()?, (*name).to_owned())))?
    });
    v4.min().or_else(|| v6.min()).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "2026-11-21T12:00:00Z";

    fn policy(json: serde_json::Value) -> DevicePolicy {
        serde_json::from_value(json).unwrap()
    }

    fn hindrance(local: serde_json::Value, signed: serde_json::Value, step: Step) -> Option<String> {
        let (local, signed) = (policy(local), policy(signed));
        let rules = Rules { local: &local, signed: &signed, metered_by: Some("wwan0") };
        rules.hindrance(step, AT.parse().unwrap())
    }

    #[test]
    fn both_policies_hold_and_each_for_its_step() {
        use serde_json::json;
        let closed = json!({"download_window": "22:00-05:00 UTC"});
        let open = json!({"download_window": "10:00-14:00 UTC"});
        assert_eq!(hindrance(json!({}), json!({}), Step::Download), None);
        assert_eq!(hindrance(open.clone(), json!({}), Step::Download), None);
        for (local, signed) in [(open.clone(), closed.clone()), (closed.clone(), open)] {
            let told = hindrance(local, signed, Step::Download).unwrap();
            assert!(told.contains("opens at 2026-11-21T22:00:00Z"), "{told}");
        }
        assert_eq!(hindrance(closed, json!({}), Step::Apply), None);
        let told = hindrance(json!({}), json!({"apply_window": "13:00-13:30 +00:00"}), Step::Apply).unwrap();
        assert!(told.starts_with("the apply window"), "{told}");
        let told = hindrance(json!({"metered": "no"}), json!({"metered": "yes"}), Step::Download).unwrap();
        assert!(told.contains("wwan0"), "{told}");
        assert_eq!(hindrance(json!({"metered": "no"}), json!({}), Step::Apply), None);
    }

    #[test]
    fn a_zone_that_nobody_knows_waits_and_says_what_to_do() {
        let unknown = serde_json::json!({"apply_window": "00:00-24:00 Mars/Olympus"});
        let told = hindrance(serde_json::json!({}), unknown, Step::Apply).unwrap();
        assert!(told.contains("no time zone data for Mars/Olympus") && told.contains("tzdata"), "{told}");
    }

    #[test]
    fn finds_the_way_out_and_whether_it_is_metered() {
        let header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let route = |name: &str, destination: &str, metric: u32, mask: &str| {
            format!("{name}\t{destination}\t010200C0\t0003\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
        };
        let patterns: Vec<String> = METERED_INTERFACES.split(' ').map(str::to_owned).collect();
        let wired = route("eth0", "00000000", 100, "00000000");
        let modem = route("wwan0", "00000000", 700, "00000000");
        let local = route("wwan1", "000200C0", 0, "00FFFFFF");
        assert_eq!(metered_by(&format!("{header}{local}{modem}{wired}"), "", &patterns), None);
        assert_eq!(metered_by(&format!("{header}{local}{modem}"), "", &patterns), Some("wwan0".into()));
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 fe80 00000400 1 0 00000003 ppp0\n{zero} 00 {zero} 00 0 ffffffff 1 0 00200200 lo\n"
        );
        assert_eq!(metered_by(header, &v6, &patterns), Some("ppp0".into()));
        assert_eq!(metered_by("", "junk\n", &patterns), None);
    }
}
