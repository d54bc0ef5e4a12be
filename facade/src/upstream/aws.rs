//! Amazon ECR: base credentials, optionally a role assumed with them, exchanged for a registry password of twelve hours.
//!
//! Account and region are read from the registry's host. Endpoints are AWS's own, or those that the facade's own
//! configuration names; nothing in a connection can lead a signature elsewhere.

mod base;
mod sigv4;

use std::time::Duration;

use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pki::oci::RegistryHost;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::client::{Answer, bad};
use super::credential::{Cloud, endpoint};
use super::error::{Cause, UpstreamError};
use super::target::{Target, form};
use super::token::Issued;
use crate::secret::Secret;
use sigv4::{Call, Keys};

/// The user name that goes with an ECR password.
pub(super) const USERNAME: &str = "AWS";

const MAX_ANSWER_BYTES: usize = 64 * 1024;
const DEFAULT_SESSION: &str = "drayage-facade";
const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/x-amz-json-1.1";
const GET_TOKEN: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
/// For a password that says it has expired already.
const SHORT_LIFETIME: Duration = Duration::from_mins(1);

/// How to become who may pull, without secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The access key to start from; without it the facade's own environment is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// The role to assume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_arn: Option<String>,
    /// The external id that the role's trust policy asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// The name under which the sessions show in the role's audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// The region of STS; without it that of the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl Configuration {
    /// The role, or else the access key.
    pub fn identity(&self) -> Option<&str> {
        self.role_arn.as_deref().or(self.access_key_id.as_deref())
    }
}

/// Why a configuration cannot work.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigurationError {
    /// The host is not one of ECR's.
    #[error("{0} is not an ECR registry (expected 123456789012.dkr.ecr.eu-west-1.amazonaws.com)")]
    Host(RegistryHost),
    /// A field is not what AWS takes.
    #[error("{0} is not valid (expected for example {1})")]
    Field(&'static str, &'static str),
    /// One half of an access key.
    #[error("an access key needs both access_key_id and its secret access key")]
    HalfKey,
}

/// A registry of ECR, as its host tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    region: String,
    is_fips: bool,
    /// `amazonaws.com` and its like.
    suffix: String,
}

impl Place {
    fn of(host: &RegistryHost) -> Option<Self> {
        let (account, rest) = host.domain().split_once(".dkr")?;
        let rest = rest.strip_prefix(['.', '-'])?.strip_prefix("ecr")?;
        let (is_fips, rest) = match rest.strip_prefix("-fips") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let (region, suffix) = rest.strip_prefix('.')?.split_once('.')?;
        let suffix = match suffix {
            "on.aws" => "amazonaws.com",
            "on.amazonwebservices.com.cn" => "amazonaws.com.cn",
            "amazonaws.com" | "amazonaws.com.cn" | "amazonaws.eu" | "sc2s.sgov.gov" | "c2s.ic.gov"
            | "cloud.adc-e.uk" | "csp.hci.ic.gov" => suffix,
            _ => return None,
        };
        let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        (is_account && is_region(region)).then(|| Self {
            region: region.to_owned(),
            is_fips,
            suffix: suffix.to_owned(),
        })
    }
}

