//! Which images this device can run.
//!
//! Names the running machine in the words of image indexes (GOOS, GOARCH, variant). What the processor can do is asked
//! of the kernel, not of the build: a 32-bit agent on a 64-bit kernel still runs 32-bit images only.

use pki::oci::Platform;

/// The platform of this device.
pub fn detect() -> Platform {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    describe(std::env::consts::ARCH, &machine)
}

/// `target` is what the agent was built for, `machine` what the kernel calls the processor.
fn describe(target: &str, machine: &str) -> Platform {
    let (architecture, variant) = match target {
        "x86_64" => ("amd64", None),
        "x86" => ("386", None),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some(arm_variant(machine))),
        "powerpc64" => ("ppc64le", None),
        "loongarch64" => ("loong64", None),
        other => (other, None),
    };
    Platform::new("linux", architecture, variant)
}

/// containerd `platforms/cpuinfo_linux.go`: the variant by the machine's name; a 64-bit processor runs 32-bit v8 code.
fn arm_variant(machine: &str) -> &'static str {
    match machine {
        name if name.starts_with("aarch64") || name.starts_with("armv8") => "v8",
        name if name.starts_with("armv7") => "v7",
        name if name.starts_with("armv6") => "v6",
        name if name.starts_with("armv5") => "v5",
        // Nothing newer than what every processor of this build can run.
        _ => "v6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_boards_as_image_indexes_do() {
        for (target, machine, expected) in [
            ("x86_64", "x86_64", "linux/amd64"),
            ("aarch64", "aarch64", "linux/arm64/v8"),
            ("arm", "armv7l", "linux/arm/v7"),
            ("arm", "armv6l", "linux/arm/v6"),
            ("arm", "aarch64", "linux/arm/v8"),
            ("riscv64", "riscv64", "linux/riscv64"),
        ] {
            assert_eq!(describe(target, machine).to_string(), expected);
        }
    }

    #[test]
    fn knows_this_machine() {
        assert_eq!(detect().os, "linux");
    }
}
