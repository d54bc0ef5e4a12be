//! Who is fetching what: at most one flight per digest, any number of followers.
//!
//! A flight is what its followers watch: the file that grows, and how much of it may go out. The table forgets a flight
//! only when its content is in the cache or it has failed; a leader that dies closes its channel, so nobody hangs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use pki::digest::Digest;
use tokio::sync::watch;

use super::{PullError, VERIFY_FIRST_MAX_BYTES, Wanted};
use crate::blobs::Content;

/// How much of a streamed blob waits until the digest agrees.
const WITHHELD_BYTES: u64 = 64 * 1024;

/// One fetch of one digest, as its followers see it.
pub(super) struct Flight {
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    content: OnceLock<Content>,
    progress: watch::Receiver<Progress>,
    /// The room on the disk that it was promised and has not used yet.
    outstanding_bytes: AtomicU64,
    table: Weak<Flights>,
}

/// How far a flight is.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// So many bytes may go out.
    pub(super) available: u64,
    /// Whether all of them are there and agree with the digest: whatever happens to the flight then, they may go out.
    pub(super) verified: bool,
    /// How the flight ended, once it has.
    pub(super) ended: Option<Result<(), PullError>>,
}

/// The duty to fill a flight; whoever holds it is the leader.
pub(super) struct Lead {
    pub(super) wanted: Wanted,
    pub(super) flight: Arc<Flight>,
    progress: watch::Sender<Progress>,
}

/// All flights.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Digest, Weak<Flight>>>);

impl Flights {
    /// Joins the flight of this content, or begins one; who begins one gets the duty to fill it.
    pub(super) fn join(self: &Arc<Self>, wanted: &Wanted) -> (Arc<Flight>, Option<Lead>) {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = wanted.descriptor.digest;
        let entry = flights.entry(digest);
        if let Entry::Occupied(occupied) = &entry
            && let Some(flight) = occupied.get().upgrade()
        {
            return (flight, None);
        }
        let (progress, watched) = watch::channel(Progress::default());
        let flight = Arc::new(Flight {
            digest,
            size_bytes: wanted.descriptor.size,
            content: OnceLock::new(),
            progress: watched,
            outstanding_bytes: AtomicU64::new(0),
            table: Arc::downgrade(self),
        });
        entry.insert_entry(Arc::downgrade(&flight));
        let lead = Lead { wanted: wanted.clone(), flight: Arc::clone(&flight), progress };
        (flight, Some(lead))
    }

    /// Everything that is in flight.
    pub(super) fn digests(&self) -> Vec<Digest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Bytes that flights will still write.
    pub(super) fn outstanding_bytes(&self) -> u64 {
        let flights: Vec<Arc<Flight>> = {
            let flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            flights.values().filter_map(Weak::upgrade).collect()
        };
        // Without the lock: the last one to hold a flight takes it out of the table.
        let outstanding = flights.iter().map(|flight| flight.outstanding_bytes.load(Ordering::Relaxed));
        outstanding.fold(0, u64::saturating_add)
    }

    /// Forgets a flight, unless another has taken its place.
    fn forget(&self, digest: Digest, flight: *const Flight) {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(entry) = flights.entry(digest)
            && std::ptr::eq(entry.get().as_ptr(), flight)
        {
            entry.remove();
        }
    }
}

impl Flight {
    /// A view of the progress from now on.
    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Whether every byte is there and right.
    pub(super) fn is_verified(&self) -> bool {
        self.progress.borrow().verified
    }

    /// The file that grows; there as soon as anything is available.
    pub(super) fn content(&self) -> Option<&Content> {
        self.content.get()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.forget(self.digest, self);
        }
    }
}

impl Lead {
    /// Shows followers the file.
    pub(super) fn show(&self, content: Content) {
        // Shown once per flight: a file is never replaced under its followers.
        let _ = self.flight.content.set(content);
    }

    /// Takes note that the disk has room for what is still to come.
    pub(super) fn admit(&self, outstanding_bytes: u64) {
        self.flight.outstanding_bytes.store(outstanding_bytes, Ordering::Relaxed);
    }

    /// Tells followers that so many bytes have arrived, unverified.
    pub(super) fn arrived(&self, received_bytes: u64) {
        self.admit(self.flight.size_bytes.saturating_sub(received_bytes));
        let available = releasable(received_bytes, self.flight.size_bytes);
        self.progress.send_if_modified(|progress| {
            let more = available > progress.available;
            progress.available = progress.available.max(available);
            more
        });
    }

