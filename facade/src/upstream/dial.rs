//! Connections: name, address, TCP, proxy, TLS, each with its own error.
//!
//! A name is resolved once, every address is held against the [`Policy`], and exactly the addresses that passed are
//! dialled: a name server cannot show one address to the check and another to the socket.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::Resolver;
use super::address::Policy;
use super::error::{Cause, Layer, UpstreamError};
use super::target::{Scheme, Target};

/// How long an address may be silent before the next one is tried beside it (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
const MAX_ADDRESSES: usize = 8;

/// TCP, or TLS to the proxy.
pub(super) type Link = MaybeHttpsStream<TokioIo<TcpStream>>;
/// A link, or TLS to the registry on top of it.
pub(super) type Stream = MaybeHttpsStream<Link>;

/// Opens connections for one registry.
#[derive(Clone)]
pub(super) struct Dialer(Arc<Inner>);

struct Inner {
    policy: Policy,
    resolver: Resolver,
    proxy: Option<Arc<Matcher>>,
    /// For the registry: its authorities and client certificate.
    tls: Arc<ClientConfig>,
    /// For a proxy that itself speaks TLS; never shows the client certificate.
    proxy_tls: Arc<ClientConfig>,
    connect: Duration,
}

impl Dialer {
    pub(super) fn new(
        policy: Policy,
        resolver: Resolver,
        proxy: Option<Arc<Matcher>>,
        (tls, proxy_tls): (Arc<ClientConfig>, Arc<ClientConfig>),
        connect: Duration,
    ) -> Self {
        Self(Arc::new(Inner { policy, resolver, proxy, tls, proxy_tls, connect }))
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// The addresses at which the target may be dialled; none in the list if a proxy will look them up.
    pub(super) async fn addresses(&self, target: &Target) -> Result<Vec<IpAddr>, UpstreamError> {
        if self.0.proxy_for(target).is_some() {
            return Ok(Vec::new());
        }
        self.0.checked_addresses(target).await
    }

    /// Opens TCP to the target, through the proxy if there is one for it.
    pub(super) async fn link(&self, target: &Target) -> Result<Link, UpstreamError> {
        within(self.0.connect, target, "connecting", self.0.link(target)).await
    }

    /// Opens TLS on a link, or leaves it plain, as the target says.
    pub(super) async fn secure(&self, target: &Target, link: Link) -> Result<Stream, UpstreamError> {
        let securing = self.0.secure(target, link);
        within(self.0.connect, target, "agreeing on TLS", securing).await
    }
}

async fn within<T>(
    limit: Duration,
    target: &Target,
    doing: &'static str,
    work: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(UpstreamError::Timeout { host: target.authority().into(), doing }))
}

impl Inner {
    fn proxy_for(&self, target: &Target) -> Option<Intercept> {
        match target.scheme() {
            Scheme::Https => self.proxy.as_ref()?.intercept(&target.uri()?),
            Scheme::Http => None,
        }
    }

    async fn link(&self, target: &Target) -> Result<Link, UpstreamError> {
        if let Some(proxy) = self.proxy_for(target) {
            return self.tunnel(target, &proxy).await;
        }
        let addresses = self.checked_addresses(target).await?;
        let tcp = race(target, addresses).await?;
        Ok(MaybeHttpsStream::Http(TokioIo::new(tcp)))
    }

    async fn secure(&self, target: &Target, link: Link) -> Result<Stream, UpstreamError> {
        match target.scheme() {
            Scheme::Http => Ok(MaybeHttpsStream::Http(link)),
            Scheme::Https => {
                let stream = tls(&self.tls, target, TokioIo::new(link)).await?;
                Ok(MaybeHttpsStream::Https(TokioIo::new(stream)))
            }
        }
    }

    async fn checked_addresses(&self, target: &Target) -> Result<Vec<IpAddr>, UpstreamError> {
        let found = self.resolve(target).await?;
        let mut refused = None;
        let mut allowed = Vec::new();
        for address in found {
            match self.policy.permits_address(target, address) {
                Ok(()) => allowed.push(address),
                Err(why) => refused = Some((address, why)),
            }
        }
        match refused {
            Some((address, why)) if allowed.is_empty() => {
                Err(UpstreamError::ForbiddenAddress { host: target.authority().into(), address, why })
            }
            _ => Ok(allowed),
        }
    }

    async fn resolve(&self, target: &Target) -> Result<Vec<IpAddr>, UpstreamError> {
        if let Ok(address) = target.host().parse() {
            return Ok(vec![address]);
        }
        let unknown = |source: Cause| UpstreamError::Unreachable {
            host: target.host().into(),
            layer: Layer::Name,
            source,
        };
        let mut found: Vec<IpAddr> = match &self.resolver {
            Resolver::System => tokio::net::lookup_host((target.host(), target.port()))
                .await
                .map_err(|error| unknown(Cause::of(&error)))?
                .map(|address| address.ip())
                .collect(),
            Resolver::Table(table) => table.get(target.host()).cloned().unwrap_or_default(),
            Resolver::Changing(answers) => {
                let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
                let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
                next.unwrap_or_default()
            }
        };
        if found.is_empty() {
            return Err(unknown(Cause::new("no address")));
        }
        found.truncate(MAX_ADDRESSES);
        Ok(found)
    }

