//! The composition root: configuration in, a bound and runnable wxgate out.
//!
//! Builds every part, hands each what it needs, and drains them in order at the end. Holds no logic
//! of its own, and knows nothing of the sandbox: the demo puts the two together from outside.

pub mod descriptors;
mod keepers;
mod loops;
mod reload;
mod restart;

use std::{future::Future, io, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::timeout};

use self::{keepers::Keepers, reload::Running};
pub use self::{
    loops::{LeadsBack, Names, check_written as check_loops},
    reload::{Loader, Reloader},
};

use crate::{
    admin::{self, Admin},
    config::Config,
    net::{
        drain::{self, DrainControl, Phase},
        listen::BoundAddr,
    },
    proxy::{self, AccessLogSettings, Listeners, Proxy},
    telemetry::{output::Output, registry::Metrics},
    token::{
        self,
        source::{ClientError, TokenClient},
        store::{FileStore, MemoryStore, OpenError, RedisStore, StoreLocation, TokenStore},
    },
};

/// Time in which threads say how many requests they have cut.
const CUT: Duration = Duration::from_secs(1);

/// How long each step of a stop may take.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    /// Readiness is gone, connections are still taken.
    pub leaving: Duration,
    /// Kept-alive connections may send one more request. From the begin of the stop, like
    /// `leaving`.
    pub idle: Duration,
    /// Requests in flight may end.
    pub closing: Duration,
}

impl Default for Grace {
    fn default() -> Self {
        Self {
            leaving: Duration::from_secs(3),
            idle: Duration::from_secs(5),
            closing: Duration::from_secs(25),
        }
    }
}

/// Why wxgate could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder of the file store.
    #[error("{0}")]
    Store(#[from] OpenError),
    /// The client for the token endpoints.
    #[error("upstream: {0}")]
    Client(#[from] ClientError),
    /// The data path.
    #[error(transparent)]
    Proxy(#[from] proxy::BuildError),
    /// The admin listener.
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    /// Calls to WeChat would end here.
    #[error(transparent)]
    Loop(#[from] LeadsBack),
}

/// wxgate with its listeners bound. Nothing is served before [`App::run`].
pub struct App {
    proxy: proxy::Bound,
    admin: Admin,
    running: Arc<Mutex<Running>>,
    control: DrainControl,
    drain: drain::Drain,
    grace: Grace,
}

impl App {
    /// Opens the store, binds the listeners and starts the keepers. The current runtime becomes the
    /// one for background work; requests get threads of their own.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn build(config: &Config, log: Option<AccessLogSettings>) -> Result<Self, StartError> {
        let metrics = Metrics::default();
        let client = TokenClient::new(&config.proxy.upstream.egress, config.token.fetch_timeout)?;
        let keys = config.store.keys.clone();
        let store: Arc<dyn TokenStore> = match &config.store.location {
            StoreLocation::Memory => Arc::new(MemoryStore::default()),
            StoreLocation::File(path) => Arc::new(FileStore::open(path, keys)?),
            StoreLocation::Redis(server) => Arc::new(RedisStore::open(server, keys, client.tls())),
            #[cfg(feature = "sql")]
            StoreLocation::Sql(server) => {
                let ca_file = config.proxy.upstream.egress.ca_file.as_deref();
                Arc::new(token::store::SqlStore::open(server, keys, ca_file))
            }
        };
        // Before the first token is asked for: a second instance that was started by mistake must
        // not spend one.
        let listeners = Listeners::bind(&config.proxy)?;
        let own = listeners.tcp();
        loops::check(
            &config.accounts,
            &config.proxy.upstream.egress,
            &own,
            Names::Ask,
        )?;
        let admin = Admin::listen(&config.admin)?;
        let token_metrics = metrics.register(token::metrics::Metrics::register);
        let mut keepers = Keepers::new(client, store, token_metrics);
        let _ = keepers.follow(config);
        let proxy = Proxy::build(
            listeners,
            &config.proxy,
            keepers.running().to_vec(),
            log,
            &metrics,
        )?;
        let admin = Admin::on(admin, &config.admin, keepers.by_name(), metrics)
            .with_workers(proxy.stuck_workers());
        let running = Running {
            // Without secrets that may be replaced one day.
            started: Config {
                accounts: Vec::new(),
                admin: admin::settings::Settings {
                    key: None,
                    ..config.admin.clone()
                },
                ..config.clone()
            },
            own,
            keepers,
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

    /// Makes it possible to reload: by the reloader that comes back, and through the admin
    /// listener.
    #[must_use]
    pub fn reloading(mut self, load: Loader) -> (Self, Reloader) {
        let reloader = Reloader::new(load, Arc::clone(&self.running));
        self.admin = self.admin.with_reload(reloader.handler());
        (self, reloader)
    }

    /// Shows the condition of the log in readiness and metrics.
    #[must_use]
    pub fn with_log(mut self, log: &Output) -> Self {
        if let Output::Queue(queue) = log {
            self.admin = self.admin.with_log(Arc::clone(queue));
        }
        self
    }

    /// Shortens or lengthens the stop.
    #[must_use]
    pub fn with_grace(mut self, grace: Grace) -> Self {
        self.grace = grace;
        self
    }

    /// Where the data listeners stand.
    pub fn addresses(&self) -> Vec<BoundAddr> {
        self.proxy.addresses()
    }

    /// Where the admin listener stands.
    pub fn admin_address(&self) -> &BoundAddr {
        self.admin.address()
    }

    /// Serves until `stop` resolves, then drains; `abort` ends a drain at once.
    ///
    /// # Errors
    /// When threads cannot be started, or requests had to be cut at the end of the grace.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        abort: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let Self {
            proxy,
            admin,
            running: _running,
            control,
            drain,
            grace,
        } = self;
        let admin = admin.start(drain.clone()).await?;
        let proxy = proxy.run(drain);
        tokio::pin!(proxy, stop, abort);
        tokio::select! {
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
        let draining = async {
            tokio::time::sleep(grace.leaving).await;
            control.advance(Phase::Closing);
            let ending = async {
                let idle = tokio::time::sleep(grace.idle.saturating_sub(grace.leaving));
                tokio::select! {
                    ended = &mut proxy => return ended,
                    () = idle => control.advance(Phase::ClosingIdle),
                }
                (&mut proxy).await
            };
            timeout(grace.closing, ending).await
        };
        let drained = tokio::select! {
            drained = draining => Some(drained),
            () = &mut abort => None,
        };
        control.advance(Phase::Aborting);
        let admin = timeout(CUT, admin);
        match drained {
            Some(Ok(ended)) => {
                let _ = admin.await;
                ended.map(|_| ())
            }
            Some(Err(_)) => {
                let (ended, _) = tokio::join!(timeout(CUT, proxy), admin);
                match ended {
                    Ok(Ok(0)) => Ok(()),
                    _ => Err(io::Error::other(
                        "requests were still in flight at the end of the grace and were cut",
                    )),
                }
            }
            None => {
                let _ = admin.await;
                Err(io::Error::other(
                    "stopped at once; requests in flight were cut",
                ))
            }
        }
    }
}
