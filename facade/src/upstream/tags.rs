//! Lists of tags: pages as registries really send them, put newest-likely-first. ◇
//!
//! The list never claims to be complete when it is not ([`Clipped`]). Where the next page is, a registry says in many
//! ways — relative, absolute, at another host behind its proxy, or not at all — so of a `Link` only the query counts,
//! and it is always put to the same path of the same registry: a listing can lead nowhere else.

mod order;

use std::collections::HashSet;
use std::time::Duration;

use pki::oci::Tag;
use serde::{Deserialize, Serialize};

use super::error::UpstreamError;
use super::target::form;

const MAX_PAGE_BYTES: usize = 8 * 1024 * 1024;
/// Entries to ask for; more is refused by some registries, and most send fewer anyway.
const PAGE_ENTRIES: usize = 1000;
/// Pages in a row without anything new, before we take it that the registry leads in a circle.
const MAX_BARREN_PAGES: usize = 3;

/// How far browsing goes.
#[derive(Clone, Copy, Debug)]
pub struct BrowseLimits {
    /// Pages to fetch.
    pub pages: usize,
    /// Tags to collect.
    pub tags: usize,
    /// Bytes to read, over all pages.
    pub bytes: usize,
    /// Time to spend.
    pub time: Duration,
}

impl Default for BrowseLimits {
    fn default() -> Self {
        Self { pages: 500, tags: 50_000, bytes: 32 * 1024 * 1024, time: Duration::from_mins(1) }
    }
}

/// The tags of a repository, as far as they were listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagList {
    /// The tags, newest-likely-first (best effort: registries do not say how old a tag is).
    pub tags: Vec<Tag>,
    /// Tags that are not for people: `sha256-….sig` and the like.
    pub hidden: Vec<Tag>,
    /// Entries that are no tags at all and were left out.
    pub unusable: usize,
    /// Why the list is not complete; a list without this is.
    pub clipped: Option<Clipped>,
}

/// Why a list of tags ends early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Clipped {
    /// The limit of pages.
    Pages {
        /// How many were read.
        limit: usize,
    },
    /// The limit of tags.
    Tags {
        /// How many were collected.
        limit: usize,
    },
    /// The limit of bytes.
    Bytes {
        /// How many were to be read at most.
        limit: usize,
    },
    /// The limit of time.
    Time {
        /// How many seconds were to be spent at most.
        limit_seconds: u64,
    },
    /// The registry leads in a circle.
    Loop {},
    /// The registry stopped answering after some pages.
    Failed {
        /// What happened, in one line.
        error: String,
    },
}

/// Collects pages until there are no more, or a limit is reached.
pub(super) struct Pager {
    limits: BrowseLimits,
    next: Option<Query>,
    asked: HashSet<String>,
    seen: HashSet<Box<str>>,
    list: TagList,
    pages: usize,
    bytes: usize,
    barren: usize,
}

#[derive(Clone)]
enum Query {
    /// The first page, or what a `Link` says.
    Told(String),
    /// What comes after the last tag, though the registry did not say that there is more.
    Guessed(String),
}

/// The entries of a page; null instead of a list is how Nexus says "none".
fn entries(body: &[u8]) -> Option<Vec<serde_json::Value>> {
    use serde_json::Value;
    let Value::Object(mut page) = pki::json::parse(body, MAX_PAGE_BYTES).ok()? else {
        return None;
    };
    match page.remove("tags").unwrap_or(Value::Null) {
        Value::Null => Some(Vec::new()),
        Value::Array(entries) => Some(entries),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => None,
    }
}

impl Pager {
    pub(super) fn new(limits: &BrowseLimits) -> Self {
        Self {
            limits: *limits,
            next: Some(Query::Told(format!("n={PAGE_ENTRIES}"))),
            asked: HashSet::new(),
            seen: HashSet::new(),
            list: TagList::default(),
            pages: 0,
            bytes: 0,
            barren: 0,
        }
    }

    /// The query of the next page; none at the end.
    pub(super) fn query(&self) -> Option<String> {
        match self.next.as_ref()? {
            Query::Told(query) | Query::Guessed(query) => Some(query.clone()),
        }
    }

    /// How long the next page may be.
    pub(super) fn page_bytes(&self) -> usize {
        self.limits.bytes.saturating_sub(self.bytes).clamp(1, MAX_PAGE_BYTES)
    }

    pub(super) fn is_at_start(&self) -> bool {
        self.pages == 0
    }

