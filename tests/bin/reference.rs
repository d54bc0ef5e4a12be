//! Writes what is known from the code itself: the reference pages, manual pages and completions.
//!
//!     reference write DIR    the pages of facade/docs/reference
//!     reference pages DIR    manual pages in DIR/man, completions in DIR/completions
//!
//! A test holds the committed pages against the code.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a tool stops where it cannot read or write; an absent member of a JSON value is null"
)]

#[path = "reference/api.rs"]
mod api;
#[path = "reference/cli.rs"]
mod cli;
#[path = "reference/config.rs"]
mod config;
#[path = "reference/errors.rs"]
mod errors;
#[path = "reference/metrics.rs"]
mod metrics;
#[path = "reference/pages.rs"]
mod pages;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory as _;

/// What each page begins with.
const HEAD: &str =
    "<!-- Written by tests/reference from the code. Do not edit: edit the code and run it again. -->\n\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["write", directory] => {
            fs::create_dir_all(directory).expect("make the directory");
            for (name, text) in reference() {
                fs::write(Path::new(directory).join(name), text).expect("write a page");
            }
            ExitCode::SUCCESS
        }
        ["pages", directory] => {
            pages::write(Path::new(directory)).expect("write manual pages and completions");
            ExitCode::SUCCESS
        }
        _ => {
            drop(writeln!(std::io::stderr(), "usage: reference write DIR | pages DIR"));
            ExitCode::from(2)
        }
    }
}

/// Every reference page: its file name and its text.
fn reference() -> Vec<(&'static str, String)> {
    let facade = facade::cli::Cli::definition();
    let agent = device_agent::cli::Cli::command();
    let pages = vec![
        ("cli-facade.md", cli::page(facade)),
        ("cli-device-agent.md", cli::page(agent)),
        ("config-facade.md", config::facade()),
        ("config-agent.md", config::agent()),
        ("api.md", api::page()),
        ("metrics.md", metrics::page()),
        ("errors.md", errors::page()),
    ];
    pages.into_iter().map(|(name, text)| (name, format!("{HEAD}{}\n", text.trim_end()))).collect()
}

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of the repository.
fn source(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect(path)
}

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_reference_is_what_the_code_says() {
        let stale: Vec<&str> = reference()
            .into_iter()
            .filter(|(name, text)| {
                fs::read_to_string(root().join("facade/docs/reference").join(name)).ok().as_ref()
                    != Some(text)
            })
            .map(|(name, _)| name)
            .collect();
        assert!(stale.is_empty(), "stale in facade/docs/reference: {stale:?}; run tests/reference");
    }

    #[test]
    fn every_verb_has_a_manual_page_and_every_shell_its_completions() {
        let directory = tempfile::tempdir().unwrap();
        pages::write(directory.path()).unwrap();
        for page in
            ["man/facade.1", "man/facade-connection-add.1", "man/device-agent.1", "man/device-agent-enroll.1"]
        {
            let text = fs::read_to_string(directory.path().join(page)).unwrap();
            assert!(text.contains(".TH") && text.contains("SYNOPSIS"), "{page}: {text}");
        }
        for name in [
            "facade.bash",
            "_facade",
            "facade.fish",
            "device-agent.bash",
            "_device-agent",
            "device-agent.fish",
        ] {
            let text = fs::read_to_string(directory.path().join("completions").join(name)).unwrap();
            assert!(text.len() > 500, "{name}");
        }
    }

    #[test]
    fn the_sample_settings_show_every_key_and_no_other() {
        assert_eq!(config::sample_keys("systemd/facade.toml"), config::facade_keys());
        assert_eq!(config::sample_keys("systemd/agent.toml"), config::agent_keys());
    }
}
