//! The settings of both programs.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{cell, source};

/// The settings of `facade serve`.
pub(crate) fn facade() -> String {
    let mut text = "# Settings of the facade\n\nIn `facade.toml` in the data directory, or else `/etc/facade/facade.toml`; \
                    `--config FILE` names another. The environment variable wins over the file. An unknown key is an error.\n\n\
                    | key | environment | what it says (default) |\n| --- | --- | --- |\n"
        .to_owned();
    for setting in facade::config::SETTINGS {
        let _ = writeln!(text, "| `{}` | `{}` | {} |", setting.key, setting.variable(), cell(setting.help));
    }
    text
}

/// The settings of the agent, in the words of the sample file that its package installs.
pub(crate) fn agent() -> String {
    let mut text = "# Settings of the device agent\n\nIn `/etc/device-agent/agent.toml`; `--config FILE` names another. `apply_unit` may also be \
                    `unit` in the section `[apply]`. The environment \
                    variable wins over the file, an argument over both. An unknown key is an error.\n\n\
                    | key | environment | default or example | what it says |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for sample in samples("systemd/agent.toml") {
        let variable = format!("DEVICE_AGENT_{}", sample.key.to_ascii_uppercase());
        let (key, value, help) = (sample.key, sample.value, cell(&sample.help));
        let _ = writeln!(text, "| `{key}` | `{variable}` | `{value}` | {help} |");
    }
    text
}

/// The keys that the facade knows.
#[cfg(test)]
pub(crate) fn facade_keys() -> BTreeSet<String> {
    facade::config::SETTINGS.iter().map(|setting| setting.key.to_owned()).collect()
}

/// The keys that the agent knows.
#[cfg(test)]
pub(crate) fn agent_keys() -> BTreeSet<String> {
    device_agent::config::KEYS.iter().map(|key| (*key).to_owned()).collect()
}

/// The keys that a sample file shows.
#[cfg(test)]
pub(crate) fn sample_keys(path: &str) -> BTreeSet<String> {
    samples(path).into_iter().map(|sample| sample.key).collect()
}

/// A setting in a sample file: `#key = value` under the comment that is about it.
struct Sample {
    key: String,
    value: String,
    help: String,
}

fn samples(path: &str) -> Vec<Sample> {
    let text = source(path);
    let (mut samples, mut help, mut section): (Vec<Sample>, String, BTreeSet<String>) = Default::default();
    let mut prefix = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("#[").and_then(|rest| rest.strip_suffix(']')) {
            prefix = format!("{name}_");
        } else if let Some(comment) = line.strip_prefix("# ") {
            help = format!("{help} {comment}");
        } else if let Some((key, value)) = line.strip_prefix('#').and_then(|rest| rest.split_once(" = ")) {
            let key = format!("{prefix}{key}");
            assert!(section.insert(key.clone()), "{path} shows {key} twice");
            samples.push(Sample { key, value: value.to_owned(), help: help.trim().to_owned() });
        } else {
            help.clear();
        }
    }
    samples
}
