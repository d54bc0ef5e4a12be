//! What the configuration means for the parts.

#[cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "the other half of one noun, in a file of its own")
)]
use super::*;

pub(super) fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

pub(super) fn upstream_settings(config: &Config, clock: &Clock) -> upstream::Settings {
    upstream::Settings {
        resolver: upstream::Resolver::System,
        proxy: upstream::ProxySettings {
            https: config.https_proxy.clone(),
            no_proxy: config.no_proxy.clone(),
        },
        limits: upstream::Limits::default(),
        endpoints: upstream::Endpoints {
            google_token: config.google_token_endpoint.clone(),
            aws_sts: config.aws_sts_endpoint.clone(),
            aws_ecr: config.aws_ecr_endpoint.clone(),
            aws_imds: config.aws_imds_endpoint.clone(),
            azure_authority: config.azure_authority.clone(),
        },
        aws_environment: config.aws_environment.clone(),
        counters: upstream::Counters::default(),
        clock: clock.clone(),
    }
}

pub(super) fn pull_settings(config: &Config) -> pull::Settings {
    let policy = Policy {
        max_size_bytes: config.cache_max_size_bytes,
        max_age: config.cache_max_age,
        min_free_bytes: config.cache_min_free_bytes,
        ..Policy::default()
    };
    pull::Settings {
        cache: config.cache_enabled,
        policy,
        distrust: config.wrong_content_memory,
        ..pull::Settings::default()
    }
}

pub(super) fn lifetimes(config: &Config) -> Lifetimes {
    Lifetimes {
        timestamp: config.timestamp_lifetime,
        snapshot: config.snapshot_lifetime,
        targets: config.targets_lifetime,
        root: ROOT_LIFETIME,
    }
}
