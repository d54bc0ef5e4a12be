//! What becomes of a change whose caller, or whose facade, goes away in its middle.

#![expect(clippy::unwrap_used, reason = "a story stops where its scene cannot be set")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use harness::http::Response;
use harness::process::{self, Outcome};
use harness::{Facade, http};
use serde_json::{Value, json};

const CONNECTIONS: &str = "/api/v1/connections";

fn admin(facade: &Facade) -> String {
    std::fs::read_to_string(facade.admin_token_file()).unwrap().trim().to_owned()
}

fn send(facade: &Facade, token: &str, path: &str, key: &str, body: &Value) -> Response {
    let bearer = format!("Bearer {token}");
    let headers =
        [("authorization", bearer.as_str()), ("idempotency-key", key), ("content-type", "application/json")];
    let body = serde_json::to_vec(body).unwrap();
    http::request(&facade.operator_authority(), "POST", path, &headers, &body).unwrap()
}

/// What the audit log says was done, with what result.
fn done(facade: &Facade) -> Vec<(String, u64)> {
    let log = facade.ok(&["audit", "list"]);
    let records = log.as_array().unwrap().iter();
    records
        .map(|record| (record["subject"].as_str().unwrap().to_owned(), record["result"].as_u64().unwrap()))
        .collect()
}

#[test]
fn a_request_that_comes_again_with_its_key_is_answered_as_before_and_done_once() {
    let mut facade = Facade::start();
    let admin = admin(&facade);
    let body = json!({"host": "ghcr.io", "provider": "anonymous"});
    let first = send(&facade, &admin, CONNECTIONS, "\"one\"", &body);
    assert_eq!((first.status, first.headers.get("idempotency-replayed")), (200, None));
    for _ in 0..2 {
        let again = send(&facade, &admin, CONNECTIONS, "one", &body);
        assert_eq!((again.status, &again.body), (200, &first.body));
        assert_eq!(again.headers.get("idempotency-replayed"), Some("true"));
        facade.start_again();
    }
    let other = json!({"host": "quay.io", "provider": "anonymous"});
    let refused = send(&facade, &admin, CONNECTIONS, "one", &other);
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("idempotency-key-reused"), "{}", refused.text());
    // A key is its caller's; one that is none is refused; a refused request does not use it up.
    let made = facade.ok(&["operator", "token", "create", "ci", "--role", "operator"]);
    let ci = made["token"].as_str().unwrap();
    assert_eq!(send(&facade, ci, CONNECTIONS, "one", &other).status, 200);
    assert_eq!(send(&facade, ci, CONNECTIONS, "two words", &other).status, 400);
    assert_eq!(
        send(&facade, ci, CONNECTIONS, "two", &json!({"host": "quay.io", "provider": "?"})).status,
        422
    );
    assert_eq!(send(&facade, ci, CONNECTIONS, "two", &other).status, 200);
    let subjects: Vec<String> = done(&facade).into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(
        subjects,
        [
            "connections host=ghcr.io",
            "operator-tokens name=ci role=operator",
            "connections host=quay.io",
            "connections host=quay.io"
        ]
    );
}

#[test]
fn a_token_is_made_once_and_its_answer_is_never_kept() {
    let facade = Facade::start();
    let admin = admin(&facade);
    let body = json!({"name": "ci", "role": "viewer", "ttl_seconds": 3600});
    let first = send(&facade, &admin, "/api/v1/operator-tokens", "k", &body);
    let made: Value = serde_json::from_slice(&first.body).unwrap();
    let again = send(&facade, &admin, "/api/v1/operator-tokens", "k", &body);
    assert_eq!(again.status, 409);
    assert!(again.text().contains("shown once"), "{}", again.text());
    assert!(!facade.stores(made["token"].as_str().unwrap()), "the token is stored");
    assert_eq!(facade.ok(&["operator", "token", "list"]).as_array().unwrap().len(), 1);
}

