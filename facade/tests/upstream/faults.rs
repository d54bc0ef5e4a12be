//! Registries that answer wrongly, late, too much or not at all.

use std::time::{Duration, Instant};

use facade::upstream::{BlobStream, BrowseLimits, Clipped, UpstreamError};
use pki::digest::Digest;
use pki::oci::MediaType;

use crate::fake::{Fake, Reply};
use crate::{anonymous, name};

const OCI: (&str, &str) = ("Content-Type", MediaType::OCI_MANIFEST);
const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

fn digest() -> Digest {
    Digest::sha256(MANIFEST.as_bytes())
}

async fn all(mut blob: BlobStream) -> Result<Vec<u8>, UpstreamError> {
    let mut bytes = Vec::new();
    while let Some(piece) = blob.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

async fn manifest_of(reply: impl Fn() -> Reply + Send + Sync + 'static) -> Result<MediaType, UpstreamError> {
    let fake = Fake::start(move |_| reply());
    let served = anonymous(fake.address).manifest(&name("a/b"), digest()).await?;
    assert_eq!((served.digest, &*served.bytes), (digest(), MANIFEST.as_bytes()));
    Ok(served.media_type)
}

async fn blob_of(
    from: u64,
    reply: impl Fn() -> Reply + Send + Sync + 'static,
) -> Result<(u64, Vec<u8>), UpstreamError> {
    let fake = Fake::start(move |_| reply());
    let blob = anonymous(fake.address).blob(&name("a/b"), digest(), from).await?;
    Ok((blob.starts_at, all(blob).await?))
}

#[tokio::test]
async fn computes_the_digest_of_what_a_tag_names() {
    let fake = Fake::start(|_| Reply::new(200, &[OCI], MANIFEST));
    let registry = anonymous(fake.address);
    let served = registry.resolve(&name("a/b"), &"v1".parse().unwrap()).await.unwrap();
    assert_eq!(served.digest, digest());
    let seen = &fake.seen()[0];
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("GET", "/v2/a/b/manifests/v1"));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert!(seen.header("accept").unwrap().contains(MediaType::DOCKER_LIST));
    assert!(registry.health().last_success.is_some());
}

#[tokio::test]
async fn takes_the_media_type_from_where_it_is() {
    assert_eq!(
        manifest_of(|| Reply::new(200, &[OCI], MANIFEST)).await.unwrap().as_str(),
        MediaType::OCI_MANIFEST
    );
    for stated in ["application/json", "text/plain; charset=utf-8", "a/b\tc"] {
        let media_type = manifest_of(move || Reply::new(200, &[("Content-Type", stated)], MANIFEST)).await;
        assert_eq!(media_type.unwrap().as_str(), MediaType::OCI_MANIFEST, "{stated}");
    }
    assert_eq!(manifest_of(|| Reply::ok(MANIFEST)).await.unwrap().as_str(), MediaType::OCI_MANIFEST);
}

#[tokio::test]
async fn rejects_manifests_that_are_not_what_was_asked_for() {
    let other = Digest::sha256(b"other").to_string();
    let wrong_header =
        manifest_of(move || Reply::new(200, &[OCI, ("Docker-Content-Digest", &other)], MANIFEST));
    assert!(matches!(wrong_header.await, Err(UpstreamError::DigestMismatch { .. })));
    let no_header = manifest_of(|| Reply::new(200, &[OCI, ("Docker-Content-Digest", "md5:x")], MANIFEST));
    assert!(matches!(no_header.await, Err(UpstreamError::BadAnswer { .. })));
    let wrong_bytes = manifest_of(|| Reply::new(200, &[OCI], "{}"));
    assert!(matches!(wrong_bytes.await, Err(UpstreamError::DigestMismatch { .. })));
    let encoded = manifest_of(|| Reply::new(200, &[OCI, ("Content-Encoding", "gzip")], MANIFEST));
    assert!(matches!(encoded.await, Err(UpstreamError::BadAnswer { .. })));
    let partial = manifest_of(|| Reply::new(206, &[OCI, ("Content-Range", "bytes 0-1/2")], MANIFEST));
    assert!(matches!(partial.await, Err(UpstreamError::BadAnswer { .. })));
    let large = manifest_of(|| Reply::new(200, &[OCI], vec![b' '; 4 * 1024 * 1024 + 1]));
    assert!(matches!(large.await, Err(UpstreamError::TooLarge { .. })));
}

