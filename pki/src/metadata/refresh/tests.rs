//! The client workflow against honest and hostile repositories: each refusal, and what is kept when an update fails.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::fixture::*;
use super::super::names::HashMismatch;
use super::super::publish::{Successor as _, add_signature};
use super::super::roles::{FileMeta, Flaw, RoleKeys};
use super::*;

/// Version of each stored top-level role; 0 where there is none.
fn versions(client: &Client) -> [u64; 4] {
    let version = |bytes: &[u8]| {
        let file: Value = serde_json::from_slice(bytes).unwrap();
        file["signed"]["version"].as_u64().unwrap()
    };
    let stored = &client.stored;
    let optional = |bytes: &Option<Vec<u8>>| bytes.as_deref().map_or(0, version);
    [
        version(&stored.root),
        optional(&stored.timestamp),
        optional(&stored.snapshot),
        optional(&stored.targets),
    ]
}

/// Gives a role of the root another key, and lets the repository sign with it.
fn rotate(repository: &mut Repository, role: &str, seed: u8) {
    let new = key(seed);
    let (keys, signers) = match role {
        "timestamp" => (&mut repository.root.roles.timestamp, &mut repository.timestamp_keys),
        "snapshot" => (&mut repository.root.roles.snapshot, &mut repository.snapshot_keys),
        _ => panic!("{role} is not rotated in these tests"),
    };
    *keys = RoleKeys::new(&[new.public()], 1);
    repository.root.keys.insert(new.public().id(), new.public().clone());
    *signers = vec![new];
    repository.root.version += 1;
    repository.publish_root();
}

fn next_root(repository: &mut Repository) {
    repository.root = repository.root.successor(repository.root.expires);
    repository.publish_root();
}

/// Changes a file as its signer never would, keeping the signatures.
fn tamper(repository: &mut Repository, file: &str, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&repository.files[file]).unwrap();
    change(&mut value);
    repository.files.insert(file.to_owned(), serde_json::to_vec(&value).unwrap());
}

#[test]
fn first_refresh_asks_for_each_file_once_and_in_order() {
    let repository = Repository::new();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    assert_eq!(client.requests, ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]);
    assert_eq!(versions(&client), [1, 1, 1, 1]);
}

#[test]
fn second_refresh_of_an_unchanged_repository_asks_for_root_and_timestamp_only() {
    let repository = Repository::new();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    let set = client.refresh(&repository).unwrap();
    assert_eq!(client.requests, ["2.root.json", "timestamp.json"]);
    assert_eq!(set.targets(), &repository.targets);
}

#[test]
fn asks_for_plain_names_where_the_root_says_no_consistent_snapshot() {
    let mut repository = Repository::new();
    repository.root.consistent_snapshot = false;
    next_root(&mut repository);
    for role in ["snapshot", "targets"] {
        let bytes = repository.files[&format!("1.{role}.json")].clone();
        repository.files.insert(format!("{role}.json"), bytes);
    }
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    assert_eq!(client.requests[2..], ["timestamp.json", "snapshot.json", "targets.json"]);
}

#[test]
fn stores_bytes_as_received() {
    let mut repository = Repository::new();
    repository.files.get_mut("timestamp.json").unwrap().extend_from_slice(b" \n");
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    assert_eq!(client.stored.timestamp.as_ref(), repository.files.get("timestamp.json"));
}

#[test]
fn keeps_the_old_timestamp_when_an_equal_version_has_other_bytes() {
    let mut repository = Repository::new();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    let before = client.stored.timestamp.clone();
    repository.timestamp.meta.snapshot.version = 100;
    repository.put_timestamp();
    client.refresh(&repository).unwrap();
    assert_eq!(client.stored.timestamp, before);
    assert_eq!(client.requests, ["2.root.json", "timestamp.json"]);
}

#[test]
fn rejects_a_stored_root_that_does_not_hold_by_itself() {
    let mut repository = Repository::new();
    repository.root_keys = vec![key(9)];
    repository.publish_root();
    let stored = repository.stored();
    let refused = Refresh::new(stored, time(NOW), Limits::default()).unwrap_err();
    assert!(matches!(refused, MetadataError::UnmetThreshold { valid: 0, threshold: 1, .. }));
}

