//! All settings: the only place that reads the environment or a configuration file.
//!
//! Each setting is one row of [`SETTINGS`]: its key in `facade.toml`, its help, its default, and how its text is read.
//! The environment variable of a key is `FACADE_` and the key in capitals. A flag wins over the environment, the
//! environment over the file, the file over the default. Every error is reported, not only the first.

mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::operator_door::TrustedProxies;
use crate::secret::Secret;
use crate::service::is_standard_error;
use crate::upstream::AwsEnvironment;
pub use values::duration;
pub(crate) use values::is_private_url;
use values::{
    address, boolean, count, list, percent, proxies, size, some_duration, some_https_url, some_origin,
    some_path, some_size, some_text, some_web_url, text,
};

/// Where the configuration is looked for when no file is named, after `facade.toml` in the data directory.
const SYSTEM_FILE: &str = "/etc/facade/facade.toml";

/// A complete and valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything the facade keeps.
    pub data_dir: PathBuf,
    /// Address of the device door.
    pub device_listen: SocketAddr,
    /// Address of the operator door.
    pub operator_listen: SocketAddr,
    /// Certificate chain of the operator door, PEM.
    pub operator_tls_certificate: Option<PathBuf>,
    /// Private key of the operator door, PEM.
    pub operator_tls_key: Option<PathBuf>,
    /// Where browsers find the operator door, as the identity provider sends them back.
    pub operator_url: Option<String>,
    /// The identity provider for the console.
    pub oidc_issuer: Option<String>,
    /// The name by which it knows this facade.
    pub oidc_client_id: Option<String>,
    /// File with the secret that it gave us.
    pub oidc_client_secret_file: Option<PathBuf>,
    /// Further authorities of its certificate, PEM.
    pub oidc_ca_file: Option<PathBuf>,
    /// What it is asked for.
    pub oidc_scopes: String,
    /// The claim that names people.
    pub oidc_name_claim: String,
    /// The claim that gives roles.
    pub oidc_role_claim: String,
    /// Values of that claim that make an admin.
    pub oidc_admins: Vec<String>,
    /// Values of that claim that make an operator.
    pub oidc_operators: Vec<String>,
    /// Values of that claim that make a viewer.
    pub oidc_viewers: Vec<String>,
    /// Reverse proxies in front of the operator door, whose `X-Forwarded-For` is believed.
    pub operator_trusted_proxies: TrustedProxies,
    /// The address devices are told; by default the first host name and the port of the device door.
    pub public_url: Option<String>,
    /// Key that seals secrets; by default `keys/seal.key` in the data directory.
    pub seal_key_file: Option<PathBuf>,
    /// How long `GET /v1/wait` waits for news.
    pub wait_timeout: Duration,
    /// How long open requests may finish after a signal to stop.
    pub drain_timeout: Duration,
    /// What is logged, in the syntax of `tracing-subscriber`'s `EnvFilter`.
    pub log: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
    /// Whether standard error is the systemd journal, which then gets entries with fields.
    pub log_journal: bool,
    /// Where traces go: an OTLP collector over HTTP.
    pub otlp_endpoint: Option<String>,
    /// How many of a hundred traces are sent.
    pub trace_percent: u8,
    /// Whether pulled content is kept.
    pub cache_enabled: bool,
    /// Bytes the cache may hold; unlimited when absent.
    pub cache_max_size_bytes: Option<u64>,
    /// How long content stays without being asked for; unlimited when absent.
    pub cache_max_age: Option<Duration>,
    /// Bytes that stay free on the cache's filesystem.
    pub cache_min_free_bytes: u64,
    /// Bytes of the access log that operators look into.
    pub access_log_max_size_bytes: u64,
    /// How long a registry that served wrong bytes for some content is not asked for it again.
    pub wrong_content_memory: Duration,
    /// Most connections at the device door.
    pub max_connections: usize,
    /// Most connections from one address at the device door.
    pub max_connections_per_address: usize,
    /// Bytes a second to one device; unlimited when absent.
    pub device_bandwidth_bytes: Option<u64>,
    /// Bytes a second to all devices together; unlimited when absent.
    pub total_bandwidth_bytes: Option<u64>,
    /// Life of a device certificate.
    pub device_certificate_lifetime: Duration,
    /// How long after its end a device certificate can still renew itself.
    pub device_certificate_grace: Duration,
    /// Life of the timestamp role's metadata.
    pub timestamp_lifetime: Duration,
    /// Life of the snapshot role's and the director's targets metadata.
    pub snapshot_lifetime: Duration,
    /// Life of the images repository's targets metadata.
    pub targets_lifetime: Duration,
    /// Time between dumps of the database.
    pub dump_interval: Duration,
    /// Proxy for `https` upstreams.
    pub https_proxy: Option<String>,
    /// Proxy for `http` upstreams.
    pub http_proxy: Option<String>,
    /// Hosts reached without a proxy.
    pub no_proxy: Option<String>,
    /// Token endpoint instead of Google's.
    pub google_token_endpoint: Option<String>,
    /// Endpoint instead of AWS STS.
    pub aws_sts_endpoint: Option<String>,
    /// Endpoint instead of AWS ECR.
    pub aws_ecr_endpoint: Option<String>,
    /// Instance metadata service instead of AWS's.
    pub aws_imds_endpoint: Option<String>,
    /// Login host instead of Azure's.
    pub azure_authority: Option<String>,
    /// AWS credentials of the facade's own environment, under the names that AWS's tools read.
    pub aws_environment: AwsEnvironment,
}

