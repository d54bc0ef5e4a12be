//! The device side of Drayage.

pub mod backoff;
pub mod clock;
pub mod config;
pub mod facade_client;
pub mod fetch;
pub mod handover;
pub mod identity;
pub mod lifecycle;
pub mod plan;
pub mod platform;
pub mod progress;
pub mod random;
pub mod refresh;
pub mod report;
pub mod runtime;
pub mod state_file;

/// An error with everything under it, in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
