//! The connected registries: definitions with sealed secrets in the store, live clients in memory.
//!
//! A connection is what authorizes pulls from a host: no connection, no request. Secrets are opened once, into the
//! client that uses them, and leave this file in no other way.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use pki::oci::{RegistryHost, Repository, RepositoryName};
use pki::seal::{Context, SealError, Sealed};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{Mutex, MutexGuard};

use super::keyring::Keyring;
use crate::secret::Secret;
use crate::store::{Batch, Scan, Store, StoreError, Table, decode, get_json, scan_json};
use crate::upstream::{Definition, DefinitionError, Health, Registry, Secrets, UpstreamError, Upstreams};

const TABLE: Table = Table("connections");

/// What connections have lately experienced; apart from them, because it changes all the time and loses nothing.
const HEALTH: Table = Table("connection-health");

const CREDENTIAL: &str = "credential";
const CLIENT_KEY: &str = "client_key_pem";

/// A connection as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connection {
    /// What it is, without secrets.
    pub definition: Definition,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// Grows with each change; part of what the secrets are sealed to, so that an old secret cannot be put back.
    version: u64,
    sealed: BTreeMap<String, Sealed>,
}

/// Why a connection could not be made, found or opened.
#[derive(Debug, Error)]
pub enum RegistriesError {
    /// There is no connection to the host.
    #[error("{0} is not connected (facade connection add {0})")]
    NotConnected(RegistryHost),
    /// A field is wrong.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// The host is at a place that the connection may not reach.
    #[error("the registry cannot be connected so")]
    Reach(#[from] UpstreamError),
    /// The secrets cannot be sealed or opened.
    #[error("the secrets of {host} cannot be opened; is the sealing key the one they were sealed with?")]
    Seal {
        /// The connection.
        host: RegistryHost,
        /// Why.
        #[source]
        source: SealError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The connections.
pub struct Registries {
    store: Arc<dyn Store>,
    /// Held while anything is sealed, so that a change of keys misses nothing.
    keys: Mutex<Keyring>,
    upstreams: Upstreams,
    live: RwLock<HashMap<RegistryHost, Registry>>,
    kept_health: std::sync::Mutex<HashMap<RegistryHost, Health>>,
}

impl Registries {
    /// Opens every stored connection. A secret that does not open is a refusal to start: a connection with an empty
    /// secret would fail much later and say something else. What an older key sealed is sealed anew.
    pub async fn load(
        store: Arc<dyn Store>,
        keys: Keyring,
        upstreams: Upstreams,
    ) -> Result<Self, RegistriesError> {
        let mut left_over = false;
        let registries = Self {
            store,
            keys: Mutex::new(keys.clone()),
            upstreams,
            live: RwLock::default(),
            kept_health: std::sync::Mutex::default(),
        };
        for (_, connection) in scan_json::<Connection>(&*registries.store, TABLE, Scan::ALL).await? {
            let secrets = open(&keys, &connection)?;
            left_over |= connection.sealed.values().any(|sealed| sealed.key_id() != keys.id());
            let registry = registries.upstreams.connect(connection.definition, secrets)?;
            registries.put_live(registry);
        }
        for (host, health) in scan_json::<Health>(&*registries.store, HEALTH, Scan::ALL).await? {
            let registry = host.parse().ok().and_then(|host| registries.registry(&host).ok());
            if let Some(registry) = registry {
                registry.remember(health);
            }
        }
        if left_over {
            let count = registries.change_keys().await.switch_to(keys).await?;
            tracing::warn!(connections = count, "a change of the sealing key was completed");
        }
        Ok(registries)
    }

    /// Makes a connection, or replaces the one to the same host.
    pub async fn add(
        &self,
        definition: Definition,
        secrets: Secrets,
        by: &str,
        now: Timestamp,
    ) -> Result<Connection, RegistriesError> {
        // Everything that can be wrong is found before anything is stored.
        let registry = self.upstreams.connect(definition.clone(), secrets.clone())?;
        registry.check_reach().await?;
        let keys = self.keys.lock().await;
        let host = definition.host.clone();
        let key = host.to_string();
        let stored = self.store.get(TABLE, &key).await?;
        let old: Option<Connection> = get_json(&*self.store, TABLE, &key).await?;
        let version = old.as_ref().map_or(1, |old| old.version + 1);
        let connection = Connection {
            sealed: seal(&keys, &host, version, &secrets)?,
            definition,
            created_at: old.as_ref().map_or(now, |old| old.created_at),
            created_by: by.to_owned(),
            version,
        };
        let mut batch = Batch::new();
        match stored {
            Some(value) => batch.require_value(TABLE, &key, value),
            None => batch.require_absent(TABLE, &key),
        }
        batch.put_json(TABLE, &key, &connection)?;
        batch.delete(HEALTH, &key);
        self.store.commit(batch).await?;
        self.put_live(registry);
        Ok(connection)
    }

    /// One connection.
    pub async fn get(&self, host: &RegistryHost) -> Result<Connection, RegistriesError> {
        let found = get_json(&*self.store, TABLE, host.as_str()).await?;
        found.ok_or_else(|| RegistriesError::NotConnected(host.clone()))
    }

    /// A page of connections, by host.
    pub async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Connection>, RegistriesError> {
        let page = scan_json(&*self.store, TABLE, Scan { prefix: "", after, limit }).await?;
        Ok(page.into_iter().map(|(_, connection)| connection).collect())
    }

    /// Removes a connection; from now on nothing is asked of its host.
    pub async fn remove(&self, host: &RegistryHost) -> Result<Connection, RegistriesError> {
        // A change of keys that is under way would write the record again.
        let _keys = self.keys.lock().await;
        let connection = self.get(host).await?;
        let mut batch = Batch::new();
        batch.delete(TABLE, host.as_str());
        batch.delete(HEALTH, host.as_str());
        self.store.commit(batch).await?;
        self.live.write().unwrap_or_else(PoisonError::into_inner).remove(host);
        Ok(connection)
    }

    /// Stores what the connections have experienced since the last time, so that it outlives a restart.
    pub async fn keep_health(&self) -> Result<(), StoreError> {
        let live: Vec<(RegistryHost, Health)> = {
            let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
            live.iter().map(|(host, registry)| (host.clone(), registry.health())).collect()
        };
        let mut batch = Batch::new();
        let changed: HashMap<RegistryHost, Health> = {
            let kept = self.kept_health.lock().unwrap_or_else(PoisonError::into_inner);
            live.into_iter().filter(|(host, health)| kept.get(host) != Some(health)).collect()
        };
        if changed.is_empty() {
            return Ok(());
        }
        for (host, health) in &changed {
            batch.put_json(HEALTH, host.as_str(), health)?;
        }
        self.store.commit(batch).await?;
        self.kept_health.lock().unwrap_or_else(PoisonError::into_inner).extend(changed);
        Ok(())
    }

    /// Begins a change of keys; until it is dropped, nothing is sealed.
    pub async fn change_keys(&self) -> KeyChange<'_> {
        KeyChange { registries: self, keys: self.keys.lock().await }
    }

    /// The client of a connected registry.
    pub fn registry(&self, host: &RegistryHost) -> Result<Registry, RegistriesError> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.get(host).cloned().ok_or_else(|| RegistriesError::NotConnected(host.clone()))
    }

    /// The mirrors that may serve what a repository's own registry cannot, with what they call it, by host. One that has
    /// served wrong bytes is not among them until it is connected anew.
    pub fn mirrors(&self, repository: &Repository) -> Vec<(Registry, RepositoryName)> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let mirror = |registry: &Registry| {
            let name = registry.definition().mirror.as_ref()?.name_of(repository)?;
            registry.health().wrong_bytes.is_none().then(|| (registry.clone(), name))
        };
        let mut mirrors: Vec<_> = live.values().filter_map(mirror).collect();
        mirrors.sort_by(|(one, _), (other, _)| one.definition().host.cmp(&other.definition().host));
        mirrors
    }

