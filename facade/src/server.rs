//! The device door: accepts, limits and drains connections, and answers requests for content.

pub mod route;
