//! Whether the store takes writes, tried with one of our own.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;

use crate::store::{Batch, Store, StoreError, Table};

const TABLE: Table = Table("probe");
/// Whoever asks often must not make the disk busy.
const TRIED_EVERY: SignedDuration = SignedDuration::from_secs(10);

/// Tries the store.
pub struct Probe {
    store: Arc<dyn Store>,
    worked_at: Mutex<Option<Timestamp>>,
}

impl Probe {
    /// Of a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, worked_at: Mutex::new(None) }
    }

    /// Whether the store took a write now, or a moment ago.
    pub async fn store(&self, now: Timestamp) -> Result<(), StoreError> {
        let mut worked_at = self.worked_at.lock().await;
        if worked_at.is_some_and(|at| now.duration_since(at).abs() < TRIED_EVERY) {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.put_json(TABLE, "written", &now)?;
        self.store.commit(batch).await?;
        *worked_at = Some(now);
        Ok(())
    }
}
