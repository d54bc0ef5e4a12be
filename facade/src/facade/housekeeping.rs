//! What the facade does by itself while it serves: signs again, renews, dumps, evicts, reloads.

#[cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "the other half of one noun, in a file of its own")
)]
use super::*;
use tokio::signal::unix::Signal;

/// Renews the server's certificate where it is our own and near its end; connections that are open stay open.
pub(super) async fn renew_server_certificate(tls: &Tls, config: &Config, now: Timestamp) {
    let data_dir = config.data_dir.clone();
    let renewed = tokio::task::spawn_blocking(move || init::renew_server_certificate(&data_dir, now)).await;
    match renewed {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => match reload_certificates(tls, config, now) {
            Ok(()) => tracing::info!("the server certificate was renewed"),
            Err(error) => {
                tracing::error!(error = %chain(&error), "the renewed server certificate cannot be used");
            }
        },
        Ok(Err(error)) => {
            tracing::error!(error = %chain(&error), "the server certificate could not be renewed");
        }
        Err(error) => tracing::error!(%error, "the server certificate could not be renewed"),
    }
}

/// Takes the server certificate that lies in the data directory whenever the process gets `SIGHUP`. One that cannot be
/// used changes nothing; connections that are open stay open.
pub(super) async fn reload_on_hangup(
    mut hangup: Signal,
    tls: Tls,
    config: Config,
    clock: Clock,
    stopping: CancellationToken,
) {
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            () = stopping.cancelled() => return,
        }
        service::reloading();
        let (tls, config, now) = (tls.clone(), config.clone(), clock.now());
        match tokio::task::spawn_blocking(move || reload_certificates(&tls, &config, now)).await {
            Ok(Ok(())) => {
                tracing::info!("the server certificate was read again");
                service::ready(SERVING);
            }
            Ok(Err(error)) => {
                tracing::error!(error = %chain(&error), "the server certificate in the data directory is not used");
                service::ready(
                    "serving with the former certificate: the one in the data directory cannot be used",
                );
            }
            Err(error) => {
                tracing::error!(%error, "the server certificate could not be read again");
                service::ready(SERVING);
            }
        }
    }
}

pub(super) fn reload_certificates(tls: &Tls, config: &Config, now: Timestamp) -> Result<(), StartError> {
    let data = DataDir::open(&config.data_dir, config.seal_key_file.as_deref())?;
    data.check_server_certificate(now)?;
    Ok(tls.replace(tls_identity(&data, config))?)
}

/// Signs again, renews, dumps and evicts, until the facade stops.
pub(super) async fn housekeeping(facade: Arc<Facade>, store: SledStore, tls: Tls, config: Config) {
    let mut next_dump = facade.clock.now();
    loop {
        if let Err(error) = facade.images.resign().await {
            tracing::error!(error = %chain(&error), "metadata could not be signed again");
        }
        if let Err(error) = facade.images.set_trust(&facade.ca_roots).await {
            tracing::error!(error = %chain(&error), "the CA certificates that devices trust could not be signed");
        }
        if let Err(error) = facade.puller.evict().await {
            tracing::error!(error = %chain(&error), "the cache could not be tidied");
        }
        if let Err(error) = facade.registries.keep_health().await {
            tracing::error!(error = %chain(&error), "the health of connections could not be stored");
        }
        let now = facade.clock.now();
        renew_server_certificate(&tls, &config, now).await;
        if now >= next_dump {
            next_dump = now.checked_add(config.dump_interval).unwrap_or(Timestamp::MAX);
            match store.dump(&dumps(&config), &now.strftime("%Y%m%dT%H%M%SZ").to_string()).await {
                Ok(path) => tracing::info!(path = %path.display(), "database dumped"),
                Err(error) => tracing::error!(error = %chain(&error), "the database could not be dumped"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(HOUSEKEEPING) => {}
            () = facade.stopping.cancelled() => return,
        }
    }
}
