//! `device-agent hosts-toml`: how stock containerd, k3s or nerdctl pull through the facade.
//!
//! The form matters. containerd 1.6 ignores a file without a `[host]` table and goes to the public registry instead; a
//! file without `server` falls back to the registry the image is named after; and what is not repeated at the top is
//! missing for `server`. So: `server` is the facade, its settings stand at the top, and a `[host]` table is there.

use std::fmt::Write as _;
use std::path::Path;

use super::{Exit, Failure, Output};
use crate::config::Config;
use crate::driver::AgentError;
use crate::identity::{ANCHORS_FILE, CERTIFICATE_FILE, Identity, IdentityError, KEY_FILE};
use crate::state_file::StateDir;

pub(super) fn print(config: &Config, output: &Output) -> Result<Exit, Failure> {
    let failure = |error: IdentityError| Failure::from(AgentError::from(error));
    let state = StateDir::open_existing(&config.state_dir).map_err(|error| failure(error.into()))?;
    let identity = Identity::read(&state, &config.keys)
        .map_err(failure)?
        .ok_or_else(|| failure(IdentityError::NotEnrolled))?;
    if let Some(place) = identity.key().elsewhere() {
        return Err(failure(IdentityError::KeyElsewhere(place)));
    }
    let text = render(
        &identity.facade().url.to_string(),
        &state.path_of(ANCHORS_FILE),
        &state.path_of(CERTIFICATE_FILE),
        &state.path_of(KEY_FILE),
    );
    output.result(&serde_json::json!({ "hosts_toml": text }), &text);
    Ok(Exit::Success)
}

/// The file for a facade; for every registry, put it into `_default/hosts.toml`.
fn render(facade: &str, ca: &Path, certificate: &Path, key: &Path) -> String {
    let quote = |text: &str| {
        text.chars().fold(String::from("\""), |mut quoted, character| {
            match character {
                '"' | '\\' => quoted.extend(['\\', character]),
                character if character.is_control() => {
                    let _ = write!(quoted, "\\u{:04x}", u32::from(character));
                }
                character => quoted.push(character),
            }
            quoted
        }) + "\""
    };
    let path = |path: &Path| quote(&path.to_string_lossy());
    format!(
        "# Save as /etc/containerd/certs.d/_default/hosts.toml (every registry) or …/certs.d/REGISTRY/hosts.toml (one),\n\
         # with config_path = \"/etc/containerd/certs.d\" in containerd's configuration. No restart is needed.\n\
         server = {server}\n\
         capabilities = [\"pull\", \"resolve\"]\n\
         ca = {ca}\n\
         client = [[{certificate}, {key}]]\n\
         \n\
         # containerd 1.6 ignores a file without this table, and would go to the public registry instead.\n\
         [host]\n",
        server = quote(facade),
        ca = path(ca),
        certificate = path(certificate),
        key = path(key),
    )
}

/// Whether a hosts.toml that is there can send containerd elsewhere; says how.
pub(super) fn weakness(text: &str, facade: &str) -> Option<&'static str> {
    let Ok(table) = text.parse::<toml::Table>() else {
        return Some("it is not TOML; containerd ignores it and goes to the public registry");
    };
    if table.get("server").and_then(toml::Value::as_str) != Some(facade) {
        return Some("server is not the facade; on an error containerd goes to the registry of the image");
    }
    let Some(hosts) = table.get("host").and_then(toml::Value::as_table) else {
        return Some("it has no [host] table; containerd 1.6 ignores it and goes to the public registry");
    };
    if hosts.keys().any(|host| host != facade) {
        return Some("it names another host than the facade");
    }
    if !table.contains_key("ca") || !table.contains_key("client") {
        return Some("ca and client are not at the top, where they are for server");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered() -> String {
        let path = |name: &str| std::path::PathBuf::from(format!("/var/lib/device-agent/identity/{name}"));
        render("https://facade.example:8443", &path("ca.pem"), &path("cert \"odd\".pem"), &path("key.pem"))
    }

    #[test]
    fn prints_the_form_that_was_measured_to_be_safe() {
        let text = rendered();
        assert_eq!(weakness(&text, "https://facade.example:8443"), None);
        let table: toml::Table = text.parse().unwrap();
        assert!(table["host"].as_table().unwrap().is_empty());
        assert_eq!(table["client"][0][0].as_str(), Some("/var/lib/device-agent/identity/cert \"odd\".pem"));
    }

    #[test]
    fn rejects_the_forms_that_fall_back_to_the_public_registry() {
        let facade = "https://facade.example:8443";
        let good = rendered();
        for bad in [
            "server = ".to_owned(),
            good.replace("[host]", ""),
            good.replace("server =", "# server ="),
            good.replace("ca =", "# ca ="),
            format!("{good}\n[host.\"https://registry-1.docker.io\"]\n"),
        ] {
            assert!(weakness(&bad, facade).is_some(), "{bad}");
        }
    }
}
