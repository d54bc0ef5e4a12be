//! The OpenAPI document: what every operation has in common is said here, once.
//!
//! The handlers describe what is their own. What the gate, the readers of paths and bodies and [`Problem`] itself answer
//! is the same for all of them, and is added to the description of each.

use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response, ResponseBuilder};

use super::problem;

/// What any operation may be answered before, or instead of, its own answers.
const REFUSALS: [(&str, &str); 6] = [
    ("400", "The request cannot be read"),
    ("401", "No valid token came with the request"),
    ("403", "The token's role does not allow this"),
    ("429", "Too many requests without a valid token"),
    ("500", "The facade failed; its log says why"),
    ("503", "The facade cannot do this now"),
];

/// Completes the document that the handlers' descriptions make.
pub(super) fn complete(document: &mut OpenApi) {
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_with(Default::default).add_security_scheme("token", bearer);
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            add_refusals(operation);
        }
    }
}

fn add_refusals(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    for (status, description) in REFUSALS {
        let answer = || ResponseBuilder::new().description(description).build().into();
        responses.entry(status.to_owned()).or_insert_with(answer);
    }
    // Whatever is refused is refused with a problem document, and a problem document says so in its type.
    for (status, response) in responses {
        if let RefOr::T(response) = response
            && !status.starts_with('2')
        {
            say_problem(status, response);
        }
    }
}

fn say_problem(status: &str, response: &mut Response) {
    let known = REFUSALS.iter().find(|(refusal, _)| *refusal == status);
    if let (true, Some((_, description))) = (response.description.is_empty(), known) {
        (*description).clone_into(&mut response.description);
    }
    response.content.clear();
    let schema = Ref::from_schema_name("Problem");
    response.content.insert(problem::MEDIA_TYPE.to_owned(), Content::new(Some(schema)).into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations() -> Vec<(String, serde_json::Value)> {
        let document = serde_json::to_value(crate::api::openapi()).unwrap();
        let mut operations = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                operations.push((format!("{method} {path}"), operation.clone()));
            }
        }
        assert!(operations.len() > 30);
        operations
    }

    #[test]
    fn every_operation_is_described_with_its_refusals() {
        for (name, operation) in operations() {
            let answers = operation["responses"].as_object().unwrap();
            for (status, _) in REFUSALS {
                assert!(answers.contains_key(status), "{name} {status}");
            }
            assert!(operation["summary"].is_string(), "{name}");
        }
    }

    #[test]
    fn every_refusal_is_described_as_the_problem_document_that_it_is() {
        for (name, operation) in operations() {
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let content = answer["content"].as_object().unwrap();
                let types: Vec<&String> = content.keys().collect();
                let expected: &[&str] = match name.as_str() {
                    _ if !status.starts_with('2') => &[problem::MEDIA_TYPE],
                    "get /api/v1/events" => &["application/json", "text/event-stream"],
                    _ => &["application/json"],
                };
                assert_eq!(types, expected, "{name} {status}");
            }
        }
    }
}
