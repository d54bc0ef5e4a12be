//! How the programs say that something went wrong: exit codes, problem documents, codes under `/v2/`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{cell, source};

/// All of it, read from where it is decided.
pub(crate) fn page() -> String {
    let mut text =
        "# Errors\n\n## Exit codes of both programs\n\n| code | meaning |\n| --- | --- |\n".to_owned();
    for (code, meaning) in exit_codes() {
        let _ = writeln!(text, "| {code} | {} |", cell(&meaning));
    }
    text.push_str(
        "\n## Problems on the operator door\n\nRFC 9457 documents (`application/problem+json`): `type` is stable and for programs, \
         `detail` is for people, `field` names the field of the request that is wrong.\n\n| type | status | meaning |\n| --- | --- | --- |\n",
    );
    for (kind, (status, meaning)) in problems() {
        let _ = writeln!(text, "| `urn:drayage:problem:{kind}` | {status} | {} |", cell(&meaning));
    }
    text.push_str(
        "\n## Codes on the device door\n\nUnder `/v2/` as OCI error documents, elsewhere as problem documents with the code in lower case. \
         The code also stands in the reason phrase of the status line, which is what containerd prints.\n\n| code | status |\n| --- | --- |\n",
    );
    for (code, statuses) in device_codes() {
        let _ = writeln!(text, "| `{code}` | {} |", statuses.join(", "));
    }
    text
}

/// From the help of `facade`, which both programs keep to.
fn exit_codes() -> Vec<(String, String)> {
    let help = facade::cli::Cli::definition().get_after_help().map(ToString::to_string).unwrap_or_default();
    let line = help.lines().find_map(|line| line.strip_prefix("Exit codes: ")).expect("a line of exit codes");
    let pairs = line.split(", ").filter_map(|pair| pair.split_once(' '));
    pairs.map(|(code, meaning)| (code.to_owned(), meaning.to_owned())).collect()
}

/// Each constructor of `Problem`: its kind, its status and its description.
fn problems() -> BTreeMap<String, (String, String)> {
    let code = source("facade/src/api/problem.rs");
    let mut found = BTreeMap::new();
    let mut described = String::new();
    let mut rest = code.as_str();
    while let Some(line_end) = rest.find('\n') {
        let (line, after) = rest.split_at(line_end + 1);
        if let Some(words) = line.trim().strip_prefix("/// ") {
            words.trim_end_matches('.').clone_into(&mut described);
        }
        if line.contains("pub fn ") {
            let body = after.split("\n    }\n").next().unwrap_or_default();
            if let Some((status, kind)) = new_call(body) {
                found.insert(kind, (status, described.clone()));
            }
        }
        rest = after;
    }
    assert!(found.len() > 5, "the constructors of Problem are not where they were");
    found
}

/// The status and the kind in `Self::new(StatusCode::X, "kind", …)`.
fn new_call(body: &str) -> Option<(String, String)> {
    let (_, arguments) = body.split_once("Self::new(")?;
    let (_, status) = arguments.split_once("StatusCode::")?;
    let (status, rest) = status.split_once(',')?;
    let (_, kind) = rest.split_once('"')?;
    let (kind, _) = kind.split_once('"')?;
    Some((number(status.trim()), kind.to_owned()))
}

/// Every `(StatusCode::X, "CODE"` of the device door.
fn device_codes() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in ["facade/src/server/respond.rs", "facade/src/server.rs", "facade/src/api/device_door.rs"] {
        let code = source(file);
        let production = code.split("#[cfg(test)]").next().unwrap_or_default();
        for piece in production.split("StatusCode::").skip(1) {
            let Some((status, rest)) = piece.split_once(',') else { continue };
            let code = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'));
            let Some((code, _)) =
                code.filter(|(code, _)| code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'))
            else {
                continue;
            };
            let statuses = found.entry(code.to_owned()).or_default();
            let number = number(status.trim());
            if !statuses.contains(&number) {
                statuses.push(number);
                statuses.sort();
            }
        }
    }
    assert!(found.len() > 5, "the codes of the device door are not where they were");
    found
}

/// `NOT_FOUND` as 404.
fn number(name: &str) -> String {
    let all = (100..600).filter_map(|number| hyper::StatusCode::from_u16(number).ok());
    let wanted = name.replace('_', " ").to_ascii_lowercase();
    let same = |status: &hyper::StatusCode| {
        status
            .canonical_reason()
            .is_some_and(|reason| reason.replace('-', " ").to_ascii_lowercase() == wanted)
    };
    all.into_iter().find(same).expect(name).as_u16().to_string()
}
