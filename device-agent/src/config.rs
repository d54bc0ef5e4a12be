//! All settings of the agent, read once and already valid.
//!
//! Command line over environment over file over default. Every key exists in all three places under one name: `stall`
//! is `stall = "60s"` in `agent.toml`, `DEVICE_AGENT_STALL` in the environment; `apply_unit` may also be `unit` in the
//! section `[apply]`. Every mistake is reported at once, with
//! the place it came from; an unknown key is a mistake that names the nearest known one. No other module reads the
//! environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pki::oci::Platform;
use pki::wire::DevicePolicy;
use pki::x509::KeyKind;
use thiserror::Error;

use crate::apply::Apply;
use crate::identity::keys::{Keys, Place};
use crate::journal::is_standard_error;
use crate::policy::METERED_INTERFACES;
use crate::probe::Probe;
use crate::runtime::containerd::Identifier;

mod operator;
mod parse;
mod proxy;
mod restrictions;

pub use parse::nearest;
pub use proxy::Proxy;

/// Where the file is looked for unless `--config` says otherwise; it need not be there.
pub const DEFAULT_FILE: &str = "/etc/device-agent/agent.toml";
/// What every environment variable of ours starts with.
pub const ENVIRONMENT_PREFIX: &str = "DEVICE_AGENT_";

/// The settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the agent keeps its identity, metadata and state.
    pub state_dir: PathBuf,
    /// Where images are handed to.
    pub sink: Sink,
    /// The socket of containerd.
    pub containerd_address: PathBuf,
    /// The containerd namespace that holds our images.
    pub namespace: Identifier,
    /// The snapshotter that images are unpacked into, when it is not the namespace's or containerd's own default.
    pub snapshotter: Option<Identifier>,
    /// The platform to choose images for, when it is not the one found on the machine.
    pub platform: Option<Platform>,
    /// A file with an enrollment token, for a device that enrolls without anybody at hand.
    pub token_file: Option<PathBuf>,
    /// Where the device's key is, and of which kind it is.
    pub keys: Keys,
    /// The HTTP proxy on the way to the facade.
    pub proxy: Option<Proxy>,
    /// How often to check when the facade cannot tell us.
    pub poll: Duration,
    /// How many layers are fetched side by side.
    pub parallel: usize,
    /// How long a connection may bring nothing.
    pub stall: Duration,
    /// The slowest a connection may be, in bytes per second, over [`Config::rate_window`].
    pub minimum_rate: u64,
    /// Over which time the minimum rate is measured.
    pub rate_window: Duration,
    /// When, how fast and how long to download and apply; the facade may restrict it further.
    pub policy: DevicePolicy,
    /// Names of interfaces that are paid by volume; `*` at the end stands for anything.
    pub metered_interfaces: Vec<String>,
    /// Bytes that stay free on the disk.
    pub reserve_bytes: u64,
    /// How long an image that is not assigned any more stays.
    pub grace: Duration,
    /// Who is told of new images.
    pub apply: Apply,
    /// How it shows that they work.
    pub probe: Probe,
    /// How much is logged: `error`, `warn`, `info`, `debug`, `trace`.
    pub log: tracing::Level,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Whether logs on a terminal may be coloured; `NO_COLOR` forbids it.
    pub colour: bool,
    /// Whether standard error is the systemd journal.
    pub journal: bool,
}

/// Where images are handed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// containerd, at [`Config::containerd_address`].
    Containerd,
    /// An OCI image layout directory.
    OciLayout(PathBuf),
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Containerd => f.write_str("containerd"),
            Self::OciLayout(directory) => write!(f, "oci-layout:{}", directory.display()),
        }
    }
}

/// The shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Plain on a terminal, entries with fields in the systemd journal, JSON otherwise.
    Auto,
    /// For people.
    Plain,
    /// One JSON object per line.
    Json,
}

/// One mistake in the settings.
#[derive(Debug, Error)]
#[error("{origin}: {problem}")]
pub struct Mistake {
    origin: Origin,
    problem: String,
}

/// Every mistake in the settings.
#[derive(Debug, Error)]
pub struct ConfigError(Vec<Mistake>);

impl ConfigError {
    /// The mistakes, in the order they were found.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{mistake}")?;
        }
        Ok(())
    }
}

