//! JSON lines: those of the access log written by hand, all others by the library, both in the same form.
//!
//! A manifest costs some microseconds in all; building an access line through a serializer would be a quarter of that.

use std::cell::RefCell;
use std::fmt::{self, Write as _};

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Json, Writer};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::ACCESS;
use crate::clock::Clock;

thread_local! {
    /// The second that was written last, as far as its text goes.
    static SECOND: RefCell<(i64, String)> = RefCell::default();
}

/// Formats events as JSON, a line each.
pub(super) struct JsonLines(Format<Json, SystemTime>);

impl JsonLines {
    pub(super) fn new() -> Self {
        Self(tracing_subscriber::fmt::format().json().flatten_event(true))
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if event.metadata().target() == ACCESS {
            access_line(writer, event, Clock::system().now())
        } else {
            self.0.format_event(context, writer, event)
        }
    }
}

fn access_line(mut writer: Writer<'_>, event: &Event<'_>, now: Timestamp) -> fmt::Result {
    writer.write_str(r#"{"timestamp":""#)?;
    write_time(&mut writer, now)?;
    writer.write_str(r#"","level":""#)?;
    writer.write_str(event.metadata().level().as_str())?;
    writer.write_char('"')?;
    let mut members = Members { writer, result: Ok(()) };
    event.record(&mut members);
    members.result?;
    members.writer.write_str(r#","target":""#)?;
    members.writer.write_str(ACCESS)?;
    members.writer.write_str("\"}\n")
}

/// Writes a moment to the microsecond.
fn write_time(writer: &mut Writer<'_>, now: Timestamp) -> fmt::Result {
    let second = now.as_second();
    SECOND.with_borrow_mut(|(written, text)| {
        if *written != second || text.is_empty() {
            *text = Timestamp::from_second(second).unwrap_or(now).to_string();
            // Its `Z` comes after the fraction.
            text.pop();
            *written = second;
        }
        writer.write_str(text)
    })?;
    write!(writer, ".{:06}Z", now.subsec_microsecond())
}

/// Writes the fields of an event as members of an object that has some already.
struct Members<'a> {
    writer: Writer<'a>,
    result: fmt::Result,
}

impl Members<'_> {
    fn member(&mut self, field: &Field, write: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        if self.result.is_err() {
            return;
        }
        // Names of fields are identifiers of ours: nothing in them needs an escape.
        let writer = &mut self.writer;
        let name = writer.write_str(",\"").and_then(|()| writer.write_str(field.name()));
        self.result = name.and_then(|()| writer.write_str("\":")).and_then(|()| write(writer));
    }

    fn text(&mut self, field: &Field, write: impl FnOnce(&mut Escaped<'_, '_>) -> fmt::Result) {
        self.member(field, |writer| {
            writer.write_char('"')?;
            write(&mut Escaped(writer))?;
            writer.write_char('"')
        });
    }
}

impl Visit for Members<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |writer| write!(writer, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |writer| write!(writer, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |writer| writer.write_str(if value { "true" } else { "false" }));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, |escaped| escaped.write_str(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, |escaped| write!(escaped, "{value:?}"));
    }
}

/// Text within a JSON string (RFC 8259, section 7).
struct Escaped<'a, 'w>(&'a mut Writer<'w>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        let special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
        while let Some(at) = text.bytes().position(special) {
            let (plain, rest) = text.split_at(at);
            self.0.write_str(plain)?;
            let mut rest = rest.chars();
            if let Some(character) = rest.next() {
                write!(self.0, "\\u{:04x}", u32::from(character))?;
            }
            text = rest.as_str();
        }
        self.0.write_str(text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::format::JsonFields;

    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Out {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged, a value for each line.
    fn logged(log: impl FnOnce()) -> Vec<serde_json::Map<String, serde_json::Value>> {
        let out = Out::default();
        let writer = out.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(JsonFields::new())
            .event_format(JsonLines::new())
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(subscriber.finish(), log);
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn an_access_line_is_what_the_library_would_have_written() {
        let absent: Option<u64> = None;
        macro_rules! event {
            ($target:expr) => {
                tracing::info!(
                    target: $target,
                    {
                        device.id = %"board \"1\"\n\u{7}\\é", size_bytes = 7_u64, signed = -7_i64, plain = true, text = "a\tb",
                        debug = ?Some("x"), absent,
                    },
                    "pull of {}", "\u{1f6a2}"
                )
            };
        }
        let mut lines = logged(|| {
            event!(ACCESS);
            event!("elsewhere");
        });
        for line in &mut lines {
            let time = line.remove("timestamp").unwrap();
            let time = time.as_str().unwrap();
            assert!(
                time.parse::<Timestamp>().is_ok() && time.len() == "2026-01-01T00:00:00.000000Z".len(),
                "{time}"
            );
            line.remove("target").unwrap();
        }
        assert_eq!(lines[0], lines[1]);
        assert_eq!(lines[0]["device.id"], "board \"1\"\n\u{7}\\é");
    }

    #[test]
    fn moments_have_their_microseconds() {
        for nanosecond in [0, 1_000, 999_999_999, 1_700_000_000_000_000_000, 1_700_000_000_050_000_000] {
            let moment = Timestamp::from_nanosecond(nanosecond).unwrap();
            let mut text = String::new();
            write_time(&mut Writer::new(&mut text), moment).unwrap();
            assert_eq!(
                text.parse::<Timestamp>().unwrap().as_microsecond(),
                moment.as_microsecond(),
                "{text}"
            );
        }
    }
}
