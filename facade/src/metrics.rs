//! What is counted, and the text a Prometheus server reads.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// What an answer on the device door is counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabels {
    /// What was asked for, one of a few words.
    pub action: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// Which metadata.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabels {
    /// Repository and role, as in `images/targets`.
    pub role: String,
}

/// Which devices.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StandingLabels {
    /// What the devices are to us, as in `active`.
    pub standing: String,
}

/// Everything that is counted. Clones count together.
#[derive(Clone, Default)]
pub struct Metrics {
    /// Pulls served from the cache.
    pub cache_hits: Counter,
    /// Pulls that began a flight.
    pub cache_misses: Counter,
    /// Pulls that joined a flight of somebody else.
    pub flights_joined: Counter,
    /// Flights under way.
    pub flights: Gauge,
    /// Flights that brought nothing.
    pub flights_failed: Counter,
    /// Contents that were not what was imported.
    pub mismatches: Counter,
    /// Requests to registries for content.
    pub upstream_requests: Counter,
    /// Bytes of content from registries.
    pub upstream_bytes: Counter,
    /// Bytes of content to devices.
    pub served_bytes: Counter,
    /// Pulls that are not in the access log.
    pub pulls_dropped: Counter,
    /// Bytes that were evicted from the cache.
    pub evicted_bytes: Counter,
    /// Completed TLS handshakes on the device door.
    pub handshakes: Counter,
    /// Failed ones.
    pub handshakes_failed: Counter,
    /// Connections that were turned away or cut by a limit.
    pub connections_refused: Counter,
    /// Open connections on the device door.
    pub connections: Gauge,
    /// Open streams of content.
    pub streams: Gauge,
    /// Answers on the device door.
    pub answers: Family<AnswerLabels, Counter>,
    /// When metadata ends, in seconds since 1970.
    pub metadata_expires: Family<RoleLabels, Gauge>,
    /// Devices, by standing.
    pub devices: Family<StandingLabels, Gauge>,
    /// Active devices that run what they should.
    pub devices_up_to_date: Gauge,
    /// Active devices whose newest report refuses something.
    pub devices_refusing: Gauge,
    /// Connected registries.
    pub registries: Gauge,
    /// Those whose last use failed.
    pub registries_failing: Gauge,
    /// Signed artifacts that are not revoked.
    pub artifacts: Gauge,
    /// Bytes in the cache.
    pub cache_bytes: Gauge,
    /// Bytes that could still be stored.
    pub cache_free_bytes: Gauge,
    registry: Arc<Register>,
}

