//! Rollouts: artifacts sent wave by wave, to devices that take them, refuse them, or say nothing.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a story stops where its scene cannot be set"
)]

use std::time::Duration;

use harness::{Device, Facade, Image, ImageBuilder, Pushed, Registry, http, poll};
use serde_json::{Value, json};

/// Longest wait for the next step of a rollout, on a loaded machine.
const STEP: Duration = Duration::from_mins(1);

/// A facade with devices of one group, a version that they run, and the next one.
struct Fleet {
    facade: Facade,
    devices: Vec<Device>,
    old: Pushed,
    new: Pushed,
    /// What the facade pulls from.
    registry: Registry,
}

impl Fleet {
    fn of(size: usize) -> Self {
        let facade = Facade::start();
        let registry = Registry::open();
        facade.connect(&registry);
        let old = registry.push("team/app", "v1", &Image::hello("old"));
        let new = registry.push("team/app", "v2", &ImageBuilder::new().says("new").build());
        facade.import(&old);
        facade.import(&new);
        let devices: Vec<Device> =
            (1..=size).map(|number| Device::enrolled(&format!("board-{number}"), &facade)).collect();
        for device in &devices {
            facade.ok(&["device", "group", "add", device.id(), "berlin"]);
        }
        Self { facade, devices, old, new, registry }
    }

    fn start(&self, more: &[&str]) {
        let artifact = self.new.artifact();
        let mut args = vec!["rollout", "create", "app-2", &artifact, "--to", "group=berlin", "--start"];
        args.extend(more);
        self.facade.ok(&args);
    }

    fn rollout(&self) -> Value {
        self.facade.ok(&["rollout", "show", "app-2"])
    }

    fn wait_until(&self, state: &str) {
        poll(&format!("the rollout to be {state}"), STEP, || {
            (self.rollout()["state"] == state).then_some(())
        });
    }

    /// The devices that are in a state, by id.
    fn in_state(&self, state: &str) -> Vec<&Device> {
        let listed = self.facade.ok(&["rollout", "devices", "app-2", "--state", state]);
        let ids: Vec<&str> =
            listed.as_array().unwrap().iter().map(|device| device["device"].as_str().unwrap()).collect();
        self.devices.iter().filter(|device| ids.contains(&device.id())).collect()
    }

    /// What a device should have.
    fn wanted(&self, device: &Device) -> Value {
        self.facade.ok(&["device", "show", device.id()])["wanted"].clone()
    }

    /// A device refuses what the rollout sends, as one does that got other bytes than were signed.
    fn refuse(&self, device: &Device) {
        let refused =
            json!([{"artifact": self.new.artifact(), "code": "content_digest", "reason": "other bytes"}]);
        device.report(&self.facade, &json!({"counter": 1_000_000, "refused": refused})).expect_success();
    }
}

#[test]
fn a_canary_that_is_well_lets_the_next_wave_begin_and_all_of_it_completes() {
    let fleet = Fleet::of(3);
    fleet.start(&["--waves", "1,100%"]);
    let canary = fleet.in_state("waiting");
    assert_eq!((canary.len(), fleet.in_state("pending").len()), (1, 2));
    for device in fleet.in_state("pending") {
        assert_eq!(fleet.wanted(device), json!([]), "its wave has not begun");
    }
    canary[0].sync().expect_success();
    assert!(canary[0].holds(&fleet.new.digest));
    poll("the second wave", STEP, || (fleet.in_state("pending").is_empty()).then_some(()));
    for device in fleet.in_state("waiting") {
        assert!(!device.holds(&fleet.new.digest));
        device.sync().expect_success();
        assert!(device.holds(&fleet.new.digest));
    }
    fleet.wait_until("completed");
    let rollout = fleet.rollout();
    assert_eq!(rollout["states"], json!({"healthy": 3}), "{rollout}");
    let told = fleet.facade.ok(&["events", "--kind", "rollout"]);
    assert!(told.to_string().contains("completed"), "{told}");
}

