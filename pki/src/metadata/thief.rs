//! A stolen facade: somebody holds exactly its online keys, and serves a device whatever they like.
//!
//! The keys are split as `facade init --offline-keys` splits them: no server has the keys of the two roots, nor that of the
//! targets of images. With the others a thief can keep a device where it is, or choose among what images lists for it; every
//! attack here shows that it is no more than that, and that one rotation undoes it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::fixture::*;
use super::names::TargetPath;
use super::refresh::Stored;
use super::roles::{FileMeta, RoleKeys, Targets};
use super::vectors::{DEVICE, Device, INDEX, Pair, class, entry, named};
use crate::canonical::MAX_INTEGER;

/// What the thief signs with.
const HELD: [(&str, &str); 5] = [
    ("director", "timestamp"),
    ("director", "snapshot"),
    ("director", "targets"),
    ("images", "timestamp"),
    ("images", "snapshot"),
];

/// The second image that operators have signed; the first is the pair's own.
fn second() -> Vec<u8> {
    INDEX.replace("ARCHITECTURE", "arm64").replace("\"size\":2", "\"size\":3").into_bytes()
}

/// An image that operators have signed for other boards.
fn foreign() -> Vec<u8> {
    INDEX.replace("ARCHITECTURE", "amd64").into_bytes()
}

/// A device that followed its facade until it was stolen.
struct Scene {
    pair: Pair,
    device: Device,
    /// What both served at first.
    old: [BTreeMap<String, Vec<u8>>; 2],
    first: Vec<u8>,
}

impl Scene {
    fn set() -> Self {
        let mut pair = Pair::new();
        let mut device = Device::of(&pair);
        assert_eq!(class(&device.judge(&pair)), "taken");
        let old = [pair.director.files.clone(), pair.images.files.clone()];
        let first = std::mem::replace(&mut pair.content, foreign());
        pair.list();
        pair.content = second();
        pair.list();
        pair.images.publish();
        pair.director.targets.targets.clear();
        pair.assign(DEVICE);
        pair.director.publish();
        assert_eq!(class(&device.judge(&pair)), "taken");
        Self { pair, device, old, first }
    }

    /// Has the director say something else, in a new version of everything.
    fn direct(&mut self, change: impl FnOnce(&mut Targets)) {
        change(&mut self.pair.director.targets);
        self.pair.director.publish();
    }

    /// Has the director assign this content, and serves it.
    fn offer(&mut self, content: Vec<u8>) {
        self.pair.content = content;
        self.pair.director.targets.targets.clear();
        self.pair.assign(DEVICE);
        self.pair.director.publish();
    }

    /// A new snapshot of images that says something else.
    fn snapshot(&mut self, change: impl FnOnce(&mut BTreeMap<String, FileMeta>)) {
        change(&mut self.pair.images.snapshot.meta);
        self.pair.images.publish_snapshot();
    }

    /// The next version of a file that the thief has no key for, signed with one that they have.
    fn forge(&mut self, repository: &str, role: &str, change: impl FnOnce(&mut Value)) {
        let stolen = self.pair.of(repository).key_of("snapshot");
        assert!(!HELD.contains(&(repository, role)) && HELD.contains(&(repository, "snapshot")));
        let served = self.pair.of(repository);
        let mut signed = served.read(&served.file_of(role))["signed"].clone();
        let next = signed["version"].as_u64().unwrap() + 1;
        signed["version"] = json!(next);
        change(&mut signed);
        let bytes = forged(&stolen, &signed).unwrap();
        let listed = FileMeta { length: None, hashes: None, ..FileMeta::of(next, &bytes) };
        served.files.insert(format!("{next}.{role}.json"), bytes);
        if role != "root" {
            self.snapshot(|meta| drop(meta.insert(format!("{role}.json"), listed)));
        }
    }

    /// The same facade on new online keys, by the word of those who hold the roots; its versions begin anew.
    fn recovered() -> Pair {
        let Pair { mut director, mut images, content } = Self::set().pair;
        for (repository, seed) in [(&mut director, 100), (&mut images, 110)] {
            let new = [key(seed), key(seed + 1), key(seed + 2)];
            for key in &new {
                repository.root.keys.insert(key.public().id(), key.public().clone());
            }
            let [timestamp, snapshot, targets] = new;
            repository.root.roles.timestamp = RoleKeys::new(&[timestamp.public()], 1);
            repository.root.roles.snapshot = RoleKeys::new(&[snapshot.public()], 1);
            (repository.timestamp_keys, repository.snapshot_keys) = (vec![timestamp], vec![snapshot]);
            if seed == 100 {
                repository.root.roles.targets = RoleKeys::new(&[targets.public()], 1);
                repository.targets_keys = vec![targets];
            }
            repository.publish_next_root();
            repository.publish_bare();
        }
        Pair { director, images, content }
    }
}

