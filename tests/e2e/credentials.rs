//! Registry credentials: they authorize the facade, and nobody else ever sees them.

use harness::registry::PASSWORD;
use harness::{Device, Facade, Fault, Image, ImageBuilder, Proxy, Registry, When};

fn small() -> Image {
    ImageBuilder::new().random_layer(100_000).build()
}

#[test]
fn secret_goes_in_and_never_comes_out() {
    let registry = Registry::with_password();
    let pushed = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    let synced = device.sync().expect_success();
    for verb in
        [["connection", "list"].as_slice(), &["connection", "show", &registry.host()], &["artifact", "list"]]
    {
        assert!(!facade.cli(verb).expect_success().text().contains(PASSWORD), "{verb:?}");
    }
    assert!(!synced.text().contains(PASSWORD));
    assert!(!facade.log().contains(PASSWORD));
    assert!(!facade.stores(PASSWORD), "the password is stored unsealed");
    assert!(!facade.stores(&data_encoding::BASE64.encode(PASSWORD.as_bytes())));
}

#[test]
fn one_token_serves_a_whole_pull() {
    let registry = Registry::with_tokens();
    let image = ImageBuilder::new().random_layer(100_000).random_layer(200_000).random_layer(300_000).build();
    let pushed = registry.push("team/app", "v1", &image);
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    let before = registry.tokens().unwrap().asked();
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    assert_eq!(device.delivered(), [pushed.digest].into());
    assert_eq!(registry.tokens().unwrap().asked() - before, 1);
}

#[test]
fn new_password_takes_effect_at_once() {
    let registry = Registry::with_tokens();
    let pushed = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    registry.tokens().unwrap().set_password("another password");
    assert_ne!(facade.cli(&["import", &pushed.repository, "v1"]).code, 0);
    let host = registry.host();
    let replace =
        ["connection", "add", &host, "--provider", "static", "--username", "robot", "--password-stdin"];
    let replace = [replace.as_slice(), &["--plain-http", "--allow-private"]].concat();
    facade.cli_with_input(&replace, b"another password\n").expect_success();
    facade.import(&pushed);
}

#[test]
fn authorization_does_not_follow_a_redirect_to_another_host() {
    let (registry, cdn_registry) = (Registry::with_password(), Registry::open());
    let image = small();
    let pushed = registry.push("team/app", "v1", &image);
    cdn_registry.push("team/app", "v1", &image);
    let (front, cdn) = (Proxy::before(&registry.host()), Proxy::before(&cdn_registry.host()));
    front.always(When::Path("/blobs/".into()), Fault::Redirect { to: format!("http://{}", cdn.host()) });
    let facade = Facade::start();
    facade.connect_as(&registry, &front.host());
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed.through(&front.host()), "board-1");
    device.sync().expect_success();
    assert!(front.seen().iter().any(|seen| seen.authorized));
    assert!(!cdn.seen().is_empty());
    assert!(cdn.seen().iter().all(|seen| !seen.authorized), "the credential went to the other host");
}

#[test]
fn device_never_hears_of_the_registry_s_troubles() {
    let registry = Registry::with_password();
    let pushed = registry.push("team/app", "v1", &small());
    let proxy = Proxy::before(&registry.host());
    let pushed = pushed.through(&proxy.host());
    let facade = Facade::start();
    facade.connect_as(&registry, &proxy.host());
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    proxy.always(When::Path("/blobs/".into()), Fault::Status { status: 403, retry_after_seconds: None });
    let refused = device.sync();
    assert_ne!(refused.code, 0);
    assert!(
        !refused.text().contains("scripted"),
        "an upstream's words reached the device: {}",
        refused.text()
    );
}

#[test]
fn connection_test_tells_what_is_wrong() {
    let mut registry = Registry::with_password();
    let facade = Facade::start();
    facade.connect(&registry);
    let host = registry.host();
    facade.cli(&["connection", "test", &host]).expect_success();
    registry.stop();
    let stopped = facade.cli(&["connection", "test", &host]);
    assert_ne!(stopped.code, 0);
    assert!(
        stopped.text().to_lowercase().contains("tcp") || stopped.text().contains("connect"),
        "{}",
        stopped.text()
    );
}

#[test]
fn removed_connection_ends_pulls_from_its_host() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &small());
    let proxy = Proxy::before(&registry.host());
    let pushed = pushed.through(&proxy.host());
    let facade = Facade::start();
    facade.connect_as(&registry, &proxy.host());
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    facade.ok(&["connection", "remove", &proxy.host()]);
    proxy.forget();
    assert_ne!(device.sync().code, 0);
    assert!(proxy.seen().is_empty());
}

#[test]
fn rejects_plain_http_to_a_public_address() {
    let facade = Facade::start();
    // TEST-NET-3: an address that is neither loopback nor private, and that nobody has.
    let add = ["connection", "add", "203.0.113.7", "--provider", "anonymous", "--plain-http"];
    assert_ne!(facade.cli(&add).code, 0);
    assert!(!facade.ok(&["connection", "list"]).to_string().contains("203.0.113.7"));
}
