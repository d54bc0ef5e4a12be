//! The real `docker-registry`, with no, Basic and token authentication.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use facade::upstream::{BrowseLimits, Outcome, Registry, Step, UpstreamError};
use futures_util::future::join_all;
use pki::digest::Digest;
use pki::oci::MediaType;
use rcgen::{CertificateParams, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;
use tempfile::TempDir;

use crate::fake::{Fake, Reply, request};
use crate::{anonymous, name, with_password};

const LAYER: &[u8] = b"a layer of bytes";
const BASIC: &str = "Basic dTpwdw==";

struct DockerRegistry {
    address: SocketAddr,
    process: Child,
    _directory: TempDir,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(auth: impl FnOnce(&TempDir) -> String) -> DockerRegistry {
    let directory = TempDir::new().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let auth = auth(&directory);
    let root = directory.path().join("registry");
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '{address}'}}\n{auth}",
        root.display()
    );
    let file = directory.path().join("config.yml");
    fs::write(&file, config).unwrap();
    let process = Command::new("docker-registry")
        .arg("serve")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry 2.8 must be installed (Debian package docker-registry)");
    let registry = DockerRegistry { address, process, _directory: directory };
    for _ in 0..200 {
        if TcpStream::connect(address).is_ok() {
            return registry;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("docker-registry does not listen on {address}");
}

/// Pushes one image under several tags; returns the digest of its manifest.
fn push(address: SocketAddr, authorization: &str, repository: &str, tags: &[&str]) -> Digest {
    let auth = ("Authorization", authorization);
    for blob in [LAYER, b"{}"] {
        let (status, answer) =
            request(address, "POST", &format!("/v2/{repository}/blobs/uploads/"), &[auth], b"");
        assert_eq!(status, 202, "{answer}");
        let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().trim();
        let path = location.split_once(&address.to_string()).map_or(location, |(_, path)| path);
        let path = format!("{path}&digest={}", Digest::sha256(blob));
        let (status, answer) = request(address, "PUT", &path, &[auth], blob);
        assert_eq!(status, 201, "{answer}");
    }
    let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", b"{}"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", LAYER)],
    })
    .to_string();
    for tag in tags {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let headers = [auth, ("Content-Type", MediaType::OCI_MANIFEST)];
        let (status, answer) = request(address, "PUT", &path, &headers, manifest.as_bytes());
        assert_eq!(status, 201, "{answer}");
    }
    Digest::sha256(manifest.as_bytes())
}

/// Everything that an import and a pull do.
async fn read_all(registry: &Registry, digest: Digest) {
    let repository = name("team/app");
    let served = registry.resolve(&repository, &"1.10".parse().unwrap()).await.unwrap();
    assert_eq!((served.digest, served.media_type.as_str()), (digest, MediaType::OCI_MANIFEST));
    assert_eq!(registry.manifest(&repository, digest).await.unwrap(), served);
    for from in [0, 3] {
        let mut blob = registry.blob(&repository, Digest::sha256(LAYER), from).await.unwrap();
        assert_eq!((blob.starts_at, blob.total), (from, Some(LAYER.len() as u64)));
        let mut bytes = Vec::new();
        while let Some(piece) = blob.next().await.unwrap() {
            bytes.extend_from_slice(&piece);
        }
        assert_eq!(bytes, LAYER[usize::try_from(from).unwrap()..]);
    }
    let list = registry.tags(&repository, &BrowseLimits::default()).await.unwrap();
    let names: Vec<_> = list.tags.iter().map(ToString::to_string).collect();
    assert_eq!((names.as_slice(), list.clipped), (&["latest", "1.10", "1.9"].map(String::from)[..], None));
    let missing = registry.manifest(&repository, Digest::sha256(b"missing")).await;
    assert!(matches!(missing, Err(UpstreamError::NotFound { .. })), "{missing:?}");
}

const TAGS: [&str; 3] = ["1.9", "1.10", "latest"];

#[tokio::test]
async fn reads_an_open_registry() {
    let docker = start(|_| String::new());
    let digest = push(docker.address, "", "team/app", &TAGS);
    let registry = anonymous(docker.address);
    read_all(&registry, digest).await;
    let report = registry.check(Some(&name("team/app"))).await;
    assert!(report.ok, "{report:?}");
    let nowhere = registry.check(Some(&name("no/where"))).await;
    assert!(!nowhere.ok && nowhere.verdict.starts_with("permission: "), "{nowhere:?}");
}

