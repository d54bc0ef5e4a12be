//! A device's identity over the years: renewal, expiry, copies, revocation, and power cuts in between.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::process::{COMMAND, Outcome, as_root, clock_at};
use harness::{Device, DeviceClient, Facade, Fault, ImageBuilder, Process, Proxy, Registry, When, poll};
use serde_json::Value;
use tempfile::TempDir;

/// Certificates this short are due from the start: they begin a minute before they are issued.
pub(crate) const ALWAYS_DUE: (&str, &str) = ("FACADE_DEVICE_CERTIFICATE_LIFETIME", "25s");

pub(crate) fn serial(certificate: &Path) -> String {
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-serial", "-in"]).arg(certificate);
    Outcome::of(&mut openssl, b"").expect_success().stdout
}

pub(crate) fn standing(facade: &Facade, device: &str) -> String {
    let shown = facade.ok(&["device", "show", device]);
    let standing = shown.get("standing").and_then(Value::as_str);
    standing.unwrap_or_default().to_owned()
}

#[test]
fn renews_with_a_new_key_while_the_old_one_still_works() {
    let facade = Facade::start_with(&[ALWAYS_DUE]);
    let device = Device::enrolled("board-1", &facade);
    let identity = device.identity();
    let (first, first_key) = (serial(&identity.cert), fs::read(&identity.key).unwrap());
    device.sync().expect_success();
    assert_ne!(serial(&identity.cert), first);
    assert_ne!(fs::read(&identity.key).unwrap(), first_key);
    device.sync().expect_success();
    assert_eq!(standing(&facade, "board-1"), "active");
}

/// Kills a verb at every occurrence of a system call in turn, until it gets through; what is left must work.
pub(crate) fn walk(
    call: &str,
    mut begin: impl FnMut() -> (Device, Vec<String>),
    after: impl Fn(&Device, &[String]),
) {
    for number in 1.. {
        assert!(number < 60, "{call} has no end");
        let (device, verb) = begin();
        let words: Vec<&str> = verb.iter().map(String::as_str).collect();
        let cut = device.killed_at(&words, &format!("{call}:when={number}"));
        after(&device, &verb);
        if cut.code == 0 {
            assert!(number > 2, "{call} was never cut");
            return;
        }
    }
}

/// Walks an enrollment; the same token must finish what was cut.
fn walk_enrollment(call: &str) {
    let facade = Facade::start();
    let mut number = 0;
    let begin = || {
        number += 1;
        let device = Device::new(&format!("board-{number}"));
        let token = facade.token(device.id());
        (device, vec!["enroll".to_owned(), token])
    };
    walk(call, begin, |device, verb| {
        let token = verb.last().expect("a token");
        let again = device.enroll(token);
        // It is enrolled now, or was already.
        assert!(again.text().contains("enrolled as"), "{call}: {}", again.text());
        device.sync().expect_success();
        assert_eq!(standing(&facade, device.id()), "active");
    });
}

/// Walks a renewal; what is left must work, and must not be taken for a copy.
fn walk_renewal(call: &str) {
    let facade = Facade::start_with(&[ALWAYS_DUE]);
    let mut number = 0;
    let begin = || {
        number += 1;
        let device = Device::enrolled(&format!("board-{number}"), &facade);
        (device, vec!["sync".to_owned()])
    };
    walk(call, begin, |device, _| {
        device.sync().expect_success();
        assert_eq!(standing(&facade, device.id()), "active", "{call}: a cut is no copy");
    });
}

#[test]
fn a_power_cut_at_any_rename_of_enrollment_leaves_a_device_that_the_same_token_enrolls() {
    walk_enrollment("renameat");
}

#[test]
fn a_power_cut_at_any_flush_of_enrollment_leaves_a_device_that_the_same_token_enrolls() {
    walk_enrollment("fsync");
}

#[test]
fn a_power_cut_at_any_request_of_enrollment_leaves_a_device_that_the_same_token_enrolls() {
    walk_enrollment("writev");
}

#[test]
fn a_power_cut_at_any_rename_of_renewal_leaves_an_identity_that_works() {
    walk_renewal("renameat");
}

