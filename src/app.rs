//! Composition root: builds every part of wxgate from a configuration, runs the parts, and drains
//! them in order at the end.
//!
//! The parts themselves are in the other modules. The sandbox is not known here; `cli::demo` puts
//! the two together.

pub mod descriptors;
mod loops;
mod refreshers;
mod reload;
mod restart;
mod rotation;

use std::{collections::HashMap, future::Future, io, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::Mutex,
    time::{error::Elapsed, timeout},
};

pub use self::{
    loops::{LoopError, NameLookup, check_written as check_loops},
    reload::{Loader, Reloader},
};
use self::{
    refreshers::{Refreshers, Successors},
    reload::RunningParts,
};

use crate::{
    admin::{self, Admin},
    config::Config,
    net::{
        drain::{self, DrainControl, Phase},
        listen::BoundAddr,
    },
    proxy::{self, AccessLogSettings, Listeners, Proxy},
    telemetry::{output::Output, registry::MetricsRegistry},
    token::{
        self,
        source::{ClientError, TokenClient},
        store::{FileStore, MemoryStore, OpenError, RedisStore, StoreLocation, TokenStore},
    },
};

/// Time limits of the steps of a stop.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    /// Time in which `/readyz` answers 503 and connections are still accepted.
    pub leaving: Duration,
    /// Time in which kept-alive connections may send one more request; counted from the begin of
    /// the stop, like `leaving`.
    pub idle: Duration,
    /// Time in which requests in flight may end; counted from the end of `leaving`.
    pub closing: Duration,
}

/// Time in which worker threads report the number of requests that they have cut.
const ABORT_TIME: Duration = Duration::from_secs(1);

/// Longest wait at the start for the keys of phantoms that the store keeps.
const PHANTOM_WAIT: Duration = Duration::from_secs(1);

impl Default for Grace {
    fn default() -> Self {
        Self {
            leaving: Duration::from_secs(3),
            idle: Duration::from_secs(5),
            closing: Duration::from_secs(25),
        }
    }
}

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
}

impl App {
    /// Opens the store, binds the listeners and starts the refreshers. Background work runs on the
    /// current runtime; requests get threads of their own.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn build(config: &Config, log: Option<AccessLogSettings>) -> Result<Self, StartError> {
        let metrics = MetricsRegistry::default();
        let client = TokenClient::new(&config.proxy.upstream.egress, config.token.fetch_timeout)?;
        let store = open_store(config, &client)?;
        // Before the first token is fetched: a second instance that was started by mistake must
        // fail here, without a fetch.
        let listeners = Listeners::bind(&config.proxy)?;
        let own = listeners.tcp();
        loops::check(
            &config.accounts,
            &config.proxy.upstream.egress,
            &own,
            NameLookup::Resolve,
        )?;
        let admin = Admin::listen(&config.admin)?;
        let token_metrics = metrics.register(token::metrics::TokenMetrics::register);
        let mut refreshers = Refreshers::new(client, store, token_metrics);
        let _ = refreshers.follow(config, Successors::default());
        let proxy = Proxy::build(
            listeners,
            &config.proxy,
            refreshers.running().to_vec(),
            log,
            &metrics,
        )?;
        let admin = Admin::from_listener(admin, &config.admin, refreshers.by_name(), metrics)
            .with_health(proxy.health());
        let running = RunningParts {
            // No secrets here: a reload may replace them, and this copy would outlive them.
            started: Config {
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
            },
            own,
            refreshers,
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
        })
    }

    /// Enables reloads, by the returned reloader and through the admin listener.
    #[must_use]
    pub fn reloading(mut self, load: Loader) -> (Self, Reloader) {
        let reloader = Reloader::new(load, Arc::clone(&self.running));
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

    /// Serves until `stop` resolves, then drains. `abort` ends the drain at once.
    ///
    /// # Errors
    /// If threads cannot be started, or requests had to be cut at the end of the grace.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        abort: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let Self {
            proxy,
            admin,
            // Held until the end, with the handles of all accounts.
            running,
            control,
            drain,
            grace,
        } = self;
        let admin = admin.start(drain.clone()).await?;
        // Else the first requests after a restart with another AppSecret would find their phantoms
        // refused. A store that is down must not hold up the start for long.
        let loaded = running.lock().await.refreshers.phantoms_loaded();
        let _ = timeout(PHANTOM_WAIT, loaded).await;
        let proxy = proxy.run(drain);
        tokio::pin!(proxy, stop, abort);
        tokio::select! {
            // Only after a failure: without a stop, the proxy does not end.
            ended = &mut proxy => return ended.map(|_| ()),
            () = &mut stop => {}
        }
        tracing::info!(
            leaving_s = grace.leaving.as_secs(),
            closing_s = grace.closing.as_secs(),
            "stopping: connections are still taken for a moment, then requests in flight may end; \
             a second signal stops at once"
        );
        control.advance(Phase::Leaving);
        let drained = tokio::select! {
            drained = drain_in_steps(&control, grace, proxy.as_mut()) => Some(drained),
            () = &mut abort => None,
        };
        control.advance(Phase::Aborting);
        let admin = timeout(ABORT_TIME, admin);
        let aborted = match drained {
            Some(Err(_)) => tokio::join!(timeout(ABORT_TIME, proxy), admin).0,
            Some(Ok(ended)) => {
                let _ = admin.await;
                return ended.map(|_| ());
            }
            None => {
                let _ = admin.await;
                return Err(io::Error::other(
                    "stopped at once; requests in flight were cut",
                ));
            }
        };
        // The workers say how many requests they cut. None: the last one ended just in time.
        match aborted {
            Ok(Ok(0)) => Ok(()),
            _ => Err(io::Error::other(
                "requests were still in flight at the end of the grace and were cut",
            )),
        }
    }
}

/// Moves a drain that is leaving on to its end. Returns the result of the proxy, or an error if
/// requests were still in flight at the end of the grace.
async fn drain_in_steps<T>(
    control: &DrainControl,
    grace: Grace,
    mut proxy: Pin<&mut impl Future<Output = T>>,
) -> Result<T, Elapsed> {
    tokio::time::sleep(grace.leaving).await;
    control.advance(Phase::Closing);
    let closing = async {
        // Idle connections close later than the listeners, so that a request that is already on its
        // way gets an answer instead of a reset.
        let idle = tokio::time::sleep(grace.idle.saturating_sub(grace.leaving));
        tokio::select! {
            ended = proxy.as_mut() => return ended,
            () = idle => control.advance(Phase::ClosingIdle),
        }
        proxy.await
    };
    timeout(grace.closing, closing).await
}

/// Opens the store of a configuration. Only a file store can fail here: servers are connected to in
/// the background, so that wxgate starts without them.
pub(crate) fn open_store(
    config: &Config,
    client: &TokenClient,
) -> Result<Arc<dyn TokenStore>, OpenError> {
    let keys = config.store.keys.clone();
    Ok(match &config.store.location {
        StoreLocation::Memory => Arc::new(MemoryStore::default()),
        StoreLocation::File(path) => Arc::new(FileStore::open(path, keys)?),
        StoreLocation::Redis(server) => Arc::new(RedisStore::open(server, keys, client.tls())),
        #[cfg(feature = "sql")]
        StoreLocation::Sql(server) => {
            let ca_file = config.proxy.upstream.egress.ca_file.as_deref();
            Arc::new(token::store::SqlStore::open(server, keys, ca_file))
        }
    })
}
