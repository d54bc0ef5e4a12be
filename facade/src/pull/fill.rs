//! One flight from take-off to landing: registry → file and hash → cache.
//!
//! Runs at the speed of the registry, whatever its readers do. A cut is resumed where it happened; what cannot be had
//! within patience ends the flight for all followers; what is wrong is purged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use pki::digest::{Digest, Mismatch};
use pki::oci::RegistryHost;
use tokio::sync::mpsc;

use super::flight::Lead;
use super::source::{Fetch, Incoming};
use super::{PullError, PullEvent, Shared, VERIFY_FIRST_MAX_BYTES, sizes};
use crate::blobs::{AppendError, BlobsError, Staging};
use crate::upstream::UpstreamError;

/// Attempts in a row that bring no byte.
const MAX_FRUITLESS: u32 = 5;
/// Attempts of one flight, fruitful or not.
const MAX_ATTEMPTS: u32 = 200;
const FIRST_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// When a registry limits the rate and does not say for how long.
const DEFAULT_COOLDOWN: Duration = Duration::from_secs(5);
const MAX_COOLDOWN: Duration = Duration::from_hours(1);
/// Pieces on their way from the socket to the disk.
const QUEUED_PIECES: usize = 16;
/// What the database needs on the same disk, twice over.
const DATABASE_BYTES: u64 = 16 * 1024 * 1024;
const EVICTION_INTERVAL: Duration = Duration::from_secs(10);

/// Fills a flight. Ends it in every case.
pub(super) async fn run(shared: &Arc<Shared>, lead: Lead, fetch: &Fetch) {
    let started = Instant::now();
    shared.metrics.flights.inc();
    let wanted = lead.wanted.clone();
    let digest = wanted.descriptor.digest;
    let mut pilot = Pilot {
        shared,
        fetch,
        lead: Arc::new(lead),
        started,
        mirrors: Vec::new(),
        passing: AtomicBool::default(),
    };
    let stop = shared.stop.clone();
    let result = tokio::select! {
        result = pilot.fly() => result,
        () = stop.cancelled() => Err(PullError::Stopping),
    };
    shared.metrics.flights.dec();
    let duration_ms = started.elapsed().as_millis();
    // The writer's share of the lead is gone once its attempt has been waited for; after a stop it may linger, and then
    // its last release is what closes the channel.
    let Some(lead) = Arc::into_inner(pilot.lead) else {
        return;
    };
    match result {
        Ok(cached) => {
            let size_bytes = wanted.descriptor.size;
            tracing::info!(blob.digest = %digest, size_bytes, duration_ms, "blob fetched");
            lead.landed(cached);
            if cached {
                tidy(shared).await;
            }
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(blob.digest = %digest, repository = %wanted.repository, %error, cause, duration_ms, "fetch failed");
            shared.metrics.flights_failed.inc();
            lead.failed(error);
        }
    }
}

struct Pilot<'a> {
    shared: &'a Arc<Shared>,
    fetch: &'a Fetch,
    lead: Arc<Lead>,
    started: Instant,
    /// The mirrors that have sent parts of it.
    mirrors: Vec<RegistryHost>,
    /// Whether there is no room to keep it.
    passing: AtomicBool,
}

/// How one attempt ended.
enum Attempt {
    /// All bytes have been written.
    Whole,
    /// Not all, and it is worth trying again.
    Cut(PullError),
    /// Nothing will help.
    Over(PullError),
}

