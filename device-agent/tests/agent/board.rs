//! What a board meets: windows, little room, power cuts, bits that flip, and images that somebody takes away.

use std::path::PathBuf;

use device_agent::Agent;
use device_agent::clock::Clock;
use device_agent::lifecycle::State;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::facade::Facade;
use crate::world::{Device, Sample};

const KIB: usize = 1 << 10;

async fn enrolled() -> (Facade, Device) {
    let (facade, device) = (Facade::start().await, Device::new());
    device.enroll(&facade).await.unwrap();
    (facade, device)
}

fn state(device: &Device) -> State {
    device.state().read_json("state.json", "").unwrap().unwrap_or_default()
}

/// A window that opens in two hours.
fn closed() -> String {
    let at = |hours| (Timestamp::now() + SignedDuration::from_hours(hours)).strftime("%H:%M").to_string();
    format!("{}-{} UTC", at(2), at(3))
}

fn last_report(facade: &Facade) -> serde_json::Value {
    facade.script().reports.last().unwrap().clone()
}

#[tokio::test]
async fn nothing_is_downloaded_outside_the_window_and_the_reason_is_told() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    let window = closed();
    device.sync_with(&[("download_window", &window)]).await.unwrap();
    assert_eq!(facade.count("/v2/registry"), 0);
    let waiting = last_report(&facade)["waiting"].as_str().unwrap().to_owned();
    assert!(waiting.contains("the download window") && waiting.contains("opens at"), "{waiting}");
    assert!(matches!(state(&device), State::Fetching { .. }));
    device.sync().await.unwrap();
    assert!(sample.is_on(&device));
    assert_eq!(last_report(&facade)["waiting"], serde_json::Value::Null);
}

#[tokio::test]
async fn what_the_facade_signs_restricts_the_device_and_an_unreadable_policy_is_told() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    let set = |policy: serde_json::Value| {
        let mut script = facade.script();
        script.repositories.director.policy = Some(policy);
        script.repositories.director.publish();
    };
    sample.assign(&facade);
    set(serde_json::json!({"download_window": closed()}));
    device.sync().await.unwrap();
    assert_eq!(facade.count("/v2/registry"), 0);
    // Downloaded, and not yet applied.
    set(serde_json::json!({"apply_window": closed(), "rate_limit": "100MiB/s"}));
    device.sync().await.unwrap();
    assert!(device.has(sample.layer.digest));
    assert!(state(&device).standing().current.is_empty());
    assert!(last_report(&facade)["waiting"].as_str().unwrap().contains("the apply window"));
    set(serde_json::json!({"apply_window": "now and then"}));
    device.sync().await.unwrap();
    assert_eq!(last_report(&facade)["refused"][0]["code"], "policy_unreadable");
    assert!(state(&device).standing().current.has(&sample.artifact));
}

#[tokio::test]
async fn a_download_that_is_done_is_applied_when_only_the_download_window_is_closed() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    let window = closed();
    device.sync_with(&[("apply_window", &window)]).await.unwrap();
    assert!(state(&device).standing().current.is_empty());
    device.sync_with(&[("download_window", &window)]).await.unwrap();
    assert!(state(&device).standing().current.has(&sample.artifact));
}

#[tokio::test]
async fn what_does_not_fit_is_not_begun_and_the_numbers_are_told() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    let error = device.sync_with(&[("reserve", "9000000GiB")]).await.unwrap_err();
    let text = device_agent::error_chain(&error);
    assert!(text.contains("not enough room") && text.contains("to download"), "{text}");
    assert_eq!(facade.count(&sample.layer.digest.to_string()), 0);
    let report = last_report(&facade);
    assert!(report["need_bytes"].as_u64() > report["free_bytes"].as_u64(), "{report}");
    assert_eq!(report["refused"][0]["code"], "no_space");
    device.sync().await.unwrap();
    assert!(sample.is_on(&device));
}

#[tokio::test]
async fn an_image_that_is_not_assigned_any_more_goes_after_its_grace() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    device.sync().await.unwrap();
    {
        let mut script = facade.script();
        script.repositories.director.targets.clear();
        script.repositories.director.publish();
    }
    device.sync().await.unwrap();
    device.sync().await.unwrap();
    assert!(state(&device).standing().current.is_empty());
    assert!(sample.is_on(&device), "it went before its time");
    let sync_in = async |hours| {
        let clock = Clock::manual(Timestamp::now() + SignedDuration::from_hours(hours));
        let agent = Agent::open(device.config_with(&[("grace", "5h")]), clock).unwrap();
        agent.sync(&CancellationToken::new()).await.unwrap();
    };
    sync_in(4).await;
    assert!(sample.is_on(&device), "it went before its time");
    sync_in(6).await;
    assert!(!device.has(sample.layer.digest), "it stays for ever");
    assert!(state(&device).standing().previous.is_empty());
}

