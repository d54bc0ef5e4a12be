//! Enrollment and renewal, and everything that may cut them.

use device_agent::clock::Clock;
use device_agent::identity::keys::Keys;
use device_agent::identity::renew::{Renewal, renew};
use device_agent::identity::{Identity, IdentityError};
use device_agent::state_file::StateDir;
use jiff::SignedDuration;

use crate::facade::{Facade, Fault};
use crate::world::{Device, enroll_in};

#[tokio::test]
async fn a_token_gives_a_whole_identity() {
    let (facade, device) = (Facade::start().await, Device::new());
    let identity = device.enroll(&facade).await.unwrap();
    assert_eq!(identity.device().as_str(), "board-7");
    let state = device.state();
    for file in [
        "identity/key.pem",
        "identity/cert.pem",
        "identity/ca.pem",
        "facade.json",
        "metadata/images/root.json",
        "metadata/director/root.json",
    ] {
        assert!(state.has(file).unwrap(), "{file}");
    }
    assert!(state.list("enrolling").unwrap().is_empty());
    let again = device.enroll(&facade).await.unwrap_err();
    assert!(matches!(again, IdentityError::AlreadyEnrolled { .. }));
}

#[tokio::test]
async fn refuses_a_foreign_facade_before_the_secret_is_sent() {
    let (facade, device) = (Facade::start().await, Device::new());
    facade.script().foreign_ca = true;
    let error = device.enroll(&facade).await.unwrap_err();
    assert!(matches!(error, IdentityError::WrongFacade { .. }), "{error}");
    assert_eq!(facade.script().secrets_seen, 0);
    assert_eq!(facade.count("simpleenroll"), 0);
    assert!(!device.state().has("facade.json").unwrap());
}

#[tokio::test]
async fn refuses_root_metadata_other_than_the_token_pins() {
    let (facade, device) = (Facade::start().await, Device::new());
    facade.fault("director/1.root.json", Fault::WrongByte);
    let error = device.enroll(&facade).await.unwrap_err();
    assert!(matches!(error, IdentityError::WrongRoot { .. }), "{error}");
    assert!(Identity::load(&device.state(), &Keys::default()).unwrap().is_none());
    device.enroll(&facade).await.unwrap();
}

#[tokio::test]
async fn junk_in_place_of_certificates_is_refused_and_costs_nothing_but_the_attempt() {
    let (facade, device) = (Facade::start().await, Device::new());
    for (path, fault) in [
        ("cacerts", Fault::CutAt(10)),
        ("cacerts", Fault::WrongByte),
        ("simpleenroll", Fault::WrongByte),
        ("simpleenroll", Fault::Encoded),
        ("simpleenroll", Fault::Redirect),
    ] {
        facade.fault(path, fault);
        device.enroll(&facade).await.unwrap_err();
        assert!(Identity::load(&device.state(), &Keys::default()).unwrap().is_none(), "{path}");
    }
    device.enroll(&facade).await.unwrap();
}

#[tokio::test]
async fn tells_a_refused_token_from_a_lost_connection() {
    let (facade, device) = (Facade::start().await, Device::new());
    facade.fault("simpleenroll", Fault::Status(401));
    let refused = device.enroll(&facade).await.unwrap_err();
    assert!(matches!(refused, IdentityError::TokenRefused(_)), "{refused}");
    facade.fault("simpleenroll", Fault::Hangup);
    let lost = device.enroll(&facade).await.unwrap_err();
    assert!(matches!(lost, IdentityError::Client(_)), "{lost}");
}

#[tokio::test]
async fn waits_until_an_operator_approves() {
    let (facade, device) = (Facade::start().await, Device::new());
    facade.script().approvals_missing = 1;
    device.enroll(&facade).await.unwrap();
    assert_eq!(facade.count("simpleenroll"), 2);
}

#[tokio::test]
async fn a_cut_at_any_step_leaves_a_whole_identity_or_none() {
    let facade = Facade::start().await;
    let mut cuts = 0;
    for changes in 0.. {
        let device = Device::new();
        let dying = StateDir::open(&device.state_path()).unwrap();
        dying.fuse().burn_after(changes);
        if enroll_in(&dying, &facade).await.is_ok() {
            break;
        }
        cuts += 1;
        // The device starts again: whatever is there is whole, or the same token still works.
        let state = device.state();
        match Identity::load(&state, &Keys::default()) {
            Ok(Some(identity)) => assert_eq!(identity.device().as_str(), "board-7"),
            Ok(None) => {
                enroll_in(&state, &facade).await.unwrap();
            }
            Err(error) => panic!("cut after {changes} changes: {error}"),
        }
        assert!(Identity::load(&state, &Keys::default()).unwrap().is_some());
        assert!(state.list("enrolling").unwrap().is_empty());
    }
    assert!(cuts > 8, "walked only {cuts} cuts");
}

