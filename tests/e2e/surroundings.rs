//! Where devices really stand: behind proxies and inspection, on IPv6 alone, with clocks that are wrong.

use std::process::Command;

use harness::process::{self, Outcome, free_port};
use harness::tunnel::Tunnel;
use harness::{Device, Facade, ImageBuilder, Process, Registry, poll};
use serde_json::Value;
use tempfile::TempDir;

/// The finding of one check.
fn finding(report: &Value, check: &str) -> Value {
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let found = findings.into_iter().find(|finding| finding["check"] == check);
    found.unwrap_or_default()
}

#[test]
fn reaches_the_facade_through_a_proxy_with_a_password() {
    let facade = Facade::start();
    let tunnel = Tunnel::with_password("site", "p@ss word");
    let proxy = format!("http://site:p%40ss%20word@{}", tunnel.authority());
    let setting = [("DEVICE_AGENT_PROXY", proxy.as_str())];
    let device = Device::new("board-1");
    let mut enroll = device.command(&["enroll", &facade.token("board-1")]);
    Outcome::of(enroll.envs(setting), b"").expect_success();
    device.sync_with(&setting).expect_success();
    assert!(tunnel.passed() >= 2);
    let report = device.check_with(&setting).json();
    assert_eq!(finding(&report, "proxy")["outcome"], "ok", "{report}");
    assert!(!report.to_string().contains("p@ss") && !report.to_string().contains("p%40ss"), "{report}");
    // A wrong password is told as what it is.
    let wrong = format!("http://site:wrong@{}", tunnel.authority());
    let refused = device.check_with(&[("DEVICE_AGENT_PROXY", &wrong)]);
    assert_eq!(refused.code, 4, "{}", refused.text());
    let found = finding(&refused.json(), "proxy");
    assert!(found["detail"].to_string().contains("407") && found["remedy"].is_string(), "{found}");
}

#[test]
fn enrolls_and_syncs_over_ipv6_alone() {
    let port = free_port();
    let (listen, url) = (format!("[::1]:{port}"), format!("https://[::1]:{port}"));
    let facade = Facade::start_with(&[("FACADE_DEVICE_LISTEN", &listen), ("FACADE_PUBLIC_URL", &url)]);
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    // Through a proxy the address stays in its brackets.
    let tunnel = Tunnel::open();
    let proxy = format!("http://{}", tunnel.authority());
    device.sync_with(&[("DEVICE_AGENT_PROXY", &proxy)]).expect_success();
    assert!(tunnel.passed() > 0);
}

#[test]
fn names_whoever_inspects_tls_on_the_way() {
    let facade = Facade::start();
    let device = Device::enrolled("board-1", &facade);
    let directory = TempDir::new().unwrap();
    let port = free_port().to_string();
    let mut openssl = Command::new("openssl");
    openssl
        .current_dir(directory.path())
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem"]);
    openssl.args(["-subj", "/O=Acme Corp/CN=Acme Inspection CA", "-addext", "subjectAltName=DNS:localhost"]);
    Outcome::of(openssl.args(["-out", "cert.pem"]), b"").expect_success();
    let mut server = Command::new("openssl");
    server
        .current_dir(directory.path())
        .args(["s_server", "-quiet", "-www", "-cert", "cert.pem", "-key", "key.pem"]);
    let _inspector =
        Process::start("openssl", server.args(["-accept", &port]), &directory.path().join("log"));
    let address = format!("127.0.0.1:{port}");
    poll("the inspector", std::time::Duration::from_secs(10), || std::net::TcpStream::connect(&address).ok());
    let tunnel = Tunnel::diverted_to(&address);
    let proxy = format!("http://{}", tunnel.authority());
    let setting = [("DEVICE_AGENT_PROXY", proxy.as_str())];
    let refused = device.sync_with(&setting).expect_code(6);
    assert!(refused.text().contains("Acme Inspection CA"), "{}", refused.text());
    let report = device.check_with(&setting).expect_code(6).json();
    let found = finding(&report, "tls");
    assert!(
        found["outcome"] == "failed" && found["detail"].to_string().contains("Acme Inspection CA"),
        "{report}"
    );
    // Neither has cost the device anything.
    device.sync().expect_success();
}

