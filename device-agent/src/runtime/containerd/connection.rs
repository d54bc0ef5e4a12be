//! The socket: connects late, stamps every request with namespace, lease and deadline, and is the only place that says
//! what an answer of containerd means as an error.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use tokio::sync::OnceCell;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::super::{Cause, Lease, RuntimeError};
use super::socket::Socket;
use super::{Identifier, leases};

/// How long a question may take that containerd answers from its database.
const ANSWER: Duration = Duration::from_secs(60);
/// How long work on a slow card may take: a collection, hashing or syncing a large layer, unpacking it.
pub(super) const WORK: Duration = Duration::from_secs(60 * 60);

/// The way to one containerd.
#[derive(Debug)]
pub(super) struct Connection {
    address: PathBuf,
    namespace: Option<AsciiMetadataValue>,
    // Once made, a channel connects again by itself whenever the socket is back.
    channel: OnceCell<Channel>,
    /// How many contents are just being written.
    pub(super) writers: AtomicUsize,
}

/// Makes one method per service of containerd.
macro_rules! services {
    ($($name:ident: $client:ident),* $(,)?) => {$(
        pub(super) async fn $name(&self) -> Result<$client<Channel>, RuntimeError> {
            Ok($client::new(self.channel().await?))
        }
    )*};
}

impl Connection {
    pub(super) fn new(address: PathBuf, namespace: &Identifier) -> Self {
        Self {
            address,
            // An `Identifier` always is a header value.
            namespace: namespace.as_str().parse().ok(),
            channel: OnceCell::new(),
            writers: AtomicUsize::new(0),
        }
    }

    services! {
        content: ContentClient,
        images: ImagesClient,
        leases: LeasesClient,
        snapshots: SnapshotsClient,
        diff: DiffClient,
        introspection: IntrospectionClient,
        namespaces: NamespacesClient,
    }

    pub(super) fn address(&self) -> String {
        self.address.display().to_string()
    }

    /// The version that answers.
    pub(super) async fn version(&self) -> Result<String, RuntimeError> {
        let mut client = VersionClient::new(self.channel().await?);
        let answer = client.version(self.request(())).await;
        let version = answer.map_err(|status| self.error("asking for its version", status))?;
        Ok(version.into_inner().version)
    }

    pub(super) async fn channel(&self) -> Result<Channel, RuntimeError> {
        let connect = async || {
            let address = self.address.clone();
            let connector = tower::service_fn(move |_| {
                let address = address.clone();
                async move { Socket::connect(&address).await.map(TokioIo::new) }
            });
            // The address in the endpoint is there for its grammar; nobody is asked for it.
            Endpoint::from_static("http://containerd").connect_with_connector(connector).await
        };
        let channel = self.channel.get_or_try_init(connect).await;
        channel.cloned().map_err(|error| RuntimeError::Unreachable {
            address: self.address(),
            action: "connecting".to_owned(),
            source: Cause::Connect(error),
        })
    }

    /// A question.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.stream(message);
        request.set_timeout(ANSWER);
        request
    }

    /// A question whose answer takes work.
    pub(super) fn work<T>(&self, message: T) -> Request<T> {
        let mut request = self.stream(message);
        request.set_timeout(WORK);
        request
    }

    /// A request that may last: the deadline is the caller's matter.
    pub(super) fn stream<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(namespace) = &self.namespace {
            request.metadata_mut().insert("containerd-namespace", namespace.clone());
        }
        request
    }

    /// What an answer means. A full disk has no code of its own: containerd passes on the words of the kernel.
    pub(super) fn error(&self, action: impl Into<String>, status: Status) -> RuntimeError {
        let action = action.into();
        let full = ["no space left on device", "disk quota exceeded"];
        let words = status.message();
        if full.iter().any(|text| words.contains(text)) {
            let source = Cause::Status(Box::new(status));
            return RuntimeError::NoSpace { action, source };
        }
        let gone = is_gone(&status);
        let (address, source) = (self.address(), Cause::Status(Box::new(status)));
        if gone {
            RuntimeError::Unreachable { address, action, source }
        } else {
            RuntimeError::Failed { address, action, source }
        }
    }

    /// An answer that is not what the protocol says; what lies behind it is containerd going away.
    pub(super) fn broken(&self, action: impl Into<String>, words: &'static str) -> RuntimeError {
        RuntimeError::Unreachable {
            address: self.address(),
            action: action.into(),
            source: Cause::Protocol(words),
        }
    }
}

/// Puts a request under a lease.
pub(super) fn under<T>(lease: &Lease, mut request: Request<T>) -> Request<T> {
    if let Ok(id) = leases::id(lease.artifact()).parse::<AsciiMetadataValue>() {
        request.metadata_mut().insert("containerd-lease", id);
    }
    request
}

/// Whether containerd went away rather than answered. A status with a source was made on our side, of a broken
/// connection; containerd's own never have one.
pub(super) fn is_gone(status: &Status) -> bool {
    let codes = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled];
    codes.contains(&status.code()) || std::error::Error::source(status).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection::new("/run/none.sock".into(), &"drayage".parse().unwrap())
    }

    #[test]
    fn tells_a_full_disk_from_a_containerd_that_is_gone() {
        let connection = connection();
        let full = Status::unknown("failed to copy: write /var/lib/x: no space left on device");
        assert!(matches!(connection.error("writing", full), RuntimeError::NoSpace { .. }));
        let gone = connection.error("writing", Status::unavailable("connection refused"));
        assert!(gone.is_transient(), "{gone:?}");
        let failed = connection.error("writing", Status::invalid_argument("no"));
        assert!(matches!(failed, RuntimeError::Failed { .. }), "{failed:?}");
    }

    #[test]
    fn stamps_requests_with_the_namespace() {
        let request = connection().request(());
        assert_eq!(request.metadata().get("containerd-namespace").unwrap(), "drayage");
    }

    #[tokio::test]
    async fn rejects_a_socket_that_is_not_there_as_unreachable() {
        let error = connection().version().await.unwrap_err();
        assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error:?}");
    }
}
