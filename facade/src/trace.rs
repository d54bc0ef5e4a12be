//! Traces of requests, for a collector that speaks OTLP over HTTP; made only where one is configured.
//!
//! Spans are made under one target, [`TRACE`], below the level of the log: without a collector they cost nothing. A
//! caller's `traceparent` is taken up, so that its trace goes on here; it ends here, too: a registry is not told.
//! Sending must never hold up a request: spans wait in a bounded queue and are dropped when it is full.

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use prometheus_client::metrics::counter::Counter;
use tokio::runtime::Handle;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::config::Config;
use crate::upstream::{self, Web};

/// The target of spans that are for traces.
pub(crate) const TRACE: &str = "trace";

/// How long the end of the process waits for what was not sent yet.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Batches that the collector did not take, since the start of the process.
static LOST: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Batches that the collector did not take, for whoever counts.
pub(crate) fn lost() -> Counter {
    LOST.clone()
}

/// Sending traces; what waits is sent when it is dropped. Its runtime must live until then.
pub(crate) struct Tracing(SdkTracerProvider);

impl Tracing {
    /// Sets up sending where a collector is configured, with what makes spans of a subscriber's.
    pub(crate) fn start<S>(
        config: &Config,
        runtime: &Handle,
    ) -> Result<Option<(Self, impl Layer<S> + Send + Sync + use<S>)>, String>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let Some(endpoint) = &config.otlp_endpoint else {
            return Ok(None);
        };
        let settings = upstream::Settings {
            proxy: upstream::ProxySettings {
                https: config.https_proxy.clone(),
                no_proxy: config.no_proxy.clone(),
            },
            ..upstream::Settings::default()
        };
        let web = Web::new(&settings, None).map_err(|error| error.to_string())?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector { web, runtime: runtime.clone(), failing: AtomicBool::new(false) })
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_protocol(Protocol::HttpBinary)
            .build()
            .map_err(|error| format!("otlp_endpoint: {error}"))?;
        // By the trace's id alone: what a caller says of sampling would let each of them fill the collector.
        let share = f64::from(config.trace_percent) / 100.0;
        let resource = Resource::builder()
            .with_service_name("facade")
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::TraceIdRatioBased(share))
            .with_resource(resource.build())
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("facade"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(TRACE, Level::DEBUG));
        Ok(Some((Self(provider), layer)))
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_WORDS) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Makes a span the next one of its caller's trace, where the caller says that there is one.
pub(crate) fn take_up(span: &Span, headers: &HeaderMap) {
    if !span.is_disabled() && headers.contains_key("traceparent") {
        let caller = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
        // Without a collector there is no trace to take part in.
        let _ = span.set_parent(caller);
    }
}

/// The collector, reached as everything else is.
struct Collector {
    web: Web,
    runtime: Handle,
    failing: AtomicBool,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let web = self.web.clone();
        // Who sends has a thread of its own, without a reactor.
        let sent = self.runtime.spawn(async move { web.deliver(request).await }).await?;
        let outcome = match &sent {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(response.status().to_string()),
            Err(error) => Err(crate::api::problem::chain(error)),
        };
        match outcome {
            Ok(()) => self.failing.store(false, Ordering::Relaxed),
            Err(error) => {
                LOST.inc();
                // Once, and not for every batch until the collector is back.
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(error, "traces cannot be sent to the collector");
                }
            }
        }
        Ok(sent?)
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}
