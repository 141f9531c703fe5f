//! Stays connected to the server: one connection for commands, one on which it tells of changes.
//!
//! Whatever is wrong with a connection, a new one is made after a pause; meanwhile calls fail at
//! once. Where the server is, `place` finds out each time.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, ConnectionAddr, Msg, RedisConnectionInfo, Value,
    aio::{MultiplexedConnection, PubSub, PubSubSink, PubSubStream},
    cmd,
};
use rustls::ClientConfig;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use super::{
    address::Settings,
    fault,
    place::{self, Place},
};
use crate::{
    base::backoff::Backoff,
    token::{
        dial,
        store::{ServerFault, bell::Bell},
    },
};

/// The connection as calls see it. Dropping it ends it.
pub(super) struct Link {
    state: watch::Receiver<State>,
    doubt: Arc<Notify>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
enum State {
    /// The first attempt is under way.
    Opening,
    Up(MultiplexedConnection),
    Down(ServerFault),
}

/// What the task works with.
struct Keeper {
    settings: Settings,
    tls: Arc<ClientConfig>,
    bell: Arc<Bell>,
    doubt: Arc<Notify>,
}

/// Both connections to one server.
struct Line {
    commands: MultiplexedConnection,
    driver: Driver,
    changes: PubSubStream,
    listening: PubSubSink,
    place: Place,
}

/// Moves the bytes of a connection; dropping it closes the connection.
struct Driver(JoinHandle<()>);

/// For finding the server, connecting twice and logging in.
const OPEN: Duration = Duration::from_secs(2);
/// Between two attempts while the first is without an answer: what was asked of a network that was
/// broken then is not always sent again, and the next attempt finds it whole.
const AGAIN: Duration = Duration::from_secs(1);
const PAUSE: Backoff = Backoff {
    min: Duration::from_millis(100),
    max: Duration::from_secs(1),
};
/// A connection that lasted so long was good, and may be doubted.
const PROVEN: Duration = Duration::from_secs(3);
/// Between two looks whether the server still answers.
const LOOK: Duration = Duration::from_secs(1);
/// How long it may take to, so that a machine that is overloaded for a moment does not lose its
/// store as well.
const ANSWER: Duration = Duration::from_secs(2);
/// Looks between two questions to the Sentinels.
const ASK_SENTINELS: u32 = 5;
/// Between two questions while the server keeps silent.
const ASK_SENTINELS_SOON: Duration = Duration::from_millis(300);

/// Where names of changed records are told.
pub(super) fn channel(prefix: &str) -> String {
    format!("{prefix}changes")
}

impl Link {
    /// Begins to connect, on the current runtime.
    pub(super) fn start(settings: &Settings, tls: Arc<ClientConfig>, bell: Arc<Bell>) -> Self {
        let (publish, state) = watch::channel(State::Opening);
        let doubt = Arc::new(Notify::new());
        let keeper = Keeper {
            settings: settings.clone(),
            tls,
            bell,
            doubt: Arc::clone(&doubt),
        };
        let task = tokio::spawn(async move { keeper.run(publish).await });
        Self { state, doubt, task }
    }

    /// The connection for commands, or what is wrong. Waits for the first attempt only.
    pub(super) async fn connection(&self) -> Result<MultiplexedConnection, ServerFault> {
        let mut state = self.state.clone();
        let settled = state
            .wait_for(|state| !matches!(state, State::Opening))
            .await;
        match settled.as_deref() {
            Ok(State::Up(connection)) => Ok(connection.clone()),
            Ok(State::Down(fault)) => Err(*fault),
            Ok(State::Opening) | Err(_) => Err(ServerFault::Unreachable),
        }
    }

    /// Whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), State::Up(_))
    }

    /// A call failed like this; it may be time to find out anew where the server is.
    pub(super) fn doubt(&self, fault: ServerFault) {
        if matches!(
            fault,
            ServerFault::ReadOnly | ServerFault::Busy | ServerFault::Broken
        ) {
            self.doubt.notify_one();
        }
    }
}

