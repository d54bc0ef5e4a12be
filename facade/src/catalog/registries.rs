//! The connected registries: definitions with sealed secrets in the store, live clients in memory.
//!
//! A connection is what authorizes pulls from a host: no connection, no request. Secrets are opened once, into the
//! client that uses them, and leave this file in no other way.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use pki::oci::RegistryHost;
use pki::seal::{Context, SealError, Sealed, SealingKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::secret::Secret;
use crate::store::{Batch, Scan, Store, StoreError, Table, get_json, scan_json};
use crate::upstream::{CheckReport, Definition, DefinitionError, Health, Registry, Secrets, Upstreams};

const TABLE: Table = Table("connections");
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
    /// What the last test found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_check: Option<LastCheck>,
    /// Grows with each change; part of what the secrets are sealed to, so that an old secret cannot be put back.
    version: u64,
    sealed: BTreeMap<String, Sealed>,
}

/// What the last test of a connection found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastCheck {
    /// When.
    pub at: Timestamp,
    /// Whether everything worked.
    pub ok: bool,
    /// In one line.
    pub verdict: String,
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
    sealing_key: Arc<SealingKey>,
    upstreams: Upstreams,
    live: RwLock<HashMap<RegistryHost, Registry>>,
}

impl Registries {
    /// Opens every stored connection. A secret that does not open is a refusal to start: a connection with an empty
    /// secret would fail much later and say something else.
    pub async fn load(
        store: Arc<dyn Store>,
        sealing_key: Arc<SealingKey>,
        upstreams: Upstreams,
    ) -> Result<Self, RegistriesError> {
        let registries = Self {
            store,
            sealing_key,
            upstreams,
            live: RwLock::default(),
        };
        for (_, connection) in scan_json::<Connection>(&*registries.store, TABLE, Scan::ALL).await? {
            let secrets = registries.open(&connection)?;
            registries.connect(connection.definition, secrets)?;
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
        let host = definition.host.clone();
        let key = host.to_string();
        let stored = self.store.get(TABLE, &key).await?;
        let old: Option<Connection> = get_json(&*self.store, TABLE, &key).await?;
        let version = old.as_ref().map_or(1, |old| old.version + 1);
        let connection = Connection {
            sealed: self.seal(&host, version, &secrets)?,
            definition,
            created_at: old.as_ref().map_or(now, |old| old.created_at),
            created_by: by.to_owned(),
            last_check: None,
            version,
        };
        let mut batch = Batch::new();
        match stored {
            Some(value) => batch.require_value(TABLE, &key, value),
            None => batch.require_absent(TABLE, &key),
        }
        batch.put_json(TABLE, &key, &connection)?;
        self.store.commit(batch).await?;
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(host, registry);
        Ok(connection)
    }

    /// One connection.
    pub async fn get(&self, host: &RegistryHost) -> Result<Connection, RegistriesError> {
        let found = get_json(&*self.store, TABLE, host.as_str()).await?;
        found.ok_or_else(|| RegistriesError::NotConnected(host.clone()))
    }

    /// A page of connections, by host.
    pub async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Connection>, RegistriesError> {
        let page = scan_json(
            &*self.store,
            TABLE,
            Scan {
                prefix: "",
                after,
                limit,
            },
        )
        .await?;
        Ok(page.into_iter().map(|(_, connection)| connection).collect())
    }

    /// Removes a connection; from now on nothing is asked of its host.
    pub async fn remove(&self, host: &RegistryHost) -> Result<Connection, RegistriesError> {
        let connection = self.get(host).await?;
        let mut batch = Batch::new();
        batch.delete(TABLE, host.as_str());
        self.store.commit(batch).await?;
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(host);
        Ok(connection)
    }

    /// Keeps what a test found.
    pub async fn record_check(
        &self,
        host: &RegistryHost,
        report: &CheckReport,
        now: Timestamp,
    ) -> Result<(), RegistriesError> {
        let mut connection = self.get(host).await?;
        connection.last_check = Some(LastCheck {
            at: now,
            ok: report.ok,
            verdict: report.verdict.clone(),
        });
        let mut batch = Batch::new();
        batch.put_json(TABLE, host.as_str(), &connection)?;
        Ok(self.store.commit(batch).await?)
    }

    /// The client of a connected registry.
    pub fn registry(&self, host: &RegistryHost) -> Result<Registry, RegistriesError> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.get(host)
            .cloned()
            .ok_or_else(|| RegistriesError::NotConnected(host.clone()))
    }

    /// How a connection has been doing since the facade started.
    pub fn health(&self, host: &RegistryHost) -> Option<Health> {
        self.registry(host).ok().map(|registry| registry.health())
    }

    fn connect(&self, definition: Definition, secrets: Secrets) -> Result<(), RegistriesError> {
        let host = definition.host.clone();
        let registry = self.upstreams.connect(definition, secrets)?;
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(host, registry);
        Ok(())
    }

    fn seal(
        &self,
        host: &RegistryHost,
        version: u64,
        secrets: &Secrets,
    ) -> Result<BTreeMap<String, Sealed>, RegistriesError> {
        let fields = [
            (CREDENTIAL, &secrets.credential),
            (CLIENT_KEY, &secrets.client_key_pem),
        ];
        let mut sealed = BTreeMap::new();
        for (field, secret) in fields {
            if let Some(secret) = secret {
                let context = Context {
                    host: host.as_str(),
                    field,
                    version,
                };
                let value = self.sealing_key.seal(secret.expose().as_bytes(), context);
                let value = value.map_err(|source| RegistriesError::Seal {
                    host: host.clone(),
                    source,
                })?;
                sealed.insert(field.to_owned(), value);
            }
        }
        Ok(sealed)
    }

    fn open(&self, connection: &Connection) -> Result<Secrets, RegistriesError> {
        let host = &connection.definition.host;
        let open = |field: &str| -> Result<Option<Secret>, RegistriesError> {
            let Some(sealed) = connection.sealed.get(field) else {
                return Ok(None);
            };
            let context = Context {
                host: host.as_str(),
                field,
                version: connection.version,
            };
            let opened = self
                .sealing_key
                .open(sealed, context)
                .map_err(|source| RegistriesError::Seal {
                    host: host.clone(),
                    source,
                })?;
            Ok(Some(Secret::new(String::from_utf8_lossy(&opened).into_owned())))
        };
        Ok(Secrets {
            credential: open(CREDENTIAL)?,
            client_key_pem: open(CLIENT_KEY)?,
        })
    }
}