#[test]
fn a_power_cut_at_any_flush_of_renewal_leaves_an_identity_that_works() {
    walk_renewal("fsync");
}

#[test]
fn a_power_cut_at_any_request_of_renewal_leaves_an_identity_that_works() {
    walk_renewal("writev");
}

#[test]
fn a_full_disk_at_any_step_of_renewal_leaves_the_identity_in_use() {
    let facade = Facade::start_with(&[ALWAYS_DUE]);
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    for number in 1..12 {
        let full = format!("fsync:error=ENOSPC:when={number}+");
        device.with_faults(&["sync"], &full);
        device.sync().expect_success();
        assert_eq!(standing(&facade, "board-1"), "active", "disk full from change {number} on");
    }
}

#[test]
fn a_full_disk_at_any_step_of_enrollment_leaves_a_device_that_the_same_token_enrolls() {
    let facade = Facade::start();
    for call in ["fsync", "renameat"] {
        for number in 1.. {
            assert!(number < 40, "{call} has no end");
            let device = Device::new(&format!("{call}-{number}"));
            let token = facade.token(device.id());
            let full =
                device.with_faults(&["enroll", &token], &format!("{call}:error=ENOSPC:when={number}+"));
            let again = device.enroll(&token);
            assert!(again.text().contains("enrolled as"), "{call} {number}: {}", again.text());
            device.sync().expect_success();
            if full.code == 0 {
                assert!(number > 2, "{call} never met a full disk");
                break;
            }
            assert!(full.text().contains("No space left"), "{call} {number}: {}", full.text());
        }
    }
}

/// A small disk of its own under the state directory of a device.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn under(device: &Device, pages: u32) -> Self {
        let path = device.state_dir();
        fs::create_dir(&path).expect("make the state directory");
        let size = format!("size={}k,mode=0700", pages * 4);
        let mut mount = as_root("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path);
        Outcome::of(&mut mount, b"").expect_success();
        Self(path)
    }

    fn grow(&self) {
        let mut mount = as_root("mount");
        Outcome::of(mount.args(["-o", "remount,size=4m"]).arg(&self.0), b"").expect_success();
    }

    /// Fills the disk up to so many pages.
    fn fill(&self, pages: u64) {
        let found = rustix::fs::statvfs(&self.0).expect("look at the disk");
        let ballast = (found.f_bavail * found.f_frsize).saturating_sub(pages * 4096);
        let bytes = vec![1; usize::try_from(ballast).expect("a small disk")];
        fs::write(self.0.join(".ballast"), bytes).expect("fill the disk");
    }

    fn empty(&self) {
        fs::remove_file(self.0.join(".ballast")).expect("make room");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut umount = as_root("umount");
        Outcome::of(umount.arg("--lazy").arg(&self.0), b"");
    }
}

#[test]
fn enrollment_on_a_disk_of_any_size_ends_whole_or_is_done_again_with_the_same_token() {
    let facade = Facade::start();
    for pages in 1.. {
        assert!(pages < 60, "no disk is large enough");
        let device = Device::new(&format!("board-{pages}"));
        let disk = SmallDisk::under(&device, pages);
        let token = facade.token(device.id());
        let first = device.enroll(&token);
        if first.code == 0 {
            assert!(pages > 5, "a disk of {pages} pages was enough");
            device.sync();
            return;
        }
        assert!(first.code == 1 && first.text().contains("No space left"), "{pages}: {}", first.text());
        let report = device.check_with(&[]).json().to_string();
        assert!(report.contains("make room"), "{report}");
        disk.grow();
        device.enroll(&token).expect_success();
        device.sync().expect_success();
        assert_eq!(standing(&facade, device.id()), "active");
    }
}

#[test]
fn renewal_on_a_disk_that_fills_up_leaves_an_identity_that_works_once_there_is_room() {
    let facade = Facade::start_with(&[ALWAYS_DUE]);
    let device = Device::new("board-1");
    let disk = SmallDisk::under(&device, 1024);
    device.enroll(&facade.token("board-1")).expect_success();
    device.sync().expect_success();
    for pages in 0..12 {
        disk.fill(pages);
        device.sync();
        disk.empty();
        device.sync().expect_success();
        assert_eq!(standing(&facade, "board-1"), "active", "{pages} pages were free");
    }
}