#[test]
fn rejects_root_signed_below_the_old_threshold() {
    let mut repository = Repository::new();
    let new = key(9);
    repository.root.roles.root = RoleKeys::new(&[new.public()], 1);
    repository.root.keys.insert(new.public().id(), new.public().clone());
    repository.root_keys = vec![new];
    let mut client = Client::new(&repository);
    next_root(&mut repository);
    let refused = client.refresh(&repository).unwrap_err();
    let by_old =
        matches!(&refused, MetadataError::UnmetThreshold { delegator, .. } if delegator == "root version 1");
    assert!(by_old, "{refused:?}");
    assert_eq!(versions(&client), [1, 0, 0, 0]);
}

#[test]
fn a_root_that_lowers_a_threshold_needs_the_higher_one_that_is_trusted() {
    let mut repository = Repository::new();
    let keys = vec![key(1), key(21), key(22)];
    let public: Vec<_> = keys.iter().map(crate::key::SigningKey::public).collect();
    repository.root.roles.root = RoleKeys::new(&public, 2);
    repository.root.keys.extend(public.iter().map(|key| (key.id(), (*key).clone())));
    repository.root_keys = keys;
    repository.publish_root();
    let mut client = Client::new(&repository);
    let mut next = repository.root.successor(repository.root.expires);
    next.roles.root.threshold = 1;
    repository.files.insert("2.root.json".to_owned(), signed(&next, &[key(21)]));
    let refused = client.refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::UnmetThreshold { valid: 1, threshold: 2, .. }));
}

#[test]
fn rejects_root_signed_below_its_own_threshold() {
    let mut repository = Repository::new();
    let new = key(9);
    repository.root.roles.root = RoleKeys::new(&[new.public()], 1);
    repository.root.keys.insert(new.public().id(), new.public().clone());
    let mut client = Client::new(&repository);
    next_root(&mut repository);
    let refused = client.refresh(&repository).unwrap_err();
    let by_itself =
        matches!(&refused, MetadataError::UnmetThreshold { delegator, .. } if delegator == "root");
    assert!(by_itself, "{refused:?}");
    // With both signatures it is followed.
    let both = add_signature(&repository.files["2.root.json"], &key(9)).unwrap();
    repository.files.insert("2.root.json".into(), both);
    client.refresh(&repository).unwrap();
    assert_eq!(versions(&client), [2, 1, 1, 1]);
}

#[test]
fn rejects_root_that_is_not_the_next_version() {
    for version in [1, 3, 1000] {
        let mut repository = Repository::new();
        let mut client = Client::new(&repository);
        repository.root.version = version;
        repository.files.insert("2.root.json".into(), signed(&repository.root, &repository.root_keys));
        let refused = client.refresh(&repository).unwrap_err();
        assert!(matches!(refused, MetadataError::RootVersion { trusted: 1, found } if found == version));
        assert_eq!(client.stored.root, repository.stored().root);
    }
}

#[test]
fn stores_an_expired_root_and_asks_no_further() {
    let mut repository = Repository::new();
    let mut client = Client::new(&repository);
    repository.root.expires = time(NOW);
    next_root(&mut repository);
    let refused = client.refresh(&repository).unwrap_err();
    assert!(matches!(&refused, MetadataError::Expired { role, version: 2, .. } if role == "root"));
    assert_eq!(versions(&client), [2, 0, 0, 0]);
    assert_eq!(client.requests, ["2.root.json", "3.root.json"]);
}

#[test]
fn walks_fifty_rotations_through_expired_roots() {
    let mut repository = Repository::new();
    let mut client = Client::new(&repository);
    for seed in 100..150 {
        let (old, new) = (repository.root_keys.remove(0), key(seed));
        repository.root.roles.root = RoleKeys::new(&[new.public()], 1);
        repository.root.keys.insert(new.public().id(), new.public().clone());
        repository.root = repository.root.successor(time(if seed == 149 { LATER } else { PAST }));
        let by_both = signed(&repository.root, &[old, key(seed)]);
        repository.files.insert(format!("{}.root.json", repository.root.version), by_both);
        repository.root_keys = vec![new];
    }
    client.refresh(&repository).unwrap();
    assert_eq!(versions(&client)[0], 51);
}

#[test]
fn follows_no_more_roots_than_its_limit_and_goes_on_the_next_time() {
    let mut repository = Repository::new();
    let mut client = Client::new(&repository);
    for _ in 0..5 {
        next_root(&mut repository);
    }
    let limits = Limits { root_rotations: 3, ..Limits::default() };
    let mut refresh = Refresh::new(client.stored.clone(), time(NOW), limits).unwrap();
    let mut roots = 0;
    loop {
        match refresh.step().unwrap() {
            Step::Fetch { file, .. } if file.ends_with("root.json") => {
                roots += 1;
                refresh.answer(Fetched::Bytes(repository.files[&file].clone()));
            }
            Step::Fetch { .. } => break,
            step @ (Step::Store { .. } | Step::Remove { .. } | Step::Done) => client.keep(step),
        }
    }
    assert_eq!((roots, versions(&client)[0]), (3, 4));
    client.refresh(&repository).unwrap();
    assert_eq!(versions(&client)[0], 6);
}

