//! Log lines as entries of the systemd journal: a message for people, its fields for `journalctl DEVICE_ID=…`.
//!
//! The protocol is systemd's "native journal protocol": one datagram per entry, a field per line.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Whether standard error goes to the journal, going by what systemd put into `JOURNAL_STREAM` (systemd.exec(5)).
pub(crate) fn is_standard_error(journal_stream: &str) -> bool {
    let Ok(file) = rustix::fs::fstat(io::stderr()) else {
        return false;
    };
    journal_stream.split_once(':') == Some((&file.st_dev.to_string(), &file.st_ino.to_string()))
}

/// Sends every event to the journal.
pub(crate) struct Journal(UnixDatagram);

impl Journal {
    /// Finds journald.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SOCKET)?;
        Ok(Self(socket))
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut entry = Entry::default();
        attributes.record(&mut entry);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(entry);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Entry>() {
                entry.fields.extend_from_slice(&outer.fields);
            }
        }
        let text = entry.text();
        let bytes = entry.datagram(&text, *event.metadata().level(), event.metadata().target());
        if self.0.send(&bytes).is_err() {
            // Too long for a datagram, or journald is being restarted: the other way into the journal.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}

/// What an event or a span says.
#[derive(Default)]
struct Entry {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Entry {
    /// The line that people read: nothing that was said is only in a field.
    fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.fields {
            // Writing to a String cannot fail.
            let _ = write!(text, " {name}={value}");
        }
        text
    }

    fn datagram(&self, text: &str, level: Level, target: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, "MESSAGE", text);
        put(&mut bytes, "PRIORITY", priority(level));
        put(&mut bytes, "SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME"));
        put(&mut bytes, "TARGET", target);
        for (name, value) in &self.fields {
            put(&mut bytes, &field_name(name), value);
        }
        bytes
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.fields.push((field.name(), value.to_owned()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// The journal's own numbers, those of syslog(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

/// `device.id` as the journal has it: `DEVICE_ID`. Names that begin with an underscore are journald's own.
fn field_name(name: &str) -> String {
    let upper = |character: char| {
        if character.is_ascii_alphanumeric() { character.to_ascii_uppercase() } else { '_' }
    };
    name.chars().map(upper).collect::<String>().trim_start_matches('_').to_owned()
}

/// One field; a value of several lines has its length in front, so that no text of anybody's can end it and begin another.
fn put(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_its_message_whole_and_each_field_by_itself() {
        let entry = Entry { message: "blob served".into(), fields: vec![("device.id", "board-7".into())] };
        let text = entry.text();
        let bytes = entry.datagram(&text, Level::WARN, "access");
        let datagram = String::from_utf8(bytes).unwrap();
        assert_eq!(
            datagram,
            "MESSAGE=blob served device.id=board-7\nPRIORITY=4\nSYSLOG_IDENTIFIER=facade\nTARGET=access\nDEVICE_ID=board-7\n"
        );
    }

    #[test]
    fn a_value_of_several_lines_cannot_forge_a_field() {
        let mut bytes = Vec::new();
        put(&mut bytes, "ERROR", "x\nPRIORITY=0");
        assert_eq!(bytes, b"ERROR\n\x0c\0\0\0\0\0\0\0x\nPRIORITY=0\n");
    }

    #[test]
    fn standard_error_is_the_journal_only_where_systemd_says_so() {
        let file = rustix::fs::fstat(io::stderr()).unwrap();
        assert!(is_standard_error(&format!("{}:{}", file.st_dev, file.st_ino)));
        for other in ["", "0:0", "9", "x:y"] {
            assert!(!is_standard_error(other), "{other:?}");
        }
    }
}
