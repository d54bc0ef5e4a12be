//! A tag becomes a signed artifact: resolved once, checked, frozen; a bad tag never spoils a good one.

use harness::http::{self, Server, answer, read_request};
use harness::{Device, Facade, Fault, Image, ImageBuilder, Proxy, Registry, When, poll};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn small() -> Image {
    ImageBuilder::new().random_layer(1000).build()
}

fn artifacts(facade: &Facade) -> String {
    facade.ok(&["artifact", "list"]).to_string()
}

#[test]
fn reports_each_tag_of_a_batch() {
    let registry = Registry::open();
    let first = registry.push("team/app", "v1", &small());
    let second = registry.push("team/app", "v2", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    facade.cli(&["import", &first.repository, "v1", "missing", "not a tag", "v2"]).expect_code(3);
    let listed = artifacts(&facade);
    assert!(listed.contains(&first.digest.to_string()) && listed.contains(&second.digest.to_string()));
}

#[test]
fn importing_again_changes_nothing() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    facade.import(&pushed);
    let before = artifacts(&facade);
    facade.import(&pushed);
    assert_eq!(before, artifacts(&facade));
}

#[test]
fn an_artifact_is_found_by_every_way_of_writing_an_unambiguous_digest() {
    let registry = Registry::open();
    let image = small();
    let one = registry.push("team/app", "v1", &image);
    let other = registry.push("team/other", "v1", &image);
    assert_eq!(one.digest, other.digest);
    let facade = Facade::start();
    facade.connect(&registry);
    facade.import(&one);
    let prefix = &one.digest.hex()[..8];
    let name = format!("{}@{}", one.repository, one.digest);
    for text in [prefix, &format!("sha256:{prefix}"), &format!("{}@sha256:{prefix}", one.repository), &name] {
        assert_eq!(facade.ok(&["artifact", "show", text])["name"], name, "{text}");
    }

    // The same image in another repository: the digest alone names neither, repository and digest name one.
    facade.import(&other);
    facade.cli(&["artifact", "show", prefix]).expect_code(2);
    let within = format!("{}@sha256:{prefix}", other.repository);
    let found = facade.ok(&["artifact", "show", &within]);
    assert_eq!(found["name"], format!("{}@{}", other.repository, other.digest));
    for text in ["3f", "sha256:xyz1", "not/a/REPO@sha256:3f2a", &format!("{}@sha256:3f", one.repository)] {
        facade.cli(&["artifact", "show", text]).expect_code(2);
    }
}

#[test]
fn artifact_stays_what_it_was_when_the_tag_moves() {
    let registry = Registry::open();
    let frozen = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&frozen, "board-1");
    registry.push("team/app", "v1", &small());
    device.sync().expect_success();
    assert_eq!(device.delivered(), [frozen.digest].into());
}

#[test]
fn lists_tags_newest_likely_first() {
    let registry = Registry::open();
    for tag in ["1.9.0", "1.10.0", "1.10.0-rc.1", "1.2.0"] {
        registry.push("team/app", tag, &small());
    }
    let facade = Facade::start();
    facade.connect(&registry);
    let shown = facade.ok(&["tags", &format!("{}/team/app", registry.host())]).to_string();
    let places =
        ["\"1.10.0\"", "\"1.10.0-rc.1\"", "\"1.9.0\"", "\"1.2.0\""].map(|tag| shown.find(tag).unwrap());
    assert!(places.is_sorted(), "{shown}");
}

#[test]
fn no_connection_means_no_request() {
    let registry = Registry::open();
    let proxy = Proxy::before(&registry.host());
    let pushed = registry.push("team/app", "v1", &small()).through(&proxy.host());
    let facade = Facade::start();
    assert_ne!(facade.cli(&["import", &pushed.repository, "v1"]).code, 0);
    assert_ne!(facade.cli(&["tags", &pushed.repository]).code, 0);
    assert!(proxy.seen().is_empty());
}

#[test]
fn rejects_manifests_that_can_be_read_in_two_ways() {
    let registry = Registry::open();
    let image = small();
    let pushed = registry.push("team/app", "v1", &image);
    let text = String::from_utf8(image.root.bytes.clone()).unwrap();
    let twice = text.replacen("\"schemaVersion\"", "\"schemaVersion\": 2, \"schemaVersion\"", 1);
    assert_eq!(registry.put_raw_manifest("team/app", "twice", MANIFEST, twice.as_bytes()), 201);
    let facade = Facade::start();
    facade.connect(&registry);
    assert_ne!(facade.cli(&["import", &pushed.repository, "twice"]).code, 0);
    assert!(!artifacts(&facade).contains("sha256:"));
}