impl Keeper {
    async fn run(self, state: watch::Sender<State>) {
        let mut failures = 0_u32;
        let mut said = None;
        let mut attempts = FuturesUnordered::new();
        let mut next = Instant::now();
        loop {
            let opened = tokio::select! {
                Some(opened) = attempts.next() => opened,
                () = sleep_until(next) => {
                    attempts.push(timeout(OPEN, self.open()));
                    next = Instant::now() + AGAIN;
                    continue;
                }
            };
            let fault = match opened.unwrap_or(Err(ServerFault::Timeout)) {
                Ok(line) => {
                    attempts.clear();
                    if said.take().is_some() {
                        tracing::info!("the shared token store is there again");
                    }
                    let since = Instant::now();
                    state.send_replace(State::Up(line.commands.clone()));
                    // Whatever happened meanwhile was not told.
                    self.bell.ring_all();
                    let fault = self.hold(line, since).await;
                    failures = if since.elapsed() < PROVEN {
                        failures.saturating_add(1)
                    } else {
                        1
                    };
                    fault
                }
                Err(fault) => {
                    failures = failures.saturating_add(1);
                    fault
                }
            };
            state.send_replace(State::Down(fault));
            if said.replace(fault) != Some(fault) {
                tracing::warn!("the shared token store is gone, going on from memory: {fault}");
            }
            if attempts.is_empty() {
                let chance = getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX));
                next = Instant::now() + PAUSE.jittered(failures, chance);
            }
        }
    }

    async fn open(&self) -> Result<Line, ServerFault> {
        let place = place::find(&self.settings, &self.tls).await?;
        let login = place.login.clone().set_skip_set_lib_name();
        let (mut commands, driver) = connect(&place.address, &login, &self.tls).await?;
        if place.must_be_primary {
            let role: Value = cmd("ROLE")
                .query_async(&mut commands)
                .await
                .map_err(|error| fault::of(&error))?;
            if !place::is_primary(&role) {
                return Err(ServerFault::NoPrimary);
            }
        }
        let stream = dial::open(&place.address, Arc::clone(&self.tls))
            .await
            .map_err(|_| ServerFault::Unreachable)?;
        let mut listening = PubSub::new(&login, stream)
            .await
            .map_err(|error| fault::of(&error))?;
        // Some servers let nobody listen; then there is the polling.
        if let Err(error) = listening.subscribe(channel(self.settings.prefix())).await
            && fault::of(&error) != ServerFault::Denied
        {
            return Err(fault::of(&error));
        }
        let (listening, changes) = listening.split();
        Ok(Line {
            commands,
            driver,
            changes,
            listening,
            place,
        })
    }

    /// Passes changes on until something is wrong with the line.
    async fn hold(&self, mut line: Line, since: Instant) -> ServerFault {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = 0_u32;
        loop {
            tokio::select! {
                _ = &mut line.driver.0 => return ServerFault::Broken,
                message = line.changes.next() => match message {
                    Some(message) => self.tell(&message),
                    None => return ServerFault::Broken,
                },
                () = self.doubt.notified(), if since.elapsed() >= PROVEN => return ServerFault::Busy,
                _ = ticks.tick() => {
                    looks += 1;
                    let moved = self.moved(line.place.must_be_primary.then(|| line.place.address.clone()));
                    let looked = tokio::select! {
                        looked = timeout(ANSWER, self.look(&mut line, looks.is_multiple_of(ASK_SENTINELS))) => looked,
                        () = moved => return ServerFault::ReadOnly,
                    };
                    match looked {
                        Ok(Ok(())) => {}
                        Ok(Err(fault)) => return fault,
                        Err(_) => return ServerFault::Timeout,
                    }
                }
            }
        }
    }

    /// Waits until the Sentinels name another primary than this one; for ever where there are none.
    async fn moved(&self, from: Option<ConnectionAddr>) {
        let Some(from) = from else {
            return std::future::pending().await;
        };
        loop {
            sleep(ASK_SENTINELS_SOON).await;
            if place::find(&self.settings, &self.tls)
                .await
                .is_ok_and(|now| now.address != from)
            {
                return;
            }
        }
    }

    fn tell(&self, message: &Msg) {
        match std::str::from_utf8(message.get_payload_bytes()) {
            Ok(name) => self.bell.ring(name),
            Err(_) => self.bell.ring_all(),
        }
    }

    /// Whether both connections still lead somewhere, and to the right server.
    async fn look(&self, line: &mut Line, ask: bool) -> Result<(), ServerFault> {
        let answers: Result<Value, _> = cmd("PING").query_async(&mut line.commands).await;
        // An error is an answer too: a server that is loading or out of memory is there.
        if answers.is_err_and(|error| fault::of(&error) == ServerFault::Broken) {
            return Err(ServerFault::Broken);
        }
        if line.listening.ping::<Value>().await.is_err() {
            return Err(ServerFault::Broken);
        }
        if ask && line.place.must_be_primary {
            let now = place::find(&self.settings, &self.tls).await;
            // Sentinels that do not answer are no reason to leave a primary that does.
            if now.is_ok_and(|now| now.address != line.place.address) {
                return Err(ServerFault::ReadOnly);
            }
        }
        Ok(())
    }
}

/// A connection for commands.
async fn connect(
    address: &ConnectionAddr,
    login: &RedisConnectionInfo,
    tls: &Arc<ClientConfig>,
) -> Result<(MultiplexedConnection, Driver), ServerFault> {
    let stream = dial::open(address, Arc::clone(tls))
        .await
        .map_err(|_| ServerFault::Unreachable)?;
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let made = MultiplexedConnection::new_with_config(login, stream, config).await;
    let (connection, driver) = made.map_err(|error| fault::of(&error))?;
    Ok((connection, Driver(tokio::spawn(driver))))
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}
