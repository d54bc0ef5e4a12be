//! Where delivered images go: the content store of containerd, or an OCI image layout directory.
//!
//! [`Runtime`] takes content by digest under a [`Lease`], lets the *store* verify it on commit (nothing unverified ever
//! has a name there), and makes an image of it that no garbage collection takes. It never fetches anything, never
//! follows a URL of a document and decides nothing about what should be delivered. The life of containers (`start`,
//! `probe`, `stop`) will be three more methods of the same trait; until then the operator's hook runs them.
//!
//! The order of one delivery: [`Runtime::open`] a lease, for each content [`Runtime::hold`] or [`Runtime::begin`] and
//! [`Ingest::commit`], then [`Runtime::import`], then [`Runtime::promote`], then [`Runtime::close`]. Every call may be
//! repeated after a crash.

pub mod containerd;
pub mod image;
pub mod oci_layout;

use async_trait::async_trait;
use bytes::Bytes;
use pki::digest::{Digest, Mismatch};
use pki::oci::{ArtifactName, Descriptor, Repository};
use thiserror::Error;

pub use image::{Image, ImageError};

/// Largest content that [`Runtime::read`] returns: documents and configurations, never layers.
pub const MAX_READ_BYTES: u64 = pki::oci::manifest::MAX_DOCUMENT_BYTES as u64;

/// A place that delivered images are handed to.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Says what the place is and which version answers; fails when it could not take an image now.
    async fn about(&self) -> Result<About, RuntimeError>;

    /// Tells how much room there is, as far as this process can see.
    async fn space(&self) -> Result<Space, RuntimeError>;

    /// Opens, or finds again after a restart, the one lease for delivering `artifact`. It does not expire: a slow link
    /// must not lose to a timer.
    async fn open(&self, artifact: &ArtifactName) -> Result<Lease, RuntimeError>;

    /// Ends a lease. What was committed under it and is part of no image may then be collected.
    async fn close(&self, lease: &Lease) -> Result<(), RuntimeError>;

    /// Removes what earlier attempts left behind: our leases and half-written content, except those for `keep`.
    async fn clean(&self, keep: &[ArtifactName]) -> Result<Cleaned, RuntimeError>;

    /// Whether the content is already there; if so, it stays at least as long as the lease. Content with another length
    /// is [`RuntimeError::Corrupt`], to be discarded.
    async fn hold(&self, lease: &Lease, content: &Descriptor) -> Result<bool, RuntimeError>;

    /// Starts or resumes taking content in. Two at a time for one digest are refused with [`RuntimeError::Busy`].
    async fn begin(&self, lease: &Lease, content: &Descriptor) -> Result<Box<dyn Ingest>, RuntimeError>;

    /// How much of a content is here half-written, without touching it.
    async fn begun(&self, content: &Descriptor) -> Result<u64, RuntimeError>;

    /// Reads a document or configuration, of at most [`MAX_READ_BYTES`], and verifies it.
    async fn read(&self, content: &Descriptor) -> Result<Vec<u8>, RuntimeError>;

    /// Makes an image named by its artifact: protected from garbage collection, unpacked where the place can unpack, and
    /// durable when this returns. Importing it again changes nothing.
    async fn import(&self, lease: &Lease, image: &Image) -> Result<(), RuntimeError>;

    /// Moves the alias of [`current_alias`] to an imported image.
    async fn promote(&self, artifact: &ArtifactName) -> Result<(), RuntimeError>;

    /// Lists the images that we handed over.
    async fn images(&self) -> Result<Vec<Handed>, RuntimeError>;

    /// Takes back an image and, when it points there, the alias. Content that nothing else needs goes with it.
    async fn remove(&self, artifact: &ArtifactName) -> Result<(), RuntimeError>;

    /// Reads back and hashes every byte of an image.
    async fn verify(&self, image: &Image) -> Result<Verification, RuntimeError>;

    /// Returns when everything that was taken in is on the disk.
    async fn sync(&self) -> Result<(), RuntimeError>;

    /// Deletes one damaged content, so that it can be taken in again.
    async fn discard(&self, digest: Digest) -> Result<(), RuntimeError>;
}

/// Content on its way in. Dropping it keeps what the store has, to be resumed by the next [`Runtime::begin`]; so does an
/// error, and giving up waiting for a call, after both of which it can only be dropped.
#[async_trait]
pub trait Ingest: Send {
    /// Where the next byte belongs: right after [`Runtime::begin`] the number of bytes to skip, which may be all.
    fn offset(&self) -> u64;

    /// Takes the next bytes. Returns when the store is ready for more, so that a slow disk slows the download and not
    /// the memory. Refuses what goes past the promised length.
    async fn write(&mut self, bytes: Bytes) -> Result<(), RuntimeError>;

    /// Gives the store what is still buffered here, before a pause.
    async fn flush(&mut self) -> Result<(), RuntimeError>;

    /// Ends the content: the store holds it against its digest. After [`RuntimeError::Corrupt`] nothing of it is left.
    async fn commit(self: Box<Self>) -> Result<(), RuntimeError>;

    /// Gives up and deletes what was taken in.
    async fn abort(self: Box<Self>) -> Result<(), RuntimeError>;
}

/// The right to bring content in for one artifact; only [`Runtime::open`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    artifact: ArtifactName,
}

impl Lease {
    /// What is being delivered.
    pub fn artifact(&self) -> &ArtifactName {
        &self.artifact
    }
}

