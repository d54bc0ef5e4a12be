//! Registry connections as an operator makes, tests and keeps them: every provider, every layer that can fail, sealed
//! secrets and the change of their key.

use std::fs;
use std::process::Command;

use data_encoding::BASE64;
use harness::http::{self, Server, answer, read_request};
use harness::process::{self, free_port};
use harness::registry::{PASSWORD, USER};
use harness::tls_registry::TlsRegistry;
use harness::tunnel::Tunnel;
use harness::{Device, Facade, Fault, Image, ImageBuilder, Outcome, Proxy, Registry, When};
use serde_json::{Value, json};
use tempfile::TempDir;

const LOCAL: [&str; 2] = ["--plain-http", "--allow-private"];

fn small() -> Image {
    ImageBuilder::new().random_layer(100_000).build()
}

fn connection(facade: &Facade, host: &str) -> Value {
    facade.ok(&["connection", "show", host])
}

fn add(facade: &Facade, host: &str, password: &str) -> Outcome {
    let add = ["connection", "add", host, "--username", USER, "--password-stdin"];
    facade.cli_with_input(&[&add[..], &LOCAL].concat(), password.as_bytes())
}

/// A server that answers every request in one way.
fn always(status: u16, headers: &'static [(&str, &str)], body: &'static str) -> Server {
    Server::start(move |stream| {
        drop(read_request(&stream));
        answer(&stream, status, headers, body.as_bytes());
    })
}

#[test]
fn credentials_of_docker_are_taken_entry_by_entry() {
    let (registry, open) = (Registry::with_password(), Registry::open());
    let pushed = registry.push("team/app", "v1", &small());
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("config.json");
    let auth = BASE64.encode(format!("{USER}:{PASSWORD}").as_bytes());
    let config = json!({
        "auths": {
            (registry.host()): {"auth": auth},
            (open.host()): {},
            "quay.io/team": {"auth": auth},
            "https://index.docker.io/v1/": {"identitytoken": "the identity token"},
        },
        "credsStore": "desktop",
        "credHelpers": {"gcr.io": "gcloud"},
    });
    fs::write(&file, config.to_string()).unwrap();
    let facade = Facade::start();
    let file = file.to_str().unwrap();
    let add = ["connection", "add", "--plain-http", "--from-docker-config", file];
    let host = registry.host();
    let one = [&add[..2], &[host.as_str()], &add[2..]].concat();
    let taken = facade.ok(&one);
    assert_eq!(taken[0]["outcome"], "connected");
    facade.import(&pushed);
    // Docker Hub is not reached without TLS, whatever the others need.
    let all = facade.cli(&add).expect_code(3);
    let outcome = |host: &str| {
        let entries = all.json();
        let entry = entries.as_array().unwrap().iter().find(|entry| entry["host"] == host);
        entry.unwrap_or_else(|| panic!("no {host} in {entries}")).clone()
    };
    assert_eq!(outcome(&registry.host())["outcome"], "connected");
    assert_eq!(outcome("docker.io")["outcome"], "failed");
    assert_eq!(outcome("docker.io")["username"], "<token>");
    assert_eq!(outcome("quay.io/team")["outcome"], "skipped");
    for (host, helper) in [("gcr.io", "gcloud"), (&open.host(), "desktop")] {
        let reason = outcome(host)["reason"].to_string();
        assert!(reason.contains(&format!("docker-credential-{helper}")), "{reason}");
    }
    assert!(!all.text().contains(PASSWORD) && !all.text().contains(&auth));
}

/// What is written to the audit log can never be taken out of it.
#[test]
fn a_password_in_an_address_is_refused_and_written_down_nowhere() {
    const SECRET: &str = "hunter2hunter2";
    let (registry, facade) = (Registry::with_password(), Facade::start());
    add(&facade, &registry.host(), PASSWORD).expect_success();
    let address = format!("http://me:{SECRET}@{}/team", registry.host());
    let refused =
        facade.cli(&["connection", "add", &address, "--plain-http", "--allow-private"]).expect_code(2);
    assert!(refused.text().contains("--password-stdin"), "{}", refused.text());
    let token = fs::read_to_string(facade.admin_token_file()).unwrap();
    let bearer = format!("Bearer {}", token.trim());
    let body = json!({"host": address, "provider": "anonymous", "plain_http": true, "allow_private": true});
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let body = body.to_string();
    let answer =
        http::send(&facade.operator_authority(), "POST", "/api/v1/connections", &headers, body.as_bytes());
    assert_eq!(answer.unwrap().status, 422);
    drop(facade.cli(&["connection", "test", &address]));
    let kept = connection(&facade, &registry.host());
    assert_eq!(kept["provider"], "static", "a working credential was replaced: {kept}");
    facade.ok(&["connection", "remove", &address]);
    let audit = facade.cli(&["audit", "list"]).expect_success().text();
    assert!(audit.contains("connections"), "{audit}");
    assert!(!audit.contains(SECRET) && !facade.log().contains(SECRET));
}