#[test]
fn an_expired_certificate_renews_within_the_grace_period() {
    let mut facade = Facade::start();
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().says("hello").build());
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    let before = serial(&device.identity().cert);
    // The certificate has 30 days, and 90 more in which it renews.
    facade.start_again_in("+100d");
    device.sync_in("+100d").expect_success();
    assert_ne!(serial(&device.identity().cert), before);
}

#[test]
fn beyond_the_grace_period_a_device_needs_enrollment_and_keeps_its_workload() {
    let mut facade = Facade::start();
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().says("hello").build());
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    facade.start_again_in("+200d");
    assert_eq!(device.sync_in("+200d").code, 5);
    let mut command = device.command(&["status", "--output", "json"]);
    let status: Value =
        Outcome::of(command.envs(harness::process::clock_at("+200d")), b"").expect_success().json();
    assert_eq!(status["needs_enrollment"], true, "{status}");
    assert_eq!(device.delivered(), [pushed.digest].into());
    device.assert_nothing_unverified();
    // A new token brings the same device back, with what it has.
    let token = facade.token("board-1");
    let mut again = device.command(&["enroll", "--again", &token]);
    Outcome::of(again.envs(harness::process::clock_at("+200d")), b"").expect_success();
    device.sync_in("+200d").expect_success();
    assert_eq!(device.delivered(), [pushed.digest].into());
}

