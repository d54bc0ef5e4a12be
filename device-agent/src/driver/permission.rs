//! Waits until windows, links and the time allow what is to be done.

use std::time::Duration;

use pki::wire::Metered;

use super::{Agent, Patience};
use crate::policy::{self, Rules, Step};

/// How often it is looked whether something is allowed by now, or still.
const LOOK: Duration = Duration::from_secs(15);

/// A step is not allowed, and nobody waits until it is.
pub(super) struct NotNow;

impl Agent {
    /// Returns when a step is allowed. Somebody without patience is told that it is not.
    pub(super) async fn until_allowed(&self, step: Step, patience: Patience) -> Result<(), NotNow> {
        loop {
            let hindrance = self.hindrance(step);
            let free = hindrance.is_none();
            if self.shared().waiting != hindrance {
                if let Some(hindrance) = &hindrance {
                    tracing::info!(for = hindrance, "waiting");
                }
                self.shared().waiting = hindrance;
                self.show();
            }
            if free {
                return Ok(());
            }
            if patience == Patience::Short {
                return Err(NotNow);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns when a step is not allowed any more.
    pub(super) async fn until_hindered(&self, step: Step) {
        while self.hindrance(step).is_none() {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn hindrance(&self, step: Step) -> Option<String> {
        let signed = self.shared().policy.clone();
        let local = &self.config.policy;
        let policies = [local, &signed];
        let windows = |step| {
            policies.into_iter().any(|policy| match step {
                Step::Download => policy.download_window.is_some(),
                Step::Apply => policy.apply_window.is_some(),
            })
        };
        if windows(step) && self.clock.is_behind() {
            return Some(
                "the time of day, by which windows open; the clock of this device is behind".to_owned(),
            );
        }
        let cautious = policies.into_iter().any(|policy| policy.metered == Some(Metered::No));
        let metered_by = if cautious { self.metered_by() } else { None };
        let rules = Rules { local, signed: &signed, metered_by: metered_by.as_deref() };
        rules.hindrance(step, self.clock.now())
    }

    fn metered_by(&self) -> Option<String> {
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        policy::metered_by(
            &read("/proc/net/route"),
            &read("/proc/net/ipv6_route"),
            &self.config.metered_interfaces,
        )
    }

    /// The rate that all transfers together keep to.
    pub(super) fn rate(&self) -> Option<pki::wire::ByteRate> {
        let signed = self.shared().policy.clone();
        Rules { local: &self.config.policy, signed: &signed, metered_by: None }.rate()
    }
}
