//! The token service of a registry (distribution's "token authentication" document), in process: it checks a password
//! and signs short-lived JWTs that the real `docker-registry` verifies.

use std::net::TcpStream;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use crate::http::{self, RequestHead, Server};
use crate::registry::basic;

/// Who the registry must believe the tokens come from.
pub const ISSUER: &str = "test-token-service";
/// For whom the tokens are.
pub const SERVICE: &str = "test-registry";

/// A running token service.
pub struct TokenServer {
    server: Server,
    state: Arc<State>,
}

struct State {
    user: String,
    password: Mutex<String>,
    signer: Signer,
    lifetime_seconds: AtomicI64,
    asked: AtomicUsize,
}

impl TokenServer {
    /// Starts a service that knows one user.
    pub fn start(user: &str, password: &str) -> Self {
        let state = Arc::new(State {
            user: user.into(),
            password: Mutex::new(password.into()),
            signer: Signer::new(),
            lifetime_seconds: AtomicI64::new(300),
            asked: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&state);
        let server = Server::start(move |stream| serving.serve(&stream));
        Self { server, state }
    }

    /// The realm the registry names in its challenge.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.server.authority())
    }

    /// The certificate the registry verifies tokens with.
    pub fn certificate_pem(&self) -> &str {
        &self.state.signer.certificate_pem
    }

    /// How many times a token was asked for, whatever the answer.
    pub fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }

    /// Lets tokens live for `seconds` from now on.
    pub fn set_lifetime_seconds(&self, seconds: i64) {
        self.state.lifetime_seconds.store(seconds, Ordering::SeqCst);
    }

    /// Changes the user's password, as a rotation at the registry would.
    pub fn set_password(&self, password: &str) {
        *self.state.password.lock().expect("an unpoisoned lock") = password.into();
    }

    /// A token for `repository`, without asking for a password.
    pub fn mint(&self, repository: &str, actions: &[&str]) -> String {
        let access = json!([{"type": "repository", "name": repository, "actions": actions}]);
        self.state.sign(&access)
    }
}

impl State {
    fn serve(&self, stream: &TcpStream) {
        let Ok((head, body)) = http::read_request(stream) else {
            return;
        };
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (form, allowed) = self.judge(&head, &body);
        if !allowed {
            http::answer(
                stream,
                401,
                &[("Content-Type", "application/json")],
                br#"{"details":"wrong credential"}"#,
            );
            return;
        }
        let access: Vec<Value> = values(&form, "scope").iter().filter_map(|scope| access(scope)).collect();
        let token = self.sign(&Value::Array(access));
        let lifetime = self.lifetime_seconds.load(Ordering::SeqCst);
        let answer = json!({"token": token, "access_token": token, "expires_in": lifetime});
        http::answer(stream, 200, &[("Content-Type", "application/json")], answer.to_string().as_bytes());
    }

    /// The parameters of a request by GET (query, Basic) or POST (form), and whether its credential is right.
    fn judge(&self, head: &RequestHead, body: &[u8]) -> (Vec<(String, String)>, bool) {
        let password = self.password.lock().expect("an unpoisoned lock").clone();
        if head.method == "POST" {
            let form = parse_form(&String::from_utf8_lossy(body));
            let is =
                |name: &str, value: &str| values(&form, name).first().is_some_and(|first| first == value);
            let allowed = is("username", &self.user) && is("password", &password);
            return (form, allowed);
        }
        let query = head.target.split_once('?').map_or("", |(_, query)| query);
        let allowed = head.headers.get("authorization") == Some(basic(&self.user, &password).as_str());
        (parse_form(query), allowed)
    }

    fn sign(&self, access: &Value) -> String {
        let now = Timestamp::now().as_second();
        let lifetime = self.lifetime_seconds.load(Ordering::SeqCst);
        let mut id = [0; 12];
        getrandom::fill(&mut id).expect("random bytes");
        let claims = json!({
            "iss": ISSUER, "sub": self.user, "aud": SERVICE, "jti": BASE64URL_NOPAD.encode(&id),
            // The registry allows itself no leeway worth relying on: be valid a little before now.
            "nbf": now - 10, "iat": now - 10, "exp": now + lifetime,
            "access": access,
        });
        self.signer.sign(&claims)
    }
}

/// An ECDSA key with a self-signed certificate, which is how the registry knows it.
struct Signer {
    certificate_pem: String,
    certificate: Vec<u8>,
    key: EcdsaKeyPair,
}

impl Signer {
    fn new() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("make a key");
        let params = CertificateParams::new(vec![ISSUER.into()]).expect("certificate parameters");
        let certificate = params.self_signed(&pair).expect("sign a certificate");
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der(), &random);
        Self {
            certificate_pem: certificate.pem(),
            certificate: certificate.der().to_vec(),
            key: key.expect("read the key just made"),
        }
    }

    /// RFC 7515 compact serialization, ES256, the certificate in `x5c`.
    fn sign(&self, claims: &Value) -> String {
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [BASE64.encode(&self.certificate)]});
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("sign a token");
        format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    }
}

/// `repository:team/app:pull,push` as an entry of the token's `access` list.
fn access(scope: &str) -> Option<Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
}

pub(crate) fn values(form: &[(String, String)], name: &str) -> Vec<String> {
    let named = form.iter().filter(|(key, _)| key == name);
    // Several scopes come as several parameters, or as one with spaces between them.
    named.flat_map(|(_, value)| split_scopes(name, value)).collect()
}

fn split_scopes(name: &str, value: &str) -> Vec<String> {
    match name {
        "scope" => value.split(' ').map(str::to_owned).collect(),
        _ => vec![value.to_owned()],
    }
}

pub(crate) fn parse_form(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decode(key), decode(value))).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex: Vec<u8> = rest.by_ref().take(2).collect();
                let hex = String::from_utf8_lossy(&hex).into_owned();
                bytes.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
