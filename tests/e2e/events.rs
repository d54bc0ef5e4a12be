//! What happens is told: afterwards as a list, and as it happens as a stream.

#![expect(clippy::unwrap_used, reason = "a story stops where its scene cannot be set")]

use std::path::Path;
use std::process::Command;

use harness::{Device, Facade, Fault, ImageBuilder, Process, Proxy, Registry, When, http};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Kind and subject of every event after a number.
fn since(facade: &Facade, number: u64) -> Vec<(String, String)> {
    let events = facade.ok(&["events", "--since", &number.to_string()]);
    let text = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
    events.as_array().unwrap().iter().map(|event| (text(event, "kind"), text(event, "subject"))).collect()
}

/// A client of the stream that knows nothing of us, with its own headers.
fn curl(facade: &Facade, headers: &[&str], log: &Path) -> Process {
    let token = std::fs::read_to_string(facade.admin_token_file()).unwrap();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--no-buffer", "--include"]);
    curl.args(["--header", "accept: text/event-stream"]);
    curl.args(["--header", &format!("authorization: Bearer {}", token.trim())]);
    for header in headers {
        curl.args(["--header", header]);
    }
    curl.arg(format!("http://{}/api/v1/events", facade.operator_authority()));
    Process::start("curl", &mut curl, log)
}

#[test]
fn what_happens_is_told_in_its_order_and_outlives_a_restart() {
    let mut facade = Facade::start();
    let registry = Registry::open();
    facade.connect(&registry);
    let app = registry.push("team/app", "v1", &ImageBuilder::new().says("one").build());
    let _device = Device::enrolled("board-1", &facade);
    facade.deliver(&app, "board-1");
    facade.start_again();
    facade.ok(&["device", "suspend", "board-1"]);
    facade.ok(&["artifact", "revoke", &app.artifact()]);
    let expected = [
        ("device-enrolled", "board-1".to_owned()),
        ("imported", app.artifact()),
        ("assigned", "device/board-1".to_owned()),
        ("device-changed", "board-1".to_owned()),
        ("revoked", app.artifact()),
    ];
    assert_eq!(since(&facade, 0), expected.map(|(kind, subject)| (kind.to_owned(), subject)));
    assert_eq!(since(&facade, 3).len(), 2);
    let one = facade.ok(&["events", "--kind", "imported", "--limit", "1"]);
    assert_eq!(one[0]["sequence"], json!(2), "{one}");
    assert_eq!(facade.cli(&["events", "--kind", "assign"]).code, 2);
}

#[test]
fn a_device_that_refuses_and_a_registry_that_lies_are_told_of_once() {
    let facade = Facade::start();
    let registry = Registry::open();
    let proxy = Proxy::before(&registry.host());
    let image = ImageBuilder::new().random_layer(5000).build();
    let app = registry.push("team/app", "v1", &image).through(&proxy.host());
    facade.connect_as(&registry, &proxy.host());
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&app, "board-1");
    proxy.once(When::Digest(image.largest_blob()), Fault::WrongByteAt(100));
    device.sync();
    let refused =
        json!([{"metadata": "director/timestamp.json", "code": "metadata_expired", "reason": "it is old"}]);
    for counter in [1_000_000, 1_000_001] {
        device.report(&facade, &json!({"counter": counter, "refused": refused})).expect_success();
    }
    let told = since(&facade, 3);
    let count = |kind: &str| told.iter().filter(|(told, _)| told == kind).count();
    assert_eq!((count("wrong-content"), count("metadata-refused")), (1, 1), "{told:?}");
    // A copy of the device shows by its counter.
    assert_ne!(device.report(&facade, &json!({"counter": 5})).code, 0);
    assert_eq!(since(&facade, 3).last().unwrap(), &("device-quarantined".to_owned(), "board-1".to_owned()));
}

#[test]
fn a_follower_sees_what_happens_and_takes_up_where_it_was() {
    let mut facade = Facade::start();
    let directory = TempDir::new().unwrap();
    facade.token("board-1");
    let log = directory.path().join("following");
    let mut following = facade.start_cli(&["events", "--follow", "--since", "0"], &log);
    let _board = Device::enrolled("board-1", &facade);
    following.wait_for_log(r#""subject":"board-1""#);
    // The facade goes away and comes back: the same command goes on, and nothing comes twice.
    facade.start_again();
    facade.ok(&["device", "suspend", "board-1"]);
    following.wait_for_log("device-changed");
    assert_eq!(following.log().matches("device-enrolled").count(), 1, "{}", following.log());

    let mut stranger = curl(&facade, &["last-event-id: 1"], &directory.path().join("curl"));
    stranger.wait_for_log(r#""kind":"device-changed""#);
    let seen = stranger.log().to_lowercase();
    assert!(seen.contains("content-type: text/event-stream"), "{seen}");
    assert!(seen.contains("event: device-changed\n") && seen.contains("id: 2\n"), "{seen}");
    assert!(!seen.contains("device-enrolled"), "{seen}");
    // A stream that is open does not hold up a facade that stops.
    facade.stop();
    assert!(stranger.wait().success(), "{}", stranger.log());
}

#[test]
fn nobody_follows_without_a_token_and_nonsense_is_refused() {
    let facade = Facade::start();
    let ask = |target: &str, headers: &[(&str, &str)]| {
        http::request(&facade.operator_authority(), "GET", target, headers, b"").unwrap().status
    };
    let stream = ("accept", "text/event-stream");
    assert_eq!(ask("/api/v1/events", &[stream]), 401);
    let token = std::fs::read_to_string(facade.admin_token_file()).unwrap();
    let bearer = format!("Bearer {}", token.trim());
    let known = ("authorization", bearer.as_str());
    assert_eq!(ask("/api/v1/events", &[known, stream, ("last-event-id", "x")]), 422);
    assert_eq!(ask("/api/v1/events?kind=assign", &[known, stream]), 422);
    assert_eq!(ask("/api/v1/events?since=x", &[known]), 400);
    assert_eq!(ask("/api/v1/events?limit=0", &[known]), 422);
    assert_eq!(ask("/api/v1/events?since=18446744073709551615", &[known]), 422);
}
