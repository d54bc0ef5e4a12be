//! The tokens that open the operator door.
//!
//! A token is looked up by its SHA-256; the token itself is stored nowhere. Each request asks the store, so a token that
//! is revoked opens nothing from then on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::store::{Batch, Scan, Store, StoreError, Table, decode, get_json, scan_json};

const TABLE: Table = Table("operator-tokens");
/// The hash of the token with a name.
const NAMES: Table = Table("operator-token-names");

const PREFIX: &str = "drayage-operator.";
const MAX_NAME_BYTES: usize = 63;
/// Most tokens that are lent at a time; the one that ends first gives way.
const MAX_LENT: usize = 4096;
/// The name of the token that `facade init` leaves in the data directory.
const FIRST: &str = "admin";
/// The last use is a hint for people: no request waits for a write more often than this.
const USE_NOTED_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// What a caller may do. Each role may do all that the ones before it may, except the pusher, who only pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Push images to the facade's own repositories.
    Pusher,
    /// Look.
    Viewer,
    /// Change connections, artifacts, assignments and devices.
    Operator,
    /// Change keys and access.
    Admin,
}

impl Role {
    /// Every role, the mightiest last.
    pub const ALL: [Self; 4] = [Self::Pusher, Self::Viewer, Self::Operator, Self::Admin];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pusher => "pusher",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or("must be admin, operator, viewer or pusher")
    }
}

/// A token as it is stored, under the SHA-256 of its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}

/// Why a token is not made or not revoked.
#[derive(Debug, Error)]
pub enum TokensError {
    /// The database.
    #[error("cannot use the records of operator tokens")]
    Store(#[from] StoreError),
    /// Not a name.
    #[error(
        "{0:?} is not the name of a token (expected 1 to {MAX_NAME_BYTES} of a-z, 0-9, '.', '_', '-', the first a letter or digit)"
    )]
    Name(String),
    /// The name is in use.
    #[error("there is a token {0} already (facade operator token list)")]
    Taken(String),
    /// No such token.
    #[error("there is no operator token {0} (facade operator token list)")]
    NoSuchToken(String),
    /// The first token is a file of the data directory.
    #[error(
        "the first token is no record: remove admin.token and admin.token.hash from the data directory, and run facade init"
    )]
    First,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a token")]
    NoRandomness,
}

/// The tokens that open the operator door.
pub struct Tokens {
    store: Arc<dyn Store>,
    /// SHA-256 of the first admin token, which `facade init` left in the data directory.
    first_admin: String,
    /// Tokens that this process lends for as long as it lives, by their hash: of people who signed in elsewhere.
    lent: Mutex<HashMap<String, Lent>>,
}

struct Lent {
    name: String,
    role: Role,
    ends_at: Timestamp,
}

impl Tokens {
    /// The tokens of a store, and the first one.
    pub fn new(store: Arc<dyn Store>, first_admin: String) -> Self {
        Self { store, first_admin, lent: Mutex::default() }
    }

    /// The name and role of a token that is good now.
    pub async fn find(&self, token: &str, now: Timestamp) -> Result<Option<(String, Role)>, StoreError> {
        // Finding a token by its hash tells nothing about any token, whatever time it takes.
        let hash = hash(token);
        if hash == self.first_admin {
            return Ok(Some((FIRST.to_owned(), Role::Admin)));
        }
        if let Some(found) = self.find_lent(&hash, now) {
            return Ok(Some(found));
        }
        let Some(bytes) = self.store.get(TABLE, &hash).await? else {
            return Ok(None);
        };
        let record: TokenRecord = decode(TABLE, &hash, &bytes)?;
        if record.expires_at.is_some_and(|end| now >= end) {
            return Ok(None);
        }
        let found = (record.name.clone(), record.role);
        let noted = |at: Timestamp| now.duration_since(at) < USE_NOTED_EVERY;
        if !record.last_used_at.is_some_and(noted) {
            self.note_use(&hash, bytes, record, now).await?;
        }
        Ok(Some(found))
    }

    fn find_lent(&self, hash: &str, now: Timestamp) -> Option<(String, Role)> {
        let lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lent.get(hash).filter(|lent| now < lent.ends_at)?;
        Some((found.name.clone(), found.role))
    }

    /// Lends a token until `ends_at`. It is stored nowhere, and gone when the process ends.
    pub fn lend(
        &self,
        name: String,
        role: Role,
        now: Timestamp,
        ends_at: Timestamp,
    ) -> Result<Secret, TokensError> {
        let text = random_token()?;
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.retain(|_, lent| now < lent.ends_at);
        if lent.len() >= MAX_LENT {
            let oldest = lent.iter().min_by_key(|(_, lent)| lent.ends_at).map(|(hash, _)| hash.clone());
            oldest.and_then(|oldest| lent.remove(&oldest));
        }
        lent.insert(hash(text.expose()), Lent { name, role, ends_at });
        Ok(text)
    }

