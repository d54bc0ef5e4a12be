//! What the command line prints: results on standard output, everything else on standard error.
//!
//! A closed pipe (`facade … | head`) ends the printing, not the program.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{Cell, ContentArrangement, Table, TableStyle};
use serde::Serialize;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    Table,
    /// JSON for programs.
    Json,
}

/// The way out for everything that is printed.
pub(super) struct Output {
    format: Format,
    quiet: bool,
    colours: bool,
}

impl Output {
    pub(super) fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet, colours: colours() }
    }

    /// Prints a result: as JSON, or as what `table` makes of it.
    pub(super) fn result<T: Serialize>(&mut self, value: &T, table: impl FnOnce(&T) -> String) {
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(value).unwrap_or_default(),
            Format::Table => table(value),
        };
        write_out(text.trim_end());
    }

    /// Whether results are for programs.
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Tells people something beside the result.
    pub(super) fn note(&mut self, text: &str) {
        if !self.quiet {
            write_err(text);
        }
    }

    /// Shows how far the work is, on one line of a terminal; nothing elsewhere. An empty text takes the line away.
    pub(super) fn progress(&mut self, text: &str) {
        if !self.quiet && io::stderr().is_terminal() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K{text}");
        }
    }

    pub(super) fn error(&mut self, text: &str) {
        let label = if self.colours { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
        write_err(&format!("{label} {text}"));
    }
}

/// Prints one line of a result that is lines, whatever the format; whether somebody still reads.
pub(super) fn line(text: &str) -> bool {
    write_out(text)
}

/// Prints the completions for a shell.
pub(super) fn completions(shell: clap_complete::Shell, command: &mut clap::Command) {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "facade", &mut script);
    write_out(String::from_utf8_lossy(&script).trim_end());
}

fn write_out(text: &str) -> bool {
    // A reader that has gone away wants no more: that is success, not a panic.
    text.is_empty() || writeln!(io::stdout().lock(), "{text}").is_ok()
}

fn write_err(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

#[expect(
    clippy::disallowed_methods,
    reason = "NO_COLOR and TERM concern the terminal alone, not the configuration"
)]
fn colours() -> bool {
    io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Columns under a heading.
pub(super) fn table<const N: usize>(
    heading: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heading.map(|name| Cell::new(name.to_uppercase())));
    for row in rows {
        table.add_row(row.map(|text| printable(&text)));
    }
    lines(&table.to_string())
}

/// Name and value pairs, one a line.
pub(super) fn fields<const N: usize>(pairs: [(&str, String); N]) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([format!("{name}:"), printable(&value)]);
    }
    lines(&table.to_string())
}

fn lines(text: &str) -> String {
    text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect::<Vec<_>>().join("\n")
}

/// A text from elsewhere, without the control characters that would let a registry or device write on the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// Bytes in the unit that reads best.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_sizes_as_people_read_them() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_610_612_736, "1.5 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn does_not_let_foreign_text_write_on_the_terminal() {
        let text = table(["tag"], [["a\x1b[2Jb\n".to_owned()]]);
        assert!(!text.contains('\x1b'), "{text:?}");
        assert_eq!(text.lines().count(), 2);
    }
}
