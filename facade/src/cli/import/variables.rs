//! Variables of compose files (compose specification, "Interpolation"). ◇
//!
//! Values come from the command line alone: taken from whoever's environment this happens to run in, the same file would
//! name other images on another machine.

use std::collections::BTreeMap;

/// Deepest nesting of defaults within defaults.
const MAX_DEPTH: usize = 8;

/// Fills in the variables of a text: `$NAME`, `${NAME}`, `${NAME:-default}` and its like, `$$`.
pub(super) fn fill(text: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    fill_at(text, values, 0)
}

fn fill_at(text: &str, values: &BTreeMap<String, String>, depth: usize) -> Result<String, String> {
    if depth > MAX_DEPTH {
        return Err("its variables are nested too deeply".to_owned());
    }
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        filled.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            filled.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let end = closing(after).ok_or_else(|| format!("{text:?} has a ${{ without its }}"))?;
            let (inner, after) = (after.get(..end), after.get(end + 1..));
            filled.push_str(&braced(inner.unwrap_or_default(), values, depth)?);
            rest = after.unwrap_or_default();
        } else {
            let end = after.find(|c: char| !is_name(c)).unwrap_or(after.len());
            let (name, after) = after.split_at_checked(end).unwrap_or((after, ""));
            if name.is_empty() {
                return Err(format!("{text:?} has a $ that begins no variable (write $$ for the character)"));
            }
            filled.push_str(values.get(name).ok_or_else(|| no_value(name))?);
            rest = after;
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Where the brace closes that has been opened.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1_usize;
    for (place, character) in text.char_indices() {
        match character {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(place);
        }
    }
    None
}

fn braced(inner: &str, values: &BTreeMap<String, String>, depth: usize) -> Result<String, String> {
    let end = inner.find(|c: char| !is_name(c)).unwrap_or(inner.len());
    let (name, operator) = inner.split_at_checked(end).unwrap_or((inner, ""));
    if name.is_empty() {
        return Err(format!("${{{inner}}} names no variable"));
    }
    let value = values.get(name);
    let present = value.filter(|value| !value.is_empty());
    let fill = |text: &str| fill_at(text, values, depth + 1);
    if operator.is_empty() {
        return value.cloned().ok_or_else(|| no_value(name));
    }
    let (counts, word) = match operator.strip_prefix(':') {
        Some(word) => (present, word),
        None => (value, operator),
    };
    if let Some(default) = word.strip_prefix('-') {
        return counts.cloned().map_or_else(|| fill(default), Ok);
    }
    if let Some(message) = word.strip_prefix('?') {
        return counts.cloned().ok_or_else(|| match message {
            "" => no_value(name),
            message => format!("{name}: {message} (give it with --set {name}=…)"),
        });
    }
    if let Some(alternative) = word.strip_prefix('+') {
        return counts.map_or_else(|| Ok(String::new()), |_| fill(alternative));
    }
    Err(format!("${{{inner}}} is not a way to write a variable (for example ${{{name}:-default}})"))
}

fn no_value(name: &str) -> String {
    format!("{name} has no value: give it with --set {name}=…, or write a default (${{{name}:-…}})")
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> BTreeMap<String, String> {
        [("TAG", "v1"), ("EMPTY", "")].into_iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn fills_in_as_compose_does() {
        for (text, expected) in [
            ("app", "app"),
            ("app:$TAG", "app:v1"),
            ("app:${TAG}", "app:v1"),
            ("app:${TAG:-v2}", "app:v1"),
            ("app:${NONE:-v2}", "app:v2"),
            ("app:${EMPTY:-v2}", "app:v2"),
            ("app:v${EMPTY-2}", "app:v"),
            ("app${TAG:+:other}", "app:other"),
            ("app${NONE:+:other}", "app"),
            ("app:${NONE:-${TAG}}", "app:v1"),
            ("app:${NONE:-${OTHER:-v3}}", "app:v3"),
            ("app:${TAG:?say which}", "app:v1"),
            ("$TAG/$TAG-x", "v1/v1-x"),
            ("a$$b", "a$b"),
        ] {
            assert_eq!(fill(text, &values()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_has_no_value_and_says_how_to_give_it_one() {
        for text in ["app:$NONE", "app:${NONE}", "app:${NONE:?}", "app:${EMPTY:?}", "app:${NONE?say which}"] {
            let refused = fill(text, &values()).unwrap_err();
            assert!(refused.contains("--set "), "{text}: {refused}");
        }
        for text in ["app:${TAG", "app:$", "app:${}", "app:${:-x}", "app:${TAG/x}", "a$.b"] {
            assert!(fill(text, &values()).is_err(), "{text}");
        }
        let deep = format!("{}x{}", "${A:-".repeat(50), "}".repeat(50));
        assert!(fill(&deep, &values()).unwrap_err().contains("deeply"));
    }
}
