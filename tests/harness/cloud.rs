//! Registries of Google, AWS and Azure as the facade meets them: the real `docker-registry` behind a TLS door under the
//! cloud's own host name, which takes nothing but the short-lived credential that the cloud's own exchange issued.
//!
//! AWS's exchange is moto, which verifies signatures and policies. Google's and Azure's are here: Google's verifies the
//! RS256 assertion, Azure's each of its three steps.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use data_encoding::{BASE64URL_NOPAD, HEXUPPER};
use ring::rsa::KeyPair as RsaKeyPair;
use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{self, Headers, RequestHead, Server};
use crate::image::Image;
use crate::process::{Outcome, Process, free_port, setting};
use crate::registry::{Pushed, Registry, basic};
use crate::tls_registry::certificates;
use crate::token::{parse_form, values};
use crate::tunnel::Tunnel;

/// What the door does with a request.
pub enum Gate {
    /// Lets it through to the registry.
    Forward,
    /// Answers it: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, String),
}

impl Gate {
    /// 401 with a challenge.
    pub fn challenge(challenge: &str) -> Self {
        Self::Answer(401, vec![("WWW-Authenticate", challenge.to_owned())], String::new())
    }

    fn json(status: u16, value: &Value) -> Self {
        Self::Answer(status, vec![("Content-Type", "application/json".to_owned())], value.to_string())
    }
}

type Rule = dyn Fn(&RequestHead, &[u8]) -> Gate + Send + Sync;

/// The real registry behind a TLS door under a name that resolves nowhere; a proxy leads there.
pub struct CloudRegistry {
    name: String,
    registry: Registry,
    directory: TempDir,
    tunnel: Tunnel,
    _door: Server,
}

impl CloudRegistry {
    /// Starts one under `name`, whose door does what `rule` says.
    pub fn start(name: &str, rule: impl Fn(&RequestHead, &[u8]) -> Gate + Send + Sync + 'static) -> Self {
        let registry = Registry::open();
        let directory = TempDir::new().expect("make a directory");
        certificates(directory.path(), name);
        let tls = Arc::new(tls(&directory));
        let (behind, rule): (String, Box<Rule>) = (registry.host(), Box::new(rule));
        let door = Server::start(move |stream| serve(stream, &tls, &behind, &*rule));
        let tunnel = Tunnel::diverted_to(&door.authority());
        Self { name: name.to_owned(), registry, directory, tunnel, _door: door }
    }

    /// Pushes an image, past the door.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) -> Pushed {
        self.registry.push(repository, tag, image).through(&self.name)
    }

    /// The authority that its certificate is from.
    pub fn ca_file(&self) -> String {
        self.directory.path().join("ca.pem").display().to_string()
    }

    /// A file beside it, with something that the story needs.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        crate::process::write(&path, text);
        path.display().to_string()
    }

    /// The proxy that leads to it.
    pub fn proxy(&self) -> String {
        format!("http://{}", self.tunnel.authority())
    }
}

fn tls(directory: &TempDir) -> ServerConfig {
    let file = |name: &str| directory.path().join(name);
    let chain = CertificateDer::pem_file_iter(file("server.pem")).expect("open a certificate");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("read a certificate");
    let key = PrivateKeyDer::from_pem_file(file("server.key")).expect("read a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    config.expect("TLS versions").with_no_client_auth().with_single_cert(chain, key).expect("a key pair")
}

fn serve(stream: TcpStream, tls: &Arc<ServerConfig>, behind: &str, rule: &Rule) {
    let connection = ServerConnection::new(Arc::clone(tls)).expect("a TLS connection");
    let mut stream = StreamOwned::new(connection, stream);
    // Whoever only tries TLS hangs up now.
    let Ok((head, body)) = http::read_request(&mut stream) else {
        return;
    };
    match rule(&head, &body) {
        Gate::Answer(status, headers, body) => {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            http::answer(&mut stream, status, &headers, body.as_bytes());
        }
        Gate::Forward => forward(&mut stream, behind, &head),
    }
    stream.conn.send_close_notify();
    drop(std::io::Write::flush(&mut stream));
}

fn forward(stream: &mut StreamOwned<ServerConnection, TcpStream>, behind: &str, head: &RequestHead) {
    let headers = some(&head.headers, &["accept", "range"]);
    let answer = http::request(behind, &head.method, &head.target, &headers, b"").expect("ask the registry");
    let kept = ["content-type", "docker-content-digest", "content-range", "docker-distribution-api-version"];
    http::answer(stream, answer.status, &some(&answer.headers, &kept), &answer.body);
}

/// The headers of these names, which are in lower case.
fn some<'a>(headers: &'a Headers, names: &[&str]) -> Vec<(&'a str, &'a str)> {
    let all = headers.0.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    all.filter(|(name, _)| names.contains(&name.to_ascii_lowercase().as_str())).collect()
}

