//! The vocabulary and the judgement that the facade and the device agent share.
//!
//! Bytes and `now` go in, values come out: this crate has no socket, no file, no clock and no async code. What a check
//! establishes is returned as a value that only the check can make, so that a step which needs the check cannot be
//! written without it.
//!
//! - [`digest`]: content digests, and the one place that holds bytes against them
//! - [`json`]: JSON with one reading only
//! - [`oci`]: references, descriptors, manifests, platforms
//! - [`key`], [`canonical`], [`metadata`]: TUF metadata, from signatures to the whole client workflow
//! - [`x509`]: device identity and certificates
//! - [`seal`]: secrets at rest
//! - [`wire`]: the bodies that agent and facade exchange
//! - [`text_newtypes`], [`text_forms`], [`serde_as_text`]: the forms of what is parsed from text

pub mod canonical;
pub mod digest;
mod forms;
pub mod json;
pub mod key;
pub mod metadata;
pub mod oci;
pub mod seal;
pub mod wire;
pub mod x509;