#[test]
fn rejects_timestamp_rollback() {
    let mut repository = Repository::new();
    let old = repository.files["timestamp.json"].clone();
    repository.publish();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    repository.files.insert("timestamp.json".into(), old);
    let refused = client.refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::Rollback { trusted: 2, found: 1, .. }));
    assert_eq!(versions(&client)[1], 2);
}

// tough CVE-2025-2888: a timestamp that was stored before this check refused every honest one after it.
#[test]
fn does_not_store_a_timestamp_that_lists_an_older_snapshot() {
    let mut repository = Repository::new();
    repository.publish();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    let honest = repository.timestamp.clone();
    repository.timestamp.meta.snapshot = FileMeta::of(1, &repository.files["1.snapshot.json"]);
    repository.timestamp.version = 9;
    repository.put_timestamp();
    let refused = client.refresh(&repository).unwrap_err();
    let expected =
        matches!(refused, MetadataError::SnapshotListedRollback { timestamp: 9, trusted: 2, found: 1 });
    assert!(expected, "{refused:?}");
    assert_eq!(client.requests, ["2.root.json", "timestamp.json"]);
    repository.timestamp = honest;
    repository.publish();
    client.refresh(&repository).unwrap();
    assert_eq!(versions(&client), [1, 3, 3, 3]);
}

#[test]
fn rejects_expired_metadata_and_stores_nothing_of_it() {
    for (role, kept) in [("timestamp", [1, 0, 0, 0]), ("snapshot", [1, 2, 0, 0]), ("targets", [1, 2, 2, 0])] {
        let mut repository = Repository::new();
        match role {
            "timestamp" => repository.timestamp.expires = time(NOW),
            "snapshot" => repository.snapshot.expires = time(NOW),
            _ => repository.targets.expires = time(NOW),
        }
        repository.publish();
        let mut client = Client::new(&repository);
        let refused = client.refresh(&repository).unwrap_err();
        assert!(
            matches!(&refused, MetadataError::Expired { role: found, .. } if found == role),
            "{refused:?}"
        );
        assert_eq!(versions(&client), kept);
    }
}

#[test]
fn notices_a_freeze_when_the_same_timestamp_outlives_its_expiry() {
    let repository = Repository::new();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    let refused = client.refresh_at(&repository.files, time(LATER)).unwrap_err();
    assert!(matches!(&refused, MetadataError::Expired { role, .. } if role == "root" || role == "timestamp"));
    let mut frozen = Repository::new();
    frozen.timestamp.expires = time("2026-12-01T00:00:00Z");
    frozen.publish_timestamp();
    let mut client = Client::new(&frozen);
    client.refresh(&frozen).unwrap();
    let refused = client.refresh_at(&frozen.files, time("2026-12-01T00:00:00Z")).unwrap_err();
    assert!(matches!(&refused, MetadataError::Expired { role, .. } if role == "timestamp"));
}

// sigstore-tuf before 0.12.0 forgot an expired local snapshot, and with it the floor.
#[test]
fn expired_stored_metadata_still_shows_what_newer_metadata_may_not_go_below() {
    let mut repository = Repository::new();
    repository.publish();
    let week = time("2026-11-27T12:00:00Z");
    repository.timestamp.expires = week;
    repository.snapshot.expires = week;
    repository.publish_snapshot();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    repository.snapshot.expires = time(LATER);
    repository.timestamp.expires = time(LATER);
    repository.snapshot.meta.get_mut("targets.json").unwrap().version = 1;
    repository.publish_snapshot();
    let later = time("2026-12-24T00:00:00Z");
    let refused = client.refresh_at(&repository.files, later).unwrap_err();
    assert!(
        matches!(refused, MetadataError::TargetsListedRollback { trusted: 2, found: 1, .. }),
        "{refused:?}"
    );
    repository.snapshot.meta.get_mut("targets.json").unwrap().version = 2;
    repository.publish();
    client.refresh_at(&repository.files, later).unwrap();
}

