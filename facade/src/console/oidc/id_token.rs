//! What an ID token must be before anybody is let in for it (OpenID Connect Core 1.0, section 3.1.3.7), and the role that
//! its claims give. ◇
//!
//! The signature, issuer and audience are judged by a library; the times are judged here, by the facade's own clock.

use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::Value;
use thiserror::Error;

use crate::catalog::operators::Role;

/// What signatures are believed. None with a shared secret: whoever knows a client secret would make tokens of anybody.
const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
const ELLIPTIC: [Algorithm; 2] = [Algorithm::ES256, Algorithm::ES384];
const EDWARDS: [Algorithm; 1] = [Algorithm::EdDSA];

/// How far the clocks of provider and facade may be apart.
const LEEWAY: SignedDuration = SignedDuration::from_mins(1);
const MAX_NAME_CHARS: usize = 200;

/// What a token is held against.
#[derive(Clone, Debug)]
pub(super) struct Expected<'a> {
    pub(super) issuer: &'a str,
    pub(super) client_id: &'a str,
    pub(super) nonce: &'a str,
    pub(super) now: Timestamp,
}

/// Which claims say who somebody is, and what they may do.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub(super) name_claim: String,
    pub(super) role_claim: String,
    /// The values of the role claim, by the role that they give.
    pub(super) roles: [(Role, Vec<String>); 3],
}

/// The claims of a token that was found good; only [`verify`] makes one.
#[derive(Clone, Debug)]
pub(super) struct Claims(Value);

/// Somebody who may come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Person {
    pub(super) name: String,
    /// What the provider knows them by, whatever they call themselves.
    pub(super) subject: String,
    pub(super) role: Role,
}

/// Why nobody is let in for a token.
#[derive(Debug, Error)]
pub(super) enum TokenError {
    #[error("the ID token is not one")]
    Malformed(#[source] jsonwebtoken::errors::Error),
    #[error("the ID token is signed with {0:?}, which is not believed")]
    Algorithm(Algorithm),
    #[error("the provider has no key {0:?} with which it would have signed the ID token")]
    Key(Option<String>),
    #[error("the ID token is not from this provider, or not for this facade")]
    Untrue(#[source] jsonwebtoken::errors::Error),
    #[error("the ID token ended {0}")]
    Expired(Timestamp),
    #[error("the ID token begins {0}: are the clocks right?")]
    Early(Timestamp),
    #[error("the ID token has no valid {0}")]
    Claim(&'static str),
    #[error("the ID token was made for another attempt to sign in")]
    Nonce,
    #[error("the ID token was made for another program ({0})")]
    Party(String),
}

/// Why somebody who was found to be who they say is not let in.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum MappingError {
    #[error("the provider does not say who you are: its token has no claim {0:?} that is a name")]
    NoName(String),
    #[error("{0} has no role here: none of what the claim {1:?} says gives one")]
    NoRole(String, String),
}

/// Judges a token.
pub(super) fn verify(token: &str, keys: &JwkSet, expected: &Expected<'_>) -> Result<Claims, TokenError> {
    let header = decode_header(token).map_err(TokenError::Malformed)?;
    let jwk = find(keys, header.kid.as_deref()).ok_or_else(|| TokenError::Key(header.kid.clone()))?;
    // The key says which algorithms there are, never the token: a public key must not be taken for a shared secret.
    let believed = believed(jwk).filter(|believed| believed.contains(&header.alg));
    let believed = believed.ok_or(TokenError::Algorithm(header.alg))?;
    let key = DecodingKey::from_jwk(jwk).map_err(|_| TokenError::Key(header.kid.clone()))?;
    let mut validation = Validation::new(header.alg);
    validation.algorithms = believed.to_vec();
    validation.set_issuer(&[expected.issuer]);
    validation.set_audience(&[expected.client_id]);
    validation.set_required_spec_claims(&["iss", "aud", "exp", "sub"]);
    // By our own clock, below.
    validation.validate_exp = false;
    let claims = decode::<Value>(token, &key, &validation).map_err(TokenError::Untrue)?.claims;
    check_times(&claims, expected.now)?;
    if text(&claims, "nonce") != Some(expected.nonce) {
        return Err(TokenError::Nonce);
    }
    // A token for several is for us only where it says so.
    let several = claims.get("aud").and_then(Value::as_array).is_some_and(|audience| audience.len() > 1);
    match text(&claims, "azp") {
        Some(party) if party != expected.client_id => Err(TokenError::Party(party.to_owned())),
        None if several => Err(TokenError::Claim("azp")),
        _ => Ok(Claims(claims)),
    }
}

/// The key of a name; without a name the only one there is.
fn find<'a>(keys: &'a JwkSet, name: Option<&str>) -> Option<&'a Jwk> {
    let signs = |jwk: &&Jwk| !matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption));
    let mut found = keys.keys.iter().filter(signs);
    match name {
        Some(name) => found.find(|jwk| jwk.common.key_id.as_deref() == Some(name)),
        None => found.next().filter(|_| found.next().is_none()),
    }
}

