//! The sealing keys at hand: one that seals, and older ones that only open. ◇
//!
//! As text they are lines, the newest first, so that one file holds them and one rename changes them: at no moment of a
//! change of keys is there a sealed secret without the key that opens it.

use pki::seal::{Context, SealError, Sealed, SealingKey, SealingKeyId};
use zeroize::Zeroizing;

/// Older keys that are kept. One is enough: secrets are sealed anew before the next change.
const MAX_KEYS: usize = 4;

/// The sealing keys at hand.
#[derive(Clone, Debug)]
pub struct Keyring {
    current: SealingKey,
    previous: Vec<SealingKey>,
}

impl Keyring {
    /// A single key.
    pub fn of(current: SealingKey) -> Self {
        Self {
            current,
            previous: Vec::new(),
        }
    }

    /// Reads keys, one a line, the one that seals first.
    pub fn from_text(text: &str) -> Result<Self, SealError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut keys = lines.map(SealingKey::from_text).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() || keys.len() > MAX_KEYS {
            return Err(SealError::NotAKey);
        }
        Ok(Self {
            current: keys.remove(0),
            previous: keys,
        })
    }

    /// The text form, for the key file and nothing else.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        for key in std::iter::once(&self.current).chain(&self.previous) {
            text.push_str(&key.to_text());
        }
        text
    }

    /// Another key in front; of the older ones only the one before stays.
    #[must_use]
    pub fn followed_by(&self, next: SealingKey) -> Self {
        Self {
            current: next,
            previous: vec![self.current.clone()],
        }
    }

    /// The key that seals.
    pub fn id(&self) -> SealingKeyId {
        self.current.id()
    }

    /// Whether a key is among them.
    pub fn has(&self, id: SealingKeyId) -> bool {
        std::iter::once(&self.current)
            .chain(&self.previous)
            .any(|key| key.id() == id)
    }

    /// Seals a secret for one place.
    pub fn seal(&self, secret: &[u8], context: Context<'_>) -> Result<Sealed, SealError> {
        self.current.seal(secret, context)
    }

    /// Opens a secret with the key that it names.
    pub fn open(&self, sealed: &Sealed, context: Context<'_>) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let key = self.previous.iter().find(|key| key.id() == sealed.key_id());
        key.unwrap_or(&self.current).open(sealed, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Context<'_> = Context {
        host: "ghcr.io",
        field: "credential",
        version: 1,
    };

    #[test]
    fn opens_what_the_key_before_sealed() {
        let old = Keyring::of(SealingKey::generate().unwrap());
        let sealed = old.seal(b"secret", PLACE).unwrap();
        let new = old.followed_by(SealingKey::generate().unwrap());
        let new = Keyring::from_text(&new.to_text()).unwrap();
        assert_eq!(new.open(&sealed, PLACE).unwrap().as_slice(), b"secret");
        assert_eq!(new.seal(b"secret", PLACE).unwrap().key_id(), new.id());
        assert!(new.has(old.id()) && !old.has(new.id()));
    }

    #[test]
    fn rejects_what_is_sealed_under_a_key_that_is_gone() {
        let first = Keyring::of(SealingKey::generate().unwrap());
        let sealed = first.seal(b"secret", PLACE).unwrap();
        let third = first
            .followed_by(SealingKey::generate().unwrap())
            .followed_by(SealingKey::generate().unwrap());
        assert!(matches!(
            third.open(&sealed, PLACE),
            Err(SealError::OtherKey { .. })
        ));
    }

    #[test]
    fn rejects_files_without_a_key() {
        let key = SealingKey::generate().unwrap();
        let broken = format!("{}not a key\n", key.to_text().as_str());
        for text in ["", "\n\n", "hunter2", broken.as_str()] {
            assert_eq!(
                Keyring::from_text(text).unwrap_err(),
                SealError::NotAKey,
                "{text:?}"
            );
        }
    }
}
