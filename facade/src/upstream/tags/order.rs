//! The order of tags: newest-likely-first. ◇
//!
//! Registries list tags by name and say nothing about age, so this is a guess, the same for everyone:
//!
//! 1. names that mean "the newest": `latest`, `stable`, `lts`, `main`, `master`, `edge`, `nightly`;
//! 2. versions (`1.27.3`, `v2`, `4.20-alpine`): numbers as numbers, higher first, a missing number counting as zero;
//!    a release before its pre-releases, `rc` before `beta` before `alpha` before `dev`, `rc.10` before `rc.2`; more
//!    numbers before fewer (`4.20.0` before `4.20`); a variant (`-alpine`) directly after its base;
//! 3. dates (`20251120`, `2025-11-20`, `20251120T101500`), later first: as versions they would beat every version;
//! 4. families with a prefix (`web-1.2`), family by family, each in the order of versions;
//! 5. all other names, in alphabetical order; those that look like commits last.

use std::cmp::{Ordering, Reverse};

use pki::oci::Tag;

/// Names that mean "the newest", in the order in which they are shown.
const PINNED: [&str; 7] = ["latest", "stable", "lts", "main", "master", "edge", "nightly"];

/// Words that make a pre-release, and how close to the release they are.
const STAGES: [(&str, u8); 15] = [
    ("dev", 0),
    ("snapshot", 0),
    ("nightly", 0),
    ("canary", 0),
    ("alpha", 1),
    ("a", 1),
    ("beta", 2),
    ("b", 2),
    ("preview", 3),
    ("pre", 3),
    ("milestone", 3),
    ("m", 3),
    ("cr", 4),
    ("rc", 4),
    ("c", 4),
];
const RELEASE: u8 = 5;

/// Sorts tags newest-likely-first. The order is total: equal only for equal tags.
pub(super) fn newest_likely_first(tags: &mut [Tag]) {
    tags.sort_by_cached_key(|tag| Key::of(tag.as_str()));
}

/// The place of a tag; its derived order is the rule at the head of this file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Pinned(usize),
    Version(Version),
    Date(Reverse<Digits>, Variant, Box<str>),
    Family(Box<str>, Version),
    Name(Box<str>),
    Commit(Box<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    numbers: Reverse<Numbers>,
    stage: Reverse<u8>,
    stage_numbers: Reverse<Numbers>,
    count: Reverse<usize>,
    variant: Variant,
    text: Box<str>,
}

impl Key {
    fn of(tag: &str) -> Self {
        if let Some(place) = PINNED.iter().position(|name| *name == tag) {
            return Self::Pinned(place);
        }
        if let Some((digits, rest)) = date(tag) {
            return Self::Date(Reverse(digits), Variant::of(rest), tag.into());
        }
        if let Some(version) = Version::of(tag, tag) {
            return Self::Version(version);
        }
        if is_commit(tag) {
            return Self::Commit(tag.into());
        }
        if let Some((prefix, version)) = family(tag) {
            return Self::Family(prefix.into(), version);
        }
        Self::Name(tag.into())
    }
}

impl Version {
    /// Reads `[v]NUMBER(.NUMBER)*[pre-release][variant]`; `tag` is the whole tag, to tell equal versions apart.
    fn of(text: &str, tag: &str) -> Option<Self> {
        let bare = text.strip_prefix(['v', 'V']).unwrap_or(text);
        if is_commit(text) {
            return None;
        }
        let (numbers, rest) = numbers(bare)?;
        // `1a2b3c` is a name; `1rc1`, `1-x`, `1_x` are versions.
        let (stage, stage_numbers, rest) = match stage(rest) {
            Some((stage, numbers, rest)) => (stage, numbers, rest),
            None if rest.is_empty() || rest.starts_with(['-', '_', '.']) => (RELEASE, Vec::new(), rest),
            None => return None,
        };
        Some(Self {
            count: Reverse(numbers.len()),
            numbers: Reverse(Numbers(numbers)),
            stage: Reverse(stage),
            stage_numbers: Reverse(Numbers(stage_numbers)),
            variant: Variant::of(rest),
            text: tag.into(),
        })
    }
}

/// A number of any length, without leading zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Digits(Box<str>);

impl Digits {
    fn of(digits: &str) -> Self {
        Self(digits.trim_start_matches('0').into())
    }
}

