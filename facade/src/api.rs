//! The operator door.

pub mod problem;
pub mod types;
