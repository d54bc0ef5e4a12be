//! A facade that lies: it has stolen the true one's server key and stands in its place, passes everything on, and
//! changes the signature in one metadata file.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::client::DeviceClient;
use crate::device::{Device, Identity};
use crate::facade::Facade;
use crate::http::{self, Server};

/// A running liar.
pub struct Liar {
    _server: Server,
}

impl Liar {
    /// Puts a liar between `facade` and its devices, who changes answers whose path contains every word of `about`.
    pub fn between(facade: &mut Facade, device: &Device, about: &[&str]) -> Self {
        let (public, moved) = facade.move_device_door();
        let truth = format!("https://localhost:{moved}");
        Self::start(public, &truth, &facade.data_dir().join("tls"), &device.identity(), about)
    }

    /// Listens on `port` with the server key in `tls`, and asks `truth` with a device's identity.
    pub fn start(port: u16, truth: &str, tls: &Path, identity: &Identity, about: &[&str]) -> Self {
        let config = Arc::new(server_config(tls));
        let client = DeviceClient::new(truth, identity);
        let about: Vec<String> = about.iter().map(|word| (*word).to_owned()).collect();
        let server = Server::start_on(port, move |stream| {
            // A client that hangs up early has seen enough.
            drop(serve(stream, &config, &client, &about));
        });
        Self { _server: server }
    }
}

fn server_config(tls: &Path) -> ServerConfig {
    let read = |name: &str| {
        let path = tls.join(name);
        fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    };
    let chain = CertificateDer::pem_slice_iter(&read("server.pem"))
        .collect::<Result<Vec<_>, _>>()
        .expect("read the server's certificates");
    let key = PrivateKeyDer::from_pem_slice(&read("server.key")).expect("read the server's key");
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a server certificate")
}

fn serve(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    client: &DeviceClient,
    about: &[String],
) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let (head, _) = http::read_request(&mut stream)?;
    let ranges = head.headers.get("range").map(|range| format!("Range: {range}"));
    let headers: Vec<&str> = ranges.iter().map(String::as_str).collect();
    let answer = client.send(&head.method, &head.target, &headers);
    let mut body = answer.body.clone();
    if about.iter().all(|word| head.target.contains(word.as_str())) {
        change_signature(&mut body);
    }
    let kind = answer.header("content-type").unwrap_or("application/octet-stream");
    http::answer(&mut stream, answer.status, &[("Content-Type", kind)], &body);
    stream.conn.send_close_notify();
    stream.conn.complete_io(&mut stream.sock).map(drop)
}

/// Changes one hexadecimal digit of the first signature.
fn change_signature(body: &mut [u8]) {
    let text = String::from_utf8_lossy(body).into_owned();
    let value =
        text.find("\"sig\"").and_then(|at| text.get(at + 5..)?.find('"').map(|quote| at + 5 + quote + 1));
    if let Some(digit) = value.and_then(|at| body.get_mut(at)) {
        *digit = if *digit == b'0' { b'1' } else { b'0' };
    }
}
