//! What the operator of the device has run: the hook or unit that is told of new images, and the probe that judges them.

use std::path::Path;
use std::time::Duration;

use super::{Config, Sink, Texts, parse};
use crate::apply::{Apply, Whom};
use crate::probe::{Probe, Question};
use crate::program::Program;

impl Texts {
    /// `[apply]`.
    pub(super) fn apply(&mut self) -> Apply {
        let program = self.take("apply_command", None, |text| parse::program(text).map(Some));
        let unit = self.take("apply_unit", None, |text| unit(text).map(Some));
        let timeout = self.take("apply_timeout", Duration::from_secs(300), parse::duration);
        let whom = match (program, unit) {
            (None, None) => Whom::Nobody,
            (Some(program), None) => Whom::Program(program),
            (None, Some(restart)) => Whom::Unit(restart),
            (Some(_), Some(_)) => {
                self.contradiction(
                    "apply_command and apply_unit exclude each other: a hook can restart the unit",
                );
                Whom::Nobody
            }
        };
        Apply { whom, timeout, place: Vec::new() }
    }

    /// `[probe]`.
    pub(super) fn probe(&mut self) -> Probe {
        let program =
            self.take("probe_command", None, |text| parse::program(text).map(Question::Program).map(Some));
        let http = self.take("probe_http", None, |text| parse::http(text).map(Question::Http).map(Some));
        let tcp = self.take("probe_tcp", None, |text| parse::address(text).map(Question::Tcp).map(Some));
        let mut questions = [program, http, tcp].into_iter().flatten();
        let question = questions.next().unwrap_or(Question::Nothing);
        if questions.next().is_some() {
            self.contradiction("probe_command, probe_http and probe_tcp exclude each other");
        }
        Probe {
            question,
            within: self.take("probe_within", Duration::from_secs(60), parse::duration),
            interval: self.take("probe_interval", Duration::from_secs(2), parse::duration),
            timeout: self.take("probe_timeout", Duration::from_secs(5), parse::duration),
        }
    }
}

impl Config {
    /// What a hook is told of where the images are; with it, `ctr` in a hook finds them by itself.
    pub(super) fn place(&self) -> Vec<(&'static str, String)> {
        let mut place = vec![("DRAYAGE_SINK", self.sink.to_string())];
        if self.sink == Sink::Containerd {
            place.push(("CONTAINERD_ADDRESS", self.containerd_address.display().to_string()));
            place.push(("CONTAINERD_NAMESPACE", self.namespace.to_string()));
        }
        place
    }
}

/// The program that restarts a unit, and says so only when it is up again.
fn unit(text: &str) -> Result<Program, String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    if text.is_empty() || !text.bytes().all(known) || text.starts_with('-') || !text.contains('.') {
        return Err(format!("{text:?} is not the name of a systemd unit (for example pump.service)"));
    }
    let systemctl =
        SYSTEMCTL.into_iter().find(|path| Path::new(path).exists()).unwrap_or("/usr/bin/systemctl");
    Program::new([systemctl, "restart", "--", text].map(str::to_owned).to_vec())
}

const SYSTEMCTL: [&str; 2] = ["/usr/bin/systemctl", "/bin/systemctl"];
