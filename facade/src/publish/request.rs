//! A signing request: metadata that waits for signatures of keys that are not here.
//!
//! Pure. A request holds the exact bytes to be signed, and what happens once they are. Nothing in it is served, and no
//! artifact in it exists, before every file has its threshold.

use std::collections::BTreeSet;

use jiff::Timestamp;
use pki::key::{KeyId, PublicKey, Signature};
use pki::metadata::publish::attach_signature;
use pki::metadata::roles::{RoleKeys, Root, Targets};
use pki::metadata::verify::{Authority, Signed};
use pki::metadata::{Limits, MetadataError};
use pki::oci::Tag;
use serde::{Deserialize, Serialize};

use super::publishers::{Publisher, PublisherName};
use super::trust::Trust;
use super::{PublishingError, sign_with, witness};
use crate::catalog::artifacts::Artifact;
use crate::store::Table;

/// Where requests are kept, by the name of their repository; those of publishers by [`Desk::key`].
pub(super) const REQUESTS: Table = Table("signing-requests");

/// Whose signatures a request of the images repository waits for. One desk does not wait for another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Desk {
    /// Those who hold the root and targets keys.
    Operators,
    /// A publisher that holds its own key.
    Publisher(PublisherName),
}

impl Desk {
    /// The key under which its request is kept.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Operators => "images".to_owned(),
            Self::Publisher(name) => format!("images/{name}"),
        }
    }

    /// What its request is called where operators ask for it.
    pub fn request_name(&self) -> String {
        match self {
            Self::Operators => "images".to_owned(),
            Self::Publisher(name) => name.role(),
        }
    }

    /// The desk whose request is kept under `key`.
    pub(super) fn of_key(key: &str) -> Option<Self> {
        match key.strip_prefix("images") {
            Some("") => Some(Self::Operators),
            Some(rest) => rest.strip_prefix('/')?.parse().ok().map(Self::Publisher),
            None => None,
        }
    }
}

/// What waits to be signed in one repository.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Tells it from the requests before it.
    pub id: String,
    /// When it was last changed.
    pub made_at: Timestamp,
    /// Why, in words.
    pub reasons: Vec<String>,
    /// The files; a root first.
    pub files: Vec<Draft>,
    /// The artifacts that exist once it is signed, and the tags that point at them.
    pub additions: Vec<Addition>,
    /// The artifacts that go.
    pub removals: Vec<Artifact>,
    /// Versions that must be passed.
    pub floor: Option<witness::Marks>,
    /// The publishers whose files are among them.
    #[serde(default)]
    pub publishers: Vec<Publisher>,
    /// Whether it changes who signs, by a root or by delegations: nothing else may come between.
    #[serde(default)]
    pub changes_signers: bool,
    /// Files that are to be signed again though they say nothing new.
    #[serde(default)]
    pub renews: BTreeSet<String>,
}

/// An artifact that waits for its signature.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addition {
    /// The artifact.
    pub artifact: Artifact,
    /// The tag that was found to point at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
}

/// One file with the signatures that it has so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// Its role: `root`, `targets` or a bin.
    pub role: String,
    /// Its version.
    pub version: u64,
    /// The file.
    pub text: String,
}

/// How far one file has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The file's role.
    pub role: String,
    /// Who has to sign, in words.
    pub signers: &'static str,
    /// How many have.
    pub have: u64,
    /// How many must.
    pub need: u64,
}

impl Draft {
    /// A file that was signed with the keys that are here.
    pub fn new(role: &str, version: u64, bytes: Vec<u8>) -> Result<Self, PublishingError> {
        let text =
            String::from_utf8(bytes).map_err(|_| PublishingError::Unreadable { file: role.to_owned() })?;
        Ok(Self { role: role.to_owned(), version, text })
    }
}

/// The next root, signed with the old and the new root keys that are here.
pub(super) fn root_draft(trust: &Trust, next: &Root) -> Result<Draft, PublishingError> {
    let mut keys = trust.chain.current().roles.root.clone();
    let new =
        next.roles.root.keyids.iter().filter(|id| !trust.chain.current().roles.root.keyids.contains(id));
    keys.keyids.extend(new);
    Draft::new("root", next.version, sign_with(next, "root", &keys, &trust.ring)?)
}

