//! The rig on which the stories of `tests/e2e` stand: real registries, containerd, facade and agent as processes of
//! their own, real sockets and TLS, and a scriptable fault between any two of them.
//!
//! Everything here blocks and everything here fails by panicking with what was being done: a broken rig must stop the
//! test that stands on it. Every process and server ends when its value is dropped. Nothing sleeps for a fixed time;
//! [`process::poll`] waits for a condition with a deadline.
//!
//! - [`process`]: programs under test, ports, deadlines
//! - [`http`]: a plain HTTP/1.1 client, and the request reader both fake servers share
//! - [`image`]: OCI and Docker images made on the spot
//! - [`registry`], [`token`]: the real `docker-registry`, open or behind a password or a token service
//! - [`tls_registry`]: `docker-registry` with TLS and client certificates
//! - [`cloud`]: registries of Google, AWS and Azure, whose doors check short-lived credentials, and who issues those
//! - [`identity`]: an identity provider, and a browser that signs in with it
//! - [`collector`]: a collector of traces
//! - [`proxy`]: the faulty wire in front of a registry
//! - [`containerd`]: a real containerd of the test's own
//! - [`disk`]: disks whose power is cut
//! - [`facade`], [`device`]: the two programs of Drayage
//! - [`authority`]: certificates the facade would never have issued
//! - [`tunnel`]: the proxy between a device and its facade
//! - [`client`]: stock clients against the device door
//! - [`liar`]: a facade that lies about signed metadata

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::return_self_not_must_use,
    reason = "a broken rig must stop the test that stands on it"
)]

pub mod authority;
pub mod client;
pub mod cloud;
pub mod collector;
pub mod containerd;
pub mod device;
pub mod disk;
pub mod facade;
pub mod http;
pub mod identity;
pub mod image;
pub mod liar;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod tls_registry;
pub mod token;
pub mod tunnel;

pub use client::{Answer, DeviceClient};
pub use cloud::{AzureCloud, CloudRegistry, Gate, GoogleTokens, Moto};
pub use containerd::Containerd;
pub use device::Device;
pub use facade::Facade;
pub use image::{Image, ImageBuilder};
pub use liar::{Liar, Lie};
pub use process::{Outcome, Process, poll};
pub use proxy::{Fault, Proxy, When};
pub use registry::{Pushed, Registry};
pub use token::TokenServer;
