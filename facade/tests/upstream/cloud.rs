//! Google with a token endpoint that verifies the assertion; AWS with moto, which verifies signatures and policies.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use facade::secret::Secret;
use facade::upstream::{
    AwsConfiguration, AwsEnvironment, Definition, Endpoints, GoogleAccount, GoogleAccountError, Provider,
    Registry, Resolver, Secrets, Settings, UpstreamError, Upstreams,
};
use pki::digest::Digest;
use ring::rsa::KeyPair;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::fake::{Fake, Reply, request};
use crate::{definition, name, settings};

const BLOB: &str = "blob";
const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

async fn pull(registry: &Registry) -> Result<(), UpstreamError> {
    registry.blob(&name("a/b"), Digest::sha256(BLOB.as_bytes()), 0).await.map(drop)
}

fn rsa_key() -> String {
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .stderr(Stdio::null())
        .output()
        .expect("openssl must be installed");
    String::from_utf8(made.stdout).unwrap()
}

fn key_file(pem: &str, token_uri: &str) -> Secret {
    let file = json!({
        "type": "service_account", "project_id": "p", "private_key_id": "kid-1", "private_key": pem,
        "client_email": "pull@p.iam.gserviceaccount.com", "token_uri": token_uri, "universe_domain": "googleapis.com",
    });
    Secret::new(file.to_string())
}

/// Checks an assertion as Google does: signature, audience, issuer, times.
fn assertion_is_good(body: &str, public: &[u8], audience: &str) -> bool {
    let jwt = body.split("assertion=").nth(1).unwrap();
    let (signed, signature) = jwt.rsplit_once('.').unwrap();
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public);
    let (header, claims) = signed.split_once('.').unwrap();
    let read = |part: &str| -> Value {
        serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
    };
    let (header, claims) = (read(header), read(claims));
    let times = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    key.verify(signed.as_bytes(), &signature).is_ok()
        && header["alg"] == "RS256"
        && header["kid"] == "kid-1"
        && claims["iss"] == "pull@p.iam.gserviceaccount.com"
        && claims["aud"] == audience
        && (1..=3600).contains(&times)
}

#[tokio::test]
async fn exchanges_a_signed_assertion_for_an_access_token() {
    let pem = rsa_key();
    let PrivateKeyDer::Pkcs8(der) = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap() else {
        panic!("not PKCS#8");
    };
    let public = KeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap().public().as_ref().to_vec();
    let issued = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&issued);
    let google = Fake::start(move |seen| {
        let audience = format!("http://{}/token", seen.header("host").unwrap());
        let grant = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&";
        if !seen.body.starts_with(grant) || !assertion_is_good(&seen.body, &public, &audience) {
            let refusal = r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#;
            return Reply::new(400, &[], refusal);
        }
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        Reply::ok(format!(r#"{{"access_token":"ya29.{number}","expires_in":3599,"token_type":"Bearer"}}"#))
    });
    // The registry stops taking the first token in the middle, with a 403 as short-lived credentials meet it.
    let requests = AtomicUsize::new(0);
    let registry = Fake::start(move |seen| {
        let basic = |number: usize| {
            format!("Basic {}", BASE64.encode(format!("oauth2accesstoken:ya29.{number}").as_bytes()))
        };
        let given = seen.header("authorization").unwrap_or_default();
        let good = if requests.load(Ordering::SeqCst) < 3 { 1 } else { 2 };
        if given.is_empty() {
            return Reply::challenge("Basic realm=x");
        }
        if given == basic(good) {
            requests.fetch_add(1, Ordering::SeqCst);
            Reply::ok(BLOB)
        } else {
            Reply::status(403)
        }
    });
    let settings = Settings {
        endpoints: Endpoints { google_token: Some(google.url("/token")), ..Endpoints::default() },
        ..settings()
    };
    let (account, key) =
        GoogleAccount::from_key_file(&key_file(&pem, "https://oauth2.googleapis.com/token")).unwrap();
    let connect = |key: Secret| {
        let definition =
            Definition { provider: Provider::Google(account.clone()), ..definition(registry.address) };
        let secrets = Secrets { credential: Some(key), client_key_pem: None };
        Upstreams::new(settings.clone()).unwrap().connect(definition, secrets).unwrap()
    };
    let connected = connect(key);
    for _ in 0..6 {
        pull(&connected).await.unwrap();
    }
    assert_eq!(issued.load(Ordering::SeqCst), 2);

    let other = connect(Secret::new(rsa_key()));
    for _ in 0..5 {
        let error = pull(&other).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Denied { .. }), "{error:?}");
        assert!(error.line().contains("Invalid JWT Signature"), "{}", error.line());
    }
    let refused = google.seen().len() - issued.load(Ordering::SeqCst);
    assert_eq!(refused, 1, "a rejected key is not tried again and again");
}

