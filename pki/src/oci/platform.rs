//! Platforms, and which manifest of an index a device takes.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

/// An operating system and processor, such as `linux/arm/v7` (OCI image index, "platform").
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `windows`, …
    #[serde(deserialize_with = "printable")]
    pub os: String,
    /// A GOARCH value: `amd64`, `arm64`, `arm`, …
    #[serde(deserialize_with = "printable")]
    pub architecture: String,
    /// The variant of the processor, such as `v7`.
    #[serde(default, deserialize_with = "printable_if_any", skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Version of the operating system (Windows images).
    #[serde(
        rename = "os.version",
        default,
        deserialize_with = "printable_if_any",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Required features of the operating system.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

/// Whoever wrote an index wrote this, and it is shown to people: nothing in it may steer their terminal.
fn printable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.chars().any(char::is_control) {
        let shown = text.escape_debug();
        return Err(D::Error::custom(format!("a part of a platform has control characters: {shown}")));
    }
    Ok(text)
}

fn printable_if_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Printable(#[serde(deserialize_with = "printable")] String);
    Ok(Option::<Printable>::deserialize(deserializer)?.map(|text| text.0))
}

/// The text is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a platform (expected OS/ARCHITECTURE[/VARIANT], for example linux/arm64)")]
pub struct PlatformError(String);

impl Platform {
    /// A platform without operating system version or features.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
            os_version: None,
            os_features: Vec::new(),
        }
    }

    /// Whether a manifest for this platform is something to run, and not an attestation (`unknown/unknown`).
    pub fn is_runnable(&self) -> bool {
        self.os != "unknown" && self.architecture != "unknown"
    }

    /// How well an image for `self` suits a device of `device`; higher is better, `None` not at all.
    ///
    /// The order is containerd's (`platforms.Only`): the device's own variant, then the ones below it. It never falls
    /// back from arm64 to 32-bit ARM, which many 64-bit processors cannot execute.
    pub fn suits(&self, device: &Self) -> Option<u8> {
        if self.os != device.os || self.architecture != device.architecture {
            return None;
        }
        let (image, device) = (self.variant_level()?, device.variant_level()?);
        (image <= device).then_some(image)
    }

    /// The variant as a number; the default where none is given (containerd `platforms.Normalize`).
    fn variant_level(&self) -> Option<u8> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm", None | Some("")) => Some(7),
            ("arm64", None | Some("")) => Some(8),
            ("amd64", None | Some("")) => Some(1),
            (_, None | Some("")) => Some(0),
            (_, Some(variant)) => {
                variant.strip_prefix('v').unwrap_or(variant).split('.').next()?.parse().ok()
            }
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let error = || PlatformError(text.chars().take(80).collect());
        let part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        let mut parts = text.split('/');
        let (Some(os), Some(architecture)) = (parts.next(), parts.next()) else {
            return Err(error());
        };
        let variant = parts.next();
        if parts.next().is_some()
            || !part(os)
            || !part(architecture)
            || variant.is_some_and(|variant| !part(variant))
        {
            return Err(error());
        }
        Ok(Self::new(os, architecture, variant))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn rejects_what_would_steer_a_terminal() {
        for json in [
            r#"{"os": "linux\u001b[31m", "architecture": "arm64"}"#,
            r#"{"os": "linux", "architecture": "arm\n64"}"#,
            r#"{"os": "linux", "architecture": "arm", "variant": "v7\u0007"}"#,
            r#"{"os": "linux", "architecture": "arm", "os.version": "\u009b"}"#,
        ] {
            assert!(serde_json::from_str::<Platform>(json).is_err(), "{json}");
        }
        let null = r#"{"os": "linux", "architecture": "arm", "variant": null}"#;
        assert_eq!(serde_json::from_str::<Platform>(null).unwrap(), Platform::new("linux", "arm", None));
    }

    #[test]
    fn prefers_the_devices_own_variant_and_takes_lower_ones() {
        let v7 = platform("linux/arm/v7");
        assert!(platform("linux/arm/v7").suits(&v7) > platform("linux/arm/v6").suits(&v7));
        assert!(platform("linux/arm/v6").suits(&v7) > platform("linux/arm/v5").suits(&v7));
        assert!(platform("linux/arm").suits(&v7).is_some());
        assert!(platform("linux/arm64/v8").suits(&platform("linux/arm64")).is_some());
        assert!(platform("linux/amd64").suits(&platform("linux/amd64/v3")).is_some());
    }

    #[test]
    fn rejects_what_the_processor_cannot_run() {
        for (image, device) in [
            ("linux/arm/v7", "linux/arm/v6"),
            ("linux/arm/v7", "linux/arm64"),
            ("linux/amd64/v3", "linux/amd64"),
            ("windows/amd64", "linux/amd64"),
            ("unknown/unknown", "linux/amd64"),
            ("linux/arm/neon", "linux/arm/v7"),
        ] {
            assert_eq!(platform(image).suits(&platform(device)), None, "{image} on {device}");
        }
    }

    #[test]
    fn rejects_texts_that_are_not_platforms() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "linux/é"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
