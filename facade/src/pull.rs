//! One pull: from the cache, else from a flight that fills it, to as many readers as ask.
//!
//! Whoever asks has been authorized before ([`crate::authz`]); here it is only *which bytes*. Every byte that leaves is
//! held against length and digest of the frozen closure. This module knows no HTTP status and no device.

mod at_hand;
pub mod evict;
mod fill;
mod flight;
mod reader;
mod sizes;
mod source;
mod upkeep;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pki::digest::{Digest, Mismatch};
use pki::oci::{Descriptor, RegistryHost, Repository};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::blobs::{Blobs, BlobsError};
use crate::catalog::closure::Kind;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::upstream::UpstreamError;

use at_hand::AtHand;
use evict::Policy;
use flight::Flights;
pub use reader::{Origin, Reader};
use sizes::Sizes;
pub use source::{Fetch, Incoming, registries};
pub use upkeep::{Checked, Usage};

/// Up to this length nothing goes out before the digest agrees: bad bytes poison containerd's ingest.
pub const VERIFY_FIRST_MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Content, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The repository of the artifact that it belongs to.
    pub repository: Repository,
    /// What the closure says of it.
    pub descriptor: Descriptor,
    /// Under which path of the distribution API it is found.
    pub kind: Kind,
}

/// How pulls behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Keep what was pulled. Without, content still streams through one flight to all who ask meanwhile.
    pub cache: bool,
    /// What to keep.
    pub policy: Policy,
    /// How long somebody who asks waits for the first byte, a registry's rate limit included. Clients of containerd give up
    /// after 30 seconds without a header.
    pub patience: Duration,
    /// How long a flight waits for the next bytes of its registry.
    pub stall: Duration,
    /// How long a registry that served wrong bytes is not asked for the same content again, however often devices retry.
    pub distrust: Duration,
    /// How many flights may be under way.
    pub max_flights: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cache: true,
            policy: Policy::default(),
            patience: Duration::from_secs(25),
            stall: Duration::from_secs(45),
            distrust: Duration::from_mins(1),
            max_flights: 64,
        }
    }
}

/// Why there are no (more) bytes. Reaches every reader of a flight, hence `Clone`.
#[derive(Clone, Debug, Error)]
pub enum PullError {
    /// The registry is not connected.
    #[error("{host} is not connected")]
    NotConnected {
        /// The registry.
        host: RegistryHost,
    },
    /// The registry limits the rate of requests for longer than anybody waits.
    #[error("{host} limits the rate of requests for another {} s", retry_after.as_secs())]
    RateLimited {
        /// The registry.
        host: RegistryHost,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The registry gave nothing, after all that was tried.
    #[error("cannot fetch {digest}")]
    Upstream {
        /// The content.
        digest: Digest,
        /// What happened last.
        #[source]
        source: UpstreamError,
    },
    /// The registry stopped sending.
    #[error("no byte of {digest} came for {} s", waited.as_secs())]
    Stalled {
        /// The content.
        digest: Digest,
        /// How long.
        waited: Duration,
    },
    /// The content is not what was promised.
    #[error("{host} served wrong content")]
    Mismatch {
        /// The registry.
        host: RegistryHost,
        /// How it differs.
        #[source]
        source: Mismatch,
    },
    /// The manifest is wrong about the length of its content; neither the registry nor the cache is.
    #[error("the manifest promises {promised_bytes} bytes of {digest}, which has {actual_bytes}")]
    WrongSize {
        /// The content.
        digest: Digest,
        /// What the manifest says.
        promised_bytes: u64,
        /// What has that digest.
        actual_bytes: u64,
    },
    /// The disk has no room for the content beside what must stay free on it.
    #[error(
        "no room for {digest}: {needed_bytes} bytes are to come and {free_bytes} are free (cache_min_free_bytes: {reserve_bytes})"
    )]
    NoRoom {
        /// The content.
        digest: Digest,
        /// What it takes, with what is coming already.
        needed_bytes: u64,
        /// What is free.
        free_bytes: u64,
        /// What is to stay free.
        reserve_bytes: u64,
    },
    /// The registry's answer begins at the wrong place.
    #[error("{host} was asked for {digest} from byte {asked} on and answered from byte {answered} on")]
    WrongOffset {
        /// The registry.
        host: RegistryHost,
        /// The content.
        digest: Digest,
        /// The first byte that was asked for.
        asked: u64,
        /// The first byte that came.
        answered: u64,
    },
    /// The content did not begin to come in time; the flight goes on.
    #[error("{digest} did not begin to arrive within {} s", waited.as_secs())]
    Slow {
        /// The content.
        digest: Digest,
        /// How long.
        waited: Duration,
    },
    /// The disk failed or is full.
    #[error("cannot store or read {digest}")]
    Storage {
        /// The content.
        digest: Digest,
        /// What happened.
        #[source]
        source: Arc<BlobsError>,
    },
    /// An open file could not be read.
    #[error("cannot read {digest}")]
    Read {
        /// The content.
        digest: Digest,
        /// What happened.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The flight ended without a word: its task died.
    #[error("the flight of {digest} died")]
    Died {
        /// The content.
        digest: Digest,
    },
    /// The facade is shutting down.
    #[error("the facade is shutting down")]
    Stopping,
}

