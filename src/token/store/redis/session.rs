//! Session with one Redis server: a connection for commands, and one on which the server publishes
//! changes.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, Msg, RedisConnectionInfo, Value,
    aio::{MultiplexedConnection, PubSub, PubSubSink, PubSubStream},
    cmd,
};
use rustls::ClientConfig;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    RedisBackend, fault, query,
    sentinel::{self, RedisEndpoint},
};
use crate::token::{
    dial,
    store::{ServerFault, server::PROVEN},
};

/// Both connections to one server.
pub struct RedisSession {
    commands: MultiplexedConnection,
    driver: ConnectionDriver,
    changes: PubSubStream,
    subscription: PubSubSink,
    endpoint: RedisEndpoint,
}

/// Task that moves the bytes of a connection; dropping it closes the connection.
struct ConnectionDriver(JoinHandle<()>);

/// Time between two checks of the session.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Limit for a check: long, so that a machine that is overloaded for a moment does not lose its
/// store as well.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Every so many checks the Sentinels are asked too.
const CHECKS_PER_SENTINEL_QUERY: u32 = 5;
/// Time between two questions to the Sentinels while the server is silent.
const SENTINEL_INTERVAL: Duration = Duration::from_millis(300);

impl RedisSession {
    pub(super) async fn open(backend: &RedisBackend) -> Result<Self, ServerFault> {
        let tls = &backend.tls;
        let endpoint = sentinel::locate(&backend.settings, tls).await?;
        let login = endpoint.login.clone().set_skip_set_lib_name();
        let (mut commands, driver) = connect(&endpoint.address, &login, tls).await?;
        if endpoint.must_be_primary {
            let role: Value = query(&mut commands, &cmd("ROLE")).await?;
            if !sentinel::is_primary(&role) {
                return Err(ServerFault::NoPrimary);
            }
        }
        let stream = dial::open(&endpoint.address, Arc::clone(tls))
            .await
            .map_err(|error| fault::of_dialling(&error))?;
        let mut pubsub = PubSub::new(&login, stream)
            .await
            .map_err(|error| fault::of(&error))?;
        // A server that denies subscriptions is used all the same: the refresher polls too.
        if let Err(error) = pubsub.subscribe(backend.channel()).await
            && fault::of(&error) != ServerFault::Denied
        {
            return Err(fault::of(&error));
        }
        let (subscription, changes) = pubsub.split();
        Ok(Self {
            commands,
            driver,
            changes,
            subscription,
            endpoint,
        })
    }

    /// Connection for commands; clones share it.
    pub(super) fn commands(&self) -> MultiplexedConnection {
        self.commands.clone()
    }

    /// Passes changes on until something is wrong with the session.
    pub(super) async fn watch(mut self, backend: &RedisBackend, doubt: &Notify) -> ServerFault {
        let since = Instant::now();
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut checks = 0_u32;
        loop {
            tokio::select! {
                _ = &mut self.driver.0 => return ServerFault::Broken,
                message = self.changes.next() => match message {
                    Some(message) => notify(backend, &message),
                    None => return ServerFault::Broken,
                },
                // A session that is still young was opened because of that doubt.
                () = doubt.notified(), if since.elapsed() >= PROVEN => return ServerFault::Busy,
                _ = ticks.tick() => {
                    checks += 1;
                    if let Err(fault) = self.check(backend, checks).await {
                        return fault;
                    }
                }
            }
        }
    }

    /// Checks that both connections still lead to the right server. While the server is silent the
    /// Sentinels are asked, so that a fail-over is noticed before the time limit.
    async fn check(&mut self, backend: &RedisBackend, checks: u32) -> Result<(), ServerFault> {
        let primary = self.endpoint.must_be_primary;
        let address = primary.then(|| self.endpoint.address.clone());
        let ask_sentinels = primary && checks.is_multiple_of(CHECKS_PER_SENTINEL_QUERY);
        tokio::select! {
            checked = timeout(CHECK_TIMEOUT, self.ping(backend, ask_sentinels)) => {
                checked.unwrap_or(Err(ServerFault::Timeout))
            }
            () = moved(backend, address) => Err(ServerFault::ReadOnly),
        }
    }

    async fn ping(
        &mut self,
        backend: &RedisBackend,
        ask_sentinels: bool,
    ) -> Result<(), ServerFault> {
        let answer: Result<Value, _> = query(&mut self.commands, &cmd("PING")).await;
        // An error is an answer too: a server that is loading or out of memory is there.
        if answer == Err(ServerFault::Broken) {
            return Err(ServerFault::Broken);
        }
        if self.subscription.ping::<Value>().await.is_err() {
            return Err(ServerFault::Broken);
        }
        if ask_sentinels {
            let now = sentinel::locate(&backend.settings, &backend.tls).await;
            // Sentinels that do not answer are no reason to leave a primary that does.
            if now.is_ok_and(|now| now.address != self.endpoint.address) {
                return Err(ServerFault::ReadOnly);
            }
        }
        Ok(())
    }
}

/// Waits until the Sentinels name another primary than `address`; for ever without Sentinels.
async fn moved(backend: &RedisBackend, address: Option<ConnectionAddr>) {
    let Some(address) = address else {
        return std::future::pending().await;
    };
    loop {
        sleep(SENTINEL_INTERVAL).await;
        if sentinel::locate(&backend.settings, &backend.tls)
            .await
            .is_ok_and(|now| now.address != address)
        {
            return;
        }
    }
}

fn notify(backend: &RedisBackend, message: &Msg) {
    match std::str::from_utf8(message.get_payload_bytes()) {
        Ok(name) => backend.notifier.notify(name),
        Err(_) => backend.notifier.notify_all(),
    }
}

async fn connect(
    address: &ConnectionAddr,
    login: &RedisConnectionInfo,
    tls: &Arc<ClientConfig>,
) -> Result<(MultiplexedConnection, ConnectionDriver), ServerFault> {
    let stream = dial::open(address, Arc::clone(tls))
        .await
        .map_err(|error| fault::of_dialling(&error))?;
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let made = MultiplexedConnection::new_with_config(login, stream, config).await;
    let (connection, driver) = made.map_err(|error| fault::of(&error))?;
    Ok((connection, ConnectionDriver(tokio::spawn(driver))))
}

impl Drop for ConnectionDriver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
