//! The device door: accepts, limits and drains connections, and answers requests for content.
//!
//! What is not content (metadata, EST, reports, waiting) goes to the [`Handler`], after the same authorization. Nothing
//! here waits for a peer without a deadline, and nothing a peer does makes the door hold more than its limits say.

mod access_log;
mod answer;
mod bandwidth;
pub mod body;
mod connection;
mod h1;
mod limits;
mod range;
pub mod respond;
pub mod route;
pub mod tls;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::access::Access;
use crate::catalog::pulls::Pulls;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::pull::Puller;
use crate::service::Pulse;

use bandwidth::Bandwidth;
use body::{Body, Buffers};
pub use limits::Limits;
use limits::Places;
use respond::Dialect;
use route::Action;
use tls::{Device, Tls};

/// Answers what is not content.
pub type Handler = Arc<dyn Fn(DeviceRequest) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// A request that was authorized and is not for content.
pub struct DeviceRequest {
    /// What is asked for: never [`Action::Ping`] or [`Action::Content`].
    pub action: Action,
    /// Who asks; none for the two actions that are open to anybody.
    pub device: Option<Device>,
    /// The headers of the request.
    pub headers: HeaderMap,
    /// Its body.
    pub body: RequestBody,
    /// Where it came from.
    pub remote: std::net::SocketAddr,
    /// Its id in our logs.
    pub request_id: Box<str>,
}

/// The body of a request, not read yet; none for requests that cannot have one.
pub struct RequestBody(Option<hyper::body::Incoming>);

/// Why a body could not be read.
#[derive(Debug, Error)]
pub enum RequestBodyError {
    /// It is larger than it may be.
    #[error("the body is larger than {max_bytes} bytes")]
    TooLarge {
        /// The limit.
        max_bytes: usize,
    },
    /// It did not come in time.
    #[error("the body did not arrive in time")]
    Slow,
    /// The connection broke.
    #[error("the body did not arrive whole")]
    Cut,
}

impl RequestBody {
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Reads it whole.
    pub async fn read(self, max_bytes: usize) -> Result<Bytes, RequestBodyError> {
        let Some(body) = self.0 else {
            return Ok(Bytes::new());
        };
        let whole = Limited::new(body, max_bytes).collect();
        match tokio::time::timeout(Self::PATIENCE, whole).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Err(RequestBodyError::TooLarge { max_bytes })
            }
            Ok(Err(_)) => Err(RequestBodyError::Cut),
            Err(_) => Err(RequestBodyError::Slow),
        }
    }
}

impl RequestBodyError {
    /// The answer to it.
    pub fn response(&self) -> Response<Body> {
        let (status, code) = match self {
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE"),
            Self::Slow => (StatusCode::REQUEST_TIMEOUT, "BODY_TOO_SLOW"),
            Self::Cut => (StatusCode::BAD_REQUEST, "BODY_INCOMPLETE"),
        };
        Dialect::Problem.error(status, code, &self.to_string())
    }
}

/// What the device door is made of.
pub struct DeviceDoor {
    /// Certificates, its own and those it accepts.
    pub tls: Tls,
    /// Who may have what.
    pub access: Arc<Access>,
    /// Content.
    pub puller: Puller,
    /// Who pulled what.
    pub pulls: Pulls,
    /// Everything else.
    pub handler: Handler,
    /// How much of what.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// Beats while connections are accepted.
    pub pulse: Pulse,
}

struct Shared {
    door: DeviceDoor,
    places: Arc<Places>,
    bandwidth: Bandwidth,
    buffers: Buffers,
    /// Large ones, which no connection holds while it waits for its peer.
    scratch: Buffers,
    tasks: TaskTracker,
    drain: CancellationToken,
    request_ids: answer::RequestIds,
}

impl DeviceDoor {
    /// Serves until `shutdown`, then lets open requests finish within [`Limits::drain`], and cuts what is left.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) {
        let shared = Arc::new(Shared {
            places: Arc::new(Places::new(&self.limits)),
            bandwidth: Bandwidth::new(self.limits.bandwidth, self.limits.bandwidth_per_device),
            buffers: Buffers::default(),
            scratch: Buffers::default(),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            request_ids: answer::RequestIds::new(),
            door: self,
        });
        if let Err(error) = connection::prepare(&listener) {
            tracing::error!(%error, "connections of devices cannot be prepared: slow readers will take more memory");
        }
        let cut = CancellationToken::new();
        tokio::select! {
            () = accept(&shared, &listener, &cut) => {}
            () = shutdown => {}
        }
        drop(listener);
        shared.drain.cancel();
        shared.tasks.close();
        if tokio::time::timeout(shared.door.limits.drain, shared.tasks.wait()).await.is_err() {
            cut.cancel();
            shared.tasks.wait().await;
        }
    }
}

async fn accept(shared: &Arc<Shared>, listener: &TcpListener, cut: &CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.door.pulse.beat() => continue,
        };
        let (tcp, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly too many open files: waiting lets connections end, failing would end the facade.
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = shared.places.take(remote.ip()) else {
            shared.door.metrics.connections_refused.inc();
            tracing::debug!(%remote, "connection turned away: too many");
            continue;
        };
        let (shared, cut) = (Arc::clone(shared), cut.clone());
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = connection::serve(&shared, tcp, remote) => {}
                () = cut.cancelled() => {}
            }
            drop(place);
        });
    }
}