impl PullError {
    /// Whether there are bytes, and they are not what a manifest says.
    pub fn is_wrong_content(&self) -> bool {
        matches!(self, Self::Mismatch { .. } | Self::WrongSize { .. })
    }
}

/// Something that an operator must hear of.
#[derive(Clone, Debug)]
pub enum PullEvent {
    /// A registry served bytes that are not what was imported.
    WrongContent {
        /// Who is taken to have served it: the repository's registry, or a mirror of it.
        host: RegistryHost,
        /// What was asked for.
        wanted: Wanted,
        /// How it differs.
        mismatch: Mismatch,
    },
}

/// Takes events; must not block.
pub type EventHook = Arc<dyn Fn(PullEvent) + Send + Sync>;

/// Says which digests must not be evicted.
pub type Pins = Arc<dyn Fn() -> HashSet<Digest> + Send + Sync>;

/// Pulls content. Cheap to clone.
#[derive(Clone)]
pub struct Puller(Arc<Shared>);

struct Shared {
    blobs: Arc<dyn Blobs>,
    fetch: Fetch,
    settings: Settings,
    flights: Arc<Flights>,
    at_hand: AtHand,
    slots: tokio::sync::Semaphore,
    cooldowns: source::Cooldowns,
    distrusted: source::Distrusted,
    sizes: Sizes,
    /// The turn to take room on the disk.
    admission: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
    last_eviction: std::sync::Mutex<Option<Instant>>,
    pins: Pins,
    events: EventHook,
    clock: Clock,
    metrics: Metrics,
}

/// What a [`Puller`] stands on.
pub struct Parts {
    /// Where content is kept.
    pub blobs: Arc<dyn Blobs>,
    /// Where it comes from.
    pub fetch: Fetch,
    /// Which digests must not be evicted.
    pub pins: Pins,
    /// Who hears of wrong content.
    pub events: EventHook,
    /// The time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Metrics,
}

impl Puller {
    /// Puts the parts together; asks nobody.
    pub fn new(settings: Settings, parts: Parts) -> Self {
        Self(Arc::new(Shared {
            blobs: parts.blobs,
            fetch: parts.fetch,
            flights: Arc::new(Flights::default()),
            at_hand: AtHand::default(),
            slots: tokio::sync::Semaphore::new(settings.max_flights.max(1)),
            cooldowns: source::Cooldowns::default(),
            distrusted: source::Distrusted::default(),
            sizes: Sizes::default(),
            admission: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            last_eviction: std::sync::Mutex::new(None),
            pins: parts.pins,
            events: parts.events,
            clock: parts.clock,
            metrics: parts.metrics,
            settings,
        }))
    }