#[tokio::test]
async fn a_repeated_attempt_uses_the_same_key() {
    let (facade, device) = (Facade::start().await, Device::new());
    facade.fault("images/1.root.json", Fault::Hangup);
    device.enroll(&facade).await.unwrap_err();
    let key = std::fs::read(device.state_path().join("enrolling/key.pem")).unwrap();
    device.enroll(&facade).await.unwrap();
    let now = std::fs::read(device.state_path().join("identity/key.pem")).unwrap();
    assert_eq!(key, now);
}

async fn renew_in(state: &StateDir, identity: &Identity) -> Result<Renewal, IdentityError> {
    let clock = Clock::system();
    let client = identity.client(&clock, None).unwrap();
    let keys = Keys::default();
    let around =
        device_agent::identity::enroll::Surroundings { state, clock: &clock, proxy: None, keys: &keys };
    renew(around, identity, &client).await
}

#[tokio::test]
async fn renewal_takes_a_new_key_and_a_cut_at_any_step_leaves_one_that_works() {
    let (facade, device) = (Facade::start().await, Device::new());
    device.enroll(&facade).await.unwrap();
    for changes in 0.. {
        let state = device.state();
        let old = Identity::load(&state, &Keys::default()).unwrap().unwrap();
        let dying = device.state();
        dying.fuse().burn_after(changes);
        let done = renew_in(&dying, &old).await.is_ok();
        let left = Identity::load(&device.state(), &Keys::default())
            .unwrap_or_else(|error| panic!("cut after {changes} changes: {error}"))
            .unwrap();
        let client = left.client(&Clock::system(), None).unwrap();
        client.get("/v2/", 1000).await.unwrap();
        if done {
            assert_ne!(left.certificate().key(), old.certificate().key());
            assert!(changes > 2, "renewal makes {changes} changes only");
            break;
        }
    }
}

#[tokio::test]
async fn a_certificate_that_the_facade_does_not_accept_is_not_put_in_place() {
    let (facade, device) = (Facade::start().await, Device::new());
    let identity = device.enroll(&facade).await.unwrap();
    facade.fault("/v2/", Fault::Status(401));
    renew_in(&device.state(), &identity).await.unwrap_err();
    let left = Identity::load(&device.state(), &Keys::default()).unwrap().unwrap();
    assert_eq!(left.certificate().key(), identity.certificate().key());
    assert!(!device.state().has("identity/next/cert.pem").unwrap());
}

#[tokio::test]
async fn a_device_whose_clock_shows_1970_enrolls_and_syncs() {
    let (facade, device) = (Facade::start().await, Device::new());
    let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
    let (state, keys) = (device.state(), Keys::default());
    let around = device_agent::identity::enroll::Surroundings {
        state: &state,
        clock: &clock,
        proxy: None,
        keys: &keys,
    };
    device_agent::identity::enroll::enroll(
        around,
        &facade.token,
        device_agent::identity::enroll::Replace::Never,
    )
    .await
    .unwrap();
    drop(state);
    device.sync_at(Clock::manual(jiff::Timestamp::UNIX_EPOCH)).await.unwrap();
    let report = facade.script().reports.last().unwrap().clone();
    assert_eq!(report["state"], "waiting_for_clock");
}

#[tokio::test]
async fn renews_by_itself_after_two_thirds_of_the_certificates_life() {
    let (facade, device) = (Facade::start().await, Device::new());
    let before = device.enroll(&facade).await.unwrap();
    let late = before.certificate().not_before()
        + SignedDuration::from_secs(
            before.certificate().not_after().duration_since(before.certificate().not_before()).as_secs() / 4
                * 3,
        );
    facade.script().repositories.images.expires = late + SignedDuration::from_hours(1);
    assert!(before.renew_at(0) < late && before.renew_at(u64::MAX) < late);
    assert!(before.renew_at(7) > before.certificate().not_before());
}
