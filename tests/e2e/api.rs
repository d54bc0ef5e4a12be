//! The operator API against its own description: a fuzzing client reads the OpenAPI document of a running facade, sends
//! what the document allows and what it does not, and holds every answer against it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use harness::process::Outcome;
use harness::{Device, Facade, Image, Registry};

/// What is asked of an operation in each phase; with the fixed seed the run is the same every time.
const EXAMPLES: &str = "15";

/// Not checked: that everything the document allows is accepted, because names and addresses are stricter than the type
/// `string` says; and that a wrong token is always answered 401, because somebody who tries many gets 429.
const UNCHECKED: &str = "positive_data_acceptance,ignored_auth,missing_required_header";

/// A configuration in which many of the texts that are tried are names of things that exist.
fn configuration(names: &[&str]) -> String {
    let mut text = String::from("[dictionaries.things]\nvalues = [");
    for name in names {
        // Rust and TOML quote these names alike.
        let _ = write!(text, "{name:?}, ");
    }
    text.push_str("]\n[generation]\nallow-x00 = true\ndatabase = \":memory:\"\n");
    text.push_str("[generation.dictionaries]\nstring = { dictionary = \"things\", probability = 0.5 }\n");
    text
}

#[test]
#[ignore = "needs schemathesis: tests/install api, then tests/run api"]
fn no_request_makes_the_api_fail_or_answer_what_it_does_not_document() {
    let facade = Facade::start();
    let registry = Registry::open();
    let app = registry.push("team/app", "v1", &Image::hello("one"));
    facade.connect(&registry);
    facade.import(&app);
    let device = Device::enrolled("board-1", &facade);
    facade.ok(&["device", "group", "add", "board-1", "kitchen"]);
    facade.ok(&["assign", &app.artifact(), "--device", "board-1"]);
    device.sync().expect_success();
    facade.ok(&["operator", "token", "create", "ci", "--role", "viewer"]);
    let (host, artifact) = (registry.host(), app.artifact());
    let token = facade.ok(&["device", "token", "--group", "kitchen"]);
    let token = token["id"].as_str().unwrap();
    let names =
        [&host, "team/app", &app.repository, "v1", &artifact, "board-1", "kitchen", "ci", token, "images"];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("schemathesis.toml");
    std::fs::write(&file, configuration(&names)).unwrap();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv-api/bin/schemathesis");
    let admin = std::fs::read_to_string(facade.admin_token_file()).unwrap();
    let mut client = Command::new(program);
    client.current_dir(directory.path()).arg("--config-file").arg(&file).arg("--no-color");
    client.args(["run", &format!("http://{}/api/openapi.json", facade.operator_authority())]);
    client.args(["--header", &format!("Authorization: Bearer {}", admin.trim())]);
    client.args(["--seed", "7", "--max-examples", EXAMPLES, "--continue-on-failure"]);
    client.args([
        "--checks",
        "all",
        "--exclude-checks",
        UNCHECKED,
        "--request-timeout",
        "60",
        "--warnings",
        "off",
    ]);
    Outcome::of(&mut client, b"").expect_success();
    // It is still there, and still whole.
    assert_eq!(facade.ok(&["audit", "verify"])["whole"], true);
    assert!(!facade.log().contains("panicked"), "{}", facade.log());
}
