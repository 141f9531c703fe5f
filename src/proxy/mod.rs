//! The data path: a caller's request to WeChat's API and back, with the account's token in it.
//!
//! This file builds the data path and runs its workers. `pipeline` answers requests; it alone calls
//! the stages, in this order: `access` and `route` (client and account), `path` (the grammar),
//! `body` (kept for a replay), `inject` and `headers` (the token in, private data out), `upstream`
//! (to WeChat and back), `inspect` and `retry` (the verdict on the token). Tokens come from a
//! [`TokenRefresher`](crate::token::TokenRefresher): the current one, and one newer than a rejected
//! one.

mod access;
mod access_log;
mod answer;
mod body;
mod bulkhead;
mod client_conn;
mod error;
pub(crate) mod headers;
mod healing;
pub(crate) mod inject;
mod inspect;
mod keyless;
mod latency;
mod log_limit;
mod loops;
mod mask;
mod metrics;
pub(crate) mod path;
mod pipeline;
mod query;
mod refusals;
mod request_id;
mod retry;
pub(crate) mod route;
mod runtime_config;
pub(crate) mod settings;
mod spool;
mod upstream;
mod watchdog;
mod worker;
mod worker_state;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

pub(crate) use self::runtime_config::{PreparedConfig, ProxyControl};
pub use self::{
    access::bench::AccessBench,
    upstream::bench::{PoolBench, read_answer_head},
};
use self::{
    access_log::AccessLog,
    bulkhead::{Load, PeerConnections},
    healing::Healing,
    keyless::KeylessRate,
    loops::LoopMark,
    metrics::{AccountMetrics, ProxyMetrics},
    refusals::Refusals,
    runtime_config::RuntimeConfig,
    settings::ProxySettings,
    upstream::{Dialer, UpstreamOrigins},
};
use crate::{
    net::{
        address::ListenAddr,
        bind::BindError,
        drain::{Drain, Phase},
        inherit::{InheritedListeners, ListenerRole},
        listen::{BoundAddr, Listener},
    },
    service::readiness::NodeHealth,
    telemetry::{format::Format, output::Output, registry, workers::StuckWorkers},
    token::{AccountSettings, AccountTokens},
};

/// Settings of the access log.
#[derive(Debug, Clone)]
pub struct AccessLogSettings {
    /// Text or JSON.
    pub format: Format,
    /// Receiver of the lines.
    pub output: Output,
}

/// Errors of building the data path.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A listener could not be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Address as configured.
        address: String,
        /// Error of the operating system.
        error: BindError,
    },
    /// A listener that was passed could not be set up.
    #[error("a listener that was passed cannot be used: {0}")]
    Passed(io::Error),
    /// `server.tls` cannot be used.
    #[error("server.tls: {0}")]
    Tls(io::Error),
    /// `upstream` or an account's `api` cannot be used.
    #[error("upstream: {0}")]
    Upstream(String),
}

/// The data path, shared by its workers.
pub(crate) struct Proxy {
    config: ArcSwap<RuntimeConfig>,
    peers: Arc<PeerConnections>,
    /// Counters of requests that use no account, or that none was found for.
    no_account: AccountMetrics,
    healing: Healing,
    keyless_rate: KeylessRate,
    metrics: ProxyMetrics,
    refusals: Refusals,
    origins: UpstreamOrigins,
    dialer: Dialer,
    pool_idle: Duration,
    copies: Arc<spool::CopyBudget>,
    log: Option<AccessLogSettings>,
    loop_mark: LoopMark,
    health: NodeHealth,
}

/// Bound addresses of the data path. The kernel holds their connections until the data path runs.
pub(crate) struct Listeners {
    list: Vec<Listener>,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

/// The data path with its listeners bound, ready to run.
pub(crate) struct BoundProxy {
    proxy: Arc<Proxy>,
    listeners: Vec<Listener>,
    workers: usize,
    max_connections: usize,
}

/// The data path with its workers at work.
pub(crate) struct RunningProxy {
    workers: Arc<[worker::WorkerHandle]>,
    ends: Vec<worker::WorkerEnd>,
    drain: Drain,
    stuck: StuckWorkers,
}

impl Listeners {
    /// Binds the addresses that none of the passed listeners stands for.
    ///
    /// # Errors
    /// When an address is in use already, or `server.tls` cannot be used.
    pub(crate) fn bind(
        settings: &ProxySettings,
        passed: &mut InheritedListeners,
    ) -> Result<Self, BuildError> {
        let tls = settings
            .tls
            .as_ref()
            .map(|tls| tls.acceptor().map_err(BuildError::Tls))
            .transpose()?;
        let listen = |(address, passed): (&ListenAddr, Option<Listener>)| {
            let bound = passed.map_or_else(|| Listener::bind(address), Ok);
            bound.map_err(|error| BuildError::Listen {
                address: address.to_string(),
                error,
            })
        };
        let passed = passed
            .take(ListenerRole::Data, &settings.listen)
            .map_err(BuildError::Passed)?;
        let list = settings
            .listen
            .iter()
            .zip(passed)
            .map(listen)
            .collect::<Result<_, _>>()?;
        Ok(Self { list, tls })
    }

