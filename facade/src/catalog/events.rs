//! What happens, as it happens: a bounded ring of numbered events.
//!
//! [`Events::raise`] never blocks and never fails: whoever raises an event has something else to do. An event gets its
//! number and is shown to anybody only once it is durable, so a number that somebody has seen is never given again, not
//! even after a crash. The ring keeps the newest events; who comes later than that is told how many are gone.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::{SignedDuration, Timestamp};
use pki::x509::DeviceId;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::allowance::{Allowances, Verdict};
use crate::clock::Clock;
use crate::store::{Batch, Scan, Store, StoreError, Table, scan_json};

/// The key is the event's number, in as many digits as any number has.
const TABLE: Table = Table("events");

/// Events that are kept.
const KEPT: usize = 4096;
/// Events that wait to become durable; more come only while the store is stuck.
const MAX_WAITING: usize = 4096;
/// Events of one kind that one device can cause in a window. By kind, so that a thousand refusals do not hide that the
/// device is in quarantine.
const PER_DEVICE: u32 = 8;
const PER_DEVICE_IN: SignedDuration = SignedDuration::from_hours(1);
const MAX_SUBJECT_CHARS: usize = 256;
const MAX_DETAIL_CHARS: usize = 512;

/// What kind of thing happened; stable names, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A device enrolled, or waits to be approved.
    DeviceEnrolled,
    /// A device got its next certificate.
    DeviceRenewed,
    /// Two seem to hold the identity of a device.
    DeviceQuarantined,
    /// An operator approved, suspended, restored, revoked, labelled or deleted a device.
    DeviceChanged,
    /// A device refused an artifact.
    ContentRefused,
    /// A device refused metadata.
    MetadataRefused,
    /// A registry served other bytes than it promised.
    WrongContent,
    /// A tag was imported as an artifact.
    Imported,
    /// An artifact was revoked.
    Revoked,
    /// Something was assigned.
    Assigned,
    /// An assignment was taken back.
    Unassigned,
    /// A rollout began, went on, stopped or ended.
    Rollout,
    /// A device failed in a rollout.
    RolloutDevice,
    /// The keys of a role changed, or a ceremony waits for signatures.
    Keys,
    /// Events could not be kept.
    EventsLost,
}

/// Every kind.
pub const KINDS: [Kind; 15] = [
    Kind::DeviceEnrolled,
    Kind::DeviceRenewed,
    Kind::DeviceQuarantined,
    Kind::DeviceChanged,
    Kind::ContentRefused,
    Kind::MetadataRefused,
    Kind::WrongContent,
    Kind::Imported,
    Kind::Revoked,
    Kind::Assigned,
    Kind::Unassigned,
    Kind::Rollout,
    Kind::RolloutDevice,
    Kind::Keys,
    Kind::EventsLost,
];

impl Kind {
    /// The kind's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeviceEnrolled => "device-enrolled",
            Self::DeviceRenewed => "device-renewed",
            Self::DeviceQuarantined => "device-quarantined",
            Self::DeviceChanged => "device-changed",
            Self::ContentRefused => "content-refused",
            Self::MetadataRefused => "metadata-refused",
            Self::WrongContent => "wrong-content",
            Self::Imported => "imported",
            Self::Revoked => "revoked",
            Self::Assigned => "assigned",
            Self::Unassigned => "unassigned",
            Self::Rollout => "rollout",
            Self::RolloutDevice => "rollout-device",
            Self::Keys => "keys",
            Self::EventsLost => "events-lost",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// There is no kind of event of this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no kind of event (one of: {kinds})", kinds = KINDS.map(Kind::as_str).join(", "))]
pub struct KindError(String);

impl FromStr for Kind {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, KindError> {
        let found = KINDS.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| KindError(text.chars().take(80).collect()))
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number; grows by one with each event.
    pub sequence: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What kind of thing happened.
    pub kind: Kind,
    /// To what: a device, an artifact, a rollout.
    pub subject: String,
    /// What happened, in words.
    pub detail: String,
}

/// Events that follow a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Following {
    /// How many events between the number and the first of `events` are gone.
    pub lost: u64,
    /// The events, oldest first.
    pub events: Vec<Event>,
}

/// The events. A clone is another handle on the same ones.
#[derive(Clone)]
pub struct Events(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    clock: Clock,
    waiting: Mutex<Waiting>,
    allowances: Allowances<(DeviceId, Kind)>,
    kept: RwLock<VecDeque<Event>>,
    /// Something waits.
    raised: Notify,
    newest: watch::Sender<u64>,
    /// The turn to give numbers.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<(Timestamp, Kind, String, String)>,
    lost: u64,
}

