//! The way to the registry: as long and as wide as a measurement wants it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A relay in front of a server; its threads end with the process.
pub(crate) struct Wire {
    address: SocketAddr,
    nature: Arc<Nature>,
}

struct Nature {
    delay_millis: AtomicU64,
    bytes_per_second: AtomicU64,
    paid_at: Mutex<Instant>,
}

impl Wire {
    /// A short and wide one.
    pub(crate) fn before(upstream: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let nature = Arc::new(Nature {
            delay_millis: AtomicU64::new(0),
            bytes_per_second: AtomicU64::new(u64::MAX),
            paid_at: Mutex::new(Instant::now()),
        });
        let (shared, upstream) = (Arc::clone(&nature), upstream.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                let Ok(server) = TcpStream::connect(&upstream) else { continue };
                // What cannot be told of here shows as a failed pull.
                drop(relay(&shared, client, server));
            }
        });
        Self { address, nature }
    }

    /// `address:port`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Whatever a client sends takes so long from now on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.nature.delay_millis.store(millis, Ordering::Relaxed);
    }

    /// So much comes back per second, over all connections together.
    pub(crate) fn set_rate(&self, bytes_per_second: u64) {
        self.nature.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }
}

fn relay(nature: &Arc<Nature>, client: TcpStream, server: TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    let (there, back) = (Arc::clone(nature), Arc::clone(nature));
    thread::spawn(move || copy(from_client, to_server, || there.travel()));
    thread::spawn(move || copy_paid(server, client, &back));
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream, before: impl Fn()) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        before();
        if to.write_all(piece.get(..count).unwrap_or_default()).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Write));
}

fn copy_paid(mut from: TcpStream, mut to: TcpStream, nature: &Nature) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        nature.pay(count as u64);
        if to.write_all(piece.get(..count).unwrap_or_default()).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Write));
}

impl Nature {
    fn travel(&self) {
        thread::sleep(Duration::from_millis(self.delay_millis.load(Ordering::Relaxed)));
    }

    fn pay(&self, bytes: u64) {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == u64::MAX {
            return;
        }
        let now = Instant::now();
        let wait = {
            let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
            *paid_at = (*paid_at).max(now) + Duration::from_micros(bytes * 1_000_000 / rate);
            paid_at.duration_since(now)
        };
        thread::sleep(wait);
    }
}
