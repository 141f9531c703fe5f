//! `[server]`, `[upstream]` and `[replay]`.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use super::or;
use crate::{
    config::{
        leaf::{ByteSize, HostName, Network, Portion},
        problem::{KeyPlace, ValueOrigin},
        raw,
        read::At,
        secret::ConfigResolver,
    },
    net::{
        address::{ListenAddr, NetworkSet},
        egress::{Egress, read_certificates},
        tls::ServerTls,
    },
    proxy::settings::{ErrorStyle, ProxySettings, ReplaySettings, UpstreamSettings},
};

/// Idle time after which WeChat closes a connection, as reported by users; WeChat
/// documents no value.
const MAX_IDLE_AT_WECHAT: Duration = Duration::from_secs(20);

/// True if `taken` has this address. Port 0 never clashes: the system chooses a free port each
/// time.
pub(super) fn clash(address: &ListenAddr, taken: &[ListenAddr]) -> bool {
    let free = matches!(address, ListenAddr::Tcp(text) if text.ends_with(":0"));
    !free && taken.contains(address)
}

impl ConfigResolver<'_> {
    /// Resolves the table `[server]`; the settings of other tables keep their defaults. With
    /// clients, `allow` has no effect.
    pub(super) fn server(&mut self, raw: raw::Server, with_clients: bool) -> ProxySettings {
        let default = ProxySettings::default();
        if !with_clients {
            self.reach(&raw);
        }
        if let Some(place) = everybody(raw.trusted_proxies.as_ref()) {
            let message = "any caller can pretend to call from anywhere: name your proxies only";
            self.report.warning(&place, message);
        }
        let max_connections = or(raw.max_connections, default.max_connections, |count| {
            count.0
        });
        let per_client = or(
            raw.max_connections_per_client,
            Portion::Percent(50),
            |portion| portion,
        );
        ProxySettings {
            listen: raw
                .listen
                .map_or(default.listen, |listen| self.listen(listen)),
            workers: or(raw.workers, default.workers, |count| count.0),
            allow_is_set: raw.allow.is_some(),
            allow: or(raw.allow, default.allow, |networks| set(&networks)),
            trusted_proxies: or(raw.trusted_proxies, default.trusted_proxies, |networks| {
                set(&networks)
            }),
            tls: raw.tls.and_then(|tls| self.tls(tls)),
            max_body: or(raw.max_body, default.max_body, |size| size.0),
            max_connections,
            max_connections_per_client: per_client.of(max_connections),
            min_rate: or(raw.min_rate, default.min_rate, |size| size.0),
            error_style: or(raw.error_style, default.error_style, |style| match style {
                raw::ErrorStyle::Auto => ErrorStyle::Auto,
                raw::ErrorStyle::Http => ErrorStyle::Http,
                raw::ErrorStyle::Wechat => ErrorStyle::Wechat,
            }),
            ..ProxySettings::default()
        }
    }

    fn listen(&mut self, raw: At<Vec<At<ListenAddr>>>) -> Vec<ListenAddr> {
        if raw.value.is_empty() {
            self.report.problem(
                &raw.place,
                "at least one address is needed, such as \"127.0.0.1:8080\"",
            );
        }
        let mut listen = Vec::with_capacity(raw.value.len());
        for At { value, place } in raw.value {
            if clash(&value, &listen) {
                self.report.problem(&place, "is in the list twice");
            }
            listen.push(value);
        }
        listen
    }

    /// Checks that `server.allow` fits the addresses of `server.listen`.
    fn reach(&mut self, raw: &raw::Server) {
        let outside = raw
            .listen
            .iter()
            .flat_map(|listen| &listen.value)
            .find(|at| !at.value.is_local());
        let Some(allow) = &raw.allow else {
            if let Some(listen) = outside {
                let place = KeyPlace {
                    path: "server.allow".to_owned(),
                    origin: listen.place.origin.clone(),
                };
                let message = "must be set, or a [[client]], since other machines can reach server.listen: name who may \
                               call, such as \"private\" or \"10.1.0.0/16\"";
                self.missing(&place, message);
            }
            return;
        };
        let networks = set(&allow.value);
        if networks.is_empty() {
            self.report
                .warning(&allow.place, "nobody may call: the list is empty");
        } else if outside.is_some() && !networks.reaches_beyond_loopback() {
            let message = "only this machine may call, though server.listen can be reached from others: name their \
                           networks, such as \"private\" or \"10.1.0.0/16\"";
            self.report.warning(&allow.place, message);
        }
        if let Some(place) = everybody(Some(allow)) {
            self.report.warning(
                &place,
                "everybody who can reach server.listen may use every account",
            );
        }
    }

    fn tls(&mut self, raw: At<raw::Tls>) -> Option<ServerTls> {
        for (key, absent) in [
            ("cert", raw.value.cert.is_none()),
            ("key", raw.value.key.is_none()),
        ] {
            if absent {
                self.missing(&raw.place.child(key), "must be set: the path of a PEM file");
            }
        }
        let raw::Tls {
            cert,
            key,
            client_ca,
        } = raw.value;
        let tls = ServerTls {
            cert: cert?.value,
            key: key?.value,
            client_ca: client_ca.map(|at| at.value),
        };
        if let Err(error) = tls.acceptor() {
            self.report
                .problem(&raw.place, format!("cannot be used: {error}"));
        }
        Some(tls)
    }

    /// Reports what is wrong or unwise in `[upstream]`.
    fn judge_upstream(&mut self, raw: &raw::Upstream) {
        if let Some(at) = &raw.ca_file
            && let Err(error) = read_certificates(&at.value)
        {
            self.report.problem(
                &at.place,
                format!("cannot use {}: {error}", at.value.display()),
            );
        }
        if let Some(At {
            value,
            place:
                place @ KeyPlace {
                    origin: ValueOrigin::File { .. },
                    ..
                },
        }) = &raw.proxy
            && value.credentials.is_some()
        {
            let message = "the proxy's password stands in the file in plain text; the environment variable \
                           WXGATE_UPSTREAM__PROXY keeps it out";
            self.report.warning(place, message);
        }
        if let Some(at) = raw
            .pool_idle
            .as_ref()
            .filter(|at| at.value.0 > MAX_IDLE_AT_WECHAT)
        {
            let message = "WeChat closes idle connections at about 20 s: a call on a connection that it is just closing \
                           can be lost";
            self.report.warning(&at.place, message);
        }
    }

    /// Resolves the table `[upstream]`.
    pub(super) fn upstream(&mut self, raw: raw::Upstream) -> UpstreamSettings {
        self.judge_upstream(&raw);
        let default = UpstreamSettings::default();
        let max_in_flight = or(raw.max_in_flight, default.max_in_flight, |count| count.0);
        let max_share = or(raw.max_share, Portion::Percent(75), |portion| portion);
        UpstreamSettings {
            egress: Egress {
                ca_file: raw.ca_file.map(|at| at.value),
                connect_timeout: or(
                    raw.connect_timeout,
                    default.egress.connect_timeout,
                    |time| time.0,
                ),
                proxy: raw.proxy.map(|at| at.value),
                local_address: raw.local_address.map(|at| at.value),
                resolve: raw
                    .resolve
                    .map(|at| self.fixed_addresses(at.value))
                    .unwrap_or_default(),
            },
            response_timeout: or(raw.response_timeout, default.response_timeout, |time| {
                time.0
            }),
            pool_idle: or(raw.pool_idle, default.pool_idle, |time| time.0),
            max_in_flight,
            max_share: max_share.of(max_in_flight),
            headers: or(raw.headers, default.headers, |names| {
                names.into_iter().map(|at| at.value.0).collect()
            }),
            warm: or(raw.warm, default.warm, |warm| warm),
        }
    }

    fn fixed_addresses(
        &mut self,
        raw: BTreeMap<String, At<Vec<At<IpAddr>>>>,
    ) -> HashMap<String, Vec<IpAddr>> {
        let mut resolve = HashMap::with_capacity(raw.len());
        for (name, addresses) in raw {
            if addresses.value.is_empty() {
                self.report
                    .problem(&addresses.place, "at least one IP address is needed");
            }
            match HostName::parse(&name) {
                Err(error) => self.report.problem(&addresses.place, error.to_string()),
                Ok(HostName(host)) => {
                    let addresses: Vec<_> =
                        addresses.value.into_iter().map(|at| at.value).collect();
                    resolve.insert(host, addresses);
                }
            }
        }
        resolve
    }

    /// Resolves the table `[replay]`.
    pub(super) fn replay(&mut self, raw: &raw::Replay) -> ReplaySettings {
        let default = ReplaySettings::default();
        let size =
            |key: &Option<At<ByteSize<0>>>, default| key.as_ref().map_or(default, |at| at.value.0);
        let replay = ReplaySettings {
            memory: size(&raw.memory, default.memory),
            disk: size(&raw.disk, default.disk),
            memory_total: size(&raw.memory_total, default.memory_total),
        };
        // The defaults fit each other, so a misfit has a key of the file: this one or `memory`.
        let place = |key: &Option<At<ByteSize<0>>>| {
            key.as_ref()
                .or(raw.memory.as_ref())
                .map(|at| at.place.clone())
        };
        if replay.disk != 0
            && replay.disk < replay.memory
            && let Some(place) = place(&raw.disk)
        {
            let message = "replay.disk is less than replay.memory, so that nothing would ever be spooled: raise it, or \
                           write 0 for never";
            self.report.problem(&place, message);
        }
        if replay.memory_total < replay.memory
            && let Some(place) = place(&raw.memory_total)
        {
            let message = "replay.memory_total is less than replay.memory, the largest single copy: raise it, or lower \
                           replay.memory";
            self.report.problem(&place, message);
        }
        replay
    }
}

/// Returns the place of a network that holds every address.
pub(super) fn everybody(networks: Option<&At<Vec<At<Network>>>>) -> Option<KeyPlace> {
    networks
        .and_then(|at| at.value.iter().find(|at| at.value.0.ends_with("/0")))
        .map(|at| at.place.clone())
}

/// Builds the set of these networks.
pub(super) fn set(networks: &[At<Network>]) -> NetworkSet {
    let mut set = NetworkSet::default();
    for At {
        value: Network(entry),
        ..
    } in networks
    {
        // Cannot fail: `Network` was checked when it was read.
        let _ = set.add(entry);
    }
    set
}
