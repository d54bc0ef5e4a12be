//! Writes a small repository as our publisher signs it, so that clients of others can be pointed at it.
//!
//! `tuf-publish DIR` makes `DIR/metadata` and `DIR/targets`: two root versions (the second retires the first root key and
//! is signed by both), a delegation by pattern, one by hash prefix, and a target in each.
//!
//! `tuf-publish --canonical` reads one JSON document a line, and writes its canonical bytes in hexadecimal.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufWriter, Write as _};
use std::path::Path;
use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp as Time};
use pki::digest::Digest;
use pki::key::SigningKey;
use pki::metadata::names::quote;
use pki::metadata::publish::{Successor as _, add_signature, sign};
use pki::metadata::roles::{RoleKeys, RootRoles, TimestampMeta};
use pki::metadata::{
    DelegatedRole, Delegations, FileMeta, Root, Scope, Snapshot, Target, TargetPath, Targets, Timestamp,
};
use serde_json::{Map, json};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let written = match std::env::args().nth(1) {
        Some(verb) if verb == "--canonical" => canonical(),
        Some(directory) => publish(Path::new(&directory)),
        None => Err("usage: tuf-publish DIR | --canonical".into()),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command line tool says on standard error why it failed")]
fn report(error: &dyn std::error::Error) {
    eprintln!("tuf-publish: {error}");
}

fn canonical() -> Outcome<()> {
    let mut output = BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let value = pki::json::parse(line?.as_bytes(), 1 << 20)?;
        let bytes = pki::canonical::to_bytes(&value)?;
        writeln!(output, "{}", data_encoding::HEXLOWER.encode(&bytes))?;
    }
    Ok(output.flush()?)
}

fn publish(directory: &Path) -> Outcome<()> {
    let metadata = directory.join("metadata");
    fs::create_dir_all(&metadata)?;
    fs::create_dir_all(directory.join("targets"))?;
    let expires = Time::now() + SignedDuration::from_hours(24);
    let keys = Keys::generate()?;

    let first = keys.first_root(expires);
    fs::write(metadata.join("1.root.json"), sign(&first, &[&keys.old_root])?)?;
    let second = keys.second_root(&first, expires);
    let by_old = sign(&second, &[&keys.old_root])?;
    fs::write(metadata.join("2.root.json"), add_signature(&by_old, &keys.new_root)?)?;

    let mut files = BTreeMap::new();
    let mut put = |role: &str, version: u64, bytes: Vec<u8>| -> Outcome<()> {
        files.insert(format!("{role}.json"), FileMeta::of(version, &bytes));
        Ok(fs::write(metadata.join(format!("{version}.{}.json", quote(role))), bytes)?)
    };
    let top = keys.top_level_targets(expires);
    put("targets", 1, sign(&with(&top, "app/top", directory)?, &[&keys.targets])?)?;
    put("team/a", 1, sign(&with(&empty(expires), "team/a/web", directory)?, &[&keys.team])?)?;
    let bin = with(&empty(expires), "anything/else", directory)?;
    put("bin-0-f", 1, sign(&bin, &[&keys.team])?)?;

    let snapshot = sign(&Snapshot { version: 1, expires, meta: files, extra: Map::new() }, &[&keys.online])?;
    fs::write(metadata.join("1.snapshot.json"), &snapshot)?;
    let meta = TimestampMeta { snapshot: FileMeta::of(1, &snapshot) };
    let timestamp = Timestamp { version: 1, expires, meta, extra: Map::new() };
    Ok(fs::write(metadata.join("timestamp.json"), sign(&timestamp, &[&keys.online])?)?)
}

struct Keys {
    old_root: SigningKey,
    new_root: SigningKey,
    online: SigningKey,
    targets: SigningKey,
    team: SigningKey,
}

impl Keys {
    fn generate() -> Outcome<Self> {
        Ok(Self {
            old_root: SigningKey::generate()?,
            new_root: SigningKey::generate()?,
            online: SigningKey::generate()?,
            targets: SigningKey::generate()?,
            team: SigningKey::generate()?,
        })
    }

    fn first_root(&self, expires: Time) -> Root {
        let keys = [&self.old_root, &self.online, &self.targets].map(SigningKey::public);
        let role = |key: &SigningKey| RoleKeys::new(&[key.public()], 1);
        Root {
            version: 1,
            expires,
            consistent_snapshot: true,
            keys: keys.into_iter().map(|key| (key.id(), key.clone())).collect(),
            roles: RootRoles {
                root: role(&self.old_root),
                timestamp: role(&self.online),
                snapshot: role(&self.online),
                targets: role(&self.targets),
                extra: Map::new(),
            },
            extra: Map::new(),
        }
    }

    fn second_root(&self, first: &Root, expires: Time) -> Root {
        let mut second = first.successor(expires);
        second.keys.remove(&self.old_root.public().id());
        second.keys.insert(self.new_root.public().id(), self.new_root.public().clone());
        second.roles.root = RoleKeys::new(&[self.new_root.public()], 1);
        second
    }

    fn top_level_targets(&self, expires: Time) -> Targets {
        let role = |name: &str, scope| -> Outcome<DelegatedRole> {
            Ok(DelegatedRole {
                name: name.parse()?,
                keyids: vec![self.team.public().id()],
                threshold: 1,
                terminating: true,
                scope,
                extra: Map::new(),
            })
        };
        let digits = "0123456789abcdef".chars().map(String::from).collect();
        let roles = [
            role("team/a", Scope::Paths(vec!["team/a/*".to_owned()])),
            role("bin-0-f", Scope::PathHashPrefixes(digits)),
        ];
        let team = self.team.public();
        Targets {
            delegations: Some(Delegations {
                keys: BTreeMap::from([(team.id(), team.clone())]),
                roles: roles.into_iter().flatten().collect(),
                extra: Map::new(),
            }),
            ..empty(expires)
        }
    }
}

fn empty(expires: Time) -> Targets {
    Targets { version: 1, expires, targets: BTreeMap::new(), delegations: None, extra: Map::new() }
}

/// Lists a target whose content is its own path, and writes it where clients fetch it.
fn with(document: &Targets, path: &str, directory: &Path) -> Outcome<Targets> {
    let content = path.as_bytes();
    let digest = Digest::sha256(content);
    let path: TargetPath = path.parse()?;
    let custom = json!({"media_type": "text/plain"}).as_object().cloned().unwrap_or_default();
    let mut document = document.clone();
    document.targets.insert(path.clone(), Target::new(digest, content.len() as u64, custom));
    let (folder, name) = path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()));
    let folder = directory.join("targets").join(folder);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("{}.{name}", digest.hex())), content)?;
    Ok(document)
}
