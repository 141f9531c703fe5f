//! The application at work: from the first request to the end of the drain.

use std::{convert::Infallible, future::Future, io, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, oneshot},
    time::{error::Elapsed, interval, timeout},
};

use super::{
    App,
    handover::{Change, Serving, Succession},
    reload::RunningParts,
    service_manager::ServiceManager,
};
use crate::{
    net::drain::{DrainControl, Phase},
    service::readiness::NodeHealth,
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

/// Interval at which the service manager is told the state of the accounts.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

impl Default for Grace {
    fn default() -> Self {
        Self {
            leaving: Duration::from_secs(3),
            idle: Duration::from_secs(5),
            closing: Duration::from_secs(25),
        }
    }
}

impl App {
    /// Serves until `stop` resolves or another process has replaced this one, then drains. `abort`
    /// ends the drain at once.
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
            sockets,
            change,
            manager,
            succession,
        } = self;
        tokio::pin!(stop, abort);
        // Before anything is served: the other process answers until this one can.
        let serving = tokio::select! {
            serving = take_over(succession, &running) => serving?,
            () = &mut stop => return Ok(()),
        };
        let health = proxy.health();
        let admin = admin.start(drain.clone()).await?;
        // Else the first requests after a restart with another AppSecret would find their phantoms
        // refused. A store that is down must not hold up the start for long.
        let loaded = running.lock().await.refreshers.phantoms_loaded();
        let _ = timeout(PHANTOM_WAIT, loaded).await;
        let proxy = proxy.start(drain).await?.ended();
        tokio::pin!(proxy);
        announce(&manager, serving).await;
        change.serving();
        let is_signalled = tokio::select! {
            biased;
            // Only after a failure: without a stop, the proxy does not end.
            _ = &mut proxy => return Ok(()),
            () = change.reached(Change::Done) => false,
            () = &mut stop => true,
            never = report(&manager, &health, &running) => match never {},
        };
        // A duplicate would keep the listeners open after their end.
        sockets.close();
        let stopping = Stopping {
            control,
            grace,
            manager,
            is_replaced: !change.stop(),
        };
        if stopping.is_replaced {
            tokio::spawn(running.lock().await.refreshers.follow_store());
        }
        let abort = async {
            // A drain that no signal has begun takes the first one for what it says.
            if !is_signalled {
                stop.await;
            }
            abort.await;
        };
        stopping.drain(proxy, admin, abort).await
    }
}

/// Goes through the dialogue with the process that this one replaces, if there is any.
async fn take_over(
    succession: Option<Succession>,
    running: &Arc<Mutex<RunningParts>>,
) -> io::Result<Option<Serving>> {
    match succession {
        Some(succession) => succession.take_over(running).await.map(Some),
        None => Ok(None),
    }
}

/// Tells the service manager, and the process that this one replaces, that this one serves.
async fn announce(manager: &ServiceManager, serving: Option<Serving>) {
    match serving {
        None => manager.ready(),
        Some(serving) => {
            manager.ready_as_main();
            serving.tell().await;
        }
    }
}

/// The end of the process, once it has begun.
struct Stopping {
    control: DrainControl,
    grace: Grace,
    manager: ServiceManager,
    /// Another process goes on with the listeners.
    is_replaced: bool,
}

impl Stopping {
    /// Drains until the proxy has ended, the grace is over or `abort` resolves.
    async fn drain(
        mut self,
        mut proxy: Pin<&mut impl Future<Output = usize>>,
        admin: oneshot::Receiver<()>,
        abort: impl Future<Output = ()>,
    ) -> io::Result<()> {
        self.begin();
        let drained = tokio::select! {
            drained = drain_in_steps(&self.control, self.grace, proxy.as_mut()) => Some(drained),
            () = abort => None,
            // The main process is watched until its end.
            never = keep_alive(&self.manager), if !self.is_replaced => match never {},
        };
        self.control.advance(Phase::Aborting);
        let admin = timeout(ABORT_TIME, admin);
        let cut = match drained {
            Some(Err(_)) => tokio::join!(timeout(ABORT_TIME, proxy), admin).0,
            Some(Ok(_)) => {
                let _ = admin.await;
                return Ok(());
            }
            None => {
                let _ = admin.await;
                return Err(io::Error::other(
                    "stopped at once; requests in flight were cut",
                ));
            }
        };
        // The workers say how many requests they cut. None: the last one ended just in time.
        match cut {
            Ok(0) => Ok(()),
            _ => Err(io::Error::other(
                "requests were still in flight at the end of the grace and were cut",
            )),
        }
    }

    fn begin(&mut self) {
        if self.is_replaced {
            // No load balancer has to learn of this stop, nor the service manager.
            self.grace.leaving = Duration::ZERO;
            self.control.replace();
            return;
        }
        self.manager.stopping();
        tracing::info!(
            leaving_s = self.grace.leaving.as_secs(),
            closing_s = self.grace.closing.as_secs(),
            "stopping: connections are still taken for a moment, then requests in flight may end; \
             a second signal stops at once"
        );
        self.control.advance(Phase::Leaving);
    }
}

/// Tells the service manager that the data path works, and how the accounts are, for as long as the
/// future is polled. Runs beside the workers, so that the service manager learns of workers that are
/// stuck, and of a process in which nothing runs any more.
async fn report(
    manager: &ServiceManager,
    health: &NodeHealth,
    running: &Mutex<RunningParts>,
) -> Infallible {
    if !manager.is_there() {
        return std::future::pending().await;
    }
    let watchdog = manager.watchdog();
    let mut ticks = interval(watchdog.unwrap_or(STATUS_INTERVAL).min(STATUS_INTERVAL));
    let mut told = String::new();
    loop {
        ticks.tick().await;
        let is_stuck = !health.workers.list().is_empty();
        if watchdog.is_some() && !is_stuck {
            manager.alive();
        }
        // Taken during a reload, which must not keep the watchdog waiting.
        let Ok(running) = running.try_lock() else {
            continue;
        };
        let (usable, all) = running.refreshers.usable();
        drop(running);
        let status = if is_stuck {
            "worker threads do not answer: calls wait".to_owned()
        } else {
            format!("serving; {usable} of {all} accounts have a token")
        };
        if status != told {
            manager.status(&status);
            told = status;
        }
    }
}

/// Tells the service manager that this process drains, for as long as the future is polled. The
/// grace limits the drain.
async fn keep_alive(manager: &ServiceManager) -> Infallible {
    let Some(watchdog) = manager.watchdog() else {
        return std::future::pending().await;
    };
    let mut ticks = interval(watchdog);
    loop {
        ticks.tick().await;
        manager.alive();
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
