//! Runs what the operator of the device configured: a hook, a probe.
//!
//! No shell, no environment but what is given, no terminal; a time limit, and then the whole process group ends. What
//! the program printed last is kept for whoever asks why. A program that leaves something running behind it is done
//! when it itself ends.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::Access;
use rustix::process::{Pid, Signal};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<String>,
}

/// Why a program did not do its work.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It cannot be started.
    #[error("cannot run {path}")]
    Start {
        /// Which program.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It said that it failed.
    #[error("{path} ended with {status}{}", said(.last_words))]
    Failed {
        /// Which program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it printed last.
        last_words: String,
    },
    /// It took too long and was ended.
    #[error("{path} was not done after {} s{}", .limit.as_secs(), said(.last_words))]
    Endless {
        /// Which program.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
        /// What it printed last.
        last_words: String,
    },
}

impl ProgramError {
    /// The exit code, if it ended with one.
    pub fn code(&self) -> Option<i32> {
        if let Self::Failed { status, .. } = self { status.code() } else { None }
    }
}

fn said(last_words: &str) -> String {
    if last_words.is_empty() { String::new() } else { format!(", saying: {last_words}") }
}

impl Program {
    /// The program of these words, the first of which is its absolute path.
    pub fn new(words: Vec<String>) -> Result<Self, String> {
        let mut words = words.into_iter();
        let path = PathBuf::from(words.next().unwrap_or_default());
        if !path.is_absolute() {
            return Err(format!("{:?} is not the absolute path of a program", path.display().to_string()));
        }
        Ok(Self { path, arguments: words.collect() })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there and may be run.
    pub fn find(&self) -> Result<(), ProgramError> {
        let failed = |source| ProgramError::Start { path: self.path.clone(), source };
        let found = std::fs::metadata(&self.path).map_err(failed)?;
        if !found.is_file() {
            return Err(failed(std::io::ErrorKind::PermissionDenied.into()));
        }
        rustix::fs::access(&self.path, Access::EXEC_OK).map_err(|errno| failed(errno.into()))
    }

    /// Runs it to its end.
    pub async fn run(&self, environment: &[(&str, String)], limit: Duration) -> Result<(), ProgramError> {
        let failed = |source| ProgramError::Start { path: self.path.clone(), source };
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env_clear().env("PATH", PATH).current_dir("/");
        command.envs(environment.iter().map(|(name, text)| (name, text)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        // Ends with this function, also when nobody waits for it any more.
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let (said, complained) = (Heard::default(), Heard::default());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ended = {
            let (out, err) = (listen(stdout, &said), listen(stderr, &complained));
            tokio::select! {
                ended = timeout(limit, finish(&mut child)) => ended,
                // Never: both go on for ever.
                ((), ()) = async { tokio::join!(out, err) } => return Err(failed(std::io::ErrorKind::BrokenPipe.into())),
            }
        };
        let complaint = complained.last_words();
        let last_words = if complaint.is_empty() { said.last_words() } else { complaint };
        let path = self.path.clone();
        match ended {
            Ok(Ok(status)) => {
                group.disband();
                if status.success() { Ok(()) } else { Err(ProgramError::Failed { path, status, last_words }) }
            }
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => Err(ProgramError::Endless { path, limit, last_words }),
        }
    }
}

/// Waits for the end, and then a moment for what was printed just before it.
async fn finish(child: &mut Child) -> std::io::Result<ExitStatus> {
    let status = child.wait().await?;
    tokio::time::sleep(LAST_WORDS).await;
    Ok(status)
}

/// Reads what a program prints; never returns.
async fn listen(stream: Option<impl AsyncRead + Unpin>, heard: &Heard) {
    if let Some(mut stream) = stream {
        let mut piece = [0; 1024];
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            heard.take(piece.get(..count).unwrap_or_default());
        }
    }
    std::future::pending::<()>().await;
}

/// The end of what was printed.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    fn take(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let excess = kept.len().saturating_sub(MAX_HEARD_BYTES);
        kept.drain(..excess);
    }

    /// The last line or two, in one.
    fn last_words(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines.iter().skip(lines.len().saturating_sub(3)).copied().collect::<Vec<_>>().join("; ")
    }
}

/// A process group that ends when this is dropped.
struct Group(Option<Pid>);

impl Group {
    /// What the program left running stays.
    fn disband(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // It may be gone already.
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MAX_HEARD_BYTES: usize = 1024;
/// How long what a program printed may be on its way after its end.
const LAST_WORDS: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program::new(["/bin/sh", "-c", script].map(str::to_owned).to_vec()).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn gives_a_program_what_it_is_told_and_nothing_else() {
        let environment = [("DRAYAGE_NAME", "app; rm -rf /".to_owned())];
        shell("test \"$DRAYAGE_NAME\" = 'app; rm -rf /' && test -z \"$HOME$CARGO\"")
            .run(&environment, LONG)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn tells_how_a_program_failed_and_what_it_said_last() {
        let error = shell("seq 1 100000; echo no database >&2; exit 7").run(&[], LONG).await.unwrap_err();
        assert_eq!(error.code(), Some(7));
        assert!(
            error.to_string().contains("exit status: 7") && error.to_string().contains("no database"),
            "{error}"
        );
        let absent = Program::new(vec!["/no/such/program".into()]).unwrap();
        assert!(matches!(absent.run(&[], LONG).await, Err(ProgramError::Start { .. })));
    }

    #[tokio::test]
    async fn ends_a_program_that_takes_too_long_with_all_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let alive = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", alive.display());
        let error = shell(&script).run(&[], Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(error, ProgramError::Endless { .. }), "{error}");
        let child = std::fs::read_to_string(alive).unwrap();
        let stat = PathBuf::from(format!("/proc/{}/stat", child.trim()));
        let gone = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        while !gone() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn leaves_alone_what_a_program_started_for_good() {
        let directory = tempfile::tempdir().unwrap();
        let alive = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}", alive.display());
        shell(&script).run(&[], LONG).await.unwrap();
        let child: i32 = std::fs::read_to_string(alive).unwrap().trim().parse().unwrap();
        let child = Pid::from_raw(child).unwrap();
        rustix::process::test_kill_process(child).unwrap();
        rustix::process::kill_process(child, Signal::KILL).unwrap();
    }

    #[test]
    fn rejects_programs_that_would_be_searched_for() {
        for words in [vec![], vec!["reboot".to_owned()], vec!["./x".to_owned()]] {
            assert!(Program::new(words).is_err());
        }
    }
}
