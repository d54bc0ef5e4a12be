//! Which key in which PKCS#11 token, as RFC 7512 writes it.
//!
//! `pkcs11:token=drayage;object=device?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/device-agent/pin`.
//! With `id` it is one key that somebody else made, and that is neither replaced nor removed. Without, the agent makes a
//! key of that name for each certificate and tells them apart by ids of its own. A PIN is never in the text.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// What the ids of keys made by the agent begin with.
const OWN: &[u8] = b"drayage:";
const RANDOM_BYTES: usize = 8;
const MAX_BYTES: usize = 1024;

/// The text names no key in a token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0} (for example pkcs11:token=LABEL;object=device?module-path=/usr/lib/libtpm2_pkcs11.so.1&pin-source=file:/PATH)"
)]
pub struct UriError(String);

/// A key in a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUri {
    token: Option<String>,
    serial: Option<String>,
    object: String,
    id: Option<Vec<u8>>,
    module: PathBuf,
    pin_source: Option<PathBuf>,
}

impl TokenUri {
    /// The label of the token; any token where there is none.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The serial number of the token; any token where there is none.
    pub fn serial(&self) -> Option<&str> {
        self.serial.as_deref()
    }

    /// The label of the key.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// The id of the key (`CKA_ID`).
    pub fn id(&self) -> Option<&[u8]> {
        self.id.as_deref()
    }

    /// The library that speaks to the token.
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// The file with the PIN of the token.
    pub fn pin_source(&self) -> Option<&Path> {
        self.pin_source.as_deref()
    }

    /// Whether the agent made the key, and so may remove it.
    pub fn is_own(&self) -> bool {
        self.id.as_ref().is_some_and(|id| is_own(id))
    }

    /// The name of a key that does not exist yet; where the id is given, that key itself.
    pub(super) fn with_new_id(&self) -> Result<Self, getrandom::Error> {
        if self.id.is_some() {
            return Ok(self.clone());
        }
        let mut random = [0; RANDOM_BYTES];
        getrandom::fill(&mut random)?;
        Ok(Self { id: Some([OWN, &random].concat()), ..self.clone() })
    }

    /// Whether this key is one of those that `place` stands for.
    pub(super) fn is_in(&self, place: &Self) -> bool {
        let id = match &place.id {
            Some(id) => self.id.as_ref() == Some(id),
            None => self.is_own(),
        };
        id && self.token == place.token && self.serial == place.serial && self.object == place.object
    }

    /// The same key, reached as `place` says.
    pub(super) fn reached_as(self, place: &Self) -> Self {
        Self { module: place.module.clone(), pin_source: place.pin_source.clone(), ..self }
    }
}

/// Whether an id is one that the agent gave.
pub(super) fn is_own(id: &[u8]) -> bool {
    id.len() == OWN.len() + RANDOM_BYTES && id.starts_with(OWN)
}

impl FromStr for TokenUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let error = |problem: &str| UriError(problem.to_owned());
        if text.len() > MAX_BYTES {
            return Err(error("the name of the key is too long"));
        }
        let rest = text
            .strip_prefix("pkcs11:")
            .ok_or_else(|| error("the name of a key in a token begins with pkcs11:"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut token, mut serial, mut object, mut id) = (None, None, None, None);
        let (mut module, mut pin_source) = (None, None);
        let parts = path.split(';').chain(query.split('&')).filter(|part| !part.is_empty());
        for part in parts {
            let (name, value) = part.split_once('=').ok_or_else(|| error("an attribute has no value"))?;
            let bytes = decode(value)
                .ok_or_else(|| UriError(format!("{name} is not percent-encoded as it should be")))?;
            if name == "id" {
                set(&mut id, name, bytes)?;
                continue;
            }
            let value = String::from_utf8(bytes).map_err(|_| UriError(format!("{name} is not UTF-8")))?;
            match name {
                "token" => set(&mut token, name, value)?,
                "serial" => set(&mut serial, name, value)?,
                "object" => set(&mut object, name, value)?,
                "type" if value == "private" => {}
                "module-path" => set(&mut module, name, PathBuf::from(value))?,
                "pin-source" => {
                    let path = value.strip_prefix("file:").unwrap_or(&value);
                    let path = path.strip_prefix("//").unwrap_or(path);
                    set(&mut pin_source, name, PathBuf::from(path))?;
                }
                "pin-value" => {
                    return Err(error(
                        "a PIN does not belong here: put it into a file and name that with pin-source=file:PATH",
                    ));
                }
                _ => {
                    return Err(UriError(format!(
                        "{name} is not known here (token, serial, object, id, module-path, pin-source)"
                    )));
                }
            }
        }
        let module: PathBuf =
            module.ok_or_else(|| error("module-path is missing: the library that speaks to the token"))?;
        let object = object.ok_or_else(|| error("object is missing: the label of the key"))?;
        let absolute = |path: &Path| path.is_absolute();
        if !absolute(&module) || !pin_source.as_deref().is_none_or(absolute) {
            return Err(error("module-path and pin-source are absolute paths"));
        }
        Ok(Self { token, serial, object, id, module, pin_source })
    }
}

