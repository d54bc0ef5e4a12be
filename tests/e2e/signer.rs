//! Where a device keeps its key: a file, a credential of systemd, a PKCS#11 token; and of which kind it is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::process::{Outcome, in_clean_environment};
use harness::{Device, Facade, ImageBuilder, Registry};
use tempfile::TempDir;

use crate::life::{ALWAYS_DUE, serial, standing, walk};

/// A token of `SoftHSM`, which stands for a TPM or a secure element.
struct Token {
    directory: TempDir,
    configuration: String,
}

const PIN: &str = "482910";

impl Token {
    fn new() -> Self {
        let directory = TempDir::new().expect("make a directory");
        let file = directory.path().join("softhsm2.conf");
        fs::create_dir(directory.path().join("tokens")).expect("make a directory");
        let text = format!("directories.tokendir = {}\n", directory.path().join("tokens").display());
        fs::write(&file, text).expect("write the configuration");
        let pin = directory.path().join("pin");
        fs::write(&pin, format!("{PIN}\n")).expect("write the PIN");
        fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).expect("protect the PIN");
        let token = Self { configuration: file.display().to_string(), directory };
        let words = ["--init-token", "--free", "--label", "drayage", "--so-pin", "5678", "--pin", PIN];
        token.tool("softhsm2-util", &words).expect_success();
        token
    }

    fn tool(&self, name: &str, words: &[&str]) -> Outcome {
        let mut command = in_clean_environment(Command::new(name));
        command.env("SOFTHSM2_CONF", &self.configuration);
        Outcome::of(command.args(words), b"")
    }

    fn module() -> PathBuf {
        let known = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/pkcs11/libsofthsm2.so"];
        let found = known.iter().map(Path::new).find(|path| path.is_file());
        found.expect("libsofthsm2.so (tests/install installs softhsm2)").to_owned()
    }

    /// `pkcs11-tool`, which is nothing of ours.
    fn objects(&self, words: &[&str]) -> String {
        let module = Self::module().display().to_string();
        let login = ["--module", &module, "--token-label", "drayage", "--login", "--pin", PIN];
        self.tool("pkcs11-tool", &[&login, words].concat()).expect_success().stdout
    }

    fn private_keys(&self) -> String {
        self.objects(&["--list-objects", "--type", "privkey"])
    }

    fn count(&self) -> usize {
        self.private_keys().matches("Private Key Object").count()
    }

    fn uri(&self, path: &str) -> String {
        let (module, pin) = (Self::module(), self.directory.path().join("pin"));
        format!(
            "pkcs11:token=drayage;{path}?module-path={}&pin-source=file:{}",
            module.display(),
            pin.display()
        )
    }

    fn device(&self, id: &str) -> Device {
        let uri = self.uri("object=device");
        Device::new(id).with_settings(&[("DEVICE_AGENT_KEY", &uri), ("SOFTHSM2_CONF", &self.configuration)])
    }
}

fn enrolled(device: Device, facade: &Facade) -> Device {
    device.enroll(&facade.token(device.id())).expect_success();
    device
}

fn key_file(device: &Device) -> String {
    fs::read_to_string(device.identity().key).expect("read key.pem")
}

/// What openssl says of a certificate's key.
fn key_of(device: &Device) -> String {
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-text", "-in"]).arg(device.identity().cert);
    let text = Outcome::of(&mut openssl, b"").expect_success().stdout;
    let from = text.find("Public Key Algorithm").expect("a public key");
    let to = text.find("X509v3 extensions").expect("extensions");
    text.get(from..to).expect("a public key").to_owned()
}

#[test]
fn a_key_is_made_in_a_token_signs_there_and_never_leaves_it() {
    let (facade, registry, token) = (Facade::start_with(&[ALWAYS_DUE]), Registry::open(), Token::new());
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().says("hello").build());
    facade.connect(&registry);
    let device = enrolled(token.device("board-1"), &facade);
    let named = key_file(&device);
    assert!(named.starts_with("pkcs11:token=drayage;object=device;id="), "{named}");
    assert!(!named.contains("PRIVATE") && !named.contains(PIN), "{named}");
    assert!(token.private_keys().contains("never extractable"), "{}", token.private_keys());
    facade.deliver(&pushed, "board-1");
    let first = serial(&device.identity().cert);
    // Each round renews with a new key, and the one before is gone from the token.
    for _ in 0..3 {
        device.sync().expect_success();
        assert_eq!(token.count(), 1);
    }
    assert_ne!(serial(&device.identity().cert), first);
    assert_ne!(key_file(&device), named);
    assert_eq!(device.delivered(), [pushed.digest].into());
    assert_eq!(standing(&facade, "board-1"), "active");
    let report = device.check_with(&[]).json().to_string();
    assert!(report.contains("the token of pkcs11:token=drayage"), "{report}");
    // Stock containerd could not use it, so it is not told to.
    let refused = device.run(&["hosts-toml"]);
    assert!(refused.code == 1 && refused.text().contains("need it in a file"), "{}", refused.text());
}

