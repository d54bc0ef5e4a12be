//! Where the images go: whether it answers, how old it is, whether there is room, and whether it could be led elsewhere.

use std::path::Path;

use super::Doctor;
use crate::cli::{Exit, hosts_toml};
use crate::clock::Clock;
use crate::config::Config;
use crate::driver::Agent;
use crate::identity::Identity;
use crate::runtime::About;
use crate::state_file::StateDir;

/// Where containerd looks for the hosts of a registry.
const HOSTS: &str = "/etc/containerd/certs.d";
/// The oldest containerd that deliveries are tested with.
const OLDEST: (u32, u32) = (1, 6);

impl Doctor {
    pub(super) fn examine_hosts_toml(&mut self, identity: &Identity) {
        self.examine_hosts_below(Path::new(HOSTS), &identity.facade().url.to_string());
    }

    /// Whether stock containerd could be led past the facade. No file is fine: the agent itself does not need one.
    fn examine_hosts_below(&mut self, directory: &Path, facade: &str) {
        let mut found = 0;
        let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        let mut files: Vec<_> = entries.map(|entry| entry.path().join("hosts.toml")).collect();
        files.sort();
        for file in files {
            let text = match std::fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    self.warn("hosts.toml", format!("{}: {error}", file.display()));
                    self.remedy("run the check as root");
                    continue;
                }
            };
            found += 1;
            if let Some(weakness) = hosts_toml::weakness(&text, facade) {
                self.warn("hosts.toml", format!("{}: {weakness}", file.display()));
                self.remedy(format!("device-agent hosts-toml >{}", file.display()));
            }
        }
        if self.findings.iter().any(|finding| finding.check == "hosts.toml") {
            return;
        }
        let shown = directory.display();
        let detail = if found == 0 {
            format!("none in {shown}; only device-agent pulls through the facade")
        } else {
            format!("each in {shown} keeps containerd with the facade")
        };
        self.ok("hosts.toml", detail);
    }

    pub(super) async fn examine_sink(&mut self, config: Config, clock: Clock) {
        let reserve = config.reserve_bytes;
        let sink = config.sink.to_string();
        if StateDir::open_existing(&config.state_dir).is_err() {
            return;
        }
        let agent = match Agent::open(config, clock) {
            Ok(agent) => agent,
            Err(error) => return self.fail("images", Exit::Failed, crate::error_chain(&error)),
        };
        match agent.runtime().about().await {
            Ok(about) => self.examine_version(&about),
            Err(error) => {
                let detail = format!("{sink}: {}", crate::error_chain(&error));
                self.fail("images", Exit::Failed, detail);
                return self.remedy(
                    "is it running, and may this user reach it? (systemctl status containerd; --sink)",
                );
            }
        }
        let Ok(space) = agent.runtime().space().await else {
            return;
        };
        match space.content_free_bytes {
            Some(free) if free < reserve => {
                let detail = format!("{free} bytes free, less than the reserve of {reserve}");
                self.fail("disk", Exit::Failed, detail);
                self.remedy("make room where the images go, or lower the reserve");
            }
            Some(free) => self.ok("disk", format!("{} MiB free", free >> 20)),
            None => self.warn("disk", "the disk of the images cannot be seen from here"),
        }
    }

    fn examine_version(&mut self, about: &About) {
        let detail = format!("{} {} at {}", about.kind, about.version, about.address);
        if about.kind == "containerd" && version(&about.version).is_some_and(|version| version < OLDEST) {
            self.warn("images", format!("{detail} is older than any that was tested"));
            return self.remedy(format!("update containerd to {}.{} or later", OLDEST.0, OLDEST.1));
        }
        self.ok("images", detail);
    }
}

/// The first two numbers of a version: `1.6.20~ds1`, `v2.1.0`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Outcome;

    const FACADE: &str = "https://facade.example:8443";

    fn examined(files: &[(&str, &str)]) -> Doctor {
        let directory = tempfile::tempdir().unwrap();
        for (host, text) in files {
            std::fs::create_dir(directory.path().join(host)).unwrap();
            std::fs::write(directory.path().join(host).join("hosts.toml"), text).unwrap();
        }
        let mut doctor = Doctor { findings: Vec::new(), exit: Exit::Success };
        doctor.examine_hosts_below(directory.path(), FACADE);
        doctor
    }

    #[test]
    fn each_hosts_toml_is_looked_at_and_none_is_fine() {
        let safe = format!("server = \"{FACADE}\"\nca = \"a\"\nclient = [[\"b\", \"c\"]]\n[host]\n");
        for files in [&[][..], &[("_default", safe.as_str())]] {
            let doctor = examined(files);
            assert_eq!(doctor.findings.len(), 1);
            assert!(doctor.findings[0].outcome == Outcome::Ok, "{}", doctor.findings[0].detail);
        }
        let doctor = examined(&[("_default", &safe), ("ghcr.io", "server = \"https://ghcr.io\"\n")]);
        assert_eq!(doctor.findings.len(), 1);
        let found = &doctor.findings[0];
        assert!(
            found.outcome == Outcome::Warning && found.detail.contains("ghcr.io/hosts.toml"),
            "{}",
            found.detail
        );
        assert!(found.remedy.as_ref().unwrap().contains("device-agent hosts-toml >"));
    }

    #[test]
    fn an_old_containerd_is_told() {
        let about = |version: &str| About {
            kind: "containerd",
            version: version.to_owned(),
            address: "/run/containerd/containerd.sock".to_owned(),
        };
        for (text, outcome) in [
            ("1.5.18", Outcome::Warning),
            ("1.6.20~ds1", Outcome::Ok),
            ("v2.1.0", Outcome::Ok),
            ("unknown", Outcome::Ok),
        ] {
            let mut doctor = Doctor { findings: Vec::new(), exit: Exit::Success };
            doctor.examine_version(&about(text));
            assert!(doctor.findings[0].outcome == outcome, "{text}");
        }
    }
}
