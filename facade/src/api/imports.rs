//! `/api/v1/imports`

use axum::Json;
use futures_util::{StreamExt, stream};
use pki::oci::{Repository, Tag};

use super::auth::{Caller, Role};
use super::extract::{Body, field};
use super::problem::{Problem, chain};
use super::types::{ImportOutcome, ImportReport, ImportRequest, ImportResult};
use super::{Answer, State};
use crate::catalog::artifacts::Artifact;
use crate::catalog::imports::{self, ImportError, Resolved};
use crate::publish::images::Outcome;
use crate::upstream::{Registry, UpstreamError};
use pki::oci::manifest::DocumentError;

/// Most tags of one batch.
const MAX_TAGS: usize = 500;

/// Tags that are resolved at a time.
const AT_A_TIME: usize = 4;

/// Imports tags as signed artifacts, each with its own outcome
#[utoipa::path(post, path = "/api/v1/imports", request_body = ImportRequest, tag = "import",
    responses((status = 200, body = ImportReport), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn import(
    state: State,
    caller: Caller,
    Body(request): Body<ImportRequest>,
) -> Answer<ImportReport> {
    caller.require(Role::Operator)?;
    let repository: Repository = field("repository", &request.repository)?;
    if request.tags.is_empty() || request.tags.len() > MAX_TAGS {
        return Err(Problem::invalid("tags", format!("must be 1 to {MAX_TAGS} tags")));
    }
    let registry = state.registries.registry(repository.host())?;
    let import = Import {
        state: &state,
        registry: &registry,
        repository: &repository,
        by: &caller.name,
        pin: request.pin,
    };
    let results = stream::iter(request.tags)
        .map(|tag| import.one(tag))
        .buffered(AT_A_TIME)
        .collect()
        .await;
    Ok(Json(ImportReport { results }))
}

/// One batch.
struct Import<'a> {
    state: &'a State,
    registry: &'a Registry,
    repository: &'a Repository,
    by: &'a str,
    pin: bool,
}

impl Import<'_> {
    async fn one(&self, text: String) -> ImportResult {
        let tag = match text.parse::<Tag>() {
            Ok(tag) => tag,
            Err(error) => return failed(text, ImportOutcome::Unsupported, error.to_string()),
        };
        match self.sign(&tag).await {
            Ok(result) => result,
            Err(failure) => failed(text, failure.outcome, failure.reason),
        }
    }

    async fn sign(&self, tag: &Tag) -> Result<ImportResult, Failure> {
        let resolved = imports::resolve(self.registry, self.repository, tag).await?;
        let before = self
            .state
            .artifacts
            .last_import(self.repository, tag)
            .await
            .map_err(|error| internal(&error))?;
        let before = before.filter(|before| *before != resolved.closure.name);
        let artifact = self.artifact(&resolved, tag);
        if let Some(old) = self
            .state
            .artifacts
            .get(artifact.name())
            .await
            .map_err(|error| internal(&error))?
            && old.revoked_at.is_some()
        {
            let reason = format!(
                "{} was revoked; a revoked artifact is not signed again",
                old.name()
            );
            return Err(Failure {
                outcome: ImportOutcome::Denied,
                reason,
            });
        }
        self.state
            .keep_documents(&resolved)
            .await
            .map_err(|error| internal(&error))?;
        let signed = self
            .state
            .images
            .add(&artifact, tag)
            .await
            .map_err(|error| Failure {
                outcome: ImportOutcome::Failed,
                reason: Problem::from(error).detail,
            })?;
        if signed != Outcome::Pending {
            // Nobody is served what the operators have not signed.
            self.state.access.set_artifact(&artifact.closure);
        }
        let outcome = match (signed, &before) {
            (Outcome::Pending, _) => ImportOutcome::Pending,
            (Outcome::Unchanged, _) => ImportOutcome::Unchanged,
            (Outcome::Signed, Some(_)) => ImportOutcome::Moved,
            (Outcome::Signed, None) => ImportOutcome::Imported,
        };
        tracing::info!(artifact = %artifact.name(), tag = %tag, by = %self.by, outcome = ?outcome, "tag imported");
        let mut result = ImportResult {
            tag: tag.to_string(),
            outcome,
            artifact: Some(artifact.name().to_string()),
            moved_from: before.map(|before| before.to_string()),
            platforms: artifact.platform_names(),
            size_bytes: Some(artifact.closure.size_bytes()),
            pinned: false,
            reason: None,
        };
        if self.pin {
            match self.state.pin(&artifact.closure).await {
                Ok(()) => result.pinned = true,
                Err(error) => {
                    result.outcome = ImportOutcome::Failed;
                    result.reason = Some(format!("signed, but not pinned: {}", chain(&error)));
                }
            }
        }
        Ok(result)
    }

    fn artifact(&self, resolved: &Resolved, tag: &Tag) -> Artifact {
        Artifact {
            closure: resolved.closure.clone(),
            tag: tag.clone(),
            platforms: resolved.platforms.clone(),
            imported_at: self.state.clock.now(),
            imported_by: self.by.to_owned(),
            revoked_at: None,
        }
    }
}

struct Failure {
    outcome: ImportOutcome,
    reason: String,
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        let outcome = match &error {
            ImportError::Upstream(upstream) => upstream_outcome(upstream),
            ImportError::Document {
                source: DocumentError::TooLarge,
                ..
            }
            | ImportError::TooMany => ImportOutcome::TooLarge,
            ImportError::Document { .. }
            | ImportError::Size { .. }
            | ImportError::Type { .. }
            | ImportError::Ambiguous(_)
            | ImportError::TooDeep
            | ImportError::Config(_) => ImportOutcome::Unsupported,
        };
        Self {
            outcome,
            reason: chain(&error),
        }
    }
}

fn upstream_outcome(error: &UpstreamError) -> ImportOutcome {
    match error {
        UpstreamError::NotFound { .. } => ImportOutcome::Missing,
        UpstreamError::Unauthenticated { .. }
        | UpstreamError::Denied { .. }
        | UpstreamError::Forbidden { .. } => ImportOutcome::Denied,
        UpstreamError::RateLimited { .. } => ImportOutcome::RateLimited,
        UpstreamError::TooLarge { .. } => ImportOutcome::TooLarge,
        _ => ImportOutcome::Failed,
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure {
        outcome: ImportOutcome::Failed,
        reason: Problem::internal(error).detail,
    }
}

fn failed(tag: String, outcome: ImportOutcome, reason: String) -> ImportResult {
    ImportResult {
        tag,
        outcome,
        artifact: None,
        moved_from: None,
        platforms: Vec::new(),
        size_bytes: None,
        pinned: false,
        reason: Some(reason),
    }
}
