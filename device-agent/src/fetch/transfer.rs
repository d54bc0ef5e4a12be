//! One content, over as many connections as it takes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{HeaderValue, RANGE};
use pki::oci::descriptor::MediaKind;
use pki::oci::{ArtifactName, Descriptor};
use tokio::time::Instant;

use super::range::{self, Given};
use super::{FetchError, Fetcher, Flow};
use crate::backoff::Backoff;
use crate::facade_client::{Answer, Ask, Class, ClientError};
use crate::plan::NoRoom;
use crate::random;
use crate::runtime::{Ingest, Lease, RuntimeError};

/// How often wrong bytes are fetched again before they are called an attack.
const MAX_CORRUPT: u32 = 3;

/// How often it is looked whether the disk still has its reserve.
const LOOK_EVERY_BYTES: u64 = 64 << 20;

/// Why one attempt ended.
enum Stop {
    Client(ClientError),
    Runtime(RuntimeError),
    NoRoom(NoRoom),
}

impl From<RuntimeError> for Stop {
    fn from(error: RuntimeError) -> Self {
        Self::Runtime(error)
    }
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl Fetcher<'_> {
    /// Brings one content in; returns when the store has verified and committed it.
    pub(super) async fn transfer(
        &self,
        flow: &Flow,
        lease: &Lease,
        content: &Descriptor,
    ) -> Result<(), FetchError> {
        let mut patience = Patience::new(self.limits.attempts);
        let mut corrupt = 0;
        let mut counted = 0;
        loop {
            let before = counted;
            let Err(stop) = self.attempt(flow, lease, content, &mut counted).await else {
                return Ok(());
            };
            if counted > before {
                patience.progressed();
            }
            match stop {
                Stop::Runtime(source @ RuntimeError::Corrupt { .. }) => {
                    corrupt += 1;
                    self.progress.take_back(counted);
                    counted = 0;
                    tracing::warn!(blob.digest = %content.digest, times = corrupt, "content was wrong and is thrown away");
                    if corrupt >= MAX_CORRUPT {
                        return Err(FetchError::Corrupt { digest: content.digest, times: corrupt, source });
                    }
                }
                Stop::Runtime(error) if error.is_transient() && patience.has_more() => {
                    self.pause(content, &mut patience, None, &error).await;
                }
                Stop::Runtime(error) => return Err(FetchError::Runtime(error)),
                Stop::NoRoom(shortage) => return Err(FetchError::NoRoom(shortage)),
                Stop::Client(error) if is_passing(&error) && patience.has_more() => {
                    self.pause(content, &mut patience, error.retry_after(), &error).await;
                }
                Stop::Client(source) => {
                    return Err(FetchError::Client { digest: content.digest, source });
                }
            }
        }
    }

    async fn pause(
        &self,
        content: &Descriptor,
        patience: &mut Patience,
        told: Option<Duration>,
        why: &(dyn std::error::Error + Sync),
    ) {
        tracing::info!(
            blob.digest = %content.digest,
            attempt = patience.failures() + 1,
            reason = %crate::error_chain(why),
            "transfer interrupted, will go on where it stopped"
        );
        self.progress.interrupted(why.to_string());
        patience.wait(told).await;
        self.progress.moving();
    }

    /// One connection's worth. `counted` is how much of the content the progress counter has seen.
    async fn attempt(
        &self,
        flow: &Flow,
        lease: &Lease,
        content: &Descriptor,
        counted: &mut u64,
    ) -> Result<(), Stop> {
        let mut ingest = self.runtime.begin(lease, content).await?;
        self.count_to(ingest.offset(), counted);
        if ingest.offset() < content.size {
            let offset = ingest.offset();
            let mut ask = Ask::get(path(lease.artifact(), content));
            if offset > 0 {
                let range = HeaderValue::from_str(&format!("bytes={offset}-"));
                ask = ask.with(RANGE, range.unwrap_or(HeaderValue::from_static("bytes=0-")));
            }
            let answer = self.client.ask(&ask).await?;
            let skip = match range::given(answer.status(), answer.headers(), offset, content.size) {
                Given::Skip(skip) => skip,
                Given::StartOver => {
                    ingest.abort().await?;
                    return Err(protocol(&answer, "nothing at our offset; starting over").into());
                }
                Given::Absent => return Err(protocol(&answer, "the facade does not have it").into()),
                Given::Nonsense(problem) => return Err(protocol(&answer, problem).into()),
            };
            if let Err(stop) = self.pour(flow, answer, ingest.as_mut(), skip, counted).await {
                // What came so far is kept for the next attempt.
                ingest.flush().await?;
                return Err(stop);
            }
        }
        ingest.commit().await?;
        Ok(())
    }