#[test]
fn two_devices_with_one_identity_are_both_stopped_until_an_operator_decides() {
    let facade = Facade::start();
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    let copy = device.copy();
    copy.sync().expect_success();
    // Its counter was used by the other one.
    device.sync();
    let shown = facade.ok(&["device", "show", "board-1"]);
    assert_eq!(shown["standing"], "quarantined", "{shown}");
    let reason = shown["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("copy") && reason.contains("restored from a backup"), "{reason}");
    let raised = alarms(&facade, "device quarantined");
    assert!(
        raised.len() == 1 && raised[0]["subject"].to_string().contains("restored from a backup"),
        "{raised:?}"
    );
    assert_eq!(raised[0]["who"], "device/board-1");
    assert_eq!(device.sync().code, 5);
    assert_eq!(copy.sync().code, 5);
    // It was the same device, put back from a backup: the operator says so, and it goes on.
    facade.ok(&["device", "restore", "board-1"]);
    device.sync().expect_success();
    assert_eq!(standing(&facade, "board-1"), "active");
    // Or it was a copy: the name is enrolled anew, and neither of the two has it any more.
    let true_one = Device::new("board-1");
    true_one.enroll(&facade.token("board-1")).expect_success();
    true_one.sync().expect_success();
    assert_eq!(copy.sync().code, 5);
    assert_eq!(device.sync().code, 5);
    true_one.sync().expect_success();
    assert_eq!(standing(&facade, "board-1"), "active", "a former holder cannot stop the new one");
}

/// What the audit log says that devices did.
fn alarms(facade: &Facade, action: &str) -> Vec<Value> {
    let records = facade.ok(&["audit", "list"]).as_array().cloned().unwrap_or_default();
    records.into_iter().filter(|record| record["action"] == action).collect()
}

#[test]
fn a_revoked_device_that_wants_to_renew_is_refused_and_operators_see_it_once() {
    let facade = Facade::start_with(&[ALWAYS_DUE]);
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    facade.ok(&["device", "revoke", "board-1"]);
    let before = serial(&device.identity().cert);
    for _ in 0..3 {
        assert_eq!(device.sync().code, 5);
    }
    assert_eq!(serial(&device.identity().cert), before);
    let raised = alarms(&facade, "renewal refused");
    assert_eq!(raised.len(), 1, "{raised:?}");
    assert!(raised[0]["subject"].to_string().contains("board-1 is revoked"), "{raised:?}");
    assert_eq!(raised[0]["from"], "127.0.0.1");
    assert_eq!(facade.ok(&["audit", "verify"])["whole"], true);
}

#[test]
fn a_copy_that_renews_shows_itself() {
    let facade = Facade::start_with(&[ALWAYS_DUE]);
    let device = Device::enrolled("board-1", &facade);
    let copy = device.copy();
    device.sync().expect_success();
    device.sync().expect_success();
    copy.sync();
    assert_eq!(standing(&facade, "board-1"), "quarantined");
    let reason = facade.ok(&["device", "show", "board-1"])["reason"].to_string();
    assert!(reason.contains("restored from a backup"), "{reason}");
    assert_eq!(alarms(&facade, "device quarantined").len(), 1);
}

#[test]
fn a_suspended_device_gets_nothing_until_it_is_restored() {
    let facade = Facade::start();
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    facade.ok(&["device", "suspend", "board-1"]);
    let client = DeviceClient::new(&facade.device_url(), &device.identity());
    for path in ["/v2/", "/metadata/images/timestamp.json", "/v1/wait?since=0"] {
        assert!([401, 403].contains(&client.get(path).status), "{path}");
    }
    assert_eq!(device.sync().code, 5);
    facade.ok(&["device", "restore", "board-1"]);
    device.sync().expect_success();
    facade.ok(&["device", "revoke", "board-1"]);
    assert_eq!(device.sync().code, 5);
    assert_ne!(facade.cli(&["device", "restore", "board-1"]).code, 0, "revoked is for good");
}

#[test]
fn revoking_a_device_cuts_the_stream_it_is_reading() {
    // The registry stops in the middle, so the device's stream stays open for as long as the test wants.
    let facade = Facade::start();
    let registry = Registry::open();
    let wire = Proxy::before(&registry.host());
    let image = ImageBuilder::new().random_layer(20 << 20).build();
    let pushed = registry.push("team/app", "v1", &image).through(&wire.host());
    facade.connect_as(&registry, &wire.host());
    wire.always(When::Digest(image.largest_blob()), Fault::HoldAfter(12 << 20));
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    let (identity, directory) = (device.identity(), TempDir::new().unwrap());
    let blob = directory.path().join("blob");
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--noproxy", "*"]);
    curl.arg("--cacert").arg(&identity.ca).arg("--cert").arg(&identity.cert).arg("--key").arg(&identity.key);
    curl.arg("--output").arg(&blob);
    curl.arg(format!("{}/v2/{}/blobs/{}", facade.device_url(), pushed.repository, image.largest_blob()));
    let mut reading = Process::start("curl", &mut curl, &directory.path().join("log"));
    let read = || fs::metadata(&blob).map_or(0, |metadata| metadata.len());
    poll("the stream to begin", COMMAND, || (read() > 1 << 20).then_some(()));
    let begun = Instant::now();
    facade.ok(&["device", "revoke", "board-1"]);
    assert!(!reading.wait().success(), "the stream came to its end");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(read() <= 12 << 20, "{} bytes", read());
    wire.release();
}

#[test]
fn the_operators_server_certificate_is_taken_without_a_restart_and_a_useless_one_is_not() {
    let facade = Facade::start_with(&[("FACADE_WAIT_TIMEOUT", "10s")]);
    let device = Device::enrolled("board-1", &facade);
    let data = facade.data_dir();
    let run = |script: &str| {
        let mut shell = Command::new("sh");
        Outcome::of(shell.current_dir(&data).args(["-euc", script]), b"").expect_success()
    };
    let shown = || {
        let port = facade.device_authority();
        let script = format!(
            "openssl s_client -connect {port} -servername localhost </dev/null 2>/dev/null | openssl x509 -noout -subject"
        );
        run(&script).stdout
    };
    // A device waits for news meanwhile, on a connection that began under the old certificate.
    let identity = device.identity();
    let version = DeviceClient::new(&facade.device_url(), &identity).get("/v1/wait?since=0");
    let version: Value = serde_json::from_slice(&version.body).expect("an answer in JSON");
    let log = TempDir::new().unwrap();
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "--write-out",
        "status %{http_code} %{num_connects}",
    ]);
    curl.arg("--cacert").arg(&identity.ca).arg("--cert").arg(&identity.cert).arg("--key").arg(&identity.key);
    curl.arg(format!("{}/v1/wait?since={}", facade.device_url(), version["version"]));
    let mut waiting = Process::start("curl", &mut curl, &log.path().join("log"));
    let mut daemon = device.start_daemon();
    // An RSA key of the operator's own, signed by the CA that devices know.
    run(
        "umask 077; cd tls; openssl req -newkey rsa:2048 -nodes -keyout own.key -subj '/CN=the operator' -out own.csr 2>/dev/null
         printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nextendedKeyUsage=serverAuth\\n' >own.ext
         openssl x509 -req -in own.csr -CA ../ca/issuing.pem -CAkey ../ca/issuing.key -days 30 -extfile own.ext -out own.pem 2>/dev/null
         cat ../ca/issuing.pem >>own.pem; cp server.key server.key.before; cp server.pem server.pem.before
         mv own.key server.key; mv own.pem server.pem",
    );
    facade.hang_up();
    poll("the new certificate", Duration::from_secs(10), || shown().contains("the operator").then_some(()));
    assert!(daemon.is_running() && waiting.is_running());
    assert!(waiting.wait().success(), "the connection was dropped: {}", waiting.log());
    assert!(waiting.log().contains("status 204 1"), "{}", waiting.log());
    // One that no device would take is refused, and the one in use stays.
    run(
        "umask 077; cd tls; openssl req -x509 -newkey rsa:2048 -nodes -keyout server.key -subj '/CN=useless' \
         -addext subjectAltName=DNS:localhost -days 30 -out server.pem 2>/dev/null",
    );
    facade.hang_up();
    poll("the refusal", Duration::from_secs(10), || {
        facade.log().contains("no device of this facade would accept").then_some(())
    });
    assert!(shown().contains("the operator"));
    daemon.terminate();
    device.sync().expect_success();
}

