//! Which images stay on the device, and which go.
//!
//! Pure. What is current stays, and with it what was current before it, so that going back needs no network. A version
//! that was replaced twice goes at once. What is no longer assigned at all goes after a time of grace: who unassigned it
//! by mistake has not lost it. What was left and may run all the same stays until something else runs.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use pki::oci::ArtifactName;

use crate::lifecycle::{Release, Standing};

/// Since when each image that is not assigned any more has not been.
pub type Leaving = BTreeMap<ArtifactName, Timestamp>;

/// What to do with the images that are here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// Goes now.
    pub gone: Vec<ArtifactName>,
    /// Goes after its grace, or when the room is needed; the longest unassigned first.
    pub leaving: Leaving,
}

/// Sorts the images that are here.
pub fn sort(
    here: &[ArtifactName],
    standing: &Standing,
    next: Option<&Release>,
    since: &Leaving,
    now: Timestamp,
    grace: SignedDuration,
) -> Sorted {
    let mut sorted = Sorted::default();
    for artifact in here {
        let replaced =
            standing.current.assigned().any(|current| current.artifact.repository() == artifact.repository());
        let stays = standing.current.has(artifact)
            || standing.lingers(artifact)
            || next.is_some_and(|next| next.has(artifact))
            || (replaced && standing.previous.has(artifact));
        if stays {
            continue;
        }
        // A clock that was wrong then must not keep it for years.
        let since = since.get(artifact).copied().unwrap_or(now).min(now);
        if replaced || now.duration_since(since) >= grace {
            sorted.gone.push(artifact.clone());
        } else {
            sorted.leaving.insert(artifact.clone(), since);
        }
    }
    sorted
}

#[cfg(test)]
mod tests {
    use pki::digest::Digest;
    use pki::oci::MediaType;

    use super::*;
    use crate::lifecycle::Assigned;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn name(text: &str) -> ArtifactName {
        let (repository, content) = text.split_once(':').unwrap();
        format!("registry.example.com/{repository}@{}", Digest::sha256(content.as_bytes())).parse().unwrap()
    }

    fn names(texts: &[&str]) -> Vec<ArtifactName> {
        texts.iter().map(|text| name(text)).collect()
    }

    fn release(texts: &[&str]) -> Release {
        Release::new(texts.iter().map(|text| Assigned {
            artifact: name(text),
            media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
            size_bytes: 7,
        }))
    }

    fn at(hour: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hour)
    }

    fn sorted(
        here: &[&str],
        current: &[&str],
        previous: &[&str],
        since: &[(&str, i64)],
        hour: i64,
    ) -> Sorted {
        let standing =
            Standing { current: release(current), previous: release(previous), ..Standing::default() };
        let since = since.iter().map(|(text, hour)| (name(text), at(*hour))).collect();
        sort(&names(here), &standing, None, &since, at(hour), DAY)
    }

    #[test]
    fn current_and_its_predecessor_stay_for_ever_and_older_ones_go_at_once() {
        let sorted = sorted(&["app:1", "app:2", "app:3"], &["app:3"], &["app:2"], &[], 1000);
        assert_eq!(sorted.gone, names(&["app:1"]));
        assert!(sorted.leaving.is_empty());
    }

    #[test]
    fn what_is_not_assigned_any_more_goes_after_its_grace() {
        let after =
            |hour| sorted(&["app:1", "log:1"], &["log:1"], &["app:1", "log:1"], &[("app:1", 100)], hour);
        assert_eq!(after(100).leaving.get(&name("app:1")), Some(&at(100)));
        assert_eq!(after(123).gone, []);
        assert_eq!(after(124).gone, names(&["app:1"]));
        let first = sorted(&["app:1"], &[], &["app:1"], &[], 7);
        assert_eq!(first.leaving.get(&name("app:1")), Some(&at(7)));
        let from_the_future = sorted(&["app:1"], &[], &[], &[("app:1", 100_000)], 7);
        assert_eq!(from_the_future.leaving.get(&name("app:1")), Some(&at(7)));
    }

    #[test]
    fn what_was_left_and_may_still_run_stays() {
        let standing = Standing {
            current: release(&["app:1"]),
            lingering: [release(&["app:2", "log:2"])].into(),
            ..Standing::default()
        };
        let here = names(&["app:1", "app:2", "log:2"]);
        assert_eq!(
            sort(&here, &standing, None, &Leaving::new(), at(1), SignedDuration::ZERO),
            Sorted::default()
        );
    }

    #[test]
    fn what_is_on_its_way_in_stays() {
        let standing = Standing { current: release(&["app:1"]), ..Standing::default() };
        let next = release(&["app:2"]);
        let sorted = sort(&names(&["app:1", "app:2"]), &standing, Some(&next), &Leaving::new(), at(1), DAY);
        assert_eq!(sorted, Sorted::default());
    }
}