#[test]
fn a_wave_that_fails_halts_the_rollout_and_abort_gives_devices_back_what_they_had() {
    let fleet = Fleet::of(3);
    for device in &fleet.devices {
        fleet.facade.ok(&["assign", &fleet.old.artifact(), "--device", device.id()]);
        device.sync().expect_success();
    }
    fleet.start(&["--waves", "1,100%"]);
    let canary = fleet.in_state("waiting")[0];
    assert_eq!(fleet.wanted(canary), json!([fleet.new.artifact()]));
    fleet.refuse(canary);
    fleet.wait_until("halted");
    let failed = fleet.facade.ok(&["rollout", "devices", "app-2", "--state", "failed"]);
    assert_eq!(failed[0]["why"], "content_digest: other bytes", "{failed}");
    for device in fleet.in_state("pending") {
        assert_eq!(fleet.wanted(device), json!([fleet.old.artifact()]));
    }
    let told = fleet.facade.ok(&["events", "--kind", "rollout-device"]);
    assert_eq!(told[0]["subject"], canary.id(), "{told}");
    let aborted = fleet.facade.ok(&["rollout", "abort", "app-2", "--revert"]);
    assert_eq!(aborted["state"], "aborted", "{aborted}");
    for device in &fleet.devices {
        assert_eq!(fleet.wanted(device), json!([fleet.old.artifact()]));
    }
    assert_eq!(fleet.facade.cli(&["rollout", "resume", "app-2"]).code, 1);
}

#[test]
fn a_canary_that_misses_its_deadline_halts_the_rollout_and_with_more_time_it_goes_on() {
    let mut fleet = Fleet::of(2);
    for device in &fleet.devices {
        fleet.facade.ok(&["device", "policy", device.id(), "--deadline", "2s"]);
    }
    // What is signed is at hand; its layers still lie in the registry.
    fleet.registry.stop();
    fleet.start(&["--waves", "1,100%"]);
    let canary = fleet.devices.iter().position(|device| fleet.wanted(device) != json!([])).unwrap();
    let mut daemon = fleet.devices[canary].start_daemon();
    fleet.wait_until("halted");
    let failed = fleet.facade.ok(&["rollout", "devices", "app-2", "--state", "failed"]);
    let why = failed[0]["why"].as_str().unwrap();
    assert!(why.starts_with("deadline_passed: ") && why.contains("within its deadline of 2s"), "{failed}");
    assert_eq!(
        (failed[0]["device"].as_str(), fleet.in_state("pending").len()),
        (Some(fleet.devices[canary].id()), 1)
    );
    fleet.registry.start_again();
    let canary = &fleet.devices[canary];
    for device in &fleet.devices {
        fleet.facade.ok(&["device", "policy", device.id(), "--deadline", "1d"]);
    }
    poll("the canary's image", STEP, || canary.holds(&fleet.new.digest).then_some(()));
    daemon.terminate();
    fleet.facade.ok(&["rollout", "resume", "app-2"]);
    let other = poll("the second wave", STEP, || fleet.in_state("waiting").first().copied());
    other.sync().expect_success();
    fleet.wait_until("completed");
}

#[test]
fn a_rollout_goes_on_where_it_was_when_the_facade_comes_back() {
    let mut fleet = Fleet::of(3);
    fleet.start(&["--waves", "1,2,100%", "--approve", "first"]);
    fleet.facade.start_again();
    let canary = fleet.in_state("waiting")[0];
    canary.sync().expect_success();
    let canary = canary.id().to_owned();
    fleet.wait_until("awaiting-approval");
    fleet.facade.start_again();
    assert_eq!(fleet.rollout()["state"], "awaiting-approval");
    assert_eq!(fleet.in_state("healthy")[0].id(), canary);
    fleet.facade.ok(&["rollout", "approve", "app-2"]);
    fleet.in_state("waiting")[0].sync().expect_success();
    poll("the third wave", STEP, || (fleet.in_state("pending").is_empty()).then_some(()));
    fleet.facade.ok(&["rollout", "pause", "app-2"]);
    fleet.facade.start_again();
    fleet.in_state("waiting")[0].sync().expect_success();
    assert_eq!(fleet.rollout()["state"], "paused");
    fleet.facade.ok(&["rollout", "resume", "app-2"]);
    fleet.wait_until("completed");
}

