//! Registries of the clouds through the command line: a connection with what the cloud gives out, an import, and a device
//! that pulls, with each credential in between exchanged for the next as the cloud has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::registry::basic;
use harness::{
    AzureCloud, CloudRegistry, Device, Facade, Gate, GoogleTokens, Image, ImageBuilder, Moto, Pushed,
};
use serde_json::Value;

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const ARTIFACTS: &str = "europe-west1-docker.pkg.dev";
const ACR: &str = "drayage.azurecr.io";

fn small() -> Image {
    ImageBuilder::new().random_layer(100_000).build()
}

/// A facade that reaches the registry through its proxy, and everything on this machine directly.
fn facade(registry: &CloudRegistry, settings: &[(&str, &str)]) -> Facade {
    let proxy = registry.proxy();
    let all = [&[("HTTPS_PROXY", proxy.as_str()), ("NO_PROXY", "127.0.0.1")], settings].concat();
    Facade::start_with(&all)
}

fn connect(facade: &Facade, registry: &CloudRegistry, host: &str, provider: &str, file: &str) {
    let ca = registry.ca_file();
    let add = ["connection", "add", host, "--provider", provider, "--config-file", file];
    let connected = facade.ok(&[&add[..], &["--registry-ca-file", &ca]].concat());
    assert_eq!(connected.get("provider"), Some(&provider.into()));
}

/// Tests the connection with permission on the repository, imports, assigns, and has a device pull.
fn deliver(facade: &Facade, pushed: &Pushed, device: &str) {
    let check = facade.ok(&["connection", "test", &pushed.repository]);
    let steps = check.get("steps").and_then(Value::as_array).expect("steps");
    for name in ["credentials", "permission"] {
        let step = steps.iter().find(|step| step.get("step") == Some(&name.into())).expect("a step");
        assert_eq!(
            (step.get("ok"), step.get("skipped")),
            (Some(&true.into()), Some(&false.into())),
            "{check}"
        );
    }
    let device = Device::enrolled(device, facade);
    facade.deliver(pushed, device.id());
    device.sync().expect_success();
    assert_eq!(device.delivered(), [pushed.digest].into());
}

fn metrics(facade: &Facade) -> String {
    harness::http::get(&facade.operator_authority(), "/metrics").expect("ask for metrics").text()
}