    /// Ends a token that was lent; any other is left alone.
    pub fn take_back(&self, token: &Secret) {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(token.expose()));
    }

    async fn note_use(
        &self,
        hash: &str,
        before: Vec<u8>,
        mut record: TokenRecord,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        record.last_used_at = Some(now);
        let mut batch = Batch::new();
        // A token that was revoked meanwhile must not come back.
        batch.require_value(TABLE, hash, before);
        batch.put_json(TABLE, hash, &record)?;
        match self.store.commit(batch).await {
            Err(StoreError::Conflict { .. }) => Ok(()),
            result => result,
        }
    }

    /// Makes a token. Its text is given here and nowhere else.
    pub async fn create(&self, record: TokenRecord) -> Result<Secret, TokensError> {
        if !is_name(&record.name) {
            return Err(TokensError::Name(record.name.chars().take(80).collect()));
        }
        if record.name == FIRST {
            return Err(TokensError::Taken(record.name));
        }
        let text = random_token()?;
        let hash = hash(text.expose());
        let mut batch = Batch::new();
        batch.require_absent(NAMES, &record.name);
        batch.put_json(NAMES, &record.name, &hash)?;
        batch.put_json(TABLE, &hash, &record)?;
        match self.store.commit(batch).await {
            Ok(()) => Ok(text),
            Err(StoreError::Conflict { .. }) => Err(TokensError::Taken(record.name)),
            Err(error) => Err(error.into()),
        }
    }

    /// A page of the tokens, in the order of their names.
    pub async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<TokenRecord>, TokensError> {
        let scan = Scan { prefix: "", after, limit };
        let mut records = Vec::new();
        for (_, hash) in scan_json::<String>(&*self.store, NAMES, scan).await? {
            records.extend(get_json(&*self.store, TABLE, &hash).await?);
        }
        Ok(records)
    }

    /// Ends a token at once.
    pub async fn revoke(&self, name: &str) -> Result<TokenRecord, TokensError> {
        if name == FIRST {
            return Err(TokensError::First);
        }
        let missing = || TokensError::NoSuchToken(name.chars().take(80).collect());
        let hash: String = get_json(&*self.store, NAMES, name).await?.ok_or_else(missing)?;
        let record = get_json(&*self.store, TABLE, &hash).await?.ok_or_else(missing)?;
        let mut batch = Batch::new();
        batch.delete(NAMES, name);
        batch.delete(TABLE, &hash);
        self.store.commit(batch).await?;
        Ok(record)
    }
}

fn random_token() -> Result<Secret, TokensError> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *secret).map_err(|_| TokensError::NoRandomness)?;
    Ok(Secret::new(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&*secret))))
}

fn hash(token: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(token.as_bytes()))
}

fn is_name(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first = text.bytes().next().is_some_and(alphanumeric);
    first
        && text.len() <= MAX_NAME_BYTES
        && text.bytes().all(|byte| alphanumeric(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled::SledStore;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn record(name: &str, expires_at: Option<Timestamp>) -> TokenRecord {
        TokenRecord {
            name: name.to_owned(),
            role: Role::Viewer,
            created_at: at("2026-11-20T12:00:00Z"),
            created_by: FIRST.to_owned(),
            expires_at,
            last_used_at: None,
        }
    }

    fn tokens(directory: &std::path::Path) -> Tokens {
        let (store, _) = SledStore::open(&directory.join("store"), &directory.join("dumps")).unwrap();
        Tokens::new(Arc::new(store), "first".to_owned())
    }

    #[tokio::test]
    async fn a_token_opens_until_it_expires_or_is_revoked() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = tokens(directory.path());
        let end = at("2026-11-20T13:00:00Z");
        let token = tokens.create(record("ci", Some(end))).await.unwrap();
        let now = at("2026-11-20T12:30:00Z");
        let found = tokens.find(token.expose(), now).await.unwrap();
        assert_eq!(found, Some(("ci".to_owned(), Role::Viewer)));
        assert_eq!(tokens.list(None, 10).await.unwrap()[0].last_used_at, Some(now));
        assert_eq!(tokens.find(token.expose(), end).await.unwrap(), None);
        tokens.revoke("ci").await.unwrap();
        assert_eq!(tokens.find(token.expose(), now).await.unwrap(), None);
        assert!(matches!(tokens.revoke("ci").await, Err(TokensError::NoSuchToken(_))));
    }

    #[tokio::test]
    async fn a_token_that_is_lent_opens_until_it_ends_or_is_taken_back_and_is_stored_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let lender = tokens(directory.path());
        let (now, end) = (at("2026-11-20T12:00:00Z"), at("2026-11-20T13:00:00Z"));
        let token = lender.lend("oidc/jane".to_owned(), Role::Viewer, now, end).unwrap();
        let found = lender.find(token.expose(), now).await.unwrap();
        assert_eq!(found, Some(("oidc/jane".to_owned(), Role::Viewer)));
        assert_eq!(lender.find(token.expose(), end).await.unwrap(), None);
        assert!(lender.list(None, 10).await.unwrap().is_empty());
        let other = lender.lend("oidc/joe".to_owned(), Role::Admin, now, end).unwrap();
        lender.take_back(&other);
        assert_eq!(lender.find(other.expose(), now).await.unwrap(), None);
        assert!(lender.find(token.expose(), now).await.unwrap().is_some());
        for _ in 0..MAX_LENT {
            lender.lend(String::new(), Role::Viewer, now, end + SignedDuration::from_secs(1)).unwrap();
        }
        assert_eq!(
            lender.find(token.expose(), now).await.unwrap(),
            None,
            "the one that ends first gives way"
        );
    }

    #[tokio::test]
    async fn rejects_a_name_twice_and_names_that_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = tokens(directory.path());
        tokens.create(record("ci", None)).await.unwrap();
        for name in ["ci", FIRST] {
            assert!(matches!(tokens.create(record(name, None)).await, Err(TokensError::Taken(_))));
        }
        for name in ["", "-a", "A", "a b", "a/b", &"a".repeat(64)] {
            assert!(matches!(tokens.create(record(name, None)).await, Err(TokensError::Name(_))));
        }
    }
}
