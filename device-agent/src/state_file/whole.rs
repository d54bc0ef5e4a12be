//! Whether a small file is what was written: after it stands the digest of all before it, as a JSON text of its own line.
//!
//! A card that loses power in mid-write, or loses bits with the years, must not make a device believe that the year is
//! 2826, or that a release ran which never did. Files of before this line are read as they are.

use pki::digest::Digest;

/// The bytes with their digest after them.
pub(super) fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let digest = Digest::sha256(&bytes);
    bytes.extend_from_slice(format!("\"{digest}\"\n").as_bytes());
    bytes
}

/// The bytes without their digest; `None` if they are not what was written.
pub(super) fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let start = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let (before, last) = text.split_at_checked(start)?;
    let Some(digest) = last.strip_prefix(b"\"").and_then(|last| last.strip_suffix(b"\"")) else {
        return Some(bytes);
    };
    let digest: Digest = std::str::from_utf8(digest).ok()?.parse().ok()?;
    (digest == Digest::sha256(before)).then_some(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flipped_bit_and_no_cut_goes_unnoticed() {
        let content = b"{\n  \"counter\": 41\n}\n".to_vec();
        let whole = sealed(content.clone());
        assert_eq!(unsealed(&whole), Some(&content[..]));
        // The line end after the digest says nothing.
        for bit in 0..(whole.len() - 1) * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = unsealed(&damaged).map(serde_json::from_slice::<serde_json::Value>);
            assert!(!matches!(read, Some(Ok(_))), "bit {bit}: {}", String::from_utf8_lossy(&damaged));
        }
        for length in content.len() + 1..whole.len() - 1 {
            let read = unsealed(&whole[..length]).map(serde_json::from_slice::<serde_json::Value>);
            assert!(!matches!(read, Some(Ok(_))), "cut at {length}");
        }
    }

    #[test]
    fn files_of_before_are_read() {
        assert_eq!(unsealed(b"{}\n"), Some(&b"{}\n"[..]));
        assert_eq!(unsealed(b""), Some(&b""[..]));
    }
}