#[test]
fn device_pulls_through_an_aws_role() {
    let aws = Moto::start();
    let (id, secret, role) = aws.pull_role();
    let expire = Arc::new(AtomicBool::new(false));
    let expired = Arc::clone(&expire);
    let registry = CloudRegistry::start(ECR, move |head, _| {
        let (user, password) = Moto::LOGIN;
        match head.headers.get("authorization") {
            None => Gate::challenge("Basic realm=\"https://ecr\",service=\"ecr.amazonaws.com\""),
            // What ECR says of a password whose twelve hours are over: not 401.
            Some(_) if expired.swap(false, Ordering::SeqCst) => Gate::Answer(
                403,
                Vec::new(),
                "Your Authorization Token has expired. Please run 'aws ecr get-login --no-include-email'"
                    .into(),
            ),
            Some(given) if given == basic(user, password) => Gate::Forward,
            Some(_) => Gate::Answer(403, Vec::new(), "{}".into()),
        }
    });
    let pushed = registry.push("team/app", "v1", &small());
    let url = aws.url();
    let facade = facade(&registry, &[("AWS_ENDPOINT_URL_STS", &url), ("AWS_ENDPOINT_URL_ECR", &url)]);
    let role = format!(
        "role_arn = \"{role}\"\nexternal_id = \"fleet-42\"\naccess_key_id = \"{id}\"\nsecret_access_key = \"{secret}\"\n"
    );
    connect(&facade, &registry, ECR, "aws", &registry.file("role.toml", &role));
    deliver(&facade, &pushed, "board-1");
    assert!(metrics(&facade).contains(&format!(
        r#"facade_token_exchanges_total{{connection="{ECR}",kind="aws",outcome="issued"}} 1"#
    )));
    // The password expires: one renewal, and nobody notices.
    let next = registry.push("team/app", "v2", &small());
    expire.store(true, Ordering::SeqCst);
    facade.import(&next);
    let counted = metrics(&facade);
    assert!(counted.contains(r#"kind="aws",outcome="issued"} 2"#), "{counted}");
    for hidden in [secret.as_str(), Moto::LOGIN.1] {
        assert!(!facade.stores(hidden) && !facade.log().contains(hidden) && !counted.contains(hidden));
    }
    // A wrong key is told in AWS's own words.
    let wrong = role.replace(&secret, &"x".repeat(40));
    connect(&facade, &registry, ECR, "aws", &registry.file("wrong.toml", &wrong));
    let refused = facade.cli(&["connection", "test", ECR]).expect_code(1).json();
    assert!(refused["verdict"].as_str().unwrap().contains("SignatureDoesNotMatch"), "{refused}");
}

#[test]
fn device_pulls_through_an_aws_role_that_the_facade_s_environment_may_assume() {
    let aws = Moto::start();
    let (id, secret, role) = aws.pull_role();
    let registry = CloudRegistry::start(ECR, |head, _| match head.headers.get("authorization") {
        Some(given) if given == basic(Moto::LOGIN.0, Moto::LOGIN.1) => Gate::Forward,
        _ => Gate::challenge("Basic realm=\"https://ecr\""),
    });
    let pushed = registry.push("team/app", "v1", &small());
    let url = aws.url();
    let environment = [
        ("FACADE_AWS_STS_ENDPOINT", url.as_str()),
        ("FACADE_AWS_ECR_ENDPOINT", &url),
        ("AWS_ACCESS_KEY_ID", &id),
        ("AWS_SECRET_ACCESS_KEY", &secret),
    ];
    let facade = facade(&registry, &environment);
    let file = registry.file("role.toml", &format!("role_arn = \"{role}\"\n"));
    connect(&facade, &registry, ECR, "aws", &file);
    deliver(&facade, &pushed, "board-1");
}

#[test]
fn device_pulls_through_a_google_service_account() {
    let google = GoogleTokens::start();
    let issued = google.issued();
    let newest = Arc::clone(&issued);
    let registry = CloudRegistry::start(ARTIFACTS, move |head, _| {
        let good = GoogleTokens::authorization(newest.load(Ordering::SeqCst));
        match head.headers.get("authorization") {
            Some(given) if given == good => Gate::Forward,
            _ => Gate::challenge("Basic realm=\"GCP\""),
        }
    });
    let pushed = registry.push("project/team/app", "v1", &small());
    let facade = facade(&registry, &[("FACADE_GOOGLE_TOKEN_ENDPOINT", &google.url())]);
    let file = registry.file("key.json", &google.key_file);
    connect(&facade, &registry, ARTIFACTS, "google", &file);
    deliver(&facade, &pushed, "board-1");
    assert_eq!(issued.load(Ordering::SeqCst), 1, "one token for all of it");
    let key: Value = serde_json::from_str(&google.key_file).unwrap();
    let line = key["private_key"].as_str().unwrap().lines().nth(1).unwrap();
    for hidden in [line, "ya29.token-1"] {
        assert!(!facade.stores(hidden) && !facade.log().contains(hidden));
    }
    // Another key of the same name proves nothing.
    let stranger = registry.file("stranger.json", &GoogleTokens::start().key_file);
    connect(&facade, &registry, ARTIFACTS, "google", &stranger);
    let refused = facade.cli(&["connection", "test", ARTIFACTS]).expect_code(1).json();
    assert!(refused["verdict"].as_str().unwrap().contains("Invalid JWT Signature"), "{refused}");
}

#[test]
fn device_pulls_through_an_azure_service_principal() {
    const SECRET: &str = "Zk8Q~client-secret-of-the-principal";
    let azure = AzureCloud::start(ACR, SECRET);
    let registry = CloudRegistry::start(ACR, azure.door());
    let pushed = registry.push("team/app", "v1", &small());
    let facade = facade(&registry, &[("AZURE_AUTHORITY_HOST", &azure.url())]);
    let principal = |secret: &str| {
        serde_json::json!({
            "appId": AzureCloud::CLIENT, "displayName": "drayage", "password": secret, "tenant": AzureCloud::TENANT,
        })
        .to_string()
    };
    connect(&facade, &registry, ACR, "azure", &registry.file("principal.json", &principal(SECRET)));
    deliver(&facade, &pushed, "board-1");
    // Every token is revoked at once: the pull that follows begins again from the client secret.
    azure.revoke_tokens();
    facade.import(&registry.push("team/app", "v2", &small()));
    assert!(!facade.stores(SECRET) && !facade.log().contains(SECRET) && !facade.log().contains("refresh."));
    connect(&facade, &registry, ACR, "azure", &registry.file("wrong.json", &principal("not the secret")));
    let refused = facade.cli(&["connection", "test", ACR]).expect_code(1).json();
    assert!(refused["verdict"].as_str().unwrap().contains("AADSTS7000215"), "{refused}");
}
