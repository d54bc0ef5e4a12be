//! `/api/v1/keys` and `/api/v1/signing-requests`

use std::collections::BTreeMap;

use axum::Json;
use data_encoding::HEXLOWER_PERMISSIVE;
use jiff::Timestamp;
use pki::key::{KeyId, PublicKey, Signature, SigningKey};

use super::auth::{Caller, Role as Access};
use super::extract::{Body, Path, field};
use super::problem::{Problem, chain};
use super::types::{
    CeremonyRequest, KeysOutcome, RecoverRequest, RoleKey, RoleKeys, RotateRequest, Signatures, Signers,
    SigningFile, SigningRequest,
};
use super::{Answer, State};
use crate::publish::PublishingError;
use crate::publish::images::{Delegation, Outcome};
use crate::publish::publishers::PublisherName;
use crate::publish::request::{Desk, Request};
use crate::publish::trust::{Role, RootChange, Trust};
use crate::publish::witness::Repository;

/// Lists the keys of every role: how many must sign, where they are, and when their metadata ends
#[utoipa::path(get, path = "/api/v1/keys", tag = "keys",
    responses((status = 200, body = Vec<RoleKeys>), (status = 401, body = Problem)))]
pub(super) async fn list(state: State, caller: Caller) -> Answer<Vec<RoleKeys>> {
    caller.require(Access::Viewer)?;
    let now = state.clock.now();
    let expires = state.images.expires().await;
    let mut roles = state.images.with_trust(|trust| view("images", trust, &expires, now)).await;
    roles.extend(state.images.delegations().await.iter().map(|delegation| delegated(delegation, now)));
    let expires = state.director.with_trust(|trust| trust.chain.current().expires).await;
    let expires = BTreeMap::from([("root", expires)]);
    roles.extend(state.director.with_trust(|trust| view("director", trust, &expires, now)).await);
    Ok(Json(roles))
}