/// Where a setting was found.
#[derive(Clone, Debug)]
enum Origin {
    File(PathBuf),
    Environment(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// The settings as texts, each with where it came from; a later source replaces an earlier one.
#[derive(Default)]
struct Texts {
    texts: BTreeMap<&'static str, (Origin, String)>,
    mistakes: Vec<Mistake>,
}

/// What the command line says: the file, and settings by key.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Settings by key, as they were typed.
    pub settings: Vec<(&'static str, String)>,
}

impl Config {
    /// Reads the settings of this process.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        Self::read(flags, std::env::vars_os())
    }

    fn read(
        flags: &Flags,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut texts = Texts::default();
        let (mut colour, mut no_proxy, mut journal, mut credentials) = (true, None, false, None);
        let environment = environment.inspect(|(name, text)| {
            colour &= name != "NO_COLOR" || text.is_empty();
            journal |= name == "JOURNAL_STREAM" && text.to_str().is_some_and(is_standard_error);
            if name == "NO_PROXY" || name == "no_proxy" {
                no_proxy = text.to_str().map(str::to_owned);
            }
            if name == "CREDENTIALS_DIRECTORY" {
                credentials = Some(PathBuf::from(text));
            }
        });
        let (ours, general) = split_environment(environment, &mut texts.mistakes);
        if let Some(proxy) = general {
            texts.set("proxy", Origin::Environment("HTTPS_PROXY".into()), proxy);
        }
        let named = flags.file.clone().or_else(|| ours.get("CONFIG").map(PathBuf::from));
        texts.read_file(named.as_deref());
        for (name, text) in ours.into_iter().filter(|(name, _)| name != "CONFIG") {
            let full = format!("{ENVIRONMENT_PREFIX}{name}");
            texts.set_unchecked(&name.to_ascii_lowercase(), Origin::Environment(full), text);
        }
        for (key, text) in &flags.settings {
            let origin = Origin::Flag(format!("--{}", key.replace('_', "-")));
            texts.set(key, origin, text.clone());
        }
        let mut config = texts.build()?;
        config.colour = colour;
        config.journal = journal;
        config.keys.credentials = credentials;
        if let Some(list) = no_proxy {
            config.proxy = config.proxy.map(|proxy| proxy.except(&list));
        }
        Ok(config)
    }
}

/// Our variables without their prefix, and the proxy that all programs share.
fn split_environment(
    environment: impl Iterator<Item = (OsString, OsString)>,
    mistakes: &mut Vec<Mistake>,
) -> (BTreeMap<String, String>, Option<String>) {
    let mut ours = BTreeMap::new();
    let mut general = None;
    for (name, text) in environment {
        let Some(name) = name.to_str() else { continue };
        let own = name.strip_prefix(ENVIRONMENT_PREFIX);
        if own.is_none() && !matches!(name, "HTTPS_PROXY" | "https_proxy") {
            continue;
        }
        match (own, text.into_string()) {
            (Some(key), Ok(text)) => {
                ours.insert(key.to_owned(), text);
            }
            (None, Ok(text)) if !text.is_empty() => general = Some(text),
            (None, Ok(_)) => {}
            (_, Err(_)) => mistakes.push(Mistake {
                origin: Origin::Environment(name.to_owned()),
                problem: "is not UTF-8".into(),
            }),
        }
    }
    (ours, general)
}

impl Texts {
    fn read_file(&mut self, named: Option<&Path>) {
        let path = named.unwrap_or_else(|| Path::new(DEFAULT_FILE));
        let origin = || Origin::File(path.to_owned());
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return self.mistake(origin(), format!("cannot be read: {error}")),
        };
        match text.parse::<toml::Table>() {
            Ok(table) => {
                for (key, value) in flat(table) {
                    match as_text(&value) {
                        Some(text) => self.set_unchecked(&key, origin(), text),
                        None => self
                            .mistake(origin(), format!("{key} must be a text, a list of texts or a number")),
                    }
                }
            }
            Err(error) => self.mistake(origin(), format!("is not TOML: {}", error.message())),
        }
    }

    fn set(&mut self, key: &'static str, origin: Origin, text: String) {
        self.texts.insert(key, (origin, text));
    }

    fn set_unchecked(&mut self, key: &str, origin: Origin, text: String) {
        if let Some(known) = KEYS.iter().find(|known| **known == key) {
            return self.set(known, origin, text);
        }
        let hint = nearest(key, &KEYS).map_or_else(
            || format!("known keys: {}", KEYS.join(", ")),
            |near| format!("did you mean {near}?"),
        );
        self.mistake(origin, format!("unknown key {key:?}; {hint}"));
    }

    fn mistake(&mut self, origin: Origin, problem: String) {
        self.mistakes.push(Mistake { origin, problem });
    }

    /// Settings that are right by themselves and wrong together.
    fn contradiction(&mut self, problem: &str) {
        self.mistake(Origin::Flag("settings".to_owned()), problem.to_owned());
    }

