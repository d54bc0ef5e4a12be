//! Enrollment and renewal against a facade in the same process.
