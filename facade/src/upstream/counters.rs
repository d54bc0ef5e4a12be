//! What is counted about registries: requests by connection and status, exchanges by connection and outcome.

use std::sync::Arc;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::error::UpstreamError;

/// What is counted about registries. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    requests: Family<RequestLabels, Counter>,
    exchanges: Family<ExchangeLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    connection: String,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExchangeLabels {
    connection: String,
    kind: &'static str,
    outcome: &'static str,
}

impl Counters {
    /// Adds them to what is shown.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "upstream_requests",
            "Requests to registries, their token servers and stores",
            self.requests.clone(),
        );
        registry.register(
            "token_exchanges",
            "Exchanges of credentials for short-lived ones",
            self.exchanges.clone(),
        );
    }

    /// With a member of each family, because a family shows itself with its first: for pages and tests that list them.
    pub fn with_members() -> Self {
        let counters = Self::default();
        let tally = counters.of("ghcr.io");
        tally.asked(Some(StatusCode::OK));
        tally.exchanged(Exchange::Registry, &Ok::<(), UpstreamError>(()));
        counters
    }

    /// The counters of one connection.
    pub(super) fn of(&self, connection: &str) -> Tally {
        Tally { counters: self.clone(), connection: connection.into() }
    }
}

/// The counters of one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    counters: Counters,
    connection: Arc<str>,
}

/// What credentials were exchanged for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Exchange {
    /// A token of the registry's token server.
    Registry,
    /// An access token of Google.
    Google,
    /// A password of ECR.
    Aws,
    /// A refresh token of ACR.
    Azure,
}

impl Exchange {
    fn word(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Google => "google",
            Self::Aws => "aws",
            Self::Azure => "azure",
        }
    }
}

impl Tally {
    /// Counts a request that was answered, or (none) was not.
    pub(super) fn asked(&self, status: Option<StatusCode>) {
        let status = status.map_or_else(|| "none".to_owned(), |status| status.as_str().to_owned());
        let labels = RequestLabels { connection: self.connection.to_string(), status };
        self.counters.requests.get_or_create(&labels).inc();
    }

    /// Counts an exchange.
    pub(super) fn exchanged<T>(&self, kind: Exchange, outcome: &Result<T, UpstreamError>) {
        let outcome = match outcome {
            Ok(_) => "issued",
            Err(UpstreamError::Denied { .. } | UpstreamError::Unauthenticated { .. }) => "refused",
            Err(_) => "failed",
        };
        let labels = ExchangeLabels { connection: self.connection.to_string(), kind: kind.word(), outcome };
        self.counters.exchanges.get_or_create(&labels).inc();
    }
}