    /// Iterates over the listeners, in the order of `server.listen`.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.list.iter()
    }

    /// Returns the TCP addresses, with the ports that were given for port 0.
    pub(crate) fn tcp(&self) -> Vec<SocketAddr> {
        self.list
            .iter()
            .filter_map(|listener| listener.address().tcp())
            .collect()
    }
}

impl Proxy {
    /// Prepares everything that requests need.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub(crate) fn build(
        listeners: Listeners,
        settings: &ProxySettings,
        accounts: Vec<(AccountSettings, AccountTokens)>,
        log: Option<AccessLogSettings>,
        registry: &registry::MetricsRegistry,
    ) -> Result<BoundProxy, BuildError> {
        let mut metrics = registry
            .register(ProxyMetrics::register)
            .with_events(registry.events());
        if settings.tls.is_some() {
            metrics = registry.register(|registry| metrics.with_certificate(registry));
        }
        let Listeners {
            list: listeners,
            tls,
        } = listeners;
        let (accounts, refreshers): (Vec<_>, Vec<_>) = accounts.into_iter().unzip();
        let origins = UpstreamOrigins::default();
        let prepared = PreparedConfig::new(settings, &accounts, &origins, tls)?;
        let config = RuntimeConfig::new(
            prepared,
            refreshers,
            &metrics,
            None,
            Load::new(metrics.in_flight.clone()),
        );
        let proxy = Self {
            config: ArcSwap::from_pointee(config),
            peers: Arc::default(),
            no_account: metrics.for_none(),
            healing: Healing::default(),
            keyless_rate: KeylessRate::new(),
            metrics,
            refusals: registry.register(Refusals::register),
            origins,
            dialer: Dialer::new(&settings.upstream.egress)
                .map_err(|error| BuildError::Upstream(error.to_string()))?,
            pool_idle: settings.upstream.pool_idle,
            copies: spool::CopyBudget::new(settings.replay.memory_total),
            log,
            loop_mark: LoopMark::random(),
            health: NodeHealth {
                workers: registry.register(StuckWorkers::register),
                ..NodeHealth::default()
            },
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = if settings.workers == 0 {
            cores
        } else {
            settings.workers
        };
        Ok(BoundProxy {
            proxy: Arc::new(proxy),
            listeners,
            workers,
            max_connections: settings.max_connections,
        })
    }

    fn access_log(&self) -> Option<AccessLog> {
        self.log
            .as_ref()
            .map(|log| AccessLog::new(log.format, log.output.clone()))
    }
}

impl BoundProxy {
    /// Returns the addresses of the listeners, with the ports that were given for port 0.
    pub(crate) fn addresses(&self) -> Vec<BoundAddr> {
        self.listeners
            .iter()
            .map(|listener| listener.address().clone())
            .collect()
    }

    /// Returns the health of the node: the workers that the watchdog finds stuck, and the memory
    /// that an account was usable.
    pub(crate) fn health(&self) -> NodeHealth {
        self.proxy.health.clone()
    }

    /// Returns a handle that changes the configuration, also of the running data path.
    pub(crate) fn control(&self) -> ProxyControl {
        ProxyControl::of(&self.proxy)
    }

    /// Starts the workers, and has them take connections.
    ///
    /// # Errors
    /// When a worker thread cannot be started.
    pub(crate) async fn start(self, drain: Drain) -> io::Result<RunningProxy> {
        let (mut workers, mut ends) = (Vec::new(), Vec::new());
        for index in 0..self.workers {
            let (worker, ended) =
                worker::spawn(index, Arc::clone(&self.proxy), drain.clone()).await?;
            workers.push(worker);
            ends.push(ended);
        }
        let workers = workers.into();
        worker::start(
            self.listeners,
            &workers,
            &Arc::new(Semaphore::new(self.max_connections)),
        );
        Ok(RunningProxy {
            workers,
            ends,
            drain,
            stuck: self.proxy.health.workers.clone(),
        })
    }
}

impl RunningProxy {
    /// Watches the workers until the drain is over and each of them has ended. Returns how many
    /// requests were cut.
    pub(crate) async fn ended(mut self) -> usize {
        tokio::select! {
            () = self.drain.reached(Phase::Closing) => {}
            () = watchdog::watch(self.workers, self.stuck) => {
                // Every worker has ended; the stop finds that out.
                self.drain.reached(Phase::Closing).await;
            }
        }
        let mut cut = 0;
        for ended in self.ends {
            cut += ended.await.unwrap_or(0);
        }
        cut
    }
}
