//! The documentation, run: every `sh` block of a page, from its top to its end, as one script, against real parts.
//!
//! What stands on a page is what a reader types, so it names the registries and hosts of readers; each story says what
//! stands for them here. A block marked `sh elsewhere` needs somebody's cloud account, token or init system: its commands
//! are held against the definitions of our programs' arguments instead. `toml facade` and `toml agent` are settings, and
//! are read by the program that they are for.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory as _;
use clap::error::ErrorKind;
use harness::facade::files_below;
use harness::process::{self, Outcome, free_port};
use harness::{Containerd, Device, Facade, Image, Registry};
use tempfile::TempDir;

/// The pages that are run, each by a story below.
const RUN: [&str; 9] = [
    "facade/docs/how-to-containerd-mirror.md",
    "facade/docs/how-to-devices.md",
    "facade/docs/how-to-offline-keys.md",
    "facade/docs/how-to-registries.md",
    "facade/docs/how-to-rollouts.md",
    "facade/docs/how-to-watch.md",
    "facade/docs/operator-api.md",
    "facade/docs/runbook-keys.md",
    "facade/docs/tutorial.md",
];

/// A fenced block of a page.
struct Block {
    page: String,
    line: usize,
    kind: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(page: &str) -> String {
    fs::read_to_string(root().join(page)).expect(page)
}

/// Every page that a person has written.
fn pages() -> Vec<String> {
    let root = root();
    let mut pages = vec!["README.md".to_owned()];
    for directory in ["facade/docs", "device-agent/docs"] {
        let files = files_below(&root.join(directory)).into_iter();
        let written = files.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
        let names = written.filter_map(|path| Some(path.strip_prefix(&root).ok()?.display().to_string()));
        pages.extend(names.filter(|name| !name.contains("/reference/")));
    }
    pages
}

fn blocks(page: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    for (number, line) in read(page).lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, Some(kind)) => {
                let kind = kind.to_owned();
                open = Some(Block { page: page.to_owned(), line: number + 1, kind, text: String::new() });
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{page}: a block does not end");
    blocks
}

/// Where a page is run.
struct Scene {
    directory: TempDir,
    /// What stands on the page, and what stands for it here.
    stands_for: Vec<(String, String)>,
    environment: Vec<(String, String)>,
}

impl Scene {
    /// With a registry, in which `team/app` has two tags.
    fn new(registry: &Registry) -> Self {
        registry.push("team/app", "v1", &Image::hello("hello from the page\n"));
        registry.push("team/app", "v2", &Image::hello("hello again\n"));
        let scene = Self {
            directory: TempDir::new().expect("make a directory"),
            stands_for: Vec::new(),
            environment: Vec::new(),
        };
        let host = registry.host();
        scene.tool("sudo", "while [ \"$1\" = -u ]; do shift 2; done\nexec \"$@\"");
        scene
            .stands("import docker.io/library/hello-world linux", &format!("import {host}/team/app v1"))
            .stands("import docker.io/library/hello-world other", &format!("import {host}/team/app v2"))
            .stands("docker.io/library/hello-world", &format!("{host}/team/app"))
            .stands(
                "connection add docker.io --provider anonymous",
                &format!("connection add {host} --provider anonymous --plain-http --allow-private"),
            )
            .stands("connection test docker.io", &format!("connection test {host}"))
    }

    fn stands(mut self, on_the_page: &str, here: &str) -> Self {
        self.stands_for.push((on_the_page.to_owned(), here.to_owned()));
        self
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The command line speaks to this facade.
    fn speaking_to(self, facade: &Facade) -> Self {
        let token = facade.admin_token_file().display().to_string();
        self.with("FACADE_SERVER", &format!("http://{}", facade.operator_authority()))
            .with("FACADE_TOKEN_FILE", &token)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("write a file");
    }

    /// A program that a page uses and that is not ours.
    fn tool(&self, name: &str, script: &str) {
        let directory = self.path("tools");
        fs::create_dir_all(&directory).expect("make a directory");
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write a tool");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it run");
    }

