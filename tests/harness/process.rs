//! Programs under test: started with their output in a log, waited for with a deadline, dead when dropped.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// How long a program may take to become ready, on a loaded two-core machine.
pub const READY: Duration = Duration::from_secs(30);

/// How long one command of a story may take.
pub const COMMAND: Duration = Duration::from_mins(2);

/// Asks until there is an answer; fails the test when none came by the deadline.
pub fn poll<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < deadline, "timed out after {deadline:?} waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, appending both of its outputs to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let open = || OpenOptions::new().create(true).append(true).open(log).expect("open a process log");
        let child =
            command.stdin(Stdio::null()).stdout(open()).stderr(open()).spawn().unwrap_or_else(|error| {
                panic!("start {name} ({}): {error}", command.get_program().display())
            });
        Self { name: name.into(), child, log: log.into() }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for a printed line that contains `needle`, and gives the line.
    pub fn wait_for_log(&mut self, needle: &str) -> String {
        let what = format!("{} to print {needle:?}", self.name);
        poll(&what, READY, || {
            let log = self.log();
            let line = log.lines().find(|line| line.contains(needle)).map(str::to_owned);
            if line.is_none() {
                self.assert_running();
            }
            line
        })
    }

    /// Waits until `ready` says so, failing at once when the program ends instead.
    pub fn wait_until_ready(&mut self, mut ready: impl FnMut() -> bool) {
        let what = format!("{} to become ready", self.name);
        poll(&what, READY, || {
            self.assert_running();
            ready().then_some(())
        });
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn assert_running(&mut self) {
        assert!(self.is_running(), "{} ended early; its log:\n{}", self.name, self.log());
    }

    /// Kills it with no chance to clean up, as a power cut would.
    pub fn kill9(&mut self) {
        // Both fail only when it is already gone, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        rustix::process::kill_process(pid, Signal::TERM).expect("send SIGTERM");
        self.wait()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let what = format!("{} to end", self.name);
        poll(&what, COMMAND, || self.child.try_wait().expect("wait for a child"))
    }

    /// Waits until it ends by itself, and gives the most memory it has had resident as well.
    ///
    /// The peak is read while it runs, every millisecond: what it grew by in its very last one is not seen.
    pub fn wait_measuring(&mut self, deadline: Duration) -> (ExitStatus, u64) {
        let started = Instant::now();
        let mut peak = 0;
        loop {
            peak = peak.max(self.try_peak_rss_bytes().unwrap_or(0));
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                return (status, peak);
            }
            assert!(started.elapsed() < deadline, "{} did not end in {deadline:?}", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The most memory it has had resident so far (`VmHWM`).
    pub fn peak_rss_bytes(&self) -> u64 {
        self.try_peak_rss_bytes().expect("a VmHWM line in /proc")
    }

    fn try_peak_rss_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            let mut text = format!("---- last lines of {} ----\n", self.name);
            for line in tail.iter().rev() {
                text.push_str(line);
                text.push('\n');
            }
            drop(std::io::stderr().write_all(text.as_bytes()));
        }
    }
}

/// What a command that ran to its end did.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; 128 + n when signal n ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Runs `command` to its end with `input` on its standard input.
    pub fn of(command: &mut Command, input: &[u8]) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", command.get_program().display()));
        // A program that does not read its input closes it; that is its affair.
        drop(child.stdin.take().expect("a piped stdin").write_all(input));
        let output = child.wait_with_output().expect("wait for a command");
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails the test unless it ended with `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "unexpected exit code\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Fails the test unless it succeeded.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        self.expect_code(0)
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}):\n{}\n{}", self.stdout, self.stderr))
    }

    /// Both outputs, for looking for words in.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A loopback port nothing listens on, outside the range from which the kernel takes ports for outgoing connections.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const PER_PROCESS: u16 = 40;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes run side by side: each walks a stretch of its own.
    let stretch = u16::try_from(std::process::id() % 550).expect("a small number") * PER_PROCESS;
    poll("a free port", READY, || {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % (PER_PROCESS * 8);
        let port = FIRST + (stretch + step) % (550 * PER_PROCESS);
        TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(port)
    })
}

/// A setting of the rig.
#[expect(clippy::disallowed_methods, reason = "the one place of the rig that reads the environment")]
pub fn setting(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The path of one of the workspace's programs, built beforehand by `tests/run` (or `cargo build`).
pub fn program(name: &str) -> PathBuf {
    let candidates = setting("DRAYAGE_BIN_DIR").map(PathBuf::from).into_iter().chain(build_directories());
    candidates
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!("the program {name} is not built: run `cargo build -p {name}` first (tests/run does), or set DRAYAGE_BIN_DIR")
        })
}

/// A command that runs one of the workspace's programs with nothing of the caller's environment: no proxy, no setting.
pub fn command(name: &str) -> Command {
    in_clean_environment(Command::new(program(name)))
}

/// The same command without the caller's environment.
pub fn in_clean_environment(mut command: Command) -> Command {
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// The directory of the test's own build profile (`target/debug`), found above the running test.
fn build_directories() -> impl Iterator<Item = PathBuf> {
    let test = std::env::current_exe().unwrap_or_default();
    let above: Vec<PathBuf> = test.ancestors().skip(1).take(2).map(Path::to_owned).collect();
    above.into_iter()
}

/// The environment in which a program takes the time for another: `+40d` from now, or `@1970-01-01 00:00:00`.
pub fn clock_at(when: &str) -> [(String, String); 3] {
    let directories = fs::read_dir("/usr/lib").into_iter().flatten().filter_map(Result::ok);
    let library = directories
        .map(|directory| directory.path().join("faketime/libfaketime.so.1"))
        .find(|path| path.is_file())
        .expect("libfaketime (tests/install installs it)");
    [
        ("LD_PRELOAD".into(), library.display().to_string()),
        ("FAKETIME".into(), when.into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
    ]
}

/// A command that runs `name` as root: directly, or through `sudo` when the tests do not run as root.
pub fn as_root(name: impl Into<OsString>) -> Command {
    if rustix::process::getuid().is_root() {
        return Command::new(name.into());
    }
    let mut command = Command::new("sudo");
    command.arg("-n").arg(name.into());
    command
}

/// Writes a file, making its directory first.
pub fn write(path: &Path, content: impl AsRef<[u8]>) {
    let directory = path.parent().expect("a file in a directory");
    fs::create_dir_all(directory).expect("make a directory");
    File::create(path)
        .and_then(|mut file| file.write_all(content.as_ref()))
        .unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}
