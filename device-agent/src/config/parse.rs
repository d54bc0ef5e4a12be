//! How each kind of setting is read from text.

use std::path::PathBuf;
use std::time::Duration;

use pki::oci::Platform;
use pki::x509::{KeyKind, KeyKindError};

use super::{LogFormat, Sink};
use crate::identity::keys::{Place, TokenUri, UriError};
use crate::program::Program;
use crate::runtime::containerd::{Identifier, IdentifierError};

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    // What is relative is relative to where the agent was started, and stays that.
    std::path::absolute(text).map_err(|error| format!("{text:?} is not a path: {error}"))
}

/// containerd itself writes its address as a path or as `unix://` and the path.
pub(super) fn socket(text: &str) -> Result<PathBuf, String> {
    path(text.strip_prefix("unix://").unwrap_or(text))
}

pub(super) fn sink(text: &str) -> Result<Sink, String> {
    if text == "containerd" {
        return Ok(Sink::Containerd);
    }
    match text.strip_prefix("oci-layout:") {
        Some(directory) if !directory.is_empty() => {
            std::path::absolute(directory).map(Sink::OciLayout).map_err(|error| error.to_string())
        }
        _ => Err(format!("{text:?} is neither containerd nor oci-layout:DIR")),
    }
}

pub(super) fn key_place(text: &str) -> Result<Place, String> {
    if text == "file" {
        return Ok(Place::File);
    }
    if let Some(name) = text.strip_prefix("credential:") {
        return name.parse().map(Place::Credential);
    }
    if !text.starts_with("pkcs11:") {
        return Err(format!("{text:?} is none of file, credential:NAME, pkcs11:…"));
    }
    let uri: TokenUri = text.parse().map_err(|error: UriError| error.to_string())?;
    if cfg!(feature = "pkcs11") {
        Ok(Place::Token(uri))
    } else {
        Err("this device-agent was built without the feature pkcs11".to_owned())
    }
}

pub(super) fn key_kind(text: &str) -> Result<KeyKind, String> {
    text.parse().map_err(|error: KeyKindError| error.to_string())
}

pub(super) fn identifier(text: &str) -> Result<Identifier, String> {
    text.parse().map_err(|error: IdentifierError| error.to_string())
}

pub(super) fn platform(text: &str) -> Result<Option<Platform>, String> {
    text.parse().map(Some).map_err(|error: pki::oci::platform::PlatformError| error.to_string())
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("{text:?} is not a duration (for example 30s, 5m, 2h, 1d)");
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let seconds: u64 = match text.get(digits.len()..) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        Some("d") => 86400,
        _ => return Err(problem()),
    };
    let count: u64 = digits.parse().map_err(|_| problem())?;
    match count.checked_mul(seconds) {
        Some(total) if total > 0 && total <= 366 * 86400 => Ok(Duration::from_secs(total)),
        _ => Err(format!("{text:?} is not between 1s and 366d")),
    }
}

/// The path of a program, or its words as a JSON list.
pub(super) fn program(text: &str) -> Result<Program, String> {
    if !text.starts_with('[') {
        return Program::new(vec![text.to_owned()]);
    }
    let words = serde_json::from_str(text);
    Program::new(words.map_err(|_| format!("{text:?} is not a list of texts"))?)
}

pub(super) fn http(text: &str) -> Result<http::Uri, String> {
    let uri: Option<http::Uri> = text.parse().ok();
    uri.filter(|uri| uri.scheme_str() == Some("http") && uri.authority().is_some())
        .ok_or_else(|| format!("{text:?} is not an address that starts with http://"))
}

/// Names, as a JSON list or between blanks.
pub(super) fn names(text: &str) -> Result<Vec<String>, String> {
    if text.starts_with('[') {
        return serde_json::from_str(text).map_err(|_| format!("{text:?} is not a list of texts"));
    }
    let names = super::names(text);
    if names.is_empty() { Err("names nothing; none* matches no interface".to_owned()) } else { Ok(names) }
}

/// `host:port`.
pub(super) fn address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(1..) => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not host:port")),
    }
}

pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let problem = || format!("{text:?} is not a number of bytes (for example 1024, 64KiB, 1GiB)");
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..) {
        Some("" | "B") => 0,
        Some("KiB") => 10,
        Some("MiB") => 20,
        Some("GiB") => 30,
        _ => return Err(problem()),
    };
    let count: u64 = digits.parse().map_err(|_| problem())?;
    count.checked_mul(1 << shift).ok_or_else(problem)
}

pub(super) fn number(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{text:?} is not a number from {least} to {most}")),
    }
}

pub(super) fn level(text: &str) -> Result<tracing::Level, String> {
    match text {
        "error" => Ok(tracing::Level::ERROR),
        "warn" => Ok(tracing::Level::WARN),
        "info" => Ok(tracing::Level::INFO),
        "debug" => Ok(tracing::Level::DEBUG),
        "trace" => Ok(tracing::Level::TRACE),
        _ => Err(format!("{text:?} is not one of error, warn, info, debug, trace")),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "plain" => Ok(LogFormat::Plain),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is not one of auto, plain, json")),
    }
}

/// The known word that a mistyped one most likely means.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, a row at a time.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, from_byte) in from.bytes().enumerate() {
        let mut diagonal = index;
        let mut left = index + 1;
        let mut next = vec![left];
        for (to_byte, above) in to.bytes().zip(row.iter().skip(1).copied()) {
            let substituted = diagonal + usize::from(from_byte != to_byte);
            left = substituted.min(left + 1).min(above + 1);
            next.push(left);
            diagonal = above;
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations_and_bytes() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("17"), Ok(17));
        for text in ["", "5", "m", "-5m", "0s", "5 m", "99999999999999999999d", "400d", "5é"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
        for text in ["", "KiB", "1KB", "99999999999GiB"] {
            assert!(bytes(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn reads_where_a_key_is() {
        assert_eq!(key_place("file"), Ok(Place::File));
        assert_eq!(key_place("credential:device-key").unwrap().to_string(), "credential:device-key");
        for text in
            ["", "tpm", "credential:", "credential:../key", "credential:a/b", "pkcs11:", "pkcs11:object=x"]
        {
            assert!(key_place(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn nearest_finds_slips_of_the_finger_only() {
        let known = ["state_dir", "sink", "stall"];
        assert_eq!(nearest("statedir", &known), Some("state_dir"));
        assert_eq!(nearest("stal", &known), Some("stall"));
        assert_eq!(nearest("completely_else", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
