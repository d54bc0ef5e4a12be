//! What `/metrics` counts.

use std::fmt::Write as _;

use facade::metrics::{AnswerLabels, Metrics, RoleLabels, StandingLabels};

/// Every metric with its kind and what it counts.
pub(crate) fn page() -> String {
    let mut text = "# Metrics\n\n`GET /metrics` on the operator door, in the OpenMetrics format. What the labels mean, and what the access log \
                    says: [metrics.md](../metrics.md).\n\n| metric | kind | what it counts |\n| --- | --- | --- |\n"
        .to_owned();
    let metrics = Metrics::new();
    // A family shows itself with its first member.
    metrics.answers.get_or_create(&AnswerLabels { action: "ping", status: 200 }).inc();
    metrics.metadata_expires.get_or_create(&RoleLabels { role: "images/timestamp".to_owned() }).set(0);
    metrics.devices.get_or_create(&StandingLabels { standing: "active".to_owned() }).set(0);
    let counters = facade::upstream::Counters::with_members();
    metrics.extend(|registry| counters.register(registry));
    let encoded = metrics.text();
    let mut help = "";
    for line in encoded.lines() {
        if let Some(said) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help = said.1.trim_end_matches('.');
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let total = if kind == "counter" { "_total" } else { "" };
            let _ = writeln!(text, "| `{name}{total}` | {kind} | {help} |");
        }
    }
    text
}
