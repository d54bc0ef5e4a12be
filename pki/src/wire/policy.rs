//! When and how fast a device may download and apply: windows of the day, a rate, whether a metered link will do, and how
//! long a deployment may take to come in.
//!
//! The same texts stand in a device's own settings and in signed director metadata. A window is judged in its own time
//! zone; because a small board has no database of time zones, the facade writes the zone's rule beside its name
//! (`Europe/Berlin=CET-1CEST,M3.5.0,M10.5.0/3`).

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use jiff::civil::{Time, Weekday};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is no part of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// Not a window.
    #[error(
        "{0:?} is not a window (for example \"22:00-05:00 Europe/Berlin\", \"Sat,Sun 00:00-24:00 UTC\", \
         \"Mon-Fri 01:00-04:30 +02:00\")"
    )]
    Window(String),
    /// Not the rule of a time zone.
    #[error("{0:?} is not the rule of a time zone (POSIX TZ, for example CET-1CEST,M3.5.0,M10.5.0/3)")]
    Rule(String),
    /// Not a rate.
    #[error("{0:?} is not a rate (for example 2MiB/s, 500KiB/s; at least 1KiB/s)")]
    Rate(String),
    /// Neither yes nor no.
    #[error("{0:?} is neither yes nor no")]
    Metered(String),
    /// Not a deadline.
    #[error("{0:?} is not a deadline (for example 90m, 12h, 3d; between 1s and 366d)")]
    Deadline(String),
}

/// What holds for a device; what is not said is not restricted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePolicy {
    /// When it may download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_window: Option<Window>,
    /// When it may apply what it has downloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply_window: Option<Window>,
    /// How fast it may download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<ByteRate>,
    /// Whether it may download over a link that is paid by volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metered: Option<Metered>,
    /// How long a deployment may take to come in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Deadline>,
}

impl DevicePolicy {
    /// Whether nothing is restricted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// This, and where it says nothing, the other.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            download_window: self.download_window.or_else(|| other.download_window.clone()),
            apply_window: self.apply_window.or_else(|| other.apply_window.clone()),
            rate_limit: self.rate_limit.or(other.rate_limit),
            metered: self.metered.or(other.metered),
            deadline: self.deadline.or(other.deadline),
        }
    }
}

/// Whether a link that is paid by volume will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metered {
    /// It will.
    Yes,
    /// It will not: downloads wait for another.
    No,
}

impl FromStr for Metered {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "yes" => Ok(Self::Yes),
            "no" => Ok(Self::No),
            _ => Err(PolicyError::Metered(shortened(text))),
        }
    }
}

impl fmt::Display for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "yes",
            Self::No => "no",
        })
    }
}

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteRate(NonZeroU64);

