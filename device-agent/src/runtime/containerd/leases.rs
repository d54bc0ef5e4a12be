//! Leases: what keeps the parts of a delivery from being collected until its image record does.
//!
//! One lease per artifact, its identity made of the artifact's name, so that an attempt after a crash finds its own
//! again. It has no expiry: a timer would lose to a slow link (the content of a 48-hour pull was collected under the
//! 24-hour lease of other clients). We delete it.

use std::collections::{BTreeSet, HashMap};

use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, ListResourcesRequest, ListStatusesRequest,
    Resource,
};
use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor};
use tonic::Code;

use super::super::{Cleaned, Lease, RuntimeError};
use super::connection::Connection;
use super::ingest::{self, REF_PREFIX};
use super::records::ARTIFACT_LABEL;
use super::store;

/// When containerd collects what a deleted lease held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Collect {
    /// Before it answers.
    Now,
    /// When it gets to it.
    Later,
}

/// The identity of an artifact's lease; a name would be too long and hold characters that identities may not.
pub(super) fn id(artifact: &ArtifactName) -> String {
    format!("drayage-{}", Digest::sha256(artifact.to_string().as_bytes()).hex())
}

pub(super) async fn open(connection: &Connection, artifact: &ArtifactName) -> Result<Lease, RuntimeError> {
    let labels = HashMap::from([(ARTIFACT_LABEL.to_owned(), artifact.to_string())]);
    create(connection, &id(artifact), labels).await?;
    Ok(Lease { artifact: artifact.clone() })
}

async fn create(
    connection: &Connection,
    id: &str,
    labels: HashMap<String, String>,
) -> Result<(), RuntimeError> {
    let message = CreateRequest { id: id.to_owned(), labels };
    match connection.leases().await?.create(connection.request(message)).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        Err(status) => Err(connection.error("opening a lease", status)),
    }
}

pub(super) async fn delete(connection: &Connection, id: &str, collect: Collect) -> Result<(), RuntimeError> {
    let message = DeleteRequest { id: id.to_owned(), sync: collect == Collect::Now };
    match connection.leases().await?.delete(connection.work(message)).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(connection.error("ending a lease", status)),
    }
}

/// Makes containerd collect now. It does so when a lease ends, and only then.
pub(super) async fn collect(connection: &Connection) -> Result<(), RuntimeError> {
    let id = "drayage-collect";
    create(connection, id, HashMap::from([(ARTIFACT_LABEL.to_owned(), String::new())])).await?;
    delete(connection, id, Collect::Now).await
}

/// Puts content under a lease; `false` if it is not there.
pub(super) async fn hold(
    connection: &Connection,
    lease: &Lease,
    content: &Descriptor,
) -> Result<bool, RuntimeError> {
    add(connection, lease, "content".to_owned(), content.digest.to_string()).await?;
    // Asked after it is held, so that it cannot go in between.
    store::has(connection, content).await
}

/// Puts something under a lease, whether or not it is there. `kind` is `content` or `snapshots/SNAPSHOTTER`.
pub(super) async fn add(
    connection: &Connection,
    lease: &Lease,
    kind: String,
    name: String,
) -> Result<(), RuntimeError> {
    let action = format!("holding {name}");
    let message =
        AddResourceRequest { id: id(lease.artifact()), resource: Some(Resource { id: name, r#type: kind }) };
    let mut client = connection.leases().await?;
    let mut answer = client.add_resource(connection.request(message.clone())).await;
    if answer.as_ref().is_err_and(|status| status.code() == Code::NotFound) {
        // Someone removed our lease: take it again.
        open(connection, lease.artifact()).await?;
        answer = client.add_resource(connection.request(message)).await;
    }
    answer.map_err(|status| connection.error(action, status))?;
    Ok(())
}

pub(super) async fn clean(connection: &Connection, keep: &[ArtifactName]) -> Result<Cleaned, RuntimeError> {
    let keep: BTreeSet<String> = keep.iter().map(id).collect();
    let mut cleaned = Cleaned::default();
    let mut wanted = BTreeSet::new();
    for id in &keep {
        wanted.extend(ingests_of(connection, id).await?);
    }
    for stale in ingests(connection).await? {
        if !wanted.contains(&stale) {
            ingest::delete(connection, &stale).await?;
            cleaned.ingests += 1;
        }
    }
    // Leases last: when one ends, containerd starts to collect by itself.
    for stale in list(connection).await? {
        if !keep.contains(&stale) {
            delete(connection, &stale, Collect::Later).await?;
            cleaned.leases += 1;
        }
    }
    Ok(cleaned)
}

async fn list(connection: &Connection) -> Result<Vec<String>, RuntimeError> {
    let message = ListRequest { filters: vec![format!("labels.\"{ARTIFACT_LABEL}\"")] };
    let answer = connection.leases().await?.list(connection.request(message)).await;
    let answer = answer.map_err(|status| connection.error("listing leases", status))?;
    Ok(answer.into_inner().leases.into_iter().map(|lease| lease.id).collect())
}

/// The half-written contents that a lease holds.
async fn ingests_of(connection: &Connection, id: &str) -> Result<Vec<String>, RuntimeError> {
    let message = ListResourcesRequest { id: id.to_owned() };
    let answer = connection.leases().await?.list_resources(connection.request(message)).await;
    match answer {
        Ok(answer) => Ok(answer
            .into_inner()
            .resources
            .into_iter()
            .filter(|resource| resource.r#type == "ingests")
            .map(|resource| resource.id)
            .collect()),
        Err(status) if status.code() == Code::NotFound => Ok(Vec::new()),
        Err(status) => Err(connection.error("listing what a lease holds", status)),
    }
}

/// All half-written contents of ours.
async fn ingests(connection: &Connection) -> Result<Vec<String>, RuntimeError> {
    let message = ListStatusesRequest { filters: Vec::new() };
    let answer = connection.content().await?.list_statuses(connection.request(message)).await;
    let answer = answer.map_err(|status| connection.error("listing half-written content", status))?;
    let refs = answer.into_inner().statuses.into_iter().map(|status| status.r#ref);
    Ok(refs.filter(|reference| reference.starts_with(REF_PREFIX)).collect())
}
