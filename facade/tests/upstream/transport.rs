//! Below HTTP: addresses that must not be dialled, certificates, client certificates, proxies.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use facade::secret::Secret;
use facade::upstream::{
    Definition, DefinitionError, Layer, ProxySettings, Registry, Resolver, Secrets, Settings, Step,
    UpstreamError, Upstreams,
};
use pki::digest::Digest;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::fake::{Fake, Reply};
use crate::{anonymous, connect, definition, name, settings};

const BLOB: &str = "blob";

async fn pull(registry: &Registry) -> Result<(), UpstreamError> {
    registry.blob(&name("a/b"), Digest::sha256(BLOB.as_bytes()), 0).await.map(drop)
}

/// `https://r.test:PORT`, resolved by a table.
fn named(port: u16, addresses: &[&str]) -> (Definition, Settings) {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let settings =
        Settings { resolver: Resolver::Table(BTreeMap::from([("r.test".into(), addresses)])), ..settings() };
    (Definition::anonymous(format!("r.test:{port}").parse().unwrap()), settings)
}

fn connected(definition: Definition, settings: Settings, secrets: Secrets) -> Registry {
    Upstreams::new(settings).unwrap().connect(definition, secrets).unwrap()
}

#[tokio::test]
async fn rejects_names_that_lead_to_forbidden_addresses() {
    for address in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00:ec2::254"] {
        let (definition, settings) = named(443, &[address]);
        let registry = connected(definition, settings, Secrets::default());
        assert!(matches!(pull(&registry).await, Err(UpstreamError::ForbiddenAddress { .. })), "{address}");
        let report = registry.check(None).await;
        assert!(report.verdict.starts_with("name: "), "{report:?}");
    }
    let metadata = Definition {
        plain_http: true,
        allow_private: true,
        ..Definition::anonymous("169.254.169.254".parse().unwrap())
    };
    let outcome = pull(&connect(metadata, Secrets::default())).await;
    assert!(matches!(outcome, Err(UpstreamError::ForbiddenAddress { .. })));
}

#[tokio::test]
async fn dials_only_the_addresses_that_passed_of_a_name_that_has_others_too() {
    let registry = Fake::start(|_| Reply::ok(BLOB));
    let (definition, settings) =
        named(registry.address.port(), &["169.254.169.254", "fd00:ec2::254", "127.0.0.1", "0.0.0.0"]);
    let definition = Definition { plain_http: true, ..definition };
    let connected = connected(definition, settings, Secrets::default());
    let report = connected.check(None).await;
    // What is shown is what was dialled: one lookup gives both.
    assert_eq!(report.steps[0].detail, "127.0.0.1", "{report:?}");
    pull(&connected).await.unwrap();
}

/// DNS rebinding: a name server that shows a harmless address to a check, and another one to whoever connects.
#[tokio::test]
async fn a_name_that_changes_between_check_and_dial_leads_nowhere_else() {
    let registry = Fake::start(|_| Reply::ok(BLOB));
    let (harmless, inside): (IpAddr, IpAddr) =
        ("127.0.0.1".parse().unwrap(), "169.254.169.254".parse().unwrap());
    let answering = |answers: &[IpAddr]| {
        let answers =
            Arc::new(Mutex::new(answers.iter().map(|answer| vec![*answer]).collect::<VecDeque<_>>()));
        let (definition, settings) = named(registry.address.port(), &[]);
        let settings = Settings { resolver: Resolver::Changing(Arc::clone(&answers)), ..settings };
        let definition = Definition { plain_http: true, ..definition };
        (connected(definition, settings, Secrets::default()), answers)
    };
    // One question for one connection: there is no second answer that it could be led astray by.
    let (trusting, answers) = answering(&[harmless, inside]);
    pull(&trusting).await.unwrap();
    assert_eq!(*answers.lock().unwrap(), [vec![inside]], "one question was asked");
    // Whatever comes next is judged anew: nothing is remembered of an address that was harmless once.
    let (later, _) = answering(&[inside, harmless]);
    assert!(matches!(pull(&later).await, Err(UpstreamError::ForbiddenAddress { .. })));
    pull(&later).await.unwrap();
    let seen = registry.seen().len();
    assert_eq!(seen, 2, "nobody else was asked");
}