#[test]
fn the_doctor_has_a_line_and_a_remedy_for_everything() {
    let mut facade = Facade::start();
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    let healthy = device.check_with(&[]).expect_success().json();
    for check in [
        "state directory",
        "permissions",
        "state disk",
        "clock",
        "time",
        "certificate",
        "key",
        "director metadata",
        "images metadata",
        "proxy",
        "dns",
        "tcp",
        "tls",
        "facade",
        "images",
        "disk",
    ] {
        assert_eq!(finding(&healthy, check)["outcome"], "ok", "{check} in {healthy}");
    }
    facade.stop();
    let report = device.check_with(&[]).expect_code(4).json();
    let found = finding(&report, "tcp");
    assert!(found["outcome"] == "failed" && found["remedy"].is_string(), "{report}");
    std::fs::set_permissions(device.identity().key, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    let report = device.check_with(&[]);
    assert_eq!(report.code, 1, "{}", report.text());
    assert!(report.text().contains("644"), "{}", report.text());
}

#[test]
fn a_clock_in_1970_keeps_a_device_neither_from_enrolling_nor_from_updating() {
    let facade = Facade::start();
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().says("hello").build());
    facade.connect(&registry);
    let device = Device::new("board-1");
    let mut enroll = device.command(&["enroll", &facade.token("board-1")]);
    Outcome::of(enroll.envs(harness::process::clock_at("@1970-01-01 00:00:10")), b"").expect_success();
    facade.deliver(&pushed, "board-1");
    device.sync_in("@1970-01-01 00:00:10").expect_success();
    assert_eq!(device.delivered(), [pushed.digest].into());
    let mut status = device.command(&["status"]);
    let status =
        Outcome::of(status.envs(harness::process::clock_at("@1970-01-01 00:00:10")), b"").expect_success();
    assert!(status.stdout.contains("a sane clock"), "{}", status.stdout);
    let shown = facade.ok(&["device", "show", "board-1"]);
    assert_eq!(shown["state"], "waiting_for_clock", "{shown}");
}

#[test]
fn a_clock_in_2038_or_2099_refuses_updates_and_spoils_nothing() {
    let facade = Facade::start();
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().says("hello").build());
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    facade.deliver(&pushed, "board-1");
    for when in ["@2038-01-19 03:14:08", "@2099-12-31 23:59:59"] {
        let refused = device.sync_in(when);
        assert_ne!(refused.code, 0, "{when}");
        assert!(refused.text().contains("clock"), "{when}: {}", refused.text());
        assert!(device.delivered().is_empty(), "{when}");
        let mut check = device.command(&["check", "--output", "json"]);
        let report = Outcome::of(check.envs(harness::process::clock_at(when)), b"").json();
        assert_eq!(finding(&report, "tls")["outcome"], "failed", "{report}");
    }
    // The clock is set right: everything is as if nothing had been.
    device.sync().expect_success();
    assert_eq!(device.delivered(), [pushed.digest].into());
    assert_eq!(facade.ok(&["device", "show", "board-1"])["standing"], "active");
}

/// What nobody could mean is a usage error, whichever command it is given to (SPEC section 8).
#[test]
fn names_that_are_empty_or_none_end_with_2() {
    let facade = Facade::start();
    for command in [
        ["device", "show", ""],
        ["device", "delete", ""],
        ["connection", "remove", ""],
        ["artifact", "show", ""],
    ] {
        facade.cli(&command).expect_code(2);
    }
    let directory = TempDir::new().unwrap();
    for (hostname, domain) in [("", "example.org"), ("bad host", "example.org"), ("localhost", "a b")] {
        let mut init = process::in_clean_environment(Command::new(process::program("facade")));
        init.arg("init").arg("--data-dir").arg(directory.path().join("data"));
        init.args(["--hostname", hostname, "--trust-domain", domain]);
        Outcome::of(&mut init, b"").expect_code(2);
    }
}
