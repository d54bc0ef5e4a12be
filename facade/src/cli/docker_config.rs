//! Credentials out of a docker `config.json` or podman `auth.json`. ◇
//!
//! Only what the file itself holds: a credential helper keeps its secrets elsewhere and hands out ones that expire, so its
//! entries are left out, with the helper's name.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use pki::oci::RegistryHost;
use serde::Deserialize;

use crate::secret::Secret;

const MAX_BYTES: usize = 1024 * 1024;

/// What docker writes as the user name of an identity token.
const TOKEN_USER: &str = "<token>";

/// An entry of the file: credentials, or why there are none to take.
pub(super) struct Entry {
    /// The registry, or the key of the entry where that names none.
    pub(super) host: String,
    /// What it holds.
    pub(super) login: Result<Login, String>,
}

/// A user name and a secret.
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: Secret,
}

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
struct Auth {
    #[serde(default, rename = "auth")]
    basic: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

/// Reads the entries of a file, by host.
pub(super) fn entries(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let file: File = pki::json::parse_as(bytes, MAX_BYTES)
        .map_err(|error| format!("not a docker config.json: {}", crate::api::problem::chain(&error)))?;
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for (key, auth) in file.auths {
        let entry = match host(&key) {
            Ok(host) => {
                let login = login(auth, file.helpers.get(&key).or(file.store.as_ref()));
                Entry { host, login }
            }
            Err(reason) => Entry {
                host: key,
                login: Err(reason),
            },
        };
        // The Hub has several keys in old files; the one with credentials counts.
        let known = entries.get(&entry.host).is_some_and(|known| known.login.is_ok());
        if !known {
            entries.insert(entry.host.clone(), entry);
        }
    }
    for (key, helper) in file.helpers {
        let host = host(&key).unwrap_or(key);
        let login = Err(kept_by(&helper));
        entries.entry(host.clone()).or_insert(Entry { host, login });
    }
    Ok(entries.into_values().collect())
}

/// The registry that a key names: `ghcr.io`, or a URL as docker writes the Hub's (`https://index.docker.io/v1/`).
fn host(key: &str) -> Result<String, String> {
    // containers-auth.json(5): a key with a path holds credentials for a part of a registry.
    if !key.contains("://") && key.contains('/') {
        return Err(
            "it is for a part of the registry, and a connection is for all of it; connect the host with --username"
                .to_owned(),
        );
    }
    let host = RegistryHost::from_pasted(key).map_err(|error| error.to_string())?;
    Ok(host.to_string())
}

fn login(auth: Auth, helper: Option<&String>) -> Result<Login, String> {
    if !auth.identity_token.is_empty() {
        return Ok(Login {
            username: TOKEN_USER.to_owned(),
            password: Secret::new(auth.identity_token),
        });
    }
    if !auth.basic.is_empty() {
        return decode(&auth.basic);
    }
    if !auth.username.is_empty() && !auth.password.is_empty() {
        return Ok(Login {
            username: auth.username,
            password: Secret::new(auth.password),
        });
    }
    match helper {
        Some(helper) => Err(kept_by(helper)),
        None if !auth.registry_token.is_empty() => {
            Err("it holds only a token of the registry, which expires".to_owned())
        }
        None => Err("it holds no credentials (docker login, then try again)".to_owned()),
    }
}

fn decode(auth: &str) -> Result<Login, String> {
    let wrong = || "its auth is not base64 of USER:PASSWORD".to_owned();
    let bytes = BASE64.decode(auth.trim().as_bytes()).map_err(|_| wrong())?;
    let text = Secret::new(String::from_utf8(bytes).map_err(|_| wrong())?);
    let (username, password) = text.expose().split_once(':').ok_or_else(wrong)?;
    // Old versions of docker pad with zero bytes.
    let password = password.trim_end_matches('\0');
    if username.is_empty() || password.is_empty() {
        return Err(wrong());
    }
    Ok(Login {
        username: username.to_owned(),
        password: Secret::new(password.to_owned()),
    })
}

fn kept_by(helper: &str) -> String {
    let helper: String = helper.chars().filter(|c| !c.is_control()).take(80).collect();
    format!(
        "its credentials are kept by the helper docker-credential-{helper}, which cannot be copied; use --username with \
         a token, or --provider google or aws"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    type Shown = Result<(String, String), String>;

    fn read(text: &str) -> Vec<(String, Shown)> {
        let shown = |login: Login| (login.username.clone(), login.password.expose().to_owned());
        let entries = entries(text.as_bytes()).unwrap();
        entries
            .into_iter()
            .map(|entry| (entry.host, entry.login.map(shown)))
            .collect()
    }

    #[test]
    fn takes_what_docker_and_podman_write() {
        let found = read(
            r#"{"auths": {
                "ghcr.io": {"auth": "b2N0bzpnaHBfYTpi"},
                "https://index.docker.io/v1/": {"username": "hub", "password": "pat"},
                "corp.azurecr.io": {"auth": "MDAwMDo=", "identitytoken": "refresh"},
                "registry.example:5000": {"auth": "cm9ib3Q6c2VjcmV0"}
            }, "HttpHeaders": {"User-Agent": "Docker"}}"#,
        );
        let login = |host: &str, user: &str, password: &str| {
            (host.to_owned(), Ok((user.to_owned(), password.to_owned())))
        };
        assert_eq!(
            found,
            [
                login("corp.azurecr.io", "<token>", "refresh"),
                login("docker.io", "hub", "pat"),
                login("ghcr.io", "octo", "ghp_a:b"),
                login("registry.example:5000", "robot", "secret"),
            ]
        );
    }

    #[test]
    fn names_the_helper_that_keeps_a_secret() {
        let found = read(
            r#"{"auths": {"ghcr.io": {}, "quay.io": {"auth": "cm9ib3Q6c2VjcmV0"}},
                "credsStore": "desktop", "credHelpers": {"gcr.io": "gcloud"}}"#,
        );
        let reason = |index: usize| found[index].1.as_ref().unwrap_err().clone();
        assert!(reason(0).contains("docker-credential-gcloud"));
        assert!(reason(1).contains("docker-credential-desktop"));
        assert!(found[2].1.is_ok());
    }

    #[test]
    fn rejects_entries_that_hold_nothing_for_a_whole_registry() {
        for (key, auth) in [
            ("quay.io/team", r#"{"auth": "cm9ib3Q6c2VjcmV0"}"#),
            ("quay.io", r#"{"auth": "***"}"#),
            ("quay.io", r#"{"auth": "cm9ib3Q="}"#),
            ("quay.io", r#"{"registrytoken": "t"}"#),
            ("quay.io", "{}"),
        ] {
            let found = read(&format!(r#"{{"auths": {{"{key}": {auth}}}}}"#));
            assert!(found[0].1.is_err(), "{key} {auth}");
        }
        assert!(entries(b"7").is_err());
        assert!(entries(b"not json").is_err());
    }
}