#[test]
fn rejects_snapshot_that_lists_an_older_file_or_loses_one() {
    let mut repository = Repository::new();
    repository.put_delegated("team", &empty_targets(), &[key(9)]);
    repository.publish();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    let good = repository.snapshot.meta.clone();
    repository.snapshot.meta.remove("team.json");
    repository.publish_snapshot();
    let refused = client.refresh(&repository).unwrap_err();
    assert!(matches!(&refused, MetadataError::TargetsVanished { file, .. } if file == "team.json"));
    repository.snapshot.meta = good;
    repository.snapshot.meta.get_mut("targets.json").unwrap().version = 1;
    repository.publish_snapshot();
    let refused = client.refresh(&repository).unwrap_err();
    assert!(matches!(&refused, MetadataError::TargetsListedRollback { file, .. } if file == "targets.json"));
    assert_eq!(versions(&client), [1, 4, 2, 2]);
}

#[test]
fn rotating_an_online_key_lets_driven_up_versions_come_down() {
    for role in ["timestamp", "snapshot"] {
        let mut repository = Repository::new();
        let mut client = Client::new(&repository);
        let high = crate::canonical::MAX_INTEGER - 1;
        repository.timestamp.version = high;
        repository.snapshot.version = high;
        repository.targets.version = high;
        repository.publish();
        client.refresh(&repository).unwrap();
        rotate(&mut repository, role, 77);
        repository.timestamp.version = 1;
        repository.snapshot.version = 1;
        repository.targets.version = 1;
        repository.publish();
        client.refresh(&repository).unwrap();
        assert_eq!(versions(&client), [2, 2, 2, 2], "{role}");
    }
}

#[test]
fn adding_an_online_key_or_raising_its_threshold_forgets_nothing() {
    let mut repository = Repository::new();
    repository.publish();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    let more = key(77);
    repository.root.keys.insert(more.public().id(), more.public().clone());
    repository.root.roles.snapshot = RoleKeys::new(&[key(3).public(), more.public()], 1);
    next_root(&mut repository);
    client.refresh(&repository).unwrap();
    assert_eq!(versions(&client), [2, 2, 2, 2]);
    repository.root.roles.snapshot.threshold = 6;
    next_root(&mut repository);
    let refused = client.refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::UnmetThreshold { threshold: 6, .. }));
    assert_eq!(versions(&client), [3, 2, 2, 2]);
}

#[test]
fn recovery_survives_a_connection_lost_right_after_the_root() {
    let mut repository = Repository::new();
    let mut client = Client::new(&repository);
    client.refresh(&repository).unwrap();
    rotate(&mut repository, "timestamp", 77);
    let mut refresh = Refresh::new(client.stored.clone(), time(NOW), Limits::default()).unwrap();
    loop {
        match refresh.step().unwrap() {
            Step::Fetch { file, .. } if file == "2.root.json" => {
                refresh.answer(Fetched::Bytes(repository.files[&file].clone()));
            }
            Step::Fetch { .. } => break,
            step @ (Step::Store { .. } | Step::Remove { .. } | Step::Done) => client.keep(step),
        }
    }
    assert_eq!(versions(&client), [2, 0, 0, 1]);
}

#[test]
fn rejects_files_with_other_bytes_than_listed() {
    for role in ["snapshot", "targets"] {
        let mut repository = Repository::new();
        let file = format!("1.{role}.json");
        let honest = repository.files[&file].clone();
        let mut other = honest.clone();
        *other.last_mut().unwrap() = b' ';
        repository.files.insert(file.clone(), other);
        let refused = Client::new(&repository).refresh(&repository).unwrap_err();
        let differs = matches!(&refused, MetadataError::Hashes { source: HashMismatch::Differs(_), .. });
        assert!(differs, "{refused:?}");
        let shorter = honest[..honest.len() - 1].to_vec();
        repository.files.insert(file.clone(), shorter);
        let refused = Client::new(&repository).refresh(&repository).unwrap_err();
        assert!(matches!(refused, MetadataError::Length { .. }), "{refused:?}");
        let mut longer = honest;
        longer.push(b' ');
        repository.files.insert(file, longer);
        let refused = Client::new(&repository).refresh(&repository).unwrap_err();
        assert!(matches!(refused, MetadataError::TooLong { .. }), "{refused:?}");
    }
}

