//! The house rules of the architecture, as tests: who may depend on whom, what stays pure, what has one place only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::facade::files_below;
use harness::process::Outcome;

/// Production lines a file may have, without blanks and comments.
const FILE_LINES: usize = 500;
/// Lines a `main.rs` may have.
const MAIN_LINES: usize = 80;

/// Files outside `pki` that decide and touch nothing (all of `pki` does not either).
const PURE: [&str; 12] = [
    "facade/src/authz.rs",
    "facade/src/catalog/allowance.rs",
    "facade/src/catalog/fleet.rs",
    "facade/src/console/oidc/id_token.rs",
    "facade/src/catalog/selector.rs",
    "facade/src/catalog/waves.rs",
    "facade/src/server/route.rs",
    "facade/src/upstream/challenge.rs",
    "facade/src/upstream/tags.rs",
    "device-agent/src/backoff.rs",
    "device-agent/src/lifecycle.rs",
    "device-agent/src/plan.rs",
];

/// What code that touches nothing has no use for.
const IMPURE: [&str; 13] = [
    "async ",
    ".await",
    "tokio",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
];

/// The files outside `facade/src/upstream` in which a secret is exposed, each reviewed.
const EXPOSING: [&str; 14] = [
    // The definition and its own test.
    "facade/src/secret.rs",
    // Into the seal, on its way to the store.
    "facade/src/catalog/registries.rs",
    // The operator's own token, to the operator's own server.
    "facade/src/cli/client.rs",
    // What docker's own configuration holds, to the operator's own server.
    "facade/src/cli/connection.rs",
    "facade/src/cli/docker_config.rs",
    // An operator's token: shown once when it is made, and hashed wherever one is presented.
    "facade/src/api/operators.rs",
    "facade/src/catalog/operators.rs",
    // The token of whoever signed in to the console, to the API of the same process.
    "facade/src/console/calls.rs",
    "facade/src/console/sign_in.rs",
    // A person's code and our own secret, to the identity provider that the configuration names; the code's length.
    "facade/src/console/oidc/provider.rs",
    "facade/src/console/oidc.rs",
    // The passphrase of an offline key, into the key derivation.
    "facade/src/keyfile.rs",
    // The one-time secret, to the facade its token pinned.
    "device-agent/src/identity/est.rs",
    // The enrollment token, printed once for the one who asked for it.
    "pki/src/wire/token.rs",
];

/// The public traits, each reviewed: three seams with two implementations, and what they are made of.
const TRAITS: [&str; 6] = [
    "trait Store",
    "trait Blobs",
    "trait Runtime",
    // A transfer in progress of a `Runtime`.
    "trait Ingest",
    // What the four roles of signed metadata have in common.
    "trait Document",
    "trait Successor",
];

/// A source file without its tests.
struct Source {
    name: String,
    code: String,
}

