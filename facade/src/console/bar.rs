//! Many devices as one bar, each share of them in its colour.

use std::collections::BTreeMap;
use std::fmt;

/// States of devices in a rollout, in the order in which the bar has them, with the class that gives them their colour.
const STATES: [(&str, &str); 8] = [
    ("healthy", "good"),
    ("applying", "near"),
    ("verifying", "near"),
    ("downloading", "near"),
    ("waiting", "wait"),
    ("pending", "none"),
    ("rolled-back", "bad"),
    ("failed", "bad"),
];

/// The bar's parts: where each begins and how long it is, in tenths of a percent, and its class.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bar(Vec<(u64, u64, &'static str)>);

impl Bar {
    /// Of so many, such shares.
    pub(super) fn of(all: u64, shares: &[(u64, &'static str)]) -> Self {
        let mut parts = Vec::new();
        let mut from = 0;
        for (count, class) in shares.iter().filter(|(count, _)| *count > 0) {
            let width = (count * 1000).checked_div(all).unwrap_or(0);
            // One of a thousand devices is still to be seen.
            parts.push((from, width.max(1), *class));
            from += width;
        }
        Self(parts)
    }

    /// Of the devices of a rollout or a wave, by their states.
    pub(super) fn of_states(all: u64, states: &BTreeMap<String, u64>) -> Self {
        let shares = STATES.map(|(state, class)| (states.get(state).copied().unwrap_or(0), class));
        Self::of(all, &shares)
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "<svg class=\"wave\" viewBox=\"0 0 1000 20\" preserveAspectRatio=\"none\" aria-hidden=\"true\">",
        )?;
        for (from, width, class) in &self.0 {
            write!(f, "<rect class=\"{class}\" x=\"{from}\" width=\"{width}\" height=\"20\"/>")?;
        }
        f.write_str("</svg>")
    }
}

// Made of numbers and our own words.
impl askama::filters::HtmlSafe for Bar {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_devices() {
        let states = [("healthy", 1), ("failed", 1), ("pending", 2)];
        let states = states.map(|(state, count)| (state.to_owned(), count)).into();
        assert_eq!(Bar::of_states(4, &states).0, [(0, 250, "good"), (250, 500, "none"), (750, 250, "bad")]);
        assert_eq!(Bar::of_states(0, &states).0.first(), Some(&(0, 1, "good")));
        assert_eq!(
            Bar::of(20_000, &[(19_999, "good"), (0, "wait"), (1, "bad")]).0,
            [(0, 999, "good"), (999, 1, "bad")]
        );
    }
}
