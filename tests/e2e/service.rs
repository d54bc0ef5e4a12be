//! What the facade tells a service manager, at the socket where systemd would listen.

use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use harness::Facade;
use harness::process::READY;
use tempfile::TempDir;

/// Hears what a program says to its service manager.
struct Manager {
    directory: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn listen() -> Self {
        let directory = TempDir::new().expect("make a directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("bind a socket");
        socket.set_read_timeout(Some(READY)).expect("set a deadline");
        Self { directory, socket }
    }

    fn address(&self) -> String {
        self.directory.path().join("notify").display().to_string()
    }

    /// A facade that reports here and is watched.
    fn facade(&self, watchdog: Duration) -> Facade {
        let limit = watchdog.as_micros().to_string();
        Facade::start_with(&[("NOTIFY_SOCKET", &self.address()), ("WATCHDOG_USEC", &limit)])
    }

    /// The next message that says `word`.
    #[track_caller]
    fn hear(&self, word: &str) -> String {
        loop {
            let mut bytes = [0; 4096];
            let length = self.socket.recv(&mut bytes).expect(word);
            let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned();
            if text.lines().any(|line| line == word) {
                return text;
            }
        }
    }
}

#[test]
fn ready_is_said_when_both_doors_listen() {
    let manager = Manager::listen();
    let mut facade = manager.facade(Duration::from_hours(1));
    manager.hear("READY=1");
    facade.stop();
    manager.hear("STOPPING=1");
    let doors = [facade.device_authority(), facade.operator_authority()];
    let told = std::thread::spawn(move || {
        manager.hear("READY=1");
        doors.map(|door| TcpStream::connect(&door).map(drop).map_err(|error| format!("{door}: {error}")))
    });
    facade.start_again();
    assert_eq!(told.join().expect("both doors"), [Ok(()), Ok(())]);
}

#[test]
fn a_reload_is_announced_and_its_end_too() {
    let manager = Manager::listen();
    let facade = manager.facade(Duration::from_hours(1));
    manager.hear("READY=1");
    facade.hang_up();
    let reloading = manager.hear("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.hear("READY=1");
}

#[test]
fn a_reload_that_changes_nothing_says_why() {
    let manager = Manager::listen();
    let facade = manager.facade(Duration::from_hours(1));
    manager.hear("READY=1");
    std::fs::write(facade.data_dir().join("tls/server.pem"), "no certificate")
        .expect("spoil the certificate");
    facade.hang_up();
    let ready = manager.hear("READY=1");
    assert!(ready.contains("former certificate"), "{ready}");
}

#[test]
fn the_watchdog_is_fed_while_the_facade_works() {
    let manager = Manager::listen();
    let _facade = manager.facade(Duration::from_secs(4));
    manager.hear("WATCHDOG=1");
    manager.hear("WATCHDOG=1");
}