impl Config {
    /// The defaults for a data directory.
    fn new(data_dir: PathBuf) -> Self {
        const DAY: Duration = Duration::from_hours(24);
        Self {
            data_dir,
            device_listen: SocketAddr::from(([0, 0, 0, 0], 8443)),
            operator_listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            operator_tls_certificate: None,
            operator_tls_key: None,
            operator_trusted_proxies: TrustedProxies::default(),
            operator_url: None,
            oidc_issuer: None,
            oidc_client_id: None,
            oidc_client_secret_file: None,
            oidc_ca_file: None,
            oidc_scopes: "openid profile email".to_owned(),
            oidc_name_claim: "email".to_owned(),
            oidc_role_claim: "groups".to_owned(),
            oidc_admins: Vec::new(),
            oidc_operators: Vec::new(),
            oidc_viewers: Vec::new(),
            public_url: None,
            seal_key_file: None,
            wait_timeout: Duration::from_secs(55),
            drain_timeout: Duration::from_secs(30),
            log: "info".to_owned(),
            log_json: false,
            log_journal: false,
            otlp_endpoint: None,
            trace_percent: 100,
            cache_enabled: true,
            cache_max_size_bytes: None,
            cache_max_age: None,
            cache_min_free_bytes: 512 * 1024 * 1024,
            access_log_max_size_bytes: 64 * 1024 * 1024,
            wrong_content_memory: Duration::from_mins(1),
            max_connections: 20_000,
            max_connections_per_address: 2_000,
            device_bandwidth_bytes: None,
            total_bandwidth_bytes: None,
            device_certificate_lifetime: 30 * DAY,
            device_certificate_grace: 90 * DAY,
            timestamp_lifetime: 7 * DAY,
            snapshot_lifetime: 30 * DAY,
            targets_lifetime: 365 * DAY,
            dump_interval: DAY,
            https_proxy: None,
            http_proxy: None,
            no_proxy: None,
            google_token_endpoint: None,
            aws_sts_endpoint: None,
            aws_ecr_endpoint: None,
            aws_imds_endpoint: None,
            azure_authority: None,
            aws_environment: AwsEnvironment::default(),
        }
    }
}

/// One setting.
pub struct Setting {
    /// The key in `facade.toml`.
    pub key: &'static str,
    /// What it does, with its default.
    pub help: &'static str,
    read: fn(&mut Config, &str) -> Result<(), String>,
}

impl Setting {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("FACADE_{}", self.key.to_ascii_uppercase())
    }
}

macro_rules! settings {
    ($($key:ident: $read:expr, $help:literal;)*) => {
        /// Every setting, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: stringify!($key),
            help: $help,
            read: |config, text| { config.$key = $read(text)?; Ok(()) },
        }),*];
    };
}