/// What a place says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// `containerd`, `oci-layout`.
    pub kind: &'static str,
    /// The version of the program or format.
    pub version: String,
    /// The socket or directory.
    pub address: String,
}

/// Free room; `None` where this process cannot see the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes free for content.
    pub content_free_bytes: Option<u64>,
    /// Bytes free for unpacked images; `None` also where nothing is unpacked.
    pub unpacked_free_bytes: Option<u64>,
    /// Whether both numbers are of one and the same file system.
    pub shared: bool,
}

/// What [`Runtime::clean`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Leases.
    pub leases: usize,
    /// Half-written contents.
    pub ingests: usize,
}

/// An image that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Its name.
    pub artifact: ArtifactName,
    /// Whether the alias points to it.
    pub current: bool,
}

/// What reading back an image found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Bytes that were read and agree.
    pub verified_bytes: u64,
    /// Content that is not there.
    pub missing: Vec<Digest>,
    /// Content that is not what it should be.
    pub damaged: Vec<Digest>,
    /// Whether the unpacked form is missing where there should be one.
    pub unpacked_missing: bool,
}

impl Verification {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.missing.is_empty() && self.damaged.is_empty() && !self.unpacked_missing
    }
}

/// The stable name under which the current image of a repository can be run: `host/repository:current`.
pub fn current_alias(repository: &Repository) -> String {
    format!("{repository}:current")
}

/// What went wrong while handing content over.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// The place does not answer; it may be restarting.
    #[error("{address} does not answer while {action}")]
    Unreachable {
        /// The socket or directory.
        address: String,
        /// What was being done.
        action: String,
        /// What happened.
        #[source]
        source: Cause,
    },
    /// Another writer has the content; it may be a dead one whose end was not noticed yet.
    #[error("{digest} is being written by someone else")]
    Busy {
        /// The content.
        digest: Digest,
    },
    /// The disk, or a quota on it, is full.
    #[error("no space left while {action}")]
    NoSpace {
        /// What was being done.
        action: String,
        /// What happened.
        #[source]
        source: Cause,
    },
    /// The bytes are not those that the digest names.
    #[error("content of {digest} was refused")]
    Corrupt {
        /// The content.
        digest: Digest,
        /// How it differs.
        #[source]
        source: Cause,
    },
    /// Content that should be there is not; it can be fetched again.
    #[error("{digest} is not in the store")]
    Missing {
        /// The content.
        digest: Digest,
    },
    /// There is no image of this name.
    #[error("{artifact} has not been imported")]
    Unknown {
        /// The name.
        artifact: ArtifactName,
    },
    /// Content too large to be read at once.
    #[error("{digest} is {size_bytes} bytes long; only {MAX_READ_BYTES} are read at once")]
    TooLarge {
        /// The content.
        digest: Digest,
        /// Its length.
        size_bytes: u64,
    },
    /// The place cannot unpack images as it is set up.
    #[error("containerd has no usable snapshotter {snapshotter:?} ({reason}); it has: {available}")]
    Snapshotter {
        /// The one that is wanted.
        snapshotter: String,
        /// Why it cannot be used.
        reason: String,
        /// Those that can be.
        available: String,
    },
    /// A layer unpacks to something else than the configuration of its image promises.
    #[error("layer {layer} unpacks to {unpacked}, but the image says {promised}")]
    WrongLayer {
        /// The layer.
        layer: Digest,
        /// The digest of what came out.
        unpacked: String,
        /// The digest in the configuration.
        promised: Digest,
    },
    /// The place refused for another reason.
    #[error("{address} refused {action}")]
    Failed {
        /// The socket or directory.
        address: String,
        /// What was being done.
        action: String,
        /// What happened.
        #[source]
        source: Cause,
    },
}

/// What lies under a [`RuntimeError`].
#[derive(Debug, Error)]
pub enum Cause {
    /// An answer of containerd.
    #[error("{}: {}", .0.code(), .0.message())]
    Status(Box<tonic::Status>),
    /// A connection that could not be made.
    #[error("cannot connect")]
    Connect(#[source] tonic::transport::Error),
    /// A file operation.
    #[error(transparent)]
    File(std::io::Error),
    /// Content that differs from its digest or length.
    #[error(transparent)]
    Mismatch(Mismatch),
    /// A file of the layout that is not what it should be.
    #[error(transparent)]
    Json(pki::json::JsonError),
    /// An answer that does not follow the protocol.
    #[error("{0}")]
    Protocol(&'static str),
}

impl RuntimeError {
    /// The content that the store has a name for and not the bytes: after a power cut, or with a bad sector.
    pub fn damaged(&self) -> Option<Digest> {
        match self {
            Self::Corrupt { digest, .. } | Self::Missing { digest } => Some(*digest),
            Self::Unreachable { .. }
            | Self::Busy { .. }
            | Self::NoSpace { .. }
            | Self::Unknown { .. }
            | Self::TooLarge { .. }
            | Self::Snapshotter { .. }
            | Self::WrongLayer { .. }
            | Self::Failed { .. } => None,
        }
    }

    /// Whether waiting and doing the same again may help, without anything else being changed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Busy { .. } => true,
            Self::NoSpace { .. }
            | Self::Corrupt { .. }
            | Self::Missing { .. }
            | Self::Unknown { .. }
            | Self::TooLarge { .. }
            | Self::Snapshotter { .. }
            | Self::WrongLayer { .. }
            | Self::Failed { .. } => false,
        }
    }
}