#[tokio::test]
async fn reads_a_registry_with_basic_authentication() {
    let docker = start(|directory| {
        let file = directory.path().join("htpasswd");
        let made =
            Command::new("htpasswd").args(["-Bbn", "u", "pw"]).output().expect("htpasswd must be installed");
        fs::write(&file, made.stdout).unwrap();
        format!("auth:\n  htpasswd: {{realm: x, path: {}}}\n", file.display())
    });
    let digest = push(docker.address, BASIC, "team/app", &TAGS);
    let registry = with_password(docker.address, "u", "pw");
    assert!(registry.check(None).await.ok);
    read_all(&registry, digest).await;

    let wrong = with_password(docker.address, "u", "wrong");
    let report = wrong.check(None).await;
    assert!(!report.ok && report.verdict.starts_with("credentials: "), "{report:?}");
    assert_eq!(report.steps.last().unwrap().step, Step::Credentials);
    assert_eq!(report.steps.last().unwrap().outcome, Outcome::Failed);
    let nobody = anonymous(docker.address).manifest(&name("team/app"), digest).await;
    assert!(matches!(nobody, Err(UpstreamError::Unauthenticated { .. })), "{nobody:?}");
}

/// A token server as the registry's documentation describes it: ES256, certificate in `x5c`.
struct TokenServer {
    fake: Fake,
    certificate_pem: String,
    issued: Arc<AtomicUsize>,
}

fn token_server() -> TokenServer {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["token server".into()]).unwrap().self_signed(&key).unwrap();
    let x5c = BASE64.encode(certificate.der());
    let signer = EcdsaKeyPair::from_pkcs8(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        &key.serialize_der(),
        &SystemRandom::new(),
    );
    let signer = signer.unwrap();
    let issued = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&issued);
    let fake = Fake::start(move |seen| {
        if seen.header("authorization").is_some_and(|given| given != BASIC) {
            return Reply::new(401, &[], r#"{"details":"incorrect username or password"}"#);
        }
        count.fetch_add(1, Ordering::SeqCst);
        let write = seen.path.contains("push");
        let scope = seen.path.split(['?', '&']).find_map(|pair| pair.strip_prefix("scope="));
        let access =
            match scope.map(|scope| scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",")) {
                Some(scope) => {
                    let name = scope.split(':').nth(1).unwrap().to_owned();
                    let actions = if write { json!(["pull", "push"]) } else { json!(["pull"]) };
                    json!([{"type": "repository", "name": name, "actions": actions}])
                }
                None => json!([]),
            };
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(UNIX_EPOCH.elapsed().unwrap()).as_secs();
        let part = |value: serde_json::Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let claims = format!(
            "{}.{}",
            part(json!({"typ": "JWT", "alg": "ES256", "x5c": [x5c]})),
            part(json!({
                "iss": "issuer", "sub": "u", "aud": "registry", "exp": now + 300, "nbf": now - 10, "iat": now,
                "jti": now.to_string(), "access": access,
            }))
        );
        let signature = signer.sign(&SystemRandom::new(), claims.as_bytes()).unwrap();
        let token = format!("{claims}.{}", BASE64URL_NOPAD.encode(signature.as_ref()));
        Reply::ok(json!({"token": token, "expires_in": 300}).to_string())
    });
    TokenServer { fake, certificate_pem: certificate.pem(), issued }
}

#[tokio::test]
async fn reads_a_registry_with_token_authentication() {
    let tokens = token_server();
    let realm = tokens.fake.url("/token");
    let docker = start(|directory| {
        let file = directory.path().join("token.pem");
        fs::write(&file, &tokens.certificate_pem).unwrap();
        format!(
            "auth:\n  token: {{realm: '{realm}', service: registry, issuer: issuer, rootcertbundle: {}}}\n",
            file.display()
        )
    });
    let path = "/token?service=registry&scope=repository%3Ateam%2Fapp%3Apull%2Cpush";
    let (_, answer) = request(tokens.fake.address, "GET", path, &[("Connection", "close")], b"");
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let token: serde_json::Value = serde_json::from_str(body).unwrap();
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let digest = push(docker.address, &bearer, "team/app", &TAGS);

    let before = tokens.issued.load(Ordering::SeqCst);
    let registry = with_password(docker.address, "u", "pw");
    let repository = name("team/app");
    for served in join_all((0..50).map(|_| registry.manifest(&repository, digest))).await {
        served.unwrap();
    }
    assert_eq!(tokens.issued.load(Ordering::SeqCst), before + 1);
    read_all(&registry, digest).await;
    assert!(registry.check(Some(&name("team/app"))).await.ok);
    read_all(&anonymous(docker.address), digest).await;

    let report = with_password(docker.address, "u", "wrong").check(None).await;
    assert!(report.verdict.starts_with("credentials: "), "{report:?}");
    assert!(report.verdict.contains("incorrect username or password"), "{report:?}");
}
