//! Logging to standard error.
//!
//! What is told now and then is written on the spot. The access log, a line for every pull, is gathered in memory and
//! written by a thread of its own, many lines at a time: a system call for each would cost more than answering for a
//! manifest. When standard error takes no more, access lines are dropped and counted; nobody waits for a log.

mod json;

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::runtime::Handle;
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config::Config;
use crate::service::Journal;
use crate::trace::Tracing;

use json::JsonLines;

/// The target of lines that are gathered.
pub(crate) const ACCESS: &str = "access";
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;
/// How long the thread lets lines gather after it has written some; the first after a pause does not wait.
const GATHERING: Duration = Duration::from_millis(5);

/// Access lines that were dropped since the start of the process.
static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Access lines that were dropped, for whoever counts.
pub(crate) fn dropped() -> Counter {
    DROPPED.clone()
}

/// Logging; what waits is written when it is dropped.
pub struct Log {
    lines: Arc<Lines>,
    thread: Option<JoinHandle<()>>,
    /// Dropped before the log ends, because it may have something to say.
    traces: Option<Tracing>,
}

/// Lines that wait to be written.
#[derive(Default)]
struct Lines {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Nobody will see that there is more unless it is told.
    asleep: bool,
    ending: bool,
}

impl Log {
    /// Starts logging: for people on a terminal, as entries with fields in the journal, as JSON elsewhere. Where a collector
    /// is configured, traces go there; what sends them runs on `runtime`.
    pub fn start(config: &Config, runtime: &Handle) -> Result<Self, String> {
        let lines = Arc::new(Lines::default());
        if config.log_journal
            && let Ok(journal) = Journal::open()
        {
            let traces = install(config, runtime, journal)?;
            return Ok(Self { lines, thread: None, traces });
        }
        let terminal = io::stderr().is_terminal();
        let layer = fmt::layer().with_writer(Writers(Arc::clone(&lines))).with_ansi(terminal);
        let traces = if config.log_json || !terminal {
            install(config, runtime, layer.fmt_fields(JsonFields::new()).event_format(JsonLines::new()))?
        } else {
            install(config, runtime, layer)?
        };
        let written = Arc::clone(&lines);
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        let thread = thread.spawn(move || written.write_to(&mut io::stderr()));
        let thread = thread.map_err(|error| format!("log: {error}"))?;
        Ok(Self { lines, thread: Some(thread), traces })
    }
}

/// Installs what writes the log, and what makes traces where they are wanted.
fn install<L>(config: &Config, runtime: &Handle, log: L) -> Result<Option<Tracing>, String>
where
    L: Layer<Registry> + Send + Sync,
{
    let filter = EnvFilter::try_new(&config.log).map_err(|error| format!("log: {error}"))?;
    let failed = |error| format!("log: {error}");
    let Some((traces, layer)) = Tracing::start(config, runtime)? else {
        // One filter for everything: what it does not want costs nothing.
        tracing_subscriber::registry().with(log).with(filter).try_init().map_err(failed)?;
        return Ok(None);
    };
    tracing_subscriber::registry().with(log.with_filter(filter)).with(layer).try_init().map_err(failed)?;
    Ok(Some(traces))
}

impl Drop for Log {
    fn drop(&mut self) {
        self.traces = None;
        self.lines.lock().ending = true;
        self.lines.more.notify_one();
        if let Some(thread) = self.thread.take() {
            // A thread that died has written all it could.
            let _ = thread.join();
        }
    }
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.bytes.len() + line.len() > MAX_WAITING_BYTES {
            DROPPED.inc();
            return;
        }
        waiting.bytes.extend_from_slice(line);
        if std::mem::take(&mut waiting.asleep) {
            drop(waiting);
            self.more.notify_one();
        }
    }

    /// Writes what comes until the end is told and nothing waits.
    fn write_to(&self, out: &mut impl Write) {
        let mut bytes = Vec::new();
        loop {
            let mut waiting = self.lock();
            while waiting.bytes.is_empty() {
                if waiting.ending {
                    return;
                }
                waiting.asleep = true;
                waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut waiting.bytes, &mut bytes);
            let ending = waiting.ending;
            drop(waiting);
            if out.write_all(&bytes).is_err() {
                let lines = String::from_utf8_lossy(&bytes).lines().count();
                DROPPED.inc_by(lines as u64);
            }
            bytes.clear();
            if !ending {
                std::thread::sleep(GATHERING);
            }
        }
    }
}

/// Makes the writer for a line.
struct Writers(Arc<Lines>);

enum Writer<'a> {
    Gathered(&'a Lines),
    Direct(io::Stderr),
}

impl<'a> MakeWriter<'a> for Writers {
    type Writer = Writer<'a>;

    fn make_writer(&'a self) -> Writer<'a> {
        Writer::Direct(io::stderr())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Writer<'a> {
        if metadata.target() == ACCESS { Writer::Gathered(&self.0) } else { self.make_writer() }
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            // The formatter writes a line at a time.
            Self::Gathered(lines) => {
                lines.add(line);
                Ok(line.len())
            }
            Self::Direct(stderr) => stderr.write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gathered(_) => Ok(()),
            Self::Direct(stderr) => stderr.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_was_added_is_written_in_order_before_the_end() {
        let lines = Arc::new(Lines::default());
        let writing = Arc::clone(&lines);
        let thread = std::thread::spawn(move || {
            let mut out = Vec::new();
            writing.write_to(&mut out);
            out
        });
        let mut expected = String::new();
        for number in 0..1000 {
            let line = format!("{number}\n");
            lines.add(line.as_bytes());
            expected.push_str(&line);
        }
        lines.lock().ending = true;
        lines.more.notify_one();
        assert_eq!(String::from_utf8(thread.join().unwrap()).unwrap(), expected);
    }

    #[test]
    fn nobody_waits_for_a_log_that_takes_nothing() {
        let lines = Lines::default();
        let before = dropped().get();
        for _ in 0..5 {
            lines.add(&vec![b'x'; 1024 * 1024]);
        }
        assert_eq!(dropped().get() - before, 1);
        assert_eq!(lines.lock().bytes.len(), MAX_WAITING_BYTES);
    }
}
