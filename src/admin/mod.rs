//! What operators see: a page, health, metrics, the accounts, and ways to refresh one and to reload
//! by hand.
//!
//! Shows no token and no secret; a token is named by its fingerprint. The page is plain HTML
//! without script until the console is built. `GET /api/events` does not exist yet and is answered
//! 404.

mod accounts;
mod answer;
mod guard;
mod live;
mod page;
mod readiness;
mod reload;
pub mod settings;
mod site;
#[cfg(test)]
mod tests;

use std::{fmt, io, rc::Rc, sync::Arc};

use axum::body::Body;
use tokio::sync::oneshot;

pub use self::{
    live::Control,
    reload::{Reload, Reloaded},
};
use self::{readiness::NodeHealth, settings::Settings, site::Site};
use crate::{
    net::{
        bind,
        drain::Drain,
        listen::{BoundAddr, Listener},
        local,
        serve::serve,
    },
    telemetry::{queue::LogQueue, registry::Metrics, workers::StuckWorkers},
    token::Accounts,
};

/// The admin listener, bound and not yet serving.
pub struct Admin {
    listener: Listener,
    control: Control,
    metrics: Metrics,
    health: NodeHealth,
    reload: Option<Reload>,
}

/// Why the admin listener cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Other machines could reach it, and nothing would hold them off.
    #[error(
        "{address} can be reached from other machines: set admin.key, or listen on 127.0.0.1 or a Unix socket"
    )]
    KeyMissing {
        /// As configured.
        address: String,
    },
    /// The system said no.
    #[error("cannot listen on {address}, as admin.listen says: {source}")]
    Listen {
        /// As configured.
        address: String,
        /// The cause.
        source: bind::BindError,
    },
}

impl Admin {
    /// Takes the address; connections are answered once it is started. Must be called inside a runtime.
    pub fn bind(
        settings: &Settings,
        accounts: Arc<Accounts>,
        metrics: Metrics,
    ) -> Result<Self, BindError> {
        Ok(Self::on(
            Self::listen(settings)?,
            settings,
            accounts,
            metrics,
        ))
    }

    /// Only takes the address, for a start that wants to know first whether it can have it.
    pub fn listen(settings: &Settings) -> Result<Listener, BindError> {
        let address = settings.listen.to_string();
        if settings.key.is_none() && !settings.listen.is_local() {
            return Err(BindError::KeyMissing { address });
        }
        Listener::bind(&settings.listen).map_err(|source| BindError::Listen { address, source })
    }

    /// On an address that is taken already.
    pub fn on(
        listener: Listener,
        settings: &Settings,
        accounts: Arc<Accounts>,
        metrics: Metrics,
    ) -> Self {
        Self {
            listener,
            control: Control::new(settings, accounts),
            metrics,
            health: NodeHealth::default(),
            reload: None,
        }
    }

    /// Lets operators reload. Without this, they are told that it cannot be done.
    #[must_use]
    pub fn with_reload(mut self, reload: Reload) -> Self {
        self.reload = Some(reload);
        self
    }

    /// Takes readiness away while a worker is stuck.
    #[must_use]
    pub fn with_workers(mut self, workers: StuckWorkers) -> Self {
        self.health.workers = workers;
        self
    }

    /// Tells of the log's condition in the body of readiness, and counts its dropped lines.
    #[must_use]
    pub fn with_log(mut self, log: Arc<LogQueue>) -> Self {
        self.metrics.register(|registry| log.register(registry));
        self.health.log = Some(log);
        self
    }

    /// Changes key, hosts and accounts from now on, also while it runs.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Where it stands, port included.
    pub fn address(&self) -> &BoundAddr {
        self.listener.address()
    }

    /// Serves on a thread of its own until the drain is aborting; the receiver resolves then.
    /// Readiness is gone from the moment the drain is leaving.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be started.
    pub async fn start(self, drain: Drain) -> io::Result<oneshot::Receiver<()>> {
        local::spawn("wxgate-admin".to_owned(), move || self.serve(drain)).await
    }

    async fn serve(self, drain: Drain) {
        let site = Rc::new(Site::new(
            self.control,
            self.metrics,
            drain.clone(),
            self.health,
            self.reload,
        ));
        serve(self.listener, drain, move |request| {
            let site = Rc::clone(&site);
            async move { Ok(site.answer(request.map(Body::new)).await) }
        })
        .await;
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl BindError {
    /// For metrics; bounded.
    pub fn label(&self) -> &'static str {
        match self {
            Self::KeyMissing { .. } => "key_missing",
            Self::Listen { .. } => "listen",
        }
    }
}
