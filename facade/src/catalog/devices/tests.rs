//! The rules of enrollment and renewal, over the real database.

use jiff::SignedDuration;
use pki::oci::Platform;
use pki::wire::{AgentState, Line, Report, TokenSecret};
use pki::x509::{Fingerprint, Issued, Serial};

use super::*;
use crate::store::sled::SledStore;

struct Rig {
    devices: Devices,
    _directory: tempfile::TempDir,
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) =
        SledStore::open(&directory.path().join("store"), &directory.path().join("dumps")).unwrap();
    Rig { devices: Devices::new(Arc::new(store)), _directory: directory }
}

fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn later(hours: i64) -> Timestamp {
    now() + SignedDuration::from_hours(hours)
}

fn request(device: Option<&str>, uses: u32) -> TokenRequest {
    TokenRequest {
        device: device.map(|id| id.parse().unwrap()),
        group: Some("pumps".parse().unwrap()),
        expires_at: later(1),
        uses,
        approval: false,
        created_by: "admin".to_owned(),
    }
}

fn key(number: u8) -> Fingerprint {
    Fingerprint::of(&[number])
}

fn issued(number: u8) -> Issued {
    Issued { der: vec![number], serial: serial(number), not_before: now(), not_after: later(24 * 30) }
}

fn serial(number: u8) -> Serial {
    Serial::from_bytes(&[number]).unwrap()
}

fn pump() -> DeviceId {
    "pump-7".parse().unwrap()
}

fn report(counter: u64, boot: &str) -> Report {
    Report::new(
        pump(),
        counter,
        boot.parse().unwrap(),
        Line::shortened("0.1.0"),
        Platform::new("linux", "arm64", None),
        AgentState::Idle,
    )
}

impl Rig {
    async fn token(&self, request: TokenRequest) -> (TokenId, TokenSecret) {
        let (record, secret) = self.devices.mint(request, now()).await.unwrap();
        (record.id, secret)
    }

    async fn redeem(
        &self,
        token: &(TokenId, TokenSecret),
        key: Fingerprint,
    ) -> Result<Redeemed, RedeemError> {
        self.devices.redeem(token.0, &token.1, key, |_| Ok(()), now()).await
    }

    async fn grant(&self, token: &(TokenId, TokenSecret), key: Fingerprint) -> Grant {
        match self.redeem(token, key).await.unwrap() {
            Redeemed::Granted(grant) => grant,
            Redeemed::Waiting(device) => panic!("{device} waits"),
        }
    }

    /// `pump-7` with certificate 1.
    async fn enrolled(&self) -> Device {
        let token = self.token(request(Some("pump-7"), 1)).await;
        let grant = self.grant(&token, key(1)).await;
        self.devices.enroll(grant, &issued(1), now()).await.unwrap()
    }

    async fn check(&self, number: u8) -> Result<Device, CertificateError> {
        self.devices.check_certificate(&pump(), &serial(number), now()).await
    }

    async fn renew(&self, old: u8, new: u8) -> Device {
        self.check(old).await.unwrap();
        let renewed = self.devices.renew(&pump(), &serial(old), &issued(new), key(new), now()).await;
        renewed.unwrap()
    }
}

