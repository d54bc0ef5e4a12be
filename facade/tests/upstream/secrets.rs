//! Credentials: the challenge flow, the life of tokens, and that a secret never reaches a party it is not for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use facade::upstream::{BrowseLimits, Definition, Provider, Registry, UpstreamError};
use futures_util::future::join_all;
use pki::digest::Digest;

use crate::fake::{Fake, Reply, Seen};
use crate::{anonymous, connect, definition, name, password_of, with_password};

const CANARY: &str = "canary-7f3a9c";
const BLOB: &str = "blob";

fn blob() -> Digest {
    Digest::sha256(BLOB.as_bytes())
}

async fn pull(registry: &Registry) -> Result<(), UpstreamError> {
    let mut stream = registry.blob(&name("a/b"), blob(), 0).await?;
    while stream.next().await?.is_some() {}
    Ok(())
}

/// A registry with a token server on the same machine, which counts what it issues.
struct Guarded {
    registry: Fake,
    tokens: Arc<Fake>,
    issued: Arc<AtomicUsize>,
}

/// `accepts` says which of the issued tokens, counted from 1, is good for a request.
fn guarded(expires_in: u32, accepts: impl Fn(usize, usize) -> bool + Send + Sync + 'static) -> Guarded {
    let issued = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&issued);
    let tokens = Arc::new(Fake::start(move |seen| {
        let anonymous = seen.header("authorization").is_none();
        let good = seen.header("authorization") == Some(&format!("Basic {}", encode(&format!("u:{CANARY}"))));
        if !good && !anonymous {
            return Reply::new(401, &[], r#"{"details":"incorrect username or password"}"#);
        }
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        Reply::ok(format!(
            r#"{{"token":"token-{number}","expires_in":{expires_in}}}"#
        ))
    }));
    let realm = tokens.url("/token");
    let requests = AtomicUsize::new(0);
    let registry = Fake::start(move |seen| {
        let challenge = format!(
            r#"Bearer realm="{realm}",service="registry, of \"things\"",scope="repository:a/b:pull,push""#
        );
        let token = seen
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer token-"));
        let Some(number) = token.and_then(|number| number.parse::<usize>().ok()) else {
            return Reply::challenge(&challenge);
        };
        let request = requests.fetch_add(1, Ordering::SeqCst) + 1;
        if accepts(number, request) {
            Reply::ok(BLOB)
        } else {
            Reply::challenge(&challenge)
        }
    });
    Guarded {
        registry,
        tokens,
        issued,
    }
}

fn encode(text: &str) -> String {
    data_encoding::BASE64.encode(text.as_bytes())
}

#[tokio::test]
async fn exchanges_once_for_any_number_of_concurrent_pulls() {
    let guarded = guarded(300, |_, _| true);
    let registry = with_password(guarded.registry.address, "u", CANARY);
    for outcome in join_all((0..100).map(|_| pull(&registry))).await {
        outcome.unwrap();
    }
    assert_eq!(guarded.issued.load(Ordering::SeqCst), 1);
    let exchange = &guarded.tokens.seen()[0];
    assert!(
        exchange.path.contains("scope=repository%3Aa%2Fb%3Apull&"),
        "{}",
        exchange.path
    );
    assert!(exchange.path.contains("service=registry%2C%20of%20%22things%22"));
    // The password goes to the token server and nowhere else.
    assert!(
        !guarded
            .registry
            .transcript()
            .contains(&encode(&format!("u:{CANARY}")))
    );
}

