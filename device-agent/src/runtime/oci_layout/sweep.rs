//! Taking out of a layout what no name and no lease needs.
//!
//! Reads documents loosely, by their pointers only: whatever looks like it is needed stays.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;

use pki::digest::Digest;
use pki::oci::manifest::MAX_DOCUMENT_BYTES;
use rustix::fs::FlockOperation;
use serde_json::Value;

use super::super::RuntimeError;
use super::index::entries_of;
use super::layout::{Layout, file_name};

impl Layout {
    /// Removes blobs and half-written content that nothing needs; says how much of the latter.
    pub(super) fn sweep(&self) -> Result<usize, RuntimeError> {
        let _lock = self.lock()?;
        let needed = self.needed()?;
        for algorithm in ["sha256", "sha512"] {
            for path in self.files(&self.blobs(algorithm))? {
                let digest = format!("{algorithm}:{}", file_name(&path)).parse::<Digest>();
                if digest.is_ok_and(|digest| !needed.contains(&digest)) {
                    self.remove(&path)?;
                }
            }
        }
        let mut ingests = 0;
        for path in self.files(&self.ingests())? {
            let digest = file_name(&path).replacen('-', ":", 1).parse::<Digest>();
            let stale = digest.is_ok_and(|digest| !needed.contains(&digest));
            if stale && File::open(&path).is_ok_and(|file| is_idle(&file)) {
                self.remove(&path)?;
                ingests += 1;
            }
        }
        Ok(ingests)
    }

    /// Everything that an entry of the index or a lease points at, there or not.
    fn needed(&self) -> Result<BTreeSet<Digest>, RuntimeError> {
        let index = self.read_index()?;
        let mut waiting: Vec<Digest> = entries_of(&index).iter().filter_map(digest_of).collect();
        waiting.extend(self.leases()?.iter().map(pki::oci::ArtifactName::digest));
        let mut needed = BTreeSet::new();
        while let Some(digest) = waiting.pop() {
            if needed.insert(digest) {
                waiting.extend(self.pointers(digest));
            }
        }
        Ok(needed)
    }

    /// What a blob points at, if it is a document.
    fn pointers(&self, digest: Digest) -> Vec<Digest> {
        let path = self.blob_path(digest);
        let small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_DOCUMENT_BYTES as u64);
        let document = if small { fs::read(&path).ok() } else { None };
        let Some(document) = document.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) else {
            return Vec::new();
        };
        let mut pointers = Vec::new();
        for key in ["manifests", "layers", "blobs"] {
            let children = document.get(key).and_then(Value::as_array);
            pointers.extend(children.into_iter().flatten().filter_map(digest_of));
        }
        for key in ["config", "subject"] {
            pointers.extend(document.get(key).and_then(digest_of));
        }
        pointers
    }
}

fn digest_of(descriptor: &Value) -> Option<Digest> {
    descriptor.get("digest")?.as_str()?.parse().ok()
}

/// Whether nobody writes the file.
fn is_idle(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}