#[test]
fn rejects_each_wrong_field_by_name_and_stores_nothing() {
    let facade = Facade::start();
    let token = fs::read_to_string(facade.admin_token_file()).unwrap();
    let bearer = format!("Bearer {}", token.trim());
    for (field, body) in [
        ("host", json!({"host": "https://github.com/octo/app", "provider": "anonymous"})),
        ("host", json!({"host": "", "provider": "anonymous"})),
        ("host", json!({"host": "203.0.113.7", "provider": "anonymous", "plain_http": true})),
        ("host", json!({"host": "no-such-host.invalid", "provider": "anonymous", "plain_http": true})),
        ("host", json!({"host": "127.0.0.1:5000", "provider": "anonymous"})),
        ("host", json!({"host": "169.254.169.254", "provider": "anonymous", "allow_private": true})),
        ("provider", json!({"host": "ghcr.io", "provider": "kerberos"})),
        ("config", json!({"host": "mine.azurecr.io", "provider": "azure"})),
        ("config", json!({"host": "mine.azurecr.io", "provider": "azure", "config": "{}"})),
        (
            "host",
            json!({"host": "ghcr.io", "provider": "azure", "config":
                "tenant_id = 't'\nclient_id = '04b07795-8ddb-461a-bbee-02f9e1bf7b46'\nclient_secret = 's'"}),
        ),
        ("username", json!({"host": "ghcr.io", "provider": "static", "password": "p"})),
        ("username", json!({"host": "ghcr.io", "provider": "static", "username": "a:b", "password": "p"})),
        ("password", json!({"host": "ghcr.io", "provider": "static", "username": "a"})),
        (
            "password",
            json!({"host": "ghcr.io", "provider": "static", "username": "a", "password": "p\u{7}q"}),
        ),
        ("password", json!({"host": "ghcr.io", "provider": "anonymous", "password": "p"})),
        ("mirror_of", json!({"host": "ghcr.io", "provider": "anonymous", "mirror_of": "ghcr.io"})),
        ("mirror_of", json!({"host": "ghcr.io", "provider": "anonymous", "mirror_of": "a b"})),
        ("mirror_below", json!({"host": "ghcr.io", "provider": "anonymous", "mirror_below": "hub"})),
        ("token_host", json!({"host": "ghcr.io", "provider": "anonymous", "token_host": "https://a/b"})),
        ("ca_pem", json!({"host": "ghcr.io", "provider": "anonymous", "ca_pem": "not a certificate"})),
        (
            "client_certificate_pem",
            json!({"host": "ghcr.io", "provider": "anonymous", "client_certificate_pem": "x"}),
        ),
        ("config", json!({"host": "europe-docker.pkg.dev", "provider": "google", "config": "{}"})),
        ("config", json!({"host": "europe-docker.pkg.dev", "provider": "google"})),
        ("host", json!({"host": "ghcr.io", "provider": "aws"})),
        (
            "config",
            json!({"host": "123456789012.dkr.ecr.eu-west-1.amazonaws.com", "provider": "aws", "config": "rol_arn = 1"}),
        ),
    ] {
        let refused = http::request(
            &facade.operator_authority(),
            "POST",
            "/api/v1/connections",
            &[("Authorization", &bearer), ("Content-Type", "application/json")],
            body.to_string().as_bytes(),
        );
        let refused = refused.unwrap();
        assert_eq!(refused.status, 422, "{body} {}", refused.text());
        assert_eq!(refused.headers.get("content-type"), Some("application/problem+json"));
        let problem: Value = serde_json::from_str(&refused.text()).unwrap();
        assert_eq!(problem["field"], field, "{body} {problem}");
    }
    assert_eq!(facade.ok(&["connection", "list"]), json!([]));
}