impl Request {
    /// A request for these files.
    pub(super) fn new(files: Vec<Draft>, reasons: Vec<String>, now: Timestamp) -> Self {
        let mut id = [0; 8];
        // An id only tells requests apart; without randomness the time does.
        if getrandom::fill(&mut id).is_err() {
            id = now.as_millisecond().to_le_bytes();
        }
        Self {
            id: data_encoding::HEXLOWER.encode(&id),
            made_at: now,
            reasons,
            files,
            additions: Vec::new(),
            removals: Vec::new(),
            floor: None,
            publishers: Vec::new(),
            changes_signers: false,
            renews: BTreeSet::new(),
        }
    }

    /// Whether only what it says may happen until it is signed or dropped.
    pub(super) fn is_exclusive(&self) -> bool {
        self.changes_signers || self.floor.is_some()
    }

    /// The root that it proposes.
    pub fn root(&self) -> Result<Option<Root>, MetadataError> {
        let Some(draft) = self.files.iter().find(|draft| draft.role == "root") else {
            return Ok(None);
        };
        let signed = Signed::<Root>::parse("root", draft.text.as_bytes(), Limits::default().root_bytes)?;
        Ok(Some(signed.document().clone()))
    }

    /// How far each file has come, under the root in force.
    pub fn progress(&self, current: &Root) -> Result<Vec<Progress>, MetadataError> {
        let proposed = self.root()?;
        let next = proposed.as_ref().unwrap_or(current);
        let mut progress = Vec::new();
        for draft in &self.files {
            let bytes = draft.text.as_bytes();
            let mut count = |signers, role: &RoleKeys, have| {
                let (role, need) = (draft.role.clone(), role.threshold);
                progress.push(Progress { role, signers, have, need });
            };
            if draft.role == "root" {
                let signed = Signed::<Root>::parse("root", bytes, Limits::default().root_bytes)?;
                for (signers, root) in [("current root keys", current), ("new root keys", next)] {
                    let have = signed.count_signers(authority(root, &root.roles.root));
                    count(signers, &root.roles.root, have);
                }
            } else if let Some(publisher) = self.publisher(&draft.role) {
                let signed = Signed::<Targets>::parse(&draft.role, bytes, Limits::default().targets_bytes)?;
                let (keys, role) = (publisher.key_map(), publisher.keys());
                let have = signed.count_signers(Authority {
                    delegator: "targets",
                    keys: &keys,
                    keyids: &role.keyids,
                    threshold: role.threshold,
                });
                count("the publisher's key", &role, have);
            } else {
                let signed = Signed::<Targets>::parse(&draft.role, bytes, Limits::default().targets_bytes)?;
                let have = signed.count_signers(authority(next, &next.roles.targets));
                count("targets keys", &next.roles.targets, have);
            }
        }
        Ok(progress)
    }

    /// The publisher whose file bears this role.
    fn publisher(&self, role: &str) -> Option<&Publisher> {
        self.publishers.iter().find(|publisher| publisher.role() == role)
    }

    /// Whether every file has its threshold.
    pub fn is_complete(&self, current: &Root) -> Result<bool, MetadataError> {
        Ok(self.progress(current)?.iter().all(|file| file.have >= file.need))
    }

    /// Adds a signature, once it verifies under a key that may sign the file.
    pub fn attach(
        &mut self,
        current: &Root,
        role: &str,
        signature: Signature,
    ) -> Result<(), PublishingError> {
        let proposed = self.root().map_err(PublishingError::Refused)?;
        let id = signature.keyid;
        let key = if let Some(publisher) = self.publisher(role) {
            Some(publisher.key.clone()).filter(|key| key.id() == id)
        } else {
            let roots = [Some(current), proposed.as_ref()];
            roots.into_iter().flatten().find_map(|root| key_for(root, role, id)).cloned()
        };
        let key = key.ok_or(PublishingError::NoSigner { keyid: id, role: role.to_owned() })?;
        let draft = self.files.iter_mut().find(|draft| draft.role == role);
        let draft = draft.ok_or_else(|| PublishingError::NotInRequest(role.to_owned()))?;
        let bytes =
            attach_signature(draft.text.as_bytes(), &key, signature).map_err(PublishingError::Signature)?;
        *draft = Draft::new(role, draft.version, bytes)?;
        Ok(())
    }
}

fn key_for<'a>(root: &'a Root, role: &str, id: KeyId) -> Option<&'a PublicKey> {
    let keys = if role == "root" { &root.roles.root } else { &root.roles.targets };
    root.keys.get(&id).filter(|_| keys.keyids.contains(&id))
}

fn authority<'a>(root: &'a Root, role: &'a RoleKeys) -> Authority<'a> {
    root.authority("root", role)
}
