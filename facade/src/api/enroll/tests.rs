//! EST as a client of openssl and curl sees it, over the real authority and the real database.

use std::process::Command;

use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use pki::x509::{DeviceId, PrivateKey, pem};

use super::*;
use crate::api::alarm::Event;
use crate::catalog::devices::{Standing, TokenRequest};
use crate::store::sled::SledStore;

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const REFUSED: &[u8] = b"the enrollment token is not accepted\n";

struct Rig {
    est: Est,
    devices: Devices,
    directory: tempfile::TempDir,
}

fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn days(days: i64) -> Timestamp {
    now() + SignedDuration::from_hours(24 * days)
}

fn pump() -> DeviceId {
    "pump-7".parse().unwrap()
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) =
        SledStore::open(&directory.path().join("store"), &directory.path().join("dumps")).unwrap();
    let devices = Devices::new(Arc::new(store));
    let (root_key, issuing_key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let root = Authority::new_root(&root_key, now()).unwrap();
    let issuing = Authority::new_issuing(&root.der, &root_key, &issuing_key, now()).unwrap();
    let authority = Authority::load(root.der, issuing.der, issuing_key).unwrap();
    let policy = Policy {
        trust_domain: TrustDomain::default(),
        lifetime: SignedDuration::from_hours(24 * 30),
        grace: SignedDuration::from_hours(24 * 7),
    };
    let authorities = vec![authority.root().to_vec(), authority.issuing().to_vec()];
    Rig { est: Est::new(Arc::new(authority), authorities, devices.clone(), policy), devices, directory }
}

fn body(key: &PrivateKey) -> String {
    est::encode(&key.request().unwrap())
}

fn post(body: &str) -> Request<'_> {
    Request { content_type: Some(est::PKCS10), body: body.as_bytes() }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
}

fn certificate(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer.body));
    pkcs7::decode(&est::decode(&answer.body).unwrap()).unwrap().remove(0)
}

fn identity(answer: &Answer) -> Identity {
    Identity::from_certificate(&certificate(answer), &TrustDomain::default()).unwrap()
}

impl Rig {
    async fn token(&self, approval: bool) -> (TokenId, String) {
        let request = TokenRequest {
            device: Some(pump()),
            group: None,
            expires_at: days(1),
            uses: 1,
            approval,
            created_by: "admin".to_owned(),
        };
        let (record, secret) = self.devices.mint(request, now()).await.unwrap();
        (record.id, basic(&record.id.to_string(), &secret.expose()))
    }

    async fn post(&self, authorization: &str, body: &str) -> Answer {
        self.est.enroll(ADDRESS, Some(authorization), post(body), now()).await
    }

    async fn enrolled(&self) -> Identity {
        let (_, authorization) = self.token(false).await;
        let answer = self.post(&authorization, &body(&PrivateKey::generate().unwrap())).await;
        identity(&answer)
    }
}

#[tokio::test]
async fn a_token_gives_the_certificate_of_its_device() {
    let rig = rig();
    let (_, authorization) = rig.token(false).await;
    let key = PrivateKey::generate().unwrap();
    let answer = rig.post(&authorization, &body(&key)).await;
    assert_eq!(answer.content_type, Some("application/pkcs7-mime; smime-type=certs-only"));
    let identity = identity(&answer);
    assert_eq!((identity.id(), identity.key()), (&pump(), key.fingerprint()));
    assert_eq!(answer.changed.unwrap().standing, Standing::Active);
}

