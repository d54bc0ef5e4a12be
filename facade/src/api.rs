//! What the doors answer besides content.

pub mod enroll;
