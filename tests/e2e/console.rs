//! The console in a real browser, with a real registry and devices that are enrolled, one of them hostile.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;

use harness::identity::IdentityProvider;
use harness::process::Outcome;
use harness::{Device, DeviceClient, Facade, Image, Registry};

const HOSTILE: &str = "<script>document.title='owned'</script><img src=x onerror=alert(1)>";

/// A report by which a device's text would become part of a page.
fn report_as(device: &Device, facade: &Facade, reason: &str) {
    let refused =
        serde_json::json!([{"metadata": "director/timestamp.json", "code": "expired", "reason": reason}]);
    let fields = serde_json::json!({"counter": 1_000_000, "agent_version": reason, "refused": refused});
    device.report(facade, &fields).expect_success();
}

/// A registry whose errors are meant for a browser.
fn hostile_registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let host = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        let body = serde_json::json!({"errors": [{"code": "DENIED", "message": HOSTILE}]}).to_string();
        for mut asked in listener.incoming().filter_map(Result::ok) {
            // Enough of any request that this meets.
            let _ = asked.read(&mut [0; 4096]);
            let head = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Type: application/json";
            let _ = write!(asked, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    host
}

#[test]
#[ignore = "needs node and Chromium: tests/install console, then tests/run console"]
fn each_page_does_its_main_job_in_a_browser() {
    let mut facade = Facade::start();
    let url = format!("http://{}", facade.operator_authority());
    let jane = serde_json::json!({"sub": "jane", "email": "jane@example.com", "groups": ["staff"]});
    let provider = IdentityProvider::start(&[jane]);
    facade.start_again_with_all(&[
        ("FACADE_OIDC_ISSUER", &provider.issuer()),
        ("FACADE_OIDC_CLIENT_ID", "facade"),
        ("FACADE_OIDC_CLIENT_SECRET_FILE", &provider.secret_file()),
        ("FACADE_OIDC_VIEWERS", "staff"),
        ("FACADE_OPERATOR_URL", &url),
    ]);
    let registry = Registry::with_password();
    let app = registry.push("team/app", "v1.0", &Image::hello("one"));
    registry.push("team/app", "v1.1", &Image::hello("two"));
    let device = Device::enrolled("board-1", &facade);
    let hostile = Device::enrolled("hostile-1", &facade);
    report_as(&hostile, &facade, HOSTILE);
    // It asks for what it may not have.
    let client = DeviceClient::new(&facade.device_url(), &hostile.identity());
    assert_eq!(client.get(&format!("/v2/{}/manifests/{}", app.repository, app.digest)).status, 403);
    let here = env!("CARGO_MANIFEST_DIR");
    let mut node = Command::new("node");
    node.arg(format!("{here}/console/console.mjs"))
        .env("CONSOLE_URL", url)
        .env("CONSOLE_TOKEN_FILE", facade.admin_token_file())
        .env("CONSOLE_REGISTRY", registry.host())
        .env("CONSOLE_HOSTILE_REGISTRY", hostile_registry())
        .env("CONSOLE_REGISTRY_USER", harness::registry::USER)
        .env("CONSOLE_REGISTRY_PASSWORD", harness::registry::PASSWORD)
        .env("CONSOLE_SCREENSHOTS", format!("{here}/../target/console-screenshots"));
    Outcome::of(&mut node, b"").expect_success();
    // What was assigned in the browser arrives.
    device.sync().expect_success();
    assert!(facade.ok(&["device", "show", "board-1"]).to_string().contains(&app.repository));
}
