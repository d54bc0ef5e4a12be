//! What devices get: every shape of request that clients of registries send.

use http::{Method, StatusCode};
use pki::digest::Digest;

use crate::client::Device;
use crate::rig::{REPOSITORY, Rig, blob, noise};

#[tokio::test]
async fn serves_a_manifest_and_a_blob_over_both_protocols() {
    let rig = Rig::start().await;
    let layer = noise(300_000);
    let closure = rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    let manifest = format!("/v2/{REPOSITORY}/manifests/{}", closure.root.digest);
    for mut device in [
        Device::http1(&rig, Some(&credential)).await,
        Device::http2(&rig, Some(&credential)).await,
    ] {
        assert_eq!(device.get("/v2/").await.status, StatusCode::OK);
        let answer = device.get(&manifest).await;
        assert_eq!(
            (answer.status, answer.text()),
            (StatusCode::OK, "{\"layers\":1}".into())
        );
        assert_eq!(
            answer.header("content-type"),
            "application/vnd.oci.image.manifest.v1+json"
        );
        assert_eq!(
            answer.header("docker-content-digest"),
            closure.root.digest.to_string()
        );
        let answer = device.get(&blob(&layer)).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, layer.len()));
        assert!(answer.body == layer && !answer.cut);
        for (name, value) in [
            ("content-length", "300000"),
            ("accept-ranges", "bytes"),
            ("cache-control", "private, max-age=31536000, immutable"),
            ("etag", &format!("\"{}\"", Digest::sha256(&layer))),
        ] {
            assert_eq!(answer.header(name), value);
        }
        assert!(!answer.header("x-request-id").is_empty());
    }
    assert_eq!(rig.script.gets(), 2);
    assert_eq!(rig.metrics.cache_hits.get(), 2);
}

#[tokio::test]
async fn head_gets_the_head_of_every_answer_and_no_body_over_both_protocols() {
    let rig = Rig::start().await;
    let layer = noise(1000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    for mut device in [
        Device::http1(&rig, Some(&credential)).await,
        Device::http2(&rig, Some(&credential)).await,
    ] {
        for path in [
            "/v2/".to_owned(),
            blob(&layer),
            format!("/v2/{REPOSITORY}/manifests/v1"),
            blob(b"of somebody else"),
            "/v2/_catalog".to_owned(),
            "/nothing".to_owned(),
        ] {
            let get = device.get(&path).await;
            let head = device.send(Method::HEAD, &path, &[]).await;
            assert!(head.body.is_empty() && !head.cut, "{path}");
            assert_eq!(head.status, get.status, "{path}");
            for name in ["content-type", "content-length", "docker-content-digest"] {
                assert_eq!(head.header(name), get.header(name), "{path}: {name}");
            }
        }
    }
}

#[tokio::test]
async fn containerds_mirror_convention_works_and_is_echoed() {
    let rig = Rig::start().await;
    let layer = noise(1000);
    rig.assign(&["board"], &[&layer]);
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    let path = format!(
        "/v2/team/app/blobs/{}?ns=registry.example.com",
        Digest::sha256(&layer)
    );
    let answer = device.get(&path).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("oci-namespace"), "registry.example.com");
    assert_eq!(answer.body, layer);
    assert_eq!(
        device
            .get(&path.replace("registry.example", "other.example"))
            .await
            .status,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test]
async fn a_head_tells_everything_and_asks_nobody() {
    let rig = Rig::start().await;
    let layer = noise(20_000_000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    for mut device in [
        Device::http1(&rig, Some(&credential)).await,
        Device::http2(&rig, Some(&credential)).await,
    ] {
        let answer = device.send(Method::HEAD, &blob(&layer), &[]).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(
            (answer.header("content-length"), answer.body.len()),
            ("20000000", 0)
        );
    }
    assert_eq!(rig.script.gets(), 0);
}

#[tokio::test]
async fn every_shape_of_a_single_range_is_honoured() {
    let rig = Rig::start().await;
    let layer = noise(200_000);
    rig.assign(&["board"], &[&layer]);
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    for (range, start, end) in [
        ("bytes=0-", 0, 200_000),
        ("bytes=5-9", 5, 10),
        ("bytes=199999-", 199_999, 200_000),
        ("bytes=-7", 199_993, 200_000),
        ("bytes=100000-900000", 100_000, 200_000),
    ] {
        let answer = device.range(&blob(&layer), range).await;
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(
            answer.header("content-range"),
            format!("bytes {start}-{}/200000", end - 1)
        );
        assert!(answer.body == layer[start..end], "{range}");
    }
    let answer = device.range(&blob(&layer), "bytes=200000-").await;
    assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(answer.header("content-range"), "bytes */200000");
    let answer = device.range(&blob(&layer), "bytes=0-1,5-6").await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 200_000));
    let stale = [("range", "bytes=5-"), ("if-range", "\"other\"")];
    assert_eq!(
        device.send(Method::GET, &blob(&layer), &stale).await.body.len(),
        200_000
    );
    let etag = format!("\"{}\"", Digest::sha256(&layer));
    let fresh = [("range", "bytes=5-"), ("if-range", etag.as_str())];
    assert_eq!(
        device.send(Method::GET, &blob(&layer), &fresh).await.body.len(),
        199_995
    );
    let known = [("if-none-match", etag.as_str())];
    assert_eq!(
        device.send(Method::GET, &blob(&layer), &known).await.status,
        StatusCode::NOT_MODIFIED
    );
}