impl ByteRate {
    /// Bytes per second, at least 1024.
    pub fn bytes_per_second(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for ByteRate {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let problem = || PolicyError::Rate(shortened(text));
        let amount = text.strip_suffix("/s").ok_or_else(problem)?;
        let digits = amount.trim_end_matches(|last: char| last.is_ascii_alphabetic());
        let shift = match amount.get(digits.len()..) {
            Some("B") => 0,
            Some("KiB") => 10,
            Some("MiB") => 20,
            Some("GiB") => 30,
            _ => return Err(problem()),
        };
        let count: u64 = digits.parse().map_err(|_| problem())?;
        let bytes = count.checked_mul(1 << shift).filter(|bytes| *bytes >= MIN_RATE).ok_or_else(problem)?;
        NonZeroU64::new(bytes).map(Self).ok_or_else(problem)
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.get();
        let (shift, unit) = match bytes.trailing_zeros() {
            30.. => (30, "GiB"),
            20.. => (20, "MiB"),
            10.. => (10, "KiB"),
            _ => (0, "B"),
        };
        write!(f, "{}{unit}/s", bytes >> shift)
    }
}

impl TryFrom<String> for ByteRate {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<ByteRate> for String {
    fn from(rate: ByteRate) -> Self {
        rate.to_string()
    }
}

/// How long the contents of a deployment may take to come in, from when the device heard of it.
///
/// A span and not a date: a fleet that hears of one deployment over weeks gives each device the same chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Deadline(u32);

impl Deadline {
    /// The span.
    pub fn span(self) -> SignedDuration {
        SignedDuration::from_secs(i64::from(self.0))
    }
}

impl FromStr for Deadline {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let problem = || PolicyError::Deadline(shortened(text));
        let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
        let unit = text.get(digits.len()..).ok_or_else(problem)?;
        let (_, unit_seconds) = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(problem)?;
        let count: u32 = digits.parse().map_err(|_| problem())?;
        let seconds = count.checked_mul(*unit_seconds).filter(|seconds| (1..=MAX_DEADLINE).contains(seconds));
        seconds.map(Self).ok_or_else(problem)
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = SPAN_UNITS.iter().find(|(_, seconds)| self.0 % seconds == 0);
        let (unit, seconds) = whole.copied().unwrap_or(("s", 1));
        write!(f, "{}{unit}", self.0 / seconds)
    }
}

impl TryFrom<String> for Deadline {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<Deadline> for String {
    fn from(deadline: Deadline) -> Self {
        deadline.to_string()
    }
}

/// The largest first.
const SPAN_UNITS: [(&str, u32); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
const MAX_DEADLINE: u32 = 366 * 86_400;

/// A part of certain days: `[DAYS ]HH:MM-HH:MM[ ZONE]`. One that ends before it begins ends on the next day; one that
/// ends when it begins, or goes from 00:00 to 24:00, lasts the whole day. Without a zone it is in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    /// The days on which it opens, Monday first.
    days: [bool; 7],
    opens_minute: i16,
    closes_minute: i16,
    zone: Zone,
}

/// In which time zone a window is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Zone {
    /// UTC.
    Utc,
    /// That of the device, whichever it is.
    Local,
    /// Always so many minutes east of UTC.
    Fixed(i16),
    /// A zone of the IANA database, with its rule where that is known.
    Named {
        /// `Europe/Berlin`.
        name: String,
        /// `CET-1CEST,M3.5.0,M10.5.0/3`.
        rule: Option<String>,
    },
}

impl Zone {
    /// The zone, where no database is needed to know it.
    pub fn known(&self) -> Option<TimeZone> {
        match self {
            Self::Utc => Some(TimeZone::UTC),
            Self::Fixed(minutes) => Some(TimeZone::fixed(offset(*minutes)?)),
            Self::Named { rule: Some(rule), .. } => TimeZone::posix(rule).ok(),
            Self::Local | Self::Named { rule: None, .. } => None,
        }
    }
}

fn offset(minutes: i16) -> Option<Offset> {
    Offset::from_seconds(i32::from(minutes) * 60).ok()
}

impl Window {
    /// In which time zone it is.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// The same window with the rule of its zone beside the name.
    pub fn with_rule(self, rule: &str) -> Result<Self, PolicyError> {
        if TimeZone::posix(rule).is_err() {
            return Err(PolicyError::Rule(shortened(rule)));
        }
        let zone = match self.zone {
            Zone::Named { name, .. } => Zone::Named { name, rule: Some(rule.to_owned()) },
            Zone::Utc | Zone::Local | Zone::Fixed(_) => self.zone,
        };
        Ok(Self { zone, ..self })
    }

    /// Whether it is open at a moment, by the clocks of `zone`.
    pub fn is_open(&self, at: Timestamp, zone: &TimeZone) -> bool {
        let local = zone.to_datetime(at);
        let minute = i16::from(local.hour()) * 60 + i16::from(local.minute());
        let today = self.opens_on(local.weekday());
        if self.lasts_all_day() {
            return today;
        }
        if self.opens_minute < self.closes_minute {
            return today && (self.opens_minute..self.closes_minute).contains(&minute);
        }
        let yesterday = self.opens_on(local.weekday().previous());
        (today && minute >= self.opens_minute) || (yesterday && minute < self.closes_minute)
    }

