//! The three servers of the comparison, all with the facade's certificates and one core.

use std::path::Path;
use std::process::Command;

use harness::process::{free_port, write};
use harness::{Facade, Process, http};
use tempfile::TempDir;

/// A server under load.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    /// What stands before the repository in a path.
    pub(crate) prefix: String,
    process: Option<Process>,
    facade_pid: u32,
    _directory: TempDir,
}

impl Server {
    /// The processes that it consists of.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let pid = self.process.as_ref().map_or(self.facade_pid, Process::id);
        super::measure::family(pid)
    }

    pub(crate) fn facade(facade: &Facade, upstream: &str) -> Self {
        let port = facade.device_authority();
        let port = port.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let server = Self {
            name: "facade",
            port: port.expect("a port"),
            prefix: format!("/v2/{upstream}"),
            process: None,
            facade_pid: facade.id(),
            _directory: TempDir::new().expect("make a directory"),
        };
        server.pin()
    }

    pub(crate) fn docker_registry(facade: &Facade, upstream: &str) -> Self {
        let (directory, port) = (TempDir::new().expect("make a directory"), free_port());
        let data = facade.data_dir();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {root}\nhttp:\n  addr: 127.0.0.1:{port}\n  tls:\n    \
             certificate: {data}/tls/server.pem\n    key: {data}/tls/server.key\n    clientcas:\n      - {data}/ca/root.pem\n\
             proxy:\n  remoteurl: http://{upstream}\n",
            root = directory.path().join("root").display(),
            data = data.display(),
        );
        let file = directory.path().join("config.yml");
        write(&file, config);
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file);
        Self::launch("docker-registry", port, &mut command, directory)
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
        command.arg("-c").arg(&file).arg("-p").arg(directory.path());
        Self::launch("nginx", port, &mut command, directory)
    }

    fn launch(name: &'static str, port: u16, command: &mut Command, directory: TempDir) -> Self {
        let log = directory.path().join("log");
        let mut process = Process::start(name, command, &log);
        process.wait_until_ready(|| {
            // Any word back, a refusal of plain HTTP included, is a sign of life.
            http::get(&format!("127.0.0.1:{port}"), "/").is_ok() || is_listening(port)
        });
        let server = Self {
            name,
            port,
            prefix: "/v2".into(),
            process: Some(process),
            facade_pid: 0,
            _directory: directory,
        };
        server.pin()
    }

    /// Keeps it to the first core; the load runs on the other.
    fn pin(self) -> Self {
        for pid in self.pids() {
            let pid = pid.to_string();
            let pinned = Command::new("taskset")
                .args(["-a", "-p", "-c", "0", &pid])
                .output();
            assert!(pinned.is_ok_and(|output| output.status.success()), "pin {pid}");
        }
        self
    }
}

fn is_listening(port: u16) -> bool {
    let table = std::fs::read_to_string(Path::new("/proc/net/tcp")).unwrap_or_default();
    table.contains(&format!("0100007F:{port:04X} 00000000:0000 0A"))
}
