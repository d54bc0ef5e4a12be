//! Traces of requests, as a collector gets them.

use harness::collector::{Collector, text};
use harness::{Device, Facade, Image, Registry, http};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

#[test]
fn a_pull_is_one_trace_from_the_device_to_the_registry() {
    let collector = Collector::start();
    let facade = Facade::start_with(&[("FACADE_OTLP_ENDPOINT", &collector.url())]);
    let registry = Registry::open();
    let app = registry.push("team/app", "v1", &Image::hello("one"));
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&app, "board-1");
    device.sync().expect_success();
    let pulled = collector.wait_for("the span of a pull from upstream", |span| {
        text(&span.attributes, "blob.source").as_deref() == Some("upstream")
    });
    assert_eq!(text(&pulled.attributes, "device.id").as_deref(), Some("board-1"));
    assert_eq!(text(&pulled.attributes, "outcome").as_deref(), Some("served"));
    assert_eq!(text(&pulled.attributes, "http.response.status_code").as_deref(), Some("200"));
    let asked = collector.wait_for("the span of what the registry was asked for it", |span| {
        span.name == "ask registry" && span.trace_id == pulled.trace_id
    });
    assert_eq!(asked.parent_span_id, pulled.span_id);
    assert_eq!(text(&asked.attributes, "server.address").as_deref(), Some("127.0.0.1"));
    assert!(collector.services().iter().all(|name| name == "facade"));
    // What sends traces makes none, or it would never end.
    let authority = collector.url();
    let own = collector
        .spans()
        .into_iter()
        .filter(|span| text(&span.attributes, "url.path").as_deref() == Some("/v1/traces"));
    assert_eq!(own.count(), 0, "{authority}");
}

#[test]
fn a_callers_trace_goes_on_here_and_the_registry_is_not_told() {
    let collector = Collector::start();
    let facade = Facade::start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url())]);
    let caller = format!("00-{TRACE}-{PARENT}-01");
    let token = std::fs::read_to_string(facade.admin_token_file()).expect("the token");
    let bearer = format!("Bearer {}", token.trim());
    let headers = [("authorization", bearer.as_str()), ("traceparent", caller.as_str())];
    let answer = http::request(&facade.operator_authority(), "GET", "/api/v1/status", &headers, b"");
    assert_eq!(answer.expect("ask").status, 200);
    let answered = collector.wait_for("the span of the answer", |span| hex(&span.trace_id) == TRACE);
    assert_eq!((answered.name.as_str(), hex(&answered.parent_span_id).as_str()), ("answer operator", PARENT));
    // What is no trace is none.
    let headers = [("authorization", bearer.as_str()), ("traceparent", "00-nonsense-x-01")];
    let answer = http::request(&facade.operator_authority(), "GET", "/api/v1/groups", &headers, b"");
    assert_eq!(answer.expect("ask").status, 200);
    let path = |span: &_, wanted: &str| text(span, "url.path").as_deref() == Some(wanted);
    let own =
        collector.wait_for("the span of another answer", |span| path(&span.attributes, "/api/v1/groups"));
    assert!(own.parent_span_id.is_empty());
}

#[test]
fn a_collector_that_is_away_holds_nothing_up_and_is_told_of_once() {
    let collector = Collector::start();
    let url = collector.url();
    drop(collector);
    let mut facade = Facade::start_with(&[("FACADE_OTLP_ENDPOINT", &url)]);
    let lost = || {
        let metrics = http::get(&facade.operator_authority(), "/metrics").expect("ask").text();
        let line = metrics.lines().find(|line| line.starts_with("facade_trace_batches_lost_total"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).filter(|lost| *lost >= 1)
    };
    harness::poll("a batch that is lost", std::time::Duration::from_mins(1), || {
        facade.ok(&["status"]);
        lost()
    });
    facade.stop();
    assert_eq!(facade.log().matches("traces cannot be sent to the collector").count(), 1, "{}", facade.log());
}
