//! Loop check before the start: calls to WeChat must not end at wxgate itself, as happens where
//! local DNS points WeChat's name at wxgate.
//!
//! Compares addresses only, in bounded time; a name that does not resolve in time is no reason to
//! refuse. Loops that come up later, or lead through other proxies, are found request by request
//! (`proxy`).

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::mpsc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    base::AccountName,
    config::Config,
    net::{
        address::{BaseUrl, ListenAddr},
        egress::Egress,
    },
    token::AccountSettings,
};

/// Time limit of the look-ups of all names together.
const MAX_LOOKUP_TIME: Duration = Duration::from_secs(2);

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Account with calls that would end at wxgate itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "account {account}: {host} leads to {address}, where wxgate itself listens, so that it would call itself; {advice}"
)]
pub struct LoopError {
    account: AccountName,
    host: String,
    address: SocketAddr,
    advice: &'static str,
}

/// Look-up of names that are not in `upstream.resolve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameLookup {
    /// By the resolver of the system.
    Resolve,
    /// None; such names are not checked.
    Skip,
}

/// Checks a configuration without binding its listeners; their addresses are taken as written.
///
/// # Errors
/// The first account with calls that would end at wxgate itself.
pub fn check_written(config: &Config, names: NameLookup) -> Result<(), LoopError> {
    let listeners = config
        .proxy
        .listen
        .iter()
        .filter_map(|listen| match listen {
            ListenAddr::Tcp(text) => text.parse().ok().or_else(|| local_name(text)),
            ListenAddr::Unix(_) => None,
        });
    let own: Vec<SocketAddr> = listeners.filter(|own| own.port() != 0).collect();
    check(&config.accounts, &config.proxy.upstream.egress, &own, names)
}

/// Checks every API host of every account against `own`, the addresses of the data listeners.
///
/// # Errors
/// The first account with calls that would end at wxgate itself.
pub(super) fn check(
    accounts: &[AccountSettings],
    egress: &Egress,
    own: &[SocketAddr],
    names: NameLookup,
) -> Result<(), LoopError> {
    // An egress proxy resolves the names itself, so nothing can be checked here.
    if own.is_empty() || egress.proxy.is_some() {
        return Ok(());
    }
    // A host with a port at which no listener stands cannot lead here, and needs no DNS.
    let candidates = accounts
        .iter()
        .flat_map(|account| &account.api)
        .filter(|api| own.iter().any(|own| own.port() == api.port))
        .cloned();
    let resolved = addresses(candidates.collect(), egress, names);
    // Once per host and not per account: accounts share hosts, and each comparison may ask the
    // kernel.
    let mut own_by_host: HashMap<(&str, u16), SocketAddr> = HashMap::new();
    for (api, addresses) in &resolved {
        let looped = addresses
            .iter()
            .find(|address| own.iter().any(|own| ends_at(**address, *own)));
        if let Some(address) = looped {
            own_by_host.insert((&api.host, api.port), *address);
        }
    }
    for account in accounts {
        for api in &account.api {
            if let Some(&address) = own_by_host.get(&(api.host.as_str(), api.port)) {
                let advice = if api.host.parse::<IpAddr>().is_ok() {
                    "name WeChat's host in the account's api"
                } else {
                    "set upstream.resolve to WeChat's own addresses"
                };
                return Err(LoopError {
                    account: account.name.clone(),
                    host: api.host.clone(),
                    address,
                    advice,
                });
            }
        }
    }
    Ok(())
}

/// Resolves hosts as the dialler would. Hosts without an answer in time are left out.
fn addresses(
    hosts: Vec<BaseUrl>,
    egress: &Egress,
    names: NameLookup,
) -> Vec<(BaseUrl, Vec<SocketAddr>)> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let (tell, told) = mpsc::channel();
    for host in hosts {
        if !seen.insert((host.host.clone(), host.port)) {
            continue;
        }
        let with_port = |ip: &IpAddr| SocketAddr::new(*ip, host.port);
        if let Ok(ip) = host.host.parse::<IpAddr>() {
            found.push((host.clone(), vec![with_port(&ip)]));
        } else if let Some(fixed) = egress.resolve.get(&host.host) {
            found.push((host.clone(), fixed.iter().map(with_port).collect()));
        } else if host.host == "localhost" {
            found.push((host.clone(), LOOPBACK.iter().map(with_port).collect()));
        } else if names == NameLookup::Resolve {
            let tell = tell.clone();
            // The resolver of the system has no time limit, so it gets a thread, which ends with
            // the answer even if nobody waits for it any more.
            std::thread::spawn(move || {
                let list = (host.host.as_str(), host.port)
                    .to_socket_addrs()
                    .map(Iterator::collect)
                    .unwrap_or_default();
                let _ = tell.send((host, list));
            });
        }
    }
    drop(tell);
    let deadline = Instant::now() + MAX_LOOKUP_TIME;
    while let Ok(answer) = told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        found.push(answer);
    }
    found
}

