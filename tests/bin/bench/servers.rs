//! The servers of the comparison, all with the facade's certificates and one core.

use std::path::Path;
use std::process::Command;

use harness::process::{free_port, write};
use harness::{Facade, Process, http};
use tempfile::TempDir;

/// A server under load.
pub(crate) struct Server<'a> {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    /// What stands before the repository in a path.
    pub(crate) prefix: String,
    running: Running<'a>,
}

enum Running<'a> {
    Facade(&'a mut Facade),
    Peer { process: Process, command: Command, directory: TempDir },
}

impl<'a> Server<'a> {
    /// The processes that it consists of.
    pub(crate) fn pids(&self) -> Vec<u32> {
        super::measure::family(match &self.running {
            Running::Facade(facade) => facade.id(),
            Running::Peer { process, .. } => process.id(),
        })
    }

    pub(crate) fn facade(facade: &'a mut Facade, upstream: &str) -> Self {
        let authority = facade.device_authority();
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let (port, prefix) = (port.expect("a port"), format!("/v2/{upstream}"));
        let mut server = Self { name: "facade", port, prefix, running: Running::Facade(facade) };
        server.restart();
        server
    }

    pub(crate) fn docker_registry(facade: &Facade, upstream: &str) -> Self {
        let (directory, port) = (TempDir::new().expect("make a directory"), free_port());
        let data = facade.data_dir();
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {root}\n    maxthreads: 1000\n\
             http:\n  addr: 127.0.0.1:{port}\n  tls:\n    \
             certificate: {data}/tls/server.pem\n    key: {data}/tls/server.key\n    clientcas:\n      - {data}/ca/root.pem\n\
             proxy:\n  remoteurl: http://{upstream}\n",
            root = directory.path().join("root").display(),
            data = data.display(),
        );
        let file = directory.path().join("config.yml");
        write(&file, config);
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file);
        Self::launch("docker-registry", port, command, directory)
    }

    pub(crate) fn nginx(facade: &Facade, upstream: &str) -> Self {
        let (directory, port) = (TempDir::new().expect("make a directory"), free_port());
        let (data, root) = (facade.data_dir(), directory.path().display().to_string());
        let config = format!(
            "daemon off; worker_processes 1; user root; pid {root}/pid; error_log {root}/error.log;\n\
             worker_rlimit_nofile 20000; events {{ worker_connections 10000; }}\n\
             http {{ access_log {root}/access.log; sendfile on; tcp_nopush on; keepalive_requests 1000000; keepalive_timeout 600s;\n\
             send_timeout 600s; output_buffers 2 128k;\n\
             proxy_cache_path {root}/cache levels=1:2 keys_zone=c:10m max_size=20g use_temp_path=off;\n\
             server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {data}/tls/server.pem; ssl_certificate_key {data}/tls/server.key;\n\
             ssl_client_certificate {data}/ca/root.pem; ssl_verify_client on; ssl_verify_depth 3; ssl_protocols TLSv1.3;\n\
             ssl_session_cache off; ssl_session_tickets off;\n\
             location / {{ proxy_pass http://{upstream}; proxy_cache c; proxy_cache_lock on; proxy_cache_lock_timeout 600s;\n\
             proxy_cache_lock_age 600s; proxy_cache_valid 200 1d; proxy_cache_key $uri; proxy_http_version 1.1;\n\
             proxy_max_temp_file_size 4096m; proxy_set_header Connection \"\"; }} }} }}\n",
            data = data.display(),
        );
        let file = directory.path().join("nginx.conf");
        write(&file, config);
        let mut command = Command::new("nginx");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.arg("-c").arg(&file).arg("-p").arg(directory.path());
        Self::launch("nginx", port, command, directory)
    }

    /// Nothing but the handshake, and an answer of so many bytes.
    pub(crate) fn bare(facade: &Facade, bytes: usize) -> Self {
        let (directory, port) = (TempDir::new().expect("make a directory"), free_port());
        let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
        command.arg("bare").arg(port.to_string()).arg(facade.data_dir()).arg(bytes.to_string());
        Self::launch("bare", port, command, directory)
    }

    fn launch(name: &'static str, port: u16, mut command: Command, directory: TempDir) -> Self {
        let process = start(name, port, &mut command, directory.path());
        let running = Running::Peer { process, command, directory };
        Self { name, port, prefix: "/v2".into(), running }
    }

    /// A process of its own for what comes next; what it has cached stays on disk.
    pub(crate) fn restart(&mut self) {
        match &mut self.running {
            Running::Facade(facade) => on_core(0, || facade.start_again()),
            Running::Peer { process, command, directory } => {
                process.terminate();
                *process = start(self.name, self.port, command, directory.path());
            }
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // Asked and not killed: nginx takes its workers with it.
        if let Running::Peer { process, .. } = &mut self.running
            && process.is_running()
        {
            process.terminate();
        }
    }
}

fn start(name: &'static str, port: u16, command: &mut Command, directory: &Path) -> Process {
    let mut process = on_core(0, || Process::start(name, command, &directory.join("log")));
    process.wait_until_ready(|| {
        // Any word back, a refusal of plain HTTP included, is a sign of life.
        http::get(&format!("127.0.0.1:{port}"), "/").is_ok() || is_listening(port)
    });
    process
}

/// Starts something that knows from its first moment that it has one core; the load runs on the other.
fn on_core<T>(core: u32, start: impl FnOnce() -> T) -> T {
    pin(core);
    let started = start();
    pin(1);
    started
}

/// Pins this thread, which is the process's first: what it starts inherits that.
fn pin(core: u32) {
    let (core, pid) = (core.to_string(), std::process::id().to_string());
    let pinned = Command::new("taskset").args(["-p", "-c", &core, &pid]).output();
    assert!(pinned.is_ok_and(|output| output.status.success()), "pin to core {core}");
}

fn is_listening(port: u16) -> bool {
    let table = std::fs::read_to_string(Path::new("/proc/net/tcp")).unwrap_or_default();
    table.contains(&format!("0100007F:{port:04X} 00000000:0000 0A"))
}
