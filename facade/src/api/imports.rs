//! `/api/v1/imports`

use std::time::Duration;

use axum::Json;
use futures_util::{StreamExt, stream};
use pki::oci::manifest::DocumentError;
use pki::oci::{ArtifactName, Platform, Repository};
use pki::x509::DeviceId;

use super::audience::Audience;
use super::auth::{Caller, Role};
use super::extract::{Body, field};
use super::problem::{Problem, chain};
use super::types::{ImportOutcome, ImportReport, ImportRequest, ImportResult};
use super::{Answer, State};
use crate::catalog::artifacts::Artifact;
use crate::catalog::devices::Group;
use crate::catalog::events::Kind;
use crate::catalog::imports::{self, ImportError, Resolved, Wanted};
use crate::publish::images::Outcome;
use crate::upstream::{Registry, UpstreamError};

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
    let repository: Repository = field("repository", &request.repository)?;
    if caller.is_pusher() {
        demand_delegated(&state, &caller, &repository, &request).await?;
    } else {
        caller.require(Role::Operator)?;
    }
    if request.tags.is_empty() || request.tags.len() > MAX_TAGS {
        return Err(Problem::invalid("tags", format!("must be 1 to {MAX_TAGS} tags")));
    }
    if request.pin && !state.puller.caches() {
        return Err(Problem::conflict(
            "nothing can be pinned: the cache of this facade is switched off (cache_enabled)",
        ));
    }
    let registry = state.registries.registry(repository.host())?;
    let import = Import {
        audience: audience(&state, &request).await?,
        state: &state,
        registry: &registry,
        repository: &repository,
        by: &caller.name,
        pin: request.pin,
        dry_run: request.dry_run,
    };
    let results = stream::iter(request.tags).map(|tag| import.one(tag));
    let results = results.buffered(AT_A_TIME).collect().await;
    Ok(Json(ImportReport { results }))
}

/// A pusher imports for the publisher of its own name, and learns nothing of devices.
async fn demand_delegated(
    state: &State,
    caller: &Caller,
    repository: &Repository,
    request: &ImportRequest,
) -> Result<(), Problem> {
    let delegations = state.images.delegations().await;
    let delegated = delegations.iter().any(|delegation| {
        let publisher = &delegation.publisher;
        publisher.name.as_str() == caller.name && publisher.repositories.contains(repository)
    });
    if !delegated {
        return Err(Problem::forbidden(format!(
            "{repository} is not delegated to {name} (facade keys delegate {name} --repository {repository})",
            name = caller.name
        )));
    }
    if request.pin || request.for_device.is_some() || request.for_group.is_some() {
        return Err(Problem::forbidden("a pusher only imports; pinning and devices are the operators'"));
    }
    Ok(())
}

/// The devices that the artifacts are meant for.
async fn audience(state: &State, request: &ImportRequest) -> Result<Audience, Problem> {
    let device: Option<DeviceId> =
        request.for_device.as_deref().map(|text| field("for_device", text)).transpose()?;
    if let Some(device) = &device
        && state.devices.get(device).await?.is_none()
    {
        return Err(Problem::invalid("for_device", format!("there is no device {device}")));
    }
    let group: Option<Group> =
        request.for_group.as_deref().map(|text| field("for_group", text)).transpose()?;
    Ok(Audience::of(state, device, group.as_ref()).await?)
}

/// How long an import waits in all for a registry that limits the rate of requests.
const PATIENCE: Duration = Duration::from_secs(30);

/// One batch.
struct Import<'a> {
    state: &'a State,
    registry: &'a Registry,
    repository: &'a Repository,
    audience: Audience,
    by: &'a str,
    pin: bool,
    dry_run: bool,
}