    /// Takes one setting through its parser; a mistake is noted and the default stands in, so that all are found.
    fn take<T>(&mut self, key: &'static str, default: T, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let Some((origin, text)) = self.texts.remove(key) else {
            return default;
        };
        match parse(&text) {
            Ok(value) => value,
            Err(problem) => {
                self.mistake(origin, format!("{key}: {problem}"));
                default
            }
        }
    }

    fn build(mut self) -> Result<Config, ConfigError> {
        let optional = |text: &str| parse::path(text).map(Some);
        let kind_origin = self.texts.get("key_type").map(|(origin, _)| origin.clone());
        let mut config = Config {
            state_dir: self.take("state_dir", PathBuf::from("/var/lib/device-agent"), parse::path),
            sink: self.take("sink", Sink::Containerd, parse::sink),
            containerd_address: self.take(
                "containerd_address",
                PathBuf::from("/run/containerd/containerd.sock"),
                parse::socket,
            ),
            namespace: self.take("namespace", default_namespace(), parse::identifier),
            snapshotter: self.take("snapshotter", None, |text| parse::identifier(text).map(Some)),
            platform: self.take("platform", None, parse::platform),
            token_file: self.take("token_file", None, optional),
            keys: Keys {
                place: self.take("key", Place::File, parse::key_place),
                kind: self.take("key_type", KeyKind::P256, parse::key_kind),
                credentials: None,
            },
            proxy: self.take("proxy", None, Proxy::parse_setting),
            poll: self.take("poll", Duration::from_secs(300), parse::duration),
            parallel: self.take("parallel", 3, |text| parse::number(text, 1, 8)),
            stall: self.take("stall", Duration::from_secs(60), parse::duration),
            minimum_rate: self.take("minimum_rate", 1024, parse::bytes),
            rate_window: self.take("rate_window", Duration::from_secs(300), parse::duration),
            reserve_bytes: self.take("reserve", 64 << 20, parse::bytes),
            grace: self.take("grace", Duration::from_secs(24 * 3600), parse::duration),
            policy: self.policy(),
            metered_interfaces: self.take("metered_interfaces", names(METERED_INTERFACES), parse::names),
            apply: self.apply(),
            probe: self.probe(),
            log: self.take("log", tracing::Level::INFO, parse::level),
            log_format: self.take("log_format", LogFormat::Auto, parse::log_format),
            colour: true,
            journal: false,
        };
        config.apply.place = config.place();
        let in_token = matches!(config.keys.place, Place::Token(_));
        if let Some(origin) = kind_origin.filter(|_| in_token && config.keys.kind == KeyKind::Ed25519) {
            self.mistake(origin, "key_type: a key in a PKCS#11 token is always a p256 one".to_owned());
        }
        if self.mistakes.is_empty() { Ok(config) } else { Err(ConfigError(self.mistakes)) }
    }
}