#[test]
fn rejects_key_files_that_would_send_the_proof_elsewhere() {
    let pem = rsa_key();
    for token_uri in [
        "https://evil.example/token",
        "http://oauth2.googleapis.com/token",
        "https://googleapis.com.evil.example/",
        "https://evilgoogleapis.com/",
        "https://oauth2.googleapis.com@evil.example/",
        "https://oauth2.googleapis.com:8443/",
    ] {
        let refused = GoogleAccount::from_key_file(&key_file(&pem, token_uri)).unwrap_err();
        assert_eq!(refused, GoogleAccountError::TokenUri, "{token_uri}");
    }
    let no_key = GoogleAccount::from_key_file(&key_file("nothing", "https://oauth2.googleapis.com/token"));
    assert_eq!(no_key.unwrap_err(), GoogleAccountError::PrivateKey);
    for text in ["", "{}", r#"{"type":"authorized_user"}"#] {
        assert_eq!(
            GoogleAccount::from_key_file(&Secret::new(text.into())).unwrap_err(),
            GoogleAccountError::NotAKeyFile
        );
    }
}

struct Moto {
    address: SocketAddr,
    process: Child,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// moto answers the first calls without looking; after these it verifies signatures, tokens and policies.
const UNCHECKED_CALLS: usize = 5;

fn moto() -> Moto {
    moto_unchecked_for(UNCHECKED_CALLS)
}

fn moto_unchecked_for(calls: usize) -> Moto {
    let program = std::env::vars().find(|(name, _)| name == "DRAYAGE_TEST_MOTO").map(|(_, value)| value);
    let program = program.expect("DRAYAGE_TEST_MOTO must name a moto_server (tests/run installs one)");
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let process = Command::new(program)
        .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
        .env("INITIAL_NO_AUTH_ACTION_COUNT", calls.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let moto = Moto { address, process };
    for _ in 0..600 {
        if TcpStream::connect(address).is_ok() {
            return moto;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("moto does not listen on {address}");
}

/// One unchecked call of IAM.
fn iam(address: SocketAddr, form: &str) -> String {
    let headers = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        (
            "Authorization",
            "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=x",
        ),
    ];
    let (status, answer) = request(address, "POST", "/", &headers, form.as_bytes());
    assert_eq!(status, 200, "{answer}");
    answer
}

fn element(xml: &str, name: &str) -> String {
    let (_, rest) = xml.split_once(&format!("<{name}>")).unwrap();
    rest.split_once(&format!("</{name}>")).unwrap().0.to_owned()
}

/// A user who may assume a role, and the role that may ask ECR: access key, its secret, the role's name.
fn pull_role(address: SocketAddr) -> (String, Secret, String) {
    let allow = |action: &str| {
        format!(
            "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C%22Action%22%3A%22{action}%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D"
        )
    };
    iam(address, "Action=CreateUser&Version=2010-05-08&UserName=facade");
    let key = iam(address, "Action=CreateAccessKey&Version=2010-05-08&UserName=facade");
    let policy = allow("sts%3AAssumeRole");
    iam(
        address,
        &format!(
            "Action=PutUserPolicy&Version=2010-05-08&UserName=facade&PolicyName=p&PolicyDocument={policy}"
        ),
    );
    let trust = allow("sts%3AAssumeRole");
    let role = iam(
        address,
        &format!("Action=CreateRole&Version=2010-05-08&RoleName=pull&AssumeRolePolicyDocument={trust}"),
    );
    let policy = allow("ecr%3AGetAuthorizationToken");
    iam(
        address,
        &format!(
            "Action=PutRolePolicy&Version=2010-05-08&RoleName=pull&PolicyName=p&PolicyDocument={policy}"
        ),
    );
    let secret = Secret::new(element(&key, "SecretAccessKey"));
    (element(&key, "AccessKeyId"), secret, element(&role, "Arn"))
}

#[tokio::test]
async fn assumes_a_role_and_gets_an_ecr_password_from_a_strict_aws() {
    let moto = moto();
    let (id, secret, role) = pull_role(moto.address);
    let registry = Fake::start(|seen| match seen.header("authorization") {
        Some(given) => {
            let login = BASE64.decode(given.strip_prefix("Basic ").unwrap().as_bytes()).unwrap();
            match String::from_utf8(login).unwrap() {
                login if login == "AWS:123456789012-auth-token" => Reply::ok(BLOB),
                login => panic!("{login}"),
            }
        }
        None => Reply::challenge("Basic realm=\"https://ecr\",service=\"ecr.amazonaws.com\""),
    });
    let base = format!("http://{}/", moto.address);
    let settings = Settings {
        endpoints: Endpoints { aws_sts: Some(base.clone()), aws_ecr: Some(base), ..Endpoints::default() },
        resolver: Resolver::Table(BTreeMap::from([(ECR.into(), vec![registry.address.ip()])])),
        aws_environment: AwsEnvironment {
            access_key_id: Some(id.clone()),
            secret_access_key: Some(secret.clone()),
            ..AwsEnvironment::default()
        },
        ..settings()
    };
    let connect = |configuration: AwsConfiguration, secret: Option<Secret>| {
        let definition = Definition {
            plain_http: true,
            provider: Provider::Aws(configuration),
            ..Definition::anonymous(format!("{ECR}:{}", registry.address.port()).parse().unwrap())
        };
        let secrets = Secrets { credential: secret, client_key_pem: None };
        Upstreams::new(settings.clone()).unwrap().connect(definition, secrets).unwrap()
    };
    let assumed = AwsConfiguration {
        access_key_id: Some(id.clone()),
        role_arn: Some(role),
        external_id: Some("fleet-42".into()),
        ..AwsConfiguration::default()
    };
    pull(&connect(assumed.clone(), Some(secret.clone()))).await.unwrap();
    // The same from the facade's own environment.
    let from_environment = AwsConfiguration { access_key_id: None, ..assumed.clone() };
    pull(&connect(from_environment, None)).await.unwrap();

    let wrong = pull(&connect(assumed.clone(), Some(Secret::new("x".repeat(40))))).await.unwrap_err();
    assert!(wrong.line().contains("SignatureDoesNotMatch"), "{}", wrong.line());
    // The user may assume the role, but not ask ECR itself.
    let no_role = AwsConfiguration { role_arn: None, ..assumed };
    let denied = pull(&connect(no_role, Some(secret))).await.unwrap_err();
    assert!(matches!(denied, UpstreamError::Denied { .. }), "{denied:?}");
}

/// A registry that takes the password of moto's ECR.
fn ecr() -> Fake {
    let good = format!("Basic {}", BASE64.encode(b"AWS:123456789012-auth-token"));
    Fake::start(move |seen| match seen.header("authorization") {
        Some(given) if given == good => Reply::ok(BLOB),
        _ => Reply::challenge("Basic realm=\"https://ecr\",service=\"ecr.amazonaws.com\""),
    })
}

/// Pulls with what the environment has, through a role if one is named.
async fn pull_from(
    moto: &Moto,
    registry: &Fake,
    environment: AwsEnvironment,
    imds: Option<String>,
    role_arn: Option<String>,
) -> Result<(), UpstreamError> {
    let base = format!("http://{}/", moto.address);
    let settings = Settings {
        endpoints: Endpoints {
            aws_sts: Some(base.clone()),
            aws_ecr: Some(base),
            aws_imds: imds,
            ..Endpoints::default()
        },
        resolver: Resolver::Table(BTreeMap::from([(ECR.into(), vec![registry.address.ip()])])),
        aws_environment: environment,
        ..settings()
    };
    let definition = Definition {
        plain_http: true,
        provider: Provider::Aws(AwsConfiguration { role_arn, ..AwsConfiguration::default() }),
        ..Definition::anonymous(format!("{ECR}:{}", registry.address.port()).parse().unwrap())
    };
    pull(&Upstreams::new(settings).unwrap().connect(definition, Secrets::default()).unwrap()).await
}

/// IMDSv2: a token by PUT with a lifetime, and nothing without it.
fn metadata_service(credentials: String) -> Fake {
    const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
    Fake::start(move |seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("PUT", "/latest/api/token") if seen.header("x-aws-ec2-metadata-token-ttl-seconds").is_some() => {
            Reply::ok("imds-token")
        }
        _ if seen.header("x-aws-ec2-metadata-token") != Some("imds-token") => Reply::status(401),
        ("GET", ROLES) => Reply::ok("facade-role\n"),
        ("GET", path) if path == format!("{ROLES}facade-role") => Reply::ok(&credentials),
        _ => Reply::status(404),
    })
}

#[tokio::test]
async fn takes_base_credentials_from_the_instance_or_container_that_it_runs_in() {
    let moto = moto();
    let (id, secret, role) = pull_role(moto.address);
    let credentials =
        json!({"Code": "Success", "AccessKeyId": id, "SecretAccessKey": secret.expose()}).to_string();
    let registry = ecr();

    let instance = metadata_service(credentials.clone());
    let on_instance = AwsEnvironment { use_instance_metadata: true, ..AwsEnvironment::default() };
    let imds = Some(instance.url("/"));
    pull_from(&moto, &registry, on_instance.clone(), imds, Some(role.clone())).await.unwrap();
    let methods: Vec<_> = instance.seen().into_iter().map(|seen| seen.method).collect();
    assert_eq!(methods, ["PUT", "GET", "GET"]);

    // ECS gives the token in a variable; EKS in a file that it replaces.
    let container = Fake::start(move |seen| match seen.header("authorization") {
        Some("container-token") => Reply::ok(&credentials),
        _ => Reply::status(401),
    });
    let url = Some(container.url("/v1/credentials"));
    let ecs = AwsEnvironment {
        container_credentials_url: url.clone(),
        container_authorization: Some(Secret::new("container-token".into())),
        ..AwsEnvironment::default()
    };
    pull_from(&moto, &registry, ecs, None, Some(role.clone())).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "container-token\n").unwrap();
    let eks = AwsEnvironment {
        container_credentials_url: url,
        container_authorization_file: Some(file.path().to_owned()),
        ..AwsEnvironment::default()
    };
    pull_from(&moto, &registry, eks, None, Some(role.clone())).await.unwrap();

    // Nothing at all, and an instance without a role, are told as what they are.
    let nothing = pull_from(&moto, &registry, AwsEnvironment::default(), None, Some(role.clone())).await;
    assert!(nothing.unwrap_err().line().contains("no AWS credentials"));
    let bare = Fake::start(|seen| if seen.method == "PUT" { Reply::ok("t") } else { Reply::status(404) });
    let without_role = pull_from(&moto, &registry, on_instance, Some(bare.url("/")), Some(role)).await;
    assert!(without_role.unwrap_err().line().contains("404"));
}

#[tokio::test]
async fn takes_base_credentials_from_a_web_identity() {
    let moto = moto_unchecked_for(1000);
    let (_, _, role) = pull_role(moto.address);
    let registry = ecr();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "header.claims.signature\n").unwrap();
    let identity = AwsEnvironment {
        web_identity_token_file: Some(file.path().to_owned()),
        web_identity_role_arn: Some(role.clone()),
        ..AwsEnvironment::default()
    };
    pull_from(&moto, &registry, identity.clone(), None, None).await.unwrap();
    let gone = AwsEnvironment { web_identity_token_file: Some("/nowhere".into()), ..identity };
    let error = pull_from(&moto, &registry, gone, None, None).await.unwrap_err();
    assert!(error.line().contains("cannot read the web identity token"), "{}", error.line());
}
