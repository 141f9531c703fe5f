//! `wxgate serve`: runs the proxy until a signal.
//!
//! Hardens the process, starts [`App`] and turns signals into reloads and stops.

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Mutex,
};

use super::{CommandError, ConfigFile, StopSignals, background_runtime};
use crate::{
    app::{App, Inheritance, Program, Reloader, Replacer, ServiceManager, StartError, descriptors},
    config::Config,
    proxy::AccessLogSettings,
    telemetry::{format::Format, output::Output},
};

pub(super) fn run(file: &ConfigFile, format: Format, log: &Output) -> Result<(), CommandError> {
    // Before other threads look at the environment, and before the file can be replaced.
    let inheritance = Inheritance::of_this_process()?;
    let program = Program::of_this_process();
    keep_memory_private();
    descriptors::raise_limit();
    background_runtime()?.block_on(async {
        // Before everything else: until there is a handler, a SIGHUP or SIGUSR2 ends the process.
        let hangup = signal(SignalKind::hangup())?;
        let replace = signal(SignalKind::user_defined2())?;
        // A single set of handlers for `stop` and `abort`: handlers installed after the first
        // signal would miss a second signal right behind it.
        let signals = Mutex::new(StopSignals::listen()?);
        let load = file.loader()?;
        let config = load().map_err(|problems| CommandError::Config(problems.to_string()))?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if let Some(shortage) = descriptors::shortage(&config.proxy) {
            tracing::warn!("{shortage}");
        }
        let log_settings = access_log(format, log);
        let app = App::build_with(&config, log_settings, inheritance).map_err(
            |error| match error {
                StartError::Loop(_) => CommandError::Config(error.to_string()),
                _ => CommandError::Running(error.to_string()),
            },
        )?;
        let app = app
            .with_log(log)
            .with_service_manager(ServiceManager::from_environment());
        let (app, reloader) = app.reloading(load);
        tokio::spawn(reload_at(hangup, reloader));
        tokio::spawn(replace_at(replace, app.replaceable(program)));
        log_start(file, &config, &app);
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

/// Logs in one line what runs here: the first thing that is asked about a log.
fn log_start(file: &ConfigFile, config: &Config, app: &App) {
    let listen: Vec<String> = app.addresses().iter().map(ToString::to_string).collect();
    tracing::info!(
        version = env!("WXGATE_VERSION"),
        file = file.shown(),
        accounts = config.accounts.len(),
        store = %config.store.location,
        listen = listen.join(","),
        admin = %app.admin_address(),
        "wxgate has started"
    );
}

/// Reloads at each SIGHUP. A signal during a reload causes one more, since the file may have
/// changed after the running reload read it.
async fn reload_at(mut hangup: Signal, reloader: Reloader) {
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: loading the configuration again");
        reloader.reload().await;
    }
}

/// Replaces the program at each SIGUSR2. A signal during a replacement is told and passed over.
async fn replace_at(mut signal: Signal, replacer: Replacer) {
    while signal.recv().await.is_some() {
        tracing::info!("SIGUSR2: replacing the program");
        let replacer = replacer.clone();
        tokio::spawn(async move { replacer.replace().await });
    }
}

/// Settings of the access log, which goes to the same output as the log; `None` if the filter
/// leaves the access log out (`WXGATE_LOG=access=off`).
fn access_log(format: Format, log: &Output) -> Option<AccessLogSettings> {
    tracing::enabled!(target: "access", tracing::Level::INFO).then_some(AccessLogSettings {
        format,
        output: log.clone(),
    })
}

/// Switches core dumps off, and with them debuggers of the same user: the memory of this process
/// holds AppSecrets and tokens.
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
