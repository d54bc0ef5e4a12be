//! The vocabulary of the OCI image and distribution specifications, as strict as a signed artifact needs it.
//!
//! Of the rest of this crate it uses only [`crate::digest`] and [`crate::json`].

pub mod choose;
pub mod descriptor;
pub mod manifest;
pub mod platform;
pub mod reference;

pub use choose::{Choice, ChoiceError, choose};
pub use descriptor::{Descriptor, MediaType};
pub use manifest::{Document, Index, Manifest};
pub use platform::Platform;
pub use reference::{
    ArtifactName, Reference, ReferenceError, RegistryHost, Repository, RepositoryName, Tag, without_user_info,
};