fn is_region(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 40
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// A role with the secret of its access key.
#[derive(Clone, Debug)]
pub struct Role {
    place: Place,
    configuration: Configuration,
    secret_access_key: Option<Secret>,
}

impl Role {
    /// Checks every field.
    pub(super) fn open(
        host: &RegistryHost,
        configuration: &Configuration,
        secret_access_key: Option<Secret>,
    ) -> Result<Self, ConfigurationError> {
        let place = Place::of(host).ok_or_else(|| ConfigurationError::Host(host.clone()))?;
        let Configuration { access_key_id, role_arn, external_id, session_name, region } = configuration;
        let check = |value: &Option<String>, good: fn(&str) -> bool, field, example| match value {
            Some(text) if !good(text) => Err(ConfigurationError::Field(field, example)),
            _ => Ok(()),
        };
        check(access_key_id, is_key_id, "access_key_id", "AKIAIOSFODNN7EXAMPLE")?;
        check(role_arn, is_role_arn, "role_arn", "arn:aws:iam::123456789012:role/pull")?;
        check(external_id, is_external_id, "external_id", "fleet-42")?;
        check(session_name, is_session_name, "session_name", DEFAULT_SESSION)?;
        check(region, is_region, "region", "eu-west-1")?;
        if access_key_id.is_some() != secret_access_key.is_some() {
            return Err(ConfigurationError::HalfKey);
        }
        Ok(Self { place, configuration: configuration.clone(), secret_access_key })
    }

    /// Exchanges for a registry password.
    pub(super) async fn exchange(&self, cloud: &Cloud) -> Result<Issued, UpstreamError> {
        let base = match (&self.configuration.access_key_id, &self.secret_access_key) {
            (Some(id), Some(secret)) => {
                Keys { access_key_id: id.clone(), secret_access_key: secret.clone(), session_token: None }
            }
            _ => base::keys(cloud, &self.sts(cloud)?, self.session()).await?,
        };
        let keys = match &self.configuration.role_arn {
            Some(role) => self.assume(cloud, role, &base).await?,
            None => base,
        };
        self.password(cloud, &keys).await
    }

    fn session(&self) -> &str {
        self.configuration.session_name.as_deref().unwrap_or(DEFAULT_SESSION)
    }

    fn sts_region(&self) -> &str {
        self.configuration.region.as_deref().unwrap_or(&self.place.region)
    }

    fn sts(&self, cloud: &Cloud) -> Result<Target, UpstreamError> {
        match &cloud.endpoints.aws_sts {
            Some(url) => endpoint(url),
            None => endpoint(&format!("https://sts.{}.{}/", self.sts_region(), self.place.suffix)),
        }
    }

    fn ecr(&self, cloud: &Cloud) -> Result<Target, UpstreamError> {
        let Place { region, suffix, .. } = &self.place;
        match &cloud.endpoints.aws_ecr {
            Some(url) => endpoint(url),
            None if self.place.is_fips => endpoint(&format!("https://ecr-fips.{region}.{suffix}/")),
            None => endpoint(&format!("https://api.ecr.{region}.{suffix}/")),
        }
    }

    async fn assume(&self, cloud: &Cloud, role: &str, base: &Keys) -> Result<Keys, UpstreamError> {
        let mut pairs = vec![
            ("Action", "AssumeRole"),
            ("Version", "2011-06-15"),
            ("RoleArn", role),
            ("RoleSessionName", self.session()),
        ];
        if let Some(external_id) = &self.configuration.external_id {
            pairs.push(("ExternalId", external_id));
        }
        let target = self.sts(cloud)?;
        let request = Request {
            content_type: FORM,
            operation: None,
            body: form(pairs),
            region: self.sts_region(),
            service: "sts",
        };
        let answer = request.send(cloud, &target, base).await?;
        read_assumed(answer).await
    }

    async fn password(&self, cloud: &Cloud, keys: &Keys) -> Result<Issued, UpstreamError> {
        let target = self.ecr(cloud)?;
        let request = Request {
            content_type: JSON,
            operation: Some(GET_TOKEN),
            body: "{}".into(),
            region: &self.place.region,
            service: "ecr",
        };
        let answer = granted(request.send(cloud, &target, keys).await?).await?;
        let body = answer.body.read("ECR password", MAX_ANSWER_BYTES).await?;
        read_password(&body, cloud.clock.now().as_second())
            .ok_or_else(|| bad(&target, "sent no usable ECR password"))
    }
}

fn is_key_id(text: &str) -> bool {
    (16..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_role_arn(text: &str) -> bool {
    let printable = text.len() <= 2048 && text.bytes().all(|byte| byte.is_ascii_graphic());
    printable && text.starts_with("arn:") && text.contains(":role/")
}

fn is_session_name(text: &str) -> bool {
    (2..=64).contains(&text.len()) && text.bytes().all(|byte| is_word(byte) || b"+=,.@-".contains(&byte))
}

fn is_external_id(text: &str) -> bool {
    (2..=1224).contains(&text.len()) && text.bytes().all(|byte| is_word(byte) || b"+=,.@:/-".contains(&byte))
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// A signed POST.
struct Request<'a> {
    content_type: &'static str,
    operation: Option<&'static str>,
    body: String,
    region: &'a str,
    service: &'static str,
}

impl Request<'_> {
    async fn send(&self, cloud: &Cloud, target: &Target, keys: &Keys) -> Result<Answer, UpstreamError> {
        let time = cloud.clock.now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let host = target.authority();
        let mut signed =
            vec![("content-type", self.content_type), ("host", host.as_str()), ("x-amz-date", time.as_str())];
        if let Some(token) = &keys.session_token {
            signed.push(("x-amz-security-token", token.expose()));
        }
        if let Some(operation) = self.operation {
            signed.push(("x-amz-target", operation));
        }
        let call = Call {
            method: "POST",
            path: target.path_and_query(),
            headers: &signed,
            body: self.body.as_bytes(),
            time: &time,
            region: self.region,
            service: self.service,
        };
        let authorization = call.authorization(keys);
        signed.push(("authorization", authorization.as_str()));
        let headers = headers(&signed).ok_or_else(|| bad(target, "cannot be sent these AWS credentials"))?;
        let secrets = [Some(&keys.secret_access_key), keys.session_token.as_ref()];
        let secrets = secrets.into_iter().flatten().cloned().collect();
        let body = self.body.clone().into();
        cloud.client.post(target, headers, self.content_type, body, secrets).await
    }
}

/// The headers of a request, but for `host`, which the HTTP client writes.
fn headers(signed: &[(&str, &str)]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in signed.iter().filter(|(name, _)| *name != "host") {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_bytes(name.as_bytes()).ok()?, value);
    }
    Some(headers)
}

/// The answer, if it grants what was asked.
async fn granted(answer: Answer) -> Result<Answer, UpstreamError> {
    let host = answer.target.authority().into();
    match answer.status {
        StatusCode::OK => Ok(answer),
        status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
            let source = answer.said().await;
            Err(UpstreamError::Denied { host, source })
        }
        status => Err(UpstreamError::Unavailable { host, status: status.as_u16() }),
    }
}