/// Replaces the keys of a role that are here; devices follow by the next root
#[utoipa::path(post, path = "/api/v1/keys/rotate", request_body = RotateRequest, tag = "keys",
    responses((status = 200, body = KeysOutcome), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn rotate(
    state: State,
    caller: Caller,
    Body(request): Body<RotateRequest>,
) -> Answer<KeysOutcome> {
    caller.require(Access::Admin)?;
    let repository = repository(&request.repository)?;
    let role: Role = field("role", &request.role)?;
    let held = |trust: &Trust| {
        let keyids = role.keys(trust.chain.current()).keyids.iter().copied();
        keyids.filter(|id| trust.ring.holds(*id)).collect::<Vec<KeyId>>()
    };
    let remove = match repository {
        Repository::Images => state.images.with_trust(held).await,
        Repository::Director => state.director.with_trust(held).await,
    };
    let [old] = remove.as_slice() else {
        return Err(Problem::invalid(
            "role",
            format!(
                "the key of {repository}/{role} is not here; keys of operators change by a ceremony (facade keys ceremony)",
                repository = repository.name()
            ),
        ));
    };
    let key = SigningKey::generate().map_err(|error| Problem::internal(&PublishingError::Key(error)))?;
    let change = RootChange { role, add: vec![key.public().clone()], remove: vec![*old], threshold: None };
    tracing::warn!(repository = repository.name(), role = %role, by = %caller.name, "keys are rotated");
    change_keys(&state, repository, &change, Some(key)).await
}

/// Proposes other keys or another threshold for a role whose keys are with operators
#[utoipa::path(post, path = "/api/v1/keys/ceremony", request_body = CeremonyRequest, tag = "keys",
    responses((status = 200, body = KeysOutcome), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn ceremony(
    state: State,
    caller: Caller,
    Body(request): Body<CeremonyRequest>,
) -> Answer<KeysOutcome> {
    caller.require(Access::Admin)?;
    let repository = repository(&request.repository)?;
    let role: Role = field("role", &request.role)?;
    if matches!(role, Role::Snapshot | Role::Timestamp) {
        return Err(Problem::invalid(
            "role",
            "snapshots and timestamps are signed here, many times a day (facade keys rotate)",
        ));
    }
    let add: Result<Vec<PublicKey>, _> = request.add.into_iter().map(PublicKey::from_object).collect();
    let change = RootChange {
        role,
        add: add.map_err(|error| Problem::invalid("add", chain(&error)))?,
        remove: request.remove.iter().map(|text| field("remove", text)).collect::<Result<_, _>>()?,
        threshold: request.threshold,
    };
    tracing::warn!(repository = repository.name(), role = %role, by = %caller.name, "other keys are proposed");
    change_keys(&state, repository, &change, None).await
}

/// Signs the images targets again, or asks the operators to
#[utoipa::path(post, path = "/api/v1/keys/renew", tag = "keys",
    responses((status = 200, body = KeysOutcome), (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn renew(state: State, caller: Caller) -> Answer<KeysOutcome> {
    caller.require(Access::Operator)?;
    Ok(Json(outcome(state.images.renew().await?)))
}

/// Signs above everything that was seen, after the database was restored from an older copy
#[utoipa::path(post, path = "/api/v1/keys/recover", request_body = RecoverRequest, tag = "keys",
    responses((status = 200, body = KeysOutcome), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn recover(
    state: State,
    caller: Caller,
    Body(request): Body<RecoverRequest>,
) -> Answer<KeysOutcome> {
    caller.require(Access::Admin)?;
    let repository = repository(&request.repository)?;
    let behind = match repository {
        Repository::Images => state.images.behind().await,
        Repository::Director => state.director.behind().await,
    };
    if behind.is_none() {
        return Err(Problem::conflict(format!(
            "the {} repository is not behind anything",
            repository.name()
        )));
    }
    tracing::warn!(repository = repository.name(), dismiss = request.dismiss, by = %caller.name, "recovery");
    let recovered = match (repository, request.dismiss) {
        (Repository::Images, false) => state.images.recover().await?,
        (Repository::Director, false) => state.director.recover().await?,
        (Repository::Images, true) => state.images.dismiss().await.map(|()| Outcome::Signed)?,
        (Repository::Director, true) => state.director.dismiss().await.map(|()| Outcome::Signed)?,
    };
    Ok(Json(outcome(recovered)))
}

/// Shows what waits for signatures, byte by byte
#[utoipa::path(get, path = "/api/v1/signing-requests/{repository}", params(("repository" = String, Path, description = "`images`, `director` or `publisher-NAME`")), tag = "keys",
    responses((status = 200, body = SigningRequest), (status = 401, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn request(
    state: State,
    caller: Caller,
    Path(name): Path<String>,
) -> Answer<SigningRequest> {
    require(&caller, Access::Viewer, &name)?;
    let (request, base, trust) = match place(&name)? {
        Place::Images(desk) => {
            let waiting = state.images.waiting(&desk).await?;
            let (request, base) = waiting.map(|waiting| (waiting.request, waiting.base)).unzip();
            (request, base.unwrap_or_default(), state.images.with_trust(roots).await)
        }
        Place::Director => {
            (state.director.waiting().await, BTreeMap::new(), state.director.with_trust(roots).await)
        }
    };
    let Some(request) = request else {
        return Err(Problem::not_found(format!("nothing of {name} waits for signatures")));
    };
    Ok(Json(signing_request(&name, request, base, &trust)?))
}

/// Takes signatures; once there are enough, what waited is published
#[utoipa::path(post, path = "/api/v1/signing-requests/{repository}/signatures", params(("repository" = String, Path, description = "`images`, `director` or `publisher-NAME`")), request_body = Signatures, tag = "keys",
    responses((status = 200, body = KeysOutcome), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn sign(
    state: State,
    caller: Caller,
    Path(name): Path<String>,
    Body(request): Body<Signatures>,
) -> Answer<KeysOutcome> {
    require(&caller, Access::Operator, &name)?;
    let mut signatures = Vec::new();
    for given in request.signatures {
        let bytes = HEXLOWER_PERMISSIVE.decode(given.sig.as_bytes());
        let bytes = bytes.map_err(|_| Problem::invalid("sig", "a signature is not hexadecimal"))?;
        signatures.push((given.role, Signature { keyid: field("keyid", &given.keyid)?, bytes }));
    }
    let published = match place(&name)? {
        Place::Director => state.director.attach(&request.id, signatures).await?,
        Place::Images(desk) => match state.images.attach(&desk, &request.id, signatures).await? {
            None => false,
            Some(added) => {
                for artifact in &added {
                    state.access.set_artifact(&artifact.closure);
                    tracing::info!(artifact = %artifact.name(), by = %caller.name, "artifact signed");
                }
                true
            }
        },
    };
    tracing::info!(repository = %name, request = %request.id, by = %caller.name, published, "signatures taken");
    Ok(Json(outcome(if published { Outcome::Signed } else { Outcome::Pending })))
}

/// Drops what waits for signatures
#[utoipa::path(delete, path = "/api/v1/signing-requests/{repository}/{id}", params(("repository" = String, Path, description = "`images`, `director` or `publisher-NAME`"), ("id" = String, Path, description = "The request's id")), tag = "keys",
    responses((status = 200, body = KeysOutcome), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn drop_request(
    state: State,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
) -> Answer<KeysOutcome> {
    caller.require(Access::Operator)?;
    match place(&name)? {
        Place::Images(desk) => state.images.drop_request(&desk, &id).await?,
        Place::Director => state.director.drop_request(&id).await?,
    }
    tracing::warn!(repository = %name, request = %id, by = %caller.name, "signing request dropped");
    Ok(Json(KeysOutcome { outcome: "dropped".to_owned() }))
}

async fn change_keys(
    state: &State,
    repository: Repository,
    change: &RootChange,
    made: Option<SigningKey>,
) -> Answer<KeysOutcome> {
    let changed = match repository {
        Repository::Images => state.images.change_keys(change, made).await?,
        Repository::Director => state.director.change_keys(change, made).await?,
    };
    Ok(Json(outcome(changed)))
}

fn repository(text: &str) -> Result<Repository, Problem> {
    match text {
        "images" => Ok(Repository::Images),
        "director" => Ok(Repository::Director),
        _ => Err(Problem::invalid("repository", "must be images or director")),
    }
}

/// Where signatures are waited for.
enum Place {
    Images(Desk),
    Director,
}

fn place(text: &str) -> Result<Place, Problem> {
    match (text, PublisherName::of_role(text)) {
        ("images", _) => Ok(Place::Images(Desk::Operators)),
        ("director", _) => Ok(Place::Director),
        (_, Some(publisher)) => Ok(Place::Images(Desk::Publisher(publisher))),
        _ => Err(Problem::invalid("repository", "must be images, director or publisher-NAME")),
    }
}

/// A pusher sees and signs what waits for the publisher of its own name, and nothing else.
fn require(caller: &Caller, role: Access, name: &str) -> Result<(), Problem> {
    let own = PublisherName::of_role(name).is_some_and(|publisher| publisher.as_str() == caller.name);
    if caller.is_pusher() && own { Ok(()) } else { caller.require(role) }
}

pub(super) fn outcome(outcome: Outcome) -> KeysOutcome {
    let word = match outcome {
        Outcome::Signed | Outcome::Unchanged => "published",
        Outcome::Pending => "pending",
    };
    KeysOutcome { outcome: word.to_owned() }
}

fn delegated(delegation: &Delegation, now: Timestamp) -> RoleKeys {
    let place = if delegation.here { "here" } else { "offline" };
    let id = delegation.publisher.key.id().to_string();
    RoleKeys {
        repository: "images".to_owned(),
        role: delegation.publisher.role(),
        threshold: 1,
        keys: vec![RoleKey { id, place: place.to_owned() }],
        expires_at: delegation.expires.map(|at| at.to_string()),
        expires_in_seconds: delegation.expires.map(|at| at.as_second().saturating_sub(now.as_second())),
    }
}

fn roots(trust: &Trust) -> (Vec<String>, pki::metadata::Root) {
    let files = trust.chain.files().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
    (files, pki::metadata::Root::clone(trust.chain.current()))
}

fn view(
    repository: &str,
    trust: &Trust,
    expires: &BTreeMap<&'static str, Timestamp>,
    now: Timestamp,
) -> Vec<RoleKeys> {
    let root = trust.chain.current();
    let place = |id: &KeyId| if trust.ring.holds(*id) { "here" } else { "offline" };
    let view = |role: &Role| {
        let keys = role.keys(root);
        let expires = expires.get(role.name());
        RoleKeys {
            repository: repository.to_owned(),
            role: role.to_string(),
            threshold: keys.threshold,
            keys: keys
                .keyids
                .iter()
                .map(|id| RoleKey { id: id.to_string(), place: place(id).to_owned() })
                .collect(),
            expires_at: expires.map(ToString::to_string),
            expires_in_seconds: expires.map(|at| at.as_second().saturating_sub(now.as_second())),
        }
    };
    Role::ALL.iter().map(view).collect()
}

fn signing_request(
    repository: &str,
    request: Request,
    mut base: BTreeMap<String, String>,
    (roots, current): &(Vec<String>, pki::metadata::Root),
) -> Result<SigningRequest, Problem> {
    let progress = request.progress(current).map_err(|error| Problem::internal(&error))?;
    let targets = base.get("targets").cloned();
    let files = request.files.into_iter().map(|draft| SigningFile {
        signers: progress
            .iter()
            .filter(|file| file.role == draft.role)
            .map(|file| Signers { keys: file.signers.to_owned(), have: file.have, need: file.need })
            .collect(),
        current: base.remove(&draft.role),
        role: draft.role,
        file: draft.text,
    });
    Ok(SigningRequest {
        repository: repository.to_owned(),
        id: request.id,
        made_at: request.made_at.to_string(),
        reasons: request.reasons,
        files: files.collect(),
        roots: roots.clone(),
        targets,
    })
}
