//! How long a deployment may take to come in.

use device_agent::Agent;
use device_agent::clock::Clock;
use device_agent::driver::AgentError;
use device_agent::lifecycle::State;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::facade::{Facade, Fault};
use crate::world::{Device, Sample};

const KIB: usize = 1 << 10;

async fn enrolled() -> (Facade, Device, Sample) {
    let (facade, device) = (Facade::start().await, Device::new());
    device.enroll(&facade).await.unwrap();
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    (facade, device, sample)
}

/// One round so many minutes from now.
async fn round_after(
    minutes: i64,
    device: &Device,
    settings: &[(&'static str, &str)],
) -> Result<(), AgentError> {
    let clock = Clock::manual(Timestamp::now() + SignedDuration::from_mins(minutes));
    let agent = Agent::open(device.config_with(settings), clock)?;
    agent.sync(&CancellationToken::new()).await
}

fn state(device: &Device) -> State {
    device.state().read_json("state.json", "").unwrap().unwrap_or_default()
}

fn last_report(facade: &Facade) -> serde_json::Value {
    facade.script().reports.last().unwrap().clone()
}

fn sign(facade: &Facade, policy: serde_json::Value) {
    let mut script = facade.script();
    script.repositories.director.policy = Some(policy);
    script.repositories.director.publish();
}

#[tokio::test]
async fn is_tried_until_its_deadline_given_up_with_it_and_taken_when_there_is_more_time() {
    let (facade, device, sample) = enrolled().await;
    let layer = sample.layer.digest.to_string();
    let held = facade.script().contents.remove(&layer).unwrap();
    let deadline = [("download_deadline", "3h")];
    for (tries, minutes) in [(1, 0), (2, 60), (3, 170)] {
        let error = round_after(minutes, &device, &deadline).await.unwrap_err();
        assert!(!error.to_string().contains("given up"), "after {minutes} min of 180: {error}");
        assert_eq!(facade.count(&layer), tries);
    }
    let error = round_after(181, &device, &deadline).await.unwrap_err();
    assert!(error.to_string().contains("not downloaded within its deadline of 3h (since "), "{error}");
    let report = last_report(&facade);
    assert_eq!(report["refused"][0]["code"], "deadline_passed", "{report}");
    assert_eq!(report["refused"][0]["artifact"], sample.artifact.to_string(), "{report}");
    // It is told once; why nothing happens is told for as long as that is so.
    round_after(200, &device, &deadline).await.unwrap();
    let report = last_report(&facade);
    assert_eq!(report["refused"].as_array().map_or(0, Vec::len), 0, "{report}");
    let waiting = report["waiting"].as_str().unwrap_or_default();
    assert!(waiting.contains("within its deadline of 3h") && waiting.contains("agent.toml"), "{report}");
    assert_eq!(facade.count(&layer), 3, "it is asked for after its deadline");
    facade.script().contents.insert(layer, held);
    round_after(201, &device, &[("download_deadline", "1d")]).await.unwrap();
    assert!(state(&device).standing().current.has(&sample.artifact));
    assert_eq!(last_report(&facade)["waiting"], serde_json::Value::Null);
}

#[tokio::test]
async fn the_earlier_of_the_signed_and_the_local_deadline_counts() {
    let (facade, device, sample) = enrolled().await;
    facade.script().contents.remove(&sample.layer.digest.to_string());
    sign(&facade, serde_json::json!({"deadline": "1h"}));
    let local = [("download_deadline", "2d")];
    round_after(0, &device, &local).await.unwrap_err();
    let error = round_after(61, &device, &local).await.unwrap_err();
    assert!(error.to_string().contains("within its deadline of 1h"), "{error}");
    round_after(62, &device, &local).await.unwrap();
    let report = last_report(&facade);
    assert!(report["waiting"].as_str().unwrap_or_default().contains("facade device policy"), "{report}");
    // Another version has its own time.
    let next = Sample::version("app", "two", KIB);
    next.assign(&facade);
    round_after(63, &device, &local).await.unwrap();
    assert!(state(&device).standing().current.has(&next.artifact));
}

#[tokio::test]
async fn what_came_in_in_time_may_wait_for_its_apply_window_beyond_the_deadline() {
    let (facade, device, sample) = enrolled().await;
    let at = |hours| (Timestamp::now() + SignedDuration::from_hours(hours)).strftime("%H:%M").to_string();
    let window = format!("{}-{} UTC", at(3), at(4));
    let settings = [("apply_window", window.as_str()), ("download_deadline", "1h")];
    round_after(0, &device, &settings).await.unwrap();
    round_after(100, &device, &settings).await.unwrap();
    assert!(matches!(state(&device), State::Fetching { .. }));
    assert!(last_report(&facade)["waiting"].as_str().unwrap().contains("the apply window"));
    round_after(190, &device, &settings).await.unwrap();
    assert!(state(&device).standing().current.has(&sample.artifact));
}

#[tokio::test]
async fn the_daemon_gives_up_in_mid_download_and_says_how_far_it_came() {
    let (facade, device, sample) = enrolled().await;
    let layer = sample.layer.digest.to_string();
    facade.fault(&layer, Fault::CutAt(100 * KIB));
    for _ in 0..100 {
        facade.fault(&layer, Fault::Status(503));
    }
    // Long enough for a busy machine to come as far as the registry's refusals.
    let agent = Agent::open(device.config_with(&[("download_deadline", "8s")]), Clock::system()).unwrap();
    let shutdown = CancellationToken::new();
    let told = || {
        let reports = facade.script().reports.clone();
        reports.iter().find_map(|report| {
            let refused = report["refused"].get(0)?;
            (refused["code"] == "deadline_passed").then(|| refused["reason"].as_str().unwrap().to_owned())
        })
    };
    let operator = async {
        let reason = loop {
            if let Some(reason) = told() {
                break reason;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        shutdown.cancel();
        reason
    };
    let (ran, reason) = tokio::join!(agent.run(&shutdown), operator);
    ran.unwrap();
    assert!(reason.contains("bytes came in") && reason.contains("waiting for"), "{reason}");
    assert!(state(&device).standing().is_overdue());
}
