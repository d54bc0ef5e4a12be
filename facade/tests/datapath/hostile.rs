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
        "GET /v2/ HTTP/1.1\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
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

/// The most memory this process has had, in kibibytes.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn is_served(rig: &Rig, credential: &crate::rig::Credential, layer: &[u8]) -> bool {
    Device::http1(rig, Some(credential)).await.get(&blob(layer)).await.body == layer
}

/// Waits until the peer has closed, whatever it sends before.
async fn is_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn hundreds_of_half_open_handshakes_keep_no_device_out() {
    const HALF_OPEN: usize = 400;
    let limits = Limits { handshake: Duration::from_secs(2), ..Limits::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() }).await;
    let layer = noise(1000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    let before = peak_kib();
    let mut open = Vec::new();
    for number in 0..HALF_OPEN {
        let mut tcp = TcpStream::connect(rig.address).await.unwrap();
        // Half of them begin a record that announces a long hello, and leave it at that.
        if number % 2 == 0 {
            tcp.write_all(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03").await.unwrap();
        }
        open.push(tcp);
    }
    assert!(is_served(&rig, &credential, &layer).await);
    let grown = peak_kib() - before;
    assert!(grown < 64 * HALF_OPEN as u64, "grown by {grown} KiB");
    for tcp in &mut open {
        assert!(is_closed(tcp).await);
    }
    assert!(is_served(&rig, &credential, &layer).await);
}

#[tokio::test]
async fn a_hundred_dripping_peers_keep_no_device_out() {
    let limits = Limits { header: Duration::from_secs(2), ..Limits::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() }).await;
    let layer = noise(1000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut stream = tls(&rig, Some(&credential), b"http/1.1").await.unwrap();
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX-Slow: x").await.unwrap();
        open.push(stream);
    }
    assert!(is_served(&rig, &credential, &layer).await);
    for stream in &mut open {
        assert!(is_closed(stream).await);
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length, [kind, flags].as_slice(), &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_the_connection() {
    let rig = Rig::start().await;
    let layer = noise(1000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    let mut stream = tls(&rig, Some(&credential), b"h2").await.unwrap();
    let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    attack.extend(frame(4, 0, 0, &[]));
    // :method GET, :scheme https, :path /v2/, :authority localhost (RFC 7541)
    let head = b"\x82\x87\x04\x04/v2/\x01\x09localhost";
    for number in 0..5000_u32 {
        attack.extend(frame(1, 0x5, 2 * number + 1, head));
        attack.extend(frame(3, 0, 2 * number + 1, &8_u32.to_be_bytes()));
    }
    let (mut from, mut to) = tokio::io::split(&mut stream);
    // The peer stops listening half-way: that its socket breaks is the point.
    let (closed, _) = tokio::join!(is_closed(&mut from), to.write_all(&attack));
    assert!(closed);
    let answered = rig.metrics.text();
    let answered = answered.lines().find_map(|line| {
        line.strip_prefix("facade_answers_total{action=\"ping\",status=\"200\"} ")?.parse::<u64>().ok()
    });
    assert!(answered.unwrap_or(0) < 2000, "{answered:?} requests were worked on");
    assert!(is_served(&rig, &credential, &layer).await);
}

#[tokio::test]
async fn a_head_without_an_end_ends_the_connection() {
    let rig = Rig::start().await;
    let layer = noise(1000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    let mut stream = tls(&rig, Some(&credential), b"h2").await.unwrap();
    let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    attack.extend(frame(4, 0, 0, &[]));
    attack.extend(frame(1, 0, 1, b"\x82\x87\x04\x04/v2/\x01\x09localhost"));
    // One header field after another, none of them the last (CVE-2024-27316 and its kin).
    let more =
        frame(9, 0, 1, &b"\x00\x01x\x7f\x00".iter().chain([b'y'; 127].iter()).copied().collect::<Vec<_>>());
    let before = peak_kib();
    let (mut from, mut to) = tokio::io::split(&mut stream);
    let flood = async {
        to.write_all(&attack).await?;
        // 26 MiB of it, should the door take that.
        for _ in 0..2000 {
            to.write_all(&more.repeat(100)).await?;
        }
        std::io::Result::Ok(())
    };
    let (closed, _) = tokio::join!(is_closed(&mut from), flood);
    assert!(closed);
    let grown = peak_kib() - before;
    assert!(grown < 16 * 1024, "grown by {grown} KiB");
    assert!(is_served(&rig, &credential, &layer).await);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_dropped_and_a_slow_one_is_not() {
    let limits =
        Limits { idle: Duration::from_millis(300), stuck: Duration::from_millis(900), ..Limits::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() }).await;
    // More than the sockets of both ends hold.
    let layer = noise(40_000_000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    let request = format!("GET {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", blob(&layer));
    let mut stuck = tls(&rig, Some(&credential), b"http/1.1").await.unwrap();
    stuck.write_all(request.as_bytes()).await.unwrap();
    let mut slow = tls(&rig, Some(&credential), b"http/1.1").await.unwrap();
    slow.write_all(request.as_bytes()).await.unwrap();
    let mut piece = vec![0; 1_000_000];
    let (mut read, mut rests) = (0, 0);
    while rests < 20 {
        let count = slow.read_exact(&mut piece).await.expect("a slow reader goes on");
        read += count;
        rests += 1;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(read, 20_000_000);
    let mut rest = Vec::new();
    let _ = stuck.read_to_end(&mut rest).await;
    assert!(rest.len() < layer.len(), "got {} bytes", rest.len());
}