impl Source {
    /// Lines that do something: neither blank nor comment.
    fn lines(&self) -> usize {
        self.code.lines().filter(|line| !line.trim().is_empty()).count()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(directory: &str) -> Vec<Source> {
    let root = root();
    let files = files_below(&root.join(directory)).into_iter();
    // `tests.rs` beside a module holds its tests.
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let files = files.filter(|path| !path.ends_with("tests.rs"));
    let sources: Vec<Source> = files.map(|path| source(&root, &path)).collect();
    assert!(!sources.is_empty(), "no sources in {directory}");
    sources
}

fn source(root: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap_or_default();
    // House style: tests are the last thing in a file.
    let production = text.lines().take_while(|line| *line != "#[cfg(test)]");
    // Words in comments do nothing.
    let code = production.map(|line| if line.trim_start().starts_with("//") { "" } else { line });
    Source {
        name: path.strip_prefix(root).unwrap_or(path).display().to_string(),
        code: code.collect::<Vec<_>>().join("\n"),
    }
}

fn programs() -> Vec<Source> {
    ["pki/src", "facade/src", "device-agent/src"].into_iter().flat_map(sources).collect()
}

/// The crates `package` is built from.
fn dependencies(package: &str) -> Vec<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--package", package]);
    let tree = Outcome::of(cargo.current_dir(root()), b"").expect_success().stdout;
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn assert_without(package: &str, unwanted: &[&str]) {
    let dependencies = dependencies(package);
    assert!(dependencies.len() > 10, "{dependencies:?}");
    for name in unwanted {
        assert!(!dependencies.iter().any(|dependency| dependency == name), "{package} must not reach {name}");
    }
}

/// The lines of `sources` that have `word`, as `file: line`, outside the files `allowed` accepts.
fn lines_with(sources: &[Source], word: &str, allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let others = sources.iter().filter(|source| !allowed(&source.name));
    let lines = others.flat_map(|source| source.code.lines().map(move |line| (source, line)));
    let found = lines.filter(|(_, line)| line.contains(word));
    found.map(|(source, line)| format!("{}: {}", source.name, line.trim())).collect()
}

#[test]
fn pki_touches_nothing() {
    assert_without("pki", &["tokio", "hyper", "rustls", "sled", "reqwest", "mio"]);
    let sources = sources("pki/src");
    for word in IMPURE {
        assert_eq!(lines_with(&sources, word, |_| false), [""; 0]);
    }
}

#[test]
fn agent_carries_no_database_and_no_second_tls_library() {
    assert_without("device-agent", &["sled", "facade", "aws-lc-sys", "openssl-sys", "native-tls"]);
}

#[test]
fn facade_knows_no_agent_and_no_containerd() {
    assert_without("facade", &["device-agent", "containerd-client", "openssl-sys", "native-tls"]);
}

#[test]
fn deciding_code_stays_pure() {
    let programs = programs();
    for name in PURE {
        assert!(
            programs.iter().any(|source| source.name == name),
            "{name} is not where the architecture has it"
        );
    }
    let stem = |name: &str| name.trim_end_matches(".rs").to_owned();
    let pure =
        |name: &str| PURE.iter().any(|pure| name == *pure || name.starts_with(&format!("{}/", stem(pure))));
    for word in IMPURE {
        assert_eq!(lines_with(&programs, word, |name| !pure(name)), [""; 0]);
    }
}

#[test]
fn time_is_read_in_one_place_of_each_program() {
    let programs = programs();
    for word in ["SystemTime::now", "Timestamp::now", "Zoned::now", "OffsetDateTime::now"] {
        assert_eq!(lines_with(&programs, word, |name| name.ends_with("/src/clock.rs")), [""; 0]);
    }
}

#[test]
fn secrets_are_exposed_only_where_they_are_sent() {
    let allowed = |name: &str| name.starts_with("facade/src/upstream") || EXPOSING.contains(&name);
    assert_eq!(lines_with(&programs(), ".expose()", allowed), [""; 0]);
}

#[test]
fn store_alone_knows_its_database() {
    let allowed =
        |name: &str| name == "facade/src/store/sled.rs" || name.starts_with("facade/src/store/sled/");
    let mut sources = sources("facade/src");
    for source in &mut sources {
        // The path of our own module is not the database.
        source.code = source.code.replace("store::sled::", "");
    }
    assert_eq!(lines_with(&sources, "sled::", allowed), [""; 0]);
}

#[test]
fn there_are_no_traits_but_the_reviewed() {
    let traits = lines_with(&programs(), "pub trait ", |_| false);
    let others = traits.iter().filter(|line| !TRAITS.iter().any(|known| line.contains(known)));
    assert_eq!(others.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn files_are_rooms_not_halls() {
    let all = programs().into_iter().chain(sources("tests/harness"));
    let long = all.filter(|source| source.lines() > FILE_LINES);
    assert_eq!(long.map(|source| source.name).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn modules_and_mains_are_where_the_style_has_them() {
    for source in programs() {
        assert!(!source.name.ends_with("/mod.rs"), "{}: x.rs beside x/", source.name);
        let short = !source.name.ends_with("/main.rs") || source.lines() <= MAIN_LINES;
        assert!(short, "{} is longer than {MAIN_LINES} lines", source.name);
    }
}

/// Debian's own compiler, with which `cross/build` works where rustup reaches no server, is older than conditions that
/// chain `let` (Rust 1.88); rustc does not hold a package to its `rust-version`.
#[test]
fn agent_is_written_in_the_rust_that_it_says() {
    for source in ["pki/src", "device-agent/src"].into_iter().flat_map(sources) {
        let chained = source.code.lines().zip(source.code.lines().skip(1)).find(|(line, next)| {
            let lets =
                ["if let ", "while let ", "} else if let "].iter().any(|word| line.trim().starts_with(word));
            next.contains("&& let ") || (lets && next.trim().starts_with("&&"))
        });
        assert_eq!(chained, None, "{}", source.name);
    }
}
