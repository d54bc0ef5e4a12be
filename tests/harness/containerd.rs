//! A real containerd of the test's own: its root, state and socket in a temporary directory, the CRI plugin off.

use std::path::{Path, PathBuf};
use std::process::Command;

use pki::digest::Digest;
use tempfile::TempDir;

use crate::process::{Outcome, Process, as_root, write};

/// A running containerd.
pub struct Containerd {
    process: Process,
    directory: TempDir,
    root: PathBuf,
}

impl Containerd {
    /// Starts one and waits until it answers.
    pub fn start() -> Self {
        let directory = TempDir::new().expect("make a directory");
        let root = directory.path().join("root");
        Self::start_in(directory, root)
    }

    /// Starts one whose files are in a directory that outlives it.
    pub fn start_at(root: &Path) -> Self {
        Self::start_in(TempDir::new().expect("make a directory"), root.to_owned())
    }

    /// Starts one whose files are on a disk of their own, of so many bytes.
    pub fn start_on_disk_of(bytes: u64) -> Self {
        let directory = TempDir::new().expect("make a directory");
        let root = directory.path().join("root");
        let mut mount = as_root("sh");
        mount.args(["-euc", "mkdir -p $1; mount -t tmpfs -o size=$2 tmpfs $1", "mount"]);
        Outcome::of(mount.arg(&root).arg(bytes.to_string()), b"").expect_success();
        Self::start_in(directory, root)
    }

    fn start_in(directory: TempDir, root: PathBuf) -> Self {
        let config = directory.path().join("config.toml");
        write(&config, configuration(&directory, &root));
        let process = launch(&directory);
        let mut containerd = Self { process, directory, root };
        containerd.wait_until_ready();
        containerd
    }

    fn wait_until_ready(&mut self) {
        let mut version = self.ctr_command(&["version"]);
        self.process.wait_until_ready(|| Outcome::of(&mut version, b"").code == 0);
    }

    /// The socket clients speak to.
    pub fn address(&self) -> PathBuf {
        self.directory.path().join("containerd.sock")
    }

    /// Kills it and starts it again on the same content, as a reboot would.
    pub fn restart_after_kill9(&mut self) {
        self.process.kill9();
        self.process = launch(&self.directory);
        self.wait_until_ready();
    }

    /// Kills it and starts another in its place that has nothing: the disk was replaced.
    pub fn replace(&mut self) {
        self.process.kill9();
        Outcome::of(as_root("rm").arg("-rf").arg(&self.root), b"").expect_success();
        self.process = launch(&self.directory);
        self.wait_until_ready();
    }

    /// Kills it.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again after [`Containerd::kill9`].
    pub fn start_again(&mut self) {
        self.process = launch(&self.directory);
        self.wait_until_ready();
    }

    /// Leaves room for just so many bytes on a disk of its own.
    pub fn fill_disk_but(&self, bytes: u64) {
        let script = "free=$(($(stat -f -c %a*%S $1))); fallocate -l $((free - $2)) $1/filler";
        let mut fill = as_root("sh");
        Outcome::of(fill.args(["-euc", script, "fill"]).arg(&self.root).arg(bytes.to_string()), b"")
            .expect_success();
    }

    /// Takes back what [`Containerd::fill_disk_but`] did.
    pub fn free_disk(&self) {
        Outcome::of(as_root("rm").arg(self.root.join("filler")), b"").expect_success();
    }

    /// The process id, for measuring.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// `ctr` against this containerd, in the namespace images are handed over in.
    pub fn ctr(&self, args: &[&str]) -> Outcome {
        Outcome::of(&mut self.ctr_command(args), b"")
    }

    fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = as_root("ctr");
        command.arg("--address").arg(self.address()).args(["--namespace", "drayage"]).args(args);
        command
    }

    /// The names of the images it holds.
    pub fn images(&self) -> Vec<String> {
        self.lines(&["images", "list", "--quiet"])
    }

    /// The digests in its content store.
    pub fn content(&self) -> Vec<Digest> {
        let lines = self.lines(&["content", "list", "--quiet"]);
        lines.iter().map(|line| line.parse().expect("a digest from ctr")).collect()
    }

    /// The transfers it has not finished.
    pub fn ingests(&self) -> Vec<String> {
        self.lines(&["content", "active"]).into_iter().skip(1).collect()
    }

    /// The leases in force.
    pub fn leases(&self) -> Vec<String> {
        self.lines(&["leases", "list", "--quiet"])
    }

    fn lines(&self, args: &[&str]) -> Vec<String> {
        self.ctr(args).expect_success().stdout.lines().map(str::to_owned).collect()
    }

    /// Lets containerd collect its garbage now, as `ctr content prune` does.
    pub fn collect_garbage(&self) {
        // Deleting a lease in this way waits for a collection to end.
        self.ctr(&["leases", "create", "--id", "collect"]).expect_success();
        self.ctr(&["leases", "delete", "--sync", "collect"]).expect_success();
    }

    /// Runs a container from an image it holds and gives what the container printed.
    pub fn run(&self, image: &str) -> String {
        let name = format!("story-{}", self.images().len());
        // The shim writes what is printed: ctr, which copies it through a pipe, loses it when the container is quicker.
        let printed = self.directory.path().join("printed");
        drop(std::fs::remove_file(&printed));
        let log = format!("file://{}", printed.display());
        // Host network: the story needs no network of its own, and neither do machines without CNI.
        self.ctr(&["run", "--rm", "--net-host", "--log-uri", &log, image, &name]).expect_success();
        std::fs::read_to_string(&printed).unwrap_or_else(|error| panic!("{}: {error}", printed.display()))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Shims outlive the daemon that started them: end their tasks while it can still be asked.
        if self.process.is_running() {
            for task in self.ctr(&["tasks", "list", "--quiet"]).stdout.lines() {
                self.ctr(&["tasks", "delete", "--force", task]);
            }
            drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.process.terminate())));
        }
        let own = self.directory.path().join("root");
        drop(as_root("umount").arg("--lazy").arg(own).stderr(std::process::Stdio::null()).status());
        // What root wrote, root removes; a directory that stays behind is only untidy.
        drop(as_root("rm").arg("-rf").arg(self.directory.path()).status());
    }
}

fn launch(directory: &TempDir) -> Process {
    let mut command = as_root("containerd");
    command.arg("--config").arg(directory.path().join("config.toml"));
    Process::start("containerd", &mut command, &directory.path().join("containerd.log"))
}

fn configuration(directory: &TempDir, root: &Path) -> String {
    let at = |name: &str| directory.path().join(name).display().to_string();
    let group = rustix::process::getgid().as_raw();
    format!(
        "version = 2\nroot = {:?}\nstate = {:?}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {:?}\ngid = {group}\n[debug]\nlevel = \"info\"\n",
        root.display().to_string(),
        at("state"),
        at("containerd.sock"),
    )
}