#[tokio::test]
async fn rejects_redirects_and_realms_into_private_networks() {
    let inside = Fake::start_at("127.0.0.3:0", |_| Reply::ok(BLOB));
    let address = inside.address.to_string();
    for target in [
        format!("http://{address}/"),
        format!("https://{address}/"),
        "http://169.254.169.254/latest/meta-data/".into(),
        "https://[fd00:ec2::254]/".into(),
        "file:///etc/passwd".into(),
        "http://0x7f000003/".into(),
        "https://2130706435/".into(),
    ] {
        let redirect = target.clone();
        let redirecting = Fake::start(move |_| Reply::redirect(&redirect));
        let error = pull(&anonymous(redirecting.address)).await.unwrap_err();
        assert!(
            !error.is_retryable() || matches!(error, UpstreamError::Unreachable { .. }),
            "{target}: {error:?}"
        );
        let challenging = Fake::start(move |_| Reply::challenge(&format!("Bearer realm=\"{target}\"")));
        assert!(pull(&anonymous(challenging.address)).await.is_err());
    }
    assert!(inside.seen().is_empty());
    let allowed = Fake::start(move |_| Reply::redirect(&format!("http://{address}/")));
    let definition = Definition { allow_private: true, ..definition(allowed.address) };
    pull(&connect(definition, Secrets::default())).await.unwrap();
    assert_eq!(inside.seen().len(), 1);
}

#[tokio::test]
async fn names_the_layer_that_fails() {
    let (mut definition, settings) = named(1, &["127.0.0.1"]);
    definition.allow_private = true;
    let unknown = Definition { host: "other.test".parse().unwrap(), ..definition.clone() };
    let registry = connected(unknown, settings.clone(), Secrets::default());
    assert!(matches!(pull(&registry).await, Err(UpstreamError::Unreachable { layer: Layer::Name, .. })));
    assert!(registry.check(None).await.verdict.starts_with("name: "));
    let registry = connected(definition, settings, Secrets::default());
    assert!(matches!(pull(&registry).await, Err(UpstreamError::Unreachable { layer: Layer::Tcp, .. })));
    assert!(registry.check(None).await.verdict.starts_with("TCP: "));
    let website = Fake::start(|_| Reply::ok("<html>"));
    let missing = Fake::start(|_| Reply::status(404));
    assert!(anonymous(website.address).check(None).await.ok);
    let report = anonymous(missing.address).check(None).await;
    assert_eq!(report.steps.last().unwrap().step, Step::Api, "{report:?}");
}

/// An authority with a certificate for `r.test`.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    der: rustls_pki_types::CertificateDer<'static>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    Authority { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
}

