//! The agent against a facade in the same process, benign or hostile: real TLS, real files, an image layout.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing there"
)]

mod apply;
mod board;
mod deadline;
mod enrollment;
mod facade;
mod kill;
mod metadata;
mod rounds;
mod signals;
mod tls;
mod world;
