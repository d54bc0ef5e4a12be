//! The stories of Drayage, each on real parts: registries, containerd, both programs, sockets and TLS.
//!
//! Stories that need containerd have `containerd` in their name; `.config/nextest.toml` runs those one at a time.

#![expect(clippy::expect_used, reason = "a story stops where its scene cannot be set")]

mod access_log;
mod api;
mod authorization;
mod board;
mod cache;
mod ceremonies;
mod changes;
mod cloud;
mod connections;
mod console;
mod credentials;
mod documentation;
mod enroll;
mod est;
mod events;
mod faults;
mod import;
mod interop;
mod keys;
mod life;
mod oidc;
mod operators;
mod power;
mod profiles;
mod publishers;
mod pull;
mod rig;
mod rollouts;
mod secrets;
mod service;
mod signer;
mod stock_clients;
mod surroundings;
mod tamper;
mod tidy;
mod traces;
