//! Locates the server: the address of the settings, or the primary that Sentinels name.

use std::sync::Arc;

use redis::{
    AsyncConnectionConfig, ConnectionAddr, RedisConnectionInfo, Value, aio::MultiplexedConnection,
    cmd,
};
use rustls::ClientConfig;
use tokio::time::{Duration, timeout};

use super::{
    address::{RedisSettings, RedisTarget},
    fault,
};
use crate::token::{dial, store::ServerFault};

/// Address of a server, and the login there.
pub(super) struct RedisEndpoint {
    pub(super) address: ConnectionAddr,
    pub(super) login: RedisConnectionInfo,
    /// Named by Sentinels, which may be behind the times: the server is asked for its role.
    pub(super) must_be_primary: bool,
}

/// Time limit for one Sentinel; the next one is asked after it.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(500);

/// Locates the server.
pub(super) async fn locate(
    settings: &RedisSettings,
    tls: &Arc<ClientConfig>,
) -> Result<RedisEndpoint, ServerFault> {
    match settings.target().map_err(|_| ServerFault::Unreachable)? {
        RedisTarget::Server(info) => Ok(RedisEndpoint {
            address: info.addr().clone(),
            login: info.redis_settings().clone(),
            must_be_primary: false,
        }),
        RedisTarget::Sentinel {
            sentinels,
            primary,
            login,
        } => {
            for sentinel in &sentinels {
                let asked = timeout(SENTINEL_TIMEOUT, ask(sentinel, &primary, &login, tls)).await;
                if let Ok(Ok(Some(address))) = asked {
                    return Ok(RedisEndpoint {
                        address,
                        login,
                        must_be_primary: true,
                    });
                }
            }
            Err(ServerFault::NoPrimary)
        }
    }
}

/// Tells if `ROLE` was answered by a primary.
pub(super) fn is_primary(role: &Value) -> bool {
    matches!(role, Value::Array(parts) if parts.first().and_then(text).is_some_and(|role| role == "master"))
}

/// Primary that one Sentinel names.
async fn ask(
    sentinel: &ConnectionAddr,
    primary: &str,
    login: &RedisConnectionInfo,
    tls: &Arc<ClientConfig>,
) -> Result<Option<ConnectionAddr>, ServerFault> {
    let stream = dial::open(sentinel, Arc::clone(tls))
        .await
        .map_err(|error| fault::of_dialling(&error))?;
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let nobody = RedisConnectionInfo::default().set_skip_set_lib_name();
    let made = MultiplexedConnection::new_with_config(&nobody, stream, config).await;
    let (mut connection, driver) = made.map_err(|error| fault::of(&error))?;
    let question = async {
        let mut answer = primary_of(&mut connection, primary).await;
        // Sentinels often have no password, or the same as the server.
        if let (Err(ServerFault::Denied), Some(password)) = (&answer, login.password()) {
            let mut auth = cmd("AUTH");
            auth.arg(login.username()).arg(password);
            let _: Value = auth
                .query_async(&mut connection)
                .await
                .map_err(|error| fault::of(&error))?;
            answer = primary_of(&mut connection, primary).await;
        }
        answer
    };
    tokio::select! {
        answer = question => answer,
        () = driver => Err(ServerFault::Broken),
    }
}

async fn primary_of(
    connection: &mut MultiplexedConnection,
    primary: &str,
) -> Result<Option<ConnectionAddr>, ServerFault> {
    let mut question = cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(primary);
    let answer: Value = question
        .query_async(connection)
        .await
        .map_err(|error| fault::of(&error))?;
    let Value::Array(parts) = answer else {
        return Ok(None);
    };
    let mut parts = parts.iter().filter_map(text);
    let (Some(host), Some(port)) = (parts.next(), parts.next()) else {
        return Ok(None);
    };
    Ok(port
        .parse()
        .ok()
        .map(|port| ConnectionAddr::Tcp(host.to_owned(), port)))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}
