//! Admin listener for operators: a page, probes, metrics, the state of the accounts, refresh and
//! reload by hand.
//!
//! Shows no token and no secret; a token is named by its fingerprint. The console is a few static
//! files (`console/`) over the API that scripts use too. Tokens are the business of `token`, loading
//! a configuration of `app`.

mod accounts;
mod answer;
mod assets;
mod control;
mod degraded;
mod guard;
mod history;
mod overview;
mod paging;
mod reload;
mod session;
pub(crate) mod settings;
mod site;
mod stream;
#[cfg(test)]
mod tests;

use std::{fmt, io, rc::Rc, sync::Arc};

use axum::body::Body;
use tokio::sync::oneshot;

pub(crate) use self::{
    control::AdminControl,
    overview::NodeFacts,
    reload::{ReloadHandler, Reloaded},
};
use self::{
    degraded::DegradedAccounts,
    history::History,
    settings::AdminSettings,
    site::{Site, Sources},
};
use crate::{
    net::{
        bind,
        drain::Drain,
        inherit::{InheritedListeners, ListenerRole},
        listen::{BoundAddr, Listener},
        local,
        serve::serve,
    },
    service::readiness::NodeHealth,
    telemetry::{queue::LogQueue, registry::MetricsRegistry},
    token::TokenRegistry,
};

/// Admin listener that is bound and does not serve yet.
pub(crate) struct Admin {
    listener: Listener,
    control: AdminControl,
    metrics: MetricsRegistry,
    health: NodeHealth,
    facts: NodeFacts,
    reload: Option<ReloadHandler>,
}

/// Reason why the admin listener cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AdminBindError {
    /// Other machines can reach the address, and no key is set.
    #[error(
        "{address} can be reached from other machines: set admin.key, or listen on 127.0.0.1 or a Unix socket"
    )]
    KeyMissing {
        /// `admin.listen` as configured.
        address: String,
    },
    /// The system refused the address.
    #[error("cannot listen on {address}, as admin.listen says: {source}")]
    Listen {
        /// `admin.listen` as configured.
        address: String,
        /// Error of the system.
        source: bind::BindError,
    },
}

impl Admin {
    /// Binds the address. Connections wait until [`Admin::start`]. Must be called inside a runtime.
    #[cfg(test)]
    pub(crate) fn bind(
        settings: &AdminSettings,
        accounts: Arc<TokenRegistry>,
        metrics: MetricsRegistry,
    ) -> Result<Self, AdminBindError> {
        Ok(Self::from_listener(
            Self::listen(settings, &mut InheritedListeners::default())?,
            settings,
            accounts,
            metrics,
        ))
    }

    /// Binds the address alone, unless a passed listener stands for it; before the accounts exist:
    /// a start that cannot have the address must not spend a token fetch.
    pub(crate) fn listen(
        settings: &AdminSettings,
        passed: &mut InheritedListeners,
    ) -> Result<Listener, AdminBindError> {
        let address = settings.listen.to_string();
        if settings.key.is_none() && !settings.listen.is_local() {
            return Err(AdminBindError::KeyMissing { address });
        }
        let failed = |source| AdminBindError::Listen {
            address: address.clone(),
            source,
        };
        let taken = passed
            .take(ListenerRole::Admin, std::slice::from_ref(&settings.listen))
            .map_err(|error| failed(bind::BindError::Other(error)))?;
        let listener = match taken.into_iter().flatten().next() {
            Some(passed) => passed,
            None => Listener::bind(&settings.listen).map_err(failed)?,
        };
        // A listener that was passed by name may stand elsewhere than the configuration says.
        let is_local = listener
            .address()
            .tcp()
            .is_none_or(|bound| bound.ip().to_canonical().is_loopback());
        if settings.key.is_none() && !is_local {
            let address = listener.address().to_string();
            return Err(AdminBindError::KeyMissing { address });
        }
        Ok(listener)
    }

    /// Admin listener on an address that [`Admin::listen`] has bound.
    pub(crate) fn from_listener(
        listener: Listener,
        settings: &AdminSettings,
        accounts: Arc<TokenRegistry>,
        metrics: MetricsRegistry,
    ) -> Self {
        let control = AdminControl::new(settings, accounts).with_events(metrics.events());
        let degraded = Box::new(DegradedAccounts(control.clone()));
        metrics.register(|registry| registry.register_collector(degraded));
        Self {
            listener,
            control,
            metrics,
            health: NodeHealth::default(),
            facts: NodeFacts::default(),
            reload: None,
        }
    }

    /// Enables `POST /api/reload`, which is answered 501 otherwise.
    #[must_use]
    pub(crate) fn with_reload(mut self, reload: ReloadHandler) -> Self {
        self.reload = Some(reload);
        self
    }

    /// Sets the facts about the node that the console shows.
    #[must_use]
    pub(crate) fn with_facts(mut self, facts: NodeFacts) -> Self {
        self.facts = facts;
        self
    }

    /// Shares the health of the node with the data path: not ready while a worker is stuck.
    #[must_use]
    pub(crate) fn with_health(mut self, health: NodeHealth) -> Self {
        self.health = health;
        self
    }

    /// Adds the condition of the log to the body of readiness, and its dropped lines to the
    /// metrics.
    #[must_use]
    pub(crate) fn with_log(mut self, log: Arc<LogQueue>) -> Self {
        self.metrics.register(|registry| log.register(registry));
        self.health.log = Some(log);
        self
    }

    /// Returns a handle that replaces key, hosts and accounts, also while the listener runs.
    pub(crate) fn control(&self) -> AdminControl {
        self.control.clone()
    }

    /// Bound address, with the port that the system chose for port 0.
    pub(crate) fn address(&self) -> &BoundAddr {
        self.listener.address()
    }

    /// Serves on a thread of its own until the drain is aborting; the receiver resolves then.
    /// Readiness is gone from the moment the drain is leaving.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be started.
    pub(crate) async fn start(self, drain: Drain) -> io::Result<oneshot::Receiver<()>> {
        local::spawn("wxgate-admin".to_owned(), move || self.serve(drain)).await
    }

    async fn serve(self, drain: Drain) {
        let history = History::default();
        let sampling = history.clone().sample(self.metrics.clone());
        let sources = Sources {
            health: self.health,
            facts: self.facts,
            history,
            reload: self.reload,
            ..Sources::new(self.control, self.metrics, drain.clone())
        };
        let site = Rc::new(Site::new(sources));
        let serving = serve(self.listener, drain, move |request| {
            let site = Rc::clone(&site);
            async move { Ok(site.answer(request.map(Body::new)).await) }
        });
        tokio::select! {
            () = serving => {}
            () = sampling => {}
        }
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl AdminBindError {
    /// Reason for metrics, from a fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::KeyMissing { .. } => "key_missing",
            Self::Listen { .. } => "listen",
        }
    }
}