/// Somebody between the command line and the facade who loses the first answer.
fn loses_the_first_answer(facade: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let facade = facade.to_owned();
    thread::spawn(move || {
        for (number, client) in listener.incoming().filter_map(Result::ok).enumerate() {
            let server = TcpStream::connect(&facade).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut client, mut server) = (client, server);
            thread::spawn(move || {
                if number > 0 {
                    return drop(std::io::copy(&mut server, &mut client));
                }
                // It has been done when there is something to answer.
                let _ = server.read(&mut [0; 1]);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

#[test]
fn the_command_line_asks_again_when_the_answer_is_lost_and_nothing_is_done_twice() {
    let facade = Facade::start();
    let mut command = process::command("facade");
    command.args(["connection", "add", "ghcr.io", "--provider", "anonymous", "--output", "json"]);
    command.env("FACADE_SERVER", format!("http://{}", loses_the_first_answer(&facade.operator_authority())));
    command.env("FACADE_TOKEN_FILE", facade.admin_token_file());
    let outcome = Outcome::of(&mut command, b"").expect_success();
    assert_eq!(outcome.json()["host"], "ghcr.io");
    assert_eq!(done(&facade), [("connections host=ghcr.io".to_owned(), 200)]);
}

/// A registry that takes connections and says nothing; tells when somebody has come.
fn silent_registry() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (listener.local_addr().unwrap().to_string(), listener)
}

/// Asks for a test of the connection to a registry and does not wait for the answer; the facade has begun it when this
/// returns.
fn begin_a_test(facade: &Facade, host: &str, registry: &TcpListener, key: &str) -> (TcpStream, TcpStream) {
    let mut asking = TcpStream::connect(facade.operator_authority()).unwrap();
    let token = admin(facade);
    let path = format!("{CONNECTIONS}/{host}/test");
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nIdempotency-Key: {key}\r\nContent-Length: 0\r\n\r\n"
    );
    asking.write_all(head.as_bytes()).unwrap();
    let (asked, _) = registry.accept().unwrap();
    (asking, asked)
}

#[test]
fn a_change_that_kill_9_cuts_off_is_in_the_audit_log_with_an_unknown_result() {
    let mut facade = Facade::start();
    let (host, registry) = silent_registry();
    facade.ok(&["connection", "add", &host, "--provider", "anonymous", "--plain-http", "--allow-private"]);
    let _both = begin_a_test(&facade, &host, &registry, "k");
    facade.kill9();
    facade.start_again();
    assert_eq!(
        done(&facade),
        [(format!("connections host={host}"), 200), (format!("connections/{host}/test"), 0)]
    );
    assert_eq!(facade.ok(&["audit", "verify"])["whole"], true);
    // Whether it was done is not known: the facade says so instead of doing it again.
    let admin = admin(&facade);
    let path = format!("{CONNECTIONS}/{host}/test");
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "k")];
    let again = http::request(&facade.operator_authority(), "POST", &path, &headers, b"").unwrap();
    assert_eq!(again.status, 409);
    assert!(again.text().contains("stopped in the middle"), "{}", again.text());
}

#[test]
fn a_change_goes_on_to_its_record_when_its_caller_hangs_up() {
    let facade = Facade::start();
    let (host, registry) = silent_registry();
    facade.ok(&["connection", "add", &host, "--provider", "anonymous", "--plain-http", "--allow-private"]);
    let (asking, asked) = begin_a_test(&facade, &host, &registry, "k");
    drop(asking);
    drop((asked, registry));
    let recorded = || (done(&facade).len() == 2).then_some(());
    harness::poll("the record of a change that nobody waits for", process::COMMAND, recorded);
}

#[test]
fn the_audit_log_is_searched_by_who_what_and_when() {
    let facade = Facade::start_with(&[("FACADE_OPERATOR_TRUSTED_PROXIES", "127.0.0.1")]);
    for host in ["ghcr.io", "quay.io", "docker.io"] {
        facade.ok(&["connection", "add", host, "--provider", "anonymous"]);
    }
    let made = facade.ok(&["operator", "token", "create", "ci", "--role", "viewer"]);
    let ci = format!("Bearer {}", made["token"].as_str().unwrap());
    let headers = [("authorization", ci.as_str()), ("x-forwarded-for", "203.0.113.9, 198.51.100.7")];
    let path = format!("{CONNECTIONS}/ghcr.io");
    let refused = http::request(&facade.operator_authority(), "DELETE", &path, &headers, b"").unwrap();
    assert_eq!(refused.status, 403);
    let by = facade.ok(&["audit", "list", "--who", "ci"]);
    assert_eq!(by[0]["from"], "198.51.100.7");
    assert_eq!(by.as_array().unwrap().len(), 1);
    assert_eq!(facade.ok(&["audit", "list", "--text", "quay.io"]).as_array().unwrap().len(), 1);
    assert_eq!(facade.ok(&["audit", "list", "--since", "1h"]).as_array().unwrap().len(), 5);
    assert_eq!(facade.ok(&["audit", "list", "--until", "1h"]), json!([]));
    let newest = facade.ok(&["audit", "list", "--limit", "2"]);
    let numbers: Vec<u64> = (0..2).map(|index| newest[index]["sequence"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [4, 5]);
    facade.cli(&["audit", "list", "--since", "yesterday"]).expect_code(2);
    // Whoever may look may look at this.
    let page =
        http::request(&facade.operator_authority(), "GET", "/api/v1/audit?limit=1", &headers[..1], b"");
    assert_eq!(page.unwrap().status, 200);
}