/// The credentials out of an answer of STS, which speaks XML.
async fn read_assumed(answer: Answer) -> Result<Keys, UpstreamError> {
    let target = answer.target.clone();
    if answer.status.is_client_error() {
        let body = answer.body.read("error", MAX_ANSWER_BYTES).await?;
        let text = String::from_utf8_lossy(&body);
        let code = element(&text, "Code").unwrap_or("refused");
        return Err(UpstreamError::Denied {
            host: target.authority().into(),
            source: Cause::new(&format!("{code}: {}", element(&text, "Message").unwrap_or_default())),
        });
    }
    let answer = granted(answer).await?;
    let body = answer.body.read("role credentials", MAX_ANSWER_BYTES).await?;
    let text = String::from_utf8_lossy(&body);
    let secret = |name: &str| element(&text, name).map(|value| Secret::new(value.to_owned()));
    match (element(&text, "AccessKeyId"), secret("SecretAccessKey"), secret("SessionToken")) {
        (Some(id), Some(key), Some(token)) => {
            Ok(Keys { access_key_id: id.to_owned(), secret_access_key: key, session_token: Some(token) })
        }
        _ => Err(bad(&target, "sent no role credentials")),
    }
}

/// The text of the only element of this name; STS writes neither attributes nor entities into those we read.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim()).filter(|text| !text.is_empty() && !text.contains(['<', '&']))
}

