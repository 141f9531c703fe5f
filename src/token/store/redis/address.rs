//! Address of the server: `store.url` and `store.prefix`.
//!
//! The URL may hold a password, so it stays a secret and is parsed anew for each connection.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo};

use crate::{
    base::Secret,
    net::address::{is_loopback_host, split_port, without_brackets},
    token::store::StoreUrlError,
};

/// Settings of `kind = "redis"`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    url: Secret,
    prefix: String,
}

/// Parsed URL.
pub(super) enum RedisTarget {
    /// Single server.
    Server(ConnectionInfo),
    /// Server that the Sentinels call the primary of that name.
    Sentinel {
        sentinels: Vec<ConnectionAddr>,
        primary: String,
        login: RedisConnectionInfo,
    },
}

const SENTINEL: &str = "redis+sentinel://";
const SENTINEL_PORT: u16 = 26_379;

impl RedisSettings {
    /// Longest prefix, in bytes.
    pub const MAX_PREFIX: usize = 64;

    /// Server at `url`, where all keys begin with `prefix`.
    ///
    /// # Errors
    /// The URL has no usable form.
    pub fn new(url: Secret, prefix: String) -> Result<Self, StoreUrlError> {
        let settings = Self { url, prefix };
        settings.target()?;
        Ok(settings)
    }

    /// Tells if keys can begin with this: visible ASCII without braces, which have a meaning in
    /// clusters.
    pub fn is_prefix(text: &str) -> bool {
        text.len() <= Self::MAX_PREFIX
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'{' && b != b'}')
    }

    /// Prefix of all keys.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Tells if both name the same server in the same words.
    pub fn has_same_url(&self, other: &Self) -> bool {
        self.url == other.url
    }

    /// Tells if password and tokens cross a network that others may read.
    pub fn is_in_the_clear(&self) -> bool {
        let open = |address: &ConnectionAddr| match address {
            ConnectionAddr::Tcp(host, _) => !is_loopback_host(host),
            _ => false,
        };
        match self.target() {
            Ok(RedisTarget::Server(info)) => open(info.addr()),
            Ok(RedisTarget::Sentinel { sentinels, .. }) => sentinels.iter().any(open),
            Err(_) => false,
        }
    }

    pub(super) fn target(&self) -> Result<RedisTarget, StoreUrlError> {
        let url = self.url.expose();
        if let Some(rest) = url.strip_prefix(SENTINEL) {
            return sentinel(rest).ok_or(StoreUrlError::RedisForm);
        }
        let info = url
            .into_connection_info()
            .map_err(|_| StoreUrlError::RedisForm)?;
        match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => Err(StoreUrlError::RedisUnverified),
            ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. } | ConnectionAddr::Unix(_) => {
                Ok(RedisTarget::Server(info))
            }
            _ => Err(StoreUrlError::RedisForm),
        }
    }
}

/// `user:password@host:port,host:port/name/db`; all but hosts and name may be missing.
fn sentinel(rest: &str) -> Option<RedisTarget> {
    let (login, rest) = rest
        .rsplit_once('@')
        .map_or(("", rest), |(login, rest)| (login, rest));
    let (hosts, path) = rest.split_once('/')?;
    let (primary, db) = path.split_once('/').unwrap_or((path, ""));
    let sentinels: Option<Vec<_>> = hosts.split(',').map(address).collect();
    // The library undoes the percent-encoding.
    let login = format!("redis://{login}@sentinel/{db}")
        .into_connection_info()
        .ok()?
        .redis_settings()
        .clone();
    let sentinels = sentinels.filter(|_| !primary.is_empty())?;
    Some(RedisTarget::Sentinel {
        sentinels,
        primary: primary.to_owned(),
        login,
    })
}

fn address(text: &str) -> Option<ConnectionAddr> {
    let (host, port) = split_port(text)?;
    let port = port.map_or(Some(SENTINEL_PORT), |port| port.parse().ok())?;
    let host = without_brackets(host);
    (!host.is_empty()).then(|| ConnectionAddr::Tcp(host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<RedisTarget, StoreUrlError> {
        RedisSettings::new(Secret::new(url), "wxgate:".to_owned())?.target()
    }

    #[test]
    fn sentinels_have_a_list_a_name_a_database_and_one_login() {
        let url = "redis+sentinel://gate:p%40ss@a.internal,10.0.0.2:1,[::1]:2/my-master/3";
        let Ok(RedisTarget::Sentinel {
            sentinels,
            primary,
            login,
        }) = target(url)
        else {
            panic!("refused")
        };
        let expected = [("a.internal", 26_379), ("10.0.0.2", 1), ("::1", 2)];
        let expected = expected.map(|(host, port)| ConnectionAddr::Tcp(host.to_owned(), port));
        assert_eq!(
            (sentinels.as_slice(), primary.as_str()),
            (&expected[..], "my-master")
        );
        assert_eq!(
            (login.username(), login.password(), login.db()),
            (Some("gate"), Some("p@ss"), 3)
        );
        assert!(
            matches!(target("redis+sentinel://a/m"), Ok(RedisTarget::Sentinel { login, .. }) if login.db() == 0)
        );
    }

    #[test]
    fn other_urls_are_refused_without_being_repeated() {
        for url in [
            "",
            "cache",
            "http://cache",
            "redis+sentinel://a",
            "redis+sentinel://a/",
            "redis+sentinel:///m",
            "redis+sentinel://a,/m",
            "redis+sentinel://a:x/m",
            "redis+sentinel://a/m/x",
            "rediss://cache/#insecure",
        ] {
            let Err(error) = target(url) else {
                panic!("{url} was taken")
            };
            let message = error.to_string();
            assert!(url.is_empty() || !message.contains(url), "{message}");
        }
        for url in [
            "redis://cache",
            "rediss://:pw@cache:1/2",
            "unix:///run/redis.sock?db=1",
        ] {
            assert!(matches!(target(url), Ok(RedisTarget::Server(_))), "{url}");
        }
    }

    #[test]
    fn what_others_may_read_is_known() {
        let clear = |url: &str| {
            RedisSettings::new(Secret::new(url), String::new())
                .unwrap()
                .is_in_the_clear()
        };
        assert!(clear("redis://cache") && clear("redis+sentinel://cache/m"));
        for url in [
            "redis://127.0.0.1",
            "redis://localhost",
            "rediss://cache",
            "unix:///run/redis.sock",
        ] {
            assert!(!clear(url), "{url}");
        }
    }

    #[test]
    fn a_prefix_is_plain_and_without_braces() {
        assert!(
            RedisSettings::is_prefix("wxgate:")
                && RedisSettings::is_prefix("")
                && RedisSettings::is_prefix(&"p".repeat(64))
        );
        for prefix in ["a b", "{a}", "a}", "\u{e9}", "a\n", &"p".repeat(65)] {
            assert!(!RedisSettings::is_prefix(prefix), "{prefix:?}");
        }
    }
}
