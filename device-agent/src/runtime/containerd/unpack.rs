//! Unpacking: one committed snapshot per layer, named by chain identity, made by containerd itself.
//!
//! Layers are hostile archives; containerd applies them, never we. What comes out of each is held against the digest in
//! the image's configuration before it gets its name.

use std::collections::HashMap;

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{ApplyRequest, GetNamespaceRequest, PluginsRequest};
use containerd_client::types::{Descriptor as Diff, Mount};
use tonic::Code;

use super::super::image::Link;
use super::super::{Image, Lease, RuntimeError};
use super::connection::{Connection, under};
use super::records::set_labels;
use super::volumes::Volumes;
use super::{Containerd, Identifier, leases};

/// The snapshotter of a namespace that says nothing else; containerd's own default on Linux.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";
/// Where a namespace says something else.
const DEFAULT_LABEL: &str = "containerd.io/defaults/snapshotter";
/// By a label of this prefix the collector goes from configuration to snapshot.
const SNAPSHOT_LABEL: &str = "containerd.io/gc.ref.snapshot";
/// Tells containerd's clients what a layer unpacks to.
const UNCOMPRESSED_LABEL: &str = "containerd.io/uncompressed";

const SNAPSHOTTER_PLUGIN: &str = "io.containerd.snapshotter.v1";
const CONTENT_PLUGIN: &str = "io.containerd.content.v1";

/// Unpacks with one snapshotter that is known to work.
pub(super) struct Unpacker<'a> {
    connection: &'a Connection,
    snapshotter: String,
    volumes: Volumes,
}

impl Containerd {
    /// Finds the snapshotter, and where containerd keeps its files.
    pub(super) async fn unpacker(&self) -> Result<Unpacker<'_>, RuntimeError> {
        let connection = &*self.connection;
        let snapshotter = match &self.snapshotter {
            Some(snapshotter) => snapshotter.as_str().to_owned(),
            None => default_snapshotter(connection, &self.namespace).await?,
        };
        let filters = [SNAPSHOTTER_PLUGIN, CONTENT_PLUGIN].map(|kind| format!("type=={kind}"));
        let message = PluginsRequest { filters: filters.to_vec() };
        let answer = connection.introspection().await?.plugins(connection.request(message)).await;
        let answer = answer.map_err(|status| connection.error("listing its plugins", status))?;
        let mut available = Vec::new();
        let mut reason = "it has none of this name".to_owned();
        let mut volumes = Volumes::default();
        let mut usable = false;
        for plugin in answer.into_inner().plugins {
            let root = plugin.exports.get("root").map(Into::into);
            if plugin.r#type == CONTENT_PLUGIN {
                volumes.content = root;
            } else if let Some(error) = plugin.init_err {
                if plugin.id == snapshotter {
                    reason = error.message;
                }
            } else {
                if plugin.id == snapshotter {
                    usable = true;
                    volumes.snapshots = root;
                }
                available.push(plugin.id);
            }
        }
        if !usable {
            return Err(RuntimeError::Snapshotter { snapshotter, reason, available: available.join(", ") });
        }
        Ok(Unpacker { connection, snapshotter, volumes })
    }
}

async fn default_snapshotter(
    connection: &Connection,
    namespace: &Identifier,
) -> Result<String, RuntimeError> {
    let message = GetNamespaceRequest { name: namespace.as_str().to_owned() };
    let answer = match connection.namespaces().await?.get(connection.request(message)).await {
        Ok(answer) => answer.into_inner().namespace,
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => return Err(connection.error(format!("asking about namespace {namespace}"), status)),
    };
    let label = answer.and_then(|mut namespace| namespace.labels.remove(DEFAULT_LABEL));
    Ok(label.unwrap_or_else(|| DEFAULT_SNAPSHOTTER.to_owned()))
}

