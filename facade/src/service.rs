//! What the service manager is told (`sd_notify`): ready, reloading, stopping, and for as long as the work goes on, alive.
//!
//! The watchdog is fed by evidence and by nothing else: both doors take their turn at accepting, and the store's writer
//! ends a round through its queue and its flush. A facade that only keeps a timer running is started again. Without a
//! service manager all of this does nothing.

mod journal;

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::problem::chain;
use crate::store::{Batch, Store};

pub(crate) use journal::{Journal, is_standard_error};

/// A loop that can be asked whether it still turns. Clones are the same loop's.
#[derive(Clone, Default)]
pub struct Pulse(Arc<Beats>);

#[derive(Default)]
struct Beats {
    asked: Notify,
    beaten: Notify,
}

impl Pulse {
    /// The loop's part: a branch of its `select!`, which answers whoever asks.
    pub async fn beat(&self) {
        self.0.asked.notified().await;
        self.0.beaten.notify_one();
    }

    /// Whether the loop answers in time.
    async fn answers_within(&self, patience: Duration) -> bool {
        self.0.asked.notify_one();
        tokio::time::timeout(patience, self.0.beaten.notified()).await.is_ok()
    }
}

/// Says that both doors listen.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that certificates are being read again; [`ready`] says that they were.
pub(crate) fn reloading() {
    // Without the time of the call, which cannot fail on Linux, systemd would not know an old message from a new one.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Says that open requests are being finished.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing open requests")]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told how it stands");
    }
}

/// What has to move for the facade to be alive.
pub(crate) struct Vitals {
    /// The accept loop of the device door.
    pub(crate) device_door: Pulse,
    /// The accept loop of the operator door.
    pub(crate) operator_door: Pulse,
    /// The store, whose writer everything that lasts goes through.
    pub(crate) store: Arc<dyn Store>,
}

impl Vitals {
    /// What gave no sign of life in time.
    async fn missing(&self, patience: Duration) -> Option<&'static str> {
        let (devices, operators, store) = tokio::join!(
            self.device_door.answers_within(patience),
            self.operator_door.answers_within(patience),
            self.writes_within(patience),
        );
        let signs = [(devices, "device door"), (operators, "operator door"), (store, "store")];
        signs.into_iter().find(|(alive, _)| !alive).map(|(_, name)| name)
    }

    /// Whether an empty batch gets through the writer and its flush: it changes nothing and waits its turn like any other.
    async fn writes_within(&self, patience: Duration) -> bool {
        match tokio::time::timeout(patience, self.store.commit(Batch::new())).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(error = %chain(&error), "the store does not write");
                false
            }
            Err(_) => false,
        }
    }
}

/// Feeds the service manager's watchdog while everything vital moves, until `stopping`.
pub(crate) async fn feed_watchdog(vitals: Vitals, stopping: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    // A quarter to wait and a quarter to be answered in: one slow answer is no death.
    let step = limit / 4;
    loop {
        tokio::select! {
            () = tokio::time::sleep(step) => {}
            () = stopping.cancelled() => return,
        }
        match vitals.missing(step).await {
            None => tell(&[NotifyState::Watchdog]),
            Some(part) => tracing::error!(part, "no sign of life; the watchdog is not fed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled::SledStore;

    const SOON: Duration = Duration::from_millis(50);

    /// Doors that turn, and a store.
    fn vitals(directory: &std::path::Path) -> Vitals {
        let (store, _) = SledStore::open(&directory.join("store"), &directory.join("dumps")).unwrap();
        Vitals { device_door: Pulse::default(), operator_door: Pulse::default(), store: Arc::new(store) }
    }

    async fn turn(pulse: Pulse) {
        loop {
            pulse.beat().await;
        }
    }

    #[tokio::test]
    async fn a_facade_whose_doors_turn_and_whose_store_writes_is_alive() {
        let directory = tempfile::tempdir().unwrap();
        let vitals = vitals(directory.path());
        let turning =
            async { tokio::join!(turn(vitals.device_door.clone()), turn(vitals.operator_door.clone())) };
        let missing = tokio::select! {
            _ = turning => unreachable!(),
            missing = vitals.missing(Duration::from_mins(1)) => missing,
        };
        assert_eq!(missing, None);
    }

    #[tokio::test]
    async fn a_door_that_stands_still_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let vitals = vitals(directory.path());
        let missing = tokio::select! {
            () = turn(vitals.operator_door.clone()) => unreachable!(),
            missing = vitals.missing(SOON) => missing,
        };
        assert_eq!(missing, Some("device door"));
    }
}
