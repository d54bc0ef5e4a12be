//! The facade's own AWS credentials: environment, web identity, container, instance; the first that is there.

use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::sigv4::Keys;
use super::{FORM, MAX_ANSWER_BYTES, read_assumed};
use crate::secret::Secret;
use crate::upstream::AwsEnvironment;
use crate::upstream::client::{Answer, Authorization, bad};
use crate::upstream::credential::{Cloud, endpoint};
use crate::upstream::error::{Cause, UpstreamError};
use crate::upstream::target::{Target, form};

const INSTANCE_METADATA: &str = "http://169.254.169.254/";
const INSTANCE_ROLE: &str = "/latest/meta-data/iam/security-credentials/";

/// The keys of the facade's environment.
pub(super) async fn keys(cloud: &Cloud, sts: &Target, session: &str) -> Result<Keys, UpstreamError> {
    let environment = &*cloud.environment;
    if let (Some(id), Some(secret)) = (&environment.access_key_id, &environment.secret_access_key) {
        return Ok(Keys {
            access_key_id: id.clone(),
            secret_access_key: secret.clone(),
            session_token: environment.session_token.clone(),
        });
    }
    if let (Some(file), Some(role)) =
        (&environment.web_identity_token_file, &environment.web_identity_role_arn)
    {
        let token = read_token(file, sts, "web identity").await?;
        return web_identity(cloud, sts, session, role, &token).await;
    }
    if let Some(url) = &environment.container_credentials_url {
        return container(cloud, environment, &endpoint(url)?).await;
    }
    if environment.use_instance_metadata {
        return instance(cloud).await;
    }
    Err(denied(sts, "the connection has no access key and the facade's environment has no AWS credentials"))
}

async fn read_token(file: &Path, target: &Target, what: &str) -> Result<Secret, UpstreamError> {
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|error| denied(target, &format!("cannot read the {what} token: {error}")))?;
    Ok(Secret::new(text.trim().to_owned()))
}

fn denied(target: &Target, why: &str) -> UpstreamError {
    UpstreamError::Denied { host: target.authority().into(), source: Cause::new(why) }
}

/// STS `AssumeRoleWithWebIdentity`, which is not signed: the token is the proof.
async fn web_identity(
    cloud: &Cloud,
    sts: &Target,
    session: &str,
    role: &str,
    token: &Secret,
) -> Result<Keys, UpstreamError> {
    let body = form([
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", role),
        ("RoleSessionName", session),
        ("WebIdentityToken", token.expose()),
    ]);
    let secrets = vec![token.clone()];
    let answer = cloud.client.post(sts, HeaderMap::new(), FORM, Bytes::from(body), secrets).await?;
    read_assumed(answer).await
}

/// The credentials endpoint of ECS and EKS.
async fn container(cloud: &Cloud, environment: &AwsEnvironment, url: &Target) -> Result<Keys, UpstreamError> {
    let token = match &environment.container_authorization_file {
        Some(file) => Some(read_token(file, url, "container authorization").await?),
        None => environment.container_authorization.clone(),
    };
    let authorization = match token {
        Some(token) => Some(Authorization { header: secret_header(url, &token)?, secrets: vec![token] }),
        None => None,
    };
    read_keys(cloud.client.get(url, &HeaderMap::new(), authorization.as_ref()).await?).await
}

/// IMDSv2: a session token by PUT, the name of the role, its credentials.
async fn instance(cloud: &Cloud) -> Result<Keys, UpstreamError> {
    let base = endpoint(cloud.endpoints.aws_imds.as_deref().unwrap_or(INSTANCE_METADATA))?;
    let mut headers = HeaderMap::new();
    headers.insert("x-aws-ec2-metadata-token-ttl-seconds", HeaderValue::from_static("60"));
    let token = text(cloud.client.put(&base.at("/latest/api/token"), headers).await?).await?;
    let mut headers = HeaderMap::new();
    headers.insert("x-aws-ec2-metadata-token", secret_header(&base, &Secret::new(token))?);
    let role = text(cloud.client.get(&base.at(INSTANCE_ROLE), &headers, None).await?).await?;
    let role = role.lines().next().unwrap_or_default().trim();
    let credentials = base.at(&format!("{INSTANCE_ROLE}{role}"));
    read_keys(cloud.client.get(&credentials, &headers, None).await?).await
}

fn secret_header(target: &Target, secret: &Secret) -> Result<HeaderValue, UpstreamError> {
    let value = HeaderValue::from_str(secret.expose().trim());
    let mut value = value.map_err(|_| bad(target, "gave a token that cannot be sent back"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn text(answer: Answer) -> Result<String, UpstreamError> {
    let target = answer.target.clone();
    if answer.status != StatusCode::OK {
        return Err(denied(&target, &format!("it answers with status {}", answer.status.as_u16())));
    }
    let body = answer.body.read("instance metadata", MAX_ANSWER_BYTES).await?;
    String::from_utf8(body.to_vec()).map_err(|_| bad(&target, "sent no text"))
}

async fn read_keys(answer: Answer) -> Result<Keys, UpstreamError> {
    let target = answer.target.clone();
    let body = Secret::new(text(answer).await?);
    let document = pki::json::parse(body.expose().as_bytes(), MAX_ANSWER_BYTES).ok();
    let field = |name: &str| document.as_ref()?.get(name)?.as_str().map(str::to_owned);
    match (field("AccessKeyId"), field("SecretAccessKey")) {
        (Some(access_key_id), Some(secret)) => Ok(Keys {
            access_key_id,
            secret_access_key: Secret::new(secret),
            session_token: field("Token").map(Secret::new),
        }),
        _ => Err(bad(&target, "sent no AWS credentials")),
    }
}
