//! Secrets of every provider go in, are used with and without success, and are then looked for everywhere.

use std::fs;
use std::process::Command;

use data_encoding::{BASE64, HEXLOWER};
use harness::facade::files_below;
use harness::http::{self, Server, answer, read_request};
use harness::registry::{PASSWORD, USER, basic};
use harness::tls_registry::TlsRegistry;
use harness::{Facade, Image, ImageBuilder, Outcome, Registry, poll};
use serde_json::json;
use tempfile::TempDir;

const LOCAL: [&str; 2] = ["--plain-http", "--allow-private"];

fn small() -> Image {
    ImageBuilder::new().random_layer(100_000).build()
}

/// A server that answers every request in one way.
fn always(status: u16, headers: &'static [(&str, &str)], body: &'static str) -> Server {
    Server::start(move |stream| {
        drop(read_request(&stream));
        answer(&stream, status, headers, body.as_bytes());
    })
}

/// Every form in which a secret may lie around: as it is, in hexadecimal, and in base64 at any offset.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let mut forms = vec![
        secret.as_bytes().to_vec(),
        HEXLOWER.encode(secret.as_bytes()).into_bytes(),
    ];
    for offset in 0..3 {
        let padded = [&b"\0\0"[..offset], secret.as_bytes()].concat();
        let text = BASE64.encode(&padded);
        // The first and last characters depend on the neighbours.
        let inner = text.get(4..text.len() - 4).unwrap_or_default();
        forms.push(inner.as_bytes().to_vec());
    }
    forms
}

fn is_in(text: &str, bytes: &[u8]) -> bool {
    let mut forms = forms(text).into_iter();
    forms.any(|form| bytes.windows(form.len()).any(|window| window == form))
}

fn assert_nowhere(secrets: &[&str], name: &str, bytes: &[u8]) {
    for secret in secrets {
        assert!(!is_in(secret, bytes), "{name} holds a secret ({secret})");
    }
}

fn service_account(key: &str) -> String {
    json!({
        "type": "service_account", "project_id": "p", "private_key_id": "kid-1", "private_key": key,
        "client_email": "pull@p.iam.gserviceaccount.com", "token_uri": "https://oauth2.googleapis.com/token",
    })
    .to_string()
}

fn rsa_key() -> String {
    let mut command = Command::new("openssl");
    let options = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
    Outcome::of(command.args(options), b"").expect_success().stdout
}

/// A registry that takes one login, and otherwise asks for it.
fn wants(login: String) -> Server {
    Server::start(move |stream| {
        let Ok((head, _)) = read_request(&stream) else {
            return;
        };
        if head.headers.get("authorization") == Some(&login) {
            answer(
                &stream,
                200,
                &[("Docker-Distribution-Api-Version", "registry/2.0")],
                b"{}",
            );
        } else {
            answer(&stream, 401, &[("WWW-Authenticate", "Basic realm=\"r\"")], b"{}");
        }
    })
}

fn add(facade: &Facade, host: &str, password: &str) -> Outcome {
    let add = ["connection", "add", host, "--username", USER, "--password-stdin"];
    facade.cli_with_input(&[&add[..], &LOCAL].concat(), password.as_bytes())
}

