//! The control plane of Drayage.
//!
//! A facade answers devices by their TLS identity and serves content by digest from connected registries. Calls go
//! downwards only: `server` → {`api`, `pull`} → {`catalog`, `upstream`} → {`store`, `blobs`}.

pub mod api;
pub mod authz;
pub mod blobs;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod facade;
pub mod init;
pub mod keyfile;
pub mod log;
pub mod metrics;
mod operator_door;
pub mod publish;
pub mod pull;
pub mod secret;
pub mod server;
pub mod service;
pub mod store;
pub(crate) mod trace;
pub mod upstream;