    /// Small content that somebody asked for a moment ago, without any waiting. The rest is for [`Puller::open`].
    pub(crate) fn at_hand(&self, wanted: &Wanted) -> Option<(Bytes, Origin)> {
        let bytes = self.0.at_hand.get(wanted.descriptor.digest)?;
        if bytes.len() as u64 != wanted.descriptor.size {
            return None;
        }
        self.0.metrics.cache_hits.inc();
        Some((bytes, Origin::Cache))
    }

    /// Opens content for reading from `offset` on, and returns when its first byte there may go out.
    ///
    /// What the cache has is served from there, and nobody is asked. Otherwise exactly one flight fetches it for all.
    pub async fn open(&self, wanted: &Wanted, offset: u64) -> Result<Reader, PullError> {
        let digest = wanted.descriptor.digest;
        let patience = self.0.settings.patience;
        let begins = async {
            if let Some(reader) = self.0.cached(wanted).await?
                && let Some(reader) = self.0.take_to_hand(reader).await?
            {
                self.0.metrics.cache_hits.inc();
                return Ok(reader);
            }
            let mut reader = self.board(wanted, &self.0.fetch).await?;
            reader.available(offset).await.map(|_| reader)
        };
        let begun = tokio::time::timeout(patience, begins).await;
        begun.unwrap_or(Err(PullError::Slow { digest, waited: patience }))
    }

    /// Fetches content into the cache ahead of anybody asking; returns when it is there.
    pub async fn prefetch(&self, wanted: &Wanted) -> Result<(), PullError> {
        if self.0.cached(wanted).await?.is_none() {
            self.board(wanted, &self.0.fetch).await?.landed().await?;
            if self.0.settings.cache && self.0.cached(wanted).await?.is_none() {
                return Err(self.0.no_room(wanted).await);
            }
        }
        Ok(())
    }

    /// Whether what is pulled is kept.
    pub fn caches(&self) -> bool {
        self.0.settings.cache
    }

    /// Keeps content that is already at hand; it passes the same verification as content that is fetched.
    pub async fn keep(&self, wanted: &Wanted, bytes: &Bytes) -> Result<(), PullError> {
        if self.0.cached(wanted).await?.is_some() || !self.0.settings.cache {
            return Ok(());
        }
        let bytes = bytes.clone();
        let at_hand: Fetch = Arc::new(move |_, _| {
            let incoming = Incoming::whole(bytes.clone());
            Box::pin(async { Ok(incoming) })
        });
        self.board(wanted, &at_hand).await?.landed().await
    }

    /// Joins the flight that brings this content, or begins it. One that brings the same digest under another length is
    /// waited for: its end shows which manifest is wrong.
    async fn board(&self, wanted: &Wanted, fetch: &Fetch) -> Result<Reader, PullError> {
        loop {
            let reader = self.join(wanted, fetch)?;
            if reader.size_bytes() == wanted.descriptor.size {
                return Ok(reader);
            }
            let Descriptor { digest, size: promised_bytes, .. } = wanted.descriptor;
            let actual_bytes = reader.size_bytes();
            // How it failed is for those who wanted that.
            if reader.landed().await.is_ok() {
                self.0.sizes.note(digest, actual_bytes);
                return Err(PullError::WrongSize { digest, promised_bytes, actual_bytes });
            }
        }
    }

    fn join(&self, wanted: &Wanted, fetch: &Fetch) -> Result<Reader, PullError> {
        if self.0.stop.is_cancelled() {
            return Err(PullError::Stopping);
        }
        let (flight, lead) = self.0.flights.join(wanted);
        if let Some(lead) = lead {
            self.0.metrics.cache_misses.inc();
            let (shared, fetch) = (Arc::clone(&self.0), Arc::clone(fetch));
            // The fill belongs to the facade: it goes on when whoever caused it has gone.
            self.0.tasks.spawn(async move { fill::run(&shared, lead, &fetch).await }.in_current_span());
            return Ok(Reader::of_flight(flight, Origin::Upstream));
        }
        if flight.is_verified() {
            // Here in all but name: only the disk is not done with it.
            self.0.metrics.cache_hits.inc();
            return Ok(Reader::of_flight(flight, Origin::Cache));
        }
        self.0.metrics.flights_joined.inc();
        Ok(Reader::of_flight(flight, Origin::Flight))
    }