#[tokio::test]
async fn images_that_somebody_took_away_are_brought_in_again() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    device.sync().await.unwrap();
    std::fs::remove_dir_all(device.layout()).unwrap();
    device.sync().await.unwrap();
    assert!(sample.is_on(&device));
    assert!(state(&device).standing().current.has(&sample.artifact));
}

/// Makes the agent believe that the power was cut since it ran last.
fn cut_power(device: &Device) {
    let state = device.state();
    let mut run: serde_json::Value = state.read_json("run.json", "").unwrap().unwrap();
    run["boot_id"] = "another-boot".into();
    run["stopped"] = false.into();
    state.write_json("run.json", &run).unwrap();
}

fn blob(device: &Device, sample: &Sample) -> PathBuf {
    let digest = sample.layer.digest;
    device.layout().join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

#[tokio::test]
async fn after_a_power_cut_what_is_handed_over_is_read_back_and_mended() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    device.sync().await.unwrap();
    // The card lost the last of what it had acknowledged.
    let length = std::fs::metadata(blob(&device, &sample)).unwrap().len();
    std::fs::write(blob(&device, &sample), vec![0; usize::try_from(length).unwrap()]).unwrap();
    // Nobody looks while nothing happened.
    device.sync().await.unwrap();
    assert_eq!(facade.count(&sample.layer.digest.to_string()), 1);
    cut_power(&device);
    device.sync().await.unwrap();
    assert_eq!(last_report(&facade)["refused"][0]["code"], "content_damaged");
    device.sync().await.unwrap();
    assert_eq!(facade.count(&sample.layer.digest.to_string()), 2, "fetched once more");
    let bytes = std::fs::read(blob(&device, &sample)).unwrap();
    pki::digest::verify(sample.layer.digest, &bytes).unwrap();
}

fn verify(device: &Device) -> Option<i32> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_device-agent"));
    command.arg("verify").arg("--config").arg(device.state_path().with_file_name("agent.toml"));
    command.arg("--state-dir").arg(device.state_path());
    command.arg("--sink").arg(format!("oci-layout:{}", device.layout().display()));
    command.args(["--platform", "linux/arm64"]).output().unwrap().status.code()
}

fn damage(device: &Device, sample: &Sample) {
    let length = std::fs::metadata(blob(device, sample)).unwrap().len();
    std::fs::write(blob(device, sample), vec![0; usize::try_from(length).unwrap()]).unwrap();
}

#[tokio::test]
async fn what_verify_finds_damaged_or_missing_the_next_round_mends() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    device.sync().await.unwrap();
    assert_eq!(verify(&device), Some(0));
    damage(&device, &sample);
    assert_eq!(verify(&device), Some(6));
    device.sync().await.unwrap();
    assert_eq!(last_report(&facade)["refused"][0]["code"], "content_damaged");
    assert_eq!(verify(&device), Some(0));
    std::fs::remove_file(blob(&device, &sample)).unwrap();
    assert_eq!(verify(&device), Some(6));
    device.sync().await.unwrap();
    assert_eq!(verify(&device), Some(0));
    // Nothing is left to do.
    facade.script().log.clear();
    device.sync().await.unwrap();
    assert_eq!(facade.count("/v2/registry"), 0);
}

#[tokio::test]
async fn what_verify_finds_beside_the_daemon_the_daemon_mends() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    device.sync().await.unwrap();
    let agent = Agent::open(device.config_with(&[("poll", "1s")]), Clock::system()).unwrap();
    let shutdown = CancellationToken::new();
    let operator = async {
        while last_check(&device).is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        damage(&device, &sample);
        assert_eq!(verify(&device), Some(6));
        while verify(&device) != Some(0) {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        shutdown.cancel();
    };
    let (ran, ()) = tokio::join!(agent.run(&shutdown), operator);
    ran.unwrap();
}

/// When the running agent last checked.
fn last_check(device: &Device) -> Option<serde_json::Value> {
    let shown: serde_json::Value = device.state().read_json("status.json", "").ok()??;
    shown.get("last_check").filter(|at| !at.is_null()).cloned()
}

