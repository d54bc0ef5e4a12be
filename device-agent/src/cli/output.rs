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
            Format::Text => out(&printable(text)),
            Format::Json => out(&json(value)),
        }
    }

    /// What went wrong, with everything under it.
    pub(super) fn failure(&self, failure: &Failure) {
        let mut text = match self.format {
            Format::Json => json(failure),
            Format::Text => format!("error: {}", line(&failure.error)),
        };
        if self.format == Format::Text {
            for cause in &failure.causes {
                text.push_str("\n  because: ");
                text.push_str(&line(cause));
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

/// Shows what others wrote without letting it write to the terminal: no control character but the end of a line gets
/// through, and neither does what turns the order of the text around.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => shown.push(character),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(character.escape_unicode());
            }
            _ if character.is_control() => shown.extend(character.escape_default()),
            _ => shown.push(character),
        }
    }
    shown
}

/// The same for what stands in one line and must not look like two.
pub(super) fn line(text: &str) -> String {
    printable(text).replace('\n', "\\n")
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{}", text.trim_end_matches('\n'));
    let _ = stdout.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_moves_nothing_on_the_terminal() {
        let hostile = "linux\x1b[31m/arm64\r\u{9b}2J\tok\u{202e}";
        assert_eq!(printable(hostile), "linux\\u{1b}[31m/arm64\\r\\u{9b}2J\\tok\\u{202e}");
        assert_eq!(line("bad\nok  facade: all is well"), "bad\\nok  facade: all is well");
        assert_eq!(printable("größe: ok\nnext"), "größe: ok\nnext");
    }
}
