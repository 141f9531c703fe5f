//! Composition root: builds every part of wxgate from a configuration, runs the parts, and drains
//! them in order at the end.
//!
//! The parts themselves are in the other modules. The sandbox is not known here; `cli::demo` puts
//! the two together.

mod activation;
pub mod descriptors;
mod handover;
mod loops;
mod open_store;
mod refreshers;
mod reload;
mod restart;
mod rotation;
mod run;
mod service_manager;
mod standby;

use std::{collections::HashMap, io, sync::Arc};

use tokio::sync::Mutex;

pub(crate) use self::open_store::open_alone;
use self::{
    handover::{ChangeState, PassedSockets, Succession},
    open_store::open_store,
    refreshers::{Refreshers, Successors},
    reload::RunningParts,
};
pub use self::{
    handover::{Inheritance, Program, ReplaceError, Replacer},
    loops::{LoopError, NameLookup, check_written as check_loops},
    reload::{Loader, Reloader},
    run::Grace,
    service_manager::ServiceManager,
};

use crate::{
    admin::{self, Admin},
    config::Config,
    net::{
        drain::{self, DrainControl},
        inherit::ListenerRole,
        listen::{BoundAddr, Listener},
    },
    proxy::{self, AccessLogSettings, Listeners, Proxy},
    telemetry::{output::Output, registry::MetricsRegistry, reloads::ReloadMetrics},
    token::{
        self,
        source::{ClientError, TokenClient},
        store::{OpenError, StoreLocation},
    },
};

