//! `wxgate serve`: the main job, from configuration to drained.
//!
//! Hardens the process, starts the application and translates signals; the service itself is the
//! application's business.

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Mutex,
};

use super::{ConfigFile, Failure, StopSignals, background_runtime};
use crate::{
    app::{App, Reloader, StartError, descriptors},
    proxy::AccessLogSettings,
    telemetry::{logging::Format, output::Output},
};

pub(super) fn run(file: &ConfigFile, format: Format, log: &Output) -> Result<(), Failure> {
    keep_memory_private();
    descriptors::raise_limit();
    background_runtime()?.block_on(async {
        // First of all: without a handler, a SIGHUP ends the process.
        let hangup = signal(SignalKind::hangup())?;
        // One listener for both signals, or a second one right behind the first would be missed.
        let signals = Mutex::new(StopSignals::listen()?);
        let load = file.loader()?;
        let config = load().map_err(|problems| Failure::Config(problems.to_string()))?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if let Some(shortage) = descriptors::shortage(&config.proxy) {
            tracing::warn!("{shortage}");
        }
        let app = App::build(&config, access_log(format, log)).map_err(|error| match error {
            StartError::Loop(_) => Failure::Config(error.to_string()),
            _ => Failure::Running(error.to_string()),
        })?;
        let (app, reloader) = app.with_log(log).reloading(load);
        tokio::spawn(reload_at(hangup, reloader));
        for address in app.addresses() {
            tracing::info!(%address, "serving WeChat's API; no token is needed here");
        }
        tracing::info!(address = %app.admin_address(), "admin listener: /readyz, /metrics, /api/accounts");
        let stop = async { signals.lock().await.next().await };
        let abort = async { signals.lock().await.next().await };
        app.run(stop, abort).await?;
        tracing::info!("stopped; every request in flight was answered");
        Ok(())
    })
}

/// A signal that comes during a reload leads to one more: the file may have changed after it was
/// read.
async fn reload_at(mut hangup: Signal, reloader: Reloader) {
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: loading the configuration again");
        reloader.reload().await;
    }
}

/// The access log goes where the log goes, unless the filter leaves it out
/// (`WXGATE_LOG=access=off`).
fn access_log(format: Format, log: &Output) -> Option<AccessLogSettings> {
    tracing::enabled!(target: "access", tracing::Level::INFO).then_some(AccessLogSettings {
        format,
        output: log.clone(),
    })
}

/// The process holds the AppSecrets of a whole business: no core dumps, and no debugger of the same
/// user.
fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if setrlimit(Resource::Core, none).is_err()
        || set_dumpable_behavior(DumpableBehavior::NotDumpable).is_err()
    {
        tracing::warn!("core dumps could not be switched off; a crash may write secrets to disk");
    }
}
