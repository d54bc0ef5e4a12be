//! One connection of the device door: handshake, protocol, deadlines.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Shared;
use super::access_log::Activity;
use super::answer::answer_hyper;
use super::bandwidth::Throttle;
use super::h1;
use super::tls::{Peer, Stream};

/// Bytes that may wait in the kernel unsent. Without this Linux buffers some 2 MiB for every slow reader.
pub(super) const UNSENT_BYTES: u32 = 64 * 1024;
pub(super) const MAX_HEAD_BYTES: usize = 32 * 1024;
pub(super) const MAX_HEADERS: usize = 64;
const H2_SEND_BUFFER_BYTES: usize = 128 * 1024;
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
const H2_PING_PATIENCE: Duration = Duration::from_secs(20);
/// Streams that a peer may open and reset at once (rapid reset, CVE-2023-44487).
const H2_MAX_RESET_STREAMS: usize = 20;
const H2_MAX_LOCAL_RESETS: usize = 128;

/// What the requests of one connection share.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Peer,
    pub(super) remote: SocketAddr,
    pub(super) activity: Arc<Activity>,
    pub(super) throttle: Throttle,
}

/// Serves one connection to its end.
pub(super) async fn serve(shared: &Arc<Shared>, tcp: TcpStream, remote: SocketAddr) {
    let (door, metrics) = (&shared.door, &shared.door.metrics);
    let (stream, peer) =
        match tokio::time::timeout(door.limits.handshake, Box::pin(door.tls.accept(tcp))).await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(error)) => {
                metrics.handshakes_failed.inc();
                tracing::debug!(%remote, %error, "handshake failed");
                return;
            }
            Err(_) => {
                metrics.handshakes_failed.inc();
                tracing::debug!(%remote, "handshake took too long");
                return;
            }
        };
    metrics.handshakes.inc();
    metrics.connections.inc();
    let lifetime = Lifetime::of(shared, &peer);
    let activity = Arc::new(Activity::default());
    let throttle = match &peer {
        Peer::Device(device) => shared.bandwidth.throttle(device.id()),
        Peer::Anonymous => Throttle::default(),
    };
    let connection = Connection { shared: Arc::clone(shared), peer, remote, activity, throttle };
    speak(Arc::new(connection), stream, lifetime).await;
    metrics.connections.dec();
}

/// Says how connections are to be. Linux has each of them take that over from the listener when it is accepted, which
/// saves them four system calls.
pub(super) fn prepare(listener: &TcpListener) -> std::io::Result<()> {
    let socket = socket2::SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    // A device that vanished without a word: its connection must not wait for hours.
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(Duration::from_mins(1)))
}

/// What ends a connection that would go on.
struct Lifetime {
    /// The device loses its standing.
    cut: CancellationToken,
    /// The device's certificate ends; nothing more may be served on its account.
    end: Option<Instant>,
    /// The connection is old.
    old: Instant,
    drain: CancellationToken,
    idle: Duration,
    stuck: Duration,
}

impl Lifetime {
    fn of(shared: &Arc<Shared>, peer: &Peer) -> Self {
        let limits = &shared.door.limits;
        let now = Instant::now();
        let (cut, end) = match peer {
            Peer::Anonymous => (CancellationToken::new(), None),
            Peer::Device(device) => {
                let left = device.identity().not_after().duration_since(shared.door.clock.now());
                // One that has expired already is here to re-enroll.
                let left = Duration::try_from(left).ok().filter(|left| !left.is_zero());
                let end = left.and_then(|left| now.checked_add(left));
                (shared.door.access.cut(device.id()), end)
            }
        };
        let old = now + limits.age;
        Self { cut, end, old, drain: shared.drain.clone(), idle: limits.idle, stuck: limits.stuck }
    }
}

