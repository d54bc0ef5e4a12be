//! The places images are handed to: one suite for both, and for each what only it does.
//!
//! The tests of containerd need root, and `containerd`, `ctr` and `runc`; those of the layout `skopeo`. Where they are
//! missing the tests fail.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing there"
)]

mod containerd;
mod daemon;
mod oci_layout;
mod sample;
mod suite;