impl Import<'_> {
    async fn one(&self, text: String) -> ImportResult {
        let wanted = match text.parse::<Wanted>() {
            Ok(wanted) => wanted,
            Err(error) => return failed(text, ImportOutcome::Unsupported, error.to_string()),
        };
        let mut patience = PATIENCE;
        loop {
            match self.sign(&wanted).await {
                Ok(result) => return ImportResult { tag: text, ..result },
                // A registry that asks for a moment gets it, as it does when devices pull.
                Err(Failure { retry_after: Some(wait), .. }) if !patience.is_zero() && wait <= patience => {
                    // One that asks for no moment at all is not asked for ever.
                    let wait = wait.max(Duration::from_secs(1));
                    patience = patience.saturating_sub(wait);
                    tokio::time::sleep(wait).await;
                }
                Err(failure) => return failed(text, failure.outcome, failure.reason),
            }
        }
    }

    async fn sign(&self, wanted: &Wanted) -> Result<ImportResult, Failure> {
        let served = imports::look_up(self.registry, self.repository, wanted).await?;
        let name = ArtifactName::new(self.repository.clone(), served.digest);
        let before = self.before(wanted, &name).await?;
        let held = self.state.artifacts.get(&name).await;
        let artifact = match held.map_err(|error| internal(&error))? {
            Some(held) if held.revoked_at.is_some() => {
                let reason = format!("{name} was revoked; a revoked artifact is not signed again");
                return Err(Failure::new(ImportOutcome::Denied, reason));
            }
            // What is signed was read whole then: a batch that is run again only does what is not done.
            Some(held) => held,
            None => {
                let resolved = imports::resolve(self.registry, self.repository, served).await?;
                self.check_audience(&resolved.platforms)?;
                if self.dry_run {
                    let artifact = self.artifact(resolved, wanted);
                    return Ok(self.result(&artifact, first_outcome(before.as_ref()), before));
                }
                let kept = self.state.keep_documents(&resolved).await;
                kept.map_err(|error| internal(&error))?;
                self.artifact(resolved, wanted)
            }
        };
        if self.dry_run {
            let outcome = if before.is_some() { ImportOutcome::Moved } else { ImportOutcome::Unchanged };
            return Ok(self.result(&artifact, outcome, before));
        }
        let signed = self.state.images.add(&artifact, wanted.tag()).await;
        let signed =
            signed.map_err(|error| Failure::new(ImportOutcome::Failed, Problem::from(error).detail))?;
        if signed != Outcome::Pending {
            // Nobody is served what the operators have not signed.
            self.state.access.set_artifact(&artifact.closure);
        }
        let outcome = match (signed, &before) {
            (Outcome::Pending, _) => ImportOutcome::Pending,
            (Outcome::Unchanged, None) => ImportOutcome::Unchanged,
            (Outcome::Signed | Outcome::Unchanged, before) => first_outcome(before.as_ref()),
        };
        let tag = wanted.label().map(ToString::to_string);
        tracing::info!(artifact = %artifact.name(), tag, by = %self.by, outcome = ?outcome, "tag imported");
        if matches!(outcome, ImportOutcome::Imported | ImportOutcome::Moved) {
            let what = tag.map_or_else(|| "a digest".to_owned(), |tag| format!("tag {tag}"));
            let detail = format!("{what} was imported by {}", self.by);
            self.state.events.raise(Kind::Imported, artifact.name(), detail);
        }
        let result = self.result(&artifact, outcome, before);
        if self.pin { Ok(self.pinned(&artifact, result).await) } else { Ok(result) }
    }

    /// What the tag pointed at when it was last imported, if that was something else.
    async fn before(&self, wanted: &Wanted, now: &ArtifactName) -> Result<Option<ArtifactName>, Failure> {
        let Some(tag) = wanted.tag() else { return Ok(None) };
        let before = self.state.artifacts.last_import(self.repository, tag).await;
        Ok(before.map_err(|error| internal(&error))?.filter(|before| before != now))
    }

    fn result(
        &self,
        artifact: &Artifact,
        outcome: ImportOutcome,
        before: Option<ArtifactName>,
    ) -> ImportResult {
        ImportResult {
            tag: String::new(),
            outcome,
            artifact: Some(artifact.name().to_string()),
            moved_from: before.map(|before| before.to_string()),
            platforms: artifact.platform_names(),
            size_bytes: Some(artifact.closure.size_bytes()),
            pinned: self.state.pins.contains(artifact.name()),
            warning: self.audience.unsuited(&artifact.platforms),
            reason: None,
        }
    }

    async fn pinned(&self, artifact: &Artifact, result: ImportResult) -> ImportResult {
        match super::artifacts::keep(self.state, artifact, self.by).await {
            Ok(()) => ImportResult { pinned: true, ..result },
            Err(problem) => ImportResult {
                outcome: if problem.is_wrong_content() {
                    ImportOutcome::Mismatch
                } else {
                    ImportOutcome::Failed
                },
                reason: Some(format!("signed, but not pinned: {}", problem.detail)),
                ..result
            },
        }
    }

    fn artifact(&self, resolved: Resolved, wanted: &Wanted) -> Artifact {
        Artifact {
            closure: resolved.closure,
            tag: wanted.label().cloned(),
            platforms: resolved.platforms,
            imported_at: self.state.clock.now(),
            imported_by: self.by.to_owned(),
            revoked_at: None,
        }
    }

    /// Refuses an image that none of the devices it is meant for can run.
    fn check_audience(&self, platforms: &[Platform]) -> Result<(), Failure> {
        match self.audience.refuses(platforms) {
            Some(reason) => Err(Failure::new(ImportOutcome::NoPlatform, reason)),
            None => Ok(()),
        }
    }
}

/// What becomes of something that was never imported, once it is signed.
fn first_outcome(before: Option<&ArtifactName>) -> ImportOutcome {
    if before.is_some() { ImportOutcome::Moved } else { ImportOutcome::Imported }
}

struct Failure {
    outcome: ImportOutcome,
    reason: String,
    /// When it may be otherwise.
    retry_after: Option<Duration>,
}

impl Failure {
    fn new(outcome: ImportOutcome, reason: String) -> Self {
        Self { outcome, reason, retry_after: None }
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        let outcome = match &error {
            ImportError::Upstream(upstream) => upstream_outcome(upstream),
            ImportError::Document { source: DocumentError::TooLarge | DocumentError::TooMany(_), .. }
            | ImportError::TooMany
            | ImportError::TooLarge => ImportOutcome::TooLarge,
            ImportError::NoManifests(_) | ImportError::NoChoice(_) => ImportOutcome::NoPlatform,
            ImportError::Document { .. }
            | ImportError::Size { .. }
            | ImportError::Type { .. }
            | ImportError::Ambiguous(_)
            | ImportError::Sha512(_)
            | ImportError::TooDeep
            | ImportError::Config(_) => ImportOutcome::Unsupported,
        };
        let retry_after = if let ImportError::Upstream(error) = &error { error.retry_after() } else { None };
        Self { outcome, reason: chain(&error), retry_after }
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
        UpstreamError::DigestMismatch { .. } => ImportOutcome::Mismatch,
        UpstreamError::Timeout { .. }
        | UpstreamError::Stalled { .. }
        | UpstreamError::Interrupted { .. }
        | UpstreamError::Unreachable { .. }
        | UpstreamError::Tls { .. }
        | UpstreamError::Unavailable { .. }
        | UpstreamError::BadAnswer { .. }
        | UpstreamError::ForbiddenAddress { .. }
        | UpstreamError::ForbiddenTarget { .. } => ImportOutcome::Failed,
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(ImportOutcome::Failed, Problem::internal(error).detail)
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
        warning: None,
        reason: Some(reason),
    }
}
