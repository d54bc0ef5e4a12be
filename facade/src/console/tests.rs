//! The rules of the console, held with a small API behind it: sessions, forms of other sites, roles, headers.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::{Json, Router};
use tower_service::Service as _;

use super::*;
use crate::api::auth::Role;
use crate::api::problem::Problem;

const ORIGIN: &str = "http://console.test";

/// Two tokens are good: `operator`, and `viewer`, whom the API refuses every change; until they are revoked.
fn console(revoked: Arc<AtomicBool>) -> Router {
    let suspend = |headers: axum::http::HeaderMap| async move {
        if headers.get("authorization").is_some_and(|value| value == "Bearer operator") {
            Ok(Json(
                serde_json::json!({"id": "pump", "standing": "suspended", "groups": [], "enrolled_at": ""}),
            ))
        } else {
            Err(Problem::forbidden("this needs a token with the role operator"))
        }
    };
    let tokens = || get(|| async { Json(serde_json::json!({"items": []})) });
    let api = Router::new()
        .route("/api/v1/devices/pump/suspend", post(suspend))
        .route("/api/v1/enrollment-tokens", tokens());
    let who: Who = Arc::new(move |token| {
        let good = !revoked.load(Ordering::SeqCst);
        Box::pin(async move {
            let caller = |role| Caller::new(token.expose().to_owned(), role);
            Ok(match token.expose() {
                "operator" if good => Some(caller(Role::Operator)),
                "viewer" if good => Some(caller(Role::Viewer)),
                _ => None,
            })
        })
    });
    pages(Console {
        api,
        who,
        forget: Arc::new(|_| {}),
        oidc: None,
        sessions: Arc::default(),
        attempts: Arc::default(),
        clock: Clock::manual("2026-11-20T12:00:00Z".parse().unwrap()),
        transport: Transport::Tls,
    })
}

async fn ask(router: &Router, method: &str, path: &str, cookie: &str, form: &str) -> Response {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "console.test")
        .header("origin", ORIGIN)
        .header("cookie", cookie)
        .body(Body::from(form.to_owned()))
        .unwrap();
    router.clone().call(request).await.unwrap()
}

async fn text(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn sign_in(router: &Router, token: &str) -> String {
    let answer = ask(router, "POST", "/console/sign-in", "", &format!("token={token}")).await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    let cookie = answer.headers()["set-cookie"].to_str().unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

async fn csrf(router: &Router, cookie: &str) -> String {
    let page = text(ask(router, "GET", "/console/enrollment", cookie, "").await).await;
    let (_, rest) = page.split_once("name=\"csrf\" value=\"").unwrap();
    rest.split('"').next().unwrap().to_owned()
}

async fn suspend(router: &Router, cookie: &str, csrf: &str) -> StatusCode {
    let form = format!("id=pump&csrf={csrf}");
    ask(router, "POST", "/console/device/suspend", cookie, &form).await.status()
}

#[tokio::test]
async fn rejects_a_form_without_the_token_of_its_session() {
    let router = console(Arc::default());
    let (one, other) = (sign_in(&router, "operator").await, sign_in(&router, "operator").await);
    let (good, foreign) = (csrf(&router, &one).await, csrf(&router, &other).await);
    assert_eq!(suspend(&router, &one, &foreign).await, StatusCode::FORBIDDEN);
    assert_eq!(suspend(&router, &one, "").await, StatusCode::FORBIDDEN);
    assert_eq!(suspend(&router, &one, &good).await, StatusCode::SEE_OTHER);
    let page = text(ask(&router, "GET", "/console/enrollment", &one, "").await).await;
    assert!(page.contains("pump is suspended now."), "{page}");
}

#[tokio::test]
async fn a_viewer_sees_no_form_and_cannot_change_anything_by_sending_one() {
    let router = console(Arc::default());
    let cookie = sign_in(&router, "viewer").await;
    let page = text(ask(&router, "GET", "/console/enrollment", &cookie, "").await).await;
    assert!(!page.contains("Make a token"));
    let csrf = csrf(&router, &cookie).await;
    assert_eq!(suspend(&router, &cookie, &csrf).await, StatusCode::SEE_OTHER);
    let page = text(ask(&router, "GET", "/console/enrollment", &cookie, "").await).await;
    assert!(page.contains("this needs a token with the role operator"), "{page}");
}

#[tokio::test]
async fn a_session_ends_when_its_token_is_revoked() {
    let revoked = Arc::new(AtomicBool::new(false));
    let router = console(Arc::clone(&revoked));
    let cookie = sign_in(&router, "operator").await;
    let status = ask(&router, "GET", "/console/enrollment", &cookie, "").await.status();
    assert_eq!(status, StatusCode::OK);
    revoked.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let answer = ask(&router, "GET", "/console/enrollment", &cookie, "").await;
        assert_eq!(answer.headers()["location"], "/console/sign-in");
        revoked.store(false, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn somebody_who_guesses_tokens_is_slowed_down() {
    let router = console(Arc::default());
    let mut refused = 0;
    for _ in 0..200 {
        let answer = ask(&router, "POST", "/console/sign-in", "", "token=guess").await;
        assert!(!answer.headers().contains_key("set-cookie"));
        refused += u32::from(answer.status() == StatusCode::TOO_MANY_REQUESTS);
    }
    assert!(refused >= 130, "{refused}");
}

#[tokio::test]
async fn every_answer_carries_the_policy_and_an_id() {
    let router = console(Arc::default());
    for path in ["/", "/console", "/console/sign-in", "/console/nowhere", "/console/style.css"] {
        let answer = ask(&router, "GET", path, "", "").await;
        let policy = answer.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'self'; script-src 'self'"), "{path}");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers()["x-request-id"].len(), 16, "{path}");
    }
}
