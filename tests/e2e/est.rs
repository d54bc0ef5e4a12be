//! Certificates for whoever speaks EST: a client of `openssl` and `curl` alone, and what strict tools think of the result.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::process::{Outcome, in_clean_environment, poll};
use harness::{Device, Facade, Process};
use serde_json::Value;
use tempfile::TempDir;

/// A directory in which a shell script plays the device.
struct Shell {
    directory: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Shell {
    fn new(facade: &Facade, token: &str) -> Self {
        let directory = TempDir::new().expect("make a directory");
        fs::copy(facade.ca_file(), directory.path().join("root.pem")).expect("copy the CA certificate");
        let environment = vec![
            ("URL", facade.device_url()),
            ("EST", format!("{}/.well-known/est", facade.device_url())),
            ("TOKEN", token.to_owned()),
        ];
        Self { directory, environment }
    }

    fn run(&self, script: &str) -> Outcome {
        let mut command = in_clean_environment(Command::new("sh"));
        command.current_dir(self.directory.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Outcome::of(command.args(["-euc", script]), b"")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }
}

const ENROLL: &str = r#"
    curl -sSf --cacert root.pem -D cacerts.head -o cacerts.p7 "$EST/cacerts"
    openssl base64 -d -in cacerts.p7 | openssl pkcs7 -inform DER -print_certs -out ca.pem
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -subj /CN=anything -outform DER |
        openssl base64 -out request
    curl -sS --cacert root.pem -D enroll.head -o enroll.p7 --user ":$TOKEN" -H 'Content-Type: application/pkcs10' \
        -H 'Content-Transfer-Encoding: base64' --data-binary @request "$EST/simpleenroll"
    openssl base64 -d -in enroll.p7 | openssl pkcs7 -inform DER -print_certs -out cert.pem
    openssl verify -x509_strict -purpose sslclient -CAfile ca.pem cert.pem
    openssl x509 -in cert.pem -noout -ext subjectAltName -subject
"#;

const RENEW: &str = r#"
    curl -sS --cacert root.pem --cert cert.pem --key key.pem -o attributes -w '%{http_code}' "$EST/csrattrs"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout next.key -subj /CN=board-1 -outform DER |
        openssl base64 -out request
    curl -sSf --cacert root.pem --cert cert.pem --key key.pem -D renew.head -o renew.p7 \
        -H 'Content-Type: application/pkcs10' --data-binary @request "$EST/simplereenroll"
    openssl base64 -d -in renew.p7 | openssl pkcs7 -inform DER -print_certs -out next.pem
    openssl verify -x509_strict -purpose sslclient -CAfile ca.pem next.pem
    test "$(openssl x509 -in next.pem -noout -pubkey)" = "$(openssl pkey -in next.key -pubout)"
    curl -sSf --cacert root.pem --cert next.pem --key next.key -o /dev/null -w '%{http_code}' "$URL/v2/"
"#;

#[test]
fn a_client_of_openssl_and_curl_alone_enrolls_and_renews() {
    let facade = Facade::start();
    let shell = Shell::new(&facade, &facade.token("board-1"));
    let enrolled = shell.run(ENROLL).expect_success().stdout;
    assert!(enrolled.contains("cert.pem: OK"), "{enrolled}");
    // The facade decides the name; the request's is nothing to it.
    assert!(enrolled.contains("URI:spiffe://drayage.internal/device/board-1"), "{enrolled}");
    assert!(!enrolled.contains("anything"), "{enrolled}");
    let renewed = shell.run(RENEW).expect_success().stdout;
    assert!(renewed.starts_with("204") && renewed.ends_with("200"), "{renewed}");
    for (head, media_type) in [
        ("cacerts.head", "application/pkcs7-mime"),
        ("enroll.head", "application/pkcs7-mime; smime-type=certs-only"),
        ("renew.head", "application/pkcs7-mime; smime-type=certs-only"),
    ] {
        let head = shell.read(head).to_lowercase();
        assert!(head.contains(&format!("content-type: {media_type}\r\n")), "{head}");
    }
}

#[test]
fn rejects_bad_requests_with_the_status_est_gives_them() {
    let facade = Facade::start();
    let shell = Shell::new(&facade, &facade.token("board-1"));
    let status = |script: &str| shell.run(script).stdout;
    let post = |user: &str, kind: &str, body: &str| {
        status(&format!(
            r#"curl -sS --cacert root.pem -o answer -w '%{{http_code}}' --user "{user}" -H 'Content-Type: {kind}' --data-binary '{body}' "$EST/simpleenroll""#
        ))
    };
    assert_eq!(post(":$TOKEN", "application/pkcs10", "MIIjunk"), "400");
    assert_eq!(post(":$TOKEN", "application/json", "{}"), "415");
    assert_eq!(post("0000000000000000:wrong", "application/pkcs10", "MIIB"), "401");
    let huge = "A".repeat(40_000);
    assert_eq!(post(":$TOKEN", "application/pkcs10", &huge), "413");
    let weak = status(
        r#"openssl req -new -newkey rsa:1024 -nodes -keyout weak.key -subj /CN=a -outform DER | openssl base64 -out weak
           curl -sS --cacert root.pem -o answer -w '%{http_code}' --user ":$TOKEN" -H 'Content-Type: application/pkcs10' \
               --data-binary @weak "$EST/simpleenroll""#,
    );
    assert_eq!(weak, "400", "{}", shell.read("answer"));
    let foreign = status(
        r#"openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout f.key -subj /CN=a -outform DER \
               -addext 'subjectAltName=URI:spiffe://drayage.internal/device/board-2' | openssl base64 -out foreign
           curl -sS --cacert root.pem -o answer -w '%{http_code}' --user ":$TOKEN" -H 'Content-Type: application/pkcs10' \
               --data-binary @foreign "$EST/simpleenroll""#,
    );
    assert_eq!(foreign, "400", "{}", shell.read("answer"));
    // None of them has spent the token.
    shell.run(ENROLL).expect_success();
}

#[test]
fn an_address_that_fails_ten_thousand_times_is_slowed_down_and_locks_nobody_out() {
    let facade = Facade::start();
    let shell = Shell::new(&facade, &facade.token("board-1"));
    let (log, flood) = (TempDir::new().unwrap(), shell.directory.path().join("flood"));
    let one = format!("url = {}/.well-known/est/simpleenroll\noutput = /dev/null\n", facade.device_url());
    fs::write(&flood, one.repeat(10_000)).unwrap();
    let begun = Instant::now();
    let mut curl = in_clean_environment(Command::new("curl"));
    curl.current_dir(shell.directory.path()).args(["-sS", "--cacert", "root.pem", "-w", "%{http_code}\n"]);
    curl.args(["--user", "0000000000000000:wrong", "-H", "Content-Type: application/pkcs10"]);
    let mut flooding = Process::start(
        "curl",
        curl.args(["--data-binary", "MIIB", "--config"]).arg(&flood),
        &log.path().join("log"),
    );
    poll("the limit", Duration::from_secs(30), || flooding.log().contains("429").then_some(()));
    // Another address (a site behind the next router) enrolls at once.
    let elsewhere = ENROLL.replace("curl -sS", "curl --interface 127.0.0.2 -sS");
    let shell = Shell {
        environment: vec![
            ("URL", facade.device_url().replace("localhost", "127.0.0.1")),
            ("EST", format!("{}/.well-known/est", facade.device_url().replace("localhost", "127.0.0.1"))),
            ("TOKEN", facade.token("board-2")),
        ],
        ..shell
    };
    shell.run(&elsewhere).expect_success();
    assert!(flooding.is_running(), "others were to enroll meanwhile");
    assert!(flooding.wait().success(), "{}", flooding.log());
    let statuses = flooding.log();
    let count = |status: &str| statuses.lines().filter(|line| *line == status).count();
    let allowed = 60 + usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert_eq!(count("401") + count("429"), 10_000);
    assert!((50..=allowed).contains(&count("401")), "{} of 10,000 were looked at", count("401"));
    // The address itself comes through again when it waits as it was told, here a few seconds at most.
    let shell = Shell {
        environment: vec![
            ("URL", facade.device_url()),
            ("EST", format!("{}/.well-known/est", facade.device_url())),
            ("TOKEN", facade.token("board-3")),
        ],
        ..shell
    };
    poll("the address to be heard again", Duration::from_secs(30), || {
        (shell.run(ENROLL).code == 0).then_some(())
    });
}

/// The linter of `tests/install lint`.
fn linter(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv-lint/bin").join(name);
    assert!(path.is_file(), "pkilint is not installed: run tests/install lint");
    path
}

/// What the linter finds in the first certificate of a file, worse than for information.
fn findings(certificate: &Path) -> Vec<String> {
    let directory = TempDir::new().expect("make a directory");
    let first = directory.path().join("first.pem");
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-in"]).arg(certificate).arg("-out").arg(&first);
    Outcome::of(&mut openssl, b"").expect_success();
    let mut lint = in_clean_environment(Command::new(linter("lint_pkix_cert")));
    let report = Outcome::of(lint.args(["lint", "-s", "NOTICE", "-f", "JSON"]).arg(&first), b"").json();
    let results = report.get("results").and_then(Value::as_array).cloned().unwrap_or_default();
    let descriptions = results.iter().flat_map(|result| {
        let found = result["finding_descriptions"].as_array().cloned().unwrap_or_default();
        found.into_iter().map(|finding| finding.to_string())
    });
    descriptions.collect()
}

#[test]
fn a_strict_linter_finds_nothing_in_any_certificate() {
    let facade = Facade::start();
    let device = Device::enrolled("board-1", &facade);
    let none: Vec<String> = Vec::new();
    assert_eq!(findings(&facade.data_dir().join("ca/root.pem")), none);
    assert_eq!(findings(&facade.data_dir().join("ca/issuing.pem")), none);
    // The linter knows no URI but those of the web, and no name without a dot.
    let ed25519 = Device::new("board-2").with_settings(&[("DEVICE_AGENT_KEY_TYPE", "ed25519")]);
    ed25519.enroll(&facade.token("board-2")).expect_success();
    for device in [device, ed25519] {
        let found = findings(&device.identity().cert);
        let name = format!("spiffe://drayage.internal/device/{}", device.id());
        assert!(found.len() == 1 && found[0].contains(&name), "{found:?}");
    }
    let server = findings(&facade.data_dir().join("tls/server.pem"));
    assert!(server.len() == 1 && server[0].contains("localhost"), "{server:?}");
    // What a new CA consists of, and what leads to it from the old one.
    let data = facade.data_dir().display().to_string();
    facade.cli(&["ca", "roll", "--data-dir", &data]).expect_success();
    for file in ["ca/root.pem", "ca/issuing.pem", "ca/links.pem"] {
        assert_eq!(findings(&facade.data_dir().join(file)), none, "{file}");
    }
}

#[test]
fn a_device_waits_until_an_operator_approves_it() {
    let facade = Facade::start();
    let answer = facade.ok(&["device", "token", "--device", "board-1", "--approve"]);
    let device = Device::new("board-1");
    let log = TempDir::new().unwrap();
    let mut command = device.command(&["enroll", answer["token"].as_str().unwrap()]);
    let mut enrolling = Process::start("device-agent", &mut command, &log.path().join("log"));
    let standing = || {
        let shown = facade.cli(&["device", "show", "board-1"]);
        (shown.code == 0).then(|| shown.json()["standing"].as_str().unwrap_or_default().to_owned())
    };
    let waiting = poll("the device to ask", std::time::Duration::from_secs(20), standing);
    assert_eq!(waiting, "pending");
    assert!(!device.identity().cert.exists());
    facade.ok(&["device", "approve", "board-1"]);
    assert!(enrolling.wait().success(), "{}", enrolling.log());
    device.sync().expect_success();
    // Approving twice is a mistake that is told.
    assert_ne!(facade.cli(&["device", "approve", "board-1"]).code, 0);
}

#[test]
fn a_factory_gets_a_list_of_tokens_each_for_one_device() {
    let facade = Facade::start();
    let rows = facade.ok(&["device", "provision", "--prefix", "pump", "--count", "3", "--group", "pumps"]);
    let rows = rows.as_array().cloned().unwrap_or_default();
    let ids: Vec<&str> = rows.iter().filter_map(|row| row["device"].as_str()).collect();
    assert_eq!(ids, ["pump-0001", "pump-0002", "pump-0003"]);
    let token = rows[1]["token"].as_str().unwrap();
    let device = Device::new("pump-0002");
    device.enroll(token).expect_success();
    assert_eq!(facade.ok(&["device", "show", "pump-0002"])["groups"], serde_json::json!(["pumps"]));
    // Its token is spent, one is revoked, one is open: the operator sees which.
    facade.ok(&["device", "revoke-token", rows[2]["token_id"].as_str().unwrap()]);
    let tokens = facade.ok(&["device", "tokens"]);
    let state = |id: &str| -> Value {
        let tokens = tokens.as_array().cloned().unwrap_or_default();
        tokens.iter().find(|token| token["device"] == id).map_or(Value::Null, |token| token["state"].clone())
    };
    assert_eq!([state("pump-0001"), state("pump-0002"), state("pump-0003")], ["valid", "used", "revoked"]);
    assert_ne!(Device::new("pump-0003").enroll(rows[2]["token"].as_str().unwrap()).code, 0);
    facade.cli_with_input(&["device", "provision", "--ids", "-"], b"pump-9\npump-9\n").expect_code(2);
    facade.cli_with_input(&["device", "provision", "--ids", "-"], b"../pump\n").expect_code(2);
}