/// Metrics of other parts of the facade, which register their own.
#[derive(Default)]
struct Register(std::sync::Mutex<Option<Registry>>);

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let metrics = Self::default();
        let mut registry = Registry::with_prefix("facade");
        metrics.register(&mut registry);
        *metrics.register_lock() = Some(registry);
        metrics
    }

    fn register_lock(&self) -> std::sync::MutexGuard<'_, Option<Registry>> {
        self.registry.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "trace_batches_lost",
            "Batches of traces that the collector did not take",
            crate::trace::lost(),
        );
        let access_lines_dropped = crate::log::dropped();
        let counters: [(&str, &str, &Counter<u64, AtomicU64>); 11] = [
            (
                "access_log_pulls_dropped",
                "Pulls that are not in the access log: one device pulled without end, or the disk was too slow",
                &self.pulls_dropped,
            ),
            ("cache_hits", "Pulls served from the cache", &self.cache_hits),
            ("cache_misses", "Pulls that began a flight", &self.cache_misses),
            ("flights_joined", "Pulls that joined a flight of somebody else", &self.flights_joined),
            ("flights_failed", "Flights that brought nothing", &self.flights_failed),
            ("content_mismatches", "Contents that were not what was imported", &self.mismatches),
            ("upstream_content_requests", "Requests to registries for content", &self.upstream_requests),
            ("tls_handshakes", "Completed TLS handshakes on the device door", &self.handshakes),
            ("tls_handshakes_failed", "Failed TLS handshakes on the device door", &self.handshakes_failed),
            ("connections_refused", "Connections turned away or cut by a limit", &self.connections_refused),
            ("access_lines_dropped", "Lines of the access log dropped", &access_lines_dropped),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        for (name, help, counter) in [
            ("upstream_content", "Content from registries", &self.upstream_bytes),
            ("served_content", "Content to devices", &self.served_bytes),
            ("evicted_content", "Content evicted from the cache", &self.evicted_bytes),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
        }
        let gauges = [
            ("devices_up_to_date", "Active devices that run what they should", &self.devices_up_to_date),
            (
                "devices_refusing",
                "Active devices whose newest report refuses something",
                &self.devices_refusing,
            ),
            ("registries", "Connected registries", &self.registries),
            ("registries_failing", "Connected registries whose last use failed", &self.registries_failing),
            ("artifacts", "Signed artifacts that are not revoked", &self.artifacts),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        registry.register("devices", "Devices by standing", self.devices.clone());
        registry.register_with_unit("cache", "Content in the cache", Unit::Bytes, self.cache_bytes.clone());
        let free = self.cache_free_bytes.clone();
        registry.register_with_unit("cache_free", "Room that is left for content", Unit::Bytes, free);
        registry.register("flights", "Flights under way", self.flights.clone());
        registry.register("connections", "Open connections on the device door", self.connections.clone());
        registry.register("streams", "Open streams of content", self.streams.clone());
        registry.register(
            "metadata_expires_timestamp_seconds",
            "When signed metadata ends",
            self.metadata_expires.clone(),
        );
        registry.register("answers", "Answers on the device door", self.answers.clone());
    }

    /// Adds metrics of another part.
    pub fn extend(&self, register: impl FnOnce(&mut Registry)) {
        if let Some(registry) = self.register_lock().as_mut() {
            register(registry);
        }
    }

    /// The text of all metrics, in the `OpenMetrics` format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(registry) = self.register_lock().as_ref() {
            // Writing to a String cannot fail.
            let _ = encode(&mut text, registry);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each metric of the text as the documentation names it.
    fn names(text: &str) -> Vec<String> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names = types.filter_map(|line| {
            let (name, kind) = line.split_once(' ')?;
            let total = if kind == "counter" { "_total" } else { "" };
            Some(format!("{name}{total}"))
        });
        names.collect()
    }

    #[test]
    fn the_documentation_names_every_metric_and_no_other() {
        let page = include_str!("../docs/metrics.md");
        let documented = page.lines().filter_map(|line| line.strip_prefix("| `facade_"));
        let documented = documented.filter_map(|line| Some(format!("facade_{}", line.split_once('`')?.0)));
        let mut documented: Vec<String> = documented.collect();
        let metrics = Metrics::new();
        // A family shows itself with its first member.
        metrics.answers.get_or_create(&AnswerLabels { action: "ping", status: 200 }).inc();
        metrics.devices.get_or_create(&StandingLabels { standing: "active".to_owned() }).set(1);
        metrics.metadata_expires.get_or_create(&RoleLabels { role: "images/targets".to_owned() }).set(1);
        let counters = crate::upstream::Counters::with_members();
        metrics.extend(|registry| counters.register(registry));
        let mut counted = names(&metrics.text());
        documented.sort();
        counted.sort();
        assert_eq!(documented, counted);
    }

    /// Every name of a metric that a text has.
    fn named(text: &str) -> std::collections::BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with("facade_")).map(str::to_owned).collect()
    }

    #[test]
    fn the_dashboard_and_the_alerts_name_only_metrics_that_are_documented() {
        let documented = named(include_str!("../docs/metrics.md"));
        let dashboard = include_str!("../docs/monitoring/grafana-dashboard.json");
        let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
        let alerts = include_str!("../docs/monitoring/alerts.yaml");
        for text in [dashboard.to_string().as_str(), alerts] {
            let named = named(text);
            assert!(named.len() > 5, "{named:?}");
            let unknown: Vec<_> = named.difference(&documented).collect();
            assert_eq!(unknown, [""; 0]);
        }
    }

    #[test]
    fn tells_what_was_counted() {
        let metrics = Metrics::new();
        metrics.cache_hits.inc();
        metrics.clone().served_bytes.inc_by(7);
        metrics.answers.get_or_create(&AnswerLabels { action: "blob", status: 200 }).inc();
        let text = metrics.text();
        assert!(text.contains("facade_cache_hits_total 1"), "{text}");
        assert!(text.contains("facade_served_content_bytes_total 7"), "{text}");
        assert!(text.contains(r#"facade_answers_total{action="blob",status="200"} 1"#), "{text}");
    }
}