#[test]
fn rejects_hashes_of_which_none_is_known() {
    let mut repository = Repository::new();
    let meta = repository.snapshot.meta.get_mut("targets.json").unwrap();
    meta.hashes = Some(serde_json::from_value(json!({"blake2b-256": "00"})).unwrap());
    repository.publish_snapshot();
    let refused = Client::new(&repository).refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::Hashes { source: HashMismatch::NoneKnown, .. }));
}

#[test]
fn takes_files_listed_without_length_and_hashes() {
    let mut repository = Repository::new();
    let bare = |version| FileMeta { length: None, hashes: None, ..FileMeta::of(version, b"") };
    repository.snapshot.meta.insert("targets.json".into(), bare(1));
    repository.snapshot.version = 2;
    repository.put_snapshot();
    repository.timestamp.meta.snapshot = bare(2);
    repository.publish_timestamp();
    Client::new(&repository).refresh(&repository).unwrap();
}

#[test]
fn rejects_parts_of_two_repository_states() {
    let mut repository = Repository::new();
    repository.publish();
    let bare = |version| FileMeta { length: None, hashes: None, ..FileMeta::of(version, b"") };
    let old_targets = repository.files["1.targets.json"].clone();
    repository.snapshot.meta.insert("targets.json".into(), bare(2));
    repository.publish_snapshot();
    repository.files.insert("2.targets.json".into(), old_targets);
    let refused = Client::new(&repository).refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::MixAndMatch { listed: 2, found: 1, .. }));
    repository.timestamp.meta.snapshot = bare(3);
    repository.publish_timestamp();
    repository.files.insert("3.snapshot.json".into(), repository.files["1.snapshot.json"].clone());
    let refused = Client::new(&repository).refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::MixAndMatch { listed: 3, found: 1, .. }));
}

#[test]
fn rejects_a_snapshot_that_does_not_list_targets() {
    let mut repository = Repository::new();
    repository.snapshot.meta.clear();
    repository.publish_snapshot();
    let refused = Client::new(&repository).refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::NotInSnapshot { .. }));
}

#[test]
fn rejects_metadata_that_is_missing_or_too_long() {
    for file in ["timestamp.json", "1.snapshot.json", "1.targets.json"] {
        let mut repository = Repository::new();
        repository.files.remove(file);
        let refused = Client::new(&repository).refresh(&repository).unwrap_err();
        assert!(matches!(&refused, MetadataError::Missing { file: missing } if missing == file));
    }
    let limits = Limits::default();
    for (file, limit) in [("2.root.json", limits.root_bytes), ("timestamp.json", limits.timestamp_bytes)] {
        let mut repository = Repository::new();
        let mut bytes = repository.files["timestamp.json"].clone();
        bytes.resize(usize::try_from(limit).unwrap() + 1, b' ');
        repository.files.insert(file.into(), bytes);
        let refused = Client::new(&repository).refresh(&repository).unwrap_err();
        assert!(matches!(&refused, MetadataError::TooLong { file: long, .. } if long == file));
    }
}

// Whoever holds the online keys lists a length of 2^53 and serves bytes without end.
#[test]
fn a_listed_length_never_raises_the_limit() {
    let mut repository = Repository::new();
    repository.timestamp.meta.snapshot.length = Some(crate::canonical::MAX_INTEGER);
    repository.publish_timestamp();
    let mut refresh = Refresh::new(repository.stored(), time(NOW), Limits::default()).unwrap();
    loop {
        match refresh.step().unwrap() {
            Step::Fetch { file, max_bytes } if file == "1.snapshot.json" => {
                assert_eq!(max_bytes, Limits::default().snapshot_bytes);
                break;
            }
            Step::Fetch { file, .. } => {
                refresh.answer(repository.files.get(&file).cloned().map_or(Fetched::Absent, Fetched::Bytes));
            }
            Step::Store { .. } | Step::Remove { .. } | Step::Done => {}
        }
    }
}

#[test]
fn rejects_metadata_of_another_type() {
    let mut repository = Repository::new();
    repository.root.roles.timestamp = repository.root.roles.targets.clone();
    next_root(&mut repository);
    repository.files.insert("timestamp.json".into(), repository.files["1.targets.json"].clone());
    let refused = Client::new(&repository).refresh(&repository).unwrap_err();
    assert!(
        matches!(&refused, MetadataError::WrongType { expected: "timestamp", found, .. } if found == "targets")
    );
}

