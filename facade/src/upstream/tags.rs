//! Lists of tags: pages as registries really send them, put newest-likely-first. ◇

use std::time::Duration;

use pki::oci::Tag;
use serde::{Deserialize, Serialize};

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
        Self {
            pages: 200,
            tags: 50_000,
            bytes: 32 * 1024 * 1024,
            time: Duration::from_secs(60),
        }
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
