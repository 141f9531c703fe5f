//! What operators see: a page, health, metrics, the accounts, and a way to refresh one by hand.
//!
//! Shows no token and no secret; a token is named by its fingerprint. The page is plain HTML without script until the
//! console is built. `POST /api/reload` and `GET /api/events` do not exist yet and are answered 404.

mod accounts;
mod answer;
mod guard;
mod page;
mod readiness;
pub mod settings;
mod site;
#[cfg(test)]
mod tests;

use std::{io, sync::Arc};

use axum::body::Body;

use self::{guard::Guard, settings::Settings, site::Site};
use crate::{
    net::{
        drain::Drain,
        listen::{BoundAddr, Listener},
        serve::serve,
    },
    telemetry::registry::Metrics,
    token::Accounts,
};

/// The admin listener, bound and not yet serving.
#[derive(Debug)]
pub struct Admin {
    listener: Listener,
    guard: Guard,
    accounts: Arc<Accounts>,
    metrics: Metrics,
}

/// Why the admin listener cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Other machines could reach it, and nothing would hold them off.
    #[error("{address} can be reached from other machines: set admin.key, or listen on 127.0.0.1 or a Unix socket")]
    KeyMissing {
        /// As configured.
        address: String,
    },
    /// The system said no.
    #[error("cannot listen on {address}: {source}; choose another admin.listen or stop what stands there")]
    Listen {
        /// As configured.
        address: String,
        /// The system's words.
        source: io::Error,
    },
}

impl Admin {
    /// Takes the address; connections are answered once it runs. Must be called inside a runtime.
    pub fn bind(settings: &Settings, accounts: Arc<Accounts>, metrics: Metrics) -> Result<Self, BindError> {
        Ok(Self::on(Self::listen(settings)?, settings, accounts, metrics))
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
    pub fn on(listener: Listener, settings: &Settings, accounts: Arc<Accounts>, metrics: Metrics) -> Self {
        Self { listener, guard: Guard::new(settings), accounts, metrics }
    }

    /// Where it stands, port included.
    pub fn address(&self) -> &BoundAddr {
        self.listener.address()
    }

    /// Serves until the drain is closing and the connections have ended, or it is aborting. Readiness is gone from the
    /// moment the drain is leaving.
    pub async fn run(self, drain: Drain) {
        let site = Arc::new(Site::new(self.guard, self.accounts, self.metrics, drain.clone()));
        serve(self.listener, drain, move |request| {
            let site = Arc::clone(&site);
            async move { Ok(site.answer(request.map(Body::new)).await) }
        })
        .await;
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