impl Events {
    /// Reads the events that are kept.
    pub async fn load(store: Arc<dyn Store>, clock: Clock) -> Result<Self, StoreError> {
        let kept = scan_json::<Event>(&*store, TABLE, Scan::ALL).await?;
        let kept: VecDeque<Event> = kept.into_iter().map(|(_, event)| event).collect();
        let newest = kept.back().map_or(0, |event| event.sequence);
        Ok(Self(Arc::new(Shared {
            store,
            clock,
            waiting: Mutex::default(),
            allowances: Allowances::new(PER_DEVICE, PER_DEVICE_IN),
            kept: RwLock::new(kept),
            raised: Notify::new(),
            newest: watch::Sender::new(newest),
            turn: tokio::sync::Mutex::default(),
        })))
    }

    /// Says that something happened. It becomes durable, and is seen, a moment later.
    pub fn raise(&self, kind: Kind, subject: impl fmt::Display, detail: impl fmt::Display) {
        let line = |text: String, most: usize| -> String {
            text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect()
        };
        let subject = line(subject.to_string(), MAX_SUBJECT_CHARS);
        let detail = line(detail.to_string(), MAX_DETAIL_CHARS);
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.events.push_back((self.0.clock.now(), kind, subject, detail));
        if waiting.events.len() > MAX_WAITING {
            waiting.events.pop_front();
            waiting.lost = waiting.lost.saturating_add(1);
        }
        self.0.raised.notify_one();
    }

    /// Says that a device did something. A device that does it without end is heard a few times an hour, and no more: it
    /// must not push out what others have to tell.
    pub fn raise_by(&self, device: &DeviceId, kind: Kind, detail: impl fmt::Display) {
        match self.0.allowances.take((device.clone(), kind), self.0.clock.now()) {
            Verdict::Kept { dropped: 0 } => self.raise(kind, device, detail),
            Verdict::Kept { dropped } => {
                self.raise(kind, device, format!("{dropped} more were not kept; {detail}"));
            }
            Verdict::Last => {
                self.raise(kind, device, format!("more of this within the hour is not kept; {detail}"));
            }
            Verdict::Dropped => {}
        }
    }

