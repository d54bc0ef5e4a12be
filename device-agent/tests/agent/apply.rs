//! What happens to a release after it was handed over: the hook, the probe, and the way back.

use device_agent::cli::Exit;
use device_agent::lifecycle::State;

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

fn versions() -> [Sample; 3] {
    ["one", "two", "three"].map(|version| Sample::version("app", version, 200 * KIB))
}

/// A hook that notes what it is told, and fails for one digest.
fn hook(device: &Device, fails_for: Option<&Sample>) -> String {
    let bad = fails_for.map(|sample| sample.artifact.digest().to_string()).unwrap_or_default();
    device.program(
        "hook",
        &format!(
            "echo $DRAYAGE_ACTION $DRAYAGE_IMAGE $DRAYAGE_DIGEST from $DRAYAGE_PREVIOUS_DIGEST >>{}\n\
             if [ $DRAYAGE_DIGEST = \"{bad}\" ]; then echo the pump leaks >&2; exit 1; fi",
            device.notes().display()
        ),
    )
}

fn digest(sample: &Sample) -> String {
    sample.artifact.digest().to_string()
}

#[tokio::test]
async fn the_hook_is_told_of_each_image_that_comes_and_goes() {
    let (facade, device) = enrolled().await;
    let hook = hook(&device, None);
    let [one, two, _] = versions();
    let alias = "registry.example.com/team/app:current";
    for sample in [&one, &two] {
        sample.assign(&facade);
        device.sync_with(&[("apply_command", &hook)]).await.unwrap();
        device.sync_with(&[("apply_command", &hook)]).await.unwrap();
        assert_eq!(device.current(sample), Some(digest(sample)));
    }
    let other = Sample::new("other", KIB);
    other.assign(&facade);
    device.sync_with(&[("apply_command", &hook)]).await.unwrap();
    let told = device.noted();
    assert_eq!(told[0].trim_end(), format!("apply {alias} {} from", digest(&one)));
    assert_eq!(told[1], format!("apply {alias} {} from {}", digest(&two), digest(&one)));
    assert!(told[2].starts_with("apply registry.example.com/team/other:current"), "{told:?}");
    assert_eq!(told[3].trim_end(), format!("remove {alias} {} from", digest(&two)));
    assert_eq!(told.len(), 4);
}

#[tokio::test]
async fn a_release_that_the_hook_refuses_is_left_for_the_one_before_without_the_network() {
    let (facade, device) = enrolled().await;
    let [one, two, three] = versions();
    let hook = hook(&device, Some(&two));
    let settings = [("apply_command", hook.as_str())];
    one.assign(&facade);
    device.sync_with(&settings).await.unwrap();
    two.assign(&facade);
    facade.script().log.clear();
    let error = device.sync_with(&settings).await.unwrap_err();
    let text = device_agent::error_chain(&error);
    assert!(text.contains("could not be applied") && text.contains("the pump leaks"), "{text}");
    assert_eq!(Exit::of(&error), Exit::Failed);
    assert_eq!(device.current(&one), Some(digest(&one)));
    for (content, _) in &one.contents {
        assert_eq!(facade.count(&content.to_string()), 0, "going back asked the network for {content}");
    }
    let told = device.noted();
    assert_eq!(
        told.last().unwrap(),
        &format!("roll-back registry.example.com/team/app:current {} from {}", digest(&one), digest(&two))
    );
    // It says so, and for as long as it is so.
    for _ in 0..2 {
        let report = facade.script().reports.last().unwrap().clone();
        assert_eq!(report["rolled_back"][0]["artifact"], two.artifact.to_string());
        assert_eq!(report["rolled_back"][0]["code"], "apply_failed");
        assert_eq!(report["running"][0]["artifact"], one.artifact.to_string());
        assert_eq!(report["state"], "idle");
        // The bad digest is remembered, and not asked for again.
        facade.script().log.clear();
        device.sync_with(&settings).await.unwrap();
        assert_eq!(facade.count("/v2/"), 0);
    }
    assert_eq!(device.noted().len(), told.len());
    assert!(!device.has(two.layer.digest), "the failed image lies about");
    three.assign(&facade);
    device.sync_with(&settings).await.unwrap();
    assert_eq!(device.current(&three), Some(digest(&three)));
    let report = facade.script().reports.last().unwrap().clone();
    assert_eq!(report["running"][0]["artifact"], three.artifact.to_string());
}

