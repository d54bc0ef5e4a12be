//! Who may do what at the operator door, and what is written down about it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a story stops where its scene cannot be set"
)]

use harness::{Device, Facade, http};
use serde_json::{Value, json};

/// Makes a token of a role, and gives its text.
fn token(facade: &Facade, role: &str) -> String {
    let made = facade.ok(&["operator", "token", "create", role, "--role", role, "--ttl", "1h"]);
    made["token"].as_str().unwrap().to_owned()
}

/// Asks as the bearer of a token, and gives the status.
fn ask(facade: &Facade, method: &str, path: &str, token: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    http::request(&facade.operator_authority(), method, path, &headers, b"{}").unwrap().status
}

/// Every operation of the OpenAPI document, with something in the place of each parameter of its path.
fn operations(facade: &Facade) -> Vec<(String, String)> {
    let answer = http::get(&facade.operator_authority(), "/api/openapi.json").unwrap();
    let document: Value = serde_json::from_slice(&answer.body).unwrap();
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let filled: Vec<&str> = path
            .split('/')
            .map(|segment| if segment.starts_with('{') { "nothing" } else { segment })
            .collect();
        for method in methods.as_object().unwrap().keys() {
            operations.push((method.to_uppercase(), filled.join("/")));
        }
    }
    operations
}

#[test]
fn a_viewer_changes_nothing_by_any_route_and_a_pusher_sees_nothing() {
    let facade = Facade::start();
    let (viewer, pusher) = (token(&facade, "viewer"), token(&facade, "pusher"));
    let operations = operations(&facade);
    assert!(operations.len() > 30, "{operations:?}");
    for (method, path) in operations {
        // Where a pusher may knock, a request that says nothing is refused for that.
        let knocks = ["/api/v1/imports", "/api/v1/signing-requests/nothing/signatures"];
        let refusals: &[u16] = if knocks.contains(&path.as_str()) { &[400, 422] } else { &[403] };
        let answer = ask(&facade, &method, &path, &pusher);
        assert!(refusals.contains(&answer), "{method} {path}: {answer}");
        // After so many wrong ones they are slowed down.
        assert!(matches!(ask(&facade, &method, &path, "wrong"), 401 | 429), "{method} {path}");
        let answer = ask(&facade, &method, &path, &viewer);
        if method != "GET" {
            assert_eq!(answer, 403, "{method} {path}");
        }
        assert!(answer < 500, "{method} {path}: {answer}");
    }
}

#[test]
fn a_revoked_token_opens_nothing_from_then_on() {
    let facade = Facade::start();
    let operator = token(&facade, "operator");
    assert_eq!(ask(&facade, "GET", "/api/v1/status", &operator), 200);
    assert_eq!(ask(&facade, "GET", "/api/v1/operator-tokens", &operator), 403);
    let listed = facade.ok(&["operator", "token", "list"]);
    assert!(listed[0]["last_used_at"].is_string(), "{listed}");
    assert!(!facade.stores(&operator), "the token is stored");
    facade.ok(&["operator", "token", "revoke", "operator"]);
    assert_eq!(ask(&facade, "GET", "/api/v1/status", &operator), 401);
}

#[test]
fn wrong_tokens_are_slowed_down_and_nobody_else_is() {
    let facade = Facade::start();
    let answers: Vec<u16> = (0..100).map(|_| ask(&facade, "GET", "/api/v1/status", "wrong")).collect();
    assert!(answers.contains(&401) && answers.ends_with(&[429]), "{answers:?}");
    facade.ok(&["status"]);
}

#[test]
fn each_change_is_in_the_audit_log_and_stays_there() {
    let mut facade = Facade::start();
    let _device = Device::enrolled("board-1", &facade);
    let viewer = token(&facade, "viewer");
    ask(&facade, "DELETE", "/api/v1/devices/board-1", &viewer);
    facade.ok(&["device", "suspend", "board-1"]);
    facade.start_again();
    facade.ok(&["device", "restore", "board-1"]);
    let log = facade.ok(&["audit", "list"]);
    let done: Vec<(&str, &str, u64)> = log
        .as_array()
        .unwrap()
        .iter()
        .map(|record| {
            let text = |name: &str| record[name].as_str().unwrap();
            (text("who"), text("subject"), record["result"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(
        done,
        [
            ("admin", "enrollment-tokens device=board-1", 200),
            ("admin", "operator-tokens name=viewer role=viewer", 200),
            ("viewer", "devices/board-1", 403),
            ("admin", "devices/board-1/suspend", 200),
            ("admin", "devices/board-1/restore", 200),
        ]
    );
    assert_eq!(facade.ok(&["audit", "verify"])["whole"], json!(true));
    let exported = facade.cli(&["audit", "export"]).expect_success();
    assert_eq!(exported.stdout.lines().count(), 5);
}

#[test]
fn a_device_joins_and_leaves_a_group() {
    let facade = Facade::start();
    let _device = Device::enrolled("board-1", &facade);
    let joined = facade.ok(&["device", "group", "add", "board-1", "kitchen"]);
    assert_eq!(joined["groups"], json!(["kitchen"]));
    let listed = facade.ok(&["device", "list", "--group", "kitchen"]);
    assert_eq!(listed[0]["id"], "board-1");
    facade.ok(&["device", "group", "remove", "board-1", "kitchen"]);
    assert_eq!(facade.ok(&["device", "list", "--group", "kitchen"]), json!([]));
    facade.cli(&["device", "group", "add", "board-1", "Not A Group"]).expect_code(2);
}
