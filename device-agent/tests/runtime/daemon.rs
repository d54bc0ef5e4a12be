//! One containerd of a test's own.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pki::digest::Digest;
use tempfile::TempDir;

pub(crate) struct Daemon {
    directory: TempDir,
    child: Child,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_in(directory())
    }

    /// A daemon whose files are on a disk of their own.
    pub(crate) fn start_on_disk_of(bytes: u64) -> Self {
        let directory = directory();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(root).status();
        assert!(mounted.unwrap().success(), "this test needs root");
        Self::start_in(directory)
    }

    fn start_in(directory: TempDir) -> Self {
        let path = directory.path().display();
        let config = format!(
            r#"version = 2
root = "{path}/root"
state = "{path}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{path}/containerd.sock"
"#
        );
        fs::write(directory.path().join("config.toml"), config).unwrap();
        let child = spawn(directory.path());
        let daemon = Self { directory, child };
        daemon.wait();
        daemon
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("containerd.sock")
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.directory.path());
        self.wait();
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.command(&["version"]).output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "containerd does not answer");
            sleep(Duration::from_millis(50));
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", "drayage"]).args(arguments);
        command
    }

    /// What `ctr` prints; it must succeed.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("ctr must be installed");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a container of an image prints.
    pub(crate) fn run(&self, image: &str, command: &[&str]) -> String {
        // runc keeps the containers of all daemons in one place.
        let id = self.directory.path().file_name().unwrap().to_str().unwrap();
        let arguments = [&["run", "--rm", image, id], command].concat();
        self.ctr(&arguments)
    }

    /// Makes containerd collect everything that nothing holds, before it answers.
    pub(crate) fn collect(&self) {
        self.ctr(&["leases", "create", "--id", "collect"]);
        self.ctr(&["leases", "rm", "--sync", "collect"]);
    }

    /// Images, contents and snapshots, without times.
    pub(crate) fn inventory(&self) -> String {
        let snapshots = self.ctr(&["snapshots", "ls"]);
        let snapshots: Vec<&str> = snapshots.lines().skip(1).collect();
        let images = self.ctr(&["images", "ls", "-q"]);
        let contents = self.ctr(&["content", "ls", "-q"]);
        [images.trim(), contents.trim(), &snapshots.join("\n")].join("\n").trim().to_owned()
    }

    fn content(&self) -> PathBuf {
        self.directory.path().join("root/io.containerd.content.v1.content")
    }

    pub(crate) fn flip_a_byte_of(&self, digest: Digest) {
        let path = self.content().join("blobs/sha256").join(digest.hex());
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }

    /// Leaves room for just so many bytes.
    pub(crate) fn fill_disk_but(&self, bytes: u64) {
        let root = self.directory.path().join("root");
        let stat = rustix::fs::statvfs(&root).unwrap();
        let filler = fs::File::create(root.join("filler")).unwrap();
        let length = stat.f_bavail * stat.f_frsize - bytes;
        rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
    }

    pub(crate) fn free_disk(&self) {
        fs::remove_file(self.directory.path().join("root/filler")).unwrap();
    }

    pub(crate) fn empty_ingest_files(&self) {
        for ingest in fs::read_dir(self.content().join("ingest")).unwrap() {
            for file in fs::read_dir(ingest.unwrap().path()).unwrap() {
                fs::write(file.unwrap().path(), b"").unwrap();
            }
        }
    }
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("drayage-containerd-").tempdir().unwrap()
}

fn spawn(directory: &Path) -> Child {
    let log = fs::File::create(directory.join("log")).unwrap();
    Command::new("containerd")
        .arg("--config")
        .arg(directory.join("config.toml"))
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .expect("containerd must be installed")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let root = self.directory.path().join("root");
        let _ = Command::new("umount").arg("--lazy").arg(root).stderr(Stdio::null()).status();
    }
}
