//! Loading the configuration again while wxgate runs.
//!
//! All that can fail is done before anything changes: a configuration that cannot be used changes nothing. What it
//! takes to have one in force stands in `proxy`, `admin` and `keepers`; here is only the order.

use std::{pin::Pin, sync::Arc};

use tokio::sync::Mutex;

use super::{keepers::Keepers, restart};
use crate::{
    admin::{self, Reloaded},
    config::{Config, Problems},
    proxy,
};

/// Reads the configuration from where it was read at the start. May block.
pub type Loader = Box<dyn Fn() -> Result<Config, Problems> + Send + Sync>;

/// Has the configuration loaded again. Cheap to clone.
#[derive(Clone)]
pub struct Reloader(Arc<Inner>);

struct Inner {
    load: Loader,
    running: Arc<Mutex<Running>>,
}

/// What is in force, and the hands that change it.
pub(super) struct Running {
    pub(super) started: Config,
    pub(super) keepers: Keepers,
    pub(super) proxy: proxy::Control,
    pub(super) admin: admin::Control,
}

impl Reloader {
    pub(super) fn new(load: Loader, running: Arc<Mutex<Running>>) -> Self {
        Self(Arc::new(Inner { load, running }))
    }

    /// Loads the configuration and puts it into force, or says everything that is wrong with it and changes nothing.
    /// One reload goes on at a time, and goes on to its end when the caller does not wait for it. The outcome is logged.
    pub async fn reload(&self) -> Reloaded {
        let inner = Arc::clone(&self.0);
        let reloading = tokio::spawn(async move {
            let mut running = Arc::clone(&inner.running).lock_owned().await;
            let outcome = tokio::task::spawn_blocking(move || running.follow((inner.load)())).await;
            let outcome = outcome.unwrap_or_else(|_| broken());
            note(&outcome);
            outcome
        });
        reloading.await.unwrap_or_else(|_| broken())
    }

    /// The same for the admin listener.
    pub(super) fn handler(&self) -> admin::Reload {
        let reloader = self.clone();
        Arc::new(move || {
            let reloader = reloader.clone();
            Box::pin(async move { reloader.reload().await }) as Pin<Box<dyn Future<Output = Reloaded> + Send>>
        })
    }
}

impl Running {
    fn follow(&mut self, loaded: Result<Config, Problems>) -> Reloaded {
        let config = match loaded {
            Ok(config) => config,
            Err(problems) => {
                return Reloaded::Refused { problems: problems.0.iter().map(ToString::to_string).collect() };
            }
        };
        let plan = match self.proxy.plan(&config.proxy, &config.accounts) {
            Ok(plan) => plan,
            Err(error) => return Reloaded::Refused { problems: vec![error.to_string()] },
        };
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let (changes, leaving) = self.keepers.follow(&config);
        self.proxy.switch(plan, self.keepers.running().iter().map(|(_, keeper)| keeper.clone()));
        self.admin.switch(&config.admin, self.keepers.by_name());
        self.keepers.dismiss(leaving);
        tracing::info!(
            added = changes.added.join(","),
            changed = changes.changed.join(","),
            removed = changes.removed.join(","),
            "the configuration was loaded again and is in force"
        );
        Reloaded::Done {
            accounts: config.accounts.iter().map(|account| account.name.clone()).collect(),
            restart_needed: restart::needed(&self.started, &config),
        }
    }
}

/// After a panic, whose text stands in the log.
fn broken() -> Reloaded {
    Reloaded::Refused { problems: vec!["the reload broke off: report this as a bug of wxgate".to_owned()] }
}

fn note(outcome: &Reloaded) {
    match outcome {
        Reloaded::Done { restart_needed, .. } => {
            for key in restart_needed {
                tracing::warn!(
                    key,
                    "was changed in the configuration and keeps its old value until wxgate is restarted"
                );
            }
        }
        Reloaded::Refused { problems } => {
            tracing::error!(
                problems = problems.len(),
                "the configuration cannot be used, the old one stays in force: correct it, then reload again"
            );
            for problem in problems {
                tracing::error!("{problem}");
            }
        }
    }
}
