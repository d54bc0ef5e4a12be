//! What every [`Store`] must do; each backend's tests run this suite.

use std::sync::Arc;

use super::{Batch, Scan, Store, StoreError, Table};

const TABLE: Table = Table("conformance");
const OTHER: Table = Table("conformance2");

/// Runs the whole suite against an empty store.
pub(crate) async fn suite(store: Arc<dyn Store>) {
    reads_what_was_written(&*store).await;
    scans_in_order_within_prefix_and_table(&*store).await;
    refuses_a_batch_whole_when_a_precondition_fails(&*store).await;
    lets_exactly_one_of_many_writers_win(store).await;
}

async fn put(store: &dyn Store, table: Table, key: &str, value: &str) {
    let mut batch = Batch::new();
    batch.put(table, key, value.into());
    store.commit(batch).await.unwrap();
}

async fn keys(store: &dyn Store, scan: Scan<'_>) -> Vec<String> {
    store.scan(TABLE, scan).await.unwrap().into_iter().map(|entry| entry.key).collect()
}

async fn reads_what_was_written(store: &dyn Store) {
    assert_eq!(store.get(TABLE, "absent").await.unwrap(), None);
    put(store, TABLE, "a", "1").await;
    put(store, TABLE, "a", "2").await;
    assert_eq!(store.get(TABLE, "a").await.unwrap(), Some(b"2".to_vec()));
    assert_eq!(store.get(OTHER, "a").await.unwrap(), None);
    let mut batch = Batch::new();
    batch.delete(TABLE, "a");
    batch.delete(TABLE, "never-there");
    store.commit(batch).await.unwrap();
    assert_eq!(store.get(TABLE, "a").await.unwrap(), None);
}

async fn scans_in_order_within_prefix_and_table(store: &dyn Store) {
    for key in ["x/2", "x/1", "x/10", "y/1", "x"] {
        put(store, TABLE, key, key).await;
    }
    put(store, OTHER, "x/3", "other").await;
    assert_eq!(keys(store, Scan::ALL).await, ["x", "x/1", "x/10", "x/2", "y/1"]);
    assert_eq!(keys(store, Scan { prefix: "x/", after: None, limit: 2 }).await, ["x/1", "x/10"]);
    assert_eq!(keys(store, Scan { prefix: "x/", after: Some("x/10"), limit: 9 }).await, ["x/2"]);
    assert_eq!(keys(store, Scan { prefix: "x/", after: Some("a"), limit: 9 }).await, ["x/1", "x/10", "x/2"]);
    assert!(keys(store, Scan { prefix: "z", after: None, limit: 9 }).await.is_empty());
}

async fn refuses_a_batch_whole_when_a_precondition_fails(store: &dyn Store) {
    put(store, TABLE, "held", "1").await;
    for (key, expected) in [("held", None), ("held", Some("2")), ("missing", Some("1"))] {
        let mut batch = Batch::new();
        match expected {
            Some(value) => batch.require_value(TABLE, key, value.into()),
            None => batch.require_absent(TABLE, key),
        }
        batch.put(TABLE, "written", b"no".to_vec());
        let refused = store.commit(batch).await;
        assert!(matches!(refused, Err(StoreError::Conflict { key: found, .. }) if found == key));
    }
    assert_eq!(store.get(TABLE, "written").await.unwrap(), None);
}

async fn lets_exactly_one_of_many_writers_win(store: Arc<dyn Store>) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..16 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut batch = Batch::new();
            batch.require_absent(TABLE, "won");
            batch.put(TABLE, "won", vec![number]);
            store.commit(batch).await.is_ok()
        });
    }
    let winners = tasks.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(winners, 1);
}
