//! What a connection has lately experienced: last success, last error, remaining budget. ◇

use std::time::Duration;

use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::error::UpstreamError;

/// The longest `Retry-After` that is believed: a hostile or broken registry must not switch a connection off for a year.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_mins(15);

/// What a connection has lately experienced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// When the registry last did what was asked.
    pub last_success: Option<Timestamp>,
    /// When it last did not.
    pub last_failure: Option<Timestamp>,
    /// Why, in one line.
    pub last_error: Option<String>,
    /// The requests that are left, where the registry says so.
    pub budget: Option<Budget>,
    /// Until when the registry asked to be left alone.
    pub retry_at: Option<Timestamp>,
    /// That it has served wrong bytes; stays until the connection is made anew.
    #[serde(default)]
    pub wrong_bytes: Option<WrongBytes>,
}

/// That a registry has served bytes that were not what they were named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongBytes {
    /// When it last did.
    pub at: Timestamp,
    /// What they were and should have been, in one line.
    pub what: String,
}

/// A rate limit as `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 76;w=21600` tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Requests per window.
    pub limit: Option<u64>,
    /// Requests left in this window.
    pub remaining: u64,
    /// Length of the window.
    pub window_seconds: Option<u64>,
}

impl Health {
    /// Why the last use failed; none if it did not.
    pub fn current_error(&self) -> Option<&str> {
        let failed = self.last_failure.is_some() && self.last_failure > self.last_success;
        self.last_error.as_deref().filter(|_| failed)
    }

    /// Takes note of an answer's rate-limit headers.
    pub(super) fn note_budget(&mut self, headers: &HeaderMap) {
        if let Some(budget) = Budget::of(headers) {
            self.budget = Some(budget);
        }
    }

    /// Takes note of a success.
    pub(super) fn note_success(&mut self, now: Timestamp) {
        self.last_success = Some(now);
        self.retry_at = None;
    }

    /// Takes note of a failure.
    pub(super) fn note_failure(&mut self, error: &UpstreamError, now: Timestamp) {
        // That a name does not exist says nothing about the connection.
        if matches!(error, UpstreamError::NotFound { .. }) {
            return self.note_success(now);
        }
        if let UpstreamError::DigestMismatch { source, .. } = error {
            self.wrong_bytes = Some(WrongBytes { at: now, what: source.to_string() });
        }
        self.last_failure = Some(now);
        self.last_error = Some(error.line());
        if let Some(wait) = error.retry_after() {
            let wait = SignedDuration::try_from(wait.min(MAX_RETRY_AFTER)).unwrap_or_default();
            self.retry_at = now.checked_add(wait).ok();
        }
    }

    /// How much longer the registry asked to be left alone. Longer than can ever have been noted is a clock that was set
    /// back since.
    pub(super) fn wait(&self, now: Timestamp) -> Option<Duration> {
        let left = self.retry_at?.duration_since(now);
        Duration::try_from(left).ok().filter(|left| !left.is_zero() && *left <= MAX_RETRY_AFTER)
    }
}

impl Budget {
    /// Reads the headers; none if the registry sends none that make sense.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let (remaining, window) = limit(headers, "ratelimit-remaining")?;
        let total = limit(headers, "ratelimit-limit");
        Some(Self {
            limit: total.map(|(limit, _)| limit),
            remaining,
            window_seconds: window.or(total.and_then(|(_, window)| window)),
        })
    }
}

fn limit(headers: &HeaderMap, name: &str) -> Option<(u64, Option<u64>)> {
    let mut parts = headers.get(name)?.to_str().ok()?.split(';');
    let count = parts.next()?.trim().parse().ok()?;
    let window = parts.find_map(|part| part.trim().strip_prefix("w=")?.parse().ok());
    Some((count, window))
}

/// `Retry-After` in seconds or as an HTTP date (RFC 9110, section 10.2.3), bounded.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_not_seconds) => until(text, now)?,
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

fn until(date: &str, now: Timestamp) -> Option<Duration> {
    let parser = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true);
    let date = parser.parse_timestamp(date).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>()
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_wait_longer() {
        let now = Timestamp::from_second(1_000_000_000).unwrap();
        let wait = SignedDuration::from_secs(3);
        let health = Health { retry_at: now.checked_add(wait).ok(), ..Health::default() };
        assert_eq!(health.wait(now), Some(Duration::from_secs(3)));
        assert_eq!(health.wait(now - SignedDuration::from_hours(48)), None);
        assert_eq!(health.wait(now + wait), None);
    }

    #[test]
    fn reads_the_budget_of_docker_hub() {
        let headers = headers(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "76;w=21600")]);
        let mut health = Health::default();
        health.note_budget(&headers);
        assert_eq!(
            health.budget,
            Some(Budget { limit: Some(100), remaining: 76, window_seconds: Some(21600) })
        );
    }

    #[test]
    fn rejects_budgets_that_make_no_sense() {
        for value in ["", "many", "-1", ";w=3"] {
            let mut map = HeaderMap::new();
            map.insert("ratelimit-remaining", value.parse().unwrap());
            assert_eq!(Budget::of(&map), None, "{value}");
        }
    }

    #[test]
    fn believes_retry_after_in_both_forms_but_not_for_ever() {
        let now: Timestamp = "2026-11-20T20:00:00Z".parse().unwrap();
        for (value, seconds) in [
            ("30", Some(30)),
            ("Fri, 20 Nov 2026 20:00:30 GMT", Some(30)),
            ("Fri, 20 Nov 2020 20:00:30 GMT", Some(0)),
            ("99999999999999", Some(MAX_RETRY_AFTER.as_secs())),
            ("-1", None),
            ("soon", None),
        ] {
            let mut map = HeaderMap::new();
            map.insert("retry-after", value.parse().unwrap());
            assert_eq!(retry_after(&map, now).map(|wait| wait.as_secs()), seconds, "{value}");
        }
    }

    #[test]
    fn remembers_how_long_it_was_asked_to_wait() {
        let now: Timestamp = "2026-11-20T20:00:00Z".parse().unwrap();
        let mut health = Health::default();
        let error = UpstreamError::RateLimited {
            host: "docker.io".into(),
            retry_after: Some(Duration::from_secs(10)),
        };
        health.note_failure(&error, now);
        assert_eq!(health.wait(now), Some(Duration::from_secs(10)));
        assert_eq!(health.wait(now + SignedDuration::from_secs(10)), None);
    }
}