#[tokio::test]
async fn a_client_of_openssl_gets_a_certificate_that_openssl_verifies() {
    let rig = rig();
    let run = |command: &str| {
        let mut shell = Command::new("sh");
        let output = shell.args(["-ec", command]).current_dir(rig.directory.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let request = run(
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -subj /CN=anything \
         -outform DER | openssl base64 | sed 's/$/\\r/'",
    );
    let (_, authorization) = rig.token(false).await;
    let answer = rig.post(&authorization, &request).await;
    assert_eq!(answer.status, StatusCode::OK);
    std::fs::write(rig.directory.path().join("leaf.p7"), &answer.body).unwrap();
    std::fs::write(rig.directory.path().join("ca.p7"), rig.est.cacerts().body).unwrap();
    let printed = run("openssl base64 -d -in ca.p7 | openssl pkcs7 -inform DER -print_certs -out ca.pem
         openssl base64 -d -in leaf.p7 | openssl pkcs7 -inform DER -print_certs -out leaf.pem
         openssl verify -x509_strict -attime 1795176000 -purpose sslclient -CAfile ca.pem leaf.pem
         openssl x509 -in leaf.pem -noout -ext subjectAltName -subject
         test \"$(openssl x509 -in leaf.pem -noout -pubkey)\" = \"$(openssl pkey -in key.pem -pubout)\"");
    assert!(printed.contains("leaf.pem: OK"), "{printed}");
    assert!(printed.contains("URI:spiffe://drayage.internal/device/pump-7"), "{printed}");
    assert!(printed.contains("CN = pump-7"), "the facade names the device: {printed}");
    assert_eq!(
        pem::certificates(&std::fs::read_to_string(rig.directory.path().join("ca.pem")).unwrap())
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn the_whole_token_may_stand_for_user_and_password() {
    let rig = rig();
    let (id, authorization) = rig.token(false).await;
    let (_, secret) = credentials(Some(&authorization)).unwrap();
    let pin = r#"{"version":1,"sha256":"HASH"}"#.replace("HASH", &"ab".repeat(32));
    let json = format!(
        r#"{{"url":"https://f:8443","ca":"{}","images_root":{pin},"director_root":{pin},"id":"{id}","secret":"{}"}}"#,
        "ab".repeat(32),
        *secret.expose()
    );
    let token = format!("drayage1.{}", data_encoding::BASE64URL_NOPAD.encode(json.as_bytes()));
    let answer = rig.post(&basic("", &token), &body(&PrivateKey::generate().unwrap())).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn refused_tokens_are_refused_in_the_same_words() {
    let rig = rig();
    let (used, used_authorization) = rig.token(false).await;
    rig.post(&used_authorization, &body(&PrivateKey::generate().unwrap())).await;
    let (revoked, revoked_authorization) = rig.token(false).await;
    rig.devices.revoke_token(revoked).await.unwrap();
    let wrong = TokenSecret::generate().unwrap().expose();
    let request = body(&PrivateKey::generate().unwrap());
    for authorization in [
        used_authorization.as_str(),
        &revoked_authorization,
        &basic(&used.to_string(), &wrong),
        &basic("0123456789abcdef", &wrong),
        &basic("admin", "admin"),
        &basic("", "drayage1.x"),
        "Bearer abc",
        "Basic !!!",
        "Basic",
        "",
        &"x".repeat(9000),
    ] {
        let answer = rig.post(authorization, &request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{authorization}");
        assert_eq!(answer.body, REFUSED, "{authorization}");
        assert_eq!(answer.headers[0].0, WWW_AUTHENTICATE);
        assert!(answer.changed.is_none());
    }
    let (_, authorization) = rig.token(false).await;
    let expired = rig.est.enroll(ADDRESS, Some(&authorization), post(&request), days(2)).await;
    assert_eq!((expired.status, expired.body.as_slice()), (StatusCode::UNAUTHORIZED, REFUSED));
    let anonymous = rig.est.enroll(ADDRESS, None, post(&request), now()).await;
    assert_eq!(anonymous.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn of_two_parallel_enrollments_with_one_token_exactly_one_succeeds() {
    let rig = rig();
    let (_, authorization) = rig.token(false).await;
    let (one, two) = (body(&PrivateKey::generate().unwrap()), body(&PrivateKey::generate().unwrap()));
    let (one, two) = tokio::join!(rig.post(&authorization, &one), rig.post(&authorization, &two));
    let successes = [one, two].iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert_eq!(successes, 1);
}

#[tokio::test]
async fn rejects_bad_requests_without_spending_the_token() {
    let rig = rig();
    let (_, authorization) = rig.token(false).await;
    let good = body(&PrivateKey::generate().unwrap());
    let foreign = {
        let mut params = rcgen_params();
        params.subject_alt_names =
            vec![rcgen::SanType::URI("spiffe://drayage.internal/device/other".try_into().unwrap())];
        est::encode(params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().der())
    };
    let pem_text = pem::certificate(b"x");
    for (content_type, text, status) in [
        (None, good.as_str(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (Some("application/json"), &good, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (Some(est::PKCS10), "", StatusCode::BAD_REQUEST),
        (Some(est::PKCS10), "AAAA", StatusCode::BAD_REQUEST),
        (Some(est::PKCS10), &pem_text, StatusCode::BAD_REQUEST),
        (Some(est::PKCS10), &foreign, StatusCode::BAD_REQUEST),
        (Some(est::PKCS10), &"A".repeat(MAX_BODY_BYTES + 1), StatusCode::PAYLOAD_TOO_LARGE),
        (Some(est::PKCS10), &"A".repeat(MAX_BODY_BYTES), StatusCode::BAD_REQUEST),
    ] {
        let request = Request { content_type, body: text.as_bytes() };
        let answer = rig.est.enroll(ADDRESS, Some(&authorization), request, now()).await;
        assert_eq!(answer.status, status, "{content_type:?}");
        assert_eq!(answer.content_type, Some(TEXT));
    }
    let parameters = Request { content_type: Some("Application/PKCS10; charset=x"), body: good.as_bytes() };
    let answer = rig.est.enroll(ADDRESS, Some(&authorization), parameters, now()).await;
    assert_eq!(answer.status, StatusCode::OK);
}

fn rcgen_params() -> rcgen::CertificateParams {
    rcgen::CertificateParams::default()
}

#[tokio::test]
async fn a_facade_with_a_wrong_clock_spends_no_token() {
    let rig = rig();
    let (_, authorization) = rig.token(false).await;
    let request = body(&PrivateKey::generate().unwrap());
    let wrong = rig.est.enroll(ADDRESS, Some(&authorization), post(&request), Timestamp::UNIX_EPOCH).await;
    assert_eq!(wrong.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rig.post(&authorization, &request).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_device_that_needs_approval_is_told_when_to_come_again() {
    let rig = rig();
    let (_, authorization) = rig.token(true).await;
    let request = body(&PrivateKey::generate().unwrap());
    for _ in 0..2 {
        let answer = rig.post(&authorization, &request).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        assert_eq!(answer.headers[0], (RETRY_AFTER, "10".to_owned()));
    }
    rig.devices.approve(&pump()).await.unwrap();
    assert_eq!(identity(&rig.post(&authorization, &request).await).id(), &pump());
}

#[tokio::test]
async fn one_address_that_keeps_failing_is_slowed_down_and_nobody_else_is() {
    let rig = rig();
    let wrong = basic("0123456789abcdef", "x");
    let request = body(&PrivateKey::generate().unwrap());
    let mut answer = rig.post(&wrong, &request).await;
    for _ in 0..100 {
        answer = rig.post(&wrong, &request).await;
    }
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers[0].0, RETRY_AFTER);
    let (_, authorization) = rig.token(false).await;
    let other = "198.51.100.1".parse().unwrap();
    let answer = rig.est.enroll(other, Some(&authorization), post(&request), now()).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_device_renews_with_a_new_key_and_then_with_that() {
    let rig = rig();
    let first = rig.enrolled().await;
    let key = PrivateKey::generate().unwrap();
    let renewal = est::encode(&key.renewal_request(&pump()).unwrap());
    let second = identity(&rig.est.reenroll(&first, post(&renewal), days(20)).await);
    assert_eq!((second.id(), second.key()), (&pump(), key.fingerprint()));
    assert_ne!(second.serial(), first.serial());
    let renewal = body(&PrivateKey::generate().unwrap());
    let third = rig.est.reenroll(&second, post(&renewal), days(40)).await;
    assert_eq!(third.status, StatusCode::OK);
}

#[tokio::test]
async fn an_expired_certificate_renews_within_the_grace_period_and_not_beyond() {
    let rig = rig();
    let first = rig.enrolled().await;
    let renewal = body(&PrivateKey::generate().unwrap());
    let beyond = rig.est.reenroll(&first, post(&renewal), days(38)).await;
    assert_eq!(beyond.status, StatusCode::FORBIDDEN);
    assert!(String::from_utf8(beyond.body).unwrap().contains("new enrollment token"));
    let early = rig.est.reenroll(&first, post(&renewal), Timestamp::UNIX_EPOCH).await;
    assert_eq!(early.status, StatusCode::FORBIDDEN);
    let within = rig.est.reenroll(&first, post(&renewal), days(36)).await;
    assert_eq!(within.status, StatusCode::OK);
}

#[tokio::test]
async fn a_copy_of_a_device_is_noticed_at_renewal_and_both_are_stopped() {
    let rig = rig();
    let copied = rig.enrolled().await;
    let renew = async |identity: &Identity| {
        let renewal = body(&PrivateKey::generate().unwrap());
        rig.est.reenroll(identity, post(&renewal), days(20)).await
    };
    let second = identity(&renew(&copied).await);
    let third = identity(&renew(&second).await);
    let refused = renew(&copied).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(refused.changed.unwrap().standing, Standing::Quarantined);
    let alarm = refused.alarm.unwrap();
    assert_eq!((alarm.device, alarm.event), (pump(), Event::Quarantined));
    assert!(alarm.reason.contains("restored from a backup"), "{}", alarm.reason);
    assert_eq!(renew(&third).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn rejects_renewal_of_devices_that_are_turned_away_or_unknown() {
    let rig = rig();
    let device = rig.enrolled().await;
    let renewal = body(&PrivateKey::generate().unwrap());
    rig.devices.suspend(&pump(), None).await.unwrap();
    assert_eq!(rig.est.reenroll(&device, post(&renewal), now()).await.status, StatusCode::FORBIDDEN);
    rig.devices.revoke(&pump(), None).await.unwrap();
    let refused = rig.est.reenroll(&device, post(&renewal), now()).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(refused.alarm.unwrap().event, Event::RenewalRefused);
    rig.devices.delete(&pump()).await.unwrap();
    let answer = rig.est.reenroll(&device, post(&renewal), now()).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(answer.changed.is_none() && answer.alarm.is_none());
}

#[tokio::test]
async fn rejects_a_renewal_under_another_name() {
    let rig = rig();
    let device = rig.enrolled().await;
    let key = PrivateKey::generate().unwrap();
    let renewal = est::encode(&key.renewal_request(&"other".parse().unwrap()).unwrap());
    let answer = rig.est.reenroll(&device, post(&renewal), now()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[test]
fn there_are_no_attributes_that_a_request_should_have() {
    assert_eq!(rig().est.csrattrs().status, StatusCode::NO_CONTENT);
    let anchors = rig().est.cacerts();
    assert_eq!(anchors.content_type, Some("application/pkcs7-mime"));
}
