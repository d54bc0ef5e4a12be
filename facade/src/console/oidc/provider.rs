//! The identity provider: what it says of itself, where people are sent, and what a code of theirs is exchanged for.
//!
//! It is asked anew at each attempt to sign in: that happens seldom, and so a provider that has changed its keys needs no
//! thought.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use form_urlencoded::{Serializer, byte_serialize};
use http::{HeaderMap, HeaderValue, header};
use jsonwebtoken::jwk::JwkSet;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::config::is_private_url;
use crate::secret::Secret;
use crate::upstream::{UpstreamError, Web};

const MAX_ANSWER_BYTES: usize = 512 * 1024;
const FORM: &str = "application/x-www-form-urlencoded";

/// What the configuration says of the provider.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) issuer: String,
    pub(super) client_id: String,
    pub(super) client_secret: Option<Secret>,
    pub(super) scopes: String,
    /// Where the provider sends people back to.
    pub(super) redirect_uri: String,
}

/// What makes one attempt to sign in another than all others.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) state: String,
    pub(super) nonce: String,
    /// Proves at the exchange that we began (PKCE, RFC 7636).
    pub(super) verifier: Secret,
}

/// Why the provider cannot be used.
#[derive(Debug, Error)]
pub(super) enum ProviderError {
    #[error("the identity provider cannot be reached, or refuses")]
    Upstream(#[from] UpstreamError),
    #[error("the identity provider's {0} is not what OpenID Connect asks for")]
    Malformed(&'static str, #[source] serde_json::Error),
    #[error("{asked} says that it is another issuer: {found:?}")]
    Issuer { asked: String, found: String },
    #[error("the identity provider's {0} is not an https address")]
    Plain(&'static str),
}

/// What the provider says of itself.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Discovery {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    /// It names itself in what it sends people back with (RFC 9207).
    #[serde(default, rename = "authorization_response_iss_parameter_supported")]
    pub(super) names_itself: bool,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: String,
}

#[derive(Clone, Debug)]
pub(super) struct Provider {
    web: Web,
    settings: Settings,
}

impl Provider {
    pub(super) fn new(web: Web, settings: Settings) -> Self {
        Self { web, settings }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) async fn discover(&self) -> Result<Discovery, ProviderError> {
        let issuer = &self.settings.issuer;
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let bytes = self.web.get(&url, "configuration", MAX_ANSWER_BYTES).await?;
        let found: Discovery = serde_json::from_slice(&bytes)
            .map_err(|source| ProviderError::Malformed("configuration", source))?;
        check(found, issuer)
    }

    /// Where people are sent to sign in.
    pub(super) fn authorization(&self, discovery: &Discovery, attempt: &Attempt) -> String {
        let settings = &self.settings;
        let challenge = BASE64URL_NOPAD.encode(&Sha256::digest(attempt.verifier.expose()));
        let query = Serializer::new(String::new())
            .append_pair("response_type", "code")
            .append_pair("client_id", &settings.client_id)
            .append_pair("redirect_uri", &settings.redirect_uri)
            .append_pair("scope", &settings.scopes)
            .append_pair("state", &attempt.state)
            .append_pair("nonce", &attempt.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .finish();
        let endpoint = &discovery.authorization_endpoint;
        let separator = if endpoint.contains('?') { '&' } else { '?' };
        format!("{endpoint}{separator}{query}")
    }

    /// Exchanges a code for an ID token.
    pub(super) async fn exchange(
        &self,
        discovery: &Discovery,
        code: &Secret,
        attempt: &Attempt,
    ) -> Result<String, ProviderError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let mut secrets = vec![code.clone(), attempt.verifier.clone()];
        let mut in_form = None;
        if let Some(secret) = &self.settings.client_secret {
            secrets.push(secret.clone());
            match discovery.basic().then(|| basic(&self.settings.client_id, secret)).flatten() {
                Some(value) => {
                    headers.insert(header::AUTHORIZATION, value);
                }
                None => in_form = Some(secret),
            }
        }
        let body = (FORM, self.form(code, attempt, in_form).into_bytes());
        let wanted = ("ID token", MAX_ANSWER_BYTES);
        let bytes = self.web.post(&discovery.token_endpoint, headers, body, secrets, wanted).await?;
        // The cause would repeat a part of what was sent.
        let tokens: Tokens = serde_json::from_slice(&bytes)
            .map_err(|source| ProviderError::Malformed("answer to the code", source))?;
        Ok(tokens.id_token)
    }

    fn form(&self, code: &Secret, attempt: &Attempt, client_secret: Option<&Secret>) -> String {
        let settings = &self.settings;
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code.expose())
            .append_pair("redirect_uri", &settings.redirect_uri)
            .append_pair("client_id", &settings.client_id)
            .append_pair("code_verifier", attempt.verifier.expose());
        if let Some(secret) = client_secret {
            form.append_pair("client_secret", secret.expose());
        }
        form.finish()
    }

    /// The keys with which it signs. One of a kind that is not known is left out.
    pub(super) async fn keys(&self, discovery: &Discovery) -> Result<JwkSet, ProviderError> {
        let bytes = self.web.get(&discovery.jwks_uri, "keys", MAX_ANSWER_BYTES).await?;
        keys(&bytes).map_err(|source| ProviderError::Malformed("set of keys", source))
    }
}

fn keys(bytes: &[u8]) -> Result<JwkSet, serde_json::Error> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(bytes)?;
    Ok(JwkSet { keys: set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect() })
}