    /// When it opens next, after a moment at which it is closed.
    pub fn next_opening(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let (hour, minute) = (self.opens_minute / 60, self.opens_minute % 60);
        let time = Time::new(hour.try_into().ok()?, minute.try_into().ok()?, 0, 0).ok()?;
        let mut date = zone.to_datetime(after).date();
        for _ in 0..=8 {
            // Where clocks are put forward over the opening, it opens late.
            let opening = zone.to_ambiguous_timestamp(date.to_datetime(time)).compatible().ok()?;
            if opening > after && self.opens_on(date.weekday()) {
                return Some(opening);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    fn lasts_all_day(&self) -> bool {
        self.opens_minute == self.closes_minute || (self.opens_minute == 0 && self.closes_minute == DAY)
    }

    fn opens_on(&self, day: Weekday) -> bool {
        let number = usize::try_from(day.to_monday_zero_offset()).unwrap_or_default();
        self.days.get(number).copied().unwrap_or_default()
    }
}

const DAY: i16 = 24 * 60;
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MIN_RATE: u64 = 1024;
const MAX_WINDOW_BYTES: usize = 200;

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

impl FromStr for Window {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let problem = || PolicyError::Window(shortened(text));
        if text.len() > MAX_WINDOW_BYTES || !text.is_ascii() {
            return Err(problem());
        }
        let words: Vec<&str> = text.split(' ').collect();
        let (days, times, zone) = match words.as_slice() {
            [times] => (None, *times, None),
            [first, second] if first.contains(':') => (None, *first, Some(*second)),
            [days, times] => (Some(*days), *times, None),
            [days, times, zone] => (Some(*days), *times, Some(*zone)),
            _ => return Err(problem()),
        };
        let (opens, closes) = times.split_once('-').ok_or_else(problem)?;
        Ok(Self {
            days: days.map_or(Some([true; 7]), parse_days).ok_or_else(problem)?,
            opens_minute: minute(opens).filter(|minute| *minute < DAY).ok_or_else(problem)?,
            closes_minute: minute(closes).ok_or_else(problem)?,
            zone: zone.map_or(Some(Zone::Utc), parse_zone).ok_or_else(problem)?,
        })
    }
}

/// `HH:MM` as minutes.
fn minute(text: &str) -> Option<i16> {
    let (hour, minute) = text.split_once(':')?;
    let digits = |text: &str| -> Option<i16> {
        let two = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        if two { text.parse().ok() } else { None }
    };
    let (hour, minute) = (digits(hour)?, digits(minute)?);
    let total = hour * 60 + minute;
    (minute < 60 && total <= DAY).then_some(total)
}

/// `Mon-Fri`, `Sat,Sun`, `Mon,Wed-Fri`.
fn parse_days(text: &str) -> Option<[bool; 7]> {
    let number = |name: &str| DAYS.iter().position(|day| *day == name);
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        // `Fri-Mon` goes over the week's end.
        let length = (last + 7 - first) % 7;
        for step in 0..=length {
            *days.get_mut((first + step) % 7)? = true;
        }
    }
    Some(days)
}

fn parse_zone(text: &str) -> Option<Zone> {
    match text {
        "UTC" | "Z" => return Some(Zone::Utc),
        "local" => return Some(Zone::Local),
        _ => {}
    }
    if let Some(east) = text.strip_prefix('+') {
        return minute(east).filter(|minutes| offset(*minutes).is_some()).map(Zone::Fixed);
    }
    if let Some(west) = text.strip_prefix('-') {
        return minute(west)
            .filter(|minutes| offset(*minutes).is_some())
            .map(|minutes| Zone::Fixed(-minutes));
    }
    let (name, rule) = text.split_once('=').map_or((text, None), |(name, rule)| (name, Some(rule)));
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte);
    let sound = name.bytes().all(known) && name.starts_with(|first: char| first.is_ascii_alphabetic());
    if !sound || rule.is_some_and(|rule| TimeZone::posix(rule).is_err()) {
        return None;
    }
    Some(Zone::Named { name: name.to_owned(), rule: rule.map(str::to_owned) })
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != [true; 7] {
            let open = DAYS.iter().zip(self.days).filter(|(_, open)| *open).map(|(day, _)| *day);
            write!(f, "{} ", open.collect::<Vec<_>>().join(","))?;
        }
        let (opens, closes) = (self.opens_minute, self.closes_minute);
        write!(f, "{:02}:{:02}-{:02}:{:02} ", opens / 60, opens % 60, closes / 60, closes % 60)?;
        match &self.zone {
            Zone::Utc => f.write_str("UTC"),
            Zone::Local => f.write_str("local"),
            Zone::Fixed(minutes) => {
                let sign = if *minutes < 0 { '-' } else { '+' };
                write!(f, "{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
            }
            Zone::Named { name, rule: None } => f.write_str(name),
            Zone::Named { name, rule: Some(rule) } => write!(f, "{name}={rule}"),
        }
    }
}

impl TryFrom<String> for Window {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> Self {
        window.to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BERLIN: &str = "Europe/Berlin=CET-1CEST,M3.5.0,M10.5.0/3";

    fn window(text: &str) -> Window {
        text.parse().unwrap()
    }

    fn open(text: &str, at: &str) -> bool {
        let window = window(text);
        window.is_open(at.parse().unwrap(), &window.zone().known().unwrap())
    }

    #[test]
    fn opens_and_closes_by_the_clocks_of_its_zone() {
        let night = format!("22:00-05:00 {BERLIN}");
        // Winter: UTC+1.
        assert!(open(&night, "2026-11-21T21:00:00Z"));
        assert!(!open(&night, "2026-11-21T20:59:59Z"));
        assert!(open(&night, "2026-11-22T03:59:59Z"));
        assert!(!open(&night, "2026-11-22T04:00:00Z"));
        // Summer: UTC+2.
        assert!(open(&night, "2026-07-21T20:00:00Z"));
        assert!(!open(&night, "2026-07-21T03:00:00Z"));
        assert!(open("02:00-04:00 +05:30", "2026-11-21T20:30:00Z"));
        assert!(open("02:00-04:00", "2026-11-21T02:00:00Z"));
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        // 2026-11-20 is a Friday.
        let weekend = "Fri-Sat 22:00-04:00 UTC";
        assert!(open(weekend, "2026-11-20T23:00:00Z"));
        assert!(open(weekend, "2026-11-22T03:00:00Z"), "Saturday's night");
        assert!(!open(weekend, "2026-11-20T03:00:00Z"), "Thursday's night");
        assert!(!open(weekend, "2026-11-22T23:00:00Z"), "Sunday's night");
        assert!(open("Sun 00:00-24:00 UTC", "2026-11-22T12:00:00Z"));
        assert!(!open("Sun 00:00-00:00 UTC", "2026-11-23T00:00:00Z"));
    }

