//! An OCI image layout directory as the place for images: for boards without containerd, and for tests without root.
//!
//! The directory is one that other tools read (`skopeo inspect oci:DIR:NAME`). A blob gets its name only after its bytes
//! agreed with it and are on the disk; half-written content and leases live in `.ingest`, which other tools pass over.
//! Several processes may use one directory: files are locked, and `index.json` is replaced whole.

mod index;
mod ingest;
mod layout;
mod sweep;

use std::path::PathBuf;

use async_trait::async_trait;
use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor};

use self::layout::Layout;
use super::{About, Cleaned, Handed, Image, Ingest, Lease, Runtime, RuntimeError, Space, Verification};

/// An image layout directory. Making one does nothing; the first call creates what is not there.
#[derive(Clone, Debug)]
pub struct OciLayout {
    layout: Layout,
}

impl OciLayout {
    /// Describes the directory to use.
    pub fn new(directory: PathBuf) -> Self {
        Self { layout: Layout::new(directory) }
    }

    /// Does file work where it does not hold up the sockets.
    async fn run<T, F>(&self, work: F) -> Result<T, RuntimeError>
    where
        T: Send + 'static,
        F: FnOnce(&Layout) -> Result<T, RuntimeError> + Send + 'static,
    {
        let layout = self.layout.clone();
        let work = move || layout.create().and_then(|()| work(&layout));
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(_) => Err(self.layout.interrupted()),
        }
    }
}

#[async_trait]
impl Runtime for OciLayout {
    async fn about(&self) -> Result<About, RuntimeError> {
        self.run(|layout| {
            Ok(About { kind: "oci-layout", version: layout::VERSION.to_owned(), address: layout.address() })
        })
        .await
    }

    async fn space(&self) -> Result<Space, RuntimeError> {
        self.run(Layout::space).await
    }

    async fn open(&self, artifact: &ArtifactName) -> Result<Lease, RuntimeError> {
        let artifact = artifact.clone();
        self.run(move |layout| {
            layout.put_lease(&artifact)?;
            Ok(Lease { artifact })
        })
        .await
    }

    async fn close(&self, lease: &Lease) -> Result<(), RuntimeError> {
        let artifact = lease.artifact().clone();
        self.run(move |layout| {
            layout.remove_lease(&artifact)?;
            layout.sweep().map(|_| ())
        })
        .await
    }

    async fn clean(&self, keep: &[ArtifactName]) -> Result<Cleaned, RuntimeError> {
        let keep = keep.to_vec();
        self.run(move |layout| {
            let leases = layout.remove_other_leases(&keep)?;
            let ingests = layout.sweep()?;
            Ok(Cleaned { leases, ingests })
        })
        .await
    }

    async fn hold(&self, lease: &Lease, content: &Descriptor) -> Result<bool, RuntimeError> {
        let (artifact, content) = (lease.artifact().clone(), content.clone());
        self.run(move |layout| {
            layout.put_lease(&artifact)?;
            layout.has(&content)
        })
        .await
    }

    async fn begin(&self, _lease: &Lease, content: &Descriptor) -> Result<Box<dyn Ingest>, RuntimeError> {
        let content = content.clone();
        let writing = self.run(move |layout| ingest::Writing::open(layout, &content)).await?;
        Ok(Box::new(writing))
    }

    async fn begun(&self, content: &Descriptor) -> Result<u64, RuntimeError> {
        let digest = content.digest;
        self.run(move |layout| Ok(layout.begun(digest))).await
    }

    async fn read(&self, content: &Descriptor) -> Result<Vec<u8>, RuntimeError> {
        let content = content.clone();
        self.run(move |layout| layout.read(&content)).await
    }

    async fn import(&self, _lease: &Lease, image: &Image) -> Result<(), RuntimeError> {
        let image = image.clone();
        self.run(move |layout| {
            for content in image.contents() {
                if !layout.has(content)? {
                    return Err(RuntimeError::Missing { digest: content.digest });
                }
            }
            layout.put_image(&image)
        })
        .await
    }

    async fn promote(&self, artifact: &ArtifactName) -> Result<(), RuntimeError> {
        let artifact = artifact.clone();
        self.run(move |layout| layout.promote(&artifact)).await
    }

    async fn images(&self) -> Result<Vec<Handed>, RuntimeError> {
        self.run(Layout::images).await
    }

    async fn remove(&self, artifact: &ArtifactName) -> Result<(), RuntimeError> {
        let artifact = artifact.clone();
        self.run(move |layout| {
            layout.remove_image(&artifact)?;
            layout.sweep().map(|_| ())
        })
        .await
    }

    async fn verify(&self, image: &Image) -> Result<Verification, RuntimeError> {
        let image = image.clone();
        self.run(move |layout| layout.verify(&image.contents())).await
    }

    /// Each content is on the disk before it has its name.
    async fn sync(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn discard(&self, digest: Digest) -> Result<(), RuntimeError> {
        self.run(move |layout| layout.remove_blob(digest)).await
    }
}
