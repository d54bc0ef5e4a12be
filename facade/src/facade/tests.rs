//! What a request costs a facade with a large fleet, in questions to its store: never more than a page of records,
//! whatever the size of the fleet.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use tower_service::Service as _;

use super::*;
use crate::catalog::devices::{Device, Standing};
use crate::store::{Batch, Entry, Scan, Table};

const DEVICES: usize = 20_000;
const CONNECTIONS: usize = 1_000;
/// Records that one request may read: a page, what is looked up for each of its lines, and some of the facade's own.
const MOST: usize = 250;

/// Counts the records that are read.
struct Counting {
    inner: SledStore,
    read: AtomicUsize,
}

#[async_trait::async_trait]
impl Store for Counting {
    async fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read.fetch_add(1, Ordering::SeqCst);
        self.inner.get(table, key).await
    }

    async fn scan(&self, table: Table, scan: Scan<'_>) -> Result<Vec<Entry>, StoreError> {
        let found = self.inner.scan(table, scan).await?;
        self.read.fetch_add(found.len() + 1, Ordering::SeqCst);
        Ok(found)
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.inner.commit(batch).await
    }
}

fn device(number: usize) -> Device {
    Device {
        id: format!("board-{number:05}").parse().unwrap(),
        groups: ["fleet".parse().unwrap()].into(),
        standing: if number.is_multiple_of(100) { Standing::Suspended } else { Standing::Active },
        reason: None,
        enrolled_at: "2026-11-20T12:00:00Z".parse().unwrap(),
        certificate: None,
        previous: None,
        not_issued_before: None,
        superseded: Vec::new(),
        claim: None,
        labels: BTreeMap::new(),
    }
}

async fn fill(store: &dyn Store) {
    let mut batch = Batch::new();
    for number in 0..DEVICES {
        let device = device(number);
        batch.put_json(Table("devices"), device.id.as_str(), &device).unwrap();
    }
    store.commit(batch).await.unwrap();
}

async fn connect(registries: &Registries, clock: &Clock) {
    for number in 0..CONNECTIONS {
        let host = format!("registry-{number}.example").parse().unwrap();
        let definition = crate::upstream::Definition::anonymous(host);
        registries.add(definition, crate::upstream::Secrets::default(), "test", clock.now()).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_reads_a_page_of_records_whatever_the_size_of_the_fleet() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    init::init(&options(&data_dir)).unwrap();
    let flags = crate::config::Flags { data_dir: data_dir.clone(), config: None };
    let config = crate::config::load(&flags, &std::collections::BTreeMap::new()).unwrap();
    let clock = Clock::system();
    let data = DataDir::open(&data_dir, None).unwrap();
    let (inner, _) = SledStore::open(&data_dir.join("store"), &dumps(&config)).unwrap();
    let store = Arc::new(Counting { inner, read: AtomicUsize::new(0) });
    fill(&*store).await;
    let url = "https://localhost:8443".parse().unwrap();
    let facade =
        Arc::new(assemble(&config, &clock, Arc::<Counting>::clone(&store), data, url).await.unwrap());
    connect(&facade.registries, &clock).await;
    facade.warm_up().await.unwrap();
    let router = crate::api::router(Arc::clone(&facade));
    let token = std::fs::read_to_string(data_dir.join("admin.token")).unwrap();
    let mut seen = serde_json::Value::Null;
    for path in [
        "/api/v1/devices?limit=100",
        "/api/v1/devices?limit=100&standing=suspended",
        "/api/v1/devices?limit=100&group=fleet&standing=suspended",
        "/api/v1/devices?limit=100&group=fleet&after=board-10000",
        "/api/v1/connections?limit=100",
        "/api/v1/assignments",
        "/api/v1/artifacts",
        "/api/v1/audit?order=newest",
        "/api/v1/cache",
        "/api/v1/cache/blobs",
        "/metrics",
        "/readyz",
        "/api/v1/status",
    ] {
        let request = Request::get(path).header("authorization", format!("Bearer {}", token.trim()));
        let before = store.read.load(Ordering::SeqCst);
        let answer = router.clone().call(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let read = store.read.load(Ordering::SeqCst) - before;
        assert!(read <= MOST, "{path} read {read} records");
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        seen = serde_json::from_slice(&body).unwrap_or_default();
    }
    assert_eq!(seen["devices"], serde_json::json!({"active": 19_800, "suspended": 200}));
    assert_eq!(seen["connections"], CONNECTIONS);
}

fn options(data_dir: &std::path::Path) -> init::Options {
    init::Options {
        data_dir: data_dir.to_owned(),
        hostnames: vec!["localhost".to_owned()],
        trust_domain: None,
        offline: None,
        now: Clock::system().now(),
    }
}