/// An attack: its name, what the device makes of it, and what the thief does.
type Attack = (&'static str, &'static str, fn(&mut Scene));

fn only(targets: &mut Targets) -> &mut super::Target {
    targets.targets.values_mut().next().unwrap()
}

const ATTACKS: [Attack; 27] = [
    ("assigns what operators never signed", "target mismatch", |scene| {
        scene.offer(INDEX.replace("ARCHITECTURE", "arm").into_bytes());
    }),
    ("gives a signed name to other bytes", "target mismatch", |scene| {
        scene.direct(|targets| only(targets).hashes = super::Hashes::of(crate::digest::Digest::sha256(b"x")));
    }),
    ("promises more bytes than were signed", "target mismatch", |scene| {
        scene.direct(|targets| only(targets).length = u64::from(u32::MAX));
    }),
    ("calls an index a manifest", "disagreement", |scene| {
        scene.direct(|targets| {
            let custom = only(targets).custom.as_mut().unwrap();
            custom.insert("media_type".to_owned(), json!(crate::oci::MediaType::OCI_MANIFEST));
        });
    }),
    ("serves other bytes under what is agreed", "target hash mismatch", |scene| {
        let last = scene.pair.content.len() - 2;
        scene.pair.content[last] ^= 1;
    }),
    ("serves more bytes than are agreed", "oversized target", |scene| scene.pair.content.push(b' ')),
    ("plays back the document of another device", "bad device id", |scene| {
        scene.direct(|targets| targets.set_device("press-8"));
    }),
    ("plays back an empty document of another device", "bad device id", |scene| {
        scene.direct(|targets| {
            targets.set_device("press-8");
            targets.targets.clear();
        });
    }),
    ("hides an entry of another device among its own", "bad device id", |scene| {
        let other = entry(&scene.first, &json!({"device": "press-8"}));
        let path: TargetPath = path(&named(&scene.first));
        scene.direct(|targets| drop(targets.targets.insert(path, other)));
    }),
    ("lets the director delegate to a key of theirs", "director delegates", |scene| {
        scene.direct(|targets| delegate(targets, "helper", &delegated_key("thief"), &["*/*/*"]));
    }),
    ("assigns an image for other boards", "bad hardware", |scene| scene.offer(foreign())),
    ("assigns an older image that operators still list", "taken", |scene| scene.offer(scene.first.clone())),
    ("assigns an image that operators have revoked", "target mismatch", |scene| {
        let revoked = path(&named(&scene.first));
        scene.pair.images.targets.targets.remove(&revoked);
        scene.pair.images.publish();
        assert_eq!(class(&scene.device.judge(&scene.pair)), "taken");
        scene.offer(scene.first.clone());
    }),
    ("brings a revoked image back with the list from before", "rollback", |scene| {
        scene.offer(scene.first.clone());
        let (file, bytes) = (scene.pair.images.file_of("targets"), &scene.old[1]["1.targets.json"]);
        assert_ne!(file, "1.targets.json");
        let before = FileMeta::of(1, bytes);
        scene.snapshot(|meta| drop(meta.insert("targets.json".to_owned(), before)));
    }),
    ("serves the director's timestamp from before", "rollback", |scene| {
        let old = scene.old[0]["timestamp.json"].clone();
        scene.pair.director.files.insert("timestamp.json".to_owned(), old);
    }),
    ("serves the timestamp of images from before", "rollback", |scene| {
        let old = scene.old[1]["timestamp.json"].clone();
        scene.pair.images.files.insert("timestamp.json".to_owned(), old);
    }),
    ("lists the snapshot from before in a new timestamp", "rollback", |scene| {
        scene.pair.images.timestamp.meta.snapshot = FileMeta::of(1, &scene.old[1]["1.snapshot.json"]);
        scene.pair.images.publish_timestamp();
    }),
    ("drops a file from the snapshot", "rollback", |scene| {
        scene.snapshot(|meta| drop(meta.remove("targets.json")));
    }),
    ("mixes two states of images", "version mismatch", |scene| {
        let old = scene.old[1]["1.targets.json"].clone();
        scene.pair.images.files.insert("9.targets.json".to_owned(), old);
        let listed = FileMeta { length: None, hashes: None, ..FileMeta::of(9, b"") };
        scene.snapshot(|meta| drop(meta.insert("targets.json".to_owned(), listed)));
    }),
    ("signs the targets of images with another key", "unmet threshold", |scene| {
        scene.forge("images", "targets", |signed| signed["targets"] = json!({}));
    }),
    ("lets in a publisher of theirs", "unmet threshold", |scene| {
        scene.forge("images", "targets", |signed| {
            let thief = delegated_key("thief").public().clone();
            signed["delegations"] = json!({
                "keys": {thief.id().to_string(): thief},
                "roles": [{"name": "publisher-thief", "keyids": [thief.id()], "threshold": 1,
                    "terminating": true, "paths": ["*/*/*"]}],
            });
        });
    }),
    ("lists a role that nobody delegates to", "taken", |scene| {
        let bytes = forged(&delegated_key("thief"), &json!({"_type": "targets"})).unwrap();
        let listed = FileMeta::of(1, &bytes);
        scene.pair.images.files.insert("1.publisher-thief.json".to_owned(), bytes);
        scene.snapshot(|meta| drop(meta.insert("publisher-thief.json".to_owned(), listed)));
    }),
    ("signs a root of images", "unmet threshold", |scene| scene.forge("images", "root", |_| {})),
    ("signs a root of the director that demands nobody", "illegal threshold", |scene| {
        scene.forge("director", "root", |signed| signed["roles"]["root"]["threshold"] = json!(0));
    }),
    ("serves the director in the place of images", "unmet threshold", |scene| {
        scene.pair.images.files.clone_from(&scene.pair.director.files);
    }),
    ("keeps the device in the past until that expires", "expired", |scene| {
        scene.device.now = "2027-11-20T12:00:01Z";
    }),
    ("drives every version to the end of the scale", "taken", |scene| {
        for repository in [&mut scene.pair.director, &mut scene.pair.images] {
            (repository.snapshot.version, repository.timestamp.version) = (MAX_INTEGER, MAX_INTEGER);
            repository.put_snapshot();
            repository.put_timestamp();
        }
    }),
];

