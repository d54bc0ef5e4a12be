//! The operator API, from the document that describes it to programs.

use std::fmt::Write as _;

use serde_json::Value;

use super::cell;

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Every operation with its parameters, its body and its answers.
pub(crate) fn page() -> String {
    let document = serde_json::to_value(facade::api::openapi()).expect("a document");
    let mut text = "# The operator API\n\nJSON behind the operator door. Programs read the same as OpenAPI 3.1 at `/api/openapi.json`. \
                    Every operation wants `Authorization: Bearer TOKEN`; every refusal is a problem document (see errors.md).\n"
        .to_owned();
    for (path, operations) in document["paths"].as_object().into_iter().flatten() {
        for method in METHODS {
            if let Some(operation) = operations.get(method) {
                describe(&mut text, &document, method, path, operation);
            }
        }
    }
    text
}

fn describe(text: &mut String, document: &Value, method: &str, path: &str, operation: &Value) {
    let _ = write!(text, "\n## `{} {path}`\n\n", method.to_uppercase());
    for part in ["summary", "description"] {
        if let Some(said) = operation[part].as_str() {
            let _ = writeln!(text, "{}\n", said.trim());
        }
    }
    let mut rows: Vec<String> = Vec::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let (name, place) = (words(&parameter["name"]), words(&parameter["in"]));
        let needed = needed(parameter["required"].as_bool() == Some(true));
        rows.push(format!("| `{name}` | {place} | {needed} | {} |", cell(words(&parameter["description"]))));
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    let schema = resolve(document, body);
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let needed = needed(required.contains(&name.as_str()));
        rows.push(format!("| `{name}` | body | {needed} | {} |", cell(words(&field["description"]))));
    }
    if !rows.is_empty() {
        let _ = write!(
            text,
            "| name | where | | what it says |\n| --- | --- | --- | --- |\n{}\n\n",
            rows.join("\n")
        );
    }
    let _ = write!(text, "| answer | when | body |\n| --- | --- | --- |\n");
    for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
        let kinds = answer["content"].as_object().into_iter().flatten();
        let bodies: Vec<String> = kinds.map(|(kind, content)| body_name(kind, &content["schema"])).collect();
        let _ =
            writeln!(text, "| {status} | {} | {} |", cell(words(&answer["description"])), bodies.join(", "));
    }
}

fn body_name(kind: &str, schema: &Value) -> String {
    match schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
        Some(name) => format!("`{name}`"),
        None => kind.to_owned(),
    }
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str().and_then(|name| name.strip_prefix('#')) {
        Some(pointer) => document.pointer(pointer).unwrap_or(schema),
        None => schema,
    }
}

fn needed(needed: bool) -> &'static str {
    if needed { "required" } else { "optional" }
}

fn words(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