    #[test]
    fn knows_when_it_opens_next() {
        let next = |text: &str, after: &str| {
            let window = window(text);
            let zone = window.zone().known().unwrap();
            window.next_opening(after.parse().unwrap(), &zone).unwrap().to_string()
        };
        assert_eq!(next(&format!("22:00-05:00 {BERLIN}"), "2026-11-21T12:00:00Z"), "2026-11-21T21:00:00Z");
        assert_eq!(next("Mon 01:00-02:00 UTC", "2026-11-23T02:30:00Z"), "2026-11-30T01:00:00Z");
        // On 2026-03-29 clocks go from 02:00 to 03:00.
        assert_eq!(next(&format!("02:30-04:00 {BERLIN}"), "2026-03-28T12:00:00Z"), "2026-03-29T01:30:00Z");
    }

    #[test]
    fn reads_back_what_it_writes() {
        let berlin = format!("22:00-05:00 {BERLIN}");
        for text in [
            "22:00-05:00 UTC",
            "Mon,Tue,Fri 00:00-24:00 local",
            "00:30-00:30 -03:30",
            "01:00-02:00 America/Argentina/Buenos_Aires",
            &berlin,
        ] {
            assert_eq!(window(text).to_string(), text);
            let json = serde_json::to_string(&window(text)).unwrap();
            assert_eq!(serde_json::from_str::<Window>(&json).unwrap(), window(text));
        }
        for text in ["2MiB/s", "1KiB/s", "1GiB/s", "1500B/s"] {
            assert_eq!(text.parse::<ByteRate>().unwrap().to_string(), text);
        }
        for text in ["1s", "90s", "90m", "12h", "3d", "366d"] {
            let deadline: Deadline = text.parse().unwrap();
            assert_eq!(deadline.to_string(), text);
            assert_eq!(serde_json::from_value::<Deadline>(json!(text)).unwrap(), deadline);
        }
        assert_eq!("48h".parse::<Deadline>().unwrap().to_string(), "2d");
        let named = window("22:00-05:00 Europe/Berlin").with_rule("CET-1CEST,M3.5.0,M10.5.0/3");
        assert_eq!(named.unwrap(), window(&berlin));
    }

    #[test]
    fn rejects_what_is_no_window_or_rate() {
        let long = "x".repeat(10_000);
        for text in [
            "",
            "22:00",
            "22-05",
            "24:00-05:00",
            "22:00-25:00",
            "22:60-23:00",
            "2:00-3:00",
            "Mo 22:00-05:00",
            "Mon- 22:00-05:00",
            "22:00-05:00 Europe/Berlin=nonsense",
            "22:00-05:00 ../../etc/passwd",
            "22:00-05:00 +99:00",
            "22:00-05:00  UTC",
            "22:00-05:00 UTC now",
            "22:00\u{2013}05:00",
            &long,
        ] {
            assert!(text.parse::<Window>().is_err(), "{text:?}");
        }
        for text in ["", "2MiB", "0B/s", "1B/s", "MiB/s", "2MB/s", "-1KiB/s", "99999999999999999999GiB/s"] {
            assert!(text.parse::<ByteRate>().is_err(), "{text:?}");
        }
        assert!("maybe".parse::<Metered>().is_err());
        for text in ["", "12", "h", "0h", "-1h", "1.5h", "12 h", "12H", "1y", "367d", "99999999999h"] {
            assert!(text.parse::<Deadline>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_a_device_is_told_goes_before_what_its_group_is_told() {
        let rate = |text: &str| text.parse().ok();
        let none = DevicePolicy::default();
        let group = DevicePolicy { rate_limit: rate("1MiB/s"), metered: Some(Metered::No), ..none.clone() };
        let device = DevicePolicy { rate_limit: rate("2MiB/s"), ..none.clone() };
        let both = device.clone().or(&group);
        assert_eq!((both.rate_limit, both.metered), (device.rate_limit, Some(Metered::No)));
        assert!(none.is_empty() && !both.is_empty());
    }

    #[test]
    fn reads_policies_of_newer_facades() {
        let policy: DevicePolicy = serde_json::from_str(r#"{"metered":"no","moon":"full"}"#).unwrap();
        assert_eq!(policy.metered, Some(Metered::No));
    }
}
