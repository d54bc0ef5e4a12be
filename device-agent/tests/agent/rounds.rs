//! Whole rounds: what is delivered, what is refused, and what a facade's lies cost.

use std::time::Duration;

use device_agent::Agent;
use device_agent::cli::Exit;
use device_agent::clock::Clock;
use device_agent::lifecycle::State;
use device_agent::state_file::StateError;
use tokio_util::sync::CancellationToken;

use crate::facade::{Facade, Fault};
use crate::world::{Device, Sample};

const MIB: usize = 1 << 20;

async fn enrolled() -> (Facade, Device) {
    let (facade, device) = (Facade::start().await, Device::new());
    device.enroll(&facade).await.unwrap();
    (facade, device)
}

fn state(device: &Device) -> State {
    device.state().read_json("state.json", "").unwrap().unwrap_or_default()
}

#[tokio::test]
async fn an_assigned_image_arrives_and_is_reported() {
    let (facade, device) = enrolled().await;
    device.sync().await.unwrap();
    let sample = Sample::new("app", 3 * MIB);
    sample.assign(&facade);
    device.sync().await.unwrap();
    assert!(sample.is_on(&device));
    assert!(state(&device).standing().current.has(&sample.artifact));
    let report = facade.script().reports.last().unwrap().clone();
    assert_eq!(report["running"][0]["artifact"], sample.artifact.to_string());
    assert_eq!(report["state"], "idle");
    let counters: Vec<u64> =
        facade.script().reports.iter().map(|report| report["counter"].as_u64().unwrap()).collect();
    assert_eq!(counters, [1, 2]);
}

#[tokio::test]
async fn a_device_that_is_not_welcome_with_its_report_says_so_and_one_that_was_not_heard_does_not() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", MIB);
    sample.assign(&facade);
    facade.fault("/v1/report", Fault::Status(403));
    let error = device.sync().await.unwrap_err();
    assert_eq!(Exit::of(&error), Exit::NotAllowed, "{error}");
    assert!(sample.is_on(&device), "what is signed and came is not lost over it");
    facade.fault("/v1/report", Fault::Status(503));
    device.sync().await.unwrap();
    device.sync().await.unwrap();
}

#[tokio::test]
async fn a_second_round_asks_for_nothing_that_is_there() {
    let (facade, device) = enrolled().await;
    Sample::new("app", MIB).assign(&facade);
    device.sync().await.unwrap();
    facade.script().log.clear();
    device.sync().await.unwrap();
    assert_eq!(facade.count("/v2/"), 0);
}

#[tokio::test]
async fn a_cut_transfer_goes_on_where_it_stopped() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 4 * MIB);
    sample.assign(&facade);
    let layer = sample.layer.digest.to_string();
    facade.fault(&layer, Fault::CutAt(3 * MIB));
    device.sync().await.unwrap();
    assert!(sample.is_on(&device));
    let script = facade.script();
    let resumed: Vec<&String> =
        script.log.iter().filter(|line| line.contains(&layer) && line.contains("bytes=")).collect();
    assert_eq!(resumed.len(), 1, "{resumed:?}");
    let offset: usize = resumed[0].split("bytes=").nth(1).unwrap().trim_end_matches('-').parse().unwrap();
    assert!(offset >= 2 * MIB, "went on at {offset}");
}

#[tokio::test]
async fn works_with_a_facade_that_knows_no_ranges() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 2 * MIB);
    sample.assign(&facade);
    let layer = sample.layer.digest.to_string();
    facade.fault(&layer, Fault::CutAt(MIB + MIB / 2));
    facade.fault(&layer, Fault::WholeBody);
    device.sync().await.unwrap();
    assert!(sample.is_on(&device));
}

#[tokio::test]
async fn refuses_shifted_ranges_redirects_and_encodings_and_recovers() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", 2 * MIB);
    sample.assign(&facade);
    let layer = sample.layer.digest.to_string();
    facade.fault(&layer, Fault::CutAt(MIB + MIB / 2));
    facade.fault(&layer, Fault::ShiftedRange);
    device.sync().await.unwrap();
    assert!(sample.is_on(&device));
    for fault in [Fault::Redirect, Fault::Encoded] {
        let (facade, device) = enrolled().await;
        sample.assign(&facade);
        facade.fault(&layer, fault);
        let error = device.sync().await.unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Failed, "{error}");
        device.sync().await.unwrap();
        assert!(sample.is_on(&device));
    }
}