#[tokio::test]
async fn tells_statuses_apart() {
    let of = |status: u16| manifest_of(move || Reply::status(status));
    assert!(matches!(of(404).await, Err(UpstreamError::NotFound { .. })));
    assert!(matches!(of(403).await, Err(UpstreamError::Unauthenticated { .. })));
    assert!(matches!(of(401).await, Err(UpstreamError::BadAnswer { .. })));
    assert!(matches!(of(400).await, Err(UpstreamError::BadAnswer { .. })));
    assert!(matches!(of(204).await, Err(UpstreamError::BadAnswer { .. })));
    for status in [500, 502, 503, 504] {
        let error = of(status).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Unavailable { .. }) && error.is_retryable());
    }
}

#[tokio::test]
async fn honours_retry_after_without_asking_again() {
    let fake =
        Fake::start(|_| Reply::new(429, &[("Retry-After", "30"), ("ratelimit-remaining", "0;w=21600")], ""));
    let registry = anonymous(fake.address);
    for _ in 0..5 {
        let error = registry.manifest(&name("a/b"), digest()).await.unwrap_err();
        assert!(error.is_retryable());
        assert!(error.retry_after().unwrap() > Duration::from_secs(25));
    }
    assert_eq!(fake.seen().len(), 1);
    let health = registry.health();
    assert_eq!(health.budget.unwrap().remaining, 0);
    assert!(health.last_error.unwrap().contains("limits the rate"));
}

#[tokio::test]
async fn resumes_blobs_only_where_the_range_is_the_one_asked_for() {
    let ranged = |range: &'static str, body: &'static str| {
        blob_of(5, move || Reply::new(206, &[("Content-Range", range)], body))
    };
    assert_eq!(ranged("bytes 5-9/10", "56789").await.unwrap(), (5, b"56789".to_vec()));
    assert_eq!(blob_of(5, || Reply::ok("0123456789")).await.unwrap(), (0, b"0123456789".to_vec()));
    for (range, body) in [
        ("bytes 0-9/10", "0123456789"),
        ("bytes 4-9/10", "456789"),
        ("bytes 5-8/10", "5678"),
        ("bytes 5-9/10", "5678"),
        ("", "56789"),
    ] {
        assert!(matches!(ranged(range, body).await, Err(UpstreamError::BadAnswer { .. })), "{range}");
    }
    let unasked = blob_of(0, || Reply::new(206, &[("Content-Range", "bytes 0-9/10")], "0123456789"));
    assert!(matches!(unasked.await, Err(UpstreamError::BadAnswer { .. })));
    let encoded = blob_of(0, || Reply::new(200, &[("Content-Encoding", "gzip")], "x"));
    assert!(matches!(encoded.await, Err(UpstreamError::BadAnswer { .. })));
    assert!(matches!(blob_of(10, || Reply::status(416)).await, Err(UpstreamError::BadAnswer { .. })));
}