#[test]
fn secrets_of_every_provider_stay_where_they_are_sealed() {
    const AWS_SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const ACCESS: &str = "ya29.planted-access-token";
    const WRONG: &str = "a password that is refused";
    let registry = Registry::with_tokens();
    let pushed = registry.push("team/app", "v1", &small());
    let google = always(
        200,
        &[("Content-Type", "application/json")],
        r#"{"access_token":"ya29.planted-access-token","expires_in":3599,"token_type":"Bearer"}"#,
    );
    let artifacts = wants(basic("oauth2accesstoken", ACCESS));
    let refusing = always(
        403,
        &[("Content-Type", "text/xml")],
        "<Error><Code>SignatureDoesNotMatch</Code></Error>",
    );
    let (token, sts) = (
        format!("http://{}/token", google.authority()),
        format!("http://{}/", refusing.authority()),
    );
    let mut facade = Facade::start_with(&[
        ("FACADE_GOOGLE_TOKEN_ENDPOINT", &token),
        ("FACADE_AWS_STS_ENDPOINT", &sts),
        ("FACADE_AWS_ECR_ENDPOINT", &sts),
        ("FACADE_LOG", "trace"),
    ]);
    let directory = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let key = rsa_key();
    let key_line = key.lines().nth(3).unwrap();
    let mut said = String::new();
    facade.connect(&registry);
    let account = write("account.json", &service_account(&key));
    let host = artifacts.authority();
    let by_account = [
        "connection",
        "add",
        &host,
        "--provider",
        "google",
        "--config-file",
        &account,
    ];
    said += &facade
        .cli(&[&by_account[..], &LOCAL].concat())
        .expect_success()
        .text();
    let role = format!(
        "role_arn = \"arn:aws:iam::123456789012:role/pull\"\naccess_key_id = \"AKIAIOSFODNN7EXAMPLE\"\nsecret_access_key = \
         \"{AWS_SECRET}\"\n"
    );
    let role = write("role.toml", &role);
    let ecr = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let by_role = [
        "connection",
        "add",
        ecr,
        "--provider",
        "aws",
        "--config-file",
        &role,
    ];
    said += &facade.cli(&by_role).expect_success().text();
    let tls = TlsRegistry::start("localhost");
    let local = format!("localhost:{}", tls.port());
    let (ca, client) = (tls.file("ca.pem"), tls.file("client.pem"));
    let with_certificate = [
        "connection",
        "add",
        &local,
        "--provider",
        "anonymous",
        "--allow-private",
    ];
    let files = ["--registry-ca-file", &ca, "--client-certificate-file", &client];
    said += &facade
        .cli(&[&with_certificate[..], &files].concat())
        .expect_success()
        .text();
    let tls_key = tls.read("client.key");
    let tls_line = tls_key.lines().nth(1).unwrap();

    // All of them are used, with and without success.
    facade.import(&pushed);
    said += &facade.cli(&["connection", "test", &host]).expect_success().text();
    said += &facade
        .cli(&["connection", "test", &local])
        .expect_success()
        .text();
    said += &facade.cli(&["connection", "test", ecr]).text();
    said += &facade.cli(&["tags", &format!("{ecr}/app")]).text();
    let rejecting = Registry::with_password();
    said += &add(&facade, &rejecting.host(), WRONG).expect_success().text();
    said += &facade
        .cli(&["connection", "test", &rejecting.host()])
        .expect_code(1)
        .text();
    said += &facade
        .cli(&["import", &format!("{}/a", rejecting.host()), "v1"])
        .text();
    said += &facade.cli(&["rekey"]).expect_success().text();
    said += &facade.cli(&["connection", "list"]).expect_success().text();
    said += &facade.cli(&["status"]).text();
    said += &http::get(&facade.operator_authority(), "/metrics")
        .unwrap()
        .text();
    // A start dumps the database. That the dump is found to hold what is no secret proves the search.
    facade.start_again();
    let dumps = facade.data_dir().join("dumps");
    poll(
        "a dump with the connections",
        std::time::Duration::from_secs(20),
        || {
            let mut dumps = files_below(&dumps)
                .into_iter()
                .map(|path| fs::read(path).unwrap_or_default());
            dumps
                .any(|dump| is_in(r#""kind":"google","client_email""#, &dump))
                .then_some(())
        },
    );

    let secrets = [PASSWORD, AWS_SECRET, ACCESS, WRONG, key_line, tls_line];
    assert_nowhere(&secrets, "an answer", said.as_bytes());
    assert_nowhere(&secrets, "the log", facade.log().as_bytes());
    for path in files_below(&facade.data_dir()) {
        assert_nowhere(
            &secrets,
            &path.display().to_string(),
            &fs::read(&path).unwrap_or_default(),
        );
    }
}