/// STS, IAM and ECR by moto.
pub struct Moto {
    _process: Process,
    _directory: TempDir,
    authority: String,
}

/// moto answers its first calls without looking; after these it verifies signatures, tokens and policies.
const UNCHECKED_CALLS: usize = 5;

impl Moto {
    /// The user name and password that its ECR of account 123456789012 issues.
    pub const LOGIN: (&'static str, &'static str) = ("AWS", "123456789012-auth-token");

    /// Starts one.
    pub fn start() -> Self {
        let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv-aws/bin/moto_server");
        let program = setting("DRAYAGE_TEST_MOTO").unwrap_or_else(|| installed.into());
        let directory = TempDir::new().expect("make a directory");
        let port = free_port();
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command.env("INITIAL_NO_AUTH_ACTION_COUNT", UNCHECKED_CALLS.to_string());
        let mut process =
            Process::start("moto (tests/install aws)", &mut command, &directory.path().join("log"));
        let authority = format!("127.0.0.1:{port}");
        process.wait_until_ready(|| TcpStream::connect(&authority).is_ok());
        Self { _process: process, _directory: directory, authority }
    }

    /// Its URL, for every service.
    pub fn url(&self) -> String {
        format!("http://{}/", self.authority)
    }

    /// Makes a user who may assume a role, and the role, which may ask ECR: access key id, its secret, the role's ARN.
    pub fn pull_role(&self) -> (String, String, String) {
        let allow = |action: &str| {
            let statement = json!([{"Effect": "Allow", "Action": action, "Resource": "*"}]);
            percent(&json!({"Version": "2012-10-17", "Statement": statement}).to_string())
        };
        self.iam("Action=CreateUser&UserName=facade");
        let key = self.iam("Action=CreateAccessKey&UserName=facade");
        let assume = allow("sts:AssumeRole");
        self.iam(&format!("Action=PutUserPolicy&UserName=facade&PolicyName=p&PolicyDocument={assume}"));
        let role = self.iam(&format!("Action=CreateRole&RoleName=pull&AssumeRolePolicyDocument={assume}"));
        let policy = allow("ecr:GetAuthorizationToken");
        self.iam(&format!("Action=PutRolePolicy&RoleName=pull&PolicyName=p&PolicyDocument={policy}"));
        (element(&key, "AccessKeyId"), element(&key, "SecretAccessKey"), element(&role, "Arn"))
    }

    fn iam(&self, form: &str) -> String {
        let headers = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            (
                "Authorization",
                "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=x",
            ),
        ];
        let form = format!("{form}&Version=2010-05-08");
        let answer =
            http::request(&self.authority, "POST", "/", &headers, form.as_bytes()).expect("ask moto");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }
}

fn element(xml: &str, name: &str) -> String {
    let found =
        xml.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once(&format!("</{name}>")));
    found.unwrap_or_else(|| panic!("no {name} in {xml}")).0.to_owned()
}

fn percent(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        encoded.push('%');
        encoded.push_str(&HEXUPPER.encode(&[byte]));
    }
    encoded
}

/// Google's token endpoint: it verifies the signature of a service account's assertion, and every claim in it.
pub struct GoogleTokens {
    server: Server,
    /// The key file of the service account, as it is downloaded.
    pub key_file: String,
    issued: Arc<AtomicUsize>,
}