#[test]
fn rejects_an_index_whose_child_has_another_size() {
    let registry = Registry::open();
    let child = small();
    let pushed = registry.push("team/app", "child", &child);
    let mut index: serde_json::Value = serde_json::from_slice(&Image::index(&[child]).root.bytes).unwrap();
    index["manifests"][0]["size"] = json!(7);
    let media_type = "application/vnd.oci.image.index.v1+json";
    let bytes = serde_json::to_vec(&index).unwrap();
    assert_eq!(registry.put_raw_manifest("team/app", "wrong", media_type, &bytes), 201);
    let facade = Facade::start();
    facade.connect(&registry);
    assert_ne!(facade.cli(&["import", &pushed.repository, "wrong"]).code, 0);
}

#[test]
fn rejects_manifests_changed_on_the_registry() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &small());
    registry.corrupt(&pushed.digest, 30);
    let facade = Facade::start();
    facade.connect(&registry);
    assert_ne!(facade.cli(&["import", &pushed.repository, "v1"]).code, 0);
    assert!(!artifacts(&facade).contains("sha256:"));
}

#[test]
fn says_with_exit_code_6_that_bytes_are_not_those_that_were_named() {
    let registry = Registry::open();
    let image = small();
    let pushed = registry.push("team/app", "v1", &image);
    let manifest: serde_json::Value = serde_json::from_slice(&image.root.bytes).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap();
    registry.corrupt(&config.parse().unwrap(), 5);
    let facade = Facade::start();
    facade.connect(&registry);
    facade.cli(&["import", &pushed.repository, "v1"]).expect_code(6);
    assert!(!artifacts(&facade).contains("sha256:"));
}

#[test]
fn rejects_layers_longer_than_anything_that_exists() {
    let registry = Registry::open();
    let image = small();
    registry.push("team/app", "v1", &image);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.root.bytes).unwrap();
    manifest["layers"][0]["size"] = json!(1_u64 << 62);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    assert_eq!(registry.put_raw_manifest("team/app", "huge", media_type, &bytes), 201);
    let facade = Facade::start();
    facade.connect(&registry);
    let repository = format!("{}/team/app", registry.host());
    facade.cli(&["import", &repository, "huge"]).expect_code(1);
    assert!(!artifacts(&facade).contains("sha256:"));
}

#[test]
fn rejects_malformed_references_as_wrong_use() {
    let facade = Facade::start();
    for repository in
        ["", "host.example/UPPER", "host:99999/app", "a//b", "app:tag", "app@sha256:abc", "https://[::"]
    {
        facade.cli(&["tags", repository]).expect_code(2);
        facade.cli(&["import", repository, "v1"]).expect_code(2);
    }
}

#[test]
fn revoked_artifact_is_neither_served_nor_kept_in_the_metadata() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    facade.ok(&["artifact", "revoke", &pushed.artifact()]);
    drop(device.sync());
    assert!(device.delivered().is_empty());
}

/// A registry that answers each path in a certain way: status, content type, body.
fn fake(answers: Vec<(&'static str, u16, &'static str, Vec<u8>)>) -> Server {
    Server::start(move |stream| {
        let Ok((head, _)) = read_request(&stream) else {
            return;
        };
        let path = head.target.split('?').next().unwrap_or_default();
        match answers.iter().find(|(end, ..)| path.ends_with(end)) {
            Some((_, status, kind, body)) => answer(&stream, *status, &[("Content-Type", kind)], body),
            None => answer(&stream, 404, &[], b"{}"),
        }
    })
}

fn connect(facade: &Facade, host: &str) {
    facade.ok(&["connection", "add", host, "--plain-http"]);
}

fn outcomes(report: &Value) -> Vec<(String, String)> {
    let results = report.get("results").and_then(Value::as_array);
    let text = |result: &Value, field: &str| {
        let text = result.get(field).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let results = results.into_iter().flatten();
    results.map(|result| (text(result, "tag"), text(result, "outcome"))).collect()
}

/// A manifest whose one layer has this media type and digest.
fn manifest(layer_type: &str, digest: &str) -> Vec<u8> {
    let config = format!("sha256:{}", "0".repeat(64));
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": layer_type, "digest": digest, "size": 10}],
    })
    .to_string()
    .into_bytes()
}