fn believed(jwk: &Jwk) -> Option<&'static [Algorithm]> {
    match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Some(&RSA),
        AlgorithmParameters::EllipticCurve(_) => Some(&ELLIPTIC),
        AlgorithmParameters::OctetKeyPair(_) => Some(&EDWARDS),
        AlgorithmParameters::OctetKey(_) | AlgorithmParameters::Other(_) | _ => None,
    }
}

fn check_times(claims: &Value, now: Timestamp) -> Result<(), TokenError> {
    let time = |name: &'static str| -> Result<Option<Timestamp>, TokenError> {
        let Some(value) = claims.get(name) else {
            return Ok(None);
        };
        let seconds = value.as_i64().and_then(|seconds| Timestamp::from_second(seconds).ok());
        seconds.map(Some).ok_or(TokenError::Claim(name))
    };
    let end = time("exp")?.ok_or(TokenError::Claim("exp"))?;
    if now.duration_since(end) >= LEEWAY {
        return Err(TokenError::Expired(end));
    }
    let issued = time("iat")?.ok_or(TokenError::Claim("iat"))?;
    for begin in [Some(issued), time("nbf")?].into_iter().flatten() {
        if begin.duration_since(now) > LEEWAY {
            return Err(TokenError::Early(begin));
        }
    }
    Ok(())
}

fn text<'a>(claims: &'a Value, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}

impl Claims {
    /// Who this is, and what they may do here.
    pub(super) fn person(&self, mapping: &Mapping) -> Result<Person, MappingError> {
        let name = claim(&self.0, &mapping.name_claim).and_then(Value::as_str).filter(|name| is_name(name));
        let name = name.ok_or_else(|| MappingError::NoName(mapping.name_claim.clone()))?.to_owned();
        let given = match claim(&self.0, &mapping.role_claim) {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let matches = |values: &Vec<String>| values.iter().any(|value| given.contains(&value.as_str()));
        // The mightiest comes first.
        let role = mapping.roles.iter().find(|(_, values)| matches(values)).map(|(role, _)| *role);
        let role = role.ok_or_else(|| MappingError::NoRole(name.clone(), mapping.role_claim.clone()))?;
        Ok(Person { name, subject: text(&self.0, "sub").unwrap_or_default().to_owned(), role })
    }
}

/// A claim by its name, or by its way through others: `realm_access.roles`.
fn claim<'a>(claims: &'a Value, path: &str) -> Option<&'a Value> {
    if let Some(found) = claims.get(path) {
        return Some(found);
    }
    let (first, rest) = path.split_once('.')?;
    claim(claims.get(first)?, rest)
}

/// It becomes a part of the audit log and of pages.
fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= MAX_NAME_CHARS && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;