const ACCOUNT: &str = "pull@project.iam.gserviceaccount.com";

impl GoogleTokens {
    /// Starts one that knows one service account.
    pub fn start() -> Self {
        let mut openssl = Command::new("openssl");
        openssl.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
        let pem = Outcome::of(&mut openssl, b"").expect_success().stdout;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("read the key just made");
        let key = RsaKeyPair::from_pkcs8(key.secret_der()).expect("read the key just made");
        let public = key.public_key().as_ref().to_vec();
        let key_file = json!({
            "type": "service_account", "project_id": "project", "private_key_id": "kid-1", "private_key": pem,
            "client_email": ACCOUNT, "token_uri": "https://oauth2.googleapis.com/token",
        });
        let issued = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&issued);
        let server = Server::start(move |stream| {
            let Ok((head, body)) = http::read_request(&stream) else { return };
            let audience = format!("http://{}/token", head.headers.get("host").unwrap_or_default());
            let form = parse_form(&String::from_utf8_lossy(&body));
            let grants = values(&form, "grant_type") == ["urn:ietf:params:oauth:grant-type:jwt-bearer"];
            let good = values(&form, "assertion").first().is_some_and(|jwt| is_good(jwt, &public, &audience));
            let (status, answer) = if grants && good {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                (200, json!({"access_token": token(number), "expires_in": 3599, "token_type": "Bearer"}))
            } else {
                (400, json!({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}))
            };
            http::answer(
                &stream,
                status,
                &[("Content-Type", "application/json")],
                answer.to_string().as_bytes(),
            );
        });
        Self { server, key_file: key_file.to_string(), issued }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}/token", self.server.authority())
    }

    /// How many tokens it has issued.
    pub fn issued(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.issued)
    }

    /// What a registry of Google lets in: the newest token and no other.
    pub fn authorization(issued: usize) -> String {
        basic("oauth2accesstoken", &token(issued))
    }
}

fn token(number: usize) -> String {
    format!("ya29.token-{number}")
}

/// RFC 7523, as Google judges it.
fn is_good(jwt: &str, public: &[u8], audience: &str) -> bool {
    let Some((signed, signature)) = jwt.rsplit_once('.') else { return false };
    let Some((header, claims)) = signed.split_once('.') else { return false };
    let bytes = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).unwrap_or_default();
    let read = |part: &str| serde_json::from_slice::<Value>(&bytes(part)).unwrap_or_default();
    let (header, claims) = (read(header), read(claims));
    let now = jiff::Timestamp::now().as_second();
    let time = |name: &str| claims.get(name).and_then(Value::as_i64).unwrap_or_default();
    let is = |of: &Value, name: &str, value: &str| of.get(name).and_then(Value::as_str) == Some(value);
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public);
    key.verify(signed.as_bytes(), &bytes(signature)).is_ok()
        && is(&header, "alg", "RS256")
        && is(&header, "kid", "kid-1")
        && is(&claims, "iss", ACCOUNT)
        && is(&claims, "aud", audience)
        && (now - 300..=now + 300).contains(&time("iat"))
        && (now..=time("iat") + 3600).contains(&time("exp"))
}

/// Entra ID with one service principal, and what a registry of Azure makes of its tokens.
pub struct AzureCloud {
    server: Server,
    state: Arc<AzureState>,
}

struct AzureState {
    name: String,
    secret: String,
    /// Counts every token that was issued, of each kind, so that no two are alike.
    issued: AtomicUsize,
    access: Mutex<Vec<String>>,
    refresh: Mutex<Vec<String>>,
    tokens: Mutex<Vec<String>>,
}

impl AzureCloud {
    /// The service principal's application id.
    pub const CLIENT: &'static str = "04b07795-8ddb-461a-bbee-02f9e1bf7b46";
    /// The directory it is in.
    pub const TENANT: &'static str = "contoso.onmicrosoft.com";

