//! Image records and the labels by which containerd's collector finds what an image is made of.
//!
//! The collector follows `containerd.io/gc.ref.*` labels from record to index to manifest to configuration to snapshot.
//! Ours have keys of our own: `ctr content prune references` takes away those of containerd's clients, and with them
//! the layers that a rollback or a check needs; and another client's numbering of the children stays as it is. Of an
//! index only the manifest of this device is here, so only that one is named.

use std::collections::HashMap;

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as Record, Info, ListImagesRequest,
    UpdateImageRequest, UpdateRequest,
};
use containerd_client::types::Descriptor as Target;
use pki::digest::Digest;
use pki::oci::ArtifactName;
use prost_types::FieldMask;
use tonic::Code;

use super::super::{Handed, Image, Lease, RuntimeError, current_alias};
use super::connection::{Connection, under};

/// Marks what is ours, and tells which artifact it is of.
pub(super) const ARTIFACT_LABEL: &str = "io.drayage.artifact";

/// By labels of this prefix the collector goes from content to content.
const CONTENT_LABEL: &str = "containerd.io/gc.ref.content.drayage";

/// Labels the documents of an image with what they point at.
pub(super) async fn label(connection: &Connection, lease: &Lease, image: &Image) -> Result<(), RuntimeError> {
    // From below: no document is protected before what it needs is.
    set_labels(connection, lease, image.manifest().digest, manifest_labels(image)).await?;
    let indexes = std::iter::once(&image.root).chain(&image.below);
    let steps: Vec<_> = indexes.zip(&image.below).collect();
    for (index, chosen) in steps.into_iter().rev() {
        let chosen = (format!("{CONTENT_LABEL}.drayage"), chosen.digest.to_string());
        set_labels(connection, lease, index.digest, HashMap::from([chosen])).await?;
    }
    Ok(())
}

/// The labels of a manifest.
fn manifest_labels(image: &Image) -> HashMap<String, String> {
    let layers = image.layers.iter().enumerate();
    let layers =
        layers.map(|(number, layer)| (format!("{CONTENT_LABEL}.layer.{number}"), layer.digest.to_string()));
    let config = (format!("{CONTENT_LABEL}.config"), image.config.digest.to_string());
    layers.chain([config]).collect()
}

/// Adds labels to content; those it has stay.
pub(super) async fn set_labels(
    connection: &Connection,
    lease: &Lease,
    digest: Digest,
    labels: HashMap<String, String>,
) -> Result<(), RuntimeError> {
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let message = UpdateRequest {
        info: Some(Info { digest: digest.to_string(), labels, ..Info::default() }),
        update_mask: Some(FieldMask { paths }),
    };
    let mut client = connection.content().await?;
    match client.update(under(lease, connection.request(message))).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Err(RuntimeError::Missing { digest }),
        Err(status) => Err(connection.error(format!("labelling {digest}"), status)),
    }
}

/// Creates or corrects the record of an image.
pub(super) async fn put(connection: &Connection, image: &Image) -> Result<(), RuntimeError> {
    let target = Target {
        media_type: image.root.media_type.to_string(),
        digest: image.root.digest.to_string(),
        size: i64::try_from(image.root.size).unwrap_or(i64::MAX),
        annotations: HashMap::new(),
    };
    write(connection, record(image.artifact.to_string(), &image.artifact, target)).await
}

/// Points the alias to an image.
pub(super) async fn promote(connection: &Connection, artifact: &ArtifactName) -> Result<(), RuntimeError> {
    let image = get(connection, &artifact.to_string()).await?;
    let Some(target) = image.and_then(|image| image.target) else {
        return Err(RuntimeError::Unknown { artifact: artifact.clone() });
    };
    write(connection, record(current_alias(artifact.repository()), artifact, target)).await
}

pub(super) async fn list(connection: &Connection) -> Result<Vec<Handed>, RuntimeError> {
    let message = ListImagesRequest { filters: vec![format!("labels.\"{ARTIFACT_LABEL}\"")] };
    let answer = connection.images().await?.list(connection.request(message)).await;
    let answer = answer.map_err(|status| connection.error("listing images", status))?;
    let ours = |record: Record| {
        let artifact: ArtifactName = record.labels.get(ARTIFACT_LABEL)?.parse().ok()?;
        Some((record.name, artifact))
    };
    let records: Vec<(String, ArtifactName)> =
        answer.into_inner().images.into_iter().filter_map(ours).collect();
    let current = |artifact: &ArtifactName| {
        let alias = current_alias(artifact.repository());
        records.iter().any(|(name, target)| *name == alias && target == artifact)
    };
    let named = records.iter().filter(|(name, artifact)| *name == artifact.to_string());
    let handed = named.map(|(_, artifact)| Handed { artifact: artifact.clone(), current: current(artifact) });
    Ok(handed.collect())
}

/// Deletes the record of an image, and the alias if it points there.
pub(super) async fn remove(connection: &Connection, artifact: &ArtifactName) -> Result<(), RuntimeError> {
    let alias = current_alias(artifact.repository());
    if let Some(record) = get(connection, &alias).await? {
        if record.labels.get(ARTIFACT_LABEL) == Some(&artifact.to_string()) {
            delete(connection, alias).await?;
        }
    }
    delete(connection, artifact.to_string()).await
}

/// A record. Its labels say whose it is and nothing else.
fn record(name: String, artifact: &ArtifactName, target: Target) -> Record {
    Record {
        name,
        labels: HashMap::from([(ARTIFACT_LABEL.to_owned(), artifact.to_string())]),
        target: Some(target),
        created_at: None,
        updated_at: None,
    }
}

async fn write(connection: &Connection, record: Record) -> Result<(), RuntimeError> {
    let action = format!("recording image {}", record.name);
    let mut client = connection.images().await?;
    let creation = CreateImageRequest { image: Some(record.clone()), source_date_epoch: None };
    match client.create(connection.request(creation)).await {
        Ok(_) => return Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => {}
        Err(status) => return Err(connection.error(action, status)),
    }
    let update = UpdateImageRequest {
        image: Some(record),
        // Whole: labels that something else put there go.
        update_mask: Some(FieldMask { paths: vec!["target".to_owned(), "labels".to_owned()] }),
        source_date_epoch: None,
    };
    let answer = client.update(connection.request(update)).await;
    answer.map_err(|status| connection.error(action, status))?;
    Ok(())
}

async fn get(connection: &Connection, name: &str) -> Result<Option<Record>, RuntimeError> {
    let message = GetImageRequest { name: name.to_owned() };
    match connection.images().await?.get(connection.request(message)).await {
        Ok(answer) => Ok(answer.into_inner().image),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(connection.error(format!("looking for image {name}"), status)),
    }
}

/// Deletes a record; returns when what it held is gone, so that the room is really there.
async fn delete(connection: &Connection, name: String) -> Result<(), RuntimeError> {
    let action = format!("removing image {name}");
    let message = DeleteImageRequest { name, sync: true, target: None };
    match connection.images().await?.delete(connection.work(message)).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(connection.error(action, status)),
    }
}