#[test]
fn test_names_the_layer_that_fails() {
    let (registry, facade) = (Registry::with_password(), Facade::start());
    let verdict = |host: &str, repository: &[&str]| {
        let outcome = facade.cli(&[&["connection", "test", host], repository].concat());
        let check = outcome.json();
        let failed = check["steps"].as_array().unwrap().iter().find(|step| step["ok"] == false);
        let step = failed.map_or(Value::Null, |step| step["step"].clone());
        assert_eq!(outcome.code, i32::from(failed.is_some()), "{}", outcome.text());
        (step, check["verdict"].to_string())
    };
    // Nobody listens there.
    let closed = format!("127.0.0.1:{}", free_port());
    add(&facade, &closed, PASSWORD).expect_success();
    assert_eq!(verdict(&closed, &[]).0, "tcp");
    // A web page, not a registry.
    let page = always(200, &[("Content-Type", "text/html")], "<html>welcome</html>");
    add(&facade, &page.authority(), PASSWORD).expect_success();
    assert_eq!(verdict(&page.authority(), &[]).0, "api", "{:?}", verdict(&page.authority(), &[]));
    let missing = always(404, &[("Content-Type", "text/html")], "<html>nothing</html>");
    add(&facade, &missing.authority(), PASSWORD).expect_success();
    assert_eq!(verdict(&missing.authority(), &[]).0, "api");
    // Asked too often.
    let busy = always(429, &[("Retry-After", "30")], "{}");
    add(&facade, &busy.authority(), PASSWORD).expect_success();
    let (step, said) = verdict(&busy.authority(), &[]);
    assert_eq!(step, "rate-limit");
    assert!(said.contains("in 30 s") && said.contains("facade connection add"), "{said}");
    // A wrong password, then the right one.
    let host = registry.host();
    add(&facade, &host, "wrong").expect_success();
    let (step, said) = verdict(&host, &[]);
    assert_eq!(step, "credentials", "{said}");
    assert!(connection(&facade, &host)["last_error"].is_string());
    add(&facade, &host, PASSWORD).expect_success();
    assert_eq!(verdict(&host, &[]).0, Value::Null);
    assert!(connection(&facade, &host)["last_error"].is_null());
    // A host with a repository behind it, as one pastes it: the permission on it is tried.
    registry.push("team/app", "v1", &small());
    assert_eq!(verdict(&format!("{host}/team/app"), &[]).0, Value::Null);
    let (step, said) = verdict(&format!("{host}/team/other:v1"), &[]);
    assert_eq!(step, "permission", "{said}");
    assert!(said.contains("team/other"), "{said}");
    // Good credentials without the permission.
    let proxy = Proxy::before(&host);
    let status = 403;
    let retry_after_seconds = None;
    let refuse = Fault::Status { status, retry_after_seconds };
    proxy.always(When::Path("/tags/list".into()), refuse);
    add(&facade, &proxy.host(), PASSWORD).expect_success();
    let (step, said) = verdict(&proxy.host(), &["--repository", "team/app"]);
    assert_eq!(step, "permission", "{said}");
}

#[test]
fn health_is_remembered_over_a_restart() {
    let mut registry = Registry::with_password();
    let mut facade = Facade::start();
    facade.connect(&registry);
    let host = registry.host();
    facade.ok(&["connection", "test", &host]);
    let good = connection(&facade, &host)["last_success_at"].clone();
    assert!(good.is_string());
    registry.stop();
    facade.cli(&["connection", "test", &host]).expect_code(1);
    let failed = connection(&facade, &host);
    assert!(failed["last_error"].is_string());
    facade.start_again();
    let remembered = connection(&facade, &host);
    for field in ["last_success_at", "last_error", "last_failure_at"] {
        assert_eq!(remembered[field], failed[field], "{field}");
    }
    registry.start_again();
    facade.ok(&["connection", "test", &host]);
    assert!(connection(&facade, &host)["last_error"].is_null());
}

#[test]
fn sealing_key_changes_while_serving() {
    let registry = Registry::with_password();
    let pushed = registry.push("team/app", "v1", &small());
    let mut facade = Facade::start();
    facade.connect(&registry);
    let file = facade.data_dir().join("keys/seal.key");
    let first = fs::read_to_string(&file).unwrap();
    let report = facade.ok(&["rekey"]);
    assert_eq!(report["connections"], 1);
    assert_ne!(report["key_id"], report["previous_key_id"]);
    let keys = fs::read_to_string(&file).unwrap();
    let (new, old) = keys.split_once('\n').unwrap();
    assert_eq!(old, first);
    facade.ok(&["connection", "test", &registry.host()]);
    // The old key is not needed any more, not even after a crash.
    facade.kill9();
    fs::write(&file, new).unwrap();
    facade.start_again();
    facade.import(&pushed);
    assert!(facade.log().contains("sealing key changed"));
    facade.kill9();
    // A crash between the file and the database leaves the next key in front of the one in use.
    let next = format!("drayage-seal-key.1.{}", data_encoding::BASE64URL_NOPAD.encode(&[7; 32]));
    fs::write(&file, format!("{next}\n{new}\n")).unwrap();
    facade.start_again();
    facade.kill9();
    fs::write(&file, &next).unwrap();
    facade.start_again();
    facade.ok(&["connection", "test", &registry.host()]);
}

