//! Who is signed in: sessions in memory, gone when the facade restarts.
//!
//! A session holds the operator token it was opened with, and nothing is done without asking whether that token is
//! still good. The cookie is kept as its SHA-256 only.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, header};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::Transport;
use crate::secret::Secret;

/// A working day, and then some.
pub(super) const LIFETIME: SignedDuration = SignedDuration::from_hours(12);
const MAX_SESSIONS: usize = 4096;
/// Most notices that wait for the next page.
const MAX_NOTICES: usize = 8;

/// The sessions that are open.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<Key, Session>>);

/// The SHA-256 of a session's cookie.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

struct Session {
    token: Secret,
    csrf: String,
    ends_at: Timestamp,
    notices: Vec<String>,
}

/// A session that is open.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) key: Key,
    pub(super) token: Secret,
    pub(super) csrf: String,
}

impl Sessions {
    /// Opens a session; gives what goes into its cookie.
    pub(super) fn open(&self, token: Secret, now: Timestamp) -> Result<String, getrandom::Error> {
        let cookie = random()?;
        let session = Session {
            token,
            csrf: random()?,
            ends_at: now.saturating_add(LIFETIME).unwrap_or(Timestamp::MAX),
            notices: Vec::new(),
        };
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| now < session.ends_at);
        if sessions.len() >= MAX_SESSIONS {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.ends_at);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                sessions.remove(&oldest);
            }
        }
        sessions.insert(key(&cookie), session);
        Ok(cookie)
    }

    /// The session of a cookie, if it is still open.
    pub(super) fn get(&self, cookie: &str, now: Timestamp) -> Option<Opened> {
        let key = key(cookie);
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get(&key).filter(|session| now < session.ends_at)?;
        Some(Opened { token: session.token.clone(), csrf: session.csrf.clone(), key })
    }

    /// Closes a session.
    pub(super) fn close(&self, key: &Key) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(key);
    }

    /// Leaves a piece of HTML for the next page of a session, which shows it once.
    pub(super) fn leave(&self, key: &Key, html: String) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = sessions.get_mut(key) {
            if session.notices.len() >= MAX_NOTICES {
                session.notices.remove(0);
            }
            session.notices.push(html);
        }
    }

    /// Takes what was left for this page.
    pub(super) fn take(&self, key: &Key) -> Vec<String> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get_mut(key);
        session.map(|session| std::mem::take(&mut session.notices)).unwrap_or_default()
    }
}

impl Opened {
    /// Whether a form came from a page of this session.
    pub(super) fn wrote(&self, csrf: &str) -> bool {
        // Hashes are compared, so that the time taken tells nothing about the text.
        Sha256::digest(csrf) == Sha256::digest(&self.csrf)
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened(…)")
    }
}

/// What names the cookie. `__Host-` keeps other hosts of the domain from setting it, and needs TLS.
fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tls => "__Host-drayage",
        Transport::Plain => "drayage",
    }
}

/// The `Set-Cookie` that opens a session.
pub(super) fn set_cookie(value: &str, transport: Transport) -> String {
    let secure = match transport {
        Transport::Tls => "; Secure",
        Transport::Plain => "",
    };
    let seconds = if value.is_empty() { 0 } else { LIFETIME.as_secs() };
    format!("{}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}", name(transport))
}

/// The session's value in a `Cookie` header.
pub(super) fn cookie(header: &str, transport: Transport) -> Option<&str> {
    named(header, name(transport))
}

fn named<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let pairs = header.split(';').filter_map(|pair| pair.trim().split_once('='));
    let mut values = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
    values.next()
}

/// What names the cookie of an attempt to sign in with an identity provider.
fn attempt_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tls => "__Host-drayage-oidc",
        Transport::Plain => "drayage-oidc",
    }
}

/// The `Set-Cookie` of an attempt to sign in with an identity provider.
pub(super) fn set_attempt(value: &str, transport: Transport, patience: SignedDuration) -> String {
    let secure = match transport {
        Transport::Tls => "; Secure",
        Transport::Plain => "",
    };
    let (name, seconds) = (attempt_name(transport), patience.as_secs());
    // `Lax`, because the way back comes from the provider's page.
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}")
}

/// The attempt's value among the cookies of a request.
pub(super) fn attempt(headers: &HeaderMap, transport: Transport) -> Option<String> {
    let headers = headers.get_all(header::COOKIE).iter();
    let mut values = headers.filter_map(|header| named(header.to_str().ok()?, attempt_name(transport)));
    values.next().map(str::to_owned)
}

/// The hash under which a cookie is kept.
pub(super) fn key(cookie: &str) -> Key {
    Key(Sha256::digest(cookie).into())
}

/// A text that nobody guesses.
pub(super) fn random() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(BASE64URL_NOPAD.encode(&bytes))
}

/// A short random name for a request, by which its line in the log is found.
pub(super) fn request_id() -> String {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => HEXLOWER.encode(&bytes),
        Err(_) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_session_ends_by_itself_and_when_it_is_closed() {
        let sessions = Sessions::default();
        let cookie = sessions.open("token".to_owned().into(), now()).unwrap();
        assert_eq!(cookie.len(), 43);
        let opened = sessions.get(&cookie, now()).unwrap();
        assert_eq!(opened.token.expose(), "token");
        assert!(sessions.get(&cookie, now() + LIFETIME).is_none());
        assert!(sessions.get("another", now()).is_none());
        sessions.close(&opened.key);
        assert!(sessions.get(&cookie, now()).is_none());
    }

    #[test]
    fn takes_only_its_own_forms() {
        let sessions = Sessions::default();
        let open = || sessions.get(&sessions.open("t".to_owned().into(), now()).unwrap(), now());
        let (one, other) = (open().unwrap(), open().unwrap());
        assert!(one.wrote(&one.csrf));
        assert!(!one.wrote(&other.csrf));
        assert!(!one.wrote(""));
    }

    #[test]
    fn shows_a_notice_once() {
        let sessions = Sessions::default();
        let cookie = sessions.open("t".to_owned().into(), now()).unwrap();
        let key = sessions.get(&cookie, now()).unwrap().key;
        sessions.leave(&key, "done".to_owned());
        assert_eq!(sessions.take(&key), ["done"]);
        assert!(sessions.take(&key).is_empty());
    }

    #[test]
    fn stays_bounded_however_often_somebody_signs_in() {
        let sessions = Sessions::default();
        for _ in 0..MAX_SESSIONS + 10 {
            sessions.open("t".to_owned().into(), now()).unwrap();
        }
        assert_eq!(sessions.0.lock().unwrap().len(), MAX_SESSIONS);
    }

    #[test]
    fn a_cookie_over_tls_is_bound_to_its_host_and_to_tls() {
        let tls = set_cookie("v", Transport::Tls);
        assert!(tls.starts_with("__Host-drayage=v; Path=/; HttpOnly; SameSite=Lax"));
        assert!(tls.ends_with("; Secure"));
        assert!(!set_cookie("v", Transport::Plain).contains("Secure"));
        assert!(set_cookie("", Transport::Plain).contains("Max-Age=0"));
        let header = "a=b; drayage=plain; __Host-drayage=v";
        assert_eq!(cookie(header, Transport::Tls), Some("v"));
        assert_eq!(cookie("a=b; drayage=plain", Transport::Tls), None);
    }
}