#[tokio::test]
async fn wrong_bytes_are_fetched_again_and_then_called_an_attack() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", MIB);
    sample.assign(&facade);
    let layer = sample.layer.digest.to_string();
    for _ in 0..3 {
        facade.fault(&layer, Fault::WrongByte);
    }
    let error = device.sync().await.unwrap_err();
    assert_eq!(Exit::of(&error), Exit::Verification, "{error}");
    assert!(!device.has(sample.layer.digest), "wrong bytes have a name");
    assert!(state(&device).standing().current.is_empty());
    let report = facade.script().reports.last().unwrap().clone();
    assert_eq!(report["refused"][0]["code"], "content_digest");
    // One wrong answer is bad luck.
    facade.fault(&layer, Fault::WrongByte);
    device.sync().await.unwrap();
    assert!(sample.is_on(&device));
}

#[tokio::test]
async fn a_digest_that_is_not_assigned_by_the_facade_is_not_allowed() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", MIB);
    sample.assign(&facade);
    facade.script().contents.clear();
    let error = device.sync().await.unwrap_err();
    assert_eq!(Exit::of(&error), Exit::NotAllowed, "{error}");
}

#[tokio::test]
async fn refuses_a_director_for_another_device() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", MIB);
    sample.assign(&facade);
    {
        let mut script = facade.script();
        script.repositories.director.device = Some("board-8".into());
        script.repositories.director.publish();
    }
    let error = device.sync().await.unwrap_err();
    assert_eq!(Exit::of(&error), Exit::Verification, "{error}");
    assert_eq!(facade.count("/v2/registry"), 0, "a byte was asked for");
    let report = facade.script().reports.last().unwrap().clone();
    assert_eq!(report["refused"][0]["code"], "targets_disagree");
}

#[tokio::test]
async fn refuses_what_images_does_not_list() {
    let (facade, device) = enrolled().await;
    Sample::new("app", MIB).assign(&facade);
    {
        let mut script = facade.script();
        script.repositories.images.targets.clear();
        script.repositories.images.publish();
    }
    let error = device.sync().await.unwrap_err();
    assert_eq!(Exit::of(&error), Exit::Verification, "{error}");
    assert_eq!(facade.count("/v2/registry"), 0);
}

#[tokio::test]
async fn refuses_metadata_that_goes_back_and_keeps_what_it_has() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", MIB);
    let old = facade.script().repositories.director.files["timestamp.json"].clone();
    sample.assign(&facade);
    device.sync().await.unwrap();
    facade.script().repositories.director.files.insert("timestamp.json".into(), old);
    let error = device.sync().await.unwrap_err();
    assert_eq!(Exit::of(&error), Exit::Verification, "{error}");
    assert!(sample.is_on(&device));
    assert!(state(&device).standing().current.has(&sample.artifact));
    let report = facade.script().reports.last().unwrap().clone();
    assert_eq!(report["refused"][0]["code"], "metadata_rollback");
}

#[tokio::test]
async fn a_file_that_the_facade_says_it_has_not_is_told_at_once() {
    for (repository, role) in [("director", "snapshot"), ("director", "targets"), ("images", "timestamp")] {
        let (facade, device) = enrolled().await;
        device.sync().await.unwrap();
        Sample::new("app", MIB).assign(&facade);
        let file = {
            let mut script = facade.script();
            let repositories = &mut script.repositories;
            let repository =
                if repository == "director" { &mut repositories.director } else { &mut repositories.images };
            let newest = |name: &&String| {
                let version = name.split('.').next().unwrap_or_default();
                (name.ends_with(&format!("{role}.json")), version.parse::<u64>().unwrap_or_default())
            };
            let file = repository.files.keys().max_by_key(newest).unwrap().clone();
            repository.files.remove(&file);
            file
        };
        device.sync().await.unwrap_err();
        let refused = facade.script().reports.last().unwrap()["refused"][0].clone();
        assert_eq!(refused["code"], "metadata_missing", "{refused}");
        assert_eq!(refused["metadata"], format!("{repository}/{file}"), "{refused}");
        assert!(refused["reason"].as_str().unwrap().contains(&format!("server has no {file}")), "{refused}");
    }
}