    /// Evicts what the policy says; returns how many bytes became free.
    pub async fn evict(&self) -> Result<u64, BlobsError> {
        self.0.evict(0).await
    }

    /// Stops all flights and waits for them. What arrived stays, to be resumed.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Shared {
    async fn cached(&self, wanted: &Wanted) -> Result<Option<Reader>, PullError> {
        let Descriptor { digest, size, .. } = wanted.descriptor;
        let storage = |source| PullError::Storage { digest, source: Arc::new(source) };
        let Some(content) = self.blobs.open(digest).await.map_err(storage)? else {
            return Ok(None);
        };
        let length =
            content.len_bytes().map_err(|source| PullError::Read { digest, source: Arc::new(source) })?;
        if length == size {
            return Ok(Some(Reader::of_cache(content, digest, size)));
        }
        // Only verified content is renamed into place: the disk lost something, or the manifest is wrong. A manifest must
        // not be able to delete what others need.
        if self.sizes.known(digest) != Some(length) {
            if !upkeep::is_intact(&content, digest, length).await {
                tracing::error!(blob.digest = %digest, size_bytes = length, "cached blob is damaged; deleted");
                self.delete(digest).await.map_err(storage)?;
                return Ok(None);
            }
            self.sizes.note(digest, length);
        }
        Err(PullError::WrongSize { digest, promised_bytes: size, actual_bytes: length })
    }

    /// Why content has passed through and was not kept.
    async fn no_room(&self, wanted: &Wanted) -> PullError {
        let Descriptor { digest, size, .. } = wanted.descriptor;
        PullError::NoRoom {
            digest,
            needed_bytes: size,
            free_bytes: self.blobs.free_bytes().await.unwrap_or_default(),
            reserve_bytes: self.settings.policy.min_free_bytes,
        }
    }

    /// Keeps small content in memory for those who ask next; nothing is left of what turns out to be damaged.
    async fn take_to_hand(&self, mut reader: Reader) -> Result<Option<Reader>, PullError> {
        let (digest, size_bytes) = (reader.digest(), reader.size_bytes());
        if size_bytes > at_hand::MAX_BYTES {
            return Ok(Some(reader));
        }
        let room = vec![0; usize::try_from(size_bytes).unwrap_or_default()];
        let (bytes, _) = reader.read_at(0, room).await?;
        let bytes = Bytes::from(bytes);
        if self.at_hand.keep(digest, &bytes) {
            return Ok(Some(Reader::of_memory(bytes, digest)));
        }
        tracing::error!(blob.digest = %digest, "cached blob is damaged; deleted");
        let deleted = self.delete(digest).await;
        deleted.map_err(|source| PullError::Storage { digest, source: Arc::new(source) })?;
        Ok(None)
    }

    /// Removes content from the cache; says whether there was any.
    async fn delete(&self, digest: Digest) -> Result<bool, BlobsError> {
        self.at_hand.forget(digest);
        self.blobs.delete(digest).await
    }

    /// Makes room for `incoming_bytes`.
    async fn evict(&self, incoming_bytes: u64) -> Result<u64, BlobsError> {
        let mut held = self.blobs.list().await?;
        let free_bytes = self.blobs.free_bytes().await?;
        let mut kept = (self.pins)();
        kept.extend(self.flights.digests());
        let now = self.clock.now();
        let mut freed = 0;
        for victim in self.settings.policy.victims(&mut held, &kept, free_bytes, incoming_bytes, now) {
            if self.delete(victim.digest).await? {
                freed += victim.size_bytes;
                tracing::info!(blob.digest = %victim.digest, size_bytes = victim.size_bytes, "blob evicted");
            }
        }
        for partial in self.blobs.list_partial().await? {
            if self.settings.policy.is_abandoned(&partial, now) && !kept.contains(&partial.digest) {
                self.blobs.delete_partial(partial.digest).await?;
                freed += partial.size_bytes;
            }
        }
        self.metrics.evicted_bytes.inc_by(freed);
        Ok(freed)
    }
}
