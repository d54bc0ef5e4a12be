//! Everything that is printed. A reader that went away (`… | head`) is no error.

use std::io::Write;

use clap::CommandFactory;
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::{Cli, Format};

/// The two standard streams, in the format that was asked for.
pub(super) struct Output {
    format: Format,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }

    /// A result, as text or as JSON.
    pub(super) fn result<T: Serialize>(&self, value: &T, text: &str) {
        match self.format {
            Format::Text => out(text),
            Format::Json => out(&json(value)),
        }
    }

    /// What went wrong, with everything under it.
    pub(super) fn failure(&self, failure: &Failure) {
        let mut text = match self.format {
            Format::Json => json(failure),
            Format::Text => format!("error: {}", failure.error),
        };
        if self.format == Format::Text {
            for cause in &failure.causes {
                text.push_str("\n  because: ");
                text.push_str(cause);
            }
        }
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// The completions of a shell.
    #[expect(clippy::unused_self, reason = "printing is done by an Output")]
    pub(super) fn completions(&self, shell: clap_complete::Shell) -> Exit {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "device-agent", &mut script);
        let _ = std::io::stdout().lock().write_all(&script);
        Exit::Success
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{}", text.trim_end_matches('\n'));
    let _ = stdout.flush();
}