impl Unpacker<'_> {
    /// Where containerd keeps its files.
    pub(super) fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// Unpacks what is not unpacked yet and has the image's configuration hold it.
    pub(super) async fn unpack(&self, lease: &Lease, image: &Image) -> Result<(), RuntimeError> {
        let chain = image.chain();
        let Some(top) = chain.last() else { return Ok(()) };
        for link in &chain {
            self.unpack_layer(lease, link).await?;
            let label = (UNCOMPRESSED_LABEL.to_owned(), link.diff_id.to_string());
            set_labels(self.connection, lease, link.layer.digest, HashMap::from([label])).await?;
        }
        let label = (format!("{SNAPSHOT_LABEL}.{}", self.snapshotter), top.id.to_string());
        set_labels(self.connection, lease, image.config.digest, HashMap::from([label])).await
    }

    /// Whether an image is unpacked, or is not to be.
    pub(super) async fn has(&self, image: &Image) -> Result<bool, RuntimeError> {
        match image.chain().last() {
            Some(top) => self.exists(&top.id.to_string()).await,
            None => Ok(true),
        }
    }

    async fn exists(&self, key: &str) -> Result<bool, RuntimeError> {
        let message = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let mut client = self.connection.snapshots().await?;
        match client.stat(self.connection.request(message)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.connection.error(format!("looking for snapshot {key}"), status)),
        }
    }

    async fn unpack_layer(&self, lease: &Lease, link: &Link<'_>) -> Result<(), RuntimeError> {
        // The same layers may be there already, held by another image that can go at any moment.
        let kind = format!("snapshots/{}", self.snapshotter);
        leases::add(self.connection, lease, kind, link.id.to_string()).await?;
        if self.exists(&link.id.to_string()).await? {
            return Ok(());
        }
        let key = format!("drayage-unpack-{}", link.id.hex());
        // What a killed attempt began is of unknown content.
        self.remove(&key).await?;
        let mounts = self.prepare(lease, &key, link).await?;
        let unpacked = match self.apply(lease, link, mounts).await {
            Ok(()) => self.commit(lease, &key, link).await,
            Err(error) => Err(error),
        };
        if unpacked.is_err() {
            // The first error is the one to report; what stays behind is removed by the next attempt.
            let _ = self.remove(&key).await;
        }
        unpacked
    }

    async fn prepare(&self, lease: &Lease, key: &str, link: &Link<'_>) -> Result<Vec<Mount>, RuntimeError> {
        let message = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: link.below.map(|below| below.to_string()).unwrap_or_default(),
            labels: HashMap::new(),
        };
        let mut client = self.connection.snapshots().await?;
        let answer = client.prepare(under(lease, self.connection.work(message))).await;
        let action = || format!("preparing to unpack {}", link.layer.digest);
        let answer = answer.map_err(|status| self.connection.error(action(), status))?;
        Ok(answer.into_inner().mounts)
    }

    async fn apply(&self, lease: &Lease, link: &Link<'_>, mounts: Vec<Mount>) -> Result<(), RuntimeError> {
        let layer = link.layer.digest;
        let message = ApplyRequest {
            diff: Some(Diff {
                media_type: link.layer.media_type.to_string(),
                digest: layer.to_string(),
                size: i64::try_from(link.layer.size).unwrap_or(i64::MAX),
                annotations: HashMap::new(),
            }),
            mounts,
            payloads: HashMap::new(),
            sync_fs: false,
        };
        let mut client = self.connection.diff().await?;
        let applied = match client.apply(under(lease, self.connection.work(message))).await {
            Ok(answer) => answer.into_inner().applied.unwrap_or_default(),
            Err(status) if status.code() == Code::NotFound => {
                return Err(RuntimeError::Missing { digest: layer });
            }
            Err(status) => return Err(self.connection.error(format!("unpacking {layer}"), status)),
        };
        if applied.digest == link.diff_id.to_string() {
            return Ok(());
        }
        Err(RuntimeError::WrongLayer { layer, unpacked: applied.digest, promised: link.diff_id })
    }

    async fn commit(&self, lease: &Lease, key: &str, link: &Link<'_>) -> Result<(), RuntimeError> {
        let message = CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: link.id.to_string(),
            key: key.to_owned(),
            labels: HashMap::new(),
        };
        let mut client = self.connection.snapshots().await?;
        match client.commit(under(lease, self.connection.work(message))).await {
            Ok(_) => Ok(()),
            // Someone else unpacked the same layer meanwhile.
            Err(status) if status.code() == Code::AlreadyExists => self.remove(key).await,
            Err(status) => {
                let action = format!("keeping unpacked {}", link.layer.digest);
                Err(self.connection.error(action, status))
            }
        }
    }

    async fn remove(&self, key: &str) -> Result<(), RuntimeError> {
        let message = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let mut client = self.connection.snapshots().await?;
        match client.remove(self.connection.work(message)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.connection.error(format!("removing snapshot {key}"), status)),
        }
    }
}
