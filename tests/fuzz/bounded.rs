//! The fuzz targets for a moment in every test run: honest files, bent at random, always in the same way.

#![expect(clippy::expect_used, reason = "a finding has to stop the run")]

#[expect(dead_code, reason = "libFuzzer runs targets by name, this runs all")]
#[path = "src/lib.rs"]
mod targets;

use std::collections::BTreeMap;

use jiff::Timestamp as Time;
use pki::key::SigningKey;
use pki::metadata::publish::sign;
use pki::metadata::roles::{
    FileMeta, RoleKeys, Root, RootRoles, Snapshot, Target, Targets, Timestamp, TimestampMeta,
};
use serde_json::Map;

const ROUNDS: u32 = 2000;

/// A small generator (splitmix64): a finding must come again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or_default()
    }

    /// Bends bytes: flips, cuts, repeats, or puts in what parsers stumble over.
    fn bend(&mut self, bytes: &mut Vec<u8>) {
        const TROUBLE: [&[u8]; 10] = [
            b"\"",
            b"}",
            b"null",
            b"-0",
            b"1e999",
            b"\\u0000",
            b"\xff",
            b"[[[[",
            b"18446744073709551616",
            b"\\ud800",
        ];
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|byte| *byte ^= 1 << (at % 8)),
                1 => bytes.truncate(at),
                2 => {
                    let piece: Vec<u8> = bytes.iter().skip(at).take(40).copied().collect();
                    bytes.splice(at..at, piece);
                }
                _ => {
                    let trouble = TROUBLE
                        .into_iter()
                        .nth(self.below(TROUBLE.len()))
                        .unwrap_or_default();
                    bytes.splice(at..at, trouble.iter().copied());
                }
            }
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let key = SigningKey::from_seed(&[7; 32]);
    let expires = Time::from_second(1_900_000_000).expect("a time");
    let role = || RoleKeys::new(&[key.public()], 1);
    let root = Root {
        version: 1,
        expires,
        consistent_snapshot: true,
        keys: BTreeMap::from([(key.public().id(), key.public().clone())]),
        roles: RootRoles {
            root: role(),
            timestamp: role(),
            snapshot: role(),
            targets: role(),
            extra: Map::new(),
        },
        extra: Map::new(),
    };
    let digest = pki::digest::Digest::sha256(b"x");
    let target = Target::new(digest, 1, Map::new());
    let targets = Targets {
        version: 1,
        expires,
        targets: BTreeMap::from([("a/b".parse().expect("a path"), target)]),
        delegations: None,
        extra: Map::new(),
    };
    let snapshot = Snapshot {
        version: 1,
        expires,
        meta: BTreeMap::from([("targets.json".to_owned(), FileMeta::of(1, b"x"))]),
        extra: Map::new(),
    };
    let meta = TimestampMeta {
        snapshot: FileMeta::of(1, b"x"),
    };
    let timestamp = Timestamp {
        version: 1,
        expires,
        meta,
        extra: Map::new(),
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":3}}]}}"#
    );
    let texts = [
        manifest,
        format!("registry.example.com:5000/team/app@{digest}"),
        "https://[::1]:8443".to_owned(),
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_owned(),
        "drayage1.eyJ1cmwiOiJodHRwczovL2g6ODQ0MyJ9".to_owned(),
        r#"{"version":1,"device":"board-1","counter":1,"boot_id":"b","agent_version":"0.1","platform":{"os":"linux","architecture":"arm64"},"state":"idle"}"#.to_owned(),
    ];
    let mut seeds = vec![
        sign(&root, &[&key]).expect("sign"),
        sign(&timestamp, &[&key]).expect("sign"),
        sign(&snapshot, &[&key]).expect("sign"),
        sign(&targets, &[&key]).expect("sign"),
    ];
    seeds.extend(texts.map(String::into_bytes));
    seeds
}

#[test]
fn no_parser_panics_on_bent_input() {
    let mut random = Random(20_261_120);
    for seed in seeds() {
        for (_, target) in targets::TARGETS {
            target(&seed);
        }
        for _ in 0..ROUNDS {
            let mut bytes = seed.clone();
            random.bend(&mut bytes);
            for (_, target) in targets::TARGETS {
                target(&bytes);
            }
        }
    }
}
