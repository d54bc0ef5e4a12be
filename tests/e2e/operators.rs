//! Who may do what at the operator door, and what is written down about it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a story stops where its scene cannot be set"
)]

use harness::identity::Browser;
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

/// Every form of the console, filled in so that an admin's would do something.
const FORMS: [(&str, &str); 34] = [
    ("/console/connections", "host=127.0.0.1:1&provider=generic&plain_http=on&allow_private=on"),
    ("/console/connections/test", "host=127.0.0.1:1"),
    ("/console/connections/remove", "host=127.0.0.1:1"),
    ("/console/repository", "repository=127.0.0.1:1/team/app&tag=v1"),
    ("/console/artifact/revoke", "name=127.0.0.1:1/team/app@sha256:00"),
    ("/console/artifact/pin", "name=127.0.0.1:1/team/app@sha256:00"),
    ("/console/artifact/unpin", "name=127.0.0.1:1/team/app@sha256:00"),
    ("/console/device/approve", "id=board-1"),
    ("/console/device/suspend", "id=board-1"),
    ("/console/device/restore", "id=board-1"),
    ("/console/device/revoke", "id=board-1&confirmation=board-1"),
    ("/console/device/join", "id=board-1&group=kitchen"),
    ("/console/device/leave", "id=board-1&group=kitchen"),
    ("/console/device/label", "id=board-1&name=site&value=north"),
    ("/console/device/unlabel", "id=board-1&name=site"),
    ("/console/enrollment", "device=board-2&ttl_seconds=3600&uses=1"),
    ("/console/enrollment/revoke", "id=any"),
    ("/console/assignments", "artifact=127.0.0.1:1/team/app@sha256:00&device=board-1"),
    ("/console/assignments/remove", "artifact=127.0.0.1:1/team/app@sha256:00&device=board-1"),
    ("/console/cache/prune", "unused_seconds=0"),
    ("/console/cache/verify", ""),
    ("/console/access", "name=mine&role=admin&ttl_seconds=3600"),
    ("/console/access/revoke", "name=admin"),
    ("/console/rollouts", "name=wave&artifacts=a&to=all&waves=100%25&approve=auto&success=90"),
    ("/console/rollouts", "action=preview&name=wave&artifacts=a&to=all&waves=100%25&approve=auto&success=90"),
    ("/console/rollout/start", "name=wave"),
    ("/console/rollout/approve", "name=wave"),
    ("/console/rollout/pause", "name=wave"),
    ("/console/rollout/resume", "name=wave"),
    ("/console/rollout/keep", "name=wave"),
    ("/console/rollout/revert", "name=wave"),
    ("/console/rollout/delete", "name=wave"),
    ("/console/sign-in", "token=guess"),
    ("/console/sign-out", ""),
];

/// The routes of the console that take forms, as its source lists them.
fn form_routes() -> Vec<&'static str> {
    let source = include_str!("../../facade/src/console.rs");
    let routes = source.lines().filter(|line| line.contains(".route(") && line.contains("post("));
    routes.map(|line| line.split('"').nth(1).unwrap()).collect()
}

#[test]
fn a_viewer_changes_nothing_by_any_form_of_the_console() {
    for route in form_routes() {
        let (room, any) = route.split_once("{change}").map_or((route, false), |(room, _)| (room, true));
        let filled =
            FORMS.iter().filter(|(path, _)| if any { path.starts_with(room) } else { *path == room });
        assert!(filled.count() > 0, "{route} has a form that is not tried here");
    }
    let facade = Facade::start();
    let _device = Device::enrolled("board-1", &facade);
    let viewer = token(&facade, "viewer");
    let mut browser = Browser::at(facade.operator_authority());
    assert_eq!(browser.post("/console/sign-in", &format!("token={viewer}")).status, 303);
    let csrf = browser.csrf("/console/devices");
    let lists = [["device", "list"], ["device", "tokens"], ["connection", "list"], ["rollout", "list"]];
    let before = lists.map(|list| facade.ok(&list));
    let mut refusals = 0;
    for (path, form) in FORMS.iter().filter(|(path, _)| !path.starts_with("/console/sign-")) {
        let answer = browser.post(path, &format!("{form}&csrf={csrf}"));
        assert!(answer.status < 500, "{path}: {}", answer.status);
        let log = facade.ok(&["audit", "list", "--who", "viewer"]);
        let results: Vec<_> = log.as_array().unwrap().iter().map(|record| &record["result"]).collect();
        assert!(results.iter().all(|result| **result == 403), "{path} {form}: {log}");
        assert!(results.len() > refusals, "{path} {form}: not even asked for\n{}", answer.text());
        refusals = results.len();
    }
    assert_eq!(lists.map(|list| facade.ok(&list)), before);
    assert_eq!(browser.post("/console/sign-out", &format!("csrf={csrf}")).status, 303);
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