fn read_password(body: &[u8], now: i64) -> Option<Issued> {
    let document = pki::json::parse(body, MAX_ANSWER_BYTES).ok()?;
    let data = document.get("authorizationData")?.get(0)?;
    let token = data.get("authorizationToken")?.as_str()?;
    let pair = String::from_utf8(BASE64.decode(token.as_bytes()).ok()?).ok()?;
    let password = pair.strip_prefix("AWS:").filter(|password| !password.is_empty())?;
    let expires_at = data.get("expiresAt").and_then(serde_json::Value::as_f64);
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit a double")]
    let left = expires_at.map(|at| at - now as f64).filter(|left| *left > 0.0);
    let lifetime = left.and_then(|left| Duration::try_from_secs_f64(left).ok());
    Some(Issued { value: Secret::new(password.to_owned()), lifetime: lifetime.unwrap_or(SHORT_LIFETIME) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(host: &str) -> Option<Place> {
        Place::of(&host.parse().unwrap())
    }

    #[test]
    fn reads_region_and_partition_from_the_host() {
        for (host, region, suffix) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1", "amazonaws.com"),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1", "amazonaws.com"),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1", "amazonaws.com.cn"),
            ("123456789012.dkr-ecr.eu-west-1.on.aws", "eu-west-1", "amazonaws.com"),
        ] {
            let place = place(host).unwrap();
            assert_eq!((place.region.as_str(), place.suffix.as_str()), (region, suffix), "{host}");
        }
    }

    #[test]
    fn rejects_hosts_that_only_look_like_ecr() {
        for host in [
            "12345678901.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.net",
            "123456789012.dkr.ecr.evil.net",
            "123456789012.dkr.ecr.a.evil.net",
            "public.ecr.aws",
            "ghcr.io",
        ] {
            assert_eq!(place(host), None, "{host}");
        }
    }

    #[test]
    fn rejects_fields_that_aws_does_not_take() {
        let host: RegistryHost = "123456789012.dkr.ecr.eu-west-1.amazonaws.com".parse().unwrap();
        let good = Configuration {
            role_arn: Some("arn:aws:iam::123456789012:role/pull".into()),
            external_id: Some("fleet-42".into()),
            ..Configuration::default()
        };
        assert!(Role::open(&host, &good, None).is_ok());
        let secret = || Some(Secret::new("x".into()));
        assert_eq!(Role::open(&host, &good, secret()).unwrap_err(), ConfigurationError::HalfKey);
        for bad in [
            Configuration { role_arn: Some("pull".into()), ..good.clone() },
            Configuration { external_id: Some("x".into()), ..good.clone() },
            Configuration { session_name: Some("a b".into()), ..good.clone() },
            Configuration { region: Some("evil.net/".into()), ..good.clone() },
            Configuration { access_key_id: Some("short".into()), ..good.clone() },
        ] {
            assert!(matches!(Role::open(&host, &bad, None), Err(ConfigurationError::Field(..))), "{bad:?}");
        }
    }

    #[test]
    fn reads_passwords_even_if_they_say_they_have_expired() {
        let body = |expires_at: &str| {
            let token = BASE64.encode(b"AWS:pass:word");
            format!(
                r#"{{"authorizationData":[{{"authorizationToken":"{token}","expiresAt":{expires_at}}}]}}"#
            )
        };
        for (expires_at, seconds) in [("1043.5", 43), ("10", 60), ("null", 60), ("1e300", 60)] {
            let issued = read_password(body(expires_at).as_bytes(), 1000).unwrap();
            assert_eq!(
                (issued.value.expose(), issued.lifetime.as_secs()),
                ("pass:word", seconds),
                "{expires_at}"
            );
        }
        for body in
            ["{}", r#"{"authorizationData":[]}"#, r#"{"authorizationData":[{"authorizationToken":"QVdT"}]}"#]
        {
            assert!(read_password(body.as_bytes(), 0).is_none(), "{body}");
        }
    }

    #[test]
    fn reads_elements_of_xml() {
        assert_eq!(element("<a><Code> AccessDenied </Code></a>", "Code"), Some("AccessDenied"));
        for xml in ["", "<Code>", "<Code></Code>", "<Code>&lt;</Code>", "<Code><b/></Code>"] {
            assert_eq!(element(xml, "Code"), None, "{xml}");
        }
    }
}
