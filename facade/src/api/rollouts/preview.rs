//! What a rollout would do: whom it would reach, who could not take it, and what it would cost upstream.

use std::collections::{BTreeMap, HashSet};

use pki::digest::Digest;
use pki::x509::DeviceId;

use crate::api::State;
use crate::api::problem::Problem;
use crate::api::types::{Concern, RolloutPreview, UpstreamNeed};
use crate::catalog::artifacts::Artifact;
use crate::catalog::fleet::Facts;
use crate::catalog::rollouts::Wanted;
use crate::catalog::waves;

/// Devices that are named.
const NAMED: usize = 100;
/// Devices that are named where there is something to say about them.
const EXAMPLES: usize = 20;

/// A preview; with the id of a rollout that was made it names the devices of the first wave.
pub(super) async fn of(state: &State, wanted: &Wanted, id: Option<&str>) -> Result<RolloutPreview, Problem> {
    let mut artifacts = Vec::new();
    for name in &wanted.artifacts {
        artifacts.extend(state.artifacts.get(name).await?);
    }
    let (audience, others) = state.rollouts.audience(&wanted.selector);
    let ids: Vec<DeviceId> = audience.iter().map(|(id, _)| id.clone()).collect();
    let ends = wanted.plan.waves.ends(ids.len());
    let begins = std::iter::once(&0).chain(&ends);
    let waves: Vec<u64> = begins.zip(&ends).map(|(begin, end)| end.saturating_sub(*begin) as u64).collect();
    let bytes = artifacts.iter().map(|artifact| artifact.closure.size_bytes()).fold(0, u64::saturating_add);
    let mut preview = RolloutPreview {
        devices: ids.len() as u64,
        waves,
        first_wave: first_wave(id, &ids, ends.first().copied().unwrap_or(0)),
        up_to_date: up_to_date(state, wanted, &ids),
        left_out: Concern::default(),
        no_platform: Concern::default(),
        unknown_platform: Concern::default(),
        low_disk: Concern::default(),
        bytes_per_device: bytes,
        upstream: upstream(state, &artifacts).await?,
        obstacle: obstacle(state, wanted, &artifacts, &ids),
    };
    for (id, facts) in others {
        add(&mut preview.left_out, format!("{id} is {}", facts.standing));
    }
    for (id, facts) in &audience {
        judge(&mut preview, id, facts, &artifacts);
    }
    Ok(preview)
}

fn first_wave(id: Option<&str>, ids: &[DeviceId], size: usize) -> Vec<String> {
    let Some(id) = id else {
        return Vec::new();
    };
    waves::order(id, ids.to_vec()).iter().take(size.min(NAMED)).map(ToString::to_string).collect()
}

fn add(concern: &mut Concern, text: String) {
    concern.count = concern.count.saturating_add(1);
    if concern.examples.len() < EXAMPLES {
        concern.examples.push(text);
    }
}

/// Whether the device could take all of it, as far as it has told.
fn judge(preview: &mut RolloutPreview, id: &DeviceId, facts: &Facts, artifacts: &[Artifact]) {
    match &facts.platform {
        None => add(&mut preview.unknown_platform, id.to_string()),
        Some(platform) => {
            let suits = |artifact: &Artifact| {
                artifact.platforms.is_empty()
                    || artifact.platforms.iter().any(|offered| offered.suits(platform).is_some())
            };
            if let Some(lacking) = artifacts.iter().find(|artifact| !suits(artifact)) {
                let offered = lacking.platform_names().join(", ");
                add(
                    &mut preview.no_platform,
                    format!("{id} is {platform}, and {} is for {offered}", lacking.name()),
                );
            }
        }
    }
    if let Some(free) = facts.free_bytes.filter(|free| *free < preview.bytes_per_device) {
        add(&mut preview.low_disk, format!("{id} has {free} bytes free"));
    }
}

fn up_to_date(state: &State, wanted: &Wanted, ids: &[DeviceId]) -> u64 {
    let has = |id: &&DeviceId| wanted.artifacts.is_subset(&state.assignments.wanted(id));
    ids.iter().filter(has).count() as u64
}

fn obstacle(state: &State, wanted: &Wanted, artifacts: &[Artifact], ids: &[DeviceId]) -> Option<String> {
    if ids.is_empty() {
        return Some(format!("{} selects no active device (facade device list)", wanted.selector));
    }
    if let Some(revoked) = artifacts.iter().find(|artifact| artifact.revoked_at.is_some()) {
        return Some(format!("{} is revoked", revoked.name()));
    }
    state.rollouts.overlap(&wanted.artifacts, ids).map(|overlap| overlap.to_string())
}

/// What is not in the cache yet. The facade fetches each content once, however many devices ask for it.
async fn upstream(state: &State, artifacts: &[Artifact]) -> Result<Vec<UpstreamNeed>, Problem> {
    let held = state.blobs.list().await.map_err(|error| Problem::internal(&error))?;
    let held: HashSet<Digest> = held.into_iter().map(|held| held.digest).collect();
    let mut seen = HashSet::new();
    let mut needs: BTreeMap<String, UpstreamNeed> = BTreeMap::new();
    for artifact in artifacts {
        let repository = artifact.name().repository();
        let host = repository.host();
        let need = needs.entry(host.to_string()).or_insert_with(|| UpstreamNeed {
            host: host.to_string(),
            requests: 0,
            bytes: 0,
            cached_bytes: 0,
            budget: state
                .registries
                .health(host)
                .and_then(|health| health.budget)
                .map(|budget| budget.remaining),
            suffices: None,
        });
        for descriptor in artifact.closure.documents.iter().chain(&artifact.closure.blobs) {
            if !seen.insert(descriptor.digest) {
                continue;
            }
            if held.contains(&descriptor.digest) {
                need.cached_bytes = need.cached_bytes.saturating_add(descriptor.size);
            } else {
                need.requests += 1;
                need.bytes = need.bytes.saturating_add(descriptor.size);
            }
        }
        need.suffices = need.budget.map(|budget| budget >= need.requests);
    }
    Ok(needs.into_values().collect())
}
