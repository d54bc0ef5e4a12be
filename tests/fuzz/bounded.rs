//! The fuzz targets for a moment in every test run: honest files, bent at random, always in the same way.

#![expect(clippy::expect_used, reason = "a finding has to stop the run")]

#[expect(dead_code, reason = "libFuzzer runs targets by name, this runs all")]
#[expect(unreachable_pub, reason = "the fuzz crate's own library, which is public there")]
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
                0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (at % 8)),
                1 => bytes.truncate(at),
                2 => {
                    let piece: Vec<u8> = bytes.iter().skip(at).take(40).copied().collect();
                    bytes.splice(at..at, piece);
                }
                _ => {
                    let trouble = TROUBLE.into_iter().nth(self.below(TROUBLE.len())).unwrap_or_default();
                    bytes.splice(at..at, trouble.iter().copied());
                }
            }
        }
    }
}

/// Honest inputs, by the target that takes them.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = metadata_seeds();
    let digest = pki::digest::Digest::sha256(b"x");
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":3}}]}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":2,"platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}}]}}"#
    );
    let texts = [
        ("manifest", manifest),
        ("manifest", index),
        ("canonical_json", r#"{"b":[1,null,true,"\u00e9"],"a":{"":-1}}"#.to_owned()),
        ("names", format!("registry.example.com:5000/team/app@{digest}")),
        ("names", "https://[::1]:8443".to_owned()),
        ("token", "drayage1.eyJ1cmwiOiJodHRwczovL2g6ODQ0MyJ9".to_owned()),
        ("report", REPORT.to_owned()),
        ("challenge", CHALLENGE.to_owned()),
    ];
    seeds.extend(texts.map(|(target, text)| (target, text.into_bytes())));
    let (certificate, request) = x509_seeds();
    let message = pki::x509::pkcs7::encode([certificate.as_slice()]);
    seeds.push(("est", pki::x509::est::encode(&request).into_bytes()));
    seeds.push(("est", pki::x509::est::encode(&message).into_bytes()));
    seeds.push(("certificate", pki::x509::pem::certificate(&certificate).into_bytes()));
    seeds.push(("certificate", certificate));
    seeds.push(("csr", request));
    seeds
}

const REPORT: &str = r#"{"version":1,"device":"board-1","counter":1,"boot_id":"b","agent_version":"0.1","platform":{"os":"linux","architecture":"arm64"},"state":"idle","refused":[{"metadata":"director/timestamp.json","code":"metadata_rollback","reason":"old"}],"metadata":{"images":{"root":1,"timestamp":2,"snapshot":2,"targets":2}},"proof":{"images":"{}"}}"#;

const CHALLENGE: &str = "Bearer realm=\"https://auth.example.com/token\",service=\"r\\\"s\",scope=\"repository:a/b:pull,push\"\nBasic realm=x, Digest a=b";

/// A certificate and a certificate request.
fn x509_seeds() -> (Vec<u8>, Vec<u8>) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let uri = "spiffe://fleet.example/device/board-1".try_into().expect("a URI");
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let request = params.serialize_request(&key).expect("a request").der().to_vec();
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key).expect("a certificate").der().to_vec();
    (certificate, request)
}

fn metadata_seeds() -> Vec<(&'static str, Vec<u8>)> {
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
    let meta = TimestampMeta { snapshot: FileMeta::of(1, b"x") };
    let timestamp = Timestamp { version: 1, expires, meta, extra: Map::new() };
    vec![
        ("metadata_root", sign(&root, &[&key]).expect("sign")),
        ("metadata_timestamp", sign(&timestamp, &[&key]).expect("sign")),
        ("metadata_snapshot", sign(&snapshot, &[&key]).expect("sign")),
        ("metadata_targets", sign(&targets, &[&key]).expect("sign")),
    ]
}

#[test]
fn no_parser_panics_on_bent_input() {
    let mut random = Random(20_261_120);
    for (_, seed) in seeds() {
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

/// A seed that its own parser refuses would teach the fuzzer nothing. `tests/fuzz/run` has them written where it begins.
#[test]
fn the_seeds_are_what_their_parsers_take() {
    let seeds = seeds();
    for (target, _) in targets::TARGETS {
        assert!(seeds.iter().any(|(name, _)| *name == target), "{target} has no seed");
    }
    for (target, bytes) in &seeds {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let taken = match *target {
            "csr" => pki::x509::Csr::parse(bytes).is_ok(),
            "est" => pki::x509::est::decode(bytes).is_ok(),
            "report" => pki::wire::Report::parse(bytes).is_ok(),
            "names" => {
                text.parse::<pki::oci::ArtifactName>().is_ok() || text.parse::<pki::wire::FacadeUrl>().is_ok()
            }
            "canonical_json" => pki::json::parse(bytes, 1 << 20).is_ok(),
            "certificate" => {
                let domain = "fleet.example".parse().expect("a domain");
                pki::x509::pem::certificates(&text).is_ok()
                    || pki::x509::Identity::from_certificate(bytes, &domain).is_ok()
            }
            _ => !bytes.is_empty(),
        };
        assert!(taken, "{target} refuses its seed {text}");
    }
    let Some(directory) = harness::process::setting("DRAYAGE_FUZZ_SEEDS") else { return };
    for (number, (target, bytes)) in seeds.iter().enumerate() {
        let corpus = std::path::Path::new(&directory).join(target);
        std::fs::create_dir_all(&corpus).expect("make a directory");
        std::fs::write(corpus.join(format!("seed-{number}")), bytes).expect("write a seed");
    }
}
