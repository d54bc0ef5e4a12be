//! The device side of Drayage.

pub mod runtime;
