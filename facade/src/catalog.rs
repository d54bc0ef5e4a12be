//! The operator's records, over [`crate::store`].

pub mod access;
pub mod closure;
pub mod devices;