    /// Takes a page, and decides where the next one is.
    pub(super) fn take(&mut self, body: &[u8], link: Option<&str>) {
        let guessed = matches!(self.next, Some(Query::Guessed(_)));
        if let Some(Query::Told(query) | Query::Guessed(query)) = self.next.take() {
            self.asked.insert(query);
        }
        self.bytes += body.len();
        let Some(entries) = entries(body) else {
            if !self.is_at_start() {
                self.clip(Clipped::Failed {
                    error: "the registry sent a page that is no list of tags".into(),
                });
            }
            return;
        };
        self.pages += 1;
        let last = entries.last().and_then(|last| last.as_str()).map(str::to_owned);
        let count = entries.len();
        let new = entries.into_iter().map(|entry| self.add(&entry)).filter(|new| *new).count();
        self.barren = if new == 0 { self.barren + 1 } else { 0 };
        self.next = match link.and_then(next_query) {
            Some(query) => Some(Query::Told(query)),
            None if new > 0 && (guessed || looks_cut(count)) => last.map(|last| {
                let entries = PAGE_ENTRIES.to_string();
                Query::Guessed(form([("n", entries.as_str()), ("last", last.as_str())]))
            }),
            None => None,
        };
        self.hold_to_limits();
    }

    /// Ends the list for a reason.
    pub(super) fn clip(&mut self, reason: Clipped) {
        self.next = None;
        self.list.clipped = Some(reason);
    }

    /// Ends the list because the next page could not be had.
    pub(super) fn fail(&mut self, error: &UpstreamError) {
        // A registry that has no `last` may refuse it; the list that it called complete stands.
        let only_guessed = matches!(self.next, Some(Query::Guessed(_))) && !error.is_retryable();
        self.next = None;
        if !only_guessed {
            self.clip(Clipped::Failed { error: error.line() });
        }
    }

    /// The list in its order; none if the registry never sent one.
    pub(super) fn finish(mut self) -> Option<TagList> {
        if self.is_at_start() {
            return None;
        }
        order::newest_likely_first(&mut self.list.tags);
        self.list.hidden.sort();
        Some(self.list)
    }

    /// Adds one entry; whether it was new.
    fn add(&mut self, entry: &serde_json::Value) -> bool {
        let Some(text) = entry.as_str() else {
            self.list.unusable += 1;
            return false;
        };
        if !self.seen.insert(text.into()) {
            return false;
        }
        match text.parse::<Tag>() {
            Ok(tag) if is_hidden(text) => self.list.hidden.push(tag),
            Ok(tag) => self.list.tags.push(tag),
            // Artifactory lists digests among the tags.
            Err(_) => self.list.unusable += 1,
        }
        true
    }

    fn hold_to_limits(&mut self) {
        let collected = self.list.tags.len() + self.list.hidden.len();
        if collected > self.limits.tags {
            self.list.tags.truncate(self.limits.tags);
            self.list.hidden.truncate(self.limits.tags);
            return self.clip(Clipped::Tags { limit: self.limits.tags });
        }
        let Some(next) = self.query() else {
            return;
        };
        if self.asked.contains(&next) || self.barren >= MAX_BARREN_PAGES {
            self.clip(Clipped::Loop {});
        } else if collected >= self.limits.tags {
            self.clip(Clipped::Tags { limit: self.limits.tags });
        } else if self.pages >= self.limits.pages {
            self.clip(Clipped::Pages { limit: self.limits.pages });
        } else if self.bytes >= self.limits.bytes {
            self.clip(Clipped::Bytes { limit: self.limits.bytes });
        }
    }
}

/// Whether a page without `Link` is as long as pages are that some registry cut without saying so.
fn looks_cut(entries: usize) -> bool {
    entries >= PAGE_ENTRIES || (entries >= 50 && entries.is_multiple_of(50))
}

/// Tags that tools made and no person imports: cosign's and the referrers fallback's (`sha256-<hex>…`).
fn is_hidden(tag: &str) -> bool {
    ["sha256-", "sha512-"].iter().any(|prefix| {
        let hex = tag.strip_prefix(prefix).unwrap_or_default();
        let digits = hex.bytes().take_while(u8::is_ascii_hexdigit).count();
        digits >= 64
    })
}

/// The query of the `rel="next"` target in a `Link` header (RFC 8288).
fn next_query(link: &str) -> Option<String> {
    let mut rest = link;
    while let Some((_, from_target)) = rest.split_once('<') {
        let (target, parameters) = from_target.split_once('>')?;
        // Parameters end where the next target starts; a comma alone may stand inside a quoted value.
        let (own, after) = match parameters.find('<') {
            Some(next) => parameters.split_at(next),
            None => (parameters, ""),
        };
        if is_next(own) {
            let target = target.split('#').next().unwrap_or_default();
            return Some(target.split_once('?').map_or("", |(_, query)| query).to_owned());
        }
        rest = after;
    }
    None
}