settings! {
    device_listen: address, "address of the device door (0.0.0.0:8443)";
    operator_listen: address, "address of the operator door (127.0.0.1:8080); other than loopback only with a certificate";
    operator_tls_certificate: some_path, "certificate chain of the operator door, PEM";
    operator_tls_key: some_path, "private key of the operator door, PEM";
    operator_trusted_proxies: proxies, "reverse proxies whose X-Forwarded-For is believed, for example 127.0.0.1, 10.0.0.0/8 (none)";
    operator_url: some_origin, "where browsers find the console, for sign-in with an identity provider (none)";
    oidc_issuer: some_origin, "identity provider (OpenID Connect) with which people sign in to the console (none)";
    oidc_client_id: some_text, "the name by which it knows this facade";
    oidc_client_secret_file: some_path, "file with the secret that goes with the name (none: a public client)";
    oidc_ca_file: some_path, "further certificate authorities of the identity provider, PEM (the system's)";
    oidc_scopes: text, "what it is asked for (openid profile email)";
    oidc_name_claim: text, "the claim that names people in the audit log (email)";
    oidc_role_claim: text, "the claim that gives roles; realm_access.roles looks inside (groups)";
    oidc_admins: list, "values of that claim that make an admin, separated by commas";
    oidc_operators: list, "values of that claim that make an operator";
    oidc_viewers: list, "values of that claim that make a viewer";
    public_url: some_https_url, "what devices are told (https://<first host name>:<device port>)";
    seal_key_file: some_path, "key that seals registry secrets (keys/seal.key in the data directory)";
    wait_timeout: duration, "how long a device's wait for news lasts (55s)";
    drain_timeout: duration, "how long open requests may finish when the server stops (30s)";
    log: text, "what is logged, for example info or facade=debug (info)";
    log_json: boolean, "whether log lines are JSON (false; always when standard error is not a terminal)";
    otlp_endpoint: some_web_url, "collector that traces are sent to, OTLP over HTTP, for example http://127.0.0.1:4318; OTEL_EXPORTER_OTLP_ENDPOINT where this is not set (none)";
    trace_percent: percent, "how many of a hundred traces are sent (100)";
    cache_enabled: boolean, "whether pulled content is kept (true)";
    cache_max_size_bytes: some_size, "most bytes in the cache, for example 50GiB (unlimited)";
    cache_max_age: some_duration, "how long unused content stays, for example 90d (unlimited)";
    cache_min_free_bytes: size, "bytes that stay free on the cache's disk (512MiB)";
    access_log_max_size_bytes: size, "most bytes of the access log that facade pulls and the console show (64MiB)";
    wrong_content_memory: duration, "how long a registry that served wrong bytes of something is not asked for it again (1m)";
    max_connections: count, "most device connections (20000)";
    max_connections_per_address: count, "most device connections from one address (2000)";
    device_bandwidth_bytes: some_size, "bytes a second to one device (unlimited)";
    total_bandwidth_bytes: some_size, "bytes a second to all devices (unlimited)";
    device_certificate_lifetime: duration, "life of a device certificate (30d)";
    device_certificate_grace: duration, "how long an expired device certificate can renew itself (90d)";
    timestamp_lifetime: duration, "life of signed timestamps (7d)";
    snapshot_lifetime: duration, "life of signed snapshots and of the director's targets (30d)";
    targets_lifetime: duration, "life of the images repository's signed targets (365d)";
    dump_interval: duration, "time between dumps of the database (1d)";
    https_proxy: some_text, "proxy for https registries; HTTPS_PROXY where this is not set";
    http_proxy: some_text, "proxy for http registries; HTTP_PROXY where this is not set";
    no_proxy: some_text, "hosts reached without proxy; NO_PROXY where this is not set";
    google_token_endpoint: some_text, "token endpoint instead of Google's own";
    aws_sts_endpoint: some_text, "endpoint instead of AWS STS's own; AWS_ENDPOINT_URL_STS where this is not set";
    aws_ecr_endpoint: some_text, "endpoint instead of AWS ECR's own; AWS_ENDPOINT_URL_ECR where this is not set";
    aws_imds_endpoint: some_text, "instance metadata service instead of AWS's own; AWS_EC2_METADATA_SERVICE_ENDPOINT where this is not set";
    azure_authority: some_text, "login host instead of Azure's own; AZURE_AUTHORITY_HOST where this is not set";
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// Everything that is wrong, one line each.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--data-dir`.
    pub data_dir: PathBuf,
    /// `--config`.
    pub config: Option<PathBuf>,
}

/// Reads the configuration of `facade serve` from the file, the environment and the flags.
pub fn load(flags: &Flags, environment: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let mut config = Config::new(flags.data_dir.clone());
    let mut errors = Vec::new();
    read_foreign(&mut config, environment, &mut errors);
    if let Some(path) = find_file(flags) {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
        read_file(&mut config, &path, &text, &mut errors);
    }
    read_environment(&mut config, environment, &mut errors);
    config.aws_environment = aws_environment(environment);
    config.log_journal =
        !config.log_json && environment.get("JOURNAL_STREAM").is_some_and(|stream| is_standard_error(stream));
    check(&config, &mut errors);
    if errors.is_empty() { Ok(config) } else { Err(ConfigError::Invalid(errors)) }
}

/// The process's environment, as far as it is text.
pub fn environment() -> BTreeMap<String, String> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).collect()
}