#[tokio::test]
async fn a_release_that_never_answers_the_probe_is_left() {
    let (facade, device) = enrolled().await;
    let [one, two, _] = versions();
    let hook = hook(&device, None);
    let healthy = device.program(
        "probe",
        &format!("tail -n 1 {} | grep -q ':current {}'", device.notes().display(), digest(&one)),
    );
    let settings = [
        ("apply_command", hook.as_str()),
        ("probe_command", healthy.as_str()),
        ("probe_within", "2s"),
        ("probe_interval", "1s"),
    ];
    one.assign(&facade);
    device.sync_with(&settings).await.unwrap();
    two.assign(&facade);
    let error = device.sync_with(&settings).await.unwrap_err();
    assert!(error.to_string().contains("did not succeed within 2 s"), "{error}");
    assert_eq!(device.current(&one), Some(digest(&one)));
    let report = facade.script().reports.last().unwrap().clone();
    assert_eq!(report["rolled_back"][0]["code"], "probe_failed");
}

#[tokio::test]
async fn a_hook_that_asks_to_wait_is_asked_again_and_nothing_is_rejected() {
    let (facade, device) = enrolled().await;
    let [one, ..] = versions();
    // Not now, and then yes.
    let hook = device.program(
        "hook",
        &format!("echo x >>{0}; test $(wc -l <{0}) -gt 1 || exit 75", device.notes().display()),
    );
    one.assign(&facade);
    device.sync_with(&[("apply_command", &hook)]).await.unwrap();
    assert_eq!(device.noted().len(), 2);
    assert!(state(&device).standing().rejected.is_empty());
}

#[tokio::test]
async fn a_hook_that_is_not_there_says_so_and_condemns_nothing() {
    let (facade, device) = enrolled().await;
    let [one, two, _] = versions();
    one.assign(&facade);
    device.sync().await.unwrap();
    two.assign(&facade);
    let error = device.sync_with(&[("apply_command", "/no/such/hook")]).await.unwrap_err();
    let text = device_agent::error_chain(&error);
    assert!(text.contains("cannot run /no/such/hook"), "{text}");
    assert!(state(&device).standing().current.has(&one.artifact));
    // Whoever asks the device or the facade hears it, too, although the device is back where it was.
    let shown = shown(&device);
    for said in ["last_error", "held_back"] {
        assert!(shown[said].as_str().unwrap().contains("cannot run /no/such/hook"), "{said}: {shown}");
    }
    let report = facade.script().reports.last().unwrap().clone();
    assert!(report["waiting"].as_str().unwrap().contains("cannot run /no/such/hook"), "{report}");
    device.sync().await.unwrap();
    let report = facade.script().reports.last().unwrap().clone();
    assert_eq!(report["waiting"], serde_json::Value::Null);
    assert!(state(&device).standing().current.has(&two.artifact));
}

#[tokio::test]
async fn a_hook_that_never_ends_is_ended_and_its_release_left() {
    let (facade, device) = enrolled().await;
    let [one, ..] = versions();
    let hook = device.program("hook", "[ $DRAYAGE_ACTION = remove ] || sleep 1000");
    one.assign(&facade);
    let error = device.sync_with(&[("apply_command", &hook), ("apply_timeout", "1s")]).await.unwrap_err();
    let text = device_agent::error_chain(&error);
    assert!(text.contains("was not done after 1 s"), "{text}");
    assert!(state(&device).standing().current.is_empty());
}

#[tokio::test]
async fn a_hook_that_never_takes_the_old_release_back_keeps_no_later_one_away() {
    let (facade, device) = enrolled().await;
    let [one, two, three] = versions();
    let hook = device.program(
        "hook",
        &format!(
            "test $DRAYAGE_DIGEST = {} && exit 0; test $DRAYAGE_ACTION = apply && test $DRAYAGE_DIGEST = {}",
            digest(&three),
            digest(&one)
        ),
    );
    let settings = [("apply_command", hook.as_str())];
    one.assign(&facade);
    device.sync_with(&settings).await.unwrap();
    two.assign(&facade);
    device.sync_with(&settings).await.unwrap_err();
    while matches!(state(&device), State::RollingBack { .. }) {
        let _ = device.sync_with(&settings).await;
    }
    three.assign(&facade);
    device.sync_with(&settings).await.unwrap();
    assert_eq!(device.current(&three), Some(digest(&three)));
}

