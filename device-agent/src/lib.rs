//! The device side of Drayage.
//!
//! A device trusts only what is signed: the facade brings bytes and says nothing that is believed because the facade says
//! it. [`Agent`] is the whole of it; [`lifecycle`] decides what it does.
//!
//! - [`cli`], [`config`]: what the operator says
//! - [`lifecycle`], [`driver`]: what is done when, and what survives a crash
//! - [`identity`], [`facade_client`]: who we are, and how we talk
//! - [`refresh`]: which release both repositories signed
//! - [`plan`], [`fetch`], [`progress`]: what is missing of it, and how it comes in
//! - [`keeping`]: what of it stays, and what goes
//! - [`policy`]: whether it may come in now
//! - [`runtime`], [`handover`]: where it goes
//! - [`apply`], [`probe`], [`program`]: who is told, and whether it works
//! - [`report`]: what the facade is told
//! - [`state_file`], [`clock`], [`backoff`], [`random`], [`platform`]: files, time, patience, chance, machine

pub mod apply;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod driver;
pub mod facade_client;
pub mod fetch;
pub mod handover;
pub mod identity;
mod journal;
pub mod keeping;
pub mod lifecycle;
pub mod plan;
pub mod platform;
pub mod policy;
pub mod probe;
pub mod program;
pub mod progress;
pub mod random;
pub mod refresh;
pub mod report;
pub mod runtime;
pub mod state_file;

pub use driver::Agent;

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