#[test]
fn a_power_cut_at_any_step_of_enrollment_with_a_token_leaves_one_key_and_a_device_that_works() {
    let facade = Facade::start();
    let mut tokens = Vec::new();
    let begin = || {
        let token = Token::new();
        let device = token.device(&format!("board-{}", tokens.len()));
        let words = vec!["enroll".to_owned(), facade.token(device.id())];
        tokens.push(token);
        (device, words)
    };
    walk("renameat", begin, |device, verb| {
        let again = device.enroll(verb.last().expect("a token"));
        assert!(again.text().contains("enrolled as"), "{}", again.text());
        device.sync().expect_success();
    });
    for token in tokens {
        assert_eq!(token.count(), 1, "{}", token.private_keys());
    }
}

#[test]
fn a_power_cut_at_any_step_of_renewal_with_a_token_leaves_an_identity_that_works() {
    let facade = Facade::start_with(&[ALWAYS_DUE]);
    let mut tokens = Vec::new();
    let begin = || {
        let token = Token::new();
        let device = enrolled(token.device(&format!("board-{}", tokens.len())), &facade);
        tokens.push(token);
        (device, vec!["sync".to_owned()])
    };
    walk("renameat", begin, |device, _| {
        device.sync().expect_success();
        assert_eq!(standing(&facade, device.id()), "active");
    });
    for token in tokens {
        assert_eq!(token.count(), 1, "{}", token.private_keys());
    }
}

#[test]
fn a_token_that_is_away_is_named_and_costs_nothing_but_time() {
    let (facade, registry, token) = (Facade::start(), Registry::open(), Token::new());
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().says("hello").build());
    facade.connect(&registry);
    let device = enrolled(token.device("board-1"), &facade);
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    let (tokens, away) = (token.directory.path().join("tokens"), token.directory.path().join("away"));
    fs::rename(&tokens, &away).expect("take the token away");
    fs::create_dir(&tokens).expect("make a directory");
    let refused = device.sync();
    assert_eq!(refused.code, 1, "{}", refused.text());
    assert!(refused.text().contains("there is no such token"), "{}", refused.text());
    let report = device.check_with(&[]);
    assert!(report.code == 1 && report.text().contains("there is no such token"), "{}", report.text());
    assert_eq!(device.delivered(), [pushed.digest].into());
    // A wrong PIN is told too, and never shown.
    fs::remove_dir(&tokens).and_then(|()| fs::rename(&away, &tokens)).expect("bring the token back");
    fs::write(token.directory.path().join("pin"), "000000\n").expect("write the PIN");
    let refused = device.sync();
    assert!(
        refused.text().contains("cannot log in") && !refused.text().contains("000000"),
        "{}",
        refused.text()
    );
    fs::write(token.directory.path().join("pin"), PIN).expect("write the PIN");
    device.sync().expect_success();
}

#[test]
fn a_key_that_the_factory_made_is_used_and_neither_replaced_nor_removed() {
    let (facade, token) = (Facade::start_with(&[ALWAYS_DUE]), Token::new());
    token.objects(&["--keypairgen", "--key-type", "EC:prime256v1", "--label", "factory", "--id", "a1"]);
    let uri = token.uri("object=factory;id=%A1");
    let device = enrolled(token.device("board-1").with_settings(&[("DEVICE_AGENT_KEY", &uri)]), &facade);
    let (key, first) = (key_of(&device), serial(&device.identity().cert));
    device.sync().expect_success();
    device.sync().expect_success();
    assert_ne!(serial(&device.identity().cert), first);
    assert_eq!(key_of(&device), key);
    assert_eq!(token.count(), 1);
    // Of a key that is not there the device does not make another.
    let missing = token.uri("object=factory;id=%A2");
    let other = token.device("board-2").with_settings(&[("DEVICE_AGENT_KEY", &missing)]);
    let refused = other.enroll(&facade.token("board-2"));
    assert!(refused.code != 0 && refused.text().contains("no key there has this name"), "{}", refused.text());
}

