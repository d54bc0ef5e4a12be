//! Who gets in, who is cut off, and how the door closes.

use std::time::Duration;

use facade::catalog::access::{DeviceEntry, Standing};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use tokio::io::AsyncReadExt;

use crate::client::{Device, finish, tls};
use crate::rig::{Credential, Fleet, Rig, blob, noise};

/// Whether the server turns a certificate away in the handshake; TLS 1.3 tells the client only when it reads.
async fn is_turned_away(rig: &Rig, credential: &Credential) -> bool {
    match tls(rig, Some(credential), b"http/1.1").await {
        Err(_) => true,
        Ok(mut stream) => tokio::time::timeout(Duration::from_secs(2), stream.read_u8())
            .await
            .is_ok_and(|read| read.is_err()),
    }
}

#[tokio::test]
async fn rejects_certificates_of_another_authority() {
    let rig = Rig::start().await;
    rig.assign(&["board"], &[]);
    assert!(is_turned_away(&rig, &Fleet::new().device("board")).await);
    assert!(is_turned_away(&rig, &Fleet::new().device("board")).await);
    assert!(!is_turned_away(&rig, &rig.fleet.device("board")).await);
}

#[tokio::test]
async fn rejects_everything_but_enrollment_without_a_certificate() {
    let rig = Rig::start().await;
    let layer = noise(1000);
    rig.assign(&["board"], &[&layer]);
    let mut nobody = Device::http1(&rig, None).await;
    for path in ["/v2/", &blob(&layer), "/metadata/images/timestamp.json"] {
        assert_eq!(nobody.get(path).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    let answer = nobody.send(Method::POST, "/.well-known/est/simpleenroll", &[]).await;
    assert_eq!(answer.text(), "Enroll None");
}

#[tokio::test]
async fn an_expired_certificate_may_only_be_renewed_and_only_for_a_while() {
    let rig = Rig::start().await;
    rig.assign(&["board"], &[]);
    let ago = |hours| Timestamp::now() - SignedDuration::from_hours(hours);
    let lifetime = SignedDuration::from_hours(1);
    let mut device = Device::http1(&rig, Some(&rig.fleet.device_at("board", ago(3), lifetime))).await;
    assert_eq!(device.get("/v2/").await.status, StatusCode::FORBIDDEN);
    let answer = device.send(Method::POST, "/.well-known/est/simplereenroll", &[]).await;
    assert_eq!(answer.text(), "Reenroll Some(\"board\")");
    assert!(is_turned_away(&rig, &rig.fleet.device_at("board", ago(40), lifetime)).await);
}

#[tokio::test]
async fn a_certificate_that_expires_is_refused_on_the_open_connection() {
    let rig = Rig::start().await;
    rig.assign(&["board"], &[]);
    let credential = rig.fleet.device("board");
    let mut device = Device::http1(&rig, Some(&credential)).await;
    assert_eq!(device.get("/v2/").await.status, StatusCode::OK);
    rig.clock.set(Timestamp::now() + SignedDuration::from_hours(2));
    assert_eq!(device.get("/v2/").await.status, StatusCode::FORBIDDEN);
    // Its chain is remembered as verified, which must not help it.
    let mut again = Device::http1(&rig, Some(&credential)).await;
    assert_eq!(again.get("/v2/").await.status, StatusCode::FORBIDDEN);
    rig.clock.set(Timestamp::now() + SignedDuration::from_hours(30));
    assert!(is_turned_away(&rig, &credential).await);
}

#[tokio::test]
async fn an_unknown_or_refused_certificate_gets_nothing() {
    let rig = Rig::start().await;
    rig.assign(&["board"], &[]);
    let mut stranger = Device::http1(&rig, Some(&rig.fleet.device("stranger"))).await;
    assert_eq!(stranger.get("/v2/").await.status, StatusCode::FORBIDDEN);
    let (old, new) = (rig.fleet.device("board"), rig.fleet.device("board"));
    let refused_serials = vec![old.serial.clone()];
    let entry = DeviceEntry { standing: Standing::Active, refused_serials, ..DeviceEntry::default() };
    rig.access.set_device("board".parse().unwrap(), entry);
    assert_eq!(Device::http1(&rig, Some(&old)).await.get("/v2/").await.status, StatusCode::FORBIDDEN);
    assert_eq!(Device::http1(&rig, Some(&new)).await.get("/v2/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_revoked_device_is_cut_in_mid_stream() {
    let rig = Rig::start().await;
    let layer = noise(20_000_000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    for http2 in [false, true] {
        rig.assign(&["board"], &[&layer]);
        let mut device = if http2 {
            Device::http2(&rig, Some(&credential)).await
        } else {
            Device::http1(&rig, Some(&credential)).await
        };
        let mut response = device.begin(Method::GET, &blob(&layer), &[]).await.unwrap();
        response.frame().await.unwrap().unwrap();
        rig.revoke("board");
        let answer = tokio::time::timeout(Duration::from_secs(5), finish(response)).await.unwrap();
        assert!(answer.cut && answer.body.len() < layer.len());
        let mut again = Device::http1(&rig, Some(&credential)).await;
        assert_eq!(again.get(&blob(&layer)).await.status, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn shutting_down_lets_open_streams_finish() {
    let mut rig = Rig::start().await;
    let layer = noise(20_000_000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    let mut device = Device::http1(&rig, Some(&credential)).await;
    let mut response = device.begin(Method::GET, &blob(&layer), &[]).await.unwrap();
    let first = response.frame().await.unwrap().unwrap().into_data().unwrap();
    rig.shutdown();
    let answer = finish(response).await;
    assert_eq!((answer.cut, first.len() + answer.body.len()), (false, layer.len()));
    tokio::time::timeout(Duration::from_secs(5), rig.stop()).await.unwrap();
    assert!(tls(&rig, Some(&credential), b"h2").await.is_err());
    rig.puller.stop().await;
}
