//! What devices ask for besides content: metadata, reports, news, certificates.
//!
//! Whoever arrives here was authorized by the door. A device is who its certificate says; nothing in a header or body
//! makes it another.

use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode, header};
use pki::digest::Digest;
use pki::wire::{DevicePolicy, MAX_REPORT_BYTES, Report, Subject, WaitAnswer};
use serde::Serialize;
use tokio::time::Instant;

use super::alarm::Alarm;
use super::enroll;
use super::problem::chain;
use crate::catalog::devices::CertificateError;
use crate::catalog::events::Kind;
use crate::facade::Facade;
use crate::publish::PublishingError;
use crate::server::body::Body;
use crate::server::respond::{self, Dialect};
use crate::server::route::{Action, MetadataRepository};
use crate::server::tls::Device;
use crate::server::{DeviceRequest, Handler};

/// Most refusals of one report that become events: a hostile device must not push out what others have to tell.
const MAX_RAISED: usize = 8;

/// The handler of the device door.
pub fn handler(facade: Arc<Facade>) -> Handler {
    Arc::new(move |request| {
        let facade = Arc::clone(&facade);
        Box::pin(async move { answer(&facade, request).await })
    })
}

/// Boxes what takes room: most devices wait most of the time, and each would hold the room for a report meanwhile.
async fn answer(facade: &Facade, request: DeviceRequest) -> Response<Body> {
    match (&request.action, &request.device) {
        (Action::CaCerts, _) => est(facade, facade.est.cacerts()),
        (Action::CsrAttrs, _) => est(facade, facade.est.csrattrs()),
        (Action::Enroll | Action::Reenroll, _) => Box::pin(enroll(facade, request)).await,
        (Action::Metadata { repository, file }, Some(device)) => {
            Box::pin(metadata(facade, device, *repository, file, &request.headers)).await
        }
        (Action::Wait { since }, Some(device)) => wait(facade, device, *since).await,
        (Action::Report, Some(_)) => Box::pin(report(facade, request)).await,
        (
            Action::Ping
            | Action::Content(_)
            | Action::Metadata { .. }
            | Action::Wait { .. }
            | Action::Report,
            _,
        ) => Dialect::Problem.error(StatusCode::NOT_FOUND, "NOT_FOUND", "there is nothing at this path"),
    }
}

/// A first certificate for a token, or the next one for a device.
async fn enroll(facade: &Facade, request: DeviceRequest) -> Response<Body> {
    let DeviceRequest { device, headers, body, remote, request_id, .. } = request;
    let body = match body.read(enroll::MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(error) => return error.response(),
    };
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = enroll::Request { content_type: text(header::CONTENT_TYPE), body: &body };
    let now = facade.clock.now();
    let mut answer = match &device {
        None => {
            let answer = facade.est.enroll(remote.ip(), text(header::AUTHORIZATION), asked, now).await;
            if let Some(enrolled) = &answer.changed {
                facade.events.raise_by(
                    &enrolled.id,
                    Kind::DeviceEnrolled,
                    format!("is {}", enrolled.standing),
                );
            }
            answer
        }
        Some(device) => {
            let answer = facade.est.reenroll(device.identity(), asked, now).await;
            if let Some(renewed) = &answer.changed {
                facade.events.raise_by(&renewed.id, Kind::DeviceRenewed, "has its next certificate");
            } else {
                // A refused renewal may have quarantined the device; requests are decided from memory.
                facade.reload_device(device.id()).await;
            }
            answer
        }
    };
    if let Some(alarm) = answer.alarm.take() {
        facade.raise(alarm, remote.ip(), &request_id).await;
    }
    est(facade, answer)
}