fn find_file(flags: &Flags) -> Option<PathBuf> {
    if flags.config.is_some() {
        return flags.config.clone();
    }
    [flags.data_dir.join("facade.toml"), PathBuf::from(SYSTEM_FILE)].into_iter().find(|path| path.exists())
}

fn read_file(config: &mut Config, path: &Path, text: &str, errors: &mut Vec<String>) {
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return errors.push(format!("{}: {error}", path.display())),
    };
    for (key, value) in &table {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            errors.push(format!(
                "{}: {}",
                path.display(),
                unknown(key, SETTINGS.iter().map(|setting| setting.key))
            ));
            continue;
        };
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(switch) => switch.to_string(),
            toml::Value::Float(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_)
            | toml::Value::Table(_) => {
                errors
                    .push(format!("{}: {key} must be a text, a whole number, true or false", path.display()));
                continue;
            }
        };
        if let Err(error) = (setting.read)(config, &text) {
            errors.push(format!("{}: {key}: {error}", path.display()));
        }
    }
}

/// Variables that other programs read too, and the settings they stand for where those are not set.
const FOREIGN: [(&str, &str); 8] = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint"),
    ("HTTPS_PROXY", "https_proxy"),
    ("HTTP_PROXY", "http_proxy"),
    ("NO_PROXY", "no_proxy"),
    ("AWS_ENDPOINT_URL_STS", "aws_sts_endpoint"),
    ("AWS_ENDPOINT_URL_ECR", "aws_ecr_endpoint"),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "aws_imds_endpoint"),
    ("AZURE_AUTHORITY_HOST", "azure_authority"),
];

fn read_foreign(config: &mut Config, environment: &BTreeMap<String, String>, errors: &mut Vec<String>) {
    for (name, key) in FOREIGN {
        // curl and its like read the proxies in lower case as well.
        let value = environment.get(name).or_else(|| environment.get(&name.to_ascii_lowercase()));
        let setting = SETTINGS.iter().find(|setting| setting.key == key);
        if let (Some(value), Some(setting)) = (value, setting)
            && !value.is_empty()
            && let Err(error) = (setting.read)(config, value)
        {
            errors.push(format!("{name}: {error}"));
        }
    }
}

fn read_environment(config: &mut Config, environment: &BTreeMap<String, String>, errors: &mut Vec<String>) {
    let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("FACADE_")) {
        match SETTINGS.iter().zip(&known).find(|(_, variable)| *variable == name) {
            Some((setting, _)) => {
                if let Err(error) = (setting.read)(config, value) {
                    errors.push(format!("{name}: {error}"));
                }
            }
            None if OPERATOR_VARIABLES.contains(&name.as_str()) => {}
            None => errors.push(unknown(name, known.iter().map(String::as_str))),
        }
    }
}

