//! The device side of Drayage.

pub mod backoff;
pub mod clock;
pub mod config;
pub mod facade_client;
pub mod identity;
pub mod lifecycle;
pub mod platform;
pub mod runtime;
pub mod state_file;
