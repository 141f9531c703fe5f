//! Changes of a configuration that only a restart can bring into force.
//!
//! The comparison is with the configuration of the start, so that a change is named at every reload
//! until it is in force or taken back.

use crate::{
    admin,
    config::Config,
    net::egress::Egress,
    proxy::settings::{ProxySettings, UpstreamSettings},
    token::store::{StoreLocation, StoreSettings},
};

/// Returns the changed keys that need a restart, as the file spells them.
pub(super) fn needed(started: &Config, next: &Config) -> Vec<&'static str> {
    // Here and below, structs are destructured so that a new field does not compile until it has
    // been decided if a change of it needs a restart.
    let Config {
        proxy,
        admin,
        token: _,
        store,
        accounts: _,
        warnings: _,
    } = next;
    let mut keys = server(&started.proxy, proxy);
    let admin::settings::AdminSettings {
        listen,
        key: _,
        hosts: _,
    } = admin;
    keys.push(("admin.listen", *listen == started.admin.listen));
    keys.extend(upstream(&started.proxy.upstream, &proxy.upstream));
    keys.extend(stored(&started.store, store));
    keys.into_iter()
        .filter(|(_, same)| !same)
        .map(|(key, _)| key)
        .collect()
}

/// Keys, each with `true` if its value is unchanged.
type Compared = Vec<(&'static str, bool)>;

fn server(old: &ProxySettings, new: &ProxySettings) -> Compared {
    let ProxySettings {
        listen,
        workers,
        tls,
        max_connections,
        max_connections_per_client: _,
        min_rate: _,
        allow: _,
        trusted_proxies: _,
        max_body: _,
        error_style: _,
        default_account: _,
        signing: _,
        upstream: _,
        replay: _,
        clients: _,
        allow_is_set: _,
    } = new;
    vec![
        ("server.listen", *listen == old.listen),
        ("server.workers", *workers == old.workers),
        // Other certificate files are read at the reload; only a restart switches TLS on or off.
        ("server.tls", tls.is_some() == old.tls.is_some()),
        (
            "server.max_connections",
            *max_connections == old.max_connections,
        ),
    ]
}

fn upstream(old: &UpstreamSettings, new: &UpstreamSettings) -> Compared {
    let UpstreamSettings {
        egress,
        pool_idle,
        response_timeout: _,
        headers: _,
        warm: _,
        max_in_flight: _,
        max_share: _,
    } = new;
    let Egress {
        ca_file,
        connect_timeout,
        proxy,
        local_address,
        resolve,
    } = egress;
    vec![
        ("upstream.ca_file", *ca_file == old.egress.ca_file),
        (
            "upstream.connect_timeout",
            *connect_timeout == old.egress.connect_timeout,
        ),
        ("upstream.proxy", *proxy == old.egress.proxy),
        (
            "upstream.local_address",
            *local_address == old.egress.local_address,
        ),
        ("upstream.pool_idle", *pool_idle == old.pool_idle),
        ("upstream.resolve", *resolve == old.egress.resolve),
    ]
}

fn stored(old: &StoreSettings, new: &StoreSettings) -> Compared {
    let StoreSettings { location, keys } = new;
    let place = match (&old.location, location) {
        (StoreLocation::Memory, StoreLocation::Memory) => return Vec::new(),
        (StoreLocation::File(old), StoreLocation::File(new)) => vec![("store.path", old == new)],
        (StoreLocation::Redis(old), StoreLocation::Redis(new)) => vec![
            ("store.url", old.has_same_url(new)),
            ("store.prefix", old.prefix() == new.prefix()),
        ],
        #[cfg(feature = "sql")]
        (StoreLocation::Sql(old), StoreLocation::Sql(new)) => vec![
            ("store.url", old.has_same_url(new)),
            ("store.prefix", old.prefix() == new.prefix()),
        ],
        _ => return vec![("store.kind", false)],
    };
    let sealed = ("store.encryption_key", *keys == old.keys);
    place.into_iter().chain([sealed]).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use super::*;
    use crate::config;

    fn config(lines: &str) -> Config {
        let text = format!(
            "{lines}\n[[account]]\nname = \"shop\"\nappid = \"wx0123456789abcdef\"\nsecret = {{ value = \"s\" }}\n"
        );
        config::parse(
            &text,
            Path::new("/"),
            "test.toml",
            &BTreeMap::<String, String>::new(),
        )
        .unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn what_only_a_restart_can_change_is_named_key_by_key() {
        for (lines, keys) in [
            (
                "[server]\nlisten = [\"127.0.0.1:1\"]",
                &["server.listen"][..],
            ),
            (
                "[server]\nworkers = 3\nmax_connections = 7",
                &["server.workers", "server.max_connections"],
            ),
            ("[admin]\nlisten = \"127.0.0.1:2\"", &["admin.listen"]),
            (
                "[upstream]\nconnect_timeout = \"1s\"\nproxy = \"http://egress:3128\"\npool_idle = \"1s\"",
                &[
                    "upstream.connect_timeout",
                    "upstream.proxy",
                    "upstream.pool_idle",
                ],
            ),
            (
                "[upstream]\nlocal_address = \"10.0.0.5\"\nresolve = { \"api.weixin.qq.com\" = [\"203.0.113.7\"] }",
                &["upstream.local_address", "upstream.resolve"],
            ),
            ("[store]\nkind = \"memory\"", &["store.kind"]),
            ("[store]\npath = \"/elsewhere\"", &["store.path"]),
            (
                "[store]\nencryption_key = { value = \"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\" }",
                &["store.encryption_key"],
            ),
            (
                "[store]\nkind = \"redis\"\nurl = { value = \"redis://localhost\" }",
                &["store.kind"],
            ),
        ] {
            assert_eq!(needed(&config(""), &config(lines)), keys, "{lines}");
            assert_eq!(needed(&config(lines), &config(lines)), [""; 0], "{lines}");
        }
    }

    #[test]
    fn another_server_or_prefix_of_a_shared_store_needs_a_restart() {
        let of = |host: &str, prefix: &str| {
            config(&format!(
                "[store]\nkind = \"redis\"\nurl = {{ value = \"redis://{host}\" }}\nprefix = \"{prefix}\""
            ))
        };
        assert_eq!(needed(&of("a", "p:"), &of("a", "p:")), [""; 0]);
        assert_eq!(
            needed(&of("a", "p:"), &of("b", "q:")),
            ["store.url", "store.prefix"]
        );
    }

    #[test]
    fn what_a_reload_changes_is_not_named() {
        for lines in [
            "default_account = \"shop\"",
            "[server]\nallow = [\"private\"]\ntrusted_proxies = [\"10.0.0.1\"]\nmax_body = \"1MiB\"\nerror_style = \"wechat\"",
            "[admin]\nkey = { value = \"k\" }\nhosts = [\"admin.internal\"]",
            "[upstream]\nresponse_timeout = \"1s\"\nmax_in_flight = 7",
            "[token]\nrefresh_before = \"1m\"\nfetch_timeout = \"1s\"\nwait = \"1s\"",
            "[replay]\nmemory = \"1KiB\"\ndisk = \"1MiB\"\nmemory_total = \"1MiB\"",
        ] {
            assert_eq!(needed(&config(""), &config(lines)), [""; 0], "{lines}");
        }
    }
}