    /// Tells followers that all bytes are there and right. They need not wait for the disk.
    pub(super) fn verified(&self) {
        let available = self.flight.size_bytes;
        self.progress.send_if_modified(|progress| {
            progress.available = available;
            !std::mem::replace(&mut progress.verified, true)
        });
    }

    /// Ends the flight: all bytes are verified, and in the cache if there is one.
    pub(super) fn landed(self, cached: bool) {
        if cached {
            self.forget();
        }
        let (available, verified) = (self.flight.size_bytes, true);
        self.progress.send_replace(Progress { available, verified, ended: Some(Ok(())) });
    }

    /// Ends the flight for all followers that do not have every byte already. Whoever asks from now on begins another.
    pub(super) fn failed(self, error: PullError) {
        self.forget();
        self.progress.send_modify(|progress| progress.ended = Some(Err(error)));
    }

    fn forget(&self) {
        self.admit(0);
        if let Some(table) = self.flight.table.upgrade() {
            table.forget(self.flight.digest, Arc::as_ptr(&self.flight));
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        // A leader that died: its flight must not catch those who ask from now on.
        if self.progress.borrow().ended.is_none() {
            self.forget();
        }
    }
}

/// How many of the bytes that have arrived may go out before the digest agrees: none of what is verified whole, and never
/// the end, so that wrong bytes never arrive whole.
fn releasable(received_bytes: u64, size_bytes: u64) -> u64 {
    if size_bytes <= VERIFY_FIRST_MAX_BYTES {
        return 0;
    }
    received_bytes.min(size_bytes - WITHHELD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::closure::Kind;

    fn wanted(size: u64) -> Wanted {
        let digest = Digest::sha256(b"x");
        let json = format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":{size}}}"#);
        Wanted {
            repository: "ghcr.io/o/r".parse().unwrap(),
            descriptor: serde_json::from_str(&json).unwrap(),
            kind: Kind::Blob,
        }
    }

    #[test]
    fn only_the_first_to_ask_leads() {
        let flights = Arc::new(Flights::default());
        let (first, lead) = flights.join(&wanted(1));
        let (second, none) = flights.join(&wanted(1));
        assert!(lead.is_some() && none.is_none());
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn the_table_forgets_a_flight_when_it_has_landed_in_the_cache() {
        let flights = Arc::new(Flights::default());
        let (_reader, lead) = flights.join(&wanted(1));
        lead.unwrap().landed(true);
        assert!(flights.digests().is_empty());
    }

    #[test]
    fn without_a_cache_a_flight_serves_while_it_has_readers() {
        let flights = Arc::new(Flights::default());
        let (reader, lead) = flights.join(&wanted(1));
        lead.unwrap().landed(false);
        assert!(flights.join(&wanted(1)).1.is_none());
        drop(reader);
        assert!(flights.join(&wanted(1)).1.is_some());
    }

    #[test]
    fn a_dead_leader_is_a_closed_channel() {
        let flights = Arc::new(Flights::default());
        let (reader, lead) = flights.join(&wanted(1));
        drop(lead);
        assert!(reader.watch().has_changed().is_err());
        assert!(flights.join(&wanted(1)).1.is_some());
    }

    #[test]
    fn what_is_verified_goes_out_before_the_table_forgets_the_flight() {
        let flights = Arc::new(Flights::default());
        let (reader, lead) = flights.join(&wanted(1));
        let lead = lead.unwrap();
        lead.verified();
        assert!(reader.is_verified());
        assert!(flights.join(&wanted(1)).1.is_none(), "the flight of content that is not in the cache yet");
        lead.failed(PullError::Stopping);
        assert!(reader.is_verified(), "a disk that fails takes nothing from those who have it all");
        assert!(flights.join(&wanted(1)).1.is_some());
    }

    #[test]
    fn nothing_of_a_small_blob_and_never_the_end_goes_out_unverified() {
        let small = VERIFY_FIRST_MAX_BYTES;
        assert_eq!(releasable(small, small), 0);
        assert_eq!(releasable(5, small + 1), 5);
        assert_eq!(releasable(small + 1, small + 1), small + 1 - WITHHELD_BYTES);
    }
}