#[test]
fn rejects_specifications_of_another_major_version() {
    for version in ["2.0.0", "0.9", "1", "1.", "1.x", "1.0.0.0", "", "11.0", "1.0-rc"] {
        let mut repository = Repository::new();
        tamper(&mut repository, "timestamp.json", |file| {
            file["signed"]["spec_version"] = version.into();
        });
        let refused = Client::new(&repository).refresh(&repository).unwrap_err();
        assert!(
            matches!(&refused, MetadataError::SpecVersion { found, .. } if found == version),
            "{version}"
        );
    }
}

#[test]
fn rejects_two_signatures_of_one_key_id_even_when_the_threshold_is_met() {
    let mut repository = Repository::new();
    tamper(&mut repository, "timestamp.json", |file| {
        let signature = file["signatures"][0].clone();
        file["signatures"].as_array_mut().unwrap().push(signature);
    });
    let refused = Client::new(&repository).refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::RepeatedSignature { .. }));
}

#[test]
fn rejects_more_signatures_than_it_is_willing_to_check() {
    let mut repository = Repository::new();
    tamper(&mut repository, "timestamp.json", |file| {
        let more = (0..64).map(|number| json!({"keyid": number.to_string(), "sig": ""}));
        file["signatures"].as_array_mut().unwrap().extend(more);
    });
    let refused = Client::new(&repository).refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::TooManySignatures { limit: 64, .. }));
}

#[test]
fn signatures_that_do_not_verify_count_for_nothing_and_against_nothing() {
    for sig in ["", "00", "not hexadecimal", "é"] {
        let mut repository = Repository::new();
        let other = key(3).public().id().to_string();
        tamper(&mut repository, "timestamp.json", |file| {
            let more = [json!({"keyid": other, "sig": sig}), json!({"keyid": "no id", "sig": sig})];
            file["signatures"].as_array_mut().unwrap().extend(more);
        });
        Client::new(&repository).refresh(&repository).unwrap();
    }
}

// tough CVE-2020-15093, go-tuf f5edbde, python-tuf PYSEC-2020-147.
#[test]
fn one_key_under_two_ids_counts_once() {
    let mut repository = Repository::new();
    let mut alias = key(2).public().object().clone();
    alias.insert("x-alias".to_owned(), 1.into());
    let alias = crate::key::PublicKey::from_object(alias).unwrap();
    repository.root.keys.insert(alias.id(), alias.clone());
    repository.root.roles.timestamp = RoleKeys::new(&[key(2).public(), &alias], 2);
    next_root(&mut repository);
    tamper(&mut repository, "timestamp.json", |file| {
        let sig = file["signatures"][0]["sig"].clone();
        let more = json!({"keyid": alias.id(), "sig": sig});
        file["signatures"].as_array_mut().unwrap().push(more);
    });
    let refused = Client::new(&repository).refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::UnmetThreshold { valid: 1, threshold: 2, .. }), "{refused:?}");
}

#[test]
fn keys_of_other_roles_do_not_count() {
    let mut repository = Repository::new();
    repository.timestamp_keys = [1, 3, 4].map(key).into();
    repository.publish_timestamp();
    let refused = Client::new(&repository).refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::UnmetThreshold { valid: 0, .. }));
}

#[test]
fn a_threshold_above_the_number_of_keys_fails_that_role_only() {
    let mut repository = Repository::new();
    repository.root.roles.targets.threshold = 2;
    next_root(&mut repository);
    let mut client = Client::new(&repository);
    let refused = client.refresh(&repository).unwrap_err();
    assert!(matches!(&refused, MetadataError::UnmetThreshold { role, .. } if role == "targets"));
    assert_eq!(versions(&client), [2, 1, 1, 0]);
}

/// A root whose signed part was changed before its signers signed it: a mistake or a betrayal of the signers themselves.
fn refused_root(change: impl FnOnce(&mut Value)) -> MetadataError {
    let mut repository = Repository::new();
    let mut client = Client::new(&repository);
    next_root(&mut repository);
    tamper(&mut repository, "2.root.json", |file| change(&mut file["signed"]));
    client.refresh(&repository).unwrap_err()
}