    /// From the connection into the store, piece by piece; a slow store slows the connection.
    async fn pour(
        &self,
        flow: &Flow,
        mut answer: Answer,
        ingest: &mut dyn Ingest,
        mut skip: u64,
        counted: &mut u64,
    ) -> Result<(), Stop> {
        let mut watch = RateWatch::new();
        while let Some(mut bytes) = answer.next(self.limits.stall).await? {
            watch.excuse(flow.throttle.pass(bytes.len() as u64).await);
            watch.saw(bytes.len() as u64);
            if let Some(rate) = watch.too_slow(self.limits.rate_window, self.limits.minimum_rate) {
                return Err(Stop::Client(ClientError::Slow {
                    path: answer.path().to_owned(),
                    rate,
                    minimum: self.limits.minimum_rate,
                }));
            }
            let thrown = skip.min(bytes.len() as u64);
            skip -= thrown;
            let kept = bytes.split_off(usize::try_from(thrown).unwrap_or(bytes.len()));
            let kept_bytes = kept.len() as u64;
            if !kept.is_empty() {
                ingest.write(kept).await?;
                self.count_to(ingest.offset(), counted);
                self.look_for_room(flow, kept_bytes).await?;
            }
        }
        Ok(())
    }

    /// Others write to the same disk: now and then it is looked whether the reserve is still there.
    async fn look_for_room(&self, flow: &Flow, bytes: u64) -> Result<(), Stop> {
        let unchecked = flow.unchecked_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if unchecked < LOOK_EVERY_BYTES {
            return Ok(());
        }
        flow.unchecked_bytes.store(0, Ordering::Relaxed);
        let remaining = self.progress.snapshot().map_or(0, |progress| progress.remaining_bytes());
        match self.shortage(remaining).await {
            Some(shortage) if shortage.free_bytes < shortage.reserve_bytes => Err(Stop::NoRoom(shortage)),
            _ => Ok(()),
        }
    }

    fn count_to(&self, offset: u64, counted: &mut u64) {
        if offset >= *counted {
            self.progress.advance(offset - *counted);
        } else {
            self.progress.take_back(*counted - offset);
        }
        *counted = offset;
    }
}

/// Whether it may pass by itself.
fn is_passing(error: &ClientError) -> bool {
    match error.class() {
        Class::Unreachable | Class::Busy => true,
        // Another path, another proxy, another facade process may answer the next attempt properly.
        Class::Broken => matches!(error, ClientError::Protocol { .. }),
        Class::NotAllowed | Class::Impostor => false,
    }
}

fn protocol(answer: &Answer, problem: &'static str) -> ClientError {
    ClientError::Protocol { path: answer.path().to_owned(), problem }
}

/// SPEC 2.1.
fn path(artifact: &ArtifactName, content: &Descriptor) -> String {
    let kind = match content.media_type.kind() {
        MediaKind::Manifest | MediaKind::Index => "manifests",
        MediaKind::Schema1 | MediaKind::ForeignLayer | MediaKind::Other => "blobs",
    };
    format!("/v2/{}/{kind}/{}", artifact.repository(), content.digest)
}

/// How much longer it is tried.
pub(super) struct Patience {
    backoff: Backoff,
    attempts: Option<u32>,
}

impl Patience {
    pub(super) fn new(attempts: Option<u32>) -> Self {
        Self { backoff: Backoff::default(), attempts }
    }

    pub(super) fn has_more(&self) -> bool {
        self.attempts.is_none_or(|attempts| self.backoff.failures() < attempts)
    }

    fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    fn progressed(&mut self) {
        self.backoff.reset();
    }

    /// Waits as long as the facade told us, or as long as the backoff says.
    pub(super) async fn wait(&mut self, told: Option<Duration>) {
        let own = self.backoff.next(random::number());
        // Everybody who was told the same number comes back spread over the next seconds.
        let told = told.map(|told| told + crate::backoff::within(crate::backoff::FIRST, random::number()));
        tokio::time::sleep(told.unwrap_or(own)).await;
    }
}

/// Sees a connection that trickles: each byte would count as progress, for days.
struct RateWatch {
    since: Instant,
    bytes: u64,
}

impl RateWatch {
    fn new() -> Self {
        Self { since: Instant::now(), bytes: 0 }
    }

    /// Time that the connection was made to wait by us.
    fn excuse(&mut self, waited: Duration) {
        self.since += waited;
    }

    fn saw(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// The rate over the window that just ended, if it was too low.
    fn too_slow(&mut self, window: Duration, minimum: u64) -> Option<u64> {
        let elapsed = self.since.elapsed();
        if elapsed < window {
            return None;
        }
        let rate = self.bytes / elapsed.as_secs().max(1);
        *self = Self::new();
        (rate < minimum).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_not_progress() {
        let window = Duration::from_secs(300);
        let mut watch = RateWatch::new();
        watch.saw(30);
        assert_eq!(watch.too_slow(window, 1024), None);
        tokio::time::advance(window).await;
        assert_eq!(watch.too_slow(window, 1024), Some(0));
        watch.saw(10 * 1024 * 300);
        tokio::time::advance(window).await;
        assert_eq!(watch.too_slow(window, 1024), None);
    }
}