impl Discovery {
    /// Whether the client secret goes into a header; the default (OpenID Connect Core, section 9).
    fn basic(&self) -> bool {
        let methods = self.token_endpoint_auth_methods_supported.as_ref();
        methods.is_none_or(|methods| methods.iter().any(|method| method == "client_secret_basic"))
    }
}

/// What a provider says of itself, if it is the one that was asked for, and nothing goes anywhere in the clear.
fn check(found: Discovery, issuer: &str) -> Result<Discovery, ProviderError> {
    // Mix-up: another issuer's tokens are not to be taken for this one's (OpenID Connect Discovery, section 4.3).
    if found.issuer != issuer {
        return Err(ProviderError::Issuer { asked: issuer.to_owned(), found: found.issuer });
    }
    let endpoints = [
        ("authorization_endpoint", &found.authorization_endpoint),
        ("token_endpoint", &found.token_endpoint),
        ("jwks_uri", &found.jwks_uri),
    ];
    for (name, url) in endpoints {
        if !is_private_url(url) {
            return Err(ProviderError::Plain(name));
        }
    }
    Ok(found)
}

/// Both are encoded before they are joined (RFC 6749, section 2.3.1).
fn basic(client_id: &str, secret: &Secret) -> Option<HeaderValue> {
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    let pair = format!("{}:{}", encoded(client_id), encoded(secret.expose()));
    let mut value = HeaderValue::try_from(format!("Basic {}", BASE64.encode(pair.as_bytes()))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discovery(change: &str, to: &str) -> Result<Discovery, ProviderError> {
        let text = r#"{"issuer":"https://id.example","authorization_endpoint":"https://id.example/auth",
            "token_endpoint":"https://id.example/token","jwks_uri":"https://keys.example/jwks"}"#;
        check(serde_json::from_str(&text.replacen(change, to, 1)).unwrap(), "https://id.example")
    }

    #[test]
    fn takes_a_provider_that_is_the_one_that_was_asked_for() {
        let found = discovery("", "").unwrap();
        assert!(found.basic() && !found.names_itself);
        let refused = discovery("\"https://id.example\"", "\"https://evil.example\"");
        assert!(matches!(refused, Err(ProviderError::Issuer { .. })));
    }

    #[test]
    fn rejects_a_provider_whose_codes_keys_or_people_would_go_over_plain_http() {
        for host in ["https://id.example/auth", "https://id.example/token", "https://keys.example/jwks"] {
            let plain = host.replace("https", "http");
            assert!(matches!(discovery(host, &plain), Err(ProviderError::Plain(_))), "{host}");
        }
        for (url, private) in [
            ("https://a/b", true),
            ("http://127.0.0.1:9/b", true),
            ("http://localhost/", true),
            ("http://localhost.evil.example/", false),
            ("javascript:alert(1)", false),
            ("//id.example", false),
            ("", false),
        ] {
            assert_eq!(is_private_url(url), private, "{url}");
        }
    }

    #[test]
    fn a_client_secret_is_encoded_before_it_is_joined() {
        let value = basic("a:b", &Secret::new("c&d e".to_owned())).unwrap();
        assert_eq!(value, format!("Basic {}", BASE64.encode(b"a%3Ab:c%26d+e")));
        assert!(value.is_sensitive());
    }

    #[test]
    fn a_key_of_an_unknown_kind_hides_no_other() {
        let set = br#"{"keys":[7,{"kty":"new","kid":"a"},{"kty":"RSA","kid":"b","n":"AQAB","e":"AQAB"}]}"#;
        let found = keys(set).unwrap();
        assert!(found.find("b").is_some());
        assert!(keys(b"{}").is_err());
    }
}
