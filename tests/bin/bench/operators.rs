//! `bench operators`: how long the operator door takes to answer while a fleet of 20,000 devices and 1,000 connected
//! registries are there, and as many devices as the machine allows hold a connection over TLS and wait for news.
//!
//! The fleet enrolls as any fleet does, with keys of its own and real certificates, on the facade's own database but not
//! through its door, to be there within minutes. From then on everything is asked of the running program.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use facade::api::enroll::{Est, Policy, Request};
use facade::catalog::devices::{Devices, TokenRequest};
use facade::clock::Clock;
use facade::init::DataDir;
use facade::store::sled::SledStore;
use harness::identity::Browser;
use harness::{Facade, Image, Registry, http};
use jiff::SignedDuration;
use pki::x509::{PrivateKey, pkcs7};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::load::{Connection, Dialer};
use crate::measure::anonymous_bytes;
use crate::say;

const DEVICES: usize = 20_000;
const GROUPS: usize = 20;
const CONNECTIONS: usize = 1_000;
/// Files that the facade and the load need besides a connection for each device.
const OTHER_FILES: usize = 1_500;
/// Devices that enroll, or connect, at a time.
const AT_A_TIME: usize = 64;
const SAMPLES: usize = 20;
const MAX_TIME: Duration = Duration::from_millis(100);

/// What people look at: a name, and a path at the operator door.
const ASKED: [(&str, &str); 15] = [
    ("facade status", "/api/v1/status"),
    ("devices, first page", "/api/v1/devices?limit=100"),
    ("devices, a page of 1000", "/api/v1/devices?limit=1000"),
    ("devices of a group", "/api/v1/devices?limit=100&group=hall-7"),
    (
        "devices by selector",
        "/api/v1/devices?limit=100&selector=group%20in%20%28hall-7%2Chall-8%29%2Carch%3Damd64",
    ),
    ("devices that run something", "/api/v1/devices?limit=100&running=ARTIFACT"),
    ("a device that nobody has", "/api/v1/devices/hall-7-nobody"),
    ("connections, first page", "/api/v1/connections?limit=100"),
    ("assignments of an artifact", "/api/v1/assignments?limit=100&artifact=ARTIFACT"),
    ("audit log, newest", "/api/v1/audit?order=newest&limit=100"),
    ("metrics", "/metrics"),
    ("console: overview", "/console"),
    ("console: devices", "/console/devices"),
    ("console: artifact", "/console/artifact?name=ARTIFACT"),
    ("console: rollout", "/console/rollout?name=bench"),
];

/// One device: its certificate chain and key, DER.
struct Member {
    id: String,
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
}