#[tokio::test]
async fn renews_in_the_middle_of_a_pull_without_the_puller_noticing() {
    let guarded = guarded(300, |token, request| token == if request <= 3 { 1 } else { 2 });
    let registry = with_password(guarded.registry.address, "u", CANARY);
    for _ in 0..6 {
        pull(&registry).await.unwrap();
    }
    assert_eq!(guarded.issued.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn gives_up_after_a_fresh_token_was_rejected_and_does_not_hammer() {
    let guarded = guarded(300, |_, _| false);
    let registry = with_password(guarded.registry.address, "u", CANARY);
    for _ in 0..20 {
        assert!(matches!(pull(&registry).await, Err(UpstreamError::Denied { .. })));
    }
    assert_eq!(guarded.issued.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_wrong_password_is_told_and_not_tried_again_and_again() {
    let guarded = guarded(300, |_, _| true);
    let registry = with_password(guarded.registry.address, "u", "wrong");
    for _ in 0..20 {
        let error = pull(&registry).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Denied { .. }), "{error:?}");
        assert!(error.line().contains("incorrect username or password"));
    }
    assert_eq!(guarded.tokens.seen().len(), 1);
    let basic = Fake::start(|_| Reply::challenge("Basic realm=x"));
    let registry = with_password(basic.address, "u", "wrong");
    for _ in 0..20 {
        assert!(matches!(pull(&registry).await, Err(UpstreamError::Denied { .. })));
    }
    assert_eq!(basic.seen().len(), 2);
}

#[tokio::test]
async fn a_public_registry_gets_an_anonymous_token() {
    let guarded = guarded(300, |_, _| true);
    pull(&anonymous(guarded.registry.address)).await.unwrap();
    let closed = Fake::start(|_| Reply::challenge("Basic realm=x"));
    assert!(matches!(
        pull(&anonymous(closed.address)).await,
        Err(UpstreamError::Unauthenticated { .. })
    ));
}

#[tokio::test]
async fn a_realm_that_leads_nowhere_does_not_stand_before_later_requests() {
    let asked = AtomicUsize::new(0);
    let registry = Fake::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::challenge(r#"Bearer realm="http://169.254.169.254/token",service="s""#),
        _ => Reply::ok(BLOB),
    });
    let registry = anonymous(registry.address);
    assert!(pull(&registry).await.is_err());
    pull(&registry).await.unwrap();
}

#[tokio::test]
async fn identity_tokens_are_posted_and_fall_back_to_basic() {
    for post_works in [true, false] {
        let tokens = Fake::start(move |seen| match seen.method.as_str() {
            "POST" if post_works => Reply::ok(r#"{"access_token":"good","expires_in":300}"#),
            "POST" => Reply::status(405),
            _ => Reply::ok(r#"{"token":"good"}"#),
        });
        let realm = tokens.url("/oauth2/token");
        let registry = Fake::start(move |seen| match seen.header("authorization") {
            Some("Bearer good") => Reply::ok(BLOB),
            _ => Reply::challenge(&format!(r#"Bearer realm="{realm}",service="s""#)),
        });
        pull(&with_password(registry.address, "<token>", CANARY))
            .await
            .unwrap();
        let posted = &tokens.seen()[0].body;
        assert!(
            posted.contains("grant_type=refresh_token") && posted.contains(CANARY),
            "{posted}"
        );
        assert!(posted.contains("scope=repository%3Aa%2Fb%3Apull"));
        assert_eq!(tokens.seen().len(), if post_works { 1 } else { 2 });
    }
}

/// The connections of the canary test: their credentials must reach `evil` in no scenario whatsoever.
fn with_canary(registry: &Fake, allow_private: bool) -> Registry {
    let definition = Definition {
        allow_private,
        provider: Provider::Static { username: "u".into() },
        ..definition(registry.address)
    };
    connect(definition, password_of(CANARY))
}

type Scenario = (&'static str, Box<dyn Fn(&Seen, &str) -> Reply + Send + Sync>);

fn authorized(seen: &Seen) -> bool {
    seen.header("authorization").is_some()
}

/// Ways to lure a client's credentials to `evil`.
fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for status in [301_u16, 302, 303, 307, 308] {
        scenarios.push((
            "redirect after Basic",
            Box::new(move |seen, evil| match authorized(seen) {
                true => Reply::new(status, &[("Location", &format!("http://{evil}/steal"))], ""),
                false => Reply::challenge("Basic realm=x"),
            }),
        ));
        scenarios.push((
            "redirect before anything",
            Box::new(move |_, evil| Reply::new(status, &[("Location", &format!("http://{evil}/steal"))], "")),
        ));
    }
    let challenges: [&'static str; 12] = [
        r#"Bearer realm="http://{evil}/token""#,
        r#"Bearer realm="http://{evil}/token",service="s",scope="repository:a/b:pull""#,
        r#"Bearer realm="http://u:p@{evil}/token""#,
        r#"Bearer realm="//{evil}/token""#,
        r#"Bearer realm="HTTP://{evil}/token""#,
        r#"Bearer realm="http://{evil}#{own}/token""#,
        r#"Bearer realm="http://{evil}?{own}/token""#,
        r#"Bearer realm="http://{own}@{evil}/token""#,
        r#"Bearer realm="http://{evil}/{own}""#,
        r#"Basic realm="x", Bearer realm="http://{evil}/token""#,
        r#"Bearer realm="http://{own}/ok",realm="http://{evil}/token""#,
        r#"Bearer service="realm=http://{own}",realm="http://{evil}/token""#,
    ];
    for challenge in challenges {
        scenarios.push((
            challenge,
            Box::new(move |seen, evil| {
                let own = seen.header("host").unwrap();
                Reply::challenge(&challenge.replace("{evil}", evil).replace("{own}", own))
            }),
        ));
    }
    scenarios.push((
        "two hops and back",
        Box::new(|seen, evil| match (authorized(seen), seen.path.as_str()) {
            (false, _) => Reply::challenge("Basic realm=x"),
            (true, "/hop") => Reply::redirect(&format!("http://{evil}/steal")),
            (true, _) => Reply::redirect("/hop"),
        }),
    ));
    scenarios.push((
        "token server redirects",
        Box::new(|seen, evil| match seen.path.starts_with("/token") {
            true => Reply::redirect(&format!("http://{evil}/token")),
            false => Reply::challenge(&format!(
                r#"Bearer realm="http://{}/token""#,
                seen.header("host").unwrap()
            )),
        }),
    ));
    scenarios.push((
        "token in the location",
        Box::new(|seen, evil| match authorized(seen) {
            true => Reply::redirect(&format!("//{evil}/steal")),
            false => Reply::challenge("Basic realm=x"),
        }),
    ));
    scenarios.push((
        "tags link",
        Box::new(|seen, evil| match authorized(seen) {
            true => Reply::new(
                200,
                &[(
                    "Link",
                    &format!("<http://{evil}/v2/a/b/tags/list?last=x>; rel=next"),
                )],
                r#"{"tags":["x"]}"#,
            ),
            false => Reply::challenge("Basic realm=x"),
        }),
    ));
    scenarios
}

#[tokio::test]
async fn no_scenario_brings_a_secret_to_another_host() {
    let (mut count, mut lured) = (0, 0);
    // `evil` is on another address: another host to every rule that there is.
    for (title, script) in scenarios().into_iter().chain(scenarios()) {
        let allow_private = count % 2 == 0;
        let evil = Fake::start_at("127.0.0.2:0", |seen| match authorized(seen) {
            false => Reply::challenge("Basic realm=x, Bearer realm=\"http://127.0.0.2/token\""),
            true => Reply::ok(r#"{"token":"t"}"#),
        });
        let address = evil.address.to_string();
        let registry = Fake::start(move |seen| script(seen, &address));
        let connected = with_canary(&registry, allow_private);
        let outcomes = [
            pull(&connected).await.err(),
            connected.manifest(&name("a/b"), blob()).await.err(),
            connected.tags(&name("a/b"), &BrowseLimits::default()).await.err(),
        ];
        let report = connected.check(Some(&name("a/b"))).await;
        let said = format!("{outcomes:?} {report:?} {:?} {connected:?}", connected.health());
        for text in [evil.transcript(), said] {
            assert!(!text.contains(CANARY), "{title}: {text}");
            assert!(!text.contains(&encode(&format!("u:{CANARY}"))), "{title}: {text}");
        }
        assert!(
            evil.seen().iter().all(|seen| !authorized(seen)),
            "{title}: {}",
            evil.transcript()
        );
        count += 1;
        lured += usize::from(!evil.seen().is_empty());
    }
    assert!(count >= 50, "{count}");
    assert!(lured >= 10, "the scenarios must at least lead there: {lured}");
}

#[tokio::test]
async fn an_error_that_repeats_the_secret_is_cleaned() {
    let echo = Fake::start(|seen| match seen.header("authorization") {
        None => Reply::challenge("Basic realm=x"),
        Some(header) => {
            let said = format!("you sent {header} which is u:{CANARY}\\n\\u001b[31m");
            Reply::new(
                403,
                &[],
                format!(r#"{{"errors":[{{"code":"DENIED","message":"{said}"}}]}}"#),
            )
        }
    });
    let registry = with_password(echo.address, "u", CANARY);
    let error = pull(&registry).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Forbidden { .. }), "{error:?}");
    let said = format!("{} {error:?} {:?}", error.line(), registry.health());
    assert!(
        !said.contains(CANARY) && !said.contains(&encode(&format!("u:{CANARY}"))),
        "{said}"
    );
    assert!(
        said.contains("DENIED: you sent Basic …") && !said.contains('\u{1b}'),
        "{said}"
    );
}

#[tokio::test]
async fn a_redirect_to_a_store_goes_without_authorization() {
    let store = Fake::start(|_| Reply::ok(BLOB));
    let location = store.url("/bucket/blob?X-Signature=abc");
    let registry = Fake::start(move |seen| match seen.header("authorization") {
        Some(_) => Reply::redirect(&location),
        None => Reply::challenge("Basic realm=x"),
    });
    let connected = with_password(registry.address, "u", CANARY);
    pull(&connected).await.unwrap();
    assert_eq!(store.seen()[0].path, "/bucket/blob?X-Signature=abc");
    assert_eq!(store.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn rejects_endless_redirects_and_expired_store_urls() {
    let circle = Fake::start(|_| Reply::redirect("/v2/again"));
    assert!(matches!(
        pull(&anonymous(circle.address)).await,
        Err(UpstreamError::BadAnswer { .. })
    ));
    assert_eq!(circle.seen().len(), 6);
    // A signed URL that has expired is no verdict on our credentials: the registry is asked for a new one.
    let store = Fake::start(|_| Reply::status(403));
    let location = store.url("/expired");
    let registry = Fake::start(move |_| Reply::redirect(&location));
    let error = pull(&anonymous(registry.address)).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unavailable { status: 403, .. }) && error.is_retryable());
}