#[test]
fn rejects_to_start_with_a_wrong_or_missing_sealing_key() {
    let registry = Registry::with_password();
    let mut facade = Facade::start();
    facade.connect(&registry);
    facade.stop();
    let file = facade.data_dir().join("keys/seal.key");
    let right = fs::read_to_string(&file).unwrap();
    let start = || {
        let mut command = process::command("facade");
        command.arg("serve").arg("--data-dir").arg(facade.data_dir());
        command.env("FACADE_DEVICE_LISTEN", format!("127.0.0.1:{}", free_port()));
        command.env("FACADE_OPERATOR_LISTEN", format!("127.0.0.1:{}", free_port()));
        Outcome::of(&mut command, b"").expect_code(1).text()
    };
    let wrong = format!("drayage-seal-key.1.{}\n", data_encoding::BASE64URL_NOPAD.encode(&[7; 32]));
    fs::write(&file, wrong).unwrap();
    let said = start();
    assert!(said.contains("sealing key") && said.contains(&registry.host()), "{said}");
    fs::write(&file, "hunter2\n").unwrap();
    assert!(start().contains("seal.key cannot be used"));
    fs::remove_file(&file).unwrap();
    assert!(start().contains("seal.key is missing"));
    fs::write(&file, right).unwrap();
    Command::new("chmod").arg("600").arg(&file).status().unwrap();
    facade.start_again();
    facade.ok(&["connection", "test", &registry.host()]);
}

#[test]
fn key_that_is_kept_elsewhere_is_the_operator_s_to_change() {
    let registry = Registry::with_password();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("seal.key");
    let key =
        |byte: u8| format!("drayage-seal-key.1.{}\n", data_encoding::BASE64URL_NOPAD.encode(&[byte; 32]));
    fs::write(&file, key(1)).unwrap();
    // As systemd leaves a credential: root's, and its group may read it.
    Command::new("chmod").arg("440").arg(&file).status().unwrap();
    let mut facade = Facade::start_with(&[("FACADE_SEAL_KEY_FILE", file.to_str().unwrap())]);
    facade.connect(&registry);
    let refused = facade.cli(&["rekey"]).expect_code(1);
    assert!(refused.text().contains("first line"), "{}", refused.text());
    fs::write(&file, key(2)).unwrap();
    let refused = facade.cli(&["rekey"]).expect_code(1);
    assert!(refused.text().contains("put it back"), "{}", refused.text());
    fs::write(&file, key(2) + &key(1)).unwrap();
    facade.ok(&["rekey"]);
    fs::write(&file, key(2)).unwrap();
    facade.start_again();
    facade.ok(&["connection", "test", &registry.host()]);
}

#[test]
fn registry_behind_a_proxy_with_its_own_authority_wants_a_client_certificate() {
    const NAME: &str = "registry.drayage.invalid";
    let registry = TlsRegistry::start(NAME);
    let proxy = Tunnel::diverted_to(&format!("127.0.0.1:{}", registry.port()));
    let through = format!("http://{}", proxy.authority());
    let facade = Facade::start_with(&[("HTTPS_PROXY", &through), ("NO_PROXY", "127.0.0.1")]);
    let test = |options: &[&str]| {
        facade.ok(&[&["connection", "add", NAME, "--provider", "anonymous"], options].concat());
        facade.cli(&["connection", "test", NAME, "--repository", "team/app"])
    };
    let (ca, client) = (registry.file("ca.pem"), registry.file("client.pem"));
    let untrusted = test(&[]).expect_code(1).json();
    assert!(untrusted["verdict"].as_str().unwrap().starts_with("TLS: "), "{untrusted}");
    let unknown = test(&["--registry-ca-file", &ca]).expect_code(1).json();
    assert!(unknown["verdict"].to_string().contains("ertificate"), "{unknown}");
    let known = test(&["--registry-ca-file", &ca, "--client-certificate-file", &client]).json();
    // Everything but the repository is there.
    let last = known["steps"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["step"], &last["ok"]), (&json!("permission"), &json!(false)), "{known}");
    // The name resolves nowhere: everything went through the proxy.
    assert!(proxy.passed() >= 3, "{}", proxy.passed());
    let key = registry.read("client.key");
    let line = key.lines().nth(1).unwrap();
    assert!(!facade.stores(line) && !facade.log().contains(line));
}