#[tokio::test]
async fn the_daemon_reads_back_after_a_power_cut_while_it_works() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    device.sync().await.unwrap();
    let length = std::fs::metadata(blob(&device, &sample)).unwrap().len();
    std::fs::write(blob(&device, &sample), vec![0; usize::try_from(length).unwrap()]).unwrap();
    cut_power(&device);
    let agent = Agent::open(device.config(), Clock::system()).unwrap();
    let shutdown = CancellationToken::new();
    let operator = async {
        let sound = || {
            let bytes = std::fs::read(blob(&device, &sample)).unwrap_or_default();
            pki::digest::verify(sample.layer.digest, &bytes).is_ok()
        };
        while !sound() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        shutdown.cancel();
    };
    let (ran, ()) = tokio::join!(agent.run(&shutdown), operator);
    ran.unwrap();
}

/// Every file of the state directory, as it is called in it.
fn files(device: &Device) -> Vec<String> {
    let root = device.state_path();
    let mut found = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn every_damaged_file_is_made_good_or_said_what_is_needed() {
    let (facade, device) = enrolled().await;
    let (first, sample) = (Sample::version("app", "one", 50 * KIB), Sample::version("app", "two", 50 * KIB));
    for sample in [&first, &sample] {
        sample.assign(&facade);
        device.sync().await.unwrap();
    }
    let mut unhelpful: Vec<String> = Vec::new();
    let names = files(&device);
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let path = device.state_path().join(&name);
        let whole = std::fs::read(&path).unwrap();
        let mut damages = vec![Vec::new(), whole[..whole.len() / 2].to_vec()];
        for part in 0..4 {
            let mut flipped = whole.clone();
            let at = whole.len() * part / 4;
            if let Some(byte) = flipped.get_mut(at) {
                *byte ^= 1 << part;
            }
            damages.push(flipped);
        }
        for damage in damages {
            if damage == whole {
                continue;
            }
            std::fs::write(&path, &damage).unwrap();
            match device.sync().await {
                Ok(()) => assert!(state(&device).standing().current.has(&sample.artifact), "{name}"),
                Err(error) => {
                    let text = device_agent::error_chain(&error);
                    if !["enroll", "remove it", "run: "].iter().any(|remedy| text.contains(remedy)) {
                        unhelpful.push(format!("{name}: {text}"));
                    }
                    std::fs::write(&path, &whole).unwrap();
                }
            }
            assert!(sample.is_on(&device), "{name}");
        }
        // What was made good stays; the next file is damaged in a directory that works.
        device.sync().await.unwrap_or_else(|error| panic!("{name}: {}", device_agent::error_chain(&error)));
    }
    assert!(unhelpful.is_empty(), "{}", unhelpful.join("\n"));
}

#[tokio::test]
async fn endless_and_absurd_answers_end_and_cost_nothing() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 200 * KIB);
    sample.assign(&facade);
    // A blob that goes on after its end, a manifest that does, and metadata without end.
    let layer = sample.layer.digest.to_string();
    let whole = facade.script().contents[&layer].clone();
    facade.script().contents.insert(layer.clone(), [whole.clone(), vec![0; 1 << 20]].concat());
    device.sync().await.unwrap_err();
    assert!(!device.has(sample.layer.digest));
    facade.script().contents.insert(layer, whole);
    let timestamp = facade.script().repositories.director.files["timestamp.json"].clone();
    let endless = [timestamp.clone(), vec![b' '; 20 << 20]].concat();
    facade.script().repositories.director.files.insert("timestamp.json".into(), endless);
    let error = device.sync().await.unwrap_err();
    assert_eq!(device_agent::cli::Exit::of(&error), device_agent::cli::Exit::Verification, "{error}");
    assert_eq!(last_report(&facade)["refused"][0]["code"], "metadata_endless");
    facade.script().repositories.director.files.insert("timestamp.json".into(), timestamp);
    device.sync().await.unwrap();
    assert!(sample.is_on(&device));
}

#[tokio::test]
async fn a_facade_whose_metadata_has_expired_changes_nothing_and_is_told_so() {
    let (facade, device) = enrolled().await;
    let (first, second) = (Sample::version("app", "one", KIB), Sample::version("app", "two", KIB));
    first.assign(&facade);
    device.sync().await.unwrap();
    facade.script().repositories.director.expires = Timestamp::now() - SignedDuration::from_hours(1);
    second.assign(&facade);
    let error = device.sync().await.unwrap_err();
    assert_eq!(device_agent::cli::Exit::of(&error), device_agent::cli::Exit::Verification, "{error}");
    assert!(state(&device).standing().current.has(&first.artifact));
    assert!(first.is_on(&device));
    assert_eq!(last_report(&facade)["refused"][0]["code"], "metadata_expired");
}