    /// Runs every `sh` block of a page.
    fn run(&self, page: &str) -> Outcome {
        assert!(RUN.contains(&page), "{page} is not in the list");
        let mut script = String::from("set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n");
        let blocks = blocks(page);
        let mut commands = 0;
        for block in blocks.iter().filter(|block| block.kind == "sh") {
            commands += block.text.lines().count();
            let mut text = block.text.clone();
            for (on_the_page, here) in &self.stands_for {
                text = text.replace(on_the_page, here);
            }
            let _ = writeln!(script, "echo '>> {page}, line {}' >&2\n{text}", block.line);
            if text.contains("facade serve") {
                script.push_str("until curl -fs \"$FACADE_SERVER/readyz\" >/dev/null; do sleep 0.1; done\n");
            }
        }
        assert!(commands > 2, "{page} has no commands");
        let mut shell = process::in_clean_environment(Command::new("bash"));
        let ours = process::program("facade").parent().map(Path::to_owned).unwrap_or_default();
        let theirs = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        shell.env("PATH", format!("{}:{}:{theirs}", self.path("tools").display(), ours.display()));
        shell.env("HOME", self.directory.path()).current_dir(self.directory.path());
        shell.env("DEVICE_AGENT_STATE_DIR", self.path("agent"));
        shell.env("DEVICE_AGENT_SINK", format!("oci-layout:{}", self.path("images").display()));
        shell.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Outcome::of(shell.args(["-c", &script]), b"").expect_success()
    }
}

/// A facade that is on a page made by the page.
fn made_by_the_page(scene: Scene) -> Scene {
    let (device, operator) = (free_port(), free_port());
    scene
        .with("FACADE_DEVICE_LISTEN", &format!("127.0.0.1:{device}"))
        .with("FACADE_OPERATOR_LISTEN", &format!("127.0.0.1:{operator}"))
        .with("FACADE_SERVER", &format!("http://127.0.0.1:{operator}"))
}

/// The agent and `ctr` speak to this containerd.
fn on_containerd(scene: Scene, containerd: &Containerd) -> Scene {
    let address = containerd.address().display().to_string();
    scene
        .with("DEVICE_AGENT_SINK", "containerd")
        .with("DEVICE_AGENT_CONTAINERD_ADDRESS", &address)
        .with("CONTAINERD_ADDRESS", &address)
        .with("CONTAINERD_NAMESPACE", "drayage")
}

#[test]
fn the_tutorial_ends_with_a_container_that_runs_in_containerd() {
    let (registry, containerd) = (Registry::open(), Containerd::start());
    let scene = on_containerd(made_by_the_page(Scene::new(&registry)), &containerd);
    let outcome = scene.run("facade/docs/tutorial.md");
    assert!(outcome.stdout.contains("hello from the page"), "{}", outcome.stdout);
    assert!(
        outcome.stdout.contains("all is well") && outcome.stdout.contains("upstream"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn stock_containerd_pulls_as_the_page_says() {
    let (registry, containerd, facade) = (Registry::open(), Containerd::start(), Facade::start());
    let app = registry.push("team/app", "v1", &Image::hello("hello"));
    facade.connect(&registry);
    facade.import(&app);
    let scene = on_containerd(Scene::new(&registry).speaking_to(&facade), &containerd);
    let certificates = scene.path("certs.d").display().to_string();
    let scene = scene
        .stands("docker.io", &registry.host())
        .with("ARTIFACT", &app.artifact())
        .with("CERTS", &certificates);
    scene.run("facade/docs/how-to-containerd-mirror.md");
    assert!(containerd.content().contains(&app.digest));
}

#[test]
fn keys_stay_offline_as_the_page_says() {
    let registry = Registry::open();
    let scene = made_by_the_page(Scene::new(&registry));
    scene.file("passphrase", "correct horse battery staple\n");
    scene.run("facade/docs/how-to-offline-keys.md");
}

#[test]
fn rollouts_run_as_the_page_says() {
    let (registry, facade) = (Registry::open(), Facade::start());
    let app = registry.push("team/app", "v1", &Image::hello("hello"));
    facade.connect(&registry);
    facade.import(&app);
    let _boards: Vec<Device> =
        ["board-1", "board-2", "board-3"].iter().map(|id| Device::enrolled(id, &facade)).collect();
    Scene::new(&registry)
        .speaking_to(&facade)
        .stands("ARTIFACT", &app.artifact())
        .run("facade/docs/how-to-rollouts.md");
}

#[test]
fn devices_come_in_and_go_as_the_page_says() {
    let (registry, facade) = (Registry::open(), Facade::start());
    Scene::new(&registry).speaking_to(&facade).run("facade/docs/how-to-devices.md");
}

#[test]
fn a_facade_is_watched_and_asked_as_the_pages_say() {
    let (registry, facade) = (Registry::open(), Facade::start());
    let _board = Device::enrolled("board-1", &facade);
    let scene = Scene::new(&registry).speaking_to(&facade);
    scene.run("facade/docs/how-to-watch.md");
    scene.run("facade/docs/operator-api.md");
}

#[test]
fn keys_are_looked_after_as_the_runbook_says() {
    let (registry, facade) = (Registry::open(), Facade::start());
    facade.connect(&registry);
    let app = registry.push("team/app", "v1", &Image::hello("hello"));
    let scene = Scene::new(&registry).speaking_to(&facade).stands("ghcr.io/acme/app", &app.repository);
    scene.file("pass", "correct horse battery staple\n");
    scene.run("facade/docs/runbook-keys.md");
}

#[test]
fn registries_are_connected_as_the_page_says() {
    let (registry, facade) = (Registry::open(), Facade::start());
    let app = registry.push("team/app", "v3", &Image::hello("hello"));
    facade.connect(&registry);
    let host = registry.host();
    let scene = Scene::new(&registry)
        .speaking_to(&facade)
        .stands("HOST/OWNER/IMAGE", &format!("{host}/team/app"))
        .stands("facade tags nginx", &format!("facade tags {host}/team/app"))
        .stands("ghcr.io/octo/app sha256:3f2a…", &format!("{host}/team/app {}", app.digest))
        .stands("ghcr.io/octo/app v1.4.2", &format!("{host}/team/app v1"))
        .stands("3f2a…", &app.digest.to_string());
    for name in ["token", "password"] {
        scene.file(name, "a-secret");
    }
    let mut openssl = Command::new("openssl");
    let key =
        Outcome::of(openssl.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]), b"");
    let key = serde_json::json!({
        "type": "service_account", "client_email": "drayage@project.iam.gserviceaccount.com", "private_key_id": "1",
        "private_key": key.expect_success().stdout, "token_uri": "https://oauth2.googleapis.com/token",
    });
    scene.file("google.json", &key.to_string());
    scene.tool("gcloud", "case \"$*\" in *'keys create'*) cp google.json key.json;; esac");
    scene.tool(
        "az",
        "case \"$*\" in *create-for-rbac*) echo '{\"appId\":\"04b07795-8ddb-461a-bbee-02f9e1bf7b46\",\"password\":\"s\",\"tenant\":\"contoso.onmicrosoft.com\"}';; esac",
    );
    scene.file(
        "role.toml",
        "role_arn = \"arn:aws:iam::123456789012:role/drayage-pull\"\nexternal_id = \"fleet-42\"\naccess_key_id = \"AKIAIOSFODNN7EXAMPLE\"\nsecret_access_key = \"s\"\n",
    );
    fs::create_dir_all(scene.path(".docker")).expect("make a directory");
    scene.file(".docker/config.json", r#"{"auths": {"ghcr.io": {"auth": "cm9ib3Q6c2VjcmV0"}}}"#);
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "9",
    ]);
    openssl.args(["-subj", "/CN=corp", "-keyout", "key.pem", "-out", "corp-ca.pem"]);
    Outcome::of(openssl.current_dir(scene.directory.path()), b"").expect_success();
    let both =
        ["corp-ca.pem", "key.pem"].map(|name| fs::read_to_string(scene.path(name)).expect("a file")).concat();
    scene.file("client.pem", &both);
    scene.file("compose.yaml", &format!("services:\n  app:\n    image: {host}/team/app:${{TAG:-v1}}\n"));
    let manifest =
        format!("apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: {host}/team/app:v2\n");
    scene.file("pod.yaml", &manifest);
    for tool in ["helm", "kustomize"] {
        scene.tool(tool, "cat pod.yaml");
    }
    scene.stands("TAG=v1.4.2", "TAG=v1").run("facade/docs/how-to-registries.md");
}

#[test]
fn each_page_with_commands_is_run() {
    let has = |page: &&String| blocks(page).iter().any(|block| block.kind == "sh");
    let with: Vec<String> = pages().iter().filter(has).cloned().collect();
    let unknown: Vec<&String> = with.iter().filter(|page| !RUN.contains(&page.as_str())).collect();
    assert!(unknown.is_empty(), "no story runs {unknown:?}");
    for page in pages() {
        // An indented block would be passed over by everything here.
        let lines = read(&page);
        let indented = lines
            .lines()
            .find(|line| line.starts_with("    facade ") || line.starts_with("    device-agent "));
        assert_eq!(indented, None, "{page}: commands stand between fences");
    }
}

/// The arguments of our programs on a line: from the program's name to where the shell takes over.
fn ours(line: &str) -> Option<&str> {
    let begin = ["facade ", "device-agent "].iter().filter_map(|name| {
        let at = line.find(name)?;
        let before = line.get(..at)?;
        (before.is_empty()
            || before.ends_with("sudo ")
            || before.ends_with("| ")
            || before.ends_with("&& ")
            || before.ends_with("sudo -u facade "))
        .then_some(at)
    });
    let rest = line.get(begin.min()?..)?;
    let end = [" | ", " > ", " < ", " && ", " #", " &"].iter().filter_map(|mark| rest.find(mark)).min();
    rest.get(..end.unwrap_or(rest.len()))
}

/// What is wrong with a command, if anything is.
fn wrong(command: &str) -> Option<clap::Error> {
    let split = format!("printf '%s\\n' {}", command.replace('…', "x"));
    let words = Outcome::of(Command::new("sh").args(["-c", &split]), b"").expect_success();
    let words: Vec<&str> = words.stdout.lines().collect();
    let definition = if command.starts_with("facade") {
        facade::cli::Cli::definition()
    } else {
        device_agent::cli::Cli::command()
    };
    definition.try_get_matches_from(words).err()
}

#[test]
fn commands_that_cannot_be_run_here_are_commands_all_the_same() {
    let mut held = 0;
    for page in pages() {
        for block in blocks(&page).iter().filter(|block| block.kind == "sh elsewhere") {
            for line in block.text.replace("\\\n", " ").lines() {
                let Some(command) = ours(line) else { continue };
                if let Some(error) = wrong(command) {
                    panic!("{}, line {}: {error}", block.page, block.line);
                }
                held += 1;
            }
        }
    }
    assert!(held > 10, "{held}");
}

#[test]
fn commands_within_sentences_are_commands() {
    let mut held = 0;
    for page in pages() {
        for text in read(&page).split('`').skip(1).step_by(2) {
            let plain = !text.contains(['\n', '|', '<', '>', '\'', '"', '(', ')', '&', ';', '$']);
            let ours = ["facade ", "device-agent "].iter().any(|name| text.starts_with(name));
            if !plain || !ours {
                continue;
            }
            // A sentence need not say all that a command needs.
            let allowed = [
                ErrorKind::MissingRequiredArgument,
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                ErrorKind::InvalidValue,
            ];
            if let Some(error) = wrong(text).filter(|error| !allowed.contains(&error.kind())) {
                panic!("{page}: `{text}`: {error}");
            }
            held += 1;
        }
    }
    assert!(held > 50, "{held}");
}

#[test]
fn settings_on_the_pages_are_settings() {
    let directory = TempDir::new().expect("make a directory");
    let file = directory.path().join("settings.toml");
    let (mut of_facade, mut of_agent) = (0, 0);
    for page in pages() {
        for block in blocks(&page) {
            let place = format!("{page}, line {}", block.line);
            fs::write(&file, &block.text).expect("write a file");
            if block.kind == "toml facade" {
                let flags =
                    facade::config::Flags { data_dir: directory.path().into(), config: Some(file.clone()) };
                let read = facade::config::load(&flags, &std::collections::BTreeMap::new());
                read.unwrap_or_else(|error| panic!("{place}: {error}"));
                of_facade += 1;
            } else if block.kind == "toml agent" {
                let mut agent = process::command("device-agent");
                agent.arg("status").arg("--config").arg(&file).arg("--state-dir").arg(directory.path());
                let outcome = Outcome::of(&mut agent, b"");
                assert_ne!(outcome.code, 2, "{place}: {}", outcome.stderr);
                of_agent += 1;
            }
        }
    }
    assert!(of_facade > 2 && of_agent > 0, "{of_facade} {of_agent}");
}