impl Ord for Digits {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Digits {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Numbers compared one by one, a missing one counting as zero.
#[derive(Clone, Debug)]
struct Numbers(Vec<Digits>);

impl Ord for Numbers {
    fn cmp(&self, other: &Self) -> Ordering {
        let zero = Digits::of("");
        let longer = self.0.len().max(other.0.len());
        (0..longer)
            .map(|place| self.0.get(place).unwrap_or(&zero).cmp(other.0.get(place).unwrap_or(&zero)))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }
}

impl PartialOrd for Numbers {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Numbers {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Numbers {}

/// What follows the version: nothing first, then by words, numbers in them as numbers and higher first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Variant(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    Word(Box<str>),
    Number(Reverse<Digits>),
}

impl Variant {
    fn of(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let digits = leading_digits(rest);
            let length = if digits > 0 {
                digits
            } else {
                rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len())
            };
            let (piece, after) = rest.split_at(length);
            pieces.push(if digits > 0 {
                Piece::Number(Reverse(Digits::of(piece)))
            } else {
                Piece::Word(piece.into())
            });
            rest = after;
        }
        Self(pieces)
    }
}

fn leading_digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// Numbers between dots at the start, and what comes after them.
fn numbers(text: &str) -> Option<(Vec<Digits>, &str)> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        let (digits, after) = rest.split_at(leading_digits(rest));
        if digits.is_empty() {
            return None;
        }
        found.push(Digits::of(digits));
        match after.strip_prefix('.') {
            Some(next) if leading_digits(next) > 0 => rest = next,
            _ => return Some((found, after)),
        }
    }
}

/// A pre-release at the start of what follows the numbers: `-rc.1`, `rc1`, `_beta-2`, `-alpha`.
fn stage(text: &str) -> Option<(u8, Vec<Digits>, &str)> {
    let bare = text.strip_prefix(['-', '_', '.']).unwrap_or(text);
    let letters = bare.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (word, rest) = bare.split_at(letters);
    let (_, stage) = STAGES.iter().find(|(name, _)| word.eq_ignore_ascii_case(name))?;
    let after = rest.strip_prefix(['.', '-', '_']).unwrap_or(rest);
    match numbers(after) {
        // The separator belongs to the number only if a number follows: `-rc-alpine` has none.
        Some((found, tail)) if is_boundary(tail) => Some((*stage, found, tail)),
        // A single letter without a number is a variant (`1.0-b`), not a stage.
        _ if is_boundary(rest) && word.len() > 1 => Some((*stage, Vec::new(), rest)),
        _ => None,
    }
}

fn is_boundary(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with(['-', '_', '.'])
}

/// A date as 8, 12 or 14 digits, or `YYYY-MM-DD`, with a year that can be one; and what follows it.
fn date(tag: &str) -> Option<(Digits, &str)> {
    let dashed = tag.get(..10).filter(|text| {
        let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        shape == "0000-00-00"
    });
    if let Some(dashed) = dashed {
        let digits = dashed.replace('-', "");
        let rest = tag.get(10..).unwrap_or_default();
        return (is_day(&digits) && is_boundary(rest)).then(|| (moment(&digits, ""), rest));
    }
    let length = leading_digits(tag);
    let (digits, rest) = tag.split_at(length);
    if !matches!(length, 8 | 12 | 14) || !is_day(digits) {
        return None;
    }
    // `20251120T101500`, `20251120-101500`
    let time = rest.strip_prefix(['T', 't', '-', '.', '_']).unwrap_or_default();
    let time_length = leading_digits(time);
    let (time, after) = time.split_at(time_length);
    let after = after.strip_prefix(['Z', 'z']).unwrap_or(after);
    if length == 8 && matches!(time_length, 4 | 6) && is_boundary(after) {
        return Some((moment(digits, time), after));
    }
    is_boundary(rest).then(|| (moment(digits, ""), rest))
}

/// Day and time as one number of 14 digits.
fn moment(digits: &str, time: &str) -> Digits {
    Digits::of(&format!("{:0<14}", format!("{digits}{time}")))
}

fn is_day(digits: &str) -> bool {
    let number = |from: usize, to: usize| digits.get(from..to).and_then(|part| part.parse::<u16>().ok());
    matches!((number(0, 4), number(4, 6), number(6, 8)), (Some(1990..=2199), Some(1..=12), Some(1..=31)))
}

/// Hexadecimal with a letter and a digit, as long as commits are shown.
fn is_commit(tag: &str) -> bool {
    let hex = tag.strip_prefix("sha-").unwrap_or(tag);
    (7..=40).contains(&hex.len())
        && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && hex.bytes().any(|byte| byte.is_ascii_alphabetic())
        && hex.bytes().any(|byte| byte.is_ascii_digit())
}