#[test]
fn says_of_each_tag_what_became_of_it() {
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let short = format!("sha256:{}", "1".repeat(64));
    let long = format!("sha512:{}", "1".repeat(128));
    let registry = fake(vec![
        ("/manifests/good", 200, MANIFEST, manifest(LAYER, &short)),
        ("/manifests/sha512", 200, MANIFEST, manifest(LAYER, &long)),
        ("/manifests/foreign", 200, MANIFEST, manifest(FOREIGN, &short)),
        (
            "/manifests/schema1",
            200,
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            br#"{"schemaVersion": 1}"#.to_vec(),
        ),
        ("/manifests/html", 200, "text/html", b"<html>".to_vec()),
        ("/manifests/huge", 200, MANIFEST, vec![b' '; 5 * 1024 * 1024]),
        ("/manifests/forbidden", 403, "application/json", b"{}".to_vec()),
        ("/manifests/broken", 500, "application/json", b"{}".to_vec()),
        ("/manifests/busy", 429, "application/json", b"{}".to_vec()),
    ]);
    let facade = Facade::start();
    connect(&facade, &registry.authority());
    let repository = format!("{}/team/app", registry.authority());
    let tags = [
        ("good", "imported"),
        ("gone", "missing"),
        ("sha512", "unsupported"),
        ("foreign", "unsupported"),
        ("schema1", "unsupported"),
        ("html", "unsupported"),
        ("huge", "too-large"),
        ("forbidden", "denied"),
        ("broken", "failed"),
        ("busy", "rate-limited"),
    ];
    let names = tags.map(|(tag, _)| tag);
    let run = || facade.cli(&[&["import", &repository], &names[..]].concat()).expect_code(3).json();
    let report = run();
    let expected = tags.map(|(tag, outcome)| (tag.to_owned(), outcome.to_owned()));
    assert_eq!(outcomes(&report), expected);
    for (tag, why) in [(2, "containerd"), (3, "foreign"), (4, "schema 1")] {
        let reason = report["results"][tag]["reason"].to_string();
        assert!(reason.contains(why), "{reason}");
    }
    // Once more: what is done is not done again.
    assert_eq!(run()["results"][0]["outcome"], "unchanged");
}

#[test]
fn a_registry_that_asks_for_a_moment_gets_it() {
    let registry = Registry::open();
    let proxy = Proxy::before(&registry.host());
    let pushed = registry.push("team/app", "v1", &small()).through(&proxy.host());
    let facade = Facade::start();
    facade.connect_as(&registry, &proxy.host());
    let busy = Fault::Status { status: 429, retry_after_seconds: Some(1) };
    proxy.once(When::Path("/manifests/".to_owned()), busy);
    let report = facade.ok(&["import", &pushed.repository, "v1"]);
    assert_eq!(report["results"][0]["outcome"], "imported", "{report}");
}

#[test]
fn moved_tag_is_shown_with_where_it_pointed() {
    let registry = Registry::open();
    let first = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    facade.import(&first);
    let second = registry.push("team/app", "v1", &small());
    let report = facade.ok(&["import", &second.repository, "v1"]);
    let result = &report["results"][0];
    assert_eq!(result["outcome"], "moved");
    assert_eq!(result["moved_from"], first.artifact());
    assert_eq!(result["artifact"], second.artifact());
    // What was revoked is not signed again, whatever tag leads to it.
    facade.ok(&["artifact", "revoke", &second.artifact()]);
    let path = format!("/v2/team/app/manifests/{}", second.digest);
    let manifest = http::request(&registry.host(), "GET", &path, &[("Accept", MANIFEST)], b"").unwrap();
    registry.put_raw_manifest("team/app", "v2", MANIFEST, &manifest.body);
    let refused = facade.cli(&["import", &second.repository, "v2"]).expect_code(1);
    assert_eq!(outcomes(&refused.json()), [("v2".to_owned(), "denied".to_owned())]);
    assert!(refused.text().contains("revoked"), "{}", refused.text());
}

