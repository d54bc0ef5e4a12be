//! JSON as it may be trusted: one reading only.
//!
//! Two parsers that read one document differently are an attack (OCI type confusion, GHSA-qq97-vm5h-rrhg). So everything
//! that comes from the network and is later signed, verified or authorized by passes through [`parse`], which refuses
//! duplicate keys, deep nesting, byte order marks and trailing bytes.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use thiserror::Error;

/// Deepest nesting of arrays and objects that is read.
pub const MAX_DEPTH: usize = 32;

/// Why a document is not read.
#[derive(Debug, Error)]
pub enum JsonError {
    /// The document is longer than its kind may be.
    #[error("document is longer than {0} bytes")]
    TooLong(usize),
    /// Not JSON, or JSON that could be read in two ways.
    #[error("document is not acceptable JSON")]
    Malformed(#[source] serde_json::Error),
    /// Not JSON of the expected shape.
    #[error("document does not have the expected shape")]
    Shape(#[source] serde_json::Error),
}

/// Reads one JSON document of at most `max_bytes`.
pub fn parse(bytes: &[u8], max_bytes: usize) -> Result<Value, JsonError> {
    if bytes.len() > max_bytes {
        return Err(JsonError::TooLong(max_bytes));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Unambiguous { depth: 0 }.deserialize(&mut deserializer).map_err(JsonError::Malformed)?;
    deserializer.end().map_err(JsonError::Malformed)?;
    Ok(value)
}

/// Reads one JSON document of at most `max_bytes` into a typed value.
pub fn parse_as<T: serde::de::DeserializeOwned>(bytes: &[u8], max_bytes: usize) -> Result<T, JsonError> {
    serde_json::from_value(parse(bytes, max_bytes)?).map_err(JsonError::Shape)
}

#[derive(Clone, Copy)]
struct Unambiguous {
    depth: usize,
}

impl Unambiguous {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth + 1;
        if depth > MAX_DEPTH {
            return Err(E::custom(format_args!("nesting deeper than {MAX_DEPTH}")));
        }
        Ok(Self { depth })
    }
}

impl<'de> DeserializeSeed<'de> for Unambiguous {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element_seed(seed)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
            }
            let value = entries.next_value_seed(seed)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_serde_json_reads() {
        let text = r#"{"a":[1,-2,3.5,true,null,"x\u00e9"],"b":{"c":{}}}"#;
        assert_eq!(parse(text.as_bytes(), 1000).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn rejects_documents_with_more_than_one_reading() {
        for text in [
            r#"{"a":1,"a":2}"#,
            r#"{"x":{"a":1,"a":1}}"#,
            "\u{feff}{}",
            "{} {}",
            "{}x",
            "",
            r#"{"a":1e400}"#,
            r#"{"a":"\ud800"}"#,
        ] {
            assert!(matches!(parse(text.as_bytes(), 1000), Err(JsonError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn rejects_nesting_beyond_the_limit_without_recursing() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(MAX_DEPTH).as_bytes(), 1_000_000).is_ok());
        assert!(parse(nested(MAX_DEPTH + 1).as_bytes(), 1_000_000).is_err());
        assert!(parse(nested(100_000).as_bytes(), 1_000_000).is_err());
    }

    #[test]
    fn rejects_documents_over_their_limit() {
        assert!(matches!(parse(b"[1,2]", 4), Err(JsonError::TooLong(4))));
    }
}