/// `PREFIX-VERSION` with a prefix that starts with a letter.
fn family(tag: &str) -> Option<(&str, Version)> {
    if !tag.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    tag.match_indices(['-', '_']).find_map(|(place, _)| {
        let (prefix, rest) = (tag.get(..place)?, tag.get(place + 1..)?);
        Some((prefix, Version::of(rest, tag)?))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(tags: &[&str]) -> Vec<String> {
        let mut tags: Vec<Tag> = tags.iter().map(|tag| tag.parse().unwrap()).collect();
        newest_likely_first(&mut tags);
        tags.iter().map(|tag| tag.as_str().to_owned()).collect()
    }

    /// Each list is already in its order; it is shuffled by sorting it by name first.
    fn assert_order(tags: &[&str]) {
        let mut shuffled = tags.to_vec();
        shuffled.sort_unstable();
        assert_eq!(sorted(&shuffled), tags);
    }

    #[test]
    fn puts_the_newest_likely_first() {
        assert_order(&["latest", "stable", "4.20.1", "4.20.0", "4.20", "4.9", "4", "3.99.99"]);
        assert_order(&["v1.10.0", "v1.9.0", "v1.9.0-rc.10", "v1.9.0-rc.2", "v1.9.0-beta.3", "v1.9.0-alpha"]);
        assert_order(&[
            "1.27.3",
            "1.27.3-alpine",
            "1.27.3-alpine3.20",
            "1.27.3-alpine3.9",
            "1.27",
            "1.27-alpine",
        ]);
        assert_order(&["2.0.0", "2.0.0-rc1", "2.0.0-rc1-alpine", "2.0.0b2", "2.0.0a1", "2.0.0-dev", "1.9"]);
        assert_order(&["1.0.0", "1.0", "1.0.0-rc.1", "1.0-beta"]);
        assert_order(&["4.21", "4.20", "20251120", "20251119-1", "20250101", "2024-12-31"]);
        assert_order(&["20251120T101500Z", "20251120T0900", "20251120"]);
        assert_order(&[
            "3.0",
            "api-2.0",
            "api-1.0",
            "web-1.10",
            "web-1.9",
            "develop",
            "feature-x",
            "0a1b2c3d",
        ]);
        assert_order(&["24.04", "24.04-20251101", "22.04", "jammy", "noble"]);
        assert_order(&["100000000000000000000000000000000000001", "99999999999999999999999999999999"]);
    }

    #[test]
    fn takes_years_and_builds_for_what_they_are() {
        assert!(matches!(Key::of("20251120"), Key::Date(..)));
        assert!(matches!(Key::of("99999999"), Key::Version(_)));
        assert!(matches!(Key::of("12345678"), Key::Version(_)));
        assert!(matches!(Key::of("2024.1.3"), Key::Version(_)));
        assert!(matches!(Key::of("deadbee1"), Key::Commit(_)));
        assert!(matches!(Key::of("sha-0a1b2c3"), Key::Commit(_)));
        assert!(matches!(Key::of("1234567"), Key::Version(_)));
        assert!(matches!(Key::of("3a2b"), Key::Name(_)));
    }

    fn tag() -> impl Strategy<Value = String> {
        prop_oneof![
            "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}",
            "v?[0-9]{1,3}(\\.[0-9]{1,3}){0,3}(-?(rc|beta|alpha)\\.?[0-9]{0,2})?(-alpine)?",
            "(19|20|21)[0-9]{6}([-T][0-9]{4,6})?",
            "[a-f0-9]{7,10}",
            "(latest|main|web|api)(-[0-9.]{1,6})?",
        ]
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in tag(), b in tag(), c in tag()) {
            let (x, y, z) = (Key::of(&a), Key::of(&b), Key::of(&c));
            prop_assert_eq!(x.cmp(&y), y.cmp(&x).reverse());
            prop_assert_eq!(x == y, a == b);
            if x <= y && y <= z {
                prop_assert!(x <= z);
            }
        }

        #[test]
        fn a_release_comes_before_its_pre_releases(
            base in "v?[0-9]{1,3}(\\.[0-9]{1,4}){1,3}", stage in "(-|_)?(rc|beta|alpha|dev)(\\.?[0-9]{1,3})?",
        ) {
            let early = format!("{base}{stage}");
            prop_assert!(Key::of(&base) < Key::of(&early));
        }

        #[test]
        fn numbers_are_numbers(major in 0_u64..999, minor in 0_u64..u64::MAX - 1, more in 1_u64..1000) {
            let higher = minor.saturating_add(more);
            let (newer, older) = (format!("{major}.{higher}"), format!("{major}.{minor}"));
            prop_assert!(Key::of(&newer) < Key::of(&older));
        }

        #[test]
        fn the_order_does_not_depend_on_the_order_of_arrival(mut tags in prop::collection::vec(tag(), 0..40)) {
            let tag = |tag: &String| tag.parse::<Tag>().ok();
            let mut forward: Vec<Tag> = tags.iter().filter_map(tag).collect();
            tags.reverse();
            let mut backward: Vec<Tag> = tags.iter().filter_map(tag).collect();
            newest_likely_first(&mut forward);
            newest_likely_first(&mut backward);
            prop_assert_eq!(forward, backward);
        }
    }
}
