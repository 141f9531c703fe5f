//! Records in a Redis or Valkey that any number of nodes share, each as one string under one key.
//!
//! A record is replaced by a script that compares the whole of what is there, so that no node can
//! overwrite what it has not read; all else about records is decided here. Each script uses one key
//! only, and keys of one account have one hash tag. Staying connected is the business of `link`.

mod address;
mod fault;
mod link;
mod place;

use std::{fmt, sync::Arc, time::Duration};

use redis::{FromRedisValue, RedisResult, aio::MultiplexedConnection, cmd};
use rustls::ClientConfig;
use tokio::{sync::watch, time::timeout};

pub use address::Settings;

use self::link::Link;
use super::{
    BoxFuture, Key, Keyring, Lease, Locked, Record, Saved, ServerFault, StoreError, TokenStore,
    bell::Bell,
    codec::{Codec, Damage, Decoded},
    health::Health,
};
use crate::token::clock::millis;

/// A client of the server. Reconnects by itself until it is dropped.
pub struct RedisStore {
    prefix: String,
    link: Link,
    bell: Arc<Bell>,
    health: Health,
    codec: Codec,
}

/// One call, a moment for the connection included.
const CALL: Duration = Duration::from_millis(500);
/// A record that nobody has touched for so long is over: its token lives two hours, its budgets a
/// day.
const KEPT: Duration = Duration::from_secs(8 * 86_400);
/// So many nodes may write in between.
const TRIES: u32 = 8;

/// `KEYS[1]`: the record. `ARGV`: what is to be replaced (empty: nothing), the new record, its life
/// in ms, the channel, the name. Gives 1, or 0 and what is there. A server that forbids publishing
/// is still written to.
const SAVE: &str = "local held = redis.call('GET', KEYS[1]) or '' \
    if held ~= ARGV[1] then return {0, held} end \
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) \
    redis.pcall('PUBLISH', ARGV[4], ARGV[5]) \
    return {1, ''}";
/// `KEYS[1]`: the lease. `ARGV`: who asks, the life in ms. Gives 0, or what remains of another's
/// lease in ms.
const LEASE: &str = "local owner = redis.call('GET', KEYS[1]) \
    if owner and owner ~= ARGV[1] then return math.max(redis.call('PTTL', KEYS[1]), 1) end \
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) \
    return 0";
/// `KEYS[1]`: the lease. `ARGV`: who gives it back.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 0";

impl RedisStore {
    /// Begins to connect, on the current runtime. The server need not be there yet.
    pub fn open(settings: &Settings, keys: Option<Keyring>, tls: Arc<ClientConfig>) -> Self {
        let bell = Arc::new(Bell::default());
        let link = Link::start(settings, tls, Arc::clone(&bell));
        Self {
            prefix: settings.prefix().to_owned(),
            link,
            bell,
            health: Health::default(),
            codec: Codec::new(keys),
        }
    }

    /// `wxgate:{shop}` or `wxgate:{shop}.jsapi`.
    fn name(&self, key: &Key) -> String {
        let full = key.to_string();
        let more = full.strip_prefix(key.account.as_str()).unwrap_or_default();
        format!("{}{{{}}}{more}", self.prefix, key.account)
    }

    /// One command, bounded in time; what goes wrong is noted.
    async fn call<T: FromRedisValue>(
        &self,
        operation: &'static str,
        key: &Key,
        command: redis::Cmd,
    ) -> Result<T, ServerFault> {
        let work = async {
            let mut connection: MultiplexedConnection = self.link.connection().await?;
            let answer: RedisResult<T> = command.query_async(&mut connection).await;
            answer
                .map_err(|error| fault::of(&error))
                .inspect_err(|fault| self.link.doubt(*fault))
        };
        let result = timeout(CALL, work)
            .await
            .unwrap_or(Err(ServerFault::Timeout));
        match &result {
            // What is down altogether has been said by the link.
            Err(_) if !self.link.is_up() => {}
            Err(fault) => self.health.failed(operation, key, *fault),
            Ok(_) => self.health.works(operation, key),
        }
        result
    }

    async fn read(&self, key: &Key) -> Result<Option<Record>, ServerFault> {
        let mut get = cmd("GET");
        get.arg(self.name(key));
        let held: Option<Vec<u8>> = self.call("load", key, get).await?;
        self.decode(key, &held.unwrap_or_default())
    }

    /// Nothing, where something else than a record may be replaced.
    fn decode(&self, key: &Key, bytes: &[u8]) -> Result<Option<Record>, ServerFault> {
        if bytes.is_empty() {
            return Ok(None);
        }
        match self.codec.decode(key, bytes) {
            Ok(Decoded { record, .. }) => {
                self.health.works("read", key);
                Ok(Some(record))
            }
            // Replaced with the next write, so that nobody has to clean up.
            Err(Damage::Content | Damage::Sealed(Locked::Forged)) => {
                self.health.failed("read", key, ServerFault::Damaged);
                Ok(None)
            }
            // Nodes with other keys would replace each other's records without end.
            Err(Damage::Version | Damage::Sealed(_)) => {
                self.health.failed("read", key, ServerFault::Unreadable);
                Err(ServerFault::Unreadable)
            }
        }
    }

    async fn write(&self, key: &Key, record: Record) -> Result<Saved, ServerFault> {
        let mut held = Vec::new();
        for _ in 0..TRIES {
            let there = self.decode(key, &held)?;
            if let Some(there) = there.as_ref().filter(|there| !there.gives_way_to(&record)) {
                return Ok(Saved::Newer(Box::new(there.clone())));
            }
            let next = self.codec.encode(key, &record.clone().over(there.as_ref()));
            let mut script = script(SAVE, self.name(key));
            script
                .arg(&held)
                .arg(next)
                .arg(millis(KEPT))
                .arg(self.channel())
                .arg(key.to_string());
            let (written, now): (u8, Vec<u8>) = self.call("save", key, script).await?;
            if written == 1 {
                return Ok(Saved::Written);
            }
            held = now;
        }
        Err(ServerFault::Contended)
    }

    fn channel(&self) -> String {
        link::channel(&self.prefix)
    }
}

/// A script with its one key; arguments follow.
fn script(text: &str, key: String) -> redis::Cmd {
    let mut command = cmd("EVAL");
    command.arg(text).arg(1).arg(key);
    command
}

impl TokenStore for RedisStore {
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(async move { Ok(self.read(key).await?) })
    }

    fn save<'a>(
        &'a self,
        key: &'a Key,
        record: Record,
    ) -> BoxFuture<'a, Result<Saved, StoreError>> {
        Box::pin(async move { Ok(self.write(key, record).await?) })
    }

    fn changes(&self, key: &Key) -> Option<watch::Receiver<u64>> {
        Some(self.bell.hear(key.to_string()))
    }

    fn lease<'a>(
        &'a self,
        key: &'a Key,
        owner: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<Lease, StoreError>> {
        Box::pin(async move {
            let mut script = script(LEASE, self.name(key) + ":lease");
            script.arg(owner).arg(millis(life));
            let left: u64 = self.call("lease", key, script).await?;
            Ok(if left == 0 {
                Lease::Granted
            } else {
                Lease::Held {
                    left: Duration::from_millis(left),
                }
            })
        })
    }

    fn release<'a>(
        &'a self,
        key: &'a Key,
        owner: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let mut script = script(RELEASE, self.name(key) + ":lease");
            script.arg(owner);
            let _: u64 = self.call("release", key, script).await?;
            Ok(())
        })
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