#[test]
fn rejects_roots_that_no_root_may_be() {
    let flaw = |change: &dyn Fn(&mut Value)| {
        let refused = refused_root(change);
        let MetadataError::Flawed { source, .. } = refused else { panic!("{refused:?}") };
        source
    };
    for role in ["root", "timestamp", "snapshot", "targets"] {
        let found = flaw(&|signed| signed["roles"][role]["threshold"] = 0.into());
        assert_eq!(found, Flaw::Threshold(role.to_owned()));
        let found = flaw(&|signed| {
            let keyid = signed["roles"][role]["keyids"][0].clone();
            signed["roles"][role]["keyids"].as_array_mut().unwrap().push(keyid);
        });
        assert!(matches!(found, Flaw::RepeatedKey { .. }));
    }
    let found = flaw(&|signed| {
        let keys = signed["keys"].as_object_mut().unwrap();
        let key = keys.values().next().unwrap().clone();
        keys.insert("0".repeat(64), key);
    });
    assert!(matches!(found, Flaw::KeyId { .. }));
    assert_eq!(flaw(&|signed| signed["version"] = 0.into()), Flaw::Version(0));
}

#[test]
fn rejects_thresholds_that_are_not_natural_numbers() {
    for threshold in [json!(-1), json!(null), json!("1"), json!([1]), json!(true)] {
        let refused = refused_root(|signed| signed["roles"]["root"]["threshold"] = threshold.clone());
        assert!(matches!(refused, MetadataError::Unreadable { .. }), "{threshold}: {refused:?}");
    }
    let refused = refused_root(|signed| signed["roles"]["root"]["threshold"] = 1.0.into());
    assert!(matches!(refused, MetadataError::NotCanonical { .. }));
}

#[test]
fn rejects_times_in_another_spelling() {
    for text in [
        "2027-11-20T12:00:00+00:00",
        "2027-11-20T12:00:00.000Z",
        "2027-11-20 12:00:00Z",
        "2027-11-20T12:00:00z",
        "2027-13-20T12:00:00Z",
        "2027-11-20T12:00Z",
        "",
    ] {
        let refused = refused_root(|signed| signed["expires"] = text.into());
        assert!(matches!(refused, MetadataError::Unreadable { .. }), "{text}");
    }
}

#[test]
fn a_failed_refresh_stays_failed() {
    let mut repository = Repository::new();
    repository.files.remove("timestamp.json");
    let mut refresh = Refresh::new(repository.stored(), time(NOW), Limits::default()).unwrap();
    while let Ok(step) = refresh.step() {
        if let Step::Fetch { .. } = step {
            refresh.answer(Fetched::Absent);
        }
    }
    refresh.answer(Fetched::Bytes(Vec::new()));
    assert!(matches!(refresh.step(), Err(MetadataError::Incomplete)));
    assert!(matches!(refresh.into_trusted(), Err(MetadataError::Incomplete)));
}

#[test]
fn asks_again_for_the_same_file_until_it_is_answered() {
    let repository = Repository::new();
    let mut refresh = Refresh::new(repository.stored(), time(NOW), Limits::default()).unwrap();
    let asked = refresh.step().unwrap();
    assert_eq!(refresh.step().unwrap(), asked);
}

/// Ends the work after so many steps, wherever that is; what was stored until then is stored.
fn interrupted_after(client: &mut Client, repository: &Repository, steps: usize) {
    let mut refresh = Refresh::new(client.stored.clone(), time(NOW), Limits::default()).unwrap();
    for _ in 0..steps {
        match refresh.step().unwrap() {
            Step::Fetch { file, .. } => {
                refresh.answer(repository.files.get(&file).cloned().map_or(Fetched::Absent, Fetched::Bytes));
            }
            Step::Done => return,
            step @ (Step::Store { .. } | Step::Remove { .. }) => client.keep(step),
        }
    }
}

#[test]
fn an_interruption_anywhere_leaves_a_state_that_the_next_refresh_brings_up_to_date() {
    for steps in 0..12 {
        let mut repository = Repository::new();
        let mut client = Client::new(&repository);
        client.refresh(&repository).unwrap();
        rotate(&mut repository, "snapshot", 77);
        repository.publish();
        interrupted_after(&mut client, &repository, steps);
        let before = versions(&client);
        client.refresh(&repository).unwrap();
        assert_eq!(versions(&client), [2, 2, 2, 2]);
        assert!(
            before.iter().zip([2, 2, 2, 2]).all(|(before, after)| *before <= after),
            "after {steps} steps"
        );
    }
}

fn served(repository: &Repository, file: &str, bytes: Vec<u8>) -> Result<TrustedSet, MetadataError> {
    let mut files = repository.files.clone();
    files.insert(file.to_owned(), bytes);
    Client::new(repository).refresh_at(&files, time(NOW))
}

const SERVED: [&str; 4] = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"];

