use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;

use super::*;

const ISSUER: &str = "https://id.example/realm";
const CLIENT: &str = "facade";
const NONCE: &str = "n-0S6_WzA2Mj";

fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn expected() -> Expected<'static> {
    Expected { issuer: ISSUER, client_id: CLIENT, nonce: NONCE, now: now() }
}

/// A provider with one key.
struct Provider {
    key: EncodingKey,
    keys: JwkSet,
}

impl Provider {
    fn new(name: &str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let point = pair.public_key_raw();
        let part = |range| BASE64URL_NOPAD.encode(&point[range]);
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "kid": name, "x": part(1..33), "y": part(33..65),
        });
        let keys = serde_json::from_value(json!({ "keys": [jwk] })).unwrap();
        Self { key: EncodingKey::from_ec_der(&pair.serialize_der()), keys }
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(Algorithm::ES256, "k1", claims)
    }

    fn sign_as(&self, algorithm: Algorithm, kid: &str, claims: &Value) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) };
        encode(&header, claims, &self.key).unwrap()
    }
}

/// The claims of a good token, with some in another way.
fn claims(change: &Value) -> Value {
    let seconds = now().as_second();
    let mut claims = json!({
        "iss": ISSUER, "aud": CLIENT, "sub": "248289761001", "nonce": NONCE, "iat": seconds, "exp": seconds + 300,
        "email": "jane@example.com", "groups": ["staff", "fleet-operators"],
    });
    for (name, value) in change.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn judge(change: &Value) -> Result<Claims, TokenError> {
    let provider = Provider::new("k1");
    verify(&provider.sign(&claims(change)), &provider.keys, &expected())
}

fn mapping() -> Mapping {
    let values = |text: &str| vec![text.to_owned()];
    Mapping {
        name_claim: "email".to_owned(),
        role_claim: "groups".to_owned(),
        roles: [
            (Role::Admin, values("fleet-admins")),
            (Role::Operator, values("fleet-operators")),
            (Role::Viewer, values("staff")),
        ],
    }
}

#[test]
fn a_good_token_lets_somebody_in_with_the_mightiest_role_that_it_gives() {
    let person = judge(&json!({})).unwrap().person(&mapping()).unwrap();
    let expected = ("jane@example.com".to_owned(), "248289761001".to_owned(), Role::Operator);
    assert_eq!((person.name, person.subject, person.role), expected);
    assert!(judge(&json!({"aud": [CLIENT]})).is_ok());
    assert!(judge(&json!({"aud": [CLIENT, "other"], "azp": CLIENT})).is_ok());
}

#[test]
fn rejects_a_token_of_another_issuer_or_for_another_audience() {
    for change in [
        json!({"iss": "https://id.example/other"}),
        json!({"iss": "https://id.example/realm/"}),
        json!({"iss": null}),
        json!({"aud": "other"}),
        json!({"aud": ["other", "another"]}),
        json!({"aud": null}),
        json!({"sub": null}),
    ] {
        assert!(matches!(judge(&change), Err(TokenError::Untrue(_))), "{change}");
    }
}

#[test]
fn rejects_a_token_that_has_ended_or_not_begun() {
    let at = |offset: i64| now().as_second() + offset;
    assert!(matches!(judge(&json!({"exp": at(-60)})), Err(TokenError::Expired(_))));
    assert!(judge(&json!({"exp": at(-59)})).is_ok(), "clocks differ");
    assert!(matches!(judge(&json!({"iat": at(61)})), Err(TokenError::Early(_))));
    assert!(matches!(judge(&json!({"nbf": at(61)})), Err(TokenError::Early(_))));
    assert!(matches!(judge(&json!({"exp": null})), Err(TokenError::Untrue(_))));
    assert!(matches!(judge(&json!({"iat": null})), Err(TokenError::Claim("iat"))));
    assert!(matches!(judge(&json!({"iat": "yesterday"})), Err(TokenError::Claim("iat"))));
}

#[test]
fn rejects_a_token_of_another_attempt() {
    for nonce in [json!("another"), json!(null), json!(""), json!(7)] {
        assert!(matches!(judge(&json!({ "nonce": nonce })), Err(TokenError::Nonce)));
    }
}

#[test]
fn rejects_a_token_that_another_program_asked_for() {
    assert!(matches!(judge(&json!({"azp": "other"})), Err(TokenError::Party(_))));
    assert!(matches!(judge(&json!({"aud": [CLIENT, "other"]})), Err(TokenError::Claim("azp"))));
}

#[test]
fn rejects_a_signature_of_another_key() {
    let (provider, stranger) = (Provider::new("k1"), Provider::new("k1"));
    let token = stranger.sign(&claims(&json!({})));
    assert!(matches!(verify(&token, &provider.keys, &expected()), Err(TokenError::Untrue(_))));
    let unknown = provider.sign_as(Algorithm::ES256, "k2", &claims(&json!({})));
    assert!(matches!(verify(&unknown, &provider.keys, &expected()), Err(TokenError::Key(Some(_)))));
}

#[test]
fn rejects_claims_that_were_changed_after_signing() {
    let provider = Provider::new("k1");
    let token = provider.sign(&claims(&json!({})));
    let [header, _, signature] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let forged = claims(&json!({"groups": ["fleet-admins"]})).to_string();
    let forged = format!("{header}.{}.{signature}", BASE64URL_NOPAD.encode(forged.as_bytes()));
    assert!(matches!(verify(&forged, &provider.keys, &expected()), Err(TokenError::Untrue(_))));
}

#[test]
fn rejects_a_token_without_a_signature_or_with_one_of_a_shared_secret() {
    let provider = Provider::new("k1");
    let body = BASE64URL_NOPAD.encode(claims(&json!({})).to_string().as_bytes());
    let none = BASE64URL_NOPAD.encode(br#"{"alg":"none","kid":"k1"}"#);
    assert!(verify(&format!("{none}.{body}."), &provider.keys, &expected()).is_err());
    // The public key, taken for a secret that both sides know.
    let public = serde_json::to_vec(&provider.keys.keys[0]).unwrap();
    let header = Header { kid: Some("k1".to_owned()), ..Header::new(Algorithm::HS256) };
    let secret = EncodingKey::from_secret(&public).unwrap();
    let token = encode(&header, &claims(&json!({})), &secret).unwrap();
    let refused = verify(&token, &provider.keys, &expected());
    assert!(matches!(refused, Err(TokenError::Algorithm(Algorithm::HS256))));
    for text in ["", "a", "a.b", "a.b.c", "...."] {
        assert!(verify(text, &provider.keys, &expected()).is_err(), "{text}");
    }
}

#[test]
fn rejects_a_key_that_is_a_shared_secret_itself() {
    let secret = BASE64URL_NOPAD.encode(&[7; 32]);
    let keys = json!({"keys": [{"kty": "oct", "kid": "k1", "k": secret}]});
    let keys: JwkSet = serde_json::from_value(keys).unwrap();
    let header = Header { kid: Some("k1".to_owned()), ..Header::new(Algorithm::HS256) };
    let token = encode(&header, &claims(&json!({})), &EncodingKey::from_secret(&[7; 32]).unwrap()).unwrap();
    assert!(matches!(verify(&token, &keys, &expected()), Err(TokenError::Algorithm(_))));
}

#[test]
fn a_token_that_names_no_key_needs_a_provider_that_has_one() {
    let provider = Provider::new("k1");
    let token = encode(&Header::new(Algorithm::ES256), &claims(&json!({})), &provider.key).unwrap();
    assert!(verify(&token, &provider.keys, &expected()).is_ok());
    let mut several = provider.keys.clone();
    several.keys.extend(Provider::new("k2").keys.keys);
    assert!(matches!(verify(&token, &several, &expected()), Err(TokenError::Key(None))));
}

#[test]
fn rejects_people_without_a_name_or_a_role() {
    let person = |change: &Value| judge(change).unwrap().person(&mapping());
    for email in [json!(null), json!(""), json!(7), json!("a\nb"), json!("x".repeat(201))] {
        assert!(matches!(person(&json!({ "email": email })), Err(MappingError::NoName(_))));
    }
    for groups in
        [json!(null), json!([]), json!(["other"]), json!("fleet-operators2"), json!({"fleet-admins": 1})]
    {
        assert!(matches!(person(&json!({ "groups": groups })), Err(MappingError::NoRole(..))));
    }
    assert_eq!(person(&json!({"groups": "fleet-admins"})).unwrap().role, Role::Admin);
}

#[test]
fn a_claim_is_found_inside_others() {
    let claims = judge(&json!({"realm_access": {"roles": ["fleet-admins"]}, "a.b": "c"})).unwrap();
    let mapping = Mapping { role_claim: "realm_access.roles".to_owned(), ..mapping() };
    assert_eq!(claims.person(&mapping).unwrap().role, Role::Admin);
    assert_eq!(claim(&claims.0, "a.b"), Some(&json!("c")));
}
