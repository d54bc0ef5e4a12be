//! Who pulled what, for whoever has to answer for it.

#![expect(clippy::unwrap_used, reason = "a story stops where its scene cannot be set")]

use harness::{Device, DeviceClient, Facade, Image, ImageBuilder, Proxy, Registry, When};
use harness::{Fault, http};
use serde_json::Value;

fn pulls(facade: &Facade, more: &[&str]) -> Vec<Value> {
    let found = facade.ok(&[&["pulls", "--limit", "500"], more].concat());
    found.as_array().unwrap().clone()
}

#[test]
fn each_pull_is_written_down_with_where_it_came_from_and_how_it_ended() {
    let mut facade = Facade::start();
    let registry = Registry::open();
    let proxy = Proxy::before(&registry.host());
    let app = registry.push("team/app", "v1", &Image::hello("one")).through(&proxy.host());
    let image = ImageBuilder::new().random_layer(20_000).build();
    let other = registry.push("team/other", "v1", &image).through(&proxy.host());
    facade.connect_as(&registry, &proxy.host());
    let (first, second) = (Device::enrolled("board-1", &facade), Device::enrolled("board-2", &facade));
    facade.deliver(&app, "board-1");
    facade.deliver(&app, "board-2");
    first.sync().expect_success();
    second.sync().expect_success();
    let upstream = pulls(&facade, &["--device", "board-1"]);
    assert!(
        upstream.iter().any(|pull| pull["source"] == "upstream" && pull["outcome"] == "served"),
        "{upstream:?}"
    );
    let cached = pulls(&facade, &["--device", "board-2", "--repository", "team/app"]);
    assert!(!cached.is_empty() && cached.iter().all(|pull| pull["source"] == "cache"), "{cached:?}");
    let sent: u64 = cached.iter().map(|pull| pull["size_bytes"].as_u64().unwrap()).sum();
    assert!(sent > 0 && cached.iter().all(|pull| pull["outcome"] == "served"), "{cached:?}");

    // What it may not have, and what no registry has any more, is written down as well.
    let client = DeviceClient::new(&facade.device_url(), &first.identity());
    let blob = format!("/v2/{}/blobs/{}", other.repository, image.largest_blob());
    assert_eq!(client.get(&blob).status, 403);
    facade.deliver(&other, "board-1");
    proxy
        .always(When::Digest(image.largest_blob()), Fault::Status { status: 404, retry_after_seconds: None });
    assert!(client.get(&blob).status >= 400);
    let digest = image.largest_blob().to_string();
    let outcomes: Vec<Value> = pulls(&facade, &["--digest", &digest[..20]])
        .into_iter()
        .map(|pull| pull["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["failed", "refused"]);
    assert_eq!(pulls(&facade, &["--outcome", "refused", "--since", "1h"]).len(), 1);

    // It outlives the facade, and nobody without a certificate writes in it.
    let before = pulls(&facade, &[]).len();
    facade.stop();
    facade.start_again();
    let stranger = DeviceClient::anonymous(&facade.device_url(), &facade.ca_file());
    stranger.get(&blob);
    assert_eq!(pulls(&facade, &[]).len(), before);
    let answer = http::get(&facade.operator_authority(), "/api/v1/pulls").unwrap();
    assert_eq!(answer.status, 401);
}
