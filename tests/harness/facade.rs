//! The facade as an operator has it: `init`, `serve`, and every other verb as a command of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::http;
use crate::process::{self, Outcome, Process, clock_at, free_port};
use crate::registry::{PASSWORD, Pushed, Registry, USER};

/// A running facade with a data directory of its own.
pub struct Facade {
    // Dropped first: a failing test shows its log, which lies in the directory.
    process: Option<Process>,
    directory: TempDir,
    device_port: u16,
    device_listen_port: u16,
    operator_port: u16,
    settings: Vec<(String, String)>,
    init_args: Vec<String>,
}

impl Facade {
    /// Initialises a data directory and serves from it.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with more settings (environment variables).
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::start_as(settings, &[])
    }

    /// The same, with root and targets keys left in `operator` under the passphrase in `passphrase_file`.
    pub fn start_offline(operator: &Path, passphrase_file: &Path) -> Self {
        let (operator, file) = (operator.display().to_string(), passphrase_file.display().to_string());
        Self::start_as(&[], &["--offline-keys", &operator, "--passphrase-file", &file])
    }

    fn start_as(settings: &[(&str, &str)], init_args: &[&str]) -> Self {
        let device_port = free_port();
        let mut facade = Self {
            directory: TempDir::new().expect("make a directory"),
            device_port,
            device_listen_port: device_port,
            operator_port: free_port(),
            settings: settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            init_args: init_args.iter().map(|arg| (*arg).into()).collect(),
            process: None,
        };
        facade.init().expect_success();
        facade.serve();
        facade
    }

    /// Runs `facade init` on the data directory.
    pub fn init(&self) -> Outcome {
        let mut command = process::command("facade");
        command.arg("init").arg("--data-dir").arg(self.data_dir());
        command.args(&self.init_args);
        Outcome::of(
            command.args(["--hostname", "localhost", "--hostname", "127.0.0.1", "--hostname", "::1"]),
            b"",
        )
    }

    fn serve(&mut self) {
        let mut command = process::command("facade");
        command.arg("serve").arg("--data-dir").arg(self.data_dir());
        command.env("FACADE_DEVICE_LISTEN", format!("127.0.0.1:{}", self.device_listen_port));
        command.env("FACADE_OPERATOR_LISTEN", format!("127.0.0.1:{}", self.operator_port));
        command.env("FACADE_PUBLIC_URL", self.device_url());
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        let mut process = Process::start("facade", &mut command, &self.directory.path().join("facade.log"));
        let operator = self.operator_authority();
        process.wait_until_ready(|| http::get(&operator, "/readyz").is_ok_and(|answer| answer.status == 200));
        self.process = Some(process);
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The address devices are told.
    pub fn device_url(&self) -> String {
        format!("https://localhost:{}", self.device_port)
    }

    /// `localhost:port` of the device door.
    pub fn device_authority(&self) -> String {
        format!("localhost:{}", self.device_port)
    }

    /// `127.0.0.1:port` of the operator door.
    pub fn operator_authority(&self) -> String {
        format!("127.0.0.1:{}", self.operator_port)
    }

    /// The first admin's token.
    pub fn admin_token_file(&self) -> PathBuf {
        self.data_dir().join("admin.token")
    }

    /// The certificate its CA starts from.
    pub fn ca_file(&self) -> PathBuf {
        self.data_dir().join("ca/root.pem")
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("facade.log")).unwrap_or_default()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("a running facade").id()
    }

    /// The most memory it has had resident so far.
    pub fn peak_rss_bytes(&self) -> u64 {
        self.process.as_ref().expect("a running facade").peak_rss_bytes()
    }

    /// Starts it again with one more setting.
    pub fn start_again_with(&mut self, name: &str, value: &str) {
        self.settings.push((name.into(), value.into()));
        self.start_again();
    }

    /// Starts it again with more settings.
    pub fn start_again_with_all(&mut self, settings: &[(&str, &str)]) {
        self.settings.extend(settings.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        self.start_again();
    }

    /// Starts it again with its clock set forward.
    pub fn start_again_in(&mut self, offset: &str) {
        self.settings.extend(clock_at(offset));
        self.start_again();
    }

    /// Asks it to read its certificates again.
    pub fn hang_up(&self) {
        let id = self.process.as_ref().expect("a running facade").id();
        let mut kill = std::process::Command::new("kill");
        Outcome::of(kill.args(["-HUP", &id.to_string()]), b"").expect_success();
    }

    /// Kills it with no chance to clean up.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            assert!(process.terminate().success(), "the facade ended badly:\n{}", process.log());
        }
    }

    /// Starts it again on the same data and ports.
    pub fn start_again(&mut self) {
        self.kill9();
        self.serve();
    }

    /// Starts it again on another device port, while devices still use the old one: room for someone in between.
    /// Gives the old and the new port.
    pub fn move_device_door(&mut self) -> (u16, u16) {
        self.device_listen_port = free_port();
        self.start_again();
        (self.device_port, self.device_listen_port)
    }

    /// Runs an operator's verb with `--output json`.
    pub fn cli(&self, args: &[&str]) -> Outcome {
        self.cli_with_input(args, b"")
    }

    /// The same, with something on standard input.
    pub fn cli_with_input(&self, args: &[&str], input: &[u8]) -> Outcome {
        self.cli_with(&self.admin_token_file(), args, input)
    }

    /// Runs an operator's verb with the token in another file.
    pub fn cli_as(&self, token_file: &Path, args: &[&str]) -> Outcome {
        self.cli_with(token_file, args, b"")
    }

    fn cli_with(&self, token_file: &Path, args: &[&str], input: &[u8]) -> Outcome {
        let mut command = self.command(args);
        Outcome::of(command.args(["--output", "json"]).env("FACADE_TOKEN_FILE", token_file), input)
    }

    /// Starts an operator's verb with `--output json` and leaves it running; what it prints goes to `log`.
    pub fn start_cli(&self, args: &[&str], log: &Path) -> Process {
        Process::start("facade", self.command(args).args(["--output", "json"]), log)
    }

    /// An operator's verb, as it is typed.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = process::command("facade");
        command.args(args);
        command.env("FACADE_SERVER", format!("http://{}", self.operator_authority()));
        command.env("FACADE_TOKEN_FILE", self.admin_token_file());
        command
    }

    /// Runs an operator's verb that must succeed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> Value {
        let outcome = self.cli(args).expect_success();
        if outcome.stdout.trim().is_empty() { Value::Null } else { outcome.json() }
    }

    /// Connects a registry of the rig, with its password when it has one.
    #[track_caller]
    pub fn connect(&self, registry: &Registry) {
        self.connect_as(registry, &registry.host());
    }

    /// Connects a registry of the rig under another address: a proxy in front of it.
    #[track_caller]
    pub fn connect_as(&self, registry: &Registry, host: &str) {
        let local = ["--plain-http", "--allow-private"];
        let mut args = vec!["connection", "add", host];
        let mut input = Vec::new();
        if registry.needs_credential() {
            args.extend(["--provider", "static", "--username", USER, "--password-stdin"]);
            input.extend_from_slice(PASSWORD.as_bytes());
        } else {
            args.extend(["--provider", "anonymous"]);
        }
        args.extend(local);
        self.cli_with_input(&args, &input).expect_success();
    }

    /// Imports what was pushed.
    #[track_caller]
    pub fn import(&self, pushed: &Pushed) {
        self.ok(&["import", &pushed.repository, &pushed.tag]);
    }

    /// Imports what was pushed and assigns it to one device.
    #[track_caller]
    pub fn deliver(&self, pushed: &Pushed, device: &str) {
        self.import(pushed);
        self.ok(&["assign", &pushed.artifact(), "--device", device]);
    }

    /// An enrollment token for one device.
    #[track_caller]
    pub fn token(&self, device: &str) -> String {
        let answer = self.ok(&["device", "token", "--device", device]);
        let token = answer.get("token").and_then(Value::as_str);
        token.unwrap_or_else(|| panic!("no token in {answer}")).to_owned()
    }

    /// Whether `text` is anywhere in the data directory: what must never be stored is looked for like this.
    pub fn stores(&self, text: &str) -> bool {
        files_below(&self.data_dir()).iter().any(|path| {
            let bytes = std::fs::read(path).unwrap_or_default();
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        })
    }
}

/// Every file below a directory.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