#[test]
fn a_device_takes_its_key_into_a_token_and_out_again_by_renewing() {
    let (facade, token) = (Facade::start_with(&[ALWAYS_DUE]), Token::new());
    let device = Device::enrolled("board-1", &facade);
    assert!(key_file(&device).contains("PRIVATE KEY"));
    let uri = token.uri("object=device");
    let device = device.with_settings(&[("DEVICE_AGENT_KEY", &uri), ("SOFTHSM2_CONF", &token.configuration)]);
    device.sync().expect_success();
    assert!(key_file(&device).starts_with("pkcs11:") && token.count() == 1, "{}", key_file(&device));
    let device = device.with_settings(&[("DEVICE_AGENT_KEY", "file")]);
    device.sync().expect_success();
    assert!(key_file(&device).contains("PRIVATE KEY"));
    device.sync().expect_success();
    assert_eq!(standing(&facade, "board-1"), "active");
}

/// A directory as systemd gives it to a service with `LoadCredential=`.
fn give(directory: &Path, name: &str) {
    let path = directory.join(name);
    let mut openssl = Command::new("openssl");
    openssl.args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"]).arg(&path);
    Outcome::of(&mut openssl, b"").expect_success();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("protect the key");
}

#[test]
fn a_key_from_a_systemd_credential_stays_through_renewals_until_a_successor_is_given() {
    let (facade, credentials) = (Facade::start_with(&[ALWAYS_DUE]), TempDir::new().unwrap());
    give(credentials.path(), "device-key");
    let directory = credentials.path().display().to_string();
    let settings =
        [("DEVICE_AGENT_KEY", "credential:device-key"), ("CREDENTIALS_DIRECTORY", directory.as_str())];
    let device = enrolled(Device::new("board-1").with_settings(&settings), &facade);
    assert_eq!(key_file(&device), "credential:device-key\n");
    let (first, key) = (serial(&device.identity().cert), key_of(&device));
    device.sync().expect_success();
    assert_ne!(serial(&device.identity().cert), first);
    assert_eq!(key_of(&device), key);
    give(credentials.path(), "device-key.next");
    device.sync().expect_success();
    let next = key_of(&device);
    assert_ne!(next, key);
    // The certificate is that of the new key: the old one may go.
    fs::rename(credentials.path().join("device-key.next"), credentials.path().join("device-key")).unwrap();
    device.sync().expect_success();
    assert_eq!(key_of(&device), next);
    assert_eq!(standing(&facade, "board-1"), "active");
    // Started by hand there is no credential; it is said how to have one.
    let bare = device.with_settings(&[("CREDENTIALS_DIRECTORY", "/nonexistent")]);
    let refused = bare.sync();
    assert!(refused.code == 1 && refused.text().contains("LoadCredential="), "{}", refused.text());
}

#[test]
fn an_ed25519_key_enrolls_syncs_and_renews_and_either_kind_follows_the_other() {
    let (facade, registry) = (Facade::start_with(&[ALWAYS_DUE]), Registry::open());
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().says("hello").build());
    facade.connect(&registry);
    let device =
        enrolled(Device::new("board-1").with_settings(&[("DEVICE_AGENT_KEY_TYPE", "ed25519")]), &facade);
    assert!(key_of(&device).contains("ED25519"), "{}", key_of(&device));
    facade.deliver(&pushed, "board-1");
    let first = key_of(&device);
    device.sync().expect_success();
    assert!(key_of(&device).contains("ED25519") && key_of(&device) != first);
    assert_eq!(device.delivered(), [pushed.digest].into());
    let device = device.with_settings(&[("DEVICE_AGENT_KEY_TYPE", "p256")]);
    device.sync().expect_success();
    assert!(key_of(&device).contains("prime256v1"), "{}", key_of(&device));
    device.sync().expect_success();
    assert_eq!(standing(&facade, "board-1"), "active");
    let unknown = device.with_settings(&[("DEVICE_AGENT_KEY_TYPE", "rsa")]).sync();
    assert!(unknown.code == 2 && unknown.text().contains("p256 or ed25519"), "{}", unknown.text());
}