    /// Starts one whose service principal has `secret`, for the registry `name`.
    pub fn start(name: &str, secret: &str) -> Self {
        let state = Arc::new(AzureState {
            name: name.to_owned(),
            secret: secret.to_owned(),
            issued: AtomicUsize::new(0),
            access: Mutex::default(),
            refresh: Mutex::default(),
            tokens: Mutex::default(),
        });
        let serving = Arc::clone(&state);
        let server = Server::start(move |stream| {
            let Ok((head, body)) = http::read_request(&stream) else { return };
            let Gate::Answer(status, _, answer) = serving.log_in(&head, &body) else { return };
            http::answer(&stream, status, &[("Content-Type", "application/json")], answer.as_bytes());
        });
        Self { server, state }
    }

    /// Where its login is.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.authority())
    }

    /// The door of the registry.
    pub fn door(&self) -> impl Fn(&RequestHead, &[u8]) -> Gate + Send + Sync + 'static {
        let state = Arc::clone(&self.state);
        move |head, body| state.door(head, body)
    }

    /// Makes every token of the registry worthless, as a change of its keys would.
    pub fn revoke_tokens(&self) {
        self.state.tokens.lock().expect("an unpoisoned lock").clear();
        self.state.refresh.lock().expect("an unpoisoned lock").clear();
    }
}

impl AzureState {
    fn issue(&self, kind: &str, to: &Mutex<Vec<String>>) -> String {
        let token = format!("{kind}.{}", self.issued.fetch_add(1, Ordering::SeqCst));
        to.lock().expect("an unpoisoned lock").push(token.clone());
        token
    }

    fn log_in(&self, head: &RequestHead, body: &[u8]) -> Gate {
        let form = parse_form(&String::from_utf8_lossy(body));
        let is = |name: &str, value: &str| values(&form, name) == [value];
        let right = head.target == format!("/{}/oauth2/v2.0/token", AzureCloud::TENANT)
            && is("grant_type", "client_credentials")
            && is("client_id", AzureCloud::CLIENT)
            && is("scope", "https://containerregistry.azure.net/.default")
            && is("client_secret", &self.secret);
        if right {
            let token = self.issue("entra", &self.access);
            return Gate::json(
                200,
                &json!({"token_type": "Bearer", "expires_in": 3599, "access_token": token}),
            );
        }
        let said = "AADSTS7000215: Invalid client secret provided.";
        Gate::json(401, &json!({"error": "invalid_client", "error_description": said}))
    }

    fn door(&self, head: &RequestHead, body: &[u8]) -> Gate {
        let form = parse_form(&String::from_utf8_lossy(body));
        let is = |name: &str, value: &str| values(&form, name) == [value];
        let known = |name: &str, among: &Mutex<Vec<String>>| {
            let given = values(&form, name);
            given.first().is_some_and(|given| among.lock().expect("an unpoisoned lock").contains(given))
        };
        let refused = json!({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]});
        match (head.method.as_str(), head.target.as_str()) {
            ("POST", "/oauth2/exchange") => {
                let right = is("grant_type", "access_token")
                    && is("service", &self.name)
                    && is("tenant", AzureCloud::TENANT)
                    && known("access_token", &self.access);
                if !right {
                    return Gate::json(401, &refused);
                }
                Gate::json(200, &json!({"refresh_token": self.issue("refresh", &self.refresh)}))
            }
            ("POST", "/oauth2/token") => {
                let right = is("grant_type", "refresh_token")
                    && is("service", &self.name)
                    && known("refresh_token", &self.refresh);
                if !right {
                    return Gate::json(401, &refused);
                }
                Gate::json(200, &json!({"access_token": self.issue("acr", &self.tokens)}))
            }
            ("GET", target) if target.starts_with("/oauth2/") => Gate::json(401, &refused),
            _ => {
                let given = head.headers.get("authorization").and_then(|given| given.strip_prefix("Bearer "));
                let tokens = self.tokens.lock().expect("an unpoisoned lock");
                if given.is_some_and(|given| tokens.iter().any(|token| token == given)) {
                    return Gate::Forward;
                }
                let name = &self.name;
                Gate::challenge(&format!(r#"Bearer realm="https://{name}/oauth2/token",service="{name}""#))
            }
        }
    }
}