    async fn tunnel(&self, target: &Target, proxy: &Intercept) -> Result<Link, UpstreamError> {
        // The proxy looks names up by itself; what can be judged here is a target that is an address already.
        if let Ok(address) = target.host().parse::<IpAddr>() {
            let refused =
                |why| UpstreamError::ForbiddenAddress { host: target.authority().into(), address, why };
            self.policy.permits_address(target, address).map_err(refused)?;
        }
        let failed = |source: Cause| UpstreamError::Unreachable {
            host: target.authority().into(),
            layer: Layer::Proxy,
            source,
        };
        let to_proxy = ToProxy { resolver: self.resolver.clone(), tls: Arc::clone(&self.proxy_tls) };
        let mut tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let destination = format!("https://{}:{}/", bracketed(target.host()), target.port());
        let destination: Uri = destination.parse().map_err(|_| failed(Cause::new("not a host")))?;
        tunnel.call(destination).await.map_err(|error| failed(Cause::of(&error)))
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// Dials the addresses one after the other, the next as soon as the one before fails or stays silent for a moment.
async fn race(target: &Target, addresses: Vec<IpAddr>) -> Result<TcpStream, UpstreamError> {
    let mut waiting: VecDeque<IpAddr> = alternate(addresses).into();
    let mut dialling = FuturesUnordered::new();
    let mut last = Cause::new("no address");
    loop {
        if let Some(address) = waiting.pop_front() {
            dialling.push(TcpStream::connect(SocketAddr::new(address, target.port())));
        }
        let next = async {
            if waiting.is_empty() {
                std::future::pending::<()>().await;
            } else {
                sleep(STAGGER).await;
            }
        };
        tokio::select! {
            Some(done) = dialling.next() => match done {
                Ok(tcp) => {
                    let _ = tcp.set_nodelay(true);
                    return Ok(tcp);
                }
                Err(error) => last = Cause::of(&error),
            },
            () = next => {}
        }
        if dialling.is_empty() && waiting.is_empty() {
            return Err(UpstreamError::Unreachable {
                host: target.authority().into(),
                layer: Layer::Tcp,
                source: last,
            });
        }
    }
}

/// IPv6 and IPv4 in turn, so that one broken family costs one stagger.
fn alternate(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let longer = v6.len().max(v4.len());
    (0..longer).flat_map(|turn| [v6.get(turn).copied(), v4.get(turn).copied()]).flatten().collect()
}

async fn tls<S>(
    config: &Arc<ClientConfig>,
    target: &Target,
    stream: TokioIo<S>,
) -> Result<tokio_rustls::client::TlsStream<TokioIo<S>>, UpstreamError>
where
    TokioIo<S>: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let failed = |source: Cause| UpstreamError::Tls { host: target.authority().into(), source };
    let name = ServerName::try_from(target.host().to_owned()).map_err(|error| failed(Cause::of(&error)))?;
    TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
        .map_err(|error| failed(Cause::of(&error)))
}

/// The first leg to a proxy, which the facade's configuration names and which therefore may be anywhere.
#[derive(Clone)]
struct ToProxy {
    resolver: Resolver,
    tls: Arc<ClientConfig>,
}

impl ToProxy {
    async fn dial(self, proxy: Uri) -> Result<Link, UpstreamError> {
        let target = Target::of_uri(&proxy).ok_or_else(|| UpstreamError::Unreachable {
            host: proxy.host().unwrap_or_default().into(),
            layer: Layer::Proxy,
            source: Cause::new("only http and https proxies are supported"),
        })?;
        let direct = Inner {
            policy: Policy::Fixed,
            resolver: self.resolver,
            proxy: None,
            tls: Arc::clone(&self.tls),
            proxy_tls: Arc::clone(&self.tls),
            connect: Duration::ZERO,
        };
        let addresses = direct.checked_addresses(&target).await?;
        let tcp = TokioIo::new(race(&target, addresses).await?);
        match target.scheme() {
            Scheme::Http => Ok(MaybeHttpsStream::Http(tcp)),
            Scheme::Https => {
                let stream = tls(&self.tls, &target, TokioIo::new(tcp)).await?;
                Ok(MaybeHttpsStream::Https(TokioIo::new(stream)))
            }
        }
    }
}

type Opening<T> = Pin<Box<dyn Future<Output = Result<T, UpstreamError>> + Send>>;

impl Service<Uri> for ToProxy {
    type Response = Link;
    type Error = UpstreamError;
    type Future = Opening<Link>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, proxy: Uri) -> Self::Future {
        Box::pin(self.clone().dial(proxy))
    }
}

impl Service<Uri> for Dialer {
    type Response = Stream;
    type Error = UpstreamError;
    type Future = Opening<Stream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let target = Target::of_uri(&uri).ok_or_else(|| UpstreamError::BadAnswer {
                host: uri.host().unwrap_or_default().into(),
                source: Cause::new("not a URL that is requested"),
            })?;
            let link = dialer.link(&target).await?;
            dialer.secure(&target, link).await
        })
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("policy", &self.0.policy).finish_non_exhaustive()
    }
}
