//! Peers that mean harm: bounded time and memory, and nobody else notices.

use std::time::{Duration, Instant};

use facade::server::Limits;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Device, raw, tls};
use crate::rig::{Rig, Setup, blob, noise};

fn impatient() -> Setup {
    let limits = Limits {
        handshake: Duration::from_millis(300),
        header: Duration::from_millis(500),
        idle: Duration::from_millis(500),
        ..Limits::default()
    };
    Setup { limits, ..Setup::default() }
}

#[tokio::test]
async fn closes_connections_that_do_not_shake_hands() {
    let rig = Rig::with(impatient()).await;
    let mut tcp = TcpStream::connect(rig.address).await.unwrap();
    let started = Instant::now();
    assert!(!matches!(tcp.read(&mut [0; 16]).await, Ok(1..)));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(rig.metrics.handshakes_failed.get(), 1);
}

#[tokio::test]
async fn closes_connections_that_drip_their_headers() {
    let rig = Rig::with(impatient()).await;
    rig.assign(&["board"], &[]);
    let mut stream = tls(&rig, Some(&rig.fleet.device("board")), b"http/1.1").await.unwrap();
    let started = Instant::now();
    let drip = async {
        for byte in b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'x'))
        {
            if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), drip).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn closes_idle_connections_of_both_protocols() {
    let rig = Rig::with(impatient()).await;
    rig.assign(&["board"], &[]);
    let credential = rig.fleet.device("board");
    for alpn in [b"h2".as_slice(), b"http/1.1"] {
        let mut stream = tls(&rig, Some(&credential), alpn).await.unwrap();
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok());
    }
}

#[tokio::test]
async fn turns_connections_away_beyond_its_limit() {
    let limits = Limits { connections_per_address: 2, ..Limits::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() }).await;
    rig.assign(&["board"], &[]);
    let credential = rig.fleet.device("board");
    let held = (
        tls(&rig, Some(&credential), b"h2").await.unwrap(),
        tls(&rig, Some(&credential), b"h2").await.unwrap(),
    );
    assert!(tls(&rig, Some(&credential), b"h2").await.is_err());
    drop(held);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(tls(&rig, Some(&credential), b"h2").await.is_ok());
}

#[tokio::test]
async fn a_request_has_one_reading() {
    let rig = Rig::with(impatient()).await;
    let layer = noise(1000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    for attack in [
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\n Host: a\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "GET /v2/\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /v2/ HTTP/9.9\r\nHost: a\r\n\r\n",
        "\x16\x03\x01",
    ] {
        let answer = raw(&rig, &credential, attack.as_bytes()).await;
        let answers = answer.matches("HTTP/1.1 ").count();
        assert!(answers <= 1 && !answer.contains("200 OK"), "{attack:?}: {answer}");
    }
}

#[tokio::test]
async fn giant_heads_are_refused() {
    let rig = Rig::with(impatient()).await;
    rig.assign(&["board"], &[]);
    let credential = rig.fleet.device("board");
    let long = format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET /v2/ HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(500));
    for attack in [long, many] {
        assert!(!raw(&rig, &credential, attack.as_bytes()).await.contains("200 OK"));
    }
}

#[tokio::test]
async fn ranges_that_are_dropped_half_way_hurt_nobody() {
    let rig = Rig::start().await;
    let layer = noise(20_000_000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    let mut pulls = Vec::new();
    for start in 0..20 {
        let mut device = Device::http1(&rig, Some(&credential)).await;
        let range = format!("bytes={}-", start * 500_000);
        let path = blob(&layer);
        let response = device.begin(http::Method::GET, &path, &[("range", &range)]).await.unwrap();
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        pulls.push((device, response));
    }
    drop(pulls);
    let mut device = Device::http2(&rig, Some(&credential)).await;
    assert!(device.get(&blob(&layer)).await.body == layer);
    assert_eq!(rig.script.gets(), 1);
}