/// A repository with something in every kind of document.
fn full_repository() -> Repository {
    let mut repository = Repository::new();
    repository.targets.targets.insert(path("app/web"), target(b"web"));
    delegate(&mut repository.targets, "team", &key(9), &["team/*"]);
    repository.targets.version = 1;
    repository.put_targets();
    // Without hashes, so that it is the signature that has to refuse.
    for meta in repository.snapshot.meta.values_mut() {
        (meta.length, meta.hashes) = (None, None);
    }
    repository.put_snapshot();
    repository.timestamp.meta.snapshot.length = None;
    repository.timestamp.meta.snapshot.hashes = None;
    repository.put_timestamp();
    next_root(&mut repository);
    repository
}

#[test]
fn rejects_every_bit_flip_in_a_signature() {
    let repository = full_repository();
    for file in SERVED {
        let bytes = &repository.files[file];
        let text = String::from_utf8(bytes.clone()).unwrap();
        let start = text.find("\"sig\":\"").unwrap() + 7;
        for position in start..start + 128 {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                assert!(served(&repository, file, flipped).is_err(), "{file} byte {position} bit {bit}");
            }
        }
    }
}

/// Every value that a member could wrongly have.
fn wrong_values() -> Vec<Value> {
    let mut wrong = vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(9_223_372_036_854_775_808_u64),
        json!(""),
        json!("x"),
        json!("../../etc/passwd"),
        json!([]),
        json!([null]),
        json!({}),
        json!({"": null}),
    ];
    wrong.push(json!("x".repeat(70_000)));
    wrong
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

fn remove(file: &mut Value, pointer: &str) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match file.pointer_mut(parent).unwrap() {
        Value::Object(map) => drop(map.remove(&name.replace("~1", "/").replace("~0", "~"))),
        Value::Array(items) => drop(items.remove(name.parse().unwrap())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn rejects_every_member_changed_or_removed_without_being_signed_again() {
    let repository = full_repository();
    let mut tried = 0;
    for file in SERVED {
        let honest: Value = serde_json::from_slice(&repository.files[file]).unwrap();
        let mut found = Vec::new();
        pointers(&honest, "", &mut found);
        for pointer in found {
            let mut variants = vec![honest.clone()];
            remove(&mut variants[0], &pointer);
            for wrong in wrong_values() {
                let mut variant = honest.clone();
                *variant.pointer_mut(&pointer).unwrap() = wrong;
                variants.push(variant);
            }
            for variant in variants.into_iter().filter(|variant| *variant != honest) {
                tried += 1;
                let outcome = served(&repository, file, serde_json::to_vec(&variant).unwrap());
                assert!(outcome.is_err(), "{file} {pointer}");
            }
        }
    }
    assert!(tried > 1000, "{tried}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // Whatever bytes come, the answer is a refusal and not a panic; what was stored before is still there.
    #[test]
    fn hostile_bytes_are_refused(file in 0..4_usize, at: prop::sample::Index, byte: u8, cut: bool, noise: Vec<u8>) {
        let repository = full_repository();
        let honest = &repository.files[SERVED[file]];
        let mut bytes = honest.clone();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= byte.max(1) }
        prop_assert!(served(&repository, SERVED[file], bytes).is_err());
        prop_assert!(served(&repository, SERVED[file], noise).is_err());
    }
}

#[test]
fn signing_again_keeps_fields_of_later_versions() {
    let mut repository = Repository::new();
    repository.root.extra.insert("x-note".into(), json!({"a": [1, "é"]}));
    repository.root.roles.extra.insert("mirrors".into(), json!(null));
    repository.root.roles.root.extra.insert("x-owner".into(), json!("@someone"));
    next_root(&mut repository);
    let mut client = Client::new(&repository);
    let set = client.refresh(&repository).unwrap();
    assert_eq!(set.root(), &repository.root);
    let again = signed(&set.root().successor(time(LATER)), &repository.root_keys);
    let file: Value = serde_json::from_slice(&again).unwrap();
    assert_eq!(file["signed"]["x-note"], json!({"a": [1, "é"]}));
    assert_eq!(file["signed"]["roles"]["root"]["x-owner"], "@someone");
    assert_eq!(file["signed"]["version"], 3);
}

#[test]
fn timestamp_describes_the_snapshot_and_nothing_else() {
    let mut repository = Repository::new();
    tamper(&mut repository, "timestamp.json", |file| {
        file["signed"]["meta"]["targets.json"] = json!({"version": 1});
    });
    let refused = Client::new(&repository).refresh(&repository).unwrap_err();
    assert!(matches!(refused, MetadataError::Unreadable { .. }));
}
