//! `index.json`: the names of a layout. Entries of others stay as they are.

use std::fs;

use pki::json;
use pki::oci::manifest::MAX_DOCUMENT_BYTES;
use pki::oci::{ArtifactName, Descriptor};
use serde_json::{Value, json};

use super::super::{Cause, Handed, Image, RuntimeError, current_alias};
use super::layout::Layout;

/// How other tools know an entry (OCI image specification, annotations.md).
const NAME: &str = "org.opencontainers.image.ref.name";
/// Marks what is ours, and tells which artifact it is of.
const ARTIFACT: &str = "io.drayage.artifact";

impl Layout {
    /// Adds an image under its artifact's name.
    pub(super) fn put_image(&self, image: &Image) -> Result<(), RuntimeError> {
        let name = image.artifact.to_string();
        self.change_index(|entries| {
            put(entries, entry(&name, &image.artifact, descriptor(&image.root)));
            Ok(())
        })
    }

    /// Points the alias to an image.
    pub(super) fn promote(&self, artifact: &ArtifactName) -> Result<(), RuntimeError> {
        let alias = current_alias(artifact.repository());
        self.change_index(|entries| {
            let name = artifact.to_string();
            let Some(image) = entries.iter().find(|entry| annotation(entry, NAME) == Some(&name)) else {
                return Err(RuntimeError::Unknown { artifact: artifact.clone() });
            };
            let current = entry(&alias, artifact, image.clone());
            put(entries, current);
            Ok(())
        })
    }

    /// Removes an image's entry, and the alias if it points there.
    pub(super) fn remove_image(&self, artifact: &ArtifactName) -> Result<(), RuntimeError> {
        let name = artifact.to_string();
        self.change_index(|entries| {
            entries.retain(|entry| annotation(entry, ARTIFACT) != Some(&name));
            Ok(())
        })
    }

    pub(super) fn images(&self) -> Result<Vec<Handed>, RuntimeError> {
        let entries = entries_of(&self.read_index()?);
        let mut handed = Vec::new();
        for entry in &entries {
            let parsed = annotation(entry, ARTIFACT).and_then(|text| text.parse::<ArtifactName>().ok());
            let Some(artifact) = parsed else { continue };
            if annotation(entry, NAME) != Some(&artifact.to_string()) {
                continue;
            }
            let alias = current_alias(artifact.repository());
            let is_current = |entry: &&Value| {
                annotation(entry, NAME) == Some(&alias)
                    && annotation(entry, ARTIFACT) == Some(&artifact.to_string())
            };
            let current = entries.iter().any(|entry| is_current(&entry));
            handed.push(Handed { artifact, current });
        }
        Ok(handed)
    }

    pub(super) fn read_index(&self) -> Result<Value, RuntimeError> {
        let bytes = fs::read(self.index_path()).map_err(|error| self.failed("reading index.json", error))?;
        json::parse(&bytes, MAX_DOCUMENT_BYTES).map_err(|error| RuntimeError::Failed {
            address: self.address(),
            action: "reading index.json".to_owned(),
            source: Cause::Json(error),
        })
    }

    fn change_index(
        &self,
        change: impl FnOnce(&mut Vec<Value>) -> Result<(), RuntimeError>,
    ) -> Result<(), RuntimeError> {
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let before = entries_of(&index);
        let mut entries = before.clone();
        change(&mut entries)?;
        if entries == before {
            return Ok(());
        }
        if let Some(object) = index.as_object_mut() {
            object.insert("manifests".to_owned(), Value::Array(entries));
        }
        self.replace(&self.index_path(), index.to_string().as_bytes())
    }
}

/// Every entry of an index, ours or not.
pub(super) fn entries_of(index: &Value) -> Vec<Value> {
    let entries = index.get("manifests").and_then(Value::as_array);
    entries.cloned().unwrap_or_default()
}

fn descriptor(content: &Descriptor) -> Value {
    json!({
        "mediaType": content.media_type,
        "digest": content.digest,
        "size": content.size,
    })
}

/// An entry that points where `target` does. Annotations of the image itself are not taken over: an image must not
/// name itself.
fn entry(name: &str, artifact: &ArtifactName, target: Value) -> Value {
    let mut entry = target;
    if let Some(object) = entry.as_object_mut() {
        object.insert("annotations".to_owned(), json!({ NAME: name, ARTIFACT: artifact }));
    }
    entry
}

/// Adds an entry in the place of the one with the same name.
fn put(entries: &mut Vec<Value>, new: Value) {
    entries.retain(|entry| annotation(entry, NAME) != annotation(&new, NAME));
    entries.push(new);
}

fn annotation<'a>(entry: &'a Value, key: &str) -> Option<&'a str> {
    entry.get("annotations")?.get(key)?.as_str()
}