fn set<T>(place: &mut Option<T>, name: &str, value: T) -> Result<(), UriError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UriError(format!("{name} occurs twice"))),
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.extend(data_encoding::HEXLOWER_PERMISSIVE.decode(&digits).ok()?);
    }
    Some(bytes)
}

fn encode(f: &mut fmt::Formatter<'_>, bytes: &[u8], plain: impl Fn(u8) -> bool) -> fmt::Result {
    for byte in bytes {
        if plain(*byte) {
            write!(f, "{}", char::from(*byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte);
        f.write_str("pkcs11:")?;
        for (name, value) in [("token", &self.token), ("serial", &self.serial)] {
            if let Some(value) = value {
                write!(f, "{name}=")?;
                encode(f, value.as_bytes(), plain)?;
                f.write_str(";")?;
            }
        }
        f.write_str("object=")?;
        encode(f, self.object.as_bytes(), plain)?;
        if let Some(id) = &self.id {
            f.write_str(";id=")?;
            encode(f, id, |_| false)?;
        }
        f.write_str("?module-path=")?;
        encode(f, self.module.as_os_str().as_encoded_bytes(), plain)?;
        if let Some(path) = &self.pin_source {
            f.write_str("&pin-source=file:")?;
            encode(f, path.as_os_str().as_encoded_bytes(), plain)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "pkcs11:token=my%20board;object=device?module-path=/usr/lib/p11.so&pin-source=file:/etc/pin";

    #[test]
    fn reads_what_it_writes() {
        for text in [
            GOOD,
            "pkcs11:object=device?module-path=/usr/lib/p11.so",
            "pkcs11:serial=0a1b;object=d;id=%01%FF?module-path=/p11.so",
        ] {
            let uri: TokenUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), text);
        }
        let uri: TokenUri = GOOD.parse().unwrap();
        assert_eq!((uri.token(), uri.object()), (Some("my board"), "device"));
        assert_eq!(uri.pin_source(), Some(Path::new("/etc/pin")));
        let slashes: TokenUri =
            "pkcs11:object=d?module-path=/p.so&pin-source=file:///etc/pin".parse().unwrap();
        assert_eq!(slashes.pin_source(), Some(Path::new("/etc/pin")));
    }

    #[test]
    fn tells_its_own_keys_from_those_of_others() {
        let place: TokenUri = GOOD.parse().unwrap();
        let made = place.with_new_id().unwrap();
        assert!(made.is_own() && made.is_in(&place) && !place.is_own());
        assert_ne!(place.with_new_id().unwrap(), made);
        let given: TokenUri =
            "pkcs11:token=my%20board;object=device;id=%01?module-path=/p11.so".parse().unwrap();
        assert!(!given.is_own() && !given.is_in(&place) && !made.is_in(&given));
        assert_eq!(given.with_new_id().unwrap(), given);
        let moved: TokenUri = GOOD.replace("p11.so", "new.so").parse().unwrap();
        assert_eq!(made.clone().reached_as(&moved).module(), Path::new("/usr/lib/new.so"));
    }

    #[test]
    fn says_what_is_wrong_and_takes_no_pin() {
        for (text, word) in [
            ("file:/key", "begins with pkcs11:"),
            ("pkcs11:object=d", "module-path is missing"),
            ("pkcs11:token=t?module-path=/p.so", "object is missing"),
            ("pkcs11:object=d?module-path=p.so", "absolute"),
            ("pkcs11:object=d;object=e?module-path=/p.so", "twice"),
            ("pkcs11:object=%zz?module-path=/p.so", "percent-encoded"),
            ("pkcs11:object?module-path=/p.so", "no value"),
            ("pkcs11:object=d;color=red?module-path=/p.so", "color is not known"),
            ("pkcs11:object=d?module-path=/p.so&pin-value=1234", "a PIN does not belong here"),
        ] {
            let error = text.parse::<TokenUri>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
            assert!(!error.contains("1234"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn reads_any_text_without_panic(text in "(pkcs11:)?\\PC{0,60}") {
            let _ = text.parse::<TokenUri>();
        }
    }
}
