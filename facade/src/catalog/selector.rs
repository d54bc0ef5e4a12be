//! Which devices: a small grammar over groups, labels and platforms. ◇
//!
//! ```text
//! selector = "all" | term *( "," term )            every term must hold
//! term     = key "=" value | key "!=" value        (also "==")
//!          | key "in" "(" value *( "," value ) ")"
//!          | key "notin" "(" value *( "," value ) ")"
//!          | key | "!" key                         has it, or has it not
//! key      = "group" | "id" | "os" | "arch" | "variant" | the name of a label
//! ```
//!
//! A device has several groups: `group=a` holds where one of them is `a`, `group!=a` where none is. What a device has not
//! reported yet (its platform) it has not.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::devices::{LabelKey, is_value};

/// Longest selector in bytes.
const MAX_BYTES: usize = 2048;
const MAX_TERMS: usize = 32;
/// What every device has, besides its labels.
const BUILT_IN: [&str; 5] = ["arch", "group", "id", "os", "variant"];

/// Which devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Vec<Term>);

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// What is looked at.
    pub key: String,
    /// What must be so.
    pub test: Test,
}

/// What must be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// One of these values is there.
    In(BTreeSet<String>),
    /// None of these values is there.
    NotIn(BTreeSet<String>),
    /// Any value is there.
    Exists,
    /// No value is there.
    Absent,
}

/// The text selects nothing that we understand.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no selector: {reason} (for example group=berlin,arch=arm64; stage in (canary,test); !retired; all)"
)]
pub struct SelectorError {
    text: String,
    reason: String,
}

impl Selector {
    /// Every device.
    pub const ALL: Self = Self(Vec::new());

    /// Its conditions, all of which must hold.
    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    /// Whether a device is selected; `has` says which of its values of a key hold a test.
    pub fn matches(&self, has: impl Fn(&str, &dyn Fn(&str) -> bool) -> bool) -> bool {
        self.0.iter().all(|term| match &term.test {
            Test::In(values) => has(&term.key, &|value| values.contains(value)),
            Test::NotIn(values) => !has(&term.key, &|value| values.contains(value)),
            Test::Exists => has(&term.key, &|_| true),
            Test::Absent => !has(&term.key, &|_| true),
        })
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let refused = |reason: String| SelectorError { text: text.chars().take(200).collect(), reason };
        if text.len() > MAX_BYTES {
            return Err(refused(format!("it is longer than {MAX_BYTES} bytes")));
        }
        if text.trim() == "all" {
            return Ok(Self::ALL);
        }
        let terms: Result<Vec<Term>, String> = split(text).into_iter().map(term).collect();
        let terms = terms.map_err(&refused)?;
        if terms.len() > MAX_TERMS {
            return Err(refused(format!("it has more than {MAX_TERMS} terms")));
        }
        Ok(Self(terms))
    }
}

/// The terms: what stands between commas that are not in parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut from, mut inside) = (0, false);
    for (at, character) in text.char_indices() {
        match character {
            '(' => inside = true,
            ')' => inside = false,
            ',' if !inside => {
                terms.extend(text.get(from..at));
                from = at + 1;
            }
            _ => {}
        }
    }
    terms.extend(text.get(from..));
    terms
}

