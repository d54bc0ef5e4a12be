//! The operator's records, over [`crate::store`].

pub mod access;
mod allowance;
pub mod artifacts;
pub mod assignments;
pub mod audit;
pub mod census;
pub mod closure;
pub mod devices;
pub mod events;
pub mod fleet;
pub mod imports;
pub mod keyring;
pub mod operators;
pub mod pins;
pub mod policies;
pub mod probe;
pub mod pulls;
pub mod registries;
pub mod replies;
pub mod rollouts;
pub mod selector;
pub mod waves;
