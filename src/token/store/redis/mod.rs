//! Records in a Redis or Valkey that any number of nodes share, each as one string under one key.
//!
//! A record is replaced by a script that compares the whole of the stored bytes, so that no node
//! can overwrite what it has not read. Each script uses one key only, and keys of one account have
//! one hash tag, as clusters want it.

mod address;
mod fault;
mod sentinel;
mod session;

use std::{sync::Arc, time::Duration};

use redis::{FromRedisValue, RedisResult, aio::MultiplexedConnection, cmd};
use rustls::ClientConfig;
use tokio::sync::Notify;

pub use address::RedisSettings;

use self::session::RedisSession;
use super::{
    Keyring, Lease, RecordKey, ServerFault,
    notifier::ChangeNotifier,
    server::{Backend, CALL_TIMEOUT, NewRecord, ServerStore, StoredBytes},
};
use crate::token::clock::millis;

/// Store in a Redis or Valkey.
pub type RedisStore = ServerStore<RedisBackend>;

/// Protocol of a Redis or Valkey.
pub struct RedisBackend {
    settings: RedisSettings,
    tls: Arc<ClientConfig>,
    notifier: Arc<ChangeNotifier>,
}

/// Life of a record after its last write. A token lives two hours, a budget lasts a day.
const RECORD_LIFE: Duration = Duration::from_secs(8 * 86_400);

/// `KEYS[1]`: the record. `ARGV`: the bytes to be replaced (empty: none), the new record, its life
/// in ms, the channel, the name. Gives 1, or 0 where the record holds other bytes. A server that
/// forbids publishing is still written to.
const SAVE: &str = "if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) \
    redis.pcall('PUBLISH', ARGV[4], ARGV[5]) \
    return 1";
/// `KEYS[1]`: the lease. `ARGV`: the owner, the life in ms. Gives 0, or the rest of another owner's
/// lease in ms.
const LEASE: &str = "local owner = redis.call('GET', KEYS[1]) \
    if owner and owner ~= ARGV[1] then return math.max(redis.call('PTTL', KEYS[1]), 1) end \
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) \
    return 0";
/// `KEYS[1]`: the lease. `ARGV`: the owner that gives it back.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 0";

impl RedisStore {
    /// Begins to connect, on the current runtime. The server need not be there yet.
    pub fn open(settings: &RedisSettings, keys: Option<Keyring>, tls: Arc<ClientConfig>) -> Self {
        let notifier = Arc::new(ChangeNotifier::default());
        let backend = RedisBackend {
            settings: settings.clone(),
            tls,
            notifier: Arc::clone(&notifier),
        };
        Self::start(backend, notifier, keys)
    }
}

impl RedisBackend {
    /// `wxgate:{shop}` or `wxgate:{shop}.jsapi`.
    fn name(&self, key: &RecordKey) -> String {
        let full = key.to_string();
        let suffix = full.strip_prefix(key.account.as_str()).unwrap_or_default();
        format!("{}{{{}}}{suffix}", self.settings.prefix(), key.account)
    }

    fn lease_name(&self, key: &RecordKey) -> String {
        self.name(key) + ":lease"
    }

    /// Channel on which the names of changed records are published.
    fn channel(&self) -> String {
        format!("{}changes", self.settings.prefix())
    }
}

/// Script with its one key; arguments follow.
fn script(text: &str, key: String) -> redis::Cmd {
    let mut command = cmd("EVAL");
    command.arg(text).arg(1).arg(key);
    command
}

async fn query<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    command: &redis::Cmd,
) -> Result<T, ServerFault> {
    let answer: RedisResult<T> = command.query_async(connection).await;
    answer.map_err(|error| fault::of(&error))
}

impl Backend for RedisBackend {
    type Pool = MultiplexedConnection;
    type Connection = MultiplexedConnection;
    type Session = RedisSession;

    /// Enough to ask the Sentinels, connect twice and log in.
    const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
    const CHECKOUT_TIMEOUT: Duration = CALL_TIMEOUT;

    async fn open(&self) -> Result<(Self::Pool, RedisSession), ServerFault> {
        let session = RedisSession::open(self).await?;
        Ok((session.commands(), session))
    }

    async fn watch(&self, session: RedisSession, doubt: &Notify) -> ServerFault {
        session.watch(self, doubt).await
    }

    async fn checkout(&self, pool: &Self::Pool) -> Result<Self::Connection, ServerFault> {
        Ok(pool.clone())
    }

    /// These three say that the server is another one by now. A slow answer says nothing.
    fn doubts(fault: ServerFault) -> bool {
        matches!(
            fault,
            ServerFault::ReadOnly | ServerFault::Busy | ServerFault::Broken
        )
    }

    async fn read(
        &self,
        connection: &mut Self::Connection,
        key: &RecordKey,
    ) -> Result<Option<StoredBytes>, ServerFault> {
        let mut get = cmd("GET");
        get.arg(self.name(key));
        let content: Option<Vec<u8>> = query(connection, &get).await?;
        // The script cannot tell an empty string from no record.
        Ok(content
            .filter(|content| !content.is_empty())
            .map(|content| StoredBytes {
                content,
                revision: 0,
            }))
    }

    async fn replace(
        &self,
        connection: &mut Self::Connection,
        key: &RecordKey,
        old: Option<&StoredBytes>,
        new: NewRecord<'_>,
    ) -> Result<bool, ServerFault> {
        let mut save = script(SAVE, self.name(key));
        save.arg(old.map_or(&[][..], |old| &old.content))
            .arg(new.content)
            .arg(millis(RECORD_LIFE))
            .arg(self.channel())
            .arg(key.to_string());
        let written: u8 = query(connection, &save).await?;
        Ok(written == 1)
    }

    async fn lease(
        &self,
        connection: &mut Self::Connection,
        key: &RecordKey,
        owner: &str,
        life: Duration,
    ) -> Result<Lease, ServerFault> {
        let mut lease = script(LEASE, self.lease_name(key));
        lease.arg(owner).arg(millis(life));
        Ok(match query(connection, &lease).await? {
            0 => Lease::Granted,
            left => Lease::Held {
                left: Duration::from_millis(left),
            },
        })
    }

    async fn release(
        &self,
        connection: &mut Self::Connection,
        key: &RecordKey,
        owner: &str,
    ) -> Result<(), ServerFault> {
        let mut release = script(RELEASE, self.lease_name(key));
        release.arg(owner);
        query::<u64>(connection, &release).await?;
        Ok(())
    }
}
