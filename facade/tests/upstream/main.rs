//! Registries as they really are: a real `docker-registry` with each kind of authentication, a verifying token
//! endpoint, a strict AWS, and scripted registries that misbehave.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and its helpers are outside test functions"
)]
#![expect(
    clippy::match_bool,
    clippy::format_push_string,
    clippy::format_collect,
    reason = "a script of requests and answers reads best as a table"
)]

mod cloud;
mod docker;
mod fake;
mod faults;
mod secrets;
mod transport;

use std::net::SocketAddr;
use std::time::Duration;

use facade::secret::Secret;
use facade::upstream::{Definition, Limits, Provider, Registry, Secrets, Settings, Upstreams};
use pki::oci::RepositoryName;

/// Settings with limits that a test can wait for.
pub(crate) fn settings() -> Settings {
    Settings {
        limits: Limits {
            connect: Duration::from_secs(2),
            head: Duration::from_secs(2),
            idle: Duration::from_millis(500),
            window: Duration::from_secs(1),
            min_bytes_per_window: 1000,
            rejected: Duration::from_secs(10),
        },
        ..Settings::default()
    }
}

/// A plain-HTTP connection to a registry on this machine.
pub(crate) fn definition(address: SocketAddr) -> Definition {
    Definition { plain_http: true, ..Definition::anonymous(address.to_string().parse().unwrap()) }
}

pub(crate) fn connect(definition: Definition, secrets: Secrets) -> Registry {
    Upstreams::new(settings()).unwrap().connect(definition, secrets).unwrap()
}

pub(crate) fn anonymous(address: SocketAddr) -> Registry {
    connect(definition(address), Secrets::default())
}

pub(crate) fn with_password(address: SocketAddr, username: &str, password: &str) -> Registry {
    let definition =
        Definition { provider: Provider::Static { username: username.into() }, ..definition(address) };
    connect(definition, password_of(password))
}

pub(crate) fn password_of(password: &str) -> Secrets {
    Secrets { credential: Some(Secret::new(password.into())), client_key_pem: None }
}

pub(crate) fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}