#[test]
fn device_gets_pinned_content_though_the_registry_is_gone() {
    let mut registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    let imported = facade.ok(&["import", &pushed.repository, "v1", "--pin"]);
    assert_eq!(imported["results"][0]["pinned"], true);
    assert_eq!(facade.ok(&["artifact", "show", &pushed.artifact()])["pinned"], true);
    registry.stop();
    facade.ok(&["assign", &pushed.artifact(), "--device", "board-1"]);
    device.sync().expect_success();
    assert_eq!(device.delivered(), [pushed.digest].into());
    facade.ok(&["artifact", "unpin", &pushed.artifact()]);
    assert_eq!(facade.ok(&["artifact", "list"])[0]["pinned"], false);
    // What is gone from the registry and the cache cannot be pinned, and is not called so.
    registry.start_again();
    let lost = registry.push("team/lost", "v1", &small());
    facade.import(&lost);
    registry.stop();
    let refused = facade.cli(&["artifact", "pin", &lost.artifact()]);
    assert_ne!(refused.code, 0);
    assert_eq!(facade.ok(&["artifact", "show", &lost.artifact()])["pinned"], false);
}

/// A registry, a proxy before it, and a mirror with the same image; connected, and the image assigned to a device.
struct Mirrored {
    origin: Proxy,
    mirror: Registry,
    facade: Facade,
    device: Device,
    image: Image,
    artifact: String,
    _registry: Registry,
}

impl Mirrored {
    fn start() -> Self {
        let (registry, mirror) = (Registry::open(), Registry::open());
        let image = ImageBuilder::new().random_layer(300_000).build();
        let origin = Proxy::before(&registry.host());
        let pushed = registry.push("team/app", "v1", &image).through(&origin.host());
        mirror.push("proxied/team/app", "v1", &image);
        let facade = Facade::start();
        facade.connect_as(&registry, &origin.host());
        let of = ["--mirror-of", &origin.host(), "--mirror-below", "proxied"];
        facade.ok(&[&["connection", "add", &mirror.host()], &LOCAL[..], &of].concat());
        let device = Device::enrolled("board-1", &facade);
        facade.deliver(&pushed, "board-1");
        Self { origin, mirror, facade, device, image, artifact: pushed.artifact(), _registry: registry }
    }

    /// From now on the registry answers nothing but errors, after the layer has been begun once if it is to be.
    fn fail(&self, begun_bytes: u64) {
        if begun_bytes > 0 {
            self.origin.once(When::Digest(self.image.largest_blob()), Fault::CutAfter(begun_bytes));
        }
        let refuse = Fault::Status { status: 503, retry_after_seconds: None };
        self.origin.always(When::Path("/blobs/".into()), refuse);
    }
}

#[test]
fn mirror_serves_the_rest_of_what_its_registry_began() {
    let scene = Mirrored::start();
    scene.fail(100_000);
    scene.device.sync().expect_success();
    assert_eq!(scene.device.delivered(), [scene.image.digest()].into());
    assert!(scene.facade.log().contains("a mirror serves what the registry does not"));
    let shown = connection(&scene.facade, &scene.mirror.host());
    assert_eq!(shown["mirror_of"], format!("{}, below proxied/", scene.origin.host()));
}

#[test]
fn mirror_that_serves_wrong_bytes_is_marked_and_not_asked_again() {
    let scene = Mirrored::start();
    scene.mirror.corrupt(&scene.image.largest_blob(), 1000);
    scene.fail(0);
    assert_ne!(scene.facade.cli(&["artifact", "pin", &scene.artifact]).code, 0);
    let host = scene.mirror.host();
    assert!(connection(&scene.facade, &host)["wrong_bytes_at"].is_string());
    assert!(connection(&scene.facade, &scene.origin.host())["wrong_bytes_at"].is_null());
    // Its registry is there again: the mirror does no harm any more.
    scene.origin.heal();
    scene.device.sync().expect_success();
    assert_eq!(scene.device.delivered(), [scene.image.digest()].into());
    // Connected anew it has another chance.
    let of = ["--mirror-of", &scene.origin.host(), "--mirror-below", "proxied"];
    scene.facade.ok(&[&["connection", "add", &host], &LOCAL[..], &of].concat());
    assert!(connection(&scene.facade, &host)["wrong_bytes_at"].is_null());
}