impl Pilot<'_> {
    /// Brings the content in; says whether the cache has it.
    async fn fly(&mut self) -> Result<bool, PullError> {
        // A flight may have landed between the caller's look into the cache and this one's take-off.
        if let Some(reader) = self.shared.cached(&self.lead.wanted).await?
            && let Some(content) = reader.into_content()
        {
            self.lead.show(content);
            return Ok(true);
        }
        self.check_trust()?;
        let _slot = self.shared.slots.acquire().await.map_err(|_| PullError::Stopping)?;
        let (mut staging, mut asked) = self.take_off().await?;
        let mut fruitless = 0;
        for _ in 0..MAX_ATTEMPTS {
            if staging.received_bytes() == self.size_bytes() {
                return self.land(staging).await;
            }
            let before = staging.received_bytes();
            let incoming = if let Some(incoming) = asked.take() {
                incoming
            } else {
                self.wait_for_cooldown().await?;
                self.ask(before).await
            };
            let (back, attempt) = self.attempt(staging, incoming).await?;
            staging = back;
            let error = match attempt {
                Attempt::Whole => continue,
                Attempt::Over(error) => return Err(self.give_up(staging, error)),
                Attempt::Cut(error) => error,
            };
            fruitless = if staging.received_bytes() > before { 0 } else { fruitless + 1 };
            if fruitless >= MAX_FRUITLESS {
                return Err(error);
            }
            tracing::debug!(blob.digest = %self.lead.flight.digest, at = staging.received_bytes(), %error, "resuming");
            tokio::time::sleep(delay(fruitless, random())).await;
        }
        Err(PullError::Stalled { digest: self.lead.flight.digest, waited: self.started.elapsed() })
    }

    /// Digest and length of what is wanted.
    fn promised(&self) -> (Digest, u64) {
        (self.lead.flight.digest, self.size_bytes())
    }

    fn size_bytes(&self) -> u64 {
        self.lead.flight.size_bytes
    }

    /// Does not fetch again at once what was wrong a moment ago: every device would, again and again.
    fn check_trust(&self) -> Result<(), PullError> {
        let (digest, promised_bytes) = self.promised();
        if let Some(actual_bytes) = self.shared.sizes.known(digest).filter(|known| *known != promised_bytes) {
            return Err(PullError::WrongSize { digest, promised_bytes, actual_bytes });
        }
        let host = self.lead.wanted.repository.host();
        let held = self.shared.settings.distrust;
        match self.shared.distrusted.recall(host, self.promised(), held) {
            None => Ok(()),
            Some(source) => Err(PullError::Mismatch { host: host.clone(), source }),
        }
    }

    /// Makes the file, and asks the registry meanwhile where it is known that all of the content is needed: what follows
    /// a miss should take as long as the registry takes, and not a moment longer.
    async fn take_off(&self) -> Result<(Staging, Option<Result<Incoming, PullError>>), PullError> {
        let digest = self.lead.flight.digest;
        let anew = self.size_bytes() <= VERIFY_FIRST_MAX_BYTES || !self.shared.blobs.is_partly_here(digest);
        if !anew || self.size_bytes() == 0 {
            return Ok((self.stage().await?, None));
        }
        self.wait_for_cooldown().await?;
        let (staging, incoming) = tokio::join!(self.stage(), self.ask(0));
        let staging = staging?;
        let fits = staging.received_bytes() == 0;
        Ok((staging, fits.then_some(incoming)))
    }

    async fn stage(&self) -> Result<Staging, PullError> {
        let (digest, size_bytes) = (self.lead.flight.digest, self.size_bytes());
        let storage = |source| self.storage(source);
        self.make_room().await?;
        let mut staging = self.shared.blobs.stage(digest, size_bytes).await.map_err(storage)?;
        // Old bytes that nobody alive has hashed are worth keeping only where fetching them again would hurt.
        if staging.is_resumed() && size_bytes <= VERIFY_FIRST_MAX_BYTES {
            staging.restart().map_err(storage)?;
        }
        self.lead.show(staging.content());
        self.lead.arrived(staging.received_bytes());
        Ok(staging)
    }

    /// Sees to it that what comes fits: the disk is also the database's, which does not survive without room. Where the
    /// disk would not keep free what it should, content still passes through and is not kept; where the database would be
    /// left without room, it does not come.
    async fn make_room(&self) -> Result<(), PullError> {
        let Shared { blobs, flights, settings, .. } = &**self.shared;
        let storage = |source| self.storage(source);
        let (digest, reserve) = (self.lead.flight.digest, settings.policy.min_free_bytes);
        let mut missing = self.size_bytes();
        if blobs.is_partly_here(digest) {
            let partial = blobs.list_partial().await.map_err(storage)?;
            let here = partial.iter().find(|held| held.digest == digest).map_or(0, |held| held.size_bytes);
            missing = missing.saturating_sub(here);
        }
        // One at a time, so that no two count on the same room.
        let _turn = self.shared.admission.lock().await;
        let needed = missing.saturating_add(flights.outstanding_bytes());
        let mut free = blobs.free_bytes().await.map_err(storage)?;
        if free < needed.saturating_add(reserve) {
            self.shared.evict(needed).await.map_err(storage)?;
            free = blobs.free_bytes().await.map_err(storage)?;
        }
        let fits = |reserve: u64| free >= needed.saturating_add(reserve);
        if !fits(DATABASE_BYTES) {
            return Err(PullError::NoRoom {
                digest,
                needed_bytes: needed,
                free_bytes: free,
                reserve_bytes: reserve,
            });
        }
        self.lead.admit(missing);
        self.passing.store(!fits(reserve), Ordering::Relaxed);
        Ok(())
    }

    fn storage(&self, source: BlobsError) -> PullError {
        PullError::Storage { digest: self.lead.flight.digest, source: Arc::new(source) }
    }

    /// Leaves a registry alone that asked for it, if that fits into the patience of those who wait.
    async fn wait_for_cooldown(&self) -> Result<(), PullError> {
        let host = self.lead.wanted.repository.host();
        while let Some(remaining) = self.shared.cooldowns.remaining(host) {
            if self.started.elapsed() + remaining > self.shared.settings.patience {
                return Err(PullError::RateLimited { host: host.clone(), retry_after: remaining });
            }
            tokio::time::sleep(remaining).await;
        }
        Ok(())
    }

    /// Asks the registry once.
    async fn ask(&self, from: u64) -> Result<Incoming, PullError> {
        self.shared.metrics.upstream_requests.inc();
        (self.fetch)(self.lead.wanted.clone(), from).await
    }

    /// Takes in an answer of the registry to the request for what follows the end of the file.
    async fn attempt(
        &mut self,
        staging: Staging,
        incoming: Result<Incoming, PullError>,
    ) -> Result<(Staging, Attempt), PullError> {
        let from = staging.received_bytes();
        let incoming = match incoming {
            Ok(incoming) => incoming,
            Err(error) => return Ok((staging, self.judge(error))),
        };
        self.mirrors.extend(incoming.mirror.clone());
        if let Err(error) = self.check_head(&incoming, from) {
            return Ok((staging, Attempt::Over(self.who_is_wrong(error, incoming).await)));
        }
        let skip = from - incoming.starts_at;
        let (queue, pieces) = mpsc::channel(QUEUED_PIECES);
        let lead = Arc::clone(&self.lead);
        // Writing and hashing have a thread of their own: a gibibyte of SHA-256 is most of a second.
        let writer = tokio::task::spawn_blocking(move || write(staging, pieces, &lead));
        let received = self.receive(incoming, skip, queue).await;
        let died = PullError::Died { digest: self.lead.flight.digest };
        let (staging, written) = writer.await.map_err(|_| died)?;
        let attempt = match (written, received) {
            (Err(error), _) => Attempt::Over(self.refuse(error)),
            (Ok(()), Err(error)) => self.judge(error),
            (Ok(()), Ok(())) if staging.received_bytes() < self.size_bytes() => {
                Attempt::Cut(self.short(&staging))
            }
            (Ok(()), Ok(())) => Attempt::Whole,
        };
        Ok((staging, attempt))
    }

    fn check_head(&self, incoming: &Incoming, from: u64) -> Result<(), PullError> {
        let (host, digest) = (self.blamed().clone(), self.lead.flight.digest);
        let (answered, size_bytes) = (incoming.starts_at, self.size_bytes());
        if answered != from && answered != 0 {
            return Err(PullError::WrongOffset { host, digest, asked: from, answered });
        }
        match incoming.total {
            Some(total) if total > size_bytes => {
                let source = Mismatch::Long { digest, expected_bytes: size_bytes };
                Err(PullError::Mismatch { host, source })
            }
            Some(total) if total < size_bytes => {
                let source = Mismatch::Short { digest, received_bytes: total, expected_bytes: size_bytes };
                Err(PullError::Mismatch { host, source })
            }
            _ => Ok(()),
        }
    }

    /// Finds out whether it is the manifest that is wrong about a length, by reading what the registry has under that
    /// digest: it must not be blamed for that.
    async fn who_is_wrong(&self, error: PullError, incoming: Incoming) -> PullError {
        let (digest, promised_bytes) = self.promised();
        let total = incoming.total.filter(|total| *total <= sizes::MAX_EXAMINED_BYTES);
        let (PullError::Mismatch { .. }, 0, Some(total)) = (&error, incoming.starts_at, total) else {
            return error;
        };
        match sizes::agrees(digest, total, incoming, self.shared.settings.stall).await {
            Ok(true) => {
                self.shared.sizes.note(digest, total);
                PullError::WrongSize { digest, promised_bytes, actual_bytes: total }
            }
            Ok(false) | Err(_) => error,
        }
    }

    /// Takes what comes, without the first `skip` bytes, until it ends or the writer has had enough.
    async fn receive(
        &self,
        mut incoming: Incoming,
        mut skip: u64,
        queue: mpsc::Sender<Bytes>,
    ) -> Result<(), PullError> {
        let digest = self.lead.flight.digest;
        let waited = self.shared.settings.stall;
        loop {
            let piece = tokio::time::timeout(waited, incoming.pieces.next()).await;
            let mut piece = match piece.map_err(|_| PullError::Stalled { digest, waited })? {
                None => return Ok(()),
                Some(piece) => piece.map_err(|source| PullError::Upstream { digest, source })?,
            };
            self.shared.metrics.upstream_bytes.inc_by(piece.len() as u64);
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= skipped as u64;
            let piece = piece.split_off(skipped);
            if !piece.is_empty() && queue.send(piece).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Whether a failure is worth another attempt.
    fn judge(&self, error: PullError) -> Attempt {
        let host = self.lead.wanted.repository.host();
        match &error {
            PullError::Upstream { source: UpstreamError::RateLimited { retry_after, .. }, .. } => {
                let wait = retry_after.unwrap_or(DEFAULT_COOLDOWN).min(MAX_COOLDOWN);
                self.shared.cooldowns.begin(host, wait);
                Attempt::Cut(PullError::RateLimited { host: host.clone(), retry_after: wait })
            }
            PullError::Upstream { source: UpstreamError::DigestMismatch { source, .. }, .. } => {
                Attempt::Over(PullError::Mismatch { host: host.clone(), source: source.clone() })
            }
            PullError::Upstream { source, .. } if !source.is_retryable() => Attempt::Over(error),
            PullError::Upstream { .. } | PullError::Stalled { .. } => Attempt::Cut(error),
            PullError::NotConnected { .. }
            | PullError::RateLimited { .. }
            | PullError::Mismatch { .. }
            | PullError::WrongSize { .. }
            | PullError::NoRoom { .. }
            | PullError::WrongOffset { .. }
            | PullError::Slow { .. }
            | PullError::Storage { .. }
            | PullError::Read { .. }
            | PullError::Died { .. }
            | PullError::Stopping => Attempt::Over(error),
        }
    }

    fn refuse(&self, error: AppendError) -> PullError {
        let host = self.blamed().clone();
        match error {
            AppendError::Mismatch(source) => PullError::Mismatch { host, source },
            AppendError::Blobs(source) => self.storage(source),
        }
    }

    fn short(&self, staging: &Staging) -> PullError {
        let source = UpstreamError::Interrupted {
            host: self.lead.wanted.repository.host().as_str().into(),
            received_bytes: staging.received_bytes(),
            source: crate::upstream::Cause::new("the answer ended early"),
        };
        PullError::Upstream { digest: self.lead.flight.digest, source }
    }

    /// Ends a flight that cannot land; wrong content is purged and told of, anything else stays to be resumed.
    fn give_up(&self, staging: Staging, error: PullError) -> PullError {
        if let PullError::Mismatch { source, .. } = &error {
            self.purge(staging, source);
        } else if let PullError::WrongSize { .. } = &error {
            // Nothing of it can become what was promised.
            drop(staging.discard());
        }
        error
    }

    fn purge(&self, staging: Staging, mismatch: &Mismatch) {
        let (wanted, mismatch) = (self.lead.wanted.clone(), mismatch.clone());
        // Bytes from before this process may have been spoiled by a crash: that is nobody's fault.
        let blames = !staging.is_resumed();
        if let Err(error) = staging.discard() {
            tracing::error!(blob.digest = %wanted.descriptor.digest, %error, "wrong content could not be purged");
        }
        self.shared.metrics.mismatches.inc();
        if blames {
            let host = self.blamed().clone();
            if self.mirrors.is_empty() {
                let held = self.shared.settings.distrust;
                self.shared.distrusted.note(&host, self.promised(), &mismatch, held);
            }
            (self.shared.events)(PullEvent::WrongContent { host, wanted, mismatch });
        }
    }

    /// Who is taken to have sent what is wrong. Where mirrors sent parts it is one of them: without it the next flight
    /// shows who really did.
    fn blamed(&self) -> &RegistryHost {
        self.mirrors.first().unwrap_or_else(|| self.lead.wanted.repository.host())
    }

    async fn land(&self, staging: Staging) -> Result<bool, PullError> {
        let verified = match staging.finish() {
            Ok(verified) => verified,
            Err(source) => {
                self.purge(staging, &source);
                let host = self.blamed().clone();
                return Err(PullError::Mismatch { host, source });
            }
        };
        self.lead.verified();
        if self.shared.settings.cache && !self.passing.load(Ordering::Relaxed) {
            self.shared.blobs.commit(verified).await.map_err(|source| self.storage(source))?;
            return Ok(true);
        }
        // Its readers hold the file; when the last one goes, so does the content.
        staging.discard().map_err(|source| self.storage(source))?;
        Ok(false)
    }
}

/// Writes and hashes pieces as they come, and tells followers.
fn write(
    mut staging: Staging,
    mut pieces: mpsc::Receiver<Bytes>,
    lead: &Lead,
) -> (Staging, Result<(), AppendError>) {
    while let Some(piece) = pieces.blocking_recv() {
        // What is queued already is taken along: followers are woken once for all of it.
        let queued = std::iter::from_fn(|| pieces.try_recv().ok());
        for piece in std::iter::once(piece).chain(queued).take(QUEUED_PIECES) {
            if let Err(error) = staging.append(&piece) {
                return (staging, Err(error));
            }
        }
        lead.arrived(staging.received_bytes());
    }
    // Told from here, and not when the cache has it: whoever waits for what is right need not wait for the disk.
    if staging.received_bytes() == lead.flight.size_bytes && staging.finish().is_ok() {
        lead.verified();
    }
    (staging, Ok(()))
}

/// Lets go what the policy says, not too often.
async fn tidy(shared: &Shared) {
    {
        let mut last = shared.last_eviction.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < EVICTION_INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
    }
    if let Err(error) = shared.evict(0).await {
        tracing::error!(%error, "eviction failed");
    }
}

/// Before the next attempt: exponential, capped, with full jitter, so that flights which failed together do not return
/// together.
fn delay(fruitless: u32, random: u16) -> Duration {
    let ceiling = FIRST_DELAY.saturating_mul(1 << fruitless.min(10)).min(MAX_DELAY);
    ceiling.mul_f64(f64::from(random) / f64::from(u16::MAX))
}

fn random() -> u16 {
    let mut bytes = [0; 2];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u16::from_ne_bytes(bytes),
        Err(_) => u16::MAX / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_stay_bounded() {
        assert_eq!(delay(0, u16::MAX), FIRST_DELAY);
        assert_eq!(delay(1, u16::MAX), FIRST_DELAY * 2);
        assert_eq!(delay(60, u16::MAX), MAX_DELAY);
        assert_eq!(delay(3, 0), Duration::ZERO);
    }
}