/// True if a connection to `target` ends at the listener `own`.
fn ends_at(target: SocketAddr, own: SocketAddr) -> bool {
    let (own_ip, mut ip) = (own.ip().to_canonical(), target.ip().to_canonical());
    if ip.is_unspecified() {
        // A connection to 0.0.0.0 or [::] goes to this machine.
        ip = if ip.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        };
    }
    // A listener on [::] takes IPv4 connections too.
    let serves_family = own.is_ipv6() || ip.is_ipv4();
    own.port() == target.port()
        && (own_ip == ip || (own_ip.is_unspecified() && serves_family && is_of_this_machine(ip)))
}

/// True if the kernel would send from this very address to reach it, which is so for addresses of
/// this machine only. Sends nothing.
fn is_of_this_machine(ip: IpAddr) -> bool {
    if ip.is_loopback() {
        return true;
    }
    let unbound = if ip.is_ipv4() {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // Routes are asked instead of binding to the address: with ip_nonlocal_bind set, a bind
    // succeeds for any address.
    let route = UdpSocket::bind((unbound, 0)).and_then(|socket| {
        // Connecting a UDP socket only looks up the route. Any port but zero will do.
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    route.is_ok_and(|from| from.ip() == ip)
}

/// Reads `localhost:PORT`, which the listener binds to 127.0.0.1.
fn local_name(listen: &str) -> Option<SocketAddr> {
    let port = listen.strip_prefix("localhost:")?.parse().ok()?;
    Some((Ipv4Addr::LOCALHOST, port).into())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use super::*;
    use crate::config;

    fn checked(own: &[&str], api: &str, upstream: &str) -> Result<(), String> {
        let text = format!(
            "[upstream]\n{upstream}\n[[account]]\nname = \"shop\"\nappid = \"wx1\"\nsecret = {{ value = \"s\" }}\n\
             api = [\"https://fine.invalid\", \"{api}\"]\n"
        );
        let config = config::parse(
            &text,
            Path::new("/"),
            "f",
            &BTreeMap::<String, String>::new(),
        )
        .unwrap_or_else(|problems| panic!("{problems}"));
        let own: Vec<SocketAddr> = own.iter().map(|own| own.parse().unwrap()).collect();
        let checked = check(
            &config.accounts,
            &config.proxy.upstream.egress,
            &own,
            NameLookup::Skip,
        );
        checked.map_err(|error| error.to_string())
    }

    #[test]
    fn every_address_that_ends_at_a_listener_is_found() {
        let resolve = "resolve = { \"wx.example\" = [\"192.0.2.1\", \"127.0.0.1\"] }";
        for (own, api, upstream) in [
            ("127.0.0.1:443", "https://127.0.0.1", ""),
            ("127.0.0.1:8080", "http://localhost:8080", ""),
            ("[::1]:8080", "http://localhost:8080", ""),
            ("127.0.0.1:8080", "https://0.0.0.0:8080", ""),
            ("127.0.0.1:8080", "https://[::ffff:127.0.0.1]:8080", ""),
            ("127.0.0.1:443", "https://WX.example", resolve),
            ("0.0.0.0:443", "https://wx.example", resolve),
            ("[::]:443", "https://wx.example", resolve),
            ("0.0.0.0:80", "http://127.9.9.9", ""),
        ] {
            assert!(checked(&[own], api, upstream).is_err(), "{own} {api}");
        }
    }

    #[test]
    fn what_only_looks_alike_is_let_be() {
        let resolve = "resolve = { \"wx.example\" = [\"192.0.2.1\"] }";
        for (own, api, upstream) in [
            ("127.0.0.1:443", "https://127.0.0.1:444", ""),
            ("127.0.0.2:443", "https://127.0.0.1", ""),
            ("0.0.0.0:443", "https://192.0.2.1", ""),
            ("0.0.0.0:443", "https://[::1]", ""),
            ("0.0.0.0:443", "https://wx.example", resolve),
            ("0.0.0.0:443", "https://unknown.example", ""),
            (
                "127.0.0.1:443",
                "https://127.0.0.1",
                "proxy = \"http://egress:3128\"",
            ),
        ] {
            assert_eq!(checked(&[own], api, upstream), Ok(()), "{own} {api}");
        }
        assert_eq!(checked(&[], "https://127.0.0.1", ""), Ok(()));
    }

    #[test]
    fn the_message_names_account_host_and_the_way_out() {
        let said = |api, upstream| checked(&["127.0.0.1:443"], api, upstream).unwrap_err();
        assert_eq!(
            said(
                "https://wx.example",
                "resolve = { \"wx.example\" = [\"127.0.0.1\"] }"
            ),
            "account shop: wx.example leads to 127.0.0.1:443, where wxgate itself listens, so that it would call itself; \
             set upstream.resolve to WeChat's own addresses"
        );
        assert!(said("https://127.0.0.1", "").ends_with("name WeChat's host in the account's api"));
    }

    #[test]
    fn addresses_of_this_machine_are_told_from_others() {
        assert!(is_of_this_machine([127, 3, 2, 1].into()));
        assert!(!is_of_this_machine([192, 0, 2, 1].into()));
        // The address of this machine towards the outside, if there is one.
        let outward = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect("192.0.2.1:9")?;
            socket.local_addr()
        });
        if let Ok(own) = outward {
            assert!(is_of_this_machine(own.ip()));
        }
    }
}
