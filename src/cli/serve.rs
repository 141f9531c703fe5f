//! `wxgate serve`: the main job, from configuration to drained.
//!
//! Hardens the process, starts the application and translates signals; what is served is the application's business.

use tokio::sync::Mutex;

use super::{Failure, StopSignals, background_runtime};
use crate::{
    app::App,
    config::Config,
    proxy::AccessLogSettings,
    telemetry::{logging::Format, output::Output},
};

pub(super) fn run(config: &Config, format: Format) -> Result<(), Failure> {
    keep_memory_private();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    background_runtime()?.block_on(async {
        // One listener for both signals, or a second one right behind the first would be missed.
        let signals = Mutex::new(StopSignals::listen()?);
        let app = App::build(config, access_log(format)).map_err(|error| Failure::Running(error.to_string()))?;
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

/// The access log goes where the log goes, unless the filter leaves it out (`WXGATE_LOG=access=off`).
fn access_log(format: Format) -> Option<AccessLogSettings> {
    tracing::enabled!(target: "access", tracing::Level::INFO)
        .then_some(AccessLogSettings { format, output: Output::Stderr })
}

/// The process holds the AppSecrets of a whole business: no core dumps, and no debugger of the same user.
fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if setrlimit(Resource::Core, none).is_err() || set_dumpable_behavior(DumpableBehavior::NotDumpable).is_err() {
        tracing::warn!("core dumps could not be switched off; a crash may write secrets to disk");
    }
}
