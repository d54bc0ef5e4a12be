//! An HTTP proxy as companies have them: `CONNECT` with a password, and sometimes somebody who reads along.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use crate::registry::basic;

/// A running proxy; it ends with the test's process.
pub struct Tunnel {
    port: u16,
    passed: Arc<AtomicUsize>,
    brought: Arc<AtomicU64>,
}

/// What the proxy wants and does.
struct Rules {
    credential: Option<String>,
    /// Where every tunnel leads, whatever was asked for.
    diverted_to: Option<String>,
    passed: Arc<AtomicUsize>,
    brought: Arc<AtomicU64>,
}

impl Tunnel {
    /// Lets everybody through.
    pub fn open() -> Self {
        Self::start(None, None)
    }

    /// Lets through who knows the password.
    pub fn with_password(user: &str, password: &str) -> Self {
        Self::start(Some(basic(user, password)), None)
    }

    /// Leads every tunnel to `address`: somebody who inspects TLS.
    pub fn diverted_to(address: &str) -> Self {
        Self::start(None, Some(address.to_owned()))
    }

    fn start(credential: Option<String>, diverted_to: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let passed = Arc::new(AtomicUsize::new(0));
        let brought = Arc::new(AtomicU64::new(0));
        let rules = Arc::new(Rules {
            credential,
            diverted_to,
            passed: Arc::clone(&passed),
            brought: Arc::clone(&brought),
        });
        thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                let rules = Arc::clone(&rules);
                thread::spawn(move || drop(rules.serve(client)));
            }
        });
        Self { port, passed, brought }
    }

    /// `127.0.0.1:port`.
    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many tunnels it has made.
    pub fn passed(&self) -> usize {
        self.passed.load(Ordering::SeqCst)
    }

    /// How many bytes it has brought to its clients, with those that lie unread in their sockets.
    pub fn brought_bytes(&self) -> u64 {
        self.brought.load(Ordering::SeqCst)
    }
}

impl Rules {
    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let mut lines = Vec::new();
        let mut reader = BufReader::new(client.try_clone()?);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            lines.push(line.trim_end().to_owned());
        }
        let target = lines.first().and_then(|line| line.strip_prefix("CONNECT ")?.split(' ').next());
        let Some(target) = target else {
            return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n");
        };
        let given = lines.iter().find_map(|line| line.strip_prefix("Proxy-Authorization: "));
        if self.credential.as_deref().is_some_and(|wanted| given != Some(wanted)) {
            return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
        }
        let upstream = TcpStream::connect(self.diverted_to.as_deref().unwrap_or(target))?;
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        // What is counted as brought has left this process: only a little waits in the kernel.
        rustix::net::sockopt::set_socket_send_buffer_size(&client, 16 * 1024)?;
        self.passed.fetch_add(1, Ordering::SeqCst);
        let (back, to) = (client.try_clone()?, upstream.try_clone()?);
        let brought = Arc::clone(&self.brought);
        let count = move |bytes: usize| {
            brought.fetch_add(bytes as u64, Ordering::SeqCst);
        };
        let downwards = thread::spawn(move || drop(relay(upstream, back, count)));
        drop(relay(client, to, |_| {}));
        drop(downwards.join());
        Ok(())
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, passed: impl Fn(usize)) -> std::io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return to.shutdown(std::net::Shutdown::Write);
        }
        to.write_all(buffer.get(..count).unwrap_or_default())?;
        passed(count);
    }
}
