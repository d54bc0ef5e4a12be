//! Randomness for jitter and nonces. Keys get theirs from the cryptography libraries.

/// A random number; the same one again where the system has none to give, which costs the spread, and the nonce of a
/// report its worth, and nothing else.
pub fn number() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}
