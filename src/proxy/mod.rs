//! The data path: a caller's request to WeChat's API and back, with the account's token in it.
//!
//! A request goes through these files in this order, called by `pipeline` alone: `access` and
//! `route` (who, for which account), `path` (what may be called), `body` (kept for a replay),
//! `inject` and `headers` (the token in, everything private out), `upstream` (there and back),
//! `inspect` and `retry` (what the answer says about the token). Of tokens it knows what
//! [`TokenRefresher`](crate::token::TokenRefresher) offers: the current one, and one past a rejected
//! one.

mod access;
mod access_log;
mod answer;
mod body;
mod bulkhead;
mod client_conn;
mod error;
pub mod headers;
pub mod inject;
mod inspect;
mod live;
mod loops;
mod metrics;
pub mod path;
mod pipeline;
mod request_id;
mod retry;
pub mod route;
pub mod settings;
mod spool;
mod upstream;
mod watchdog;
mod worker;
mod worker_state;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

pub use self::live::{Control, Plan};
// Doors for the benches, no part of the interface.
#[doc(hidden)]
pub use self::{access::bench::Callers, upstream::bench::PoolBench};
use self::{
    access_log::AccessLog,
    bulkhead::{Load, Peers},
    live::Live,
    loops::LoopMark,
    metrics::{AccountMetrics, Metrics},
    settings::Settings,
    upstream::{Dialer, UpstreamOrigins},
};
use crate::{
    net::{
        bind::BindError,
        drain::{Drain, Phase},
        listen::{BoundAddr, Listener},
    },
    telemetry::{logging::Format, output::Output, registry, workers::StuckWorkers},
    token::{AccountSettings, AccountTokens},
};

/// Where the access log goes; `None` when nobody wants it.
#[derive(Debug, Clone)]
pub struct AccessLogSettings {
    /// Text or JSON.
    pub format: Format,
    /// The sink.
    pub output: Output,
}

/// Why the data path could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A listener could not be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// As configured.
        address: String,
        /// The cause.
        error: BindError,
    },
    /// `server.tls` cannot be used.
    #[error("server.tls: {0}")]
    Tls(io::Error),
    /// `upstream` or an account's `api` cannot be used.
    #[error("upstream: {0}")]
    Upstream(String),
}

/// The data path, shared by its workers.
pub struct Proxy {
    live: ArcSwap<Live>,
    peers: Arc<Peers>,
    /// Counters of requests that no account was found for.
    no_account: AccountMetrics,
    metrics: Metrics,
    origins: UpstreamOrigins,
    dialer: Dialer,
    pool_idle: Duration,
    copies: Arc<spool::CopyBudget>,
    log: Option<AccessLogSettings>,
    loop_mark: LoopMark,
    stuck: StuckWorkers,
}

/// The addresses of the data path, taken. Connections wait until it runs.
pub struct Listeners {
    list: Vec<Listener>,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

/// The data path with its listeners bound, ready to run.
pub struct Bound {
    proxy: Arc<Proxy>,
    listeners: Vec<Listener>,
    workers: usize,
    max_connections: usize,
}

impl Listeners {
    /// Takes the addresses.
    ///
    /// # Errors
    /// When one is taken already, or `server.tls` cannot be used.
    pub fn bind(settings: &Settings) -> Result<Self, BuildError> {
        let tls = settings
            .tls
            .as_ref()
            .map(|tls| tls.acceptor().map_err(BuildError::Tls))
            .transpose()?;
        let listen = |address| {
            Listener::bind(address).map_err(|error| BuildError::Listen {
                address: address.to_string(),
                error,
            })
        };
        let list = settings
            .listen
            .iter()
            .map(listen)
            .collect::<Result<_, _>>()?;
        Ok(Self { list, tls })
    }

    /// Where those on TCP really stand.
    pub fn tcp(&self) -> Vec<SocketAddr> {
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
    pub fn build(
        listeners: Listeners,
        settings: &Settings,
        accounts: Vec<(AccountSettings, AccountTokens)>,
        log: Option<AccessLogSettings>,
        registry: &registry::MetricsRegistry,
    ) -> Result<Bound, BuildError> {
        let metrics = registry.register(Metrics::register);
        let Listeners {
            list: listeners,
            tls,
        } = listeners;
        let (accounts, refreshers): (Vec<_>, Vec<_>) = accounts.into_iter().unzip();
        let origins = UpstreamOrigins::default();
        let plan = Plan::new(settings, &accounts, &origins, tls)?;
        let live = Live::new(
            plan,
            refreshers,
            &metrics,
            None,
            Load::new(metrics.in_flight.clone()),
        );
        let proxy = Self {
            live: ArcSwap::from_pointee(live),
            peers: Arc::default(),
            no_account: metrics.for_none(),
            metrics,
            origins,
            dialer: Dialer::new(&settings.upstream.egress)
                .map_err(|error| BuildError::Upstream(error.to_string()))?,
            pool_idle: settings.upstream.pool_idle,
            copies: spool::CopyBudget::new(settings.replay.memory_total),
            log,
            loop_mark: LoopMark::random(),
            stuck: registry.register(StuckWorkers::register),
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = if settings.workers == 0 {
            cores
        } else {
            settings.workers
        };
        Ok(Bound {
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

impl Bound {
    /// Where the listeners really stand.
    pub fn addresses(&self) -> Vec<BoundAddr> {
        self.listeners
            .iter()
            .map(|listener| listener.address().clone())
            .collect()
    }

    /// The workers that the watchdog finds stuck.
    pub fn stuck_workers(&self) -> StuckWorkers {
        self.proxy.stuck.clone()
    }

    /// Changes the configuration from now on, also while it runs.
    pub fn control(&self) -> Control {
        Control::of(&self.proxy)
    }

    /// Serves until the drain is over and every worker has ended. Returns how many requests were cut.
    ///
    /// # Errors
    /// When a worker thread cannot be started.
    pub async fn run(self, mut drain: Drain) -> io::Result<usize> {
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
        tokio::select! {
            () = drain.reached(Phase::Closing) => {}
            () = watchdog::watch(workers, self.proxy.stuck.clone()) => {
                // Every worker has ended; the stop finds that out.
                drain.reached(Phase::Closing).await;
            }
        }
        let mut cut = 0;
        for ended in ends {
            cut += ended.await.unwrap_or(0);
        }
        Ok(cut)
    }
}