#[tokio::test]
async fn a_file_that_never_comes_is_told_once_it_cannot_be_an_accident() {
    for fault in [Fault::Hangup, Fault::CutAt(10), Fault::Status(500)] {
        let (facade, device) = enrolled().await;
        let sample = Sample::new("app", MIB);
        sample.assign(&facade);
        device.sync().await.unwrap();
        let refusals = || {
            let reports = facade.script().reports.clone();
            let refused = reports.iter().filter_map(|report| report["refused"].as_array().cloned());
            refused.flatten().collect::<Vec<_>>()
        };
        let withheld = async || {
            facade.script().faults.clear();
            for _ in 0..20 {
                facade.fault("/metadata/images/timestamp.json", fault.clone());
            }
            device.sync().await.unwrap_err();
        };
        withheld().await;
        withheld().await;
        assert!(refusals().is_empty(), "{fault:?}: two rounds may be an accident");
        // One good round, and it begins anew.
        facade.script().faults.clear();
        device.sync().await.unwrap();
        withheld().await;
        withheld().await;
        assert!(refusals().is_empty(), "{fault:?}: {:?}", refusals());
        withheld().await;
        let [refused] = refusals().try_into().unwrap();
        assert_eq!(refused["code"], "metadata_withheld", "{refused}");
        assert_eq!(refused["metadata"], "images/timestamp.json", "{refused}");
        assert!(refused["reason"].as_str().unwrap().contains("could not be fetched"), "{refused}");
        // What runs is not touched, and the next good answer is taken.
        assert!(sample.is_on(&device));
        facade.script().faults.clear();
        device.sync().await.unwrap();
    }
}

#[tokio::test]
async fn a_facade_that_is_gone_is_unreachable_and_nothing_is_lost() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", MIB);
    sample.assign(&facade);
    device.sync().await.unwrap();
    let port = facade.port;
    drop(facade);
    facade_is_gone(port).await;
    let error = device.sync().await.unwrap_err();
    assert_eq!(Exit::of(&error), Exit::Unreachable, "{error}");
    assert!(sample.is_on(&device));
}

async fn facade_is_gone(port: u16) {
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_newer_release_replaces_the_older_and_keeps_it_for_going_back() {
    let (facade, device) = enrolled().await;
    let samples = ["one", "two", "three"].map(|version| Sample::version("app", version, MIB));
    for sample in &samples {
        sample.assign(&facade);
        device.sync().await.unwrap();
    }
    let state = state(&device);
    assert!(state.standing().current.has(&samples[2].artifact));
    assert!(state.standing().previous.has(&samples[1].artifact));
    assert!(samples[1].is_on(&device));
    assert!(!device.has(samples[0].layer.digest), "an old layer was kept");
}

#[tokio::test]
async fn damaged_state_is_made_anew_from_what_is_assigned() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", MIB);
    sample.assign(&facade);
    device.sync().await.unwrap();
    let files = [
        "state.json",
        "report.json",
        "running.json",
        "refused.json",
        "status.json",
        "clock.json",
        "metadata/director/timestamp.json",
        "metadata/director/snapshot.json",
        "metadata/images/targets.json",
    ];
    for file in files {
        for damage in [&b""[..], b"{", b"\xff\xfe", b"{\"state\":\"flying\"}"] {
            std::fs::write(device.state_path().join(file), damage).unwrap();
            device.sync().await.unwrap_or_else(|error| panic!("{file} damaged as {damage:?}: {error}"));
            assert!(state(&device).standing().current.has(&sample.artifact), "{file}");
        }
    }
}

#[tokio::test]
async fn damage_that_cannot_be_made_good_says_what_is_needed() {
    for file in [
        "identity/key.pem",
        "identity/cert.pem",
        "identity/ca.pem",
        "facade.json",
        "metadata/director/root.json",
    ] {
        let (_facade, device) = enrolled().await;
        std::fs::write(device.state_path().join(file), b"junk").unwrap();
        let error = device.sync().await.unwrap_err();
        let text = device_agent::error_chain(&error);
        assert!(text.contains("enroll") || text.contains("root"), "{file}: {text}");
    }
}

#[tokio::test]
async fn the_daemon_brings_in_what_is_assigned_while_it_runs() {
    let (facade, device) = enrolled().await;
    let sample = Sample::new("app", MIB);
    let agent = Agent::open(device.config(), Clock::system()).unwrap();
    let shutdown = CancellationToken::new();
    let operator = async {
        while facade.count("/v1/wait") < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sample.assign(&facade);
        facade.script().news = 2;
        while !state(&device).standing().current.has(&sample.artifact) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(matches!(device.state().lock(), Err(StateError::Locked(_))));
        shutdown.cancel();
    };
    let (ran, ()) = tokio::join!(agent.run(&shutdown), operator);
    ran.unwrap();
    assert!(sample.is_on(&device));
    device.state().lock().unwrap();
}

#[tokio::test]
async fn the_daemon_of_a_new_device_leaves_the_directory_to_enroll() {
    let (facade, device) = (Facade::start().await, Device::new());
    let agent = Agent::open(device.config(), Clock::system()).unwrap();
    let shutdown = CancellationToken::new();
    let operator = async {
        while device.state().lock().is_err() || !device.state_path().join("status.json").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        device.enroll(&facade).await.unwrap();
        while facade.count("director/timestamp.json") == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shutdown.cancel();
    };
    let (ran, ()) = tokio::join!(agent.run(&shutdown), operator);
    ran.unwrap();
}