    /// Makes what is raised durable, until `stopping`. Call [`Events::flush`] once more when nothing is raised any more.
    pub async fn keep(self, stopping: CancellationToken) {
        loop {
            self.flush().await;
            tokio::select! {
                () = self.0.raised.notified() => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Makes durable and shows what was raised until now.
    pub async fn flush(&self) {
        let _turn = self.0.turn.lock().await;
        let numbered = self.number();
        let Some(newest) = numbered.last().map(|event| event.sequence) else {
            return;
        };
        if let Err(error) = self.write(&numbered).await {
            tracing::error!(error = %error, events = numbered.len(), "events could not be kept");
            return;
        }
        let mut kept = self.0.kept.write().unwrap_or_else(PoisonError::into_inner);
        kept.extend(numbered);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
        drop(kept);
        self.0.newest.send_replace(newest);
    }

    fn number(&self) -> Vec<Event> {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = std::mem::take(&mut waiting.events);
        let lost = std::mem::take(&mut waiting.lost);
        drop(waiting);
        if lost > 0 {
            let detail = format!("{lost} events could not be kept: the database was too slow");
            events.push_front((self.0.clock.now(), Kind::EventsLost, "events".to_owned(), detail));
        }
        let first = self.newest().saturating_add(1);
        let numbers = first..;
        let numbered = numbers.zip(events).map(|(sequence, (at, kind, subject, detail))| Event {
            sequence,
            at,
            kind,
            subject,
            detail,
        });
        numbered.collect()
    }

    async fn write(&self, numbered: &[Event]) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for event in numbered {
            batch.put_json(TABLE, &key(event.sequence), event)?;
        }
        let excess = {
            let kept = self.0.kept.read().unwrap_or_else(PoisonError::into_inner);
            let excess = (kept.len() + numbered.len()).saturating_sub(KEPT);
            kept.iter().chain(numbered).take(excess).map(|event| event.sequence).collect::<Vec<_>>()
        };
        for sequence in excess {
            batch.delete(TABLE, &key(sequence));
        }
        self.0.store.commit(batch).await
    }

    /// The number of the newest event; 0 before the first.
    pub fn newest(&self) -> u64 {
        *self.0.newest.borrow()
    }

    /// Wakes whoever holds it with each new event.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.newest.subscribe()
    }

    /// The first events after a number.
    pub fn after(&self, sequence: u64, limit: usize) -> Following {
        let kept = self.0.kept.read().unwrap_or_else(PoisonError::into_inner);
        let Some(oldest) = kept.front().map(|event| event.sequence) else {
            return Following::default();
        };
        // The numbers in the ring have no gaps.
        let skipped =
            usize::try_from(sequence.saturating_add(1).saturating_sub(oldest)).unwrap_or(usize::MAX);
        let events: Vec<Event> = kept.iter().skip(skipped).take(limit).cloned().collect();
        Following { lost: oldest.saturating_sub(sequence.saturating_add(1)), events }
    }
}

fn key(sequence: u64) -> String {
    format!("{sequence:020}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled::SledStore;

    async fn events(directory: &std::path::Path) -> Events {
        let store = SledStore::open(&directory.join("store"), &directory.join("dumps")).unwrap().0;
        Events::load(Arc::new(store), Clock::manual(Timestamp::UNIX_EPOCH)).await.unwrap()
    }

    fn details(following: &Following) -> Vec<&str> {
        following.events.iter().map(|event| event.detail.as_str()).collect()
    }

    #[tokio::test]
    async fn events_are_numbered_in_the_order_they_were_raised_and_outlive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        {
            let events = events(directory.path()).await;
            events.raise(Kind::Imported, "app", "one");
            events.raise(Kind::Assigned, "app", "two");
            assert_eq!(events.after(0, 10), Following::default(), "nobody sees what is not durable");
            events.flush().await;
            assert_eq!(details(&events.after(0, 10)), ["one", "two"]);
        }
        let events = events(directory.path()).await;
        events.raise(Kind::Revoked, "app", "three");
        events.flush().await;
        assert_eq!(details(&events.after(1, 10)), ["two", "three"]);
        assert_eq!(events.after(2, 10).events[0].sequence, 3);
        assert_eq!(events.after(3, 10), Following::default());
    }

    #[tokio::test]
    async fn the_ring_keeps_the_newest_and_says_how_many_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let ring = events(directory.path()).await;
        for _ in 0..3 {
            for _ in 0..KEPT / 2 {
                ring.raise(Kind::Assigned, "app", "again");
            }
            ring.flush().await;
        }
        let gone = (KEPT / 2) as u64;
        let following = ring.after(0, 1);
        assert_eq!((following.lost, following.events[0].sequence), (gone, gone + 1));
        assert_eq!(ring.after(gone, 1).lost, 0);
        drop(ring);
        let ring = events(directory.path()).await;
        assert_eq!(ring.after(0, usize::MAX).events.len(), KEPT);
    }

    #[tokio::test]
    async fn a_stuck_store_costs_events_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let events = events(directory.path()).await;
        for _ in 0..MAX_WAITING + 5 {
            events.raise(Kind::Assigned, "app", "again");
        }
        events.flush().await;
        let all = events.after(0, usize::MAX);
        let told = &events.after(all.lost, 1).events[0];
        assert_eq!(told.sequence, all.lost + 1);
        assert!(all.events.len() <= KEPT, "{}", all.events.len());
    }

    #[tokio::test]
    async fn texts_from_elsewhere_stay_one_line_of_bounded_length() {
        let directory = tempfile::tempdir().unwrap();
        let events = events(directory.path()).await;
        events.raise(Kind::ContentRefused, "board\n1", "x".repeat(10_000));
        events.flush().await;
        let event = &events.after(0, 1).events[0];
        assert_eq!((event.subject.as_str(), event.detail.len()), ("board 1", MAX_DETAIL_CHARS));
    }

    #[tokio::test]
    async fn a_hostile_device_does_not_push_out_what_others_tell() {
        let directory = tempfile::tempdir().unwrap();
        let events = events(directory.path()).await;
        events.raise_by(&"quiet".parse().unwrap(), Kind::ContentRefused, "a real reason");
        for number in 0..3 * KEPT {
            events.raise_by(&"loud".parse().unwrap(), Kind::ContentRefused, number);
        }
        events.raise_by(&"loud".parse().unwrap(), Kind::DeviceQuarantined, "two have its identity");
        events.flush().await;
        let following = events.after(0, usize::MAX);
        assert_eq!((following.lost, following.events.len()), (0, 10));
        assert_eq!(following.events[0].detail, "a real reason");
        assert_eq!(following.events[8].detail, "more of this within the hour is not kept; 7");
        assert_eq!(following.events[9].kind, Kind::DeviceQuarantined);
    }

    #[test]
    fn every_kind_has_the_name_under_which_it_is_stored() {
        for kind in KINDS {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(kind.as_str().parse::<Kind>().unwrap(), kind);
        }
        assert!("assign".parse::<Kind>().is_err());
    }
}
