//! What the agent says when TLS does not work out.

use device_agent::clock::Clock;
use device_agent::facade_client::{Class, ClientError, FacadeClient, TlsCause, TlsSettings};
use device_agent::identity::IdentityError;

use crate::facade::Facade;
use crate::world::Device;

#[tokio::test]
async fn refuses_a_certificate_for_another_name_and_keeps_the_secret() {
    let (facade, device) = (Facade::start_named("facade.example").await, Device::new());
    let error = device.enroll(&facade).await.unwrap_err();
    let IdentityError::Client(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.class(), Class::Impostor, "{error}");
    assert_eq!(facade.script().secrets_seen, 0);
}

#[tokio::test]
async fn names_the_issuer_of_whoever_is_in_between() {
    let (ours, theirs, device) = (Facade::start().await, Facade::start().await, Device::new());
    let identity = device.enroll(&ours).await.unwrap();
    let tls = TlsSettings::new(identity.anchors(), None, &Clock::system()).unwrap();
    let client = FacadeClient::new(&theirs.token.url, &tls, None).unwrap();
    let error = client.get("/v2/", 1000).await.unwrap_err();
    let ClientError::Tls { cause: TlsCause::Intercepted { issuer }, .. } = &error else {
        panic!("{error}");
    };
    assert!(issuer.contains("Issuing"), "{issuer}");
}

#[tokio::test]
async fn a_facade_that_does_not_know_our_ca_is_understood_though_tls_1_3_says_it_late() {
    let (ours, theirs) = (Facade::start().await, Facade::start().await);
    let (device, other) = (Device::new(), Device::new());
    device.enroll(&ours).await.unwrap();
    other.enroll(&theirs).await.unwrap();
    // Our certificate, shown to them; their anchors, so that we believe them.
    let anchors = std::fs::read(other.state_path().join("identity/ca.pem")).unwrap();
    std::fs::write(device.state_path().join("identity/ca.pem"), anchors).unwrap();
    let facade = std::fs::read(other.state_path().join("facade.json")).unwrap();
    std::fs::write(device.state_path().join("facade.json"), facade).unwrap();
    let error = device.sync().await.unwrap_err();
    let text = device_agent::error_chain(&error);
    assert!(text.contains("CA that it does not know"), "{text}");
    assert!(device.state().has("identity/disowned").unwrap());
}
