//! A facade that lies: it has stolen the true one's server key and stands in its place, passes everything on, and lies
//! about one metadata file.

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

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It has another signature.
    OtherSignature,
    /// It is said not to be there.
    Absent,
    /// It is never given.
    Silence,
}

/// A running liar.
pub struct Liar {
    _server: Server,
}

impl Liar {
    /// Puts a liar between `facade` and its devices, who changes answers whose path contains every word of `about`.
    pub fn between(facade: &mut Facade, device: &Device, about: &[&str]) -> Self {
        Self::telling(Lie::OtherSignature, facade, device, about)
    }

    /// The same with another lie.
    pub fn telling(lie: Lie, facade: &mut Facade, device: &Device, about: &[&str]) -> Self {
        let (public, moved) = facade.move_device_door();
        let truth = format!("https://localhost:{moved}");
        Self::start(lie, public, &truth, &facade.data_dir().join("tls"), &device.identity(), about)
    }

    /// Listens on `port` with the server key in `tls`, and asks `truth` with a device's identity.
    pub fn start(lie: Lie, port: u16, truth: &str, tls: &Path, identity: &Identity, about: &[&str]) -> Self {
        let config = Arc::new(server_config(tls));
        let client = DeviceClient::new(truth, identity);
        let about: Vec<String> = about.iter().map(|word| (*word).to_owned()).collect();
        let server = Server::start_on(port, move |stream| {
            // A client that hangs up early has seen enough.
            drop(serve(stream, &config, &client, (lie, &about)));
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
    (lie, about): (Lie, &[String]),
) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let (head, content) = http::read_request(&mut stream)?;
    let passed_on = |name: &str| head.headers.get(name).map(|value| format!("{name}: {value}"));
    let headers: Vec<String> = ["range", "content-type"].into_iter().filter_map(passed_on).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let answer = client.send_body(&head.method, &head.target, &headers, &content);
    let (mut status, mut body) = (answer.status, answer.body.clone());
    if about.iter().all(|word| head.target.contains(word.as_str())) {
        match lie {
            Lie::OtherSignature => change_signature(&mut body),
            Lie::Absent => (status, body) = (404, Vec::new()),
            Lie::Silence => return Ok(()),
        }
    }
    let kind = answer.header("content-type").unwrap_or("application/octet-stream");
    http::answer(&mut stream, status, &[("Content-Type", kind)], &body);
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