fn is_next(parameters: &str) -> bool {
    parameters.split([';', ',']).any(|parameter| {
        let Some((name, value)) = parameter.split_once('=') else {
            return false;
        };
        let relations = value.trim().trim_matches('"').split_ascii_whitespace();
        name.trim().eq_ignore_ascii_case("rel")
            && relations.into_iter().any(|relation| relation.eq_ignore_ascii_case("next"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tags: &[Tag]) -> Vec<&str> {
        tags.iter().map(Tag::as_str).collect()
    }

    fn page(tags: &[&str]) -> Vec<u8> {
        serde_json::json!({"name": "a", "tags": tags}).to_string().into_bytes()
    }

    fn many(from: usize, to: usize) -> Vec<String> {
        (from..to).map(|number| format!("1.0.{number}")).collect()
    }

    fn pager() -> Pager {
        Pager::new(&BrowseLimits::default())
    }

    #[test]
    fn reads_the_next_page_out_of_every_known_link() {
        for (link, expected) in [
            (r#"</v2/a/tags/list?n=2&last=b>; rel="next""#, Some("n=2&last=b")),
            ("<https://r/v2/a/tags/list?last=b&n=2>; rel=next", Some("last=b&n=2")),
            (
                r#"<http://internal:5000/v2/a/tags/list?next_page=xyz%3D>; rel="next""#,
                Some("next_page=xyz%3D"),
            ),
            (r#"<?last=b>;rel="prev next""#, Some("last=b")),
            (r#"<tags/list?last=b>; title="a, b"; REL="Next""#, Some("last=b")),
            (r#"</first?x=1>; rel="first", </next?x=2>; rel="next""#, Some("x=2")),
            (r#"</v2/a/tags/list>; rel="next""#, Some("")),
            (r#"</v2/a/tags/list?last=b>; rel="prev""#, None),
            ("</v2/a/tags/list?last=b", None),
            ("", None),
        ] {
            assert_eq!(next_query(link).as_deref(), expected, "{link}");
        }
    }

    #[test]
    fn follows_links_to_the_end() {
        let mut pager = pager();
        assert_eq!(pager.query().unwrap(), "n=1000");
        pager.take(&page(&["1.0", "1.1"]), Some(r#"</x?last=1.1>; rel="next""#));
        assert_eq!(pager.query().unwrap(), "last=1.1");
        pager.take(&page(&["2.0", "latest"]), None);
        assert_eq!(pager.query(), None);
        let list = pager.finish().unwrap();
        assert_eq!(names(&list.tags), ["latest", "2.0", "1.1", "1.0"]);
        assert_eq!(list.clipped, None);
    }

    #[test]
    fn says_when_a_registry_leads_in_a_circle() {
        let mut same = pager();
        same.take(&page(&["a"]), Some("</x?n=1000>; rel=next"));
        assert_eq!(same.finish().unwrap().clipped, Some(Clipped::Loop {}));

        let mut barren = pager();
        barren.take(&page(&["a"]), Some("</x?c=0>; rel=next"));
        for cursor in 1..10 {
            if barren.query().is_some() {
                barren.take(&page(&["a"]), Some(&format!("</x?c={cursor}>; rel=next")));
            }
        }
        assert_eq!(barren.pages, 1 + MAX_BARREN_PAGES);
        assert_eq!(barren.finish().unwrap().clipped, Some(Clipped::Loop {}));
    }

    #[test]
    fn asks_on_where_a_full_page_has_no_link() {
        let first = many(0, 100);
        let first: Vec<&str> = first.iter().map(String::as_str).collect();
        let mut stops_early = pager();
        stops_early.take(&page(&first), None);
        assert_eq!(stops_early.query().unwrap(), "n=1000&last=1.0.99");
        stops_early.take(&page(&["2.0"]), None);
        assert_eq!(stops_early.query().unwrap(), "n=1000&last=2.0");
        stops_early.take(&page(&[]), None);
        let list = stops_early.finish().unwrap();
        assert_eq!((list.tags.len(), list.clipped), (101, None));

        // A registry that ignores `n` and `last` sends the same again: then that was all.
        let mut ignores = pager();
        ignores.take(&page(&first), None);
        ignores.take(&page(&first), None);
        let list = ignores.finish().unwrap();
        assert_eq!((list.tags.len(), list.clipped), (100, None));
    }

    #[test]
    fn takes_odd_lists_as_they_are() {
        for (body, tags, unusable) in [
            (r#"{"name":"a","tags":null}"#, 0, 0),
            (r#"{"name":"a"}"#, 0, 0),
            (r#"{"tags":[]}"#, 0, 0),
            (r#"{"tags":["1.0",7,null,"a b","sha256:aa","../x"]}"#, 1, 5),
            (r#"{"tags":["1.0","1.0"]}"#, 1, 0),
        ] {
            let mut pager = pager();
            pager.take(body.as_bytes(), None);
            let list = pager.finish().unwrap();
            assert_eq!((list.tags.len(), list.unusable, list.clipped), (tags, unusable, None), "{body}");
        }
        for body in ["", "[]", "<html>", r#"{"tags":"x"}"#, r#"{"tags":[],"tags":[]}"#] {
            let mut pager = pager();
            pager.take(body.as_bytes(), None);
            assert!(pager.finish().is_none(), "{body}");
        }
    }

    #[test]
    fn keeps_apart_what_tools_tagged() {
        let hex = "a".repeat(64);
        let signature = format!("sha256-{hex}.sig");
        let referrers = format!("sha256-{hex}");
        let mut pager = pager();
        pager.take(&page(&[&signature, "1.0", &referrers, "sha256-short"]), None);
        let list = pager.finish().unwrap();
        assert_eq!(names(&list.tags), ["1.0", "sha256-short"]);
        assert_eq!(names(&list.hidden), [referrers.as_str(), signature.as_str()]);
    }

    #[test]
    fn tells_which_limit_clipped_the_list() {
        let limits = BrowseLimits { pages: 2, tags: 5, bytes: 200, time: Duration::from_secs(1) };
        let link = |number: usize| format!("</x?p={number}>; rel=next");
        let clipped = |tags: [&[&str]; 2]| {
            let mut pager = Pager::new(&limits);
            for (number, tags) in tags.into_iter().enumerate() {
                if pager.query().is_some() {
                    pager.take(&page(tags), Some(&link(number)));
                }
            }
            pager.finish().unwrap()
        };
        assert_eq!(clipped([&["a"], &["b"]]).clipped, Some(Clipped::Pages { limit: 2 }));
        let full = clipped([&["a", "b", "c", "d", "e", "f"], &[]]);
        assert_eq!((full.tags.len(), full.clipped), (5, Some(Clipped::Tags { limit: 5 })));
        let long = "x".repeat(120);
        let longer = "y".repeat(120);
        assert_eq!(clipped([&[&long], &[&longer]]).clipped, Some(Clipped::Pages { limit: 2 }));
        assert_eq!(clipped([&[&long, &longer], &[]]).clipped, Some(Clipped::Bytes { limit: 200 }));
    }

    #[test]
    fn a_failure_after_some_pages_is_told_and_a_refused_guess_is_not() {
        let error = UpstreamError::Unavailable { host: "r".into(), status: 503 };
        let mut pager_1 = pager();
        pager_1.take(&page(&["a"]), Some("</x?p=1>; rel=next"));
        pager_1.fail(&error);
        assert!(matches!(pager_1.finish().unwrap().clipped, Some(Clipped::Failed { .. })));
        let refusal =
            UpstreamError::BadAnswer { host: "r".into(), source: crate::upstream::Cause::new("400") };
        let full = many(0, 1000);
        let mut pager_2 = pager();
        pager_2.take(&page(&full.iter().map(String::as_str).collect::<Vec<_>>()), None);
        pager_2.fail(&refusal);
        assert_eq!(pager_2.finish().unwrap().clipped, None);
    }

    #[test]
    fn ten_thousand_tags_are_no_burden() {
        let mut pager = pager();
        for number in 0..100 {
            let tags = many(number * 100, number * 100 + 100);
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            let link = format!("</x?p={number}>; rel=next");
            pager.take(&page(&tags), (number < 99).then_some(link.as_str()));
        }
        // The last page is full and has no link, so one more is asked for.
        pager.take(&page(&[]), None);
        let list = pager.finish().unwrap();
        assert_eq!((list.tags.len(), list.clipped), (10_000, None));
        assert_eq!(list.tags.first().unwrap().as_str(), "1.0.9999");
    }

    proptest::proptest! {
        #[test]
        fn never_panics_on_links(link in "[ -~]{0,120}") {
            let _ = next_query(&link);
        }
    }
}