/// Reason why wxgate could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder of the file store cannot be used.
    #[error("{0}")]
    Store(#[from] OpenError),
    /// The client for the token endpoints cannot be built.
    #[error("upstream: {0}")]
    Client(#[from] ClientError),
    /// The data path cannot be built, or its listeners not be bound.
    #[error(transparent)]
    Proxy(#[from] proxy::BuildError),
    /// The admin listener cannot be bound.
    #[error(transparent)]
    Admin(#[from] admin::AdminBindError),
    /// There are no file descriptors left.
    #[error("cannot keep the listeners for a replacement of the program: {0}")]
    Descriptors(#[from] io::Error),
    /// Calls to WeChat would end at wxgate itself.
    #[error(transparent)]
    Loop(#[from] LoopError),
}

/// Instance of wxgate with bound listeners. Serves nothing before [`App::run`].
pub struct App {
    proxy: proxy::BoundProxy,
    admin: Admin,
    running: Arc<Mutex<RunningParts>>,
    control: DrainControl,
    drain: drain::Drain,
    grace: Grace,
    sockets: PassedSockets,
    change: ChangeState,
    manager: ServiceManager,
    /// Set in a process that replaces another one.
    succession: Option<Succession>,
}

impl App {
    /// Opens the store, binds the listeners and starts the refreshers. Background work runs on the
    /// current runtime; requests get threads of their own.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn build(config: &Config, log: Option<AccessLogSettings>) -> Result<Self, StartError> {
        Self::build_with(config, log, Inheritance::default())
    }

    /// As [`App::build`], with everything that another process has passed.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn build_with(
        config: &Config,
        log: Option<AccessLogSettings>,
        mut inheritance: Inheritance,
    ) -> Result<Self, StartError> {
        let metrics = MetricsRegistry::default();
        let client = TokenClient::new(&config.proxy.upstream.egress, config.token.fetch_timeout)?;
        let (store, store_parts) = open_store(config, &client, &mut inheritance)?;
        let Inheritance {
            listeners: mut passed,
            succession,
            ..
        } = inheritance;
        // Before the first token is fetched: a second instance that was started by mistake must
        // fail here, without a fetch.
        let listeners = Listeners::bind(&config.proxy, &mut passed)?;
        let own = listeners.tcp();
        loops::check(
            &config.accounts,
            &config.proxy.upstream.egress,
            &own,
            NameLookup::Resolve,
        )?;
        let admin = Admin::listen(&config.admin, &mut passed)?;
        passed.close_unused();
        let sockets = keep_sockets(config, &listeners, &admin)?;
        let token_metrics = metrics
            .register(token::metrics::TokenMetrics::register)
            .with_events(metrics.events());
        let mut refreshers =
            Refreshers::new(client, store, token_metrics).on_standby(succession.is_some());
        let _ = refreshers.follow(config, Successors::default());
        let reloads = metrics.register(ReloadMetrics::register);
        let proxy = Proxy::build(
            listeners,
            &config.proxy,
            refreshers.running().to_vec(),
            log,
            &metrics,
        )?;
        let admin = Admin::from_listener(admin, &config.admin, refreshers.by_name(), metrics)
            .with_health(proxy.health())
            .with_facts(facts(config, &proxy.addresses()));
        let running = RunningParts {
            started: without_secrets(config),
            own,
            refreshers,
            store: store_parts,
            was_usable: proxy.health().was_usable,
            is_replaced: false,
            reloads,
            proxy: proxy.control(),
            admin: admin.control(),
        };
        let (control, drain) = drain::drain();
        Ok(Self {
            proxy,
            admin,
            running: Arc::new(Mutex::new(running)),
            control,
            drain,
            grace: Grace::default(),
            sockets,
            change: ChangeState::default(),
            manager: ServiceManager::default(),
            succession,
        })
    }

    /// Keeps the service manager informed. To be called before [`App::reloading`] and
    /// [`App::replaceable`].
    #[must_use]
    pub fn with_service_manager(mut self, manager: ServiceManager) -> Self {
        self.manager = manager;
        self
    }

    /// Returns a handle that replaces the program while it runs.
    pub fn replaceable(&self, program: Option<Program>) -> Replacer {
        Replacer::new(
            program,
            Arc::clone(&self.running),
            self.sockets.clone(),
            self.change.clone(),
            self.manager.clone(),
        )
    }

    /// Enables reloads, by the returned reloader and through the admin listener.
    #[must_use]
    pub fn reloading(mut self, load: Loader) -> (Self, Reloader) {
        let reloader = Reloader::new(load, Arc::clone(&self.running), self.manager.clone());
        self.admin = self.admin.with_reload(reloader.handler());
        (self, reloader)
    }

    /// Adds the condition of the log to readiness and metrics.
    #[must_use]
    pub fn with_log(mut self, log: &Output) -> Self {
        if let Output::Queue(queue) = log {
            self.admin = self.admin.with_log(Arc::clone(queue));
        }
        self
    }

    /// Replaces the time limits of the stop.
    #[must_use]
    pub fn with_grace(mut self, grace: Grace) -> Self {
        self.grace = grace;
        self
    }

    /// Addresses of the data listeners.
    pub fn addresses(&self) -> Vec<BoundAddr> {
        self.proxy.addresses()
    }

    /// Address of the admin listener.
    pub fn admin_address(&self) -> &BoundAddr {
        self.admin.address()
    }
}

/// Copies a configuration without the secrets that a reload may replace, which the copy would
/// outlive.
fn without_secrets(config: &Config) -> Config {
    Config {
        accounts: Vec::new(),
        admin: admin::settings::AdminSettings {
            key: None,
            ..config.admin.clone()
        },
        proxy: proxy::settings::ProxySettings {
            signing: HashMap::new(),
            ..config.proxy.clone()
        },
        ..config.clone()
    }
}

/// Facts that the console shows.
fn facts(config: &Config, listen: &[BoundAddr]) -> admin::NodeFacts {
    let (store, shared) = match &config.store.location {
        StoreLocation::Memory => ("memory", false),
        StoreLocation::File(_) => ("file", false),
        StoreLocation::Redis(_) => ("redis", true),
        #[cfg(feature = "sql")]
        StoreLocation::Sql(_) => ("sql", true),
    };
    admin::NodeFacts {
        store,
        shared,
        listen: listen.iter().map(ToString::to_string).collect(),
    }
}

/// Duplicates all listeners for a process that may replace this one.
fn keep_sockets(
    config: &Config,
    listeners: &Listeners,
    admin: &Listener,
) -> io::Result<PassedSockets> {
    let data = listeners
        .iter()
        .zip(&config.proxy.listen)
        .map(|(listener, address)| (ListenerRole::Data, address.to_string(), listener));
    let address = config.admin.listen.to_string();
    PassedSockets::of(data.chain([(ListenerRole::Admin, address, admin)]))
}
