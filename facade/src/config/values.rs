//! How the text of a setting is read. Each complaint names the text and says what would do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::operator_door::TrustedProxies;

pub(super) fn text(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(format!("{text:?} is empty or has control characters"));
    }
    Ok(text.to_owned())
}

pub(super) fn some_text(some: &str) -> Result<Option<String>, String> {
    text(some).map(Some)
}

/// Values that are separated by commas.
pub(super) fn list(text: &str) -> Result<Vec<String>, String> {
    let values: Vec<String> = text.split(',').map(|value| value.trim().to_owned()).collect();
    if values.iter().any(|value| value.is_empty() || value.chars().any(char::is_control)) {
        return Err(format!("{text:?} is not a list of values separated by commas"));
    }
    Ok(values)
}

/// An address that nobody on the way can listen to: https, or http on this machine.
pub(super) fn some_origin(text: &str) -> Result<Option<String>, String> {
    if !is_private_url(text) || text.contains(['?', '#']) {
        return Err(format!("{text:?} is not an https address (http is for loopback addresses only)"));
    }
    Ok(Some(text.to_owned()))
}

/// An address of a collector; plain http is for one on the way out of this network.
pub(super) fn some_web_url(text: &str) -> Result<Option<String>, String> {
    let uri = text.parse::<http::Uri>().ok().filter(|uri| uri.host().is_some());
    match uri.as_ref().and_then(http::Uri::scheme_str) {
        Some("http" | "https") if !text.contains(['?', '#']) => Ok(Some(text.to_owned())),
        _ => Err(format!("{text:?} is not an http or https address")),
    }
}

pub(super) fn percent(text: &str) -> Result<u8, String> {
    let number: Option<u8> = text.strip_suffix('%').unwrap_or(text).parse().ok();
    number.filter(|number| *number <= 100).ok_or_else(|| format!("{text:?} is not a number from 0 to 100"))
}

/// Whether nobody on the way can read or change what goes there: TLS, or this machine itself.
pub(crate) fn is_private_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else {
        return false;
    };
    let loopback = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match uri.scheme_str() {
        Some("https") => uri.host().is_some(),
        Some("http") => loopback,
        _ => false,
    }
}

pub(super) fn some_path(text: &str) -> Result<Option<PathBuf>, String> {
    if text.is_empty() {
        return Err("the path is empty".to_owned());
    }
    Ok(Some(PathBuf::from(text)))
}

pub(super) fn some_https_url(text: &str) -> Result<Option<String>, String> {
    let authority = text.strip_prefix("https://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    match authority {
        Some(authority) if !authority.is_empty() && !authority.contains(['/', '?', '#', '@', ' ']) => {
            Ok(Some(format!("https://{authority}")))
        }
        _ => Err(format!(
            "{text:?} is not an https address without a path (for example https://facade.example:8443)"
        )),
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address with a port (for example 127.0.0.1:8080 or [::]:8443)")
    })
}

pub(super) fn proxies(text: &str) -> Result<TrustedProxies, String> {
    text.parse()
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is not true or false"))
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| format!("{text:?} is not a number above zero"))
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len()))
}

/// Reads a length of time such as `90s`, `15m`, `24h` or `30d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let seconds = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        "d" => Some(86_400),
        _ => None,
    };
    let total = number.parse::<u64>().ok().zip(seconds).and_then(|(number, unit)| number.checked_mul(unit));
    match total {
        Some(total) if total > 0 && total <= 100 * 365 * 86_400 => Ok(Duration::from_secs(total)),
        _ => Err(format!("{text:?} is not a length of time (for example 90s, 15m, 24h or 30d)")),
    }
}

pub(super) fn some_duration(text: &str) -> Result<Option<Duration>, String> {
    duration(text).map(Some)
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let shift = match unit {
        "" | "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        "TiB" => Some(40),
        _ => None,
    };
    let bytes =
        number.parse::<u64>().ok().zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| format!("{text:?} is not a size (for example 512MiB or 50GiB)"))
}

pub(super) fn some_size(text: &str) -> Result<Option<u64>, String> {
    size(text).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes_and_durations() {
        assert_eq!(size("50GiB"), Ok(50 << 30));
        assert_eq!(size("12"), Ok(12));
        assert_eq!(duration("15m"), Ok(Duration::from_mins(15)));
        for text in ["", "0s", "1", "-1s", "1w", "s", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(size("1PB").is_err());
    }
}