/// Fills a facade and measures.
pub(crate) fn run(devices: Option<&String>) -> ExitCode {
    let wanted = devices.and_then(|text| text.parse().ok()).unwrap_or(DEVICES);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let registry = Registry::open();
    let app = registry.push("bench/app", "v1", &Image::hello("bench"));
    let mut facade = Facade::start_with(&[
        ("FACADE_MAX_CONNECTIONS_PER_ADDRESS", "100000"),
        ("FACADE_WAIT_TIMEOUT", "10m"),
    ]);
    facade.connect(&registry);
    facade.import(&app);
    let admin = Admin::of(&facade);
    let begun = Instant::now();
    for number in 0..CONNECTIONS {
        admin.post(
            "/api/v1/connections",
            &format!(r#"{{"host":"r{number}.example","provider":"anonymous"}}"#),
        );
    }
    facade.stop();
    let fleet = runtime.block_on(enroll(&facade.data_dir(), wanted));
    say(&format!(
        "{CONNECTIONS} connections and {} devices are there after {} s",
        fleet.len(),
        begun.elapsed().as_secs()
    ));
    let begun = Instant::now();
    facade.start_again();
    say(&format!("the facade is ready after {} ms", begun.elapsed().as_millis()));
    for group in 0..GROUPS {
        let body = format!(r#"{{"artifacts":["{}"],"group":"hall-{group}"}}"#, app.artifact());
        admin.post("/api/v1/assignments", &body);
    }
    let before = anonymous_bytes(&[facade.id()]);
    let held = runtime.block_on(connect(&facade, &fleet, &app.artifact()));
    let grown = anonymous_bytes(&[facade.id()]).saturating_sub(before);
    say(&format!(
        "{} devices hold a connection over TLS and wait; for each the facade has {} kB, and {} MB besides",
        held.len(),
        grown / 1_000 / held.len() as u64,
        before / 1_000_000,
    ));
    let rollout =
        format!(r#"{{"name":"bench","artifacts":["{}"],"to":"all","waves":"1,10%,100%"}}"#, app.artifact());
    admin.post("/api/v1/rollouts", &rollout);
    admin.post("/api/v1/rollouts/bench/start", "");
    let within = measure(&facade, &admin, &app.artifact());
    drop(held);
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Somebody with the first token.
struct Admin {
    authority: String,
    bearer: String,
}

impl Admin {
    fn of(facade: &Facade) -> Self {
        let token = std::fs::read_to_string(facade.admin_token_file()).expect("the token");
        Self { authority: facade.operator_authority(), bearer: format!("Bearer {}", token.trim()) }
    }

    fn post(&self, path: &str, body: &str) {
        let headers = [("authorization", self.bearer.as_str()), ("content-type", "application/json")];
        let answer = http::request(&self.authority, "POST", path, &headers, body.as_bytes()).expect("ask");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }

    fn get(&self, path: &str) {
        let headers = [("authorization", self.bearer.as_str())];
        let answer = http::request(&self.authority, "GET", path, &headers, b"").expect("ask");
        assert!(answer.status == 200 || path.ends_with("nobody"), "{path}: {}", answer.text());
    }
}

/// Enrolls a fleet on a database that nobody else has open.
async fn enroll(data_dir: &Path, count: usize) -> Vec<Member> {
    let (sled, _) =
        SledStore::open(&data_dir.join("store"), &data_dir.join("dumps")).expect("open the store");
    let data = DataDir::open(data_dir, None).expect("open the directory");
    let devices = Devices::new(Arc::new(sled.clone()));
    let policy = Policy {
        trust_domain: data.trust_domain,
        lifetime: SignedDuration::from_hours(720),
        grace: SignedDuration::from_hours(720),
    };
    let est = Arc::new(Est::new(Arc::new(data.authority), Vec::new(), devices.clone(), policy));
    let now = Clock::system().now();
    let mut fleet = Vec::with_capacity(count);
    for group in 0..GROUPS {
        let share = count / GROUPS;
        let mut tasks = tokio::task::JoinSet::new();
        for part in 0..AT_A_TIME {
            // A token for each task: nobody waits for another's use of it.
            let uses = share / AT_A_TIME + usize::from(part < share % AT_A_TIME);
            let (est, devices) = (Arc::clone(&est), devices.clone());
            // As if from everywhere: one address has an allowance of failures, and those under way count as such.
            let address =
                Ipv4Addr::from(u32::try_from(group * AT_A_TIME + part + 1).expect("a small number"));
            tasks.spawn(async move {
                if uses == 0 {
                    return Vec::new();
                }
                let request = TokenRequest {
                    device: None,
                    group: Some(format!("hall-{group}").parse().expect("a group")),
                    expires_at: now + SignedDuration::from_hours(1),
                    uses: u32::try_from(uses).expect("a small number"),
                    approval: false,
                    created_by: "bench".to_owned(),
                };
                let (token, secret) = devices.mint(request, now).await.expect("a token");
                let login = format!("{}:{}", token.id, *secret.expose());
                let login = format!("Basic {}", BASE64.encode(login.as_bytes()));
                let mut members = Vec::new();
                for _ in 0..uses {
                    let key = PrivateKey::generate().expect("a key");
                    let body = BASE64.encode(&key.request().expect("a request"));
                    let asked = Request { content_type: Some("application/pkcs10"), body: body.as_bytes() };
                    let answer = est.enroll(address.into(), Some(&login), asked, now).await;
                    assert!(answer.status.is_success(), "{:?}", String::from_utf8_lossy(&answer.body));
                    let text: Vec<u8> =
                        answer.body.into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
                    let message = BASE64.decode(&text).expect("base64");
                    let chain = pkcs7::decode(&message).expect("certificates");
                    let id = answer.changed.expect("a device").id.to_string();
                    members.push(Member { id, chain, key: key.to_pkcs8().to_vec() });
                }
                members
            });
        }
        while let Some(members) = tasks.join_next().await {
            fleet.extend(members.expect("enroll"));
        }
    }
    fleet
}

/// Has devices connect, report that they run what they should, and wait for news.
async fn connect(facade: &Facade, fleet: &[Member], artifact: &str) -> Vec<Connection> {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES);
    if most < fleet.len() {
        say(&format!("this machine allows a process {most} connections"));
    }
    let port: u16 =
        facade.device_authority().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let ca = facade.ca_file();
    let mut held = Vec::new();
    for some in fleet.chunks(AT_A_TIME) {
        if held.len() + some.len() > most {
            break;
        }
        let mut tasks = tokio::task::JoinSet::new();
        for member in some {
            let chain: Vec<CertificateDer<'static>> =
                member.chain.iter().cloned().map(CertificateDer::from).collect();
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(member.key.clone()));
            let dialer = Dialer::with_identity(port, &ca, chain, key);
            let report = serde_json::json!({
                "version": 1, "device": member.id, "counter": 1, "boot_id": "0b0c2f3e-5d4a-4a0b-9a37-8d5a3b1d8f11",
                "agent_version": "0.1.0", "platform": {"os": "linux", "architecture": "amd64"}, "state": "idle",
                "running": [{"artifact": artifact, "since": "2026-11-20T12:00:00Z"}],
            });
            tasks.spawn(async move {
                let mut connection = dialer.dial().await.expect("connect");
                connection.put("/v1/report", report.to_string().as_bytes()).await.expect("report");
                let version = connection.get("/v1/wait?since=0", false).await.expect("ask for news");
                assert!(version.bytes > 0, "a device has something to fetch");
                connection.ask("/v1/wait?since=1").await.expect("wait for news");
                connection.rest();
                connection
            });
        }
        while let Some(connection) = tasks.join_next().await {
            held.push(connection.expect("a device"));
        }
    }
    held
}

/// Asks for each thing some times, one after the other, and says how long it took.
fn measure(facade: &Facade, admin: &Admin, artifact: &str) -> bool {
    let mut browser = Browser::at(facade.operator_authority());
    let token = std::fs::read_to_string(facade.admin_token_file()).expect("the token");
    browser.post("/console/sign-in", &format!("token={}", token.trim()));
    let encoded = artifact.replace('/', "%2F").replace('@', "%40").replace(':', "%3A");
    let mut within = true;
    for (name, path) in ASKED {
        let path = path.replace("ARTIFACT", &encoded);
        let mut times: Vec<Duration> = (0..SAMPLES)
            .map(|_| {
                let begun = Instant::now();
                if path.starts_with("/console") {
                    let answer = browser.get(&path);
                    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
                } else {
                    admin.get(&path);
                }
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        let middle = times.get(times.len() / 2).copied().unwrap_or_default();
        let slowest = times.last().copied().unwrap_or_default();
        let good = middle <= MAX_TIME;
        within &= good;
        let word = if good { "within" } else { "OVER" };
        let (middle, slowest) = (middle.as_micros(), slowest.as_micros());
        say(&format!(
            "{name:<28} {middle:>7} µs, at most {slowest:>7} µs  {word} {} ms",
            MAX_TIME.as_millis()
        ));
    }
    within
}