    /// How a connection has been doing since the facade started.
    pub fn health(&self, host: &RegistryHost) -> Option<Health> {
        self.registry(host).ok().map(|registry| registry.health())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.live.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Those whose last use failed, or that have ever served wrong bytes, by host, with what went wrong.
    pub fn failing(&self) -> BTreeMap<RegistryHost, String> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let failing = live.iter().filter_map(|(host, registry)| {
            let health = registry.health();
            let wrong =
                health.wrong_bytes.as_ref().map(|wrong| format!("served wrong bytes: {}", wrong.what));
            let error = health.current_error().map(ToOwned::to_owned).or(wrong)?;
            Some((host.clone(), error))
        });
        failing.collect()
    }

    /// Whether secrets can be sealed, and opened again.
    pub async fn seals(&self) -> Result<(), SealError> {
        let place = Context { host: "readiness", field: "probe", version: 0 };
        let keys = self.keys.lock().await;
        let sealed = keys.seal(b"probe", place)?;
        keys.open(&sealed, place).map(|_| ())
    }

    fn put_live(&self, registry: Registry) {
        let host = registry.definition().host.clone();
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        live.insert(host, registry);
    }
}

/// A change of the sealing key.
pub struct KeyChange<'a> {
    registries: &'a Registries,
    keys: MutexGuard<'a, Keyring>,
}

