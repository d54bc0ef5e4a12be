//! Hostile metadata by the thousand: a whole repository, and every way to spoil one file of it.
//!
//! Whatever comes, the client refuses it or is left exactly as the honest files leave it; and what a thief signs with the
//! keys of one role never makes it believe what the rules forbid.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fixture::*;
use super::names::FileName;
use super::publish::Successor as _;
use super::refresh::Stored;
use super::roles::{FileMeta, Flaw, RoleKeys, Scope, Target, Targets};
use super::{MetadataError, TrustedSet};

/// What a device looks for, and the role that lists it.
const SOUGHT: [(&str, &str); 4] =
    [("app/web", "targets"), ("team/web", "team"), ("team/a/web", "team-a"), ("bin/web", "bin")];

/// The files that a device with the first root asks for, in this order.
const FILES: [&str; 9] = [
    "2.root.json",
    "3.root.json",
    "timestamp.json",
    "1.snapshot.json",
    "1.targets.json",
    "1.team.json",
    "1.team-a.json",
    "1.bin.json",
    "1.bin-2.json",
];

/// The role whose file this is.
fn role_of(file: &str) -> &str {
    let stem = file.strip_suffix(".json").unwrap();
    stem.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
}

/// Three roots, four top-level roles, delegations by pattern (two levels deep) and by hash. The lists have no hashes, so
/// that it is the signatures and the rules that have to refuse.
fn repository() -> Repository {
    let mut repository = Repository::new();
    let list = |document: &mut Targets, at: usize| {
        document.targets.insert(path(SOUGHT[at].0), target(SOUGHT[at].1.as_bytes()));
    };
    list(&mut repository.targets, 0);
    delegate(&mut repository.targets, "team", &delegated_key("team"), &["team/*", "team/*/*"]);
    delegate(&mut repository.targets, "bin-2", &delegated_key("bin-2"), &[]);
    delegate(&mut repository.targets, "bin", &delegated_key("bin"), &[]);
    let bins = &mut repository.targets.delegations.as_mut().unwrap().roles;
    let all = |digits: &str| Scope::PathHashPrefixes(digits.chars().map(String::from).collect());
    bins[1].scope = all("0123456789abcdef");
    bins[2].scope = all("0123456789abcdef");
    bins[2].terminating = true;
    let (mut team, mut inner, mut bin) = (empty_targets(), empty_targets(), empty_targets());
    list(&mut team, 1);
    delegate(&mut team, "team-a", &delegated_key("team-a"), &["team/a/*"]);
    list(&mut inner, 2);
    list(&mut bin, 3);
    for (role, document) in [("team", &team), ("team-a", &inner), ("bin", &bin), ("bin-2", &empty_targets())]
    {
        repository.put_delegated(role, document, &[delegated_key(role)]);
    }
    repository.publish_bare();
    for _ in 0..2 {
        repository.publish_next_root();
    }
    repository
}

/// Everything that a device came to believe.
#[derive(Debug, PartialEq)]
struct Believed {
    versions: [u64; 4],
    found: Vec<Option<(String, Target)>>,
}

type Files = BTreeMap<String, Vec<u8>>;

fn believed(client: &mut Client, files: &Files) -> Result<Believed, MetadataError> {
    let mut set = client.refresh_at(files, time(NOW))?;
    let mut found = Vec::new();
    for (sought, _) in SOUGHT {
        let target = client.seek(&mut set, files, sought)?;
        found.push(target.map(|target| (target.role().to_owned(), target.target().clone())));
    }
    Ok(Believed { versions: versions(&set), found })
}

fn versions(set: &TrustedSet) -> [u64; 4] {
    [set.root().version, set.timestamp().version, set.snapshot().version, set.targets().version]
}

/// What a device believes when one file is served in other bytes.
fn served(repository: &Repository, file: &str, bytes: Vec<u8>) -> (Client, Result<Believed, MetadataError>) {
    let mut files = repository.files.clone();
    files.insert(file.to_owned(), bytes);
    let mut client = Client::new(repository);
    let outcome = believed(&mut client, &files);
    (client, outcome)
}

