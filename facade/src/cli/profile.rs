//! Servers by name: profiles in `~/.config/drayage/config.toml`.
//!
//! An argument wins over the environment, the environment over the profile, the profile over the default. A profile's
//! token goes to the profile's server and to no other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::CliError;

/// Where a facade on this machine has its operator door.
pub(super) const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

/// The server to talk to, and how to show it who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// Address of the operator door.
    pub(super) server: Option<String>,
    /// File with the operator's token.
    pub(super) token_file: Option<PathBuf>,
    /// Further certificate authorities.
    pub(super) ca_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    server: String,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The profile used when none is named.
    default: Option<String>,
    #[serde(default)]
    profiles: BTreeMap<String, Profile>,
}

impl Target {
    /// What was `given` by arguments and environment, completed from the profile that was `named` or is the default.
    pub(super) fn resolve(
        given: Self,
        named: Option<&str>,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, CliError> {
        let Some(path) = path(environment) else {
            return match named {
                Some(name) => Err(CliError::Usage(format!("there is no profile {name:?}: HOME is not set"))),
                None => Ok(given),
            };
        };
        let file = read(&path, named)?;
        let Some(name) = named.or(file.default.as_deref()) else {
            return Ok(given);
        };
        let Some(profile) = file.profiles.get(name) else {
            return Err(CliError::Usage(missing(name, &path, &file)));
        };
        let same = |server: &String| server.trim_end_matches('/') == profile.server.trim_end_matches('/');
        match &given.server {
            Some(server) if !same(server) && named.is_some() => Err(CliError::Usage(format!(
                "profile {name:?} is for {}, --server or FACADE_SERVER says {server}: leave one of them out",
                profile.server
            ))),
            // The default profile is about another server.
            Some(server) if !same(server) => Ok(given),
            _ => Ok(Self {
                server: given.server.or_else(|| Some(profile.server.clone())),
                token_file: given
                    .token_file
                    .or_else(|| located(profile.token_file.as_ref(), &path, environment)),
                ca_file: given.ca_file.or_else(|| located(profile.ca_file.as_ref(), &path, environment)),
            }),
        }
    }
}

/// Where profiles are kept.
fn path(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let directory = |name: &str| environment.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // The XDG base directory specification has relative ones ignored.
    let configuration = directory("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let configuration = configuration.or_else(|| Some(directory("HOME")?.join(".config")))?;
    Some(configuration.join("drayage/config.toml"))
}

fn read(path: &Path, named: Option<&str>) -> Result<File, CliError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            return Ok(File::default());
        }
        Err(error) => {
            return Err(CliError::Usage(format!("cannot read the profiles in {}: {error}", path.display())));
        }
    };
    toml::from_str(&text).map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))
}

fn missing(name: &str, path: &Path, file: &File) -> String {
    let nearest = |known: &&String| (strsim::jaro_winkler(name, known) * 1000.0).round();
    let near = file.profiles.keys().max_by(|a, b| nearest(a).total_cmp(&nearest(b)));
    let hint = match near {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("add [profiles.{name}] with server = \"https://…\""),
    };
    format!("there is no profile {name:?} in {}; {hint}", path.display())
}

/// A path in the file: `~/` is the home directory, what is relative lies beside the file.
fn located(named: Option<&PathBuf>, file: &Path, environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let named = named?;
    match (named.strip_prefix("~"), environment.get("HOME")) {
        (Ok(rest), Some(home)) => Some(Path::new(home).join(rest)),
        _ => Some(file.parent().unwrap_or(Path::new("/")).join(named)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILES: &str = "default = \"shop\"\n\
        [profiles.shop]\nserver = \"https://shop.example:8080\"\ntoken_file = \"~/shop.token\"\nca_file = \"shop-ca.pem\"\n\
        [profiles.lab]\nserver = \"http://127.0.0.1:9000/\"\ntoken_file = \"/etc/lab.token\"\n";

    fn resolve(file: &str, given: Target, named: Option<&str>) -> Result<Target, String> {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join(".config/drayage");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("config.toml"), file).unwrap();
        let environment = BTreeMap::from([("HOME".to_owned(), home.path().display().to_string())]);
        let target = Target::resolve(given, named, &environment).map_err(|error| error.to_string())?;
        // The directory's own name is of no interest.
        let short = |path: PathBuf| path.strip_prefix(home.path()).map(Path::to_owned).unwrap_or(path);
        Ok(Target { token_file: target.token_file.map(short), ca_file: target.ca_file.map(short), ..target })
    }

    fn server(address: &str) -> Target {
        Target { server: Some(address.to_owned()), ..Target::default() }
    }

    #[test]
    fn takes_the_default_profile_and_finds_its_files() {
        let target = resolve(PROFILES, Target::default(), None).unwrap();
        assert_eq!(target.server.as_deref(), Some("https://shop.example:8080"));
        assert_eq!(target.token_file, Some(PathBuf::from("shop.token")));
        assert_eq!(target.ca_file, Some(PathBuf::from(".config/drayage/shop-ca.pem")));
    }

    #[test]
    fn takes_the_named_profile_and_lets_arguments_win() {
        let given = Target { token_file: Some("/mine".into()), ..server("http://127.0.0.1:9000") };
        let target = resolve(PROFILES, given, Some("lab")).unwrap();
        assert_eq!(target.token_file, Some(PathBuf::from("/mine")));
        assert_eq!(
            resolve(PROFILES, Target::default(), Some("lab")).unwrap().token_file,
            Some("/etc/lab.token".into())
        );
    }

    #[test]
    fn never_sends_a_profiles_token_to_another_server() {
        let elsewhere = resolve(PROFILES, server("https://other.example"), None).unwrap();
        assert_eq!(elsewhere, server("https://other.example"));
        let error = resolve(PROFILES, server("https://other.example"), Some("shop")).unwrap_err();
        assert!(error.contains("leave one of them out"), "{error}");
    }

    #[test]
    fn names_the_nearest_profile_and_what_is_wrong_in_the_file() {
        let error = resolve(PROFILES, Target::default(), Some("shpo")).unwrap_err();
        assert!(error.contains("did you mean \"shop\"?"), "{error}");
        let error = resolve("[profiles.shop]\nsever = \"x\"\n", Target::default(), None).unwrap_err();
        assert!(error.contains("sever") && error.contains("server"), "{error}");
    }

    #[test]
    fn needs_no_file_unless_a_profile_is_named() {
        let environment = BTreeMap::from([("HOME".to_owned(), "/nowhere".to_owned())]);
        assert_eq!(Target::resolve(Target::default(), None, &environment).unwrap(), Target::default());
        assert!(Target::resolve(Target::default(), Some("shop"), &environment).is_err());
        assert!(Target::resolve(Target::default(), Some("shop"), &BTreeMap::new()).is_err());
    }
}