#[test]
fn a_preview_says_who_could_not_take_it_and_what_it_would_fetch() {
    let fleet = Fleet::of(3);
    let [arm, small, absent] = &fleet.devices[..] else { panic!("three devices") };
    let arm64 = json!({"os": "linux", "architecture": "arm64"});
    arm.report(&fleet.facade, &json!({"counter": 9, "platform": arm64})).expect_success();
    small.report(&fleet.facade, &json!({"counter": 9, "free_bytes": 10})).expect_success();
    fleet.facade.ok(&["device", "suspend", absent.id()]);
    let artifact = fleet.new.artifact();
    let create = ["rollout", "create", "app-2", &artifact, "--to", "group=berlin"];
    let preview = fleet.facade.ok(&[&create[..], &["--dry-run"]].concat());
    assert_eq!(preview["devices"], json!(2), "{preview}");
    assert_eq!(preview["waves"], json!([1, 1]), "{preview}");
    for (concern, device) in [("no_platform", arm), ("low_disk", small), ("left_out", absent)] {
        assert_eq!(preview[concern]["count"], json!(1), "{concern} {preview}");
        let example = preview[concern]["examples"][0].as_str().unwrap();
        assert!(example.starts_with(&format!("{} ", device.id())), "{example}");
    }
    let need = &preview["upstream"][0];
    assert!(
        need["requests"].as_u64().unwrap() > 0 && need["cached_bytes"].as_u64().unwrap() > 0,
        "{preview}"
    );
    assert_eq!(fleet.facade.ok(&["rollout", "list"]), json!([]), "a dry run makes nothing");
    // Two rollouts do not fight over one device.
    fleet.start(&[]);
    let old = fleet.old.artifact();
    fleet.facade.ok(&["rollout", "create", "app-1", &old, "--to", "id=board-1"]);
    let refused = fleet.facade.cli(&["rollout", "start", "app-1"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("is in rollout app-2") || refused.stderr.contains("are in rollout app-2"),
        "{}",
        refused.stderr
    );
}

#[test]
fn selectors_and_labels_find_devices_and_nonsense_is_refused_by_name() {
    let facade = Facade::start();
    let _boards = [Device::enrolled("board-1", &facade), Device::enrolled("board-2", &facade)];
    facade.ok(&["device", "label", "board-1", "stage=canary", "site=berlin"]);
    let shown = facade.ok(&["device", "label", "board-1", "site-"]);
    assert_eq!(shown["labels"], json!({"stage": "canary"}), "{shown}");
    let listed = facade.ok(&["device", "list", "--selector", "stage in (canary,test)"]);
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["id"]), (1, &json!("board-1")));
    assert_eq!(facade.ok(&["device", "list", "--selector", "!stage"])[0]["id"], "board-2");
    for args in [
        ["device", "label", "board-1", "group=x"],
        ["device", "label", "board-1", "a=<script>"],
        ["device", "list", "--selector", "stage in"],
        ["rollout", "create", "a/b", "abcd"],
    ] {
        let refused = facade.cli(&args);
        assert_eq!(refused.code, 2, "{args:?} {}", refused.stderr);
    }
    assert_eq!(facade.cli(&["rollout", "create", "x", "abcd", "--to", "all", "--waves", "1,5"]).code, 2);
    assert_eq!(facade.cli(&["rollout", "start", "nothing"]).code, 1);
}

#[test]
fn a_viewer_sees_rollouts_and_changes_none() {
    let fleet = Fleet::of(1);
    fleet.start(&[]);
    let made = fleet.facade.ok(&["operator", "token", "create", "viewer", "--role", "viewer", "--ttl", "1h"]);
    let bearer = format!("Bearer {}", made["token"].as_str().unwrap());
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let ask = |method: &str, path: &str| {
        http::request(&fleet.facade.operator_authority(), method, path, &headers, b"{}").unwrap().status
    };
    for path in ["", "/app-2", "/app-2/preview", "/app-2/devices"] {
        assert_eq!(ask("GET", &format!("/api/v1/rollouts{path}")), 200, "{path}");
    }
    for verb in ["start", "approve", "pause", "resume", "abort"] {
        assert_eq!(ask("POST", &format!("/api/v1/rollouts/app-2/{verb}")), 403, "{verb}");
    }
    assert_eq!(ask("DELETE", "/api/v1/rollouts/app-2"), 403);
    assert_eq!(ask("POST", "/api/v1/devices/board-1/labels"), 403);
    assert_eq!(fleet.rollout()["state"], "running");
}