/// Every value that a member could wrongly have.
fn wrong_values() -> Vec<Value> {
    let long = "x".repeat(70_000);
    let mut deep = json!(1);
    for _ in 0..200 {
        deep = json!([deep]);
    }
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(2),
        json!(1.5),
        json!(9_007_199_254_740_993_u64),
        json!(9_223_372_036_854_775_808_u64),
        json!(""),
        json!("x"),
        json!("../../etc/passwd"),
        json!("2026-13-01T00:00:00Z"),
        json!([]),
        json!([null]),
        json!({}),
        json!({"": null}),
        json!(long),
        deep,
    ]
}

fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(items) => items.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    for (name, child) in children {
        let pointer = format!("{at}/{name}");
        pointers(child, &pointer, found);
        found.push(pointer);
    }
}

fn without(file: &Value, pointer: &str) -> Value {
    let mut file = file.clone();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match file.pointer_mut(parent).unwrap() {
        Value::Object(map) => drop(map.remove(&name.replace("~1", "/").replace("~0", "~"))),
        Value::Array(items) => drop(items.remove(name.parse().unwrap())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    file
}

/// The file with one member changed or removed, in every way there is.
fn changed(file: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    pointers(file, "", &mut found);
    let mut variants = Vec::new();
    for pointer in found {
        variants.push((format!("without {pointer}"), without(file, &pointer)));
        for wrong in wrong_values() {
            let mut variant = file.clone();
            let label = format!("{pointer} = {}", wrong.to_string().chars().take(40).collect::<String>());
            *variant.pointer_mut(&pointer).unwrap() = wrong;
            variants.push((label, variant));
        }
    }
    variants.retain(|(_, variant)| variant != file);
    variants
}

/// The file with each member of its text written twice, cut at every so many bytes, flipped, wrapped and replaced.
fn mangled(repository: &Repository, file: &str) -> Vec<(String, Vec<u8>)> {
    let honest = &repository.files[file];
    let text = String::from_utf8(honest.clone()).unwrap();
    let mut variants: Vec<(String, Vec<u8>)> = Vec::new();
    for (at, _) in text.match_indices("\":") {
        let open = text[..at].rfind('"').unwrap();
        let key = &text[open..=at];
        for value in ["null", "0", "{}"] {
            let twice = format!("{}{key}:{value},{}", &text[..open], &text[open..]);
            variants.push((format!("{key} twice at {at}"), twice.into_bytes()));
        }
    }
    for cut in (0..honest.len()).step_by(honest.len() / 40 + 1) {
        variants.push((format!("cut at {cut}"), honest[..cut].to_vec()));
    }
    for at in (0..honest.len()).step_by(7) {
        let mut flipped = honest.clone();
        flipped[at] ^= 1 << (at % 7);
        variants.push((format!("flipped at {at}"), flipped));
    }
    for other in FILES.iter().filter(|other| **other != file) {
        variants.push((format!("replaced by {other}"), repository.files[*other].clone()));
    }
    for (label, before, after) in [
        ("a byte order mark", "\u{feff}", ""),
        ("more after it", "", "{}"),
        ("a comma after it", "", ","),
        ("a list around it", "[", "]"),
        ("blanks around it", " \n", "\n "),
    ] {
        variants.push((label.to_owned(), format!("{before}{text}{after}").into_bytes()));
    }
    variants.push(("nothing".to_owned(), Vec::new()));
    variants.push(("5 MiB of blanks".to_owned(), vec![b' '; 5 << 20]));
    variants
}

#[test]
fn whatever_is_done_to_a_file_it_is_refused_or_changes_nothing() {
    let repository = repository();
    let honest = believed(&mut Client::new(&repository), &repository.files).unwrap();
    assert_eq!(honest.versions, [3, 1, 1, 1]);
    let roles: Vec<&str> = honest.found.iter().map(|found| found.as_ref().unwrap().0.as_str()).collect();
    assert_eq!(roles, SOUGHT.map(|(_, role)| role));
    let (mut tried, mut harmless) = (0, 0);
    for file in FILES {
        let parsed: Value = serde_json::from_slice(&repository.files[file]).unwrap();
        let mut variants = mangled(&repository, file);
        let bytes = |(label, value)| (label, serde_json::to_vec(&value).unwrap());
        variants.extend(changed(&parsed).into_iter().map(bytes));
        for (label, bytes) in variants {
            tried += 1;
            let (mut client, outcome) = served(&repository, file, bytes);
            if let Ok(outcome) = outcome {
                assert_eq!(outcome, honest, "{file}: {label}");
                harmless += 1;
            }
            // Nothing that was refused stands in the way of the honest files.
            if tried % 16 == 0 {
                assert_eq!(believed(&mut client, &repository.files).unwrap(), honest, "{file}: {label}");
            }
        }
    }
    assert!(tried >= 5000, "{tried} hostile files");
    // Blanks around a file, and what is not signed.
    assert!(harmless * 20 < tried, "{harmless} of {tried} were taken");
}

#[test]
fn what_a_thief_signs_is_refused_or_keeps_to_the_rules() {
    let repository = repository();
    let honest = believed(&mut Client::new(&repository), &repository.files).unwrap();
    let mut tried = 0;
    for file in FILES {
        let role = role_of(file);
        let parsed: Value = serde_json::from_slice(&repository.files[file]).unwrap();
        for (label, signed) in changed(&parsed["signed"]) {
            let Some(bytes) = forged(&repository.key_of(role), &signed) else { continue };
            tried += 1;
            let (client, outcome) = served(&repository, file, bytes);
            let Ok(outcome) = outcome else { continue };
            // A role speaks only for itself: nothing that another role has signed may change.
            for (at, (_, lister)) in SOUGHT.iter().enumerate() {
                let (before, after) = (&honest.found[at], &outcome.found[at]);
                let own = *lister == role || role == "targets" || role == "root" || before == after;
                let hidden = after.is_none() && ["team", "bin-2"].contains(&role);
                assert!(own || hidden, "{file}: {label}: {before:?} became {after:?}");
            }
            demand_rules(&client.stored, &label);
        }
    }
    assert!(tried >= 1000, "{tried} stolen signatures");
}

/// What holds of everything that was stored, whoever signed it.
fn demand_rules(stored: &Stored, label: &str) {
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap()["signed"].clone();
    let root = read(&stored.root);
    for role in ["root", "timestamp", "snapshot", "targets"] {
        assert!(root["roles"][role]["threshold"].as_u64().unwrap() >= 1, "{label}");
    }
    let files = [&stored.timestamp, &stored.snapshot, &stored.targets];
    let files: Vec<Value> = files.into_iter().map(|file| read(file.as_ref().unwrap())).collect();
    for file in &files {
        assert!((1..=crate::canonical::MAX_INTEGER).contains(&file["version"].as_u64().unwrap()), "{label}");
        assert!(time(file["expires"].as_str().unwrap()) > time(NOW), "{label}");
    }
    assert_eq!(files[0]["meta"]["snapshot.json"]["version"], files[1]["version"], "{label}");
    assert_eq!(files[1]["meta"]["targets.json"]["version"], files[2]["version"], "{label}");
    for name in stored.delegated.keys() {
        assert!(!name.contains('/') && *name != String::from(FileName::current("root")), "{label}: {name}");
    }
}

/// One way to be refused, made in the repository for one role.
pub(super) type Case = (&'static str, fn(&mut Repository, &str), fn(&MetadataError) -> bool);

/// The classes of the published Uptane vectors that a client can meet in any role.
pub(super) const CASES: [Case; 15] = [
    (
        "unmet threshold: signed by a key of nobody",
        |repository, role| {
            let file = repository.file_of(role);
            let bytes = forged(&delegated_key("stranger"), &repository.read(&file)["signed"]).unwrap();
            repository.files.insert(file, bytes);
        },
        |error| matches!(error, MetadataError::UnmetThreshold { valid: 0, .. }),
    ),
    (
        "unmet threshold: one of two",
        |repository, role| repository.change_keys(role, |keys| keys["threshold"] = json!(2)),
        |error| matches!(error, MetadataError::UnmetThreshold { valid: 1, threshold: 2, .. }),
    ),
    (
        "unmet threshold: no signature at all",
        |repository, role| repository.change_signatures(role, Vec::clear),
        |error| matches!(error, MetadataError::UnmetThreshold { valid: 0, .. }),
    ),
    (
        "bad key id: a good signature under another id",
        |repository, role| {
            repository.change_signatures(role, |all| all[0]["keyid"] = json!("0".repeat(64)));
        },
        |error| matches!(error, MetadataError::UnmetThreshold { valid: 0, .. }),
    ),
    (
        "bad key id: no id at all",
        |repository, role| repository.change_signatures(role, |all| all[0]["keyid"] = json!("")),
        |error| matches!(error, MetadataError::UnmetThreshold { valid: 0, .. }),
    ),
    (
        "bad key id: a key listed under an id that is not its own",
        |repository, role| {
            let (listed, own) = ("0".repeat(64), repository.key_of(role).public().id().to_string());
            let delegator = delegator_of(role);
            repository.resign(delegator, |signed| {
                let text = signed.to_string().replace(&own, &listed);
                *signed = serde_json::from_str(&text).unwrap();
            });
        },
        |error| matches!(error, MetadataError::Flawed { source: Flaw::KeyId { .. }, .. }),
    ),
    (
        "illegal threshold: zero",
        |repository, role| repository.change_keys(role, |keys| keys["threshold"] = json!(0)),
        |error| matches!(error, MetadataError::Flawed { source: Flaw::Threshold(_), .. }),
    ),
    (
        "illegal threshold: negative",
        |repository, role| repository.change_keys(role, |keys| keys["threshold"] = json!(-1)),
        |error| matches!(error, MetadataError::Unreadable { .. }),
    ),
    (
        "non-unique signatures",
        |repository, role| repository.change_signatures(role, |all| all.push(all[0].clone())),
        |error| matches!(error, MetadataError::RepeatedSignature { .. }),
    ),
    (
        "non-unique keys of a role",
        |repository, role| {
            repository.change_keys(role, |keys| {
                let first = keys["keyids"][0].clone();
                keys["keyids"].as_array_mut().unwrap().push(first);
            });
        },
        |error| matches!(error, MetadataError::Flawed { source: Flaw::RepeatedKey { .. }, .. }),
    ),
    (
        "expired",
        |repository, role| repository.resign(role, |signed| signed["expires"] = json!(PAST)),
        |error| matches!(error, MetadataError::Expired { .. }),
    ),
    (
        "of another type",
        |repository, role| {
            let other = if role == "timestamp" { "snapshot" } else { "timestamp" };
            repository.resign(role, |signed| signed["_type"] = json!(other));
        },
        |error| matches!(error, MetadataError::WrongType { .. }),
    ),
    (
        "of another version than is due",
        |repository, role| {
            repository.resign(role, |signed| {
                let due = signed["version"].as_u64().unwrap();
                // There is none below a first timestamp; all others have one that is due.
                signed["version"] = if role == "timestamp" { json!(0) } else { json!(due + 1) };
            });
        },
        |error| {
            matches!(
                error,
                MetadataError::RootVersion { .. }
                    | MetadataError::MixAndMatch { .. }
                    | MetadataError::Flawed { source: Flaw::Version(0), .. }
            )
        },
    ),
    (
        "oversized",
        |repository, role| {
            let file = repository.file_of(role);
            repository.files.get_mut(&file).unwrap().resize(5 << 20, b' ');
        },
        |error| matches!(error, MetadataError::TooLong { .. }),
    ),
    (
        "withheld",
        |repository, role| drop(repository.files.remove(&repository.file_of(role))),
        // A root that is not there ends the walk; the timestamp is then judged by the root before.
        |error| matches!(error, MetadataError::Missing { .. }),
    ),
];

#[test]
fn every_class_of_the_uptane_vectors_is_refused_for_every_role_and_leaves_no_harm() {
    let honest_repository = repository();
    let honest_files = &honest_repository.files;
    let honest = believed(&mut Client::new(&honest_repository), honest_files).unwrap();
    let mut tried = 0;
    for role in ["root", "timestamp", "snapshot", "targets", "team"] {
        for (class, spoil, expected) in CASES {
            if (class, role) == ("withheld", "root") {
                continue;
            }
            let mut spoilt = repository();
            spoil(&mut spoilt, role);
            let mut client = Client::new(&spoilt);
            let refused = believed(&mut client, &spoilt.files).expect_err(&format!("{role}: {class}"));
            assert!(expected(&refused), "{role}: {class}: {refused:?}");
            tried += 1;
            // What the right keys have signed stays, as it must; after all else, the honest files are believed at once.
            let stays = |file: &str, stored: Option<&Vec<u8>>| {
                stored == spoilt.files.get(file) && stored != honest_files.get(file)
            };
            let stored = &client.stored;
            if !stays("3.root.json", Some(&stored.root)) && !stays("1.targets.json", stored.targets.as_ref())
            {
                let after = believed(&mut client, honest_files).unwrap();
                assert_eq!(after, honest, "{role}: {class}");
            }
        }
    }
    assert!(tried >= 74, "{tried}");
}

#[test]
fn a_publisher_is_not_believed_about_the_repository_of_another() {
    let mut repository = Repository::new();
    let digest = "a".repeat(64);
    let (own, other) =
        (format!("ghcr.io/acme/app@sha256:{digest}"), format!("ghcr.io/acme/web@sha256:{digest}"));
    delegate(&mut repository.targets, "publisher-ci", &key(9), &["ghcr.io/acme/app@sha256:*"]);
    repository.targets.delegations.as_mut().unwrap().roles[0].terminating = true;
    let mut publisher = empty_targets();
    for name in [&own, &other] {
        publisher.targets.insert(path(name), target(b"from ci"));
    }
    repository.put_delegated("publisher-ci", &publisher, &[key(9)]);
    repository.publish();
    let mut client = Client::new(&repository);
    let mut set = client.refresh(&repository).unwrap();
    assert!(client.seek(&mut set, &repository.files, &own).unwrap().is_some());
    assert!(client.seek(&mut set, &repository.files, &other).unwrap().is_none());
}

#[test]
fn a_fast_forward_by_stolen_online_keys_ends_with_one_rotation() {
    let mut repository = Repository::new();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    let honest = repository.files.clone();
    // The thief drives every version to the end of the scale.
    let top = crate::canonical::MAX_INTEGER;
    (repository.snapshot.version, repository.timestamp.version) = (top, top);
    repository.put_snapshot();
    repository.put_timestamp();
    client.refresh(&repository).unwrap();
    repository.files.clone_from(&honest);
    assert!(matches!(client.refresh(&repository), Err(MetadataError::Rollback { .. })));
    let new = key(30);
    repository.root = repository.root.successor(repository.root.expires);
    for role in [&mut repository.root.roles.timestamp, &mut repository.root.roles.snapshot] {
        *role = RoleKeys::new(&[new.public()], 1);
    }
    repository.root.keys.insert(new.public().id(), new.public().clone());
    repository.publish_root();
    (repository.timestamp_keys, repository.snapshot_keys) = (vec![key(30)], vec![key(30)]);
    (repository.snapshot.version, repository.timestamp.version) = (1, 1);
    repository.snapshot.meta.insert(
        "targets.json".to_owned(),
        FileMeta::of(repository.targets.version, &repository.files["1.targets.json"]),
    );
    repository.put_snapshot();
    repository.put_timestamp();
    let set = client.refresh(&repository).unwrap();
    assert_eq!(versions(&set), [2, 1, 1, 1]);
}