fn roll_ca(facade: &mut Facade) {
    let data = facade.data_dir().display().to_string();
    facade.cli(&["ca", "roll", "--data-dir", &data]).expect_success();
    facade.start_again();
}

fn anchors(device: &Device) -> usize {
    let pem = fs::read_to_string(device.identity().ca).expect("read the anchors");
    pem.matches("BEGIN CERTIFICATE").count()
}

#[test]
fn a_fleet_moves_to_another_ca_and_a_device_that_slept_through_it_comes_too() {
    let mut facade = Facade::start();
    let (awake, sleeper) = (Device::enrolled("awake", &facade), Device::enrolled("sleeper", &facade));
    let first_root = fs::read_to_string(facade.ca_file()).unwrap();
    let old_token = facade.token("boxed");
    awake.sync().expect_success();
    roll_ca(&mut facade);
    // Old and new overlap: whoever is awake learns the new root from signed metadata, and renews under it.
    awake.sync().expect_success();
    assert_eq!(anchors(&awake), 2);
    awake.sync().expect_success();
    // A token that names the old root still enrolls, and so does a new one.
    Device::new("boxed").enroll(&old_token).expect_success();
    let new = Device::enrolled("new", &facade);
    new.sync().expect_success();
    // Again, and then the former roots are retired.
    roll_ca(&mut facade);
    awake.sync().expect_success();
    assert_eq!(anchors(&awake), 3);
    let data = facade.data_dir().display().to_string();
    facade.cli(&["ca", "retire", "--data-dir", &data]).expect_success();
    facade.start_again();
    awake.sync().expect_success();
    assert_eq!(anchors(&awake), 1);
    awake.sync().expect_success();
    // A device that slept through one change of the two, with a certificate that has expired meanwhile.
    facade.start_again_in("+100d");
    assert!(fs::read_to_string(new.identity().ca).unwrap() != first_root);
    new.sync_in("+100d").expect_success();
    assert_eq!(fs::read(new.identity().ca).unwrap(), fs::read(facade.ca_file()).unwrap());
    // And one that slept through both.
    sleeper.sync_in("+100d").expect_success();
    assert_eq!(fs::read(sleeper.identity().ca).unwrap(), fs::read(facade.ca_file()).unwrap());
    sleeper.sync_in("+100d").expect_success();
}

/// The state of a device at another time.
fn status_in(device: &Device, when: &str) -> Value {
    let mut command = device.command(&["status", "--output", "json"]);
    Outcome::of(command.envs(clock_at(when)), b"").expect_success().json()
}

