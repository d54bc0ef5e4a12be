//! Signing in to the console with an identity provider.

use harness::identity::{Browser, IdentityProvider, location};
use harness::{Device, Facade};
use serde_json::json;

const BEGIN: &str = "/console/sign-in/oidc";

fn provider() -> IdentityProvider {
    IdentityProvider::start(&[
        json!({"sub": "jane", "email": "jane@example.com", "groups": ["staff", "fleet"]}),
        json!({"sub": "joe", "email": "joe@example.com", "groups": ["staff"]}),
        json!({"sub": "mallory", "email": "mallory@example.com", "groups": ["guests"]}),
    ])
}

fn facade(provider: &IdentityProvider) -> Facade {
    Facade::start_with(&[
        ("FACADE_OIDC_ISSUER", &provider.issuer()),
        ("FACADE_OIDC_CLIENT_ID", "facade"),
        ("FACADE_OIDC_CLIENT_SECRET_FILE", &provider.secret_file()),
        // Where browsers are sent back to; these have no eyes for the host.
        ("FACADE_OPERATOR_URL", "http://localhost:1"),
        ("FACADE_OIDC_OPERATORS", "fleet"),
        ("FACADE_OIDC_VIEWERS", "staff, audit"),
    ])
}

/// The path of an address.
fn path(address: &str) -> String {
    address.strip_prefix("http://localhost:1").unwrap_or(address).to_owned()
}

/// Goes to the provider, signs in there, and gives the way back.
fn way_back(browser: &mut Browser, provider: &IdentityProvider, subject: &str) -> String {
    let there = location(&browser.get(BEGIN));
    path(&provider.sign_in(&there, subject))
}

#[test]
fn people_sign_in_with_the_organisations_provider_and_have_the_role_that_it_gives() {
    let provider = provider();
    let facade = facade(&provider);
    let _device = Device::enrolled("board-1", &facade);
    let mut jane = Browser::at(facade.operator_authority());
    assert!(jane.get("/console/sign-in").text().contains("Sign in with 127.0.0.1"));
    let back = way_back(&mut jane, &provider, "jane");
    let landed = jane.get(&back);
    assert_eq!((landed.status, location(&landed).as_str()), (303, "/console"), "{}", landed.text());
    assert!(jane.get("/console").text().contains("oidc/jane@example.com"));
    let csrf = jane.csrf("/console/device?id=board-1");
    jane.post("/console/device/suspend", &format!("csrf={csrf}&id=board-1"));
    assert_eq!(facade.ok(&["device", "show", "board-1"])["standing"], "suspended");

    let mut joe = Browser::at(facade.operator_authority());
    let back = way_back(&mut joe, &provider, "joe");
    joe.get(&back);
    let csrf = joe.csrf("/console/device?id=board-1");
    joe.post("/console/device/restore", &format!("csrf={csrf}&id=board-1"));
    assert!(joe.get("/console").text().contains("this needs a token with the role operator"));
    assert_eq!(facade.ok(&["device", "show", "board-1"])["standing"], "suspended");

    let log = facade.ok(&["audit", "list"]);
    let done = |who: &str, action: &str, result: u64| {
        let records = log.as_array().unwrap().iter();
        let like = |record: &&serde_json::Value| {
            record["who"] == who
                && record["action"].as_str().unwrap().contains(action)
                && record["result"] == result
        };
        records.filter(like).count()
    };
    assert_eq!(done("oidc/jane@example.com", "sign in to the console", 200), 1);
    assert_eq!(done("oidc/jane@example.com", "suspend", 200), 1);
    assert_eq!(done("oidc/joe@example.com", "restore", 403), 1);

    // Whoever signs out is out, and so is what they held.
    let csrf = jane.csrf("/console/device?id=board-1");
    jane.post("/console/sign-out", &format!("csrf={csrf}"));
    assert_eq!(location(&jane.get("/console")), "/console/sign-in");
}

#[test]
fn nobody_comes_in_without_a_role_twice_or_with_somebody_elses_answer() {
    let provider = provider();
    let facade = facade(&provider);
    let refused = |browser: &mut Browser, back: &str, why: &str| {
        let answer = browser.get(back);
        assert_eq!(answer.status, 403, "{why}");
        assert!(answer.text().contains(why), "{}", answer.text());
        assert_eq!(location(&browser.get("/console")), "/console/sign-in", "{why}");
    };
    let mut browser = Browser::at(facade.operator_authority());
    let back = way_back(&mut browser, &provider, "mallory");
    refused(&mut browser, &back, "Mallory@example.com has no role here");

    let back = way_back(&mut browser, &provider, "jane");
    let mut other = Browser::at(facade.operator_authority());
    refused(&mut other, &back, "not one that began in this browser");
    way_back(&mut other, &provider, "joe");
    refused(&mut other, &back, "not one that began in this browser");
    assert_eq!(browser.get(&back).status, 303);
    browser.forget();
    refused(&mut browser, &back, "not one that began in this browser");

    let back = way_back(&mut browser, &provider, "jane");
    let forged = back.replace("code=", "code=x");
    refused(&mut browser, &forged, "refuses");
    let back = way_back(&mut browser, &provider, "jane");
    refused(&mut browser, &format!("{back}&iss=https%3A%2F%2Fevil.example"), "another identity provider");
    location(&browser.get(BEGIN));
    let there = location(&browser.get(BEGIN));
    let state = there.split("state=").nth(1).unwrap().split('&').next().unwrap();
    let denied = format!("{BEGIN}/callback?error=access_denied&error_description=%3Cb%3Eno&state={state}");
    refused(&mut browser, &denied, "The identity provider says: &#60;b&#62;no");
    refused(&mut browser, &format!("{BEGIN}/callback"), "not one that began in this browser");
}

#[test]
fn a_provider_that_is_away_keeps_nobody_from_signing_in_with_a_token() {
    let provider = provider();
    let facade = facade(&provider);
    drop(provider);
    let mut browser = Browser::at(facade.operator_authority());
    let answer = browser.get(BEGIN);
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("cannot be reached"), "{}", answer.text());
    let token = std::fs::read_to_string(facade.admin_token_file()).unwrap();
    assert_eq!(browser.post("/console/sign-in", &format!("token={}", token.trim())).status, 303);
    assert_eq!(browser.get("/console").status, 200);
}
