//! A collector of traces: takes OTLP over HTTP, in protobuf, and shows what it got.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use crate::http::{self, Server};
use crate::process::poll;

/// A running collector.
pub struct Collector {
    server: Server,
    spans: Arc<Mutex<Vec<Span>>>,
    services: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    /// Starts one.
    pub fn start() -> Self {
        let (spans, services) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (kept, named) = (Arc::clone(&spans), Arc::clone(&services));
        let server = Server::start(move |stream| {
            let Ok((head, body)) = http::read_request(&stream) else {
                return;
            };
            let kind = head.headers.get("content-type");
            if head.target != "/v1/traces" || kind != Some("application/x-protobuf") {
                return http::answer(&stream, 404, &[], b"");
            }
            let received = ExportTraceServiceRequest::decode(body.as_slice()).expect("OTLP");
            for resource in received.resource_spans {
                let attributes = resource.resource.unwrap_or_default().attributes;
                named.lock().expect("services").extend(text(&attributes, "service.name"));
                let found = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                kept.lock().expect("spans").extend(found);
            }
            http::answer(&stream, 200, &[("Content-Type", "application/x-protobuf")], b"");
        });
        Self { server, spans, services }
    }

    /// Where it takes traces.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.authority())
    }

    /// The names of who has sent something.
    pub fn services(&self) -> Vec<String> {
        self.services.lock().expect("services").clone()
    }

    /// Everything it has got so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("spans").clone()
    }

    /// Waits for a span.
    pub fn wait_for(&self, what: &str, is_it: impl Fn(&Span) -> bool) -> Span {
        poll(what, Duration::from_mins(1), || self.spans().into_iter().find(|span| is_it(span)))
    }
}

/// A text among attributes of OTLP.
pub fn text(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    let value = found.value.as_ref()?.value.as_ref()?;
    if let Value::StringValue(text) = value {
        return Some(text.clone());
    }
    if let Value::IntValue(number) = value { Some(number.to_string()) } else { None }
}