#[test]
fn a_device_that_slept_for_two_years_through_fifty_roots_and_two_cas_comes_back_or_says_what_it_needs() {
    let registry = Registry::open();
    let mut facade = Facade::start();
    facade.connect(&registry);
    let first = registry.push("team/app", "v1", &ImageBuilder::new().says("first").build());
    let sleepers = [Device::enrolled("sleeper-1", &facade), Device::enrolled("sleeper-2", &facade)];
    for device in &sleepers {
        facade.deliver(&first, device.id());
        device.sync().expect_success();
    }
    for number in 0..50 {
        for repository in ["images", "director"] {
            facade.ok(&["keys", "rotate", repository, "root"]);
        }
        if number % 25 == 10 {
            roll_ca(&mut facade);
        }
    }
    let data = facade.data_dir().display().to_string();
    facade.cli(&["ca", "retire", "--data-dir", &data]).expect_success();
    facade.start_again_in("+730d");
    // By default nobody renews so late: the device says so, and what it has stays.
    let [device, other] = &sleepers;
    device.sync_in("+730d").expect_code(5);
    assert_eq!(status_in(device, "+730d")["needs_enrollment"], true);
    assert_eq!(device.delivered(), [first.digest].into());
    let second = registry.push("team/app", "v2", &ImageBuilder::new().says("second").build());
    for device in &sleepers {
        facade.deliver(&second, device.id());
    }
    let token = facade.token(device.id());
    let mut again = device.command(&["enroll", "--again", &token]);
    Outcome::of(again.envs(clock_at("+730d")), b"").expect_success();
    device.sync_in("+730d").expect_success();
    assert_eq!(device.delivered(), [first.digest, second.digest].into());
    // Where the operator grants it, signed metadata leads the other one from its old root to the present one.
    facade.start_again_with("FACADE_DEVICE_CERTIFICATE_GRACE", "1000d");
    other.sync_in("+730d").expect_success();
    assert_eq!(other.delivered(), [first.digest, second.digest].into());
    assert_eq!(fs::read(other.identity().ca).unwrap(), fs::read(facade.ca_file()).unwrap());
    assert_eq!(status_in(other, "+730d")["needs_enrollment"], false);
    assert_eq!(standing(&facade, "sleeper-2"), "active");
}

#[test]
fn no_session_is_resumed_past_the_check_of_the_certificate() {
    let facade = Facade::start();
    let device = Device::enrolled("board-1", &facade);
    let (identity, directory) = (device.identity(), TempDir::new().unwrap());
    let connect = |version: &str, session: &str| {
        // The server speaks after the handshake in TLS 1.3: the request makes the client wait for its tickets.
        let script = format!(
            "printf 'GET /v2/ HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' |
             openssl s_client -connect {} -servername localhost -{version} {session} session.pem -ign_eof \
                 -CAfile {} -cert {} -key {} 2>&1 || true",
            facade.device_authority(),
            identity.ca.display(),
            identity.cert.display(),
            identity.key.display()
        );
        let mut shell = Command::new("sh");
        Outcome::of(shell.current_dir(directory.path()).args(["-c", &script]), b"").stdout
    };
    for version in ["tls1_2", "tls1_3"] {
        let first = connect(version, "-sess_out");
        assert!(first.contains("200 OK"), "{first}");
        if directory.path().join("session.pem").exists() {
            let second = connect(version, "-sess_in");
            assert!(!second.contains("Reused"), "{version}: {second}");
            let _ = fs::remove_file(directory.path().join("session.pem"));
        }
    }
    facade.ok(&["device", "revoke", "board-1"]);
    for version in ["tls1_2", "tls1_3"] {
        let refused = connect(version, "-sess_out");
        assert!(!refused.contains("200 OK") && refused.contains("403"), "{version}: {refused}");
    }
    // A deleted one is nobody any more, and its name may be given again.
    facade.ok(&["device", "delete", "board-1"]);
    assert_eq!(device.sync().code, 5);
    Device::enrolled("board-1", &facade).sync().expect_success();
    assert_eq!(device.sync().code, 5);
}