/// A hook that notes what it is told, does not work with one version, and goes back only where nothing is in its way.
fn stubborn(device: &Device, bad: &Sample) -> (String, std::path::PathBuf) {
    let obstacle = device.notes().with_extension("obstacle");
    std::fs::write(&obstacle, "").unwrap();
    let script = format!(
        "echo $DRAYAGE_ACTION $DRAYAGE_DIGEST >>{}\n\
         case $DRAYAGE_ACTION in apply) test $DRAYAGE_DIGEST != {};; *) echo it is stuck >&2; test ! -e {};; esac",
        device.notes().display(),
        digest(bad),
        obstacle.display()
    );
    (device.program("hook", &script), obstacle)
}

fn shown(device: &Device) -> serde_json::Value {
    device.state().read_json("status.json", "").unwrap().unwrap()
}

#[tokio::test]
async fn a_roll_back_that_the_hook_does_not_take_is_told_and_tried_until_it_does() {
    let (facade, device) = enrolled().await;
    let [one, two, _] = versions();
    let (hook, obstacle) = stubborn(&device, &two);
    let settings = [("apply_command", hook.as_str())];
    one.assign(&facade);
    device.sync_with(&settings).await.unwrap();
    two.assign(&facade);
    for round in 1..=4 {
        let error = device.sync_with(&settings).await.unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Failed);
        let told = device.noted();
        let back = told.iter().filter(|told| **told == format!("roll-back {}", digest(&one))).count();
        assert_eq!(back, round, "once a round: {told:?}");
        assert!(two.is_on(&device), "what runs was deleted");
        let report = facade.script().reports.last().unwrap().clone();
        assert_eq!(report["refused"][0]["code"], "rollback_hook_failed", "{report}");
        assert_eq!(report["running"][0]["artifact"], two.artifact.to_string());
        assert_eq!(report["running"].as_array().unwrap().len(), 1);
        assert_eq!(report["state"], "rolling_back");
        assert!(report["waiting"].as_str().unwrap().contains("rollback_hook_failed"), "{report}");
        assert_eq!(report["rolled_back"], serde_json::Value::Null, "nobody went back");
        let shown = shown(&device);
        assert_eq!(shown["state"], "rolling_back");
        assert!(shown["last_error"].as_str().unwrap().contains("rollback_hook_failed"), "{shown}");
        assert!(shown["last_error"].as_str().unwrap().contains("it is stuck"), "{shown}");
    }
    std::fs::remove_file(obstacle).unwrap();
    device.sync_with(&settings).await.unwrap();
    let report = facade.script().reports.last().unwrap().clone();
    assert_eq!(report["refused"], serde_json::json!([]));
    assert_eq!(report["running"][0]["artifact"], one.artifact.to_string());
    assert_eq!(report["rolled_back"][0]["artifact"], two.artifact.to_string());
    assert_eq!(report["state"], "idle");
    assert_eq!(shown(&device)["last_error"], serde_json::Value::Null);
    assert_eq!(device.current(&one), Some(digest(&one)));
    assert!(!device.has(two.layer.digest), "the failed image lies about");
}

#[tokio::test]
async fn what_was_not_taken_back_is_kept_until_a_later_release_runs() {
    let (facade, device) = enrolled().await;
    let [one, two, three] = versions();
    let (hook, _obstacle) = stubborn(&device, &two);
    let layer = two.layer.digest;
    let kept = device.layout().join("blobs").join(layer.algorithm().name()).join(layer.hex());
    let settings = [("apply_command", hook.as_str())];
    one.assign(&facade);
    device.sync_with(&settings).await.unwrap();
    two.assign(&facade);
    device.sync_with(&settings).await.unwrap_err();
    three.assign(&facade);
    // By the time the next one is told, what runs must still be there.
    let careful =
        format!("test $DRAYAGE_ACTION != apply || test -e {} || exit 1; exec {hook}", kept.display());
    let careful = device.program("careful", &careful);
    device.sync_with(&[("apply_command", &careful)]).await.unwrap();
    assert_eq!(device.current(&three), Some(digest(&three)));
    assert!(!device.has(two.layer.digest), "it is not needed any more");
    let report = facade.script().reports.last().unwrap().clone();
    assert_eq!(report["running"][0]["artifact"], three.artifact.to_string());
    assert_eq!(report["state"], "idle");
}
