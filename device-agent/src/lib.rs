//! The device side of Drayage.