impl Authority {
    fn issue(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["r.test".into()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A server for `r.test`, which demands a client certificate of `clients` if there is one.
    fn server(&self, clients: Option<&Authority>) -> ServerConfig {
        let (certificate, key) = self.issue();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = match clients {
            None => builder.unwrap().with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.der.clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.unwrap().with_client_cert_verifier(verifier.unwrap())
            }
        };
        builder.with_single_cert(vec![certificate.der().clone()], key).unwrap()
    }
}

#[tokio::test]
async fn trusts_an_authority_of_its_own_connection_only() {
    let authority = authority();
    let server = Fake::start_tls(authority.server(None), |_| Reply::ok(BLOB));
    let (mut definition, settings) = named(server.address.port(), &["127.0.0.1"]);
    definition.allow_private = true;
    let untrusting = connected(definition.clone(), settings.clone(), Secrets::default());
    assert!(matches!(pull(&untrusting).await, Err(UpstreamError::Tls { .. })));
    assert!(untrusting.check(None).await.verdict.starts_with("TLS: "));
    definition.ca_pem = Some(authority.pem.clone());
    let trusting = connected(definition.clone(), settings, Secrets::default());
    pull(&trusting).await.unwrap();
    assert!(trusting.check(None).await.ok);
    // The certificate is for the name, not for the address.
    definition.host = server.address.to_string().parse().unwrap();
    assert!(matches!(pull(&connect(definition, Secrets::default())).await, Err(UpstreamError::Tls { .. })));
}

#[tokio::test]
async fn shows_a_client_certificate_to_a_registry_that_wants_one() {
    let authority = authority();
    let server = Fake::start_tls(authority.server(Some(&authority)), |_| Reply::ok(BLOB));
    let (mut definition, settings) = named(server.address.port(), &["127.0.0.1"]);
    definition.allow_private = true;
    definition.ca_pem = Some(authority.pem.clone());
    let without = connected(definition.clone(), settings.clone(), Secrets::default());
    assert!(pull(&without).await.is_err());
    let (certificate, key) = authority.issue();
    definition.client_certificate_pem = Some(certificate.pem());
    let secrets = Secrets { credential: None, client_key_pem: Some(Secret::new(key.serialize_pem())) };
    pull(&connected(definition.clone(), settings.clone(), secrets.clone())).await.unwrap();

    let refused = |definition: &Definition, secrets: &Secrets| {
        Upstreams::new(settings.clone()).unwrap().connect(definition.clone(), secrets.clone()).unwrap_err()
    };
    assert_eq!(refused(&definition, &Secrets::default()), DefinitionError::HalfClientCertificate);
    let other = Secrets {
        client_key_pem: Some(Secret::new(KeyPair::generate().unwrap().serialize_pem())),
        ..secrets
    };
    assert_eq!(refused(&definition, &other), DefinitionError::ClientCertificate);
    definition.ca_pem = Some("nothing".into());
    assert_eq!(refused(&definition, &other), DefinitionError::CaPem);
}

/// A proxy that connects every tunnel to one place, and remembers the requests.
fn proxy(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut head = vec![0; 4096];
            let length = client.read(&mut head).unwrap();
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let known = head.contains("Proxy-Authorization: Basic cHU6cHc=");
            log.lock().unwrap().push(head);
            if !known {
                let _ = client.write_all(b"HTTP/1.1 407 Who\r\n\r\n");
                continue;
            }
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let server = TcpStream::connect(to).unwrap();
            let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut up, &mut down));
            thread::spawn(move || std::io::copy(&mut &server, &mut client));
        }
    });
    (address, seen)
}

#[tokio::test]
async fn goes_through_a_proxy_unless_told_not_to() {
    let authority = authority();
    let server = Fake::start_tls(authority.server(None), |_| Reply::ok(BLOB));
    let (address, seen) = proxy(server.address);
    let (mut definition, mut settings) = named(443, &[]);
    definition.ca_pem = Some(authority.pem.clone());
    settings.proxy = ProxySettings {
        https: Some(format!("http://pu:pw@{address}")),
        no_proxy: Some("direct.test".into()),
    };
    let registry = connected(definition.clone(), settings.clone(), Secrets::default());
    pull(&registry).await.unwrap();
    assert!(seen.lock().unwrap()[0].starts_with("CONNECT r.test:443 HTTP/1.1\r\n"));
    assert!(registry.check(None).await.ok);

    let inside = Definition { host: "169.254.169.254".parse().unwrap(), ..definition.clone() };
    let outcome = pull(&connected(inside, settings.clone(), Secrets::default())).await;
    assert!(matches!(outcome, Err(UpstreamError::ForbiddenAddress { .. })), "{outcome:?}");
    let direct = Definition { host: "direct.test".parse().unwrap(), ..definition.clone() };
    let outcome = pull(&connected(direct, settings.clone(), Secrets::default())).await;
    assert!(matches!(outcome, Err(UpstreamError::Unreachable { layer: Layer::Name, .. })), "{outcome:?}");

    settings.proxy.https = Some(format!("http://pu:wrong@{address}"));
    assert!(!format!("{settings:?}").contains("wrong"));
    let refused = connected(definition, settings, Secrets::default());
    let outcome = pull(&refused).await;
    assert!(matches!(outcome, Err(UpstreamError::Unreachable { layer: Layer::Proxy, .. })), "{outcome:?}");
}
