//! Token in Redis or Valkey: a string or a hash at a key. Needs the rights for GET, PTTL and, for a
//! hash, HGETALL.
//!
//! Opens one connection per read, since reads are a minute apart. Writes nothing, and follows no
//! redirect of a cluster.

use std::{collections::HashMap, time::Duration};

use ::redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _,
    RedisError, aio::MultiplexedConnection, cmd,
};
use serde_json::Value;
use tokio::time::timeout;

use super::{ExternalError, ExternalSettingsError, life, value};
use crate::{
    base::Secret,
    net::address::is_loopback_host,
    token::{
        clock::WallClock,
        dial,
        source::{BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenClient, TokenSource},
    },
};

/// Settings of `token = { from = "redis", … }`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalRedisSettings {
    url: Secret,
    key: String,
    field: Option<String>,
}

/// Source that reads the key of an [`ExternalRedisSettings`].
#[derive(Debug)]
pub(super) struct RedisTokenSource {
    settings: ExternalRedisSettings,
    client: TokenClient,
}

impl ExternalRedisSettings {
    /// Key `key` on the server at `url`. `field` is the dotted path of the member that holds the
    /// token; for a hash it begins with the field of the hash.
    ///
    /// # Errors
    /// The URL has no usable form.
    pub fn new(
        url: Secret,
        key: String,
        field: Option<String>,
    ) -> Result<Self, ExternalSettingsError> {
        connection(&url)?;
        Ok(Self { url, key, field })
    }

    /// True if password and token cross a network without TLS.
    pub fn is_in_the_clear(&self) -> bool {
        connection(&self.url).is_ok_and(|info| match info.addr() {
            ConnectionAddr::Tcp(host, _) => !is_loopback_host(host),
            _ => false,
        })
    }
}

fn connection(url: &Secret) -> Result<ConnectionInfo, ExternalSettingsError> {
    let info = url
        .expose()
        .into_connection_info()
        .map_err(|_| ExternalSettingsError::RedisForm)?;
    match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => Err(ExternalSettingsError::Unverified),
        ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. } | ConnectionAddr::Unix(_) => {
            Ok(info)
        }
        _ => Err(ExternalSettingsError::RedisForm),
    }
}

impl RedisTokenSource {
    pub(super) fn new(settings: ExternalRedisSettings, client: TokenClient) -> Self {
        Self { settings, client }
    }

    async fn read(&self) -> Result<Fetched, FetchError> {
        let info = connection(&self.settings.url).map_err(|_| ExternalError::Broken)?;
        let stream = dial::open(info.addr(), self.client.tls())
            .await
            .map_err(|error| ExternalError::Unreachable(dial::cause(&error)))?;
        self.talk(&info, stream).await
    }

    async fn talk(
        &self,
        info: &ConnectionInfo,
        stream: Box<dyn dial::RedisStream>,
    ) -> Result<Fetched, FetchError> {
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let connected = MultiplexedConnection::new_with_config(&settings, stream, config).await;
        let (connection, driver) = connected.map_err(|error| error_of(&error))?;
        // `driver` moves the bytes of the connection. Dropped with this future, it closes the
        // connection after the read.
        tokio::select! {
            result = self.query(connection) => result,
            () = driver => Err(ExternalError::Broken.into()),
        }
    }

    /// Reads the key and its remaining life.
    async fn query(&self, mut connection: MultiplexedConnection) -> Result<Fetched, FetchError> {
        let key = self.settings.key.as_str();
        // Before the value: if the key is written in between, the life is that of the older token,
        // which ends sooner.
        let ttl: Option<i64> = cmd("PTTL").arg(key).query_async(&mut connection).await.ok();
        let field = self.settings.field.as_deref();
        let found = match cmd("GET")
            .arg(key)
            .query_async::<Option<Vec<u8>>>(&mut connection)
            .await
        {
            Ok(None) => return Err(ExternalError::Missing.into()),
            Ok(Some(bytes)) => value::find(&text(bytes)?, field)?,
            Err(error) if error.code() == Some("WRONGTYPE") => {
                let hash: HashMap<String, Vec<u8>> = cmd("HGETALL")
                    .arg(key)
                    .query_async(&mut connection)
                    .await
                    .map_err(|error| error_of(&error))?;
                // Fields that are no text cannot hold the token.
                let members = hash
                    .into_iter()
                    .filter_map(|(name, bytes)| Some((name, text(bytes).ok()?.into())));
                value::find_in(Value::Object(members.collect()), field)?
            }
            Err(error) => return Err(error_of(&error).into()),
        };
        // PTTL gives -1 for a key without an expiry.
        let ttl = ttl
            .and_then(|ms| u64::try_from(ms).ok())
            .map(Duration::from_millis);
        let now = WallClock::system().now_ms();
        let until_end = found
            .ends_ms
            .map(|end| Duration::from_millis(end.saturating_sub(now)));
        // `expires_in` was written at an unknown time, so it is only an upper limit, and no more
        // than the default is believed.
        let written = match (ttl, until_end) {
            (None, None) => found.written_life.map(|life| life.min(super::DEFAULT_LIFE)),
            _ => None,
        };
        Ok(Fetched {
            expires_in: life([ttl.or(written), until_end])?,
            token: found.token,
        })
    }
}

fn text(bytes: Vec<u8>) -> Result<String, ExternalError> {
    const BINARY: &str = "binary, as igbinary and the default codecs of Redisson write it";
    String::from_utf8(bytes).map_err(|_| ExternalError::Shape(BINARY))
}

fn error_of(error: &RedisError) -> ExternalError {
    if dial::is_of_select(error) {
        return ExternalError::Database;
    }
    match error.code() {
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => ExternalError::Denied,
        Some("MOVED" | "ASK") => {
            ExternalError::Shape("a Redis Cluster keeps the key on another node; name that one")
        }
        Some("WRONGTYPE") => ExternalError::Shape("neither a string nor a hash"),
        _ if error.kind() == ErrorKind::AuthenticationFailed => ExternalError::Denied,
        _ if error.is_timeout() => ExternalError::Timeout,
        _ => ExternalError::Broken,
    }
}

impl TokenSource for RedisTokenSource {
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async {
            let read = timeout(self.client.timeout(), self.read()).await;
            read.unwrap_or_else(|_| Err(ExternalError::Timeout.into()))
        })
    }

    /// Returns `Unknown`: WeChat is not asked about a token that another server keeps.
    fn probe<'a>(&'a self, _: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(std::future::ready(Probe::Unknown))
    }
}