#[tokio::test]
async fn a_token_enrolls_its_device_into_its_group() {
    let rig = rig();
    let device = rig.enrolled().await;
    assert_eq!(device.id, pump());
    assert_eq!(device.standing, Standing::Active);
    assert_eq!(device.groups.first().unwrap().as_str(), "pumps");
    assert_eq!(rig.devices.get(&pump()).await.unwrap(), Some(device.clone()));
    assert_eq!(rig.devices.list(None, 10).await.unwrap(), [device]);
    assert!(rig.devices.list(Some(&pump()), 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn of_parallel_uses_exactly_one_succeeds() {
    let rig = rig();
    let token = rig.token(request(Some("pump-7"), 1)).await;
    let uses = (0..16).map(|number| rig.redeem(&token, key(number)));
    let outcomes = futures_util::future::join_all(uses).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for refused in outcomes.into_iter().filter_map(Result::err) {
        assert!(matches!(refused, RedeemError::UsedUp), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_parallel_uses_on_many_threads_as_many_succeed_as_the_budget_allows() {
    let rig = rig();
    let (id, secret) = rig.token(request(None, 5)).await;
    let tracker = tokio_util::task::TaskTracker::new();
    let uses: Vec<_> = (0..12)
        .map(|number| {
            let (devices, secret) = (rig.devices.clone(), secret.clone());
            tracker.spawn(
                async move { devices.redeem(id, &secret, key(number), |_| Ok(()), now()).await.is_ok() },
            )
        })
        .collect();
    let mut successes = 0;
    for outcome in uses {
        successes += u32::from(outcome.await.unwrap());
    }
    assert_eq!(successes, 5);
}

#[tokio::test]
async fn a_use_is_stored_before_anything_is_signed() {
    let rig = rig();
    let token = rig.token(request(Some("pump-7"), 1)).await;
    drop(rig.grant(&token, key(1)).await);
    assert_eq!(rig.devices.tokens(None, 10).await.unwrap()[0].uses_left, 0);
    assert!(matches!(rig.redeem(&token, key(2)).await, Err(RedeemError::UsedUp)));
    // The device whose answer was lost asks again with its key: that is the same use.
    assert!(matches!(rig.redeem(&token, key(1)).await, Ok(Redeemed::Granted(_))));
}

#[tokio::test]
async fn rejects_wrong_unknown_expired_and_revoked_tokens_and_tells_them_apart() {
    let rig = rig();
    let token = rig.token(request(None, 1)).await;
    let wrong = (token.0, TokenSecret::generate().unwrap());
    assert!(matches!(rig.redeem(&wrong, key(1)).await, Err(RedeemError::WrongSecret)));
    let unknown = (TokenId::generate().unwrap(), token.1.clone());
    assert!(matches!(rig.redeem(&unknown, key(1)).await, Err(RedeemError::Unknown)));
    let expired = rig.devices.redeem(token.0, &token.1, key(1), |_| Ok(()), later(1)).await;
    assert!(matches!(expired, Err(RedeemError::Expired(at)) if at == later(1)));
    rig.devices.revoke_token(token.0).await.unwrap();
    assert!(matches!(rig.redeem(&token, key(1)).await, Err(RedeemError::Revoked)));
    assert_eq!(rig.devices.tokens(None, 10).await.unwrap()[0].state(now()), TokenState::Revoked);
}

#[tokio::test]
async fn rejects_tokens_that_make_no_sense() {
    let rig = rig();
    let mint = |request| rig.devices.mint(request, now());
    assert!(matches!(mint(request(None, 0)).await, Err(DevicesError::Uses(0))));
    assert!(matches!(mint(request(Some("pump-7"), 2)).await, Err(DevicesError::UsesOfOne(_))));
    let past = TokenRequest { expires_at: now(), ..request(None, 1) };
    assert!(matches!(mint(past).await, Err(DevicesError::Expiry(_))));
    let unknown = rig.devices.revoke_token(TokenId::generate().unwrap()).await;
    assert!(matches!(unknown, Err(DevicesError::NoSuchToken(_))));
}

#[tokio::test]
async fn a_token_without_a_device_names_each_key_and_never_renames_it() {
    let rig = rig();
    let token = rig.token(request(None, 3)).await;
    let (one, two) = (rig.grant(&token, key(1)).await, rig.grant(&token, key(2)).await);
    assert_ne!(one.device(), two.device());
    assert!(one.device().as_str().starts_with("pumps-"));
    let device = rig.devices.enroll(one, &issued(1), now()).await.unwrap();
    assert_eq!(rig.grant(&token, key(1)).await.device(), &device.id);
}

#[tokio::test]
async fn rejects_an_unbound_token_for_the_name_of_a_device_with_another_key() {
    let rig = rig();
    let token = rig.token(request(None, 3)).await;
    let grant = rig.grant(&token, key(1)).await;
    rig.devices.enroll(grant, &issued(9), now()).await.unwrap();
    let device = rig.devices.list(None, 1).await.unwrap().remove(0);
    rig.devices.renew(&device.id, &serial(9), &issued(10), key(2), now()).await.unwrap();
    assert!(matches!(rig.redeem(&token, key(1)).await, Err(RedeemError::OtherKey(_))));
}

#[tokio::test]
async fn a_token_for_a_device_enrolls_it_anew_and_ends_its_old_certificate() {
    let rig = rig();
    rig.enrolled().await;
    let token = rig.token(request(Some("pump-7"), 1)).await;
    let grant = rig.grant(&token, key(2)).await;
    let device = rig.devices.enroll(grant, &issued(2), now()).await.unwrap();
    assert_eq!(device.presented(&serial(2)), Presented::Current);
    assert_eq!(device.presented(&serial(1)), Presented::Superseded);
    assert_eq!(device.access().refused_serials, [serial(1)]);
}

#[tokio::test]
async fn rejects_enrolling_a_device_that_is_turned_away() {
    let rig = rig();
    rig.enrolled().await;
    let token = rig.token(request(Some("pump-7"), 1)).await;
    for standing in [Standing::Suspended, Standing::Revoked] {
        if standing == Standing::Suspended {
            rig.devices.suspend(&pump(), None).await.unwrap();
        } else {
            rig.devices.revoke(&pump(), Some("stolen".to_owned())).await.unwrap();
        }
        let refused = rig.redeem(&token, key(2)).await;
        assert!(matches!(refused, Err(RedeemError::TurnedAway(_, found)) if found == standing));
    }
    // And none of these attempts cost a use.
    let tokens = rig.devices.tokens(None, 10).await.unwrap();
    assert!(tokens.iter().any(|known| known.id == token.0 && known.uses_left == 1));
}

#[tokio::test]
async fn rejects_recording_a_certificate_when_the_device_was_revoked_meanwhile() {
    let rig = rig();
    rig.enrolled().await;
    let token = rig.token(request(Some("pump-7"), 1)).await;
    let grant = rig.grant(&token, key(2)).await;
    rig.devices.revoke(&pump(), None).await.unwrap();
    let refused = rig.devices.enroll(grant, &issued(2), now()).await;
    assert!(matches!(refused, Err(CertificateError::TurnedAway(_, Standing::Revoked))));
}

#[tokio::test]
async fn with_approval_a_device_waits_and_asks_again_for_the_same_use() {
    let rig = rig();
    let token = rig.token(TokenRequest { approval: true, ..request(Some("pump-7"), 1) }).await;
    for _ in 0..2 {
        assert!(matches!(rig.redeem(&token, key(1)).await.unwrap(), Redeemed::Waiting(id) if id == pump()));
    }
    // Somebody else with the same token does not slip in.
    assert!(matches!(rig.redeem(&token, key(2)).await, Err(RedeemError::TurnedAway(_, Standing::Pending))));
    rig.devices.approve(&pump()).await.unwrap();
    let grant = rig.grant(&token, key(1)).await;
    rig.devices.enroll(grant, &issued(1), now()).await.unwrap();
    assert!(matches!(rig.redeem(&token, key(2)).await, Err(RedeemError::UsedUp)));
}

#[tokio::test]
async fn a_renewal_keeps_the_old_certificate_until_the_new_one_is_used() {
    let rig = rig();
    rig.enrolled().await;
    let device = rig.renew(1, 2).await;
    assert_eq!(device.presented(&serial(1)), Presented::Previous);
    assert!(device.superseded.is_empty());
    assert!(rig.devices.confirm(&pump(), &serial(1), now()).await.unwrap().is_none());
    let device = rig.devices.confirm(&pump(), &serial(2), now()).await.unwrap().unwrap();
    assert_eq!(device.presented(&serial(1)), Presented::Superseded);
    assert!(rig.devices.confirm(&pump(), &serial(2), now()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_device_whose_renewal_was_lost_renews_again_with_what_it_has() {
    let rig = rig();
    rig.enrolled().await;
    rig.renew(1, 2).await;
    let device = rig.renew(1, 3).await;
    assert_eq!(device.presented(&serial(3)), Presented::Current);
    assert_eq!(device.presented(&serial(1)), Presented::Previous);
    assert_eq!(device.presented(&serial(2)), Presented::Superseded);
}

#[tokio::test]
async fn a_superseded_certificate_at_renewal_puts_the_device_in_quarantine() {
    let rig = rig();
    rig.enrolled().await;
    rig.renew(1, 2).await;
    rig.renew(2, 3).await;
    let Err(CertificateError::Quarantined(device)) = rig.check(1).await else {
        panic!("the copy was not noticed");
    };
    assert_eq!(device.standing, Standing::Quarantined);
    assert!(device.reason.as_ref().unwrap().contains("restored from a backup"));
    // Neither of the two goes on until an operator decides.
    assert!(matches!(rig.check(3).await, Err(CertificateError::TurnedAway(_, Standing::Quarantined))));
    rig.devices.restore(&pump()).await.unwrap();
    assert!(rig.check(3).await.is_ok());
}

#[tokio::test]
async fn rejects_a_certificate_of_a_deleted_device_that_enrolled_anew_without_alarm() {
    let rig = rig();
    rig.enrolled().await;
    rig.devices.delete(&pump()).await.unwrap();
    assert!(matches!(rig.check(1).await, Err(CertificateError::NotEnrolled(_))));
    let token = rig.token(request(Some("pump-7"), 1)).await;
    let grant = rig.grant(&token, key(2)).await;
    let anew = Issued { not_before: later(1), ..issued(2) };
    let device = rig.devices.enroll(grant, &anew, later(1)).await.unwrap();
    assert_eq!(device.access().not_issued_before, Some(later(1)));
    assert!(matches!(rig.check(1).await, Err(CertificateError::Former(_))));
    assert_eq!(rig.devices.get(&pump()).await.unwrap().unwrap().standing, Standing::Active);
}

#[tokio::test]
async fn reports_count_on_and_the_same_report_may_come_twice() {
    let rig = rig();
    rig.enrolled().await;
    for counter in [5, 6, 6, 9] {
        let answer = rig.devices.record_report(report(counter, "a"), now()).await.unwrap();
        assert_eq!(answer.next_counter, counter + 1);
    }
    assert_eq!(rig.devices.report(&pump()).await.unwrap().unwrap().report.counter, 9);
}

/// A copy on the same machine, with the same boot, disk and counter, has word for word the same to tell.
#[tokio::test]
async fn a_copy_that_tells_the_same_under_the_same_counter_puts_the_device_in_quarantine() {
    let rig = rig();
    rig.enrolled().await;
    let of = |nonce: &str| {
        let mut report = report(6, "a");
        report.nonce = nonce.parse().ok();
        report
    };
    for _ in 0..2 {
        rig.devices.record_report(of("5be1"), now()).await.unwrap();
    }
    let copied = rig.devices.record_report(of("07c4"), now()).await;
    assert!(matches!(copied, Err(CertificateError::Quarantined(_))));
}

#[tokio::test]
async fn a_report_with_a_counter_that_was_used_puts_the_device_in_quarantine() {
    let rig = rig();
    rig.enrolled().await;
    rig.devices.record_report(report(6, "a"), now()).await.unwrap();
    let refused = rig.devices.record_report(report(6, "b"), now()).await;
    let Err(CertificateError::Quarantined(device)) = refused else {
        panic!("the copy was not noticed");
    };
    assert!(device.reason.unwrap().contains("restored from a backup"));
    let both = rig.devices.record_report(report(7, "a"), now()).await;
    assert!(matches!(both, Err(CertificateError::TurnedAway(_, Standing::Quarantined))));
    // The operator decides, and the device counts on from wherever it is.
    rig.devices.restore(&pump()).await.unwrap();
    rig.devices.record_report(report(2, "b"), now()).await.unwrap();
}

#[tokio::test]
async fn rejects_wishes_that_the_standing_does_not_allow() {
    let rig = rig();
    assert!(matches!(rig.devices.revoke(&pump(), None).await, Err(DevicesError::NoSuchDevice(_))));
    assert!(matches!(rig.devices.delete(&pump()).await, Err(DevicesError::NoSuchDevice(_))));
    rig.enrolled().await;
    assert!(matches!(rig.devices.approve(&pump()).await, Err(DevicesError::Standing { .. })));
    rig.devices.revoke(&pump(), None).await.unwrap();
    assert!(matches!(rig.devices.restore(&pump()).await, Err(DevicesError::Standing { .. })));
    assert!(matches!(rig.devices.suspend(&pump(), None).await, Err(DevicesError::Standing { .. })));
}
