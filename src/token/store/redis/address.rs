//! Where the server is: `store.url` and `store.prefix`, and what Sentinels say.
//!
//! The URL may hold a password, so it stays a secret and is taken apart anew for each connection.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo};

use crate::{
    base::Secret,
    net::address::{is_loopback_host, split_port, without_brackets},
};

/// `kind = "redis"`, proven right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    url: Secret,
    prefix: String,
}

/// The URL, taken apart.
pub(super) enum Target {
    /// One server.
    Server(ConnectionInfo),
    /// Whichever server the Sentinels call the primary of that name.
    Sentinel {
        sentinels: Vec<ConnectionAddr>,
        primary: String,
        login: RedisConnectionInfo,
    },
}

const FORM: &str = "expected redis://, rediss:// (TLS), unix: or redis+sentinel://, as in \
    \"redis://:password@host:6379/0\", \"unix:/run/redis.sock?db=0\" or \
    \"redis+sentinel://:password@host1:26379,host2:26379/mymaster/0\"";
const SENTINEL: &str = "redis+sentinel://";
const SENTINEL_PORT: u16 = 26_379;

impl Settings {
    /// The longest prefix, in bytes.
    pub const LONGEST_PREFIX: usize = 64;

    /// A server, and what all keys there begin with.
    ///
    /// # Errors
    /// Says what would have been right about the URL.
    pub fn new(url: Secret, prefix: String) -> Result<Self, &'static str> {
        let settings = Self { url, prefix };
        settings.target()?;
        Ok(settings)
    }

    /// Whether keys can begin with this: visible ASCII without braces, which have a meaning in
    /// clusters.
    pub fn is_prefix(text: &str) -> bool {
        text.len() <= Self::LONGEST_PREFIX
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'{' && b != b'}')
    }

    /// What all keys begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether both name the same server in the same words.
    pub fn has_same_url(&self, other: &Self) -> bool {
        self.url == other.url
    }

    /// Whether password and tokens cross a network that others may read.
    pub fn is_in_the_clear(&self) -> bool {
        let open = |address: &ConnectionAddr| match address {
            ConnectionAddr::Tcp(host, _) => !is_loopback_host(host),
            _ => false,
        };
        match self.target() {
            Ok(Target::Server(info)) => open(info.addr()),
            Ok(Target::Sentinel { sentinels, .. }) => sentinels.iter().any(open),
            Err(_) => false,
        }
    }

    pub(super) fn target(&self) -> Result<Target, &'static str> {
        let url = self.url.expose();
        if let Some(rest) = url.strip_prefix(SENTINEL) {
            return sentinel(rest).ok_or(FORM);
        }
        let info = url.into_connection_info().map_err(|_| FORM)?;
        match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => {
                Err("certificates are always verified: remove \"#insecure\"")
            }
            ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. } | ConnectionAddr::Unix(_) => {
                Ok(Target::Server(info))
            }
            _ => Err(FORM),
        }
    }
}

/// `user:password@host:port,host:port/name/db`; all but hosts and name may be missing.
fn sentinel(rest: &str) -> Option<Target> {
    let (login, rest) = rest
        .rsplit_once('@')
        .map_or(("", rest), |(login, rest)| (login, rest));
    let (hosts, path) = rest.split_once('/')?;
    let (primary, db) = path.split_once('/').unwrap_or((path, ""));
    let sentinels: Option<Vec<_>> = hosts.split(',').map(address).collect();
    // Let the library undo what is percent-encoded.
    let login = format!("redis://{login}@sentinel/{db}")
        .into_connection_info()
        .ok()?
        .redis_settings()
        .clone();
    let sentinels = sentinels.filter(|_| !primary.is_empty())?;
    Some(Target::Sentinel {
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

    fn target(url: &str) -> Result<Target, &'static str> {
        Settings::new(Secret::new(url), "wxgate:".to_owned())?.target()
    }

    #[test]
    fn sentinels_have_a_list_a_name_a_database_and_one_login() {
        let url = "redis+sentinel://gate:p%40ss@a.internal,10.0.0.2:1,[::1]:2/my-master/3";
        let Ok(Target::Sentinel {
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
            matches!(target("redis+sentinel://a/m"), Ok(Target::Sentinel { login, .. }) if login.db() == 0)
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
            let Err(message) = target(url) else {
                panic!("{url} was taken")
            };
            assert!(url.is_empty() || !message.contains(url), "{message}");
        }
        for url in [
            "redis://cache",
            "rediss://:pw@cache:1/2",
            "unix:///run/redis.sock?db=1",
        ] {
            assert!(matches!(target(url), Ok(Target::Server(_))), "{url}");
        }
    }

    #[test]
    fn what_others_may_read_is_known() {
        let clear = |url: &str| {
            Settings::new(Secret::new(url), String::new())
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
            Settings::is_prefix("wxgate:")
                && Settings::is_prefix("")
                && Settings::is_prefix(&"p".repeat(64))
        );
        for prefix in ["a b", "{a}", "a}", "\u{e9}", "a\n", &"p".repeat(65)] {
            assert!(!Settings::is_prefix(prefix), "{prefix:?}");
        }
    }
}