#[test]
fn refuses_what_no_device_it_is_for_can_run() {
    let registry = Registry::open();
    let runs = registry.push("team/app", "v1", &small());
    registry.push("team/app", "mainframe", &ImageBuilder::new().platform("linux/s390x").build());
    let facade = Facade::start();
    facade.connect(&registry);
    let token = facade.ok(&["device", "token", "--device", "board-1", "--group", "kitchen"]);
    let device = Device::new("board-1");
    device.enroll(token["token"].as_str().unwrap()).expect_success();
    facade.deliver(&runs, "board-1");
    device.sync().expect_success();
    for target in [["--for-device", "board-1"], ["--for-group", "kitchen"]] {
        let import = ["import", &runs.repository, "v1", "mainframe"];
        let report = facade.cli(&[&import[..], &target].concat()).expect_code(3);
        let expected = [("v1", "unchanged"), ("mainframe", "no-platform")];
        let expected = expected.map(|(tag, outcome)| (tag.to_owned(), outcome.to_owned()));
        assert_eq!(outcomes(&report.json()), expected);
        assert!(report.text().contains("linux/s390x"), "{}", report.text());
    }
    let report = facade.ok(&["import", &runs.repository, "mainframe"]);
    assert_eq!(report["results"][0]["platforms"], json!(["linux/s390x"]));
    // Signed is signed: naming a device warns.
    let report = facade.ok(&["import", &runs.repository, "mainframe", "--for-device", "board-1"]);
    assert!(report["results"][0]["warning"].to_string().contains("board-1"), "{report}");
    facade.cli(&["import", &runs.repository, "v1", "--for-device", "nobody"]).expect_code(2);
}