/// The versions of everything that is stored.
fn versions(stored: &Stored) -> [u64; 4] {
    let version = |file: Option<&Vec<u8>>| {
        file.map_or(0, |file| {
            serde_json::from_slice::<Value>(file).unwrap()["signed"]["version"].as_u64().unwrap()
        })
    };
    let Stored { root, timestamp, snapshot, targets, .. } = stored;
    [version(Some(root)), version(timestamp.as_ref()), version(snapshot.as_ref()), version(targets.as_ref())]
}

#[test]
fn the_online_keys_buy_delay_and_a_choice_among_what_operators_signed() {
    let names: BTreeSet<&str> = ATTACKS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names.len(), ATTACKS.len());
    for (name, expected, attack) in ATTACKS {
        let mut scene = Scene::set();
        attack(&mut scene);
        let before = [&scene.device.director, &scene.device.images].map(|client| client.stored.clone());
        let outcome = scene.device.judge(&scene.pair);
        assert_eq!(class(&outcome), expected, "{name}: {outcome:?}");
        let signed = [scene.first.clone(), second()];
        assert!(
            outcome.is_err() || signed.contains(&scene.pair.content),
            "{name}: unsigned bytes were taken"
        );
        for (client, before) in [&scene.device.director, &scene.device.images].into_iter().zip(before) {
            assert_eq!(client.stored.root, before.root, "{name}: another root is trusted");
            let (after, before) = (versions(&client.stored), versions(&before));
            let falls = after.iter().zip(before).any(|(after, before)| *after < before);
            assert!(!falls, "{name}: from {before:?} to {after:?}");
        }
        // A rotation of the stolen keys, and one refresh.
        scene.device.now = NOW;
        let after = scene.device.judge(&Scene::recovered());
        assert_eq!(class(&after), "taken", "after {name}: {after:?}");
    }
}