#[tokio::test]
async fn refusals_are_oci_errors_with_a_readable_reason() {
    let rig = Rig::start().await;
    let layer = noise(1000);
    let closure = rig.assign(&["board"], &[&layer]);
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    let other = Digest::sha256(b"never assigned");
    let root = closure.root.digest;
    for (method, path, status, code) in [
        (
            Method::GET,
            format!("/v2/{REPOSITORY}/manifests/latest"),
            400,
            "UNSUPPORTED",
        ),
        (
            Method::GET,
            format!("/v2/{REPOSITORY}/manifests/sha256:abc"),
            400,
            "DIGEST_INVALID",
        ),
        (
            Method::GET,
            format!("/v2/{REPOSITORY}/../../blobs/{other}"),
            400,
            "NAME_INVALID",
        ),
        (
            Method::GET,
            format!("/v2/{REPOSITORY}/blobs/{other}"),
            403,
            "DENIED",
        ),
        (
            Method::GET,
            format!("/v2/not.connected.example/x/blobs/{other}"),
            403,
            "DENIED",
        ),
        (
            Method::GET,
            format!("/v2/{REPOSITORY}/blobs/{root}"),
            404,
            "BLOB_UNKNOWN",
        ),
        (
            Method::GET,
            format!("/v2/{REPOSITORY}/tags/list"),
            404,
            "UNSUPPORTED",
        ),
        (
            Method::PUT,
            format!("/v2/{REPOSITORY}/manifests/{root}"),
            405,
            "UNSUPPORTED",
        ),
        (
            Method::DELETE,
            format!("/v2/{REPOSITORY}/blobs/{root}"),
            405,
            "UNSUPPORTED",
        ),
    ] {
        let response = device.begin(method, &path, &[]).await.unwrap();
        let reason = response.extensions().get::<hyper::ext::ReasonPhrase>().cloned();
        let answer = crate::client::finish(response).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        let error: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(error["errors"][0]["code"], code, "{path}");
        let reason = String::from_utf8(reason.unwrap().as_bytes().to_vec()).unwrap();
        assert!(reason.starts_with(code), "{reason}");
        assert_eq!(answer.header("www-authenticate"), "");
    }
    assert_eq!(rig.script.gets(), 0);
}

#[tokio::test]
async fn what_is_not_content_goes_to_the_handler_with_its_device() {
    let rig = Rig::start().await;
    rig.assign(&["board"], &[]);
    let mut device = Device::http2(&rig, Some(&rig.fleet.device("board"))).await;
    let answer = device.get("/v1/wait?since=3").await;
    assert_eq!(answer.text(), "Wait { since: 3 } Some(\"board\")");
    let mut nobody = Device::http1(&rig, None).await;
    assert_eq!(
        nobody.get("/.well-known/est/cacerts").await.text(),
        "CaCerts None"
    );
    let answer = nobody.get("/v1/wait").await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (StatusCode::FORBIDDEN, "application/problem+json")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_speaks_http_2_to_it() {
    let rig = Rig::start().await;
    let layer = noise(10_000_000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    let directory = tempfile::tempdir().unwrap();
    let pem = |kind: &str, der: &[u8]| {
        format!(
            "-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n",
            data_encoding::BASE64.encode(der)
        )
    };
    let write = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ca = write("ca.pem", pem("CERTIFICATE", &rig.fleet.root()));
    let cert = write(
        "cert.pem",
        credential
            .chain
            .iter()
            .map(|der| pem("CERTIFICATE", der))
            .collect(),
    );
    let key = write("key.pem", pem("PRIVATE KEY", credential.key.secret_der()));
    let (file, port) = (directory.path().join("out"), rig.address.port());
    for protocol in ["--http2", "--http1.1"] {
        let run = std::process::Command::new("curl")
            .args([
                "-sS",
                "--fail",
                protocol,
                "--resolve",
                &format!("localhost:{port}:127.0.0.1"),
                "-o",
            ])
            .arg(&file)
            .arg("--cacert")
            .arg(&ca)
            .arg("--cert")
            .arg(&cert)
            .arg("--key")
            .arg(&key)
            .args([
                "-w",
                "%{http_version}",
                &format!("https://localhost:{port}{}", blob(&layer)),
            ])
            .output();
        let Ok(output) = run else {
            eprintln!("no curl here: skipped");
            return;
        };
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let version = String::from_utf8(output.stdout).unwrap();
        assert_eq!(version, if protocol == "--http2" { "2" } else { "1.1" });
        assert!(std::fs::read(&file).unwrap() == layer);
    }
}