fn est(facade: &Facade, answer: enroll::Answer) -> Response<Body> {
    if let Some(device) = &answer.changed {
        facade.assignments.device_changed(device);
    }
    let mut response = if answer.status.is_client_error() || answer.status.is_server_error() {
        // RFC 7030 leaves the type of an error open; on this door it is what it is everywhere outside /v2/.
        let reason = String::from_utf8_lossy(&answer.body);
        Dialect::Problem.error(answer.status, est_code(answer.status), reason.trim_end())
    } else {
        let mut response = Response::new(Body::full(answer.body));
        *response.status_mut() = answer.status;
        if let Some(kind) = answer.content_type {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        response
    };
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn est_code(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "UNAUTHORIZED",
        StatusCode::FORBIDDEN => "DENIED",
        StatusCode::TOO_MANY_REQUESTS => "TOO_MANY_REQUESTS",
        status if status.is_server_error() => "UNAVAILABLE",
        _ => "MALFORMED_REQUEST",
    }
}

async fn metadata(
    facade: &Facade,
    device: &Device,
    repository: MetadataRepository,
    file: &str,
    headers: &http::HeaderMap,
) -> Response<Body> {
    let found = match repository {
        MetadataRepository::Images => facade.images.file(file).await,
        MetadataRepository::Director => {
            let wanted = facade.assignments.wanted(device.id());
            let policy = policy(facade, device);
            facade.director.file(device.id(), &wanted, &policy, file).await
        }
    };
    match found {
        Ok(Some(bytes)) => {
            let tag = format!("\"{}\"", Digest::sha256(&bytes));
            let known = headers.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok());
            let mut response = if known == Some(&tag) {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                response
            } else {
                respond::bytes("application/json", Body::full(bytes))
            };
            if let Ok(tag) = HeaderValue::try_from(tag) {
                response.headers_mut().insert(header::ETAG, tag);
            }
            // A device must see the newest timestamp, whatever stands between it and us.
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Ok(None) => Dialect::Problem.error(StatusCode::NOT_FOUND, "NOT_FOUND", "there is no such metadata"),
        Err(error) => failed(&error),
    }
}

fn policy(facade: &Facade, device: &Device) -> DevicePolicy {
    facade.policies.for_device(device.id(), &facade.assignments.groups(device.id()))
}

fn failed(error: &PublishingError) -> Response<Body> {
    tracing::error!(error = %chain(error), "metadata could not be served");
    Dialect::Problem.error(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the facade failed; try again")
}

/// Returns when there is something newer than `since` for the device, or with 204 when there was not for a while.
async fn wait(facade: &Facade, device: &Device, since: u64) -> Response<Body> {
    let deadline = Instant::now() + facade.wait_timeout;
    loop {
        let Some(news) = facade.assignments.news(device.id()) else {
            return Dialect::Problem.error(StatusCode::FORBIDDEN, "DENIED", "the device is not welcome");
        };
        // Listening begins before looking, so that nothing falls between the two.
        let news = news.notified();
        let wanted = facade.assignments.wanted(device.id());
        let policy = policy(facade, device);
        match Box::pin(facade.director.version(device.id(), &wanted, &policy)).await {
            Ok(version) if version != since => return json(&WaitAnswer { version }),
            Ok(_) => {}
            Err(error) => return failed(&error),
        }
        tokio::select! {
            () = news => {}
            () = tokio::time::sleep_until(deadline) => break,
            () = facade.stopping.cancelled() => break,
        }
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

async fn report(facade: &Facade, request: DeviceRequest) -> Response<Body> {
    let Some(device) = &request.device else {
        return Dialect::Problem.error(
            StatusCode::FORBIDDEN,
            "DENIED",
            "a client certificate of this facade is needed",
        );
    };
    let (remote, request_id) = (request.remote.ip(), request.request_id.clone());
    let bytes = match request.body.read(MAX_REPORT_BYTES).await {
        Ok(bytes) => bytes,
        Err(error) => return error.response(),
    };
    let mut report = match Report::parse(&bytes) {
        Ok(report) => report,
        Err(error) => {
            return Dialect::Problem.error(
                StatusCode::UNPROCESSABLE_ENTITY,
                "MALFORMED_REPORT",
                &chain(&error),
            );
        }
    };
    // The session says who reports. A report about another device is a lie.
    if report.device != *device.id() {
        let detail = "the report is about another device than the certificate";
        return Dialect::Problem.error(StatusCode::FORBIDDEN, "DENIED", detail);
    }
    raise_refusals(facade, &report).await;
    for refusal in &report.refused {
        tracing::warn!(device.id = %device.id(), subject = ?refusal.subject, code = %refusal.code, reason = %refusal.reason, "device refused");
    }
    // Judged once, and not kept with the report.
    let (seen, proof) = (report.metadata, std::mem::take(&mut report.proof));
    let observed = facade.images.observe(device.id(), seen.images, proof.images.as_deref()).await;
    let director = facade.director.observe(device.id(), seen.director, proof.director.as_deref()).await;
    let observed = observed.and(director);
    if let Err(error) = observed {
        tracing::error!(error = %chain(&error), "what a device has seen could not be kept");
    }
    let now = facade.clock.now();
    // The first report under a new certificate shows that the device has it: the one before is refused from here on.
    match facade.devices.confirm(device.id(), device.identity().serial(), now).await {
        Ok(Some(changed)) => facade.assignments.device_changed(&changed),
        Ok(None) => {}
        Err(error) => return report_refused(facade, device, error).await,
    }
    match facade.devices.record_report(report.clone(), now).await {
        Ok(answer) => {
            facade.assignments.census().set_report(&report);
            facade.assignments.reported(device.id(), &report.platform, report.free_bytes);
            facade.rollouts.observe(&report, now);
            json(&answer)
        }
        Err(error) => {
            if let Some(alarm) = Alarm::of(&error) {
                facade.raise(alarm, remote, &request_id).await;
            }
            report_refused(facade, device, error).await
        }
    }
}

/// Tells the operator what a device refuses, unless it has told so before.
async fn raise_refusals(facade: &Facade, report: &Report) {
    if report.refused.is_empty() {
        return;
    }
    let last = facade.devices.report(&report.device).await.ok().flatten();
    let known = last.map(|last| last.report.refused).unwrap_or_default();
    let news = report.refused.iter().filter(|refusal| !known.contains(refusal));
    for refusal in news.take(MAX_RAISED) {
        let (kind, what) = match &refusal.subject {
            Subject::Artifact(name) => (Kind::ContentRefused, name.to_string()),
            Subject::Metadata(file) => (Kind::MetadataRefused, file.as_str().to_owned()),
        };
        let detail = format!("refused {what}: {} ({})", refusal.reason.as_str(), refusal.code);
        facade.events.raise_by(&report.device, kind, detail);
    }
}

async fn report_refused(facade: &Facade, device: &Device, error: CertificateError) -> Response<Body> {
    if let CertificateError::Store(error) = error {
        tracing::error!(error = %chain(&error), "report could not be kept");
        return Dialect::Problem.error(
            StatusCode::SERVICE_UNAVAILABLE,
            "UNAVAILABLE",
            "the facade failed; try again",
        );
    }
    tracing::warn!(device.id = %device.id(), error = %chain(&error), "report refused");
    // A refusal may have quarantined the device; requests are decided from memory.
    facade.reload_device(device.id()).await;
    Dialect::Problem.error(StatusCode::FORBIDDEN, "DENIED", "the device is not welcome")
}

fn json<T: Serialize>(value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => respond::bytes("application/json", Body::full(bytes)),
        Err(error) => {
            tracing::error!(%error, "answer could not be written");
            Dialect::Problem.error(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", "the facade failed")
        }
    }
}