async fn speak(connection: Arc<Connection>, stream: Stream, lifetime: Lifetime) {
    let leave = CancellationToken::new();
    let activity = Arc::clone(&connection.activity);
    // ALPN decides; nobody guesses a protocol from the first bytes.
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        supervise(Box::pin(speak_http2(connection, stream, &leave)), &activity, lifetime, &leave).await;
    } else {
        supervise(Box::pin(speak_h1(connection, stream, &leave)), &activity, lifetime, &leave).await;
    }
}

/// HTTP/1.1: as long as everything is plain by ourselves, from then on by hyper. Each has its own box, so that nobody
/// holds the room for the other.
async fn speak_h1(connection: Arc<Connection>, stream: Stream, leave: &CancellationToken) {
    if let Some(odd) = Box::pin(h1::serve(&connection, stream, leave)).await {
        Box::pin(speak_http1(connection, odd, leave)).await;
    }
}

async fn speak_http2(connection: Arc<Connection>, stream: Stream, leave: &CancellationToken) {
    let tasks = Tasks(connection.shared.tasks.clone());
    let mut builder = http2::Builder::new(tasks);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(H2_PING_INTERVAL)
        .keep_alive_timeout(H2_PING_PATIENCE)
        .max_concurrent_streams(connection.shared.door.limits.streams)
        .max_pending_accept_reset_streams(H2_MAX_RESET_STREAMS)
        .max_local_error_reset_streams(H2_MAX_LOCAL_RESETS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buf_size(H2_SEND_BUFFER_BYTES);
    let service = service_fn(move |request| answer_hyper(Arc::clone(&connection), request));
    drive(builder.serve_connection(TokioIo::new(stream), service), leave).await;
}

/// Has hyper speak HTTP/1.1 on a stream.
async fn speak_http1(connection: Arc<Connection>, stream: h1::Rewind, leave: &CancellationToken) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(connection.shared.door.limits.header)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    let service = service_fn(move |request| answer_hyper(Arc::clone(&connection), request));
    drive(builder.serve_connection(TokioIo::new(stream), service), leave).await;
}

/// Drives a connection; told to leave, it finishes what is open and takes nothing more.
async fn drive<C: GracefulConnection>(connection: C, leave: &CancellationToken) {
    let mut connection = pin!(connection);
    // Errors here are mostly peers that went away; what matters was logged where it happened.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = leave.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Lets a connection go on until it ends or something ends it.
async fn supervise(
    mut connection: Pin<Box<dyn Future<Output = ()> + Send + '_>>,
    activity: &Activity,
    lifetime: Lifetime,
    leave: &CancellationToken,
) {
    let mut end = pin!(optional(lifetime.end));
    let mut old = pin!(sleep_until(lifetime.old));
    let mut tick = pin!(sleep_until(Instant::now() + lifetime.idle));
    let mut progress = activity.progress.load(Ordering::Relaxed);
    let mut since = Instant::now();
    loop {
        tokio::select! {
            () = connection.as_mut() => return,
            () = lifetime.cut.cancelled() => return,
            () = &mut end => return,
            () = lifetime.drain.cancelled(), if !leave.is_cancelled() => leave.cancel(),
            () = &mut old, if !leave.is_cancelled() => leave.cancel(),
            () = &mut tick => {
                let now = Instant::now();
                let seen = activity.progress.load(Ordering::Relaxed);
                if seen != progress {
                    (progress, since) = (seen, now);
                } else if activity.open.load(Ordering::Relaxed) == 0 {
                    // Said goodbye already, and the peer did not listen.
                    if leave.is_cancelled() {
                        return;
                    }
                    leave.cancel();
                } else if now.duration_since(since) >= lifetime.stuck {
                    tracing::debug!("connection made no progress");
                    return;
                }
                tick.as_mut().reset(now + lifetime.idle);
            }
        }
    }
}

async fn optional(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Runs the streams of HTTP/2 connections as tasks that somebody waits for.
#[derive(Clone)]
struct Tasks(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}
