//! Every point at which `init` can be interrupted, and every way in which the directory can be unsafe.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

struct Rig {
    options: Options,
    directory: tempfile::TempDir,
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        data_dir: directory.path().join("data"),
        hostnames: vec!["facade.example.com".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()],
        trust_domain: None,
        offline: None,
        now: "2026-11-20T12:00:00.5Z".parse().unwrap(),
    };
    Rig { options, directory }
}

impl Rig {
    fn init(&self) -> Result<Outcome, InitError> {
        init(&self.options)
    }

    fn open(&self) -> Result<DataDir, InitError> {
        DataDir::open(&self.options.data_dir, None)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.options.data_dir.join(name)
    }

    fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut contents = BTreeMap::new();
        let mut left = vec![self.options.data_dir.clone()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    contents.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        contents
    }

    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

#[test]
fn makes_everything_once_for_its_owner_alone_and_then_nothing() {
    let rig = rig();
    let created = rig.init().unwrap().created;
    let before = rig.contents();
    assert_eq!(before.len(), created.len());
    for path in before.keys() {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }
    assert_eq!(rig.init().unwrap(), Outcome::default());
    assert_eq!(rig.contents(), before);
    let data = rig.open().unwrap();
    assert_eq!(data.trust_domain, TrustDomain::default());
    assert_eq!(data.server_chain.len(), 2);
    assert_eq!(Some(data.images.chain.pin().sha256), data.images.chain.file(1).map(Fingerprint::of));
    let token = fs::read_to_string(rig.path(ADMIN_TOKEN)).unwrap();
    assert!(token.starts_with("drayage-admin."));
    assert_eq!(data.admin_token_hash, Fingerprint::of(token.trim().as_bytes()).to_string());
}

#[test]
fn an_empty_directory_made_by_hand_is_made_private_and_one_with_something_in_it_is_refused() {
    let rig = rig();
    fs::create_dir(&rig.options.data_dir).unwrap();
    rig.set_mode("", 0o755);
    assert!(rig.init().unwrap().made_private);
    assert_eq!(fs::metadata(&rig.options.data_dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!rig.init().unwrap().made_private);
    rig.set_mode("", 0o755);
    assert!(matches!(rig.init(), Err(InitError::Exposed { .. })));
}

#[test]
fn a_run_interrupted_anywhere_is_completed_and_replaces_nothing() {
    let whole = rig();
    let created = whole.init().unwrap().created;
    for done in 0..=created.len() {
        // What the disk holds if the power goes after so many files, with the next one half written.
        let cut = rig();
        for name in &created[..done] {
            fs::create_dir_all(cut.path(name).parent().unwrap()).unwrap();
            fs::copy(whole.path(name), cut.path(name)).unwrap();
        }
        if let Some(next) = created.get(done) {
            fs::create_dir_all(cut.path(next).parent().unwrap()).unwrap();
            fs::write(cut.path(next).with_extension("draft"), "half").unwrap();
        }
        for directory in ["", "ca", "tls", "keys", "tuf", "tuf/images", "tuf/director"] {
            if cut.path(directory).exists() {
                cut.set_mode(directory, 0o700);
            }
        }
        let before = cut.contents();
        assert_eq!(cut.init().unwrap().created, created[done..], "cut after {done}");
        for (path, content) in
            before.iter().filter(|(path, _)| path.extension().is_none_or(|kind| kind != "draft"))
        {
            assert_eq!(&fs::read(path).unwrap(), content, "{path:?}");
        }
        assert!(cut.contents().keys().all(|path| path.extension().is_none_or(|kind| kind != "draft")));
        cut.open().unwrap();
    }
}

#[test]
fn keys_that_were_taken_offline_do_not_come_back() {
    let rig = rig();
    rig.init().unwrap();
    for name in [ROOT_KEY, ADMIN_TOKEN, "keys/images-root.key", "keys/director-root.key"] {
        fs::remove_file(rig.path(name)).unwrap();
    }
    assert_eq!(rig.init().unwrap(), Outcome::default());
    let images = rig.open().unwrap().images;
    assert!(!images.ring.suffices(&images.chain.current().roles.root));
}

#[test]
fn openssl_verifies_the_server_chain() {
    let rig = rig();
    rig.init().unwrap();
    let output = std::process::Command::new("openssl")
        .args(
            "verify -x509_strict -attime 1795176000 -purpose sslserver -verify_hostname facade.example.com"
                .split(' '),
        )
        .args("-CAfile ca/root.pem -untrusted tls/server.pem tls/server.pem".split(' '))
        .current_dir(&rig.options.data_dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn rejects_other_names_and_domains_than_those_in_use() {
    let rig = rig();
    rig.init().unwrap();
    let before = rig.contents();
    let other = Options { hostnames: vec!["other.example.com".to_owned()], ..rig.options.clone() };
    let refused = init(&other).unwrap_err();
    assert!(
        matches!(refused, InitError::OtherNames { .. }) && refused.to_string().contains("run init again")
    );
    let other = Options { trust_domain: Some("other.example.com".to_owned()), ..rig.options.clone() };
    assert!(matches!(init(&other), Err(InitError::OtherTrustDomain { .. })));
    assert_eq!(rig.contents(), before);
    let mut reordered = rig.options.clone();
    reordered.hostnames.reverse();
    assert_eq!(init(&reordered).unwrap(), Outcome::default());
}

#[test]
fn rejects_wishes_that_make_no_sense_before_anything_is_made() {
    let rig = rig();
    for hostnames in [vec![], vec!["https://x".to_owned()], vec!["*.example.com".to_owned()]] {
        assert!(init(&Options { hostnames, ..rig.options.clone() }).is_err());
    }
    let wrong = Options { trust_domain: Some("UPPER".to_owned()), ..rig.options.clone() };
    assert!(matches!(init(&wrong), Err(InitError::TrustDomain(_))));
    assert!(!rig.options.data_dir.exists());
}

#[test]
fn rejects_directories_and_files_that_others_could_read() {
    let rig = rig();
    rig.init().unwrap();
    for (name, open, closed) in [("", 0o750, 0o700), ("keys", 0o711, 0o700), (ISSUING_KEY, 0o640, 0o600)] {
        rig.set_mode(name, open);
        assert!(matches!(rig.open(), Err(InitError::Exposed { .. })), "{name}");
        let refused = rig.init().unwrap_err();
        assert!(refused.to_string().contains("chmod"), "{refused}");
        rig.set_mode(name, closed);
    }
    rig.open().unwrap();
}

#[test]
fn rejects_links_in_place_of_files_and_directories() {
    for name in [SEAL_KEY, "keys"] {
        let rig = rig();
        rig.init().unwrap();
        let elsewhere = rig.directory.path().join("elsewhere");
        fs::rename(rig.path(name), &elsewhere).unwrap();
        symlink(&elsewhere, rig.path(name)).unwrap();
        assert!(matches!(rig.open(), Err(InitError::Link(_))), "{name}");
        assert!(matches!(rig.init(), Err(InitError::Link(_))), "{name}");
    }
}

#[test]
fn rejects_every_file_that_is_damaged_and_names_it() {
    let whole = rig();
    for name in whole.init().unwrap().created {
        // The root's key and the token's text are not what a server runs on.
        if [ROOT_KEY, ADMIN_TOKEN].contains(&name.as_str()) {
            continue;
        }
        let content = fs::read(whole.path(&name)).unwrap();
        for damage in [&b""[..], b"Junk!", &content[..content.len() / 2]] {
            // Half of the name of a domain is the name of another domain.
            if name == TRUST_DOMAIN && damage.len() > 5 {
                continue;
            }
            fs::write(whole.path(&name), damage).unwrap();
            let refused = whole.open().err().unwrap_or_else(|| panic!("{name} with {damage:?}"));
            assert!(refused.to_string().contains(name.split('/').next().unwrap()), "{name}: {refused}");
        }
        fs::write(whole.path(&name), content).unwrap();
    }
    whole.open().unwrap();
}

#[test]
fn says_what_to_do_when_a_file_is_missing() {
    let rig = rig();
    assert!(rig.open().err().unwrap().to_string().contains("facade init"));
    rig.init().unwrap();
    fs::remove_file(rig.path(SEAL_KEY)).unwrap();
    let refused = rig.open().err().unwrap();
    assert!(matches!(&refused, InitError::Missing { path, .. } if path.ends_with(SEAL_KEY)));
}

#[test]
fn rejects_a_second_run_while_one_is_at_work() {
    let rig = rig();
    let files = Files::create(&rig.options.data_dir).unwrap();
    assert!(matches!(rig.init(), Err(InitError::Busy(_))));
    drop(files);
    rig.init().unwrap();
}

#[test]
fn the_server_certificate_renews_itself_under_its_key_when_two_thirds_are_over() {
    let rig = rig();
    rig.init().unwrap();
    let before = rig.open().unwrap();
    let day = |days: i64| rig.options.now + SignedDuration::from_hours(24 * days);
    assert!(!renew_server_certificate(&rig.options.data_dir, day(59)).unwrap());
    assert!(renew_server_certificate(&rig.options.data_dir, day(61)).unwrap());
    assert!(!renew_server_certificate(&rig.options.data_dir, day(61)).unwrap());
    let after = rig.open().unwrap();
    assert_ne!(after.server_chain, before.server_chain);
    assert_eq!(after.server_names, before.server_names);
    assert_eq!(after.server_key, before.server_key);
    assert_eq!(rig.init().unwrap(), Outcome::default());
}

#[test]
fn a_server_certificate_from_a_clock_that_was_fast_is_replaced() {
    let rig = rig();
    rig.init().unwrap();
    let day = |days: i64| rig.options.now + SignedDuration::from_hours(24 * days);
    assert!(renew_server_certificate(&rig.options.data_dir, day(61)).unwrap());
    assert!(rig.open().unwrap().check_server_certificate(day(1)).is_err());
    assert!(renew_server_certificate(&rig.options.data_dir, day(1)).unwrap());
    rig.open().unwrap().check_server_certificate(day(1)).unwrap();
}

#[test]
fn a_server_certificate_of_the_operators_own_is_left_alone() {
    let rig = rig();
    rig.init().unwrap();
    let key = load::private_key(&Files::open(&rig.options.data_dir).unwrap(), SERVER_KEY).unwrap();
    let mut params = rcgen::CertificateParams::new(rig.options.hostnames.clone()).unwrap();
    params.not_after = rcgen::date_time_ymd(2026, 12, 1);
    let own = params.self_signed(&key).unwrap();
    fs::write(rig.path(SERVER), own.pem()).unwrap();
    let late = rig.options.now + SignedDuration::from_hours(24 * 365);
    assert!(!renew_server_certificate(&rig.options.data_dir, late).unwrap());
    assert_eq!(rig.open().unwrap().server_chain.len(), 1);
}

#[test]
fn offline_keys_never_come_into_the_data_directory() {
    let rig = rig();
    let offline = Offline {
        directory: rig.directory.path().join("operator"),
        passphrase: crate::secret::Secret::new("correct horse battery".to_owned()),
    };
    let options = Options { offline: Some(offline.clone()), ..rig.options.clone() };
    init(&options).unwrap();
    for name in ["images-root", "images-targets", "director-root"] {
        assert!(offline.directory.join(format!("{name}.key")).exists(), "{name}");
        assert!(!rig.path(&format!("keys/{name}.key")).exists(), "{name}");
    }
    let data = rig.open().unwrap();
    assert!(data.first_targets.is_some());
    let root = data.images.chain.current();
    assert!(data.images.ring.signers(&root.roles.targets).is_empty());
    assert!(data.images.ring.suffices(&root.roles.timestamp));
    assert_eq!(init(&options).unwrap(), Outcome::default());
}

#[test]
fn rejects_offline_keys_within_the_data_directory() {
    let rig = rig();
    let offline = Offline {
        directory: rig.path("offline"),
        passphrase: crate::secret::Secret::new("correct horse battery".to_owned()),
    };
    let options = Options { offline: Some(offline), ..rig.options.clone() };
    assert!(matches!(init(&options), Err(InitError::NotOffline(_))));
}