fn aws_environment(environment: &BTreeMap<String, String>) -> AwsEnvironment {
    let text = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    let relative =
        text("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("http://169.254.170.2{path}"));
    AwsEnvironment {
        access_key_id: text("AWS_ACCESS_KEY_ID"),
        secret_access_key: text("AWS_SECRET_ACCESS_KEY").map(Secret::new),
        session_token: text("AWS_SESSION_TOKEN").map(Secret::new),
        web_identity_token_file: text("AWS_WEB_IDENTITY_TOKEN_FILE").map(PathBuf::from),
        web_identity_role_arn: text("AWS_ROLE_ARN"),
        container_credentials_url: relative.or_else(|| text("AWS_CONTAINER_CREDENTIALS_FULL_URI")),
        container_authorization_file: text("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(PathBuf::from),
        container_authorization: text("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(Secret::new),
        use_instance_metadata: text("AWS_EC2_METADATA_DISABLED")
            .is_none_or(|value| !value.eq_ignore_ascii_case("true")),
    }
}

/// Variables of the command line's other verbs; the server ignores them.
const OPERATOR_VARIABLES: [&str; 7] = [
    "FACADE_SERVER",
    "FACADE_TOKEN_FILE",
    "FACADE_CA_FILE",
    "FACADE_PROFILE",
    "FACADE_KEY_PASSPHRASE_FILE",
    "FACADE_DATA_DIR",
    "FACADE_CONFIG",
];

fn check(config: &Config, errors: &mut Vec<String>) {
    let with_certificate = config.operator_tls_certificate.is_some();
    if with_certificate != config.operator_tls_key.is_some() {
        errors.push(
            "operator_tls_certificate and operator_tls_key go together: set both or neither".to_owned(),
        );
    }
    check_sign_in(config, errors);
    // A bearer token over plain HTTP on a network is a token for everybody on it.
    if !config.operator_listen.ip().is_loopback() && !with_certificate {
        errors.push(format!(
            "operator_listen: {} is not a loopback address: set operator_tls_certificate and operator_tls_key, or listen on 127.0.0.1",
            config.operator_listen
        ));
    }
}

/// Sign-in with an identity provider is whole, or not there.
fn check_sign_in(config: &Config, errors: &mut Vec<String>) {
    let roles = [&config.oidc_admins, &config.oidc_operators, &config.oidc_viewers];
    let parts = [
        ("oidc_issuer", config.oidc_issuer.is_some()),
        ("oidc_client_id", config.oidc_client_id.is_some()),
        ("operator_url", config.operator_url.is_some()),
        ("oidc_admins, oidc_operators or oidc_viewers", roles.iter().any(|values| !values.is_empty())),
    ];
    if config.oidc_issuer.is_none() && config.oidc_client_id.is_none() {
        return;
    }
    for (name, _) in parts.iter().filter(|(_, there)| !there) {
        errors.push(format!("sign-in with an identity provider needs {name} too"));
    }
    if !config.oidc_scopes.split_whitespace().any(|scope| scope == "openid") {
        errors.push("oidc_scopes: openid must be among them".to_owned());
    }
}

/// The complaint about an unknown key, with the nearest known one.
pub fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    match nearest(key, known, 0.0) {
        Some(nearest) => format!("unknown setting {key:?} (did you mean {nearest:?}?)"),
        None => format!("unknown setting {key:?}"),
    }
}

/// The known text that is most like another one, if it is at least so much like it (0: not at all, 1: the same).
pub fn nearest<T: AsRef<str>>(text: &str, known: impl Iterator<Item = T>, least: f64) -> Option<T> {
    let like = known.map(|known| (strsim::jaro_winkler(text, known.as_ref()), known));
    let best = like.filter(|(like, _)| *like >= least).max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_with(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("facade.toml"), file).unwrap();
        let flags = Flags { data_dir: directory.path().to_owned(), config: None };
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        load(&flags, &environment).map_err(|error| error.to_string())
    }

    #[test]
    fn environment_wins_over_file_and_file_over_default() {
        let config = load_with(
            "device_listen = \"127.0.0.1:1\"\noperator_listen = \"127.0.0.1:2\"\ncache_enabled = false\nmax_connections = 7",
            &[("FACADE_DEVICE_LISTEN", "127.0.0.1:3"), ("FACADE_SERVER", "http://x"), ("HTTPS_PROXY", "http://p:1")],
        )
        .unwrap();
        assert_eq!(config.device_listen.port(), 3);
        assert_eq!(config.operator_listen.port(), 2);
        assert!(!config.cache_enabled);
        assert_eq!(config.max_connections, 7);
        assert_eq!(config.https_proxy.as_deref(), Some("http://p:1"));
        assert_eq!(config.wait_timeout, Duration::from_secs(55));
        // What other programs read too says something only where our own setting says nothing.
        let config = load_with(
            "https_proxy = \"http://file:1\"",
            &[("HTTPS_PROXY", "http://p:1"), ("AWS_ENDPOINT_URL_STS", "http://sts:1")],
        )
        .unwrap();
        assert_eq!(config.https_proxy.as_deref(), Some("http://file:1"));
        assert_eq!(config.aws_sts_endpoint.as_deref(), Some("http://sts:1"));
    }

    #[test]
    fn rejects_unknown_keys_and_names_the_nearest() {
        let error = load_with("device_listn = \"x\"", &[("FACADE_OPERATOR_LISTN", "y")]).unwrap_err();
        assert!(error.contains("did you mean \"device_listen\"?"), "{error}");
        assert!(error.contains("did you mean \"FACADE_OPERATOR_LISTEN\"?"), "{error}");
    }

    #[test]
    fn reports_every_error_at_once() {
        let file = "wait_timeout = \"soon\"\npublic_url = \"http://x\"\ncache_max_size_bytes = \"9 apples\"\ndevice_listen = 5";
        let error = load_with(file, &[]).unwrap_err();
        assert_eq!(error.lines().count(), 4, "{error}");
    }

    #[test]
    fn rejects_an_operator_door_on_the_network_without_a_certificate() {
        let error = load_with("operator_listen = \"0.0.0.0:8080\"", &[]).unwrap_err();
        assert!(error.contains("not a loopback address"), "{error}");
        let file =
            "operator_listen = \"0.0.0.0:8080\"\noperator_tls_certificate = \"a\"\noperator_tls_key = \"b\"";
        assert!(load_with(file, &[]).is_ok());
        assert!(load_with("operator_tls_key = \"b\"", &[]).is_err());
    }
}