#[test]
fn ten_thousand_tags_are_listed_pleasantly() {
    let tags: Vec<String> =
        (0..10_000).map(|number| format!("1.{}.{}", number / 100, number % 100)).collect();
    let hidden = format!("sha256-{}.sig", "a".repeat(64));
    let all: Vec<&str> = tags.iter().map(String::as_str).chain([hidden.as_str()]).collect();
    let page = json!({"name": "team/app", "tags": all}).to_string().into_bytes();
    let registry = fake(vec![("/tags/list", 200, "application/json", page)]);
    let facade = Facade::start();
    connect(&facade, &registry.authority());
    let repository = format!("{}/team/app", registry.authority());
    let begun = std::time::Instant::now();
    let listed = facade.ok(&["tags", &repository, "--limit", "20000"]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    let shown = listed["tags"].as_array().unwrap();
    assert_eq!((shown.len(), &shown[0], &shown[9999]), (10_000, &json!("1.99.99"), &json!("1.0.0")));
    assert_eq!(listed["hidden"], json!([hidden]));
    assert_eq!(listed["clipped"], Value::Null);
    let clipped = facade.ok(&["tags", &repository, "--limit", "100"]);
    assert!(clipped["clipped"].to_string().contains("100 tags"), "{clipped}");
}

/// Whatever else is said: bytes that are not what they were named end with 6.
#[test]
fn pinning_bytes_that_lie_ends_with_6_and_says_what_was_signed() {
    let registry = Registry::open();
    let image = ImageBuilder::new().random_layer(600_000).build();
    let pushed = registry.push("team/app", "v1", &image);
    registry.corrupt(&image.largest_blob(), 1000);
    let facade = Facade::start();
    facade.connect(&registry);
    let told = facade.cli(&["import", &pushed.repository, "v1", "--pin"]).expect_code(6);
    assert!(told.text().contains("signed, but not pinned"), "{}", told.text());
    assert!(!told.text().contains("was not imported"), "{}", told.text());
    facade.cli(&["artifact", "pin", &pushed.artifact()]).expect_code(6);
    assert_eq!(facade.ok(&["artifact", "show", &pushed.artifact()])["pinned"], false);
}

/// What a device is to have is one set: one image that it cannot run holds up the others, so whoever assigns is told.
#[test]
fn assigning_what_a_device_cannot_run_is_warned_of() {
    let registry = Registry::open();
    let other = if harness::image::host_platform().contains("arm64") { "linux/amd64" } else { "linux/arm64" };
    let image = ImageBuilder::new().platform(other).random_layer(1000).build();
    let pushed = registry.push("team/app", "v1", &image);
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    facade.import(&pushed);
    let told = facade.cli(&["assign", &pushed.artifact(), "--device", "board-1"]).expect_success();
    assert!(told.text().contains(&format!("is for {other}, and board-1 is")), "{}", told.text());
}

#[test]
fn pinned_artifact_outlives_the_eviction_of_others() {
    let registry = Registry::open();
    let build = || ImageBuilder::new().random_layer(600_000).build();
    let (kept, other) =
        (registry.push("team/kept", "v1", &build()), registry.push("team/other", "v1", &build()));
    let mut facade = Facade::start_with(&[("FACADE_CACHE_MAX_SIZE_BYTES", "1MiB")]);
    facade.connect(&registry);
    facade.ok(&["import", &kept.repository, "v1", "--pin"]);
    facade.import(&other);
    facade.ok(&["artifact", "pin", &other.artifact()]);
    facade.ok(&["artifact", "unpin", &other.artifact()]);
    // A restart begins with tidying the cache, and remembers what is pinned.
    facade.start_again();
    drop(registry);
    facade.ok(&["artifact", "pin", &kept.artifact()]);
    let gone = |facade: &Facade| facade.cli(&["artifact", "pin", &other.artifact()]).code != 0;
    poll("the other artifact to be evicted", std::time::Duration::from_secs(20), || {
        gone(&facade).then_some(())
    });
    assert_eq!(facade.ok(&["artifact", "show", &kept.artifact()])["pinned"], true);
}

#[test]
fn digest_is_imported_though_no_tag_points_at_it() {
    let registry = Registry::open();
    let old = registry.push("team/app", "v1", &small());
    let new = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    let digest = old.digest.to_string();
    let labelled = format!("v1@{}", new.digest);
    let report = facade.ok(&["import", &old.repository, &digest, &labelled]);
    assert_eq!(report["results"][0]["outcome"], "imported");
    assert_eq!(
        (&report["results"][0]["tag"], &report["results"][1]["tag"]),
        (&json!(digest), &json!(labelled))
    );
    assert_eq!(facade.ok(&["artifact", "show", &old.artifact()])["tag"], "");
    assert_eq!(facade.ok(&["artifact", "show", &new.artifact()])["tag"], "v1");
    // A tag beside a digest says nothing about where the tag points: it was not asked.
    let moved = registry.push("team/app", "v1", &small());
    let report = facade.ok(&["import", &moved.repository, "v1"]);
    assert_eq!(report["results"][0]["outcome"], "imported");
    let device = Device::enrolled("board-1", &facade);
    facade.ok(&["assign", &old.artifact(), "--device", "board-1"]);
    device.sync().expect_success();
    assert_eq!(device.delivered(), [old.digest].into());
    let nowhere = format!("sha256:{}", "0".repeat(64));
    let missing = facade.cli(&["import", &old.repository, &nowhere]).expect_code(1).json();
    assert_eq!(missing["results"][0]["outcome"], "missing");
}

#[test]
fn dry_run_tells_what_would_become_of_it_and_signs_nothing() {
    let registry = Registry::open();
    let first = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    let outcome = || {
        let report =
            facade.cli(&["import", &first.repository, "v1", "missing", "--dry-run"]).expect_code(3).json();
        assert_eq!(report["results"][1]["outcome"], "missing");
        report["results"][0]["outcome"].clone()
    };
    assert_eq!(outcome(), "imported");
    assert!(!artifacts(&facade).contains("sha256:"));
    facade.import(&first);
    assert_eq!(outcome(), "unchanged");
    registry.push("team/app", "v1", &small());
    assert_eq!(outcome(), "moved");
    assert_eq!(facade.ok(&["artifact", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn every_image_of_a_compose_file_and_of_rendered_manifests_is_imported() {
    let registry = Registry::open();
    let (web, api) =
        (registry.push("team/web", "latest", &small()), registry.push("team/api", "v2", &small()));
    let host = registry.host();
    let facade = Facade::start();
    facade.connect(&registry);
    let directory = tempfile::TempDir::new().unwrap();
    let file = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let compose = file(
        "compose.yaml",
        format!(
            "services:\n  web: {{image: '{host}/team/web'}}\n  api: {{image: '{host}/team/api:${{TAG:-v1}}'}}\n  \
             worker: {{image: '{host}/team/api:v2'}}\n  db: {{image: 'not-connected.example/db:${{PG:-16}}'}}\n  \
             own: {{build: .}}\n  odd: {{image: 'app:$WHICH'}}\n"
        ),
    );
    let planned =
        facade.cli(&["import", "--from-file", &compose, "--set", "TAG=v2", "--dry-run"]).expect_code(3);
    assert!(!artifacts(&facade).contains("sha256:"));
    assert!(planned.text().contains("service own is built"), "{}", planned.text());
    let report = facade.cli(&["import", "--from-file", &compose, "--set", "TAG=v2"]).expect_code(3).json();
    let results = report["results"].as_array().unwrap();
    let of = |place: &str| {
        let has = |result: &&Value| result["places"].as_array().unwrap().contains(&json!(place));
        results.iter().find(has).unwrap_or_else(|| panic!("{place}: {report}"))
    };
    assert_eq!(results.len(), 4, "the same image is imported once: {report}");
    assert_eq!(of("service web")["artifact"], web.artifact());
    assert_eq!(
        (&of("service api")["artifact"], &of("service worker")["artifact"]),
        (&json!(api.artifact()), &json!(api.artifact()))
    );
    assert_eq!(of("service db")["outcome"], "failed");
    assert!(
        of("service db")["reason"].as_str().unwrap().contains("facade connection add not-connected.example")
    );
    assert_eq!(of("service odd")["outcome"], "unsupported");
    assert!(of("service odd")["reason"].as_str().unwrap().contains("--set WHICH="));

    // Rendered manifests from standard input, by digest.
    let manifests = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: shop}}\nspec:\n  template:\n    spec:\n      containers:\n      \
         - image: {}\n---\n# empty\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  containers:\n  - image: {host}/team/web:latest\n",
        api.artifact()
    );
    let report =
        facade.cli_with_input(&["import", "--from-file", "-"], manifests.as_bytes()).expect_success().json();
    assert_eq!(report["results"][0]["places"], json!(["Deployment/shop"]));
    assert!(
        report["results"].as_array().unwrap().iter().all(|result| result["outcome"] == "unchanged"),
        "{report}"
    );

    // Before anything is asked: what is no such file, and how a template is rendered.
    facade.cli(&["import", "--from-file", "/nowhere"]).expect_code(2);
    let template = file("template.yaml", "image: {{ .Values.image }}\n".to_owned());
    let refused = facade.cli(&["import", "--from-file", &template]).expect_code(2);
    assert!(refused.text().contains("helm template"), "{}", refused.text());
    facade.cli(&["import", "--from-file", &compose, "nginx", "1"]).expect_code(2);
    facade.cli(&["import", "--from-file", &compose, "--set", "TAG"]).expect_code(2);
}

/// Only luck would choose one, and devices do not leave it to luck: said at import, not on every board.
#[test]
fn rejects_an_index_whose_manifests_do_not_say_what_they_are_for() {
    let registry = Registry::open();
    let [one, two] = [10_000, 20_000].map(|size| ImageBuilder::new().random_layer(size).build());
    let silent = [&one, &two].map(|image| {
        registry.push("team/app", "part", image);
        image.root.descriptor()
    });
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": silent}).to_string();
    assert_eq!(registry.put_raw_manifest("team/app", "silent", media_type, index.as_bytes()), 201);
    let facade = Facade::start();
    facade.connect(&registry);
    let repository = format!("{}/team/app", registry.host());
    let refused = facade.cli(&["import", &repository, "silent"]).expect_code(1).json();
    assert_eq!(refused["results"][0]["outcome"], "no-platform", "{refused}");
    let reason = refused["results"][0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("do not say their platform"), "{reason}");
    assert!(!artifacts(&facade).contains("sha256:"));
}

#[test]
fn rejects_an_index_without_manifests_as_for_no_platform() {
    let registry = Registry::open();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let empty = format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[]}}"#);
    assert_eq!(registry.put_raw_manifest("team/app", "empty", media_type, empty.as_bytes()), 201);
    let facade = Facade::start();
    facade.connect(&registry);
    let repository = format!("{}/team/app", registry.host());
    let refused = facade.cli(&["import", &repository, "empty"]).expect_code(1).json();
    assert_eq!(refused["results"][0]["outcome"], "no-platform", "{refused}");
    assert!(!artifacts(&facade).contains("sha256:"));
}