fn names(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// The namespace of SPEC 7.
fn default_namespace() -> Identifier {
    #[expect(clippy::expect_used, reason = "a constant that the tests parse")]
    "drayage".parse().expect("a well-formed identifier")
}

/// The keys of a section begin with its name: `unit` in `[apply]` is `apply_unit`.
fn flat(table: toml::Table) -> Vec<(String, toml::Value)> {
    let mut flat = Vec::new();
    for (key, value) in table {
        if let toml::Value::Table(section) = value {
            flat.extend(section.into_iter().map(|(inner, value)| (format!("{key}_{inner}"), value)));
        } else {
            flat.push((key, value));
        }
    }
    flat
}

fn as_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::Array(words) => {
            let words: Option<Vec<&str>> = words.iter().map(toml::Value::as_str).collect();
            serde_json::to_string(&words?).ok()
        }
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// Every key, in the order of the documentation.
pub const KEYS: [&str; 34] = [
    "state_dir",
    "sink",
    "containerd_address",
    "namespace",
    "snapshotter",
    "platform",
    "token_file",
    "key",
    "key_type",
    "proxy",
    "poll",
    "parallel",
    "stall",
    "minimum_rate",
    "rate_window",
    "reserve",
    "grace",
    "download_window",
    "download_rate",
    "download_metered",
    "download_deadline",
    "metered_interfaces",
    "apply_window",
    "apply_command",
    "apply_unit",
    "apply_timeout",
    "probe_command",
    "probe_http",
    "probe_tcp",
    "probe_within",
    "probe_interval",
    "probe_timeout",
    "log",
    "log_format",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        file: &str,
        environment: &[(&str, &str)],
        flags: &[(&'static str, &str)],
    ) -> Result<Config, String> {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(temporary.path(), file).unwrap();
        let flags = Flags {
            file: Some(temporary.path().to_owned()),
            settings: flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect(),
        };
        let environment = environment.iter().map(|(name, text)| (OsString::from(name), OsString::from(text)));
        Config::read(&flags, environment).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let file = "namespace = \"file\"\nstall = \"10s\"\npoll = \"1h\"\n";
        let environment = [("DEVICE_AGENT_NAMESPACE", "env"), ("DEVICE_AGENT_STALL", "20s")];
        let config = read(file, &environment, &[("namespace", "flag")]).unwrap();
        assert_eq!(config.namespace.as_str(), "flag");
        assert_eq!(config.stall, Duration::from_secs(20));
        assert_eq!(config.poll, Duration::from_secs(3600));
        assert_eq!(config.sink, Sink::Containerd);
    }

    #[test]
    fn rejects_unknown_keys_and_names_the_nearest() {
        let error = read("namspace = \"x\"\n", &[("DEVICE_AGENT_STAL", "1s")], &[]).unwrap_err();
        assert!(error.contains("did you mean namespace?"), "{error}");
        assert!(error.contains("DEVICE_AGENT_STAL") && error.contains("did you mean stall?"), "{error}");
    }

    #[test]
    fn reports_all_mistakes_at_once() {
        let file = "poll = \"soon\"\nparallel = 99\nsink = \"tape\"\nplatform = \"x\"\nlog = []\n";
        let error = read(file, &[], &[("state_dir", "")]).unwrap_err();
        assert_eq!(error.lines().count(), 6, "{error}");
    }

    #[test]
    fn every_key_has_a_parser() {
        // A key without a parser would be accepted and then ignored.
        for key in KEYS {
            let mut texts = Texts::default();
            texts.set(key, Origin::Flag("--test".into()), String::new());
            assert!(texts.build().is_err(), "{key}");
        }
    }

    #[test]
    fn reads_sections_and_lists() {
        let file = "[apply]\ncommand = [\"/usr/bin/env\", \"true\"]\ntimeout = \"9s\"\n[probe]\ntcp = \"[::1]:80\"\n";
        let config = read(file, &[], &[]).unwrap();
        let program = crate::program::Program::new(vec!["/usr/bin/env".into(), "true".into()]).unwrap();
        assert_eq!(config.apply.whom, crate::apply::Whom::Program(program));
        assert_eq!(config.apply.timeout, Duration::from_secs(9));
        let unit = read("", &[("DEVICE_AGENT_APPLY_UNIT", "pump.service")], &[]).unwrap();
        assert!(matches!(unit.apply.whom, crate::apply::Whom::Unit(_)));
        let error = read("[apply]\nunti = \"x\"\n", &[], &[]).unwrap_err();
        assert!(error.contains("did you mean apply_unit?"), "{error}");
    }

    #[test]
    fn rejects_hooks_and_probes_that_contradict_each_other_or_cannot_be() {
        let both = "[apply]\ncommand = [\"/x\"]\nunit = \"a.service\"\n[probe]\ntcp = \"a:1\"\nhttp = \"http://a/\"\n";
        assert_eq!(read(both, &[], &[]).unwrap_err().lines().count(), 2);
        for (key, text) in [
            ("apply_command", "relative"),
            ("apply_command", "[]"),
            ("apply_unit", "--now"),
            ("apply_unit", "pump service"),
            ("probe_http", "https://a/"),
            ("probe_http", "ftp://a"),
            ("probe_tcp", "host"),
            ("probe_tcp", "host:99999"),
        ] {
            assert!(read("", &[], &[(key, text)]).is_err(), "{key} = {text}");
        }
    }

    #[test]
    fn reads_windows_and_rates_and_rejects_those_it_could_not_keep() {
        let file = "[download]\nwindow = \"22:00-05:00 UTC\"\nrate = \"2MiB/s\"\nmetered = \"no\"\ndeadline = \"36h\"\n[apply]\nwindow = \"Sun 01:00-02:00 +01:00\"\n";
        let policy = read(file, &[], &[]).unwrap().policy;
        assert_eq!(policy.download_window.unwrap().to_string(), "22:00-05:00 UTC");
        assert_eq!(policy.apply_window.unwrap().to_string(), "Sun 01:00-02:00 +01:00");
        assert_eq!(policy.rate_limit.unwrap().bytes_per_second(), 2 << 20);
        assert_eq!(policy.deadline.unwrap().to_string(), "36h");
        let error = read("", &[], &[("download_window", "22:00-05:00 Mars/Olympus")]).unwrap_err();
        assert!(error.contains("no time zone data for Mars/Olympus"), "{error}");
        assert!(read("", &[], &[("download_rate", "fast")]).unwrap_err().contains("2MiB/s"));
        let own = read("metered_interfaces = [\"lte0\", \"gsm*\"]\n", &[], &[]).unwrap();
        assert_eq!(own.metered_interfaces, ["lte0", "gsm*"]);
    }

    #[test]
    fn does_not_show_the_password_of_the_proxy() {
        let config = read("proxy = \"http://u:hunter2@proxy:3128\"\n", &[], &[]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn takes_the_proxy_that_all_programs_share() {
        let shared = [("HTTPS_PROXY", "http://shared:3128")];
        assert!(read("", &shared, &[]).unwrap().proxy.is_some());
        assert!(read("proxy = \"none\"\n", &shared, &[]).unwrap().proxy.is_none());
    }
}