fn term(text: &str) -> Result<Term, String> {
    let text = text.trim();
    if let Some(open) = text.find('(') {
        let (head, list) = text.split_at(open);
        let list = list.strip_prefix('(').and_then(|list| list.strip_suffix(')'));
        let list = list.ok_or_else(|| format!("the list in {text:?} does not end with ')'"))?;
        let values: Result<BTreeSet<String>, String> = list.split(',').map(value).collect();
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(name), Some("in"), None) => Ok(Term { key: key(name)?, test: Test::In(values?) }),
            (Some(name), Some("notin"), None) => Ok(Term { key: key(name)?, test: Test::NotIn(values?) }),
            _ => Err(format!("before a list stands a key and \"in\" or \"notin\", not {head:?}")),
        };
    }
    let one = |text: &str| value(text).map(|value| BTreeSet::from([value]));
    if let Some((name, other)) = text.split_once("!=") {
        return Ok(Term { key: key(name)?, test: Test::NotIn(one(other)?) });
    }
    if let Some((name, same)) = text.split_once('=') {
        let same = same.strip_prefix('=').unwrap_or(same);
        return Ok(Term { key: key(name)?, test: Test::In(one(same)?) });
    }
    match text.strip_prefix('!') {
        Some(name) => Ok(Term { key: key(name)?, test: Test::Absent }),
        None => Ok(Term { key: key(text)?, test: Test::Exists }),
    }
}

fn key(text: &str) -> Result<String, String> {
    let text = text.trim();
    if BUILT_IN.contains(&text) {
        return Ok(text.to_owned());
    }
    let key: LabelKey = text.parse().map_err(|error: super::devices::LabelError| error.to_string())?;
    Ok(key.as_str().to_owned())
}

fn value(text: &str) -> Result<String, String> {
    let text = text.trim();
    if is_value(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("{:?} cannot be a value", text.chars().take(80).collect::<String>()))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("all");
        }
        for (index, term) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            term.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, test } = self;
        let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(",");
        match test {
            Test::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values)),
            Test::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", list(values)),
            Test::In(values) => write!(f, "{key} in ({})", list(values)),
            Test::NotIn(values) => write!(f, "{key} notin ({})", list(values)),
            Test::Exists => f.write_str(key),
            Test::Absent => write!(f, "!{key}"),
        }
    }
}

pki::serde_as_text!(Selector);

#[cfg(test)]
mod tests {
    use super::*;

    /// A device in two groups, with one label, on ARM.
    const DEVICE: [(&str, &str); 4] =
        [("group", "berlin"), ("group", "fleet"), ("stage", "canary"), ("arch", "arm64")];

    fn selects(text: &str) -> bool {
        let selector: Selector = text.parse().unwrap_or_else(|error| panic!("{error}"));
        selector.matches(|key, test| DEVICE.iter().any(|(name, value)| *name == key && test(value)))
    }

    #[test]
    fn selects_by_group_label_and_platform() {
        for text in [
            "all",
            "group=berlin",
            "group == fleet",
            "group=berlin,arch=arm64",
            "stage in (canary, test)",
            "stage notin (prod)",
            "stage!=prod",
            "stage",
            "!retired",
            "group=berlin,group=fleet",
        ] {
            assert!(selects(text), "{text}");
        }
        for text in [
            "group=hall",
            "group!=fleet",
            "stage in (test)",
            "!stage",
            "retired",
            "os=linux",
            "group=berlin,arch=amd64",
        ] {
            assert!(!selects(text), "{text}");
        }
    }

    #[test]
    fn reads_back_what_it_writes() {
        for text in ["all", "group=berlin,arch!=arm64", "a in (x,y),b notin (x,y),c,!d"] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.to_string(), text);
            let json = serde_json::to_string(&selector).unwrap();
            assert_eq!(serde_json::from_str::<Selector>(&json).unwrap(), selector);
        }
    }

    #[test]
    fn rejects_what_selects_nothing_that_it_understands() {
        for text in [
            "",
            ",",
            "a,",
            "a=",
            "=a",
            "a=b c",
            "a in",
            "a in (",
            "a in ()",
            "a in (b",
            "a is (b)",
            "a in (b) c",
            "all,a",
            "a=<script>",
            "in (a)",
            "a = (b)",
            &"a,".repeat(2000),
        ] {
            assert!(text.parse::<Selector>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_selector_that_reads_back_or_is_refused(text in "[a-c=!(), ]{0,20}") {
            if let Ok(selector) = text.parse::<Selector>() {
                proptest::prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
            }
        }
    }
}
