//! Canonical JSON: the bytes that are signed and that key ids are computed over.
//!
//! This is OLPC canonical JSON as TUF uses it, not RFC 8785: keys in code point order, no white space, and strings written
//! raw with only `"` and `\` escaped. Numbers are integers that every reader holds exactly; anything else is refused, never
//! rounded.

use serde_json::{Map, Number, Value};
use thiserror::Error;

/// Largest magnitude of an integer that every JSON reader holds exactly.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// Why a value has no canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CanonicalError {
    /// The number has a fraction or an exponent, or is too large to be an integer.
    #[error("number {0} is not an integer")]
    NotAnInteger(String),
    /// The integer is beyond what every reader holds exactly.
    #[error("integer {0} is beyond 2^53 - 1")]
    OutOfRange(String),
}

/// The canonical bytes of `value`.
pub fn to_bytes(value: &Value) -> Result<Vec<u8>, CanonicalError> {
    let mut out = Vec::new();
    write_value(&mut out, value)?;
    Ok(out)
}

/// The canonical bytes of an object.
pub fn object_to_bytes(object: &Map<String, Value>) -> Result<Vec<u8>, CanonicalError> {
    let mut out = Vec::new();
    write_object(&mut out, object)?;
    Ok(out)
}

fn write_value(out: &mut Vec<u8>, value: &Value) -> Result<(), CanonicalError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => write_integer(out, number)?,
        Value::String(text) => write_string(out, text),
        Value::Array(items) => write_array(out, items)?,
        Value::Object(object) => write_object(out, object)?,
    }
    Ok(())
}

fn write_integer(out: &mut Vec<u8>, number: &Number) -> Result<(), CanonicalError> {
    let magnitude = match (number.as_u64(), number.as_i64()) {
        (Some(positive), _) => positive,
        (None, Some(negative)) => negative.unsigned_abs(),
        (None, None) => return Err(CanonicalError::NotAnInteger(number.to_string())),
    };
    if magnitude > MAX_INTEGER {
        return Err(CanonicalError::OutOfRange(number.to_string()));
    }
    out.extend_from_slice(number.to_string().as_bytes());
    Ok(())
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for &byte in text.as_bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

fn write_array(out: &mut Vec<u8>, items: &[Value]) -> Result<(), CanonicalError> {
    out.push(b'[');
    for (position, item) in items.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write_value(out, item)?;
    }
    out.push(b']');
    Ok(())
}

fn write_object(out: &mut Vec<u8>, object: &Map<String, Value>) -> Result<(), CanonicalError> {
    // The order of a serde_json map depends on a feature that any crate of the build may turn on, so it is made here.
    // UTF-8 sorts by bytes as it does by code points.
    let mut entries: Vec<_> = object.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    out.push(b'{');
    for (position, (key, value)) in entries.into_iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write_string(out, key);
        out.push(b':');
        write_value(out, value)?;
    }
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn canonical(value: &Value) -> String {
        String::from_utf8(to_bytes(value).unwrap()).unwrap()
    }

    // Vectors computed with securesystemslib 1.6.0 (`formats.encode_canonical`).
    #[test]
    fn writes_what_securesystemslib_writes() {
        for (value, expected) in [
            (json!({}), "{}"),
            (json!([1, -2, 0, true, false, null]), "[1,-2,0,true,false,null]"),
            (json!({"b": 1, "a": {"d": [], "c": ""}}), r#"{"a":{"c":"","d":[]},"b":1}"#),
            (json!({"é": "ü", "z": "\u{1f600}", "Z": 1}), "{\"Z\":1,\"z\":\"\u{1f600}\",\"é\":\"ü\"}"),
            (json!("a\"b\\c/d"), r#""a\"b\\c/d""#),
            (json!("line\nbreak\u{0}\t\u{7f}"), "\"line\nbreak\u{0}\t\u{7f}\""),
            (json!({"\u{ffff}": 1, "\u{10000}": 2}), "{\"\u{ffff}\":1,\"\u{10000}\":2}"),
        ] {
            assert_eq!(canonical(&value), expected);
        }
    }

    #[test]
    fn does_not_normalise_text() {
        // "e" and a combining accent stay two characters; a signer that composed them would sign other bytes.
        assert_eq!(canonical(&json!("e\u{301}")), "\"e\u{301}\"");
    }

    #[test]
    fn rejects_numbers_that_are_not_integers() {
        for text in ["1.0", "1e3", "-0.5", "1e300", "18446744073709551616"] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(matches!(to_bytes(&value), Err(CanonicalError::NotAnInteger(_))), "{text}");
        }
    }

    #[test]
    fn rejects_integers_that_not_every_reader_holds() {
        assert_eq!(canonical(&json!(9_007_199_254_740_991_i64)), "9007199254740991");
        assert_eq!(canonical(&json!(-9_007_199_254_740_991_i64)), "-9007199254740991");
        for value in [json!(9_007_199_254_740_992_i64), json!(-9_007_199_254_740_992_i64), json!(u64::MAX)] {
            assert!(matches!(to_bytes(&value), Err(CanonicalError::OutOfRange(_))), "{value}");
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-(1_i64 << 53) + 1..(1_i64 << 53)).prop_map(Value::from),
            "[ -~é\u{301}]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[ -~é]{0,6}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        // Without control characters canonical JSON is JSON: reading it back gives the value, and writing that gives the bytes.
        #[test]
        fn reads_back_as_what_was_written(value in any_value()) {
            let bytes = to_bytes(&value).unwrap();
            let again = crate::json::parse(&bytes, 1 << 20).unwrap();
            prop_assert_eq!(&again, &value);
            prop_assert_eq!(to_bytes(&again).unwrap(), bytes);
        }

        #[test]
        fn different_values_have_different_bytes(one in any_value(), other in any_value()) {
            prop_assert_eq!(one == other, to_bytes(&one).unwrap() == to_bytes(&other).unwrap());
        }
    }
}