impl KeyChange<'_> {
    /// The keys in use.
    pub fn held(&self) -> &Keyring {
        &self.keys
    }

    /// Seals every secret anew in one batch, and goes on with the new keys; gives how many connections have secrets.
    ///
    /// If it fails, or the process dies before it is durable, the old key still opens everything; the caller has put
    /// both where the facade finds them when it starts.
    pub async fn switch_to(mut self, next: Keyring) -> Result<u64, RegistriesError> {
        let store = &*self.registries.store;
        let mut batch = Batch::new();
        let mut count = 0;
        for entry in store.scan(TABLE, Scan::ALL).await? {
            let mut connection: Connection = decode(TABLE, &entry.key, &entry.value)?;
            let secrets = open(&self.keys, &connection).or_else(|_| open(&next, &connection))?;
            connection.version += 1;
            let host = connection.definition.host.clone();
            connection.sealed = seal(&next, &host, connection.version, &secrets)?;
            count += u64::from(!connection.sealed.is_empty());
            batch.require_value(TABLE, &entry.key, entry.value);
            batch.put_json(TABLE, &entry.key, &connection)?;
        }
        store.commit(batch).await?;
        *self.keys = next;
        Ok(count)
    }
}

fn seal(
    keys: &Keyring,
    host: &RegistryHost,
    version: u64,
    secrets: &Secrets,
) -> Result<BTreeMap<String, Sealed>, RegistriesError> {
    let fields = [(CREDENTIAL, &secrets.credential), (CLIENT_KEY, &secrets.client_key_pem)];
    let mut sealed = BTreeMap::new();
    for (field, secret) in fields {
        if let Some(secret) = secret {
            let context = Context { host: host.as_str(), field, version };
            let value = keys.seal(secret.expose().as_bytes(), context);
            let value = value.map_err(|source| RegistriesError::Seal { host: host.clone(), source })?;
            sealed.insert(field.to_owned(), value);
        }
    }
    Ok(sealed)
}

fn open(keys: &Keyring, connection: &Connection) -> Result<Secrets, RegistriesError> {
    let host = &connection.definition.host;
    let open = |field: &str| -> Result<Option<Secret>, RegistriesError> {
        let Some(sealed) = connection.sealed.get(field) else {
            return Ok(None);
        };
        let context = Context { host: host.as_str(), field, version: connection.version };
        let opened = keys
            .open(sealed, context)
            .map_err(|source| RegistriesError::Seal { host: host.clone(), source })?;
        Ok(Some(Secret::new(String::from_utf8_lossy(&opened).into_owned())))
    };
    Ok(Secrets { credential: open(CREDENTIAL)?, client_key_pem: open(CLIENT_KEY)? })
}