#[tokio::test]
async fn sees_cuts_stalls_and_trickles() {
    let cut = blob_of(0, || Reply::part(200, &[], 100, "0123456789").then_cut()).await.unwrap_err();
    assert!(matches!(cut, UpstreamError::Interrupted { received_bytes: 10, .. }) && cut.is_retryable());
    let stall = blob_of(0, || Reply::part(200, &[], 100, "0123456789").then_pause(Duration::from_secs(5)));
    assert!(matches!(stall.await, Err(UpstreamError::Stalled { received_bytes: 10, .. })));
    let started = Instant::now();
    let trickle = blob_of(0, || {
        (0..100).fold(Reply::part(200, &[], 100, ""), |reply, _| {
            reply.then_bytes(b"x").then_pause(Duration::from_millis(100))
        })
    });
    assert!(matches!(trickle.await, Err(UpstreamError::Stalled { .. })));
    assert!(started.elapsed() < Duration::from_secs(4));
    let silent = blob_of(0, || Reply::raw(b"").then_pause(Duration::from_secs(5))).await.unwrap_err();
    assert!(silent.is_retryable(), "{silent:?}");
    let late = Fake::start(|_| Reply::raw_after(Duration::from_secs(5)));
    let error = anonymous(late.address).blob(&name("a/b"), digest(), 0).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn rejects_what_is_not_http() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 abc\r\n\r\n",
    ] {
        let error = blob_of(0, move || Reply::raw(bytes)).await.unwrap_err();
        assert!(
            matches!(error, UpstreamError::BadAnswer { .. } | UpstreamError::Interrupted { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn rejects_heads_without_an_end() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(1_000_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(100_000));
    for head in [long, many] {
        let error = blob_of(0, move || Reply::raw(head.as_bytes())).await.unwrap_err();
        assert!(
            matches!(error, UpstreamError::BadAnswer { .. } | UpstreamError::Interrupted { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn lists_tags_over_pages_however_the_link_is_written() {
    for link in [
        r#"</v2/a/b/tags/list?last=1.1>; rel="next""#,
        r#"<https://evil.example/v2/a/b/tags/list?last=1.1>; rel="next""#,
        "<?last=1.1>; rel=next",
        r#"<http://169.254.169.254/latest?last=1.1>; rel="next""#,
    ] {
        let fake = Fake::start(move |seen| match seen.path.as_str() {
            "/v2/a/b/tags/list?n=1000" => Reply::new(200, &[("Link", link)], r#"{"tags":["1.0","1.1"]}"#),
            "/v2/a/b/tags/list?last=1.1" => Reply::ok(r#"{"tags":["latest"]}"#),
            other => panic!("{other}"),
        });
        let list = anonymous(fake.address).tags(&name("a/b"), &BrowseLimits::default()).await.unwrap();
        let names: Vec<_> = list.tags.iter().map(ToString::to_string).collect();
        assert_eq!(
            (names, list.clipped),
            (vec!["latest".into(), "1.1".into(), "1.0".into()], None),
            "{link}"
        );
    }
}

#[tokio::test]
async fn tells_when_a_list_of_tags_is_not_all() {
    let clipped = |status: u16, limits: BrowseLimits| async move {
        let fake = Fake::start(move |seen| match seen.path.as_str() {
            "/v2/a/b/tags/list?n=1000" => {
                Reply::new(200, &[("Link", "<?p=1>; rel=next")], r#"{"tags":["1.0"]}"#)
            }
            _ if status == 0 => Reply::raw_after(Duration::from_secs(9)),
            _ => Reply::new(status, &[("Link", "<?p=1>; rel=next")], r#"{"tags":["1.1"]}"#),
        });
        anonymous(fake.address).tags(&name("a/b"), &limits).await.unwrap().clipped.unwrap()
    };
    let limits = BrowseLimits::default();
    assert_eq!(clipped(200, limits).await, Clipped::Loop {});
    assert!(matches!(clipped(503, limits).await, Clipped::Failed { .. }));
    assert!(matches!(clipped(404, limits).await, Clipped::Failed { .. }));
    assert_eq!(clipped(200, BrowseLimits { pages: 1, ..limits }).await, Clipped::Pages { limit: 1 });
    assert_eq!(clipped(200, BrowseLimits { bytes: 20, ..limits }).await, Clipped::Bytes { limit: 20 });
    let time = Duration::from_secs(1);
    assert_eq!(clipped(0, BrowseLimits { time, ..limits }).await, Clipped::Time { limit_seconds: 1 });

    let missing = Fake::start(|_| Reply::status(404));
    let error = anonymous(missing.address).tags(&name("a/b"), &limits).await.unwrap_err();
    assert!(matches!(error, UpstreamError::NotFound { .. }));
}
