//! Enrollment: make a token, show the one command once, list and revoke tokens.

use std::fmt::Write as _;

use askama::Template;
use axum::response::Response;
use qrcode::{Color, EcLevel, QrCode};

use super::fields::encoded;
use super::guard::{Change, Visit};
use super::page::{Failure, Frame, Outcome, html, page};
use crate::api::problem::Problem;
use crate::api::types::{EnrollmentToken, EnrollmentTokenRequest, NewEnrollmentToken, Page};

const HERE: &str = "/console/enrollment";

#[derive(Template)]
#[template(path = "console/enrollment.html")]
struct Enrollment {
    frame: Frame,
    tokens: Page<EnrollmentToken>,
}

#[derive(Template)]
#[template(path = "console/token.html")]
struct Made<'a> {
    token: &'a NewEnrollmentToken,
    picture: Option<Picture>,
}

/// A QR code as the path of an SVG.
struct Picture {
    side: usize,
    path: String,
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let path = format!("/api/v1/enrollment-tokens?limit=100{}", visit.query.query(&["after"]));
    let tokens = visit.api.get(&path).await?;
    Ok(page(&Enrollment { frame: visit.frame("Enrollment", HERE), tokens }))
}

pub(super) async fn make(change: Change) -> Response {
    let outcome = mint(&change).await;
    change.back(HERE, outcome)
}

async fn mint(change: &Change) -> Result<String, Problem> {
    let fields = &change.fields;
    let request = EnrollmentTokenRequest {
        device: fields.filled("device"),
        group: fields.filled("group"),
        ttl_seconds: fields.number("ttl_seconds"),
        uses: u32::try_from(fields.number("uses")).unwrap_or(u32::MAX),
        approve: fields.ticked("approve"),
    };
    let token: NewEnrollmentToken = change.visit.api.send("/api/v1/enrollment-tokens", &request).await?;
    Ok(html(&Made { picture: picture(&token.token), token: &token }))
}

pub(super) async fn revoke(change: Change) -> Response {
    let path = format!("/api/v1/enrollment-tokens/{}", encoded(change.fields.text("id")));
    let revoked: Result<EnrollmentToken, Problem> = change.visit.api.delete(&path).await;
    let outcome = revoked.map(|token| Outcome::done(&format!("Token {} is revoked.", token.id)).html());
    change.back(HERE, outcome)
}

/// Draws a text, for a phone that is nearer to the device than this screen.
fn picture(text: &str) -> Option<Picture> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let side = code.width();
    let mut path = String::new();
    for (place, color) in code.to_colors().into_iter().enumerate() {
        if color == Color::Dark {
            // Writing to a string does not fail.
            let _ = write!(path, "M{} {}h1v1h-1z", place % side + 4, place / side + 4);
        }
    }
    Some(Picture { side: side + 8, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_fits_into_a_picture_with_its_quiet_zone() {
        let drawn = picture(&"x".repeat(800)).unwrap();
        assert!(drawn.path.starts_with("M4 4h1v1h-1z"));
        assert!(drawn.side > 100);
    }

    #[test]
    fn what_is_too_long_for_a_picture_has_none() {
        assert!(picture(&"x".repeat(5000)).is_none());
    }
}
