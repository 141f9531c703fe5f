//! Refusal of calls from addresses that an account does not list.
//!
//! Source: WeChat's page on IP whitelists; WeCom checks business calls only.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::Ordering,
};

use super::{
    call::ApiCall,
    settings::{CheckedCalls, SandboxPlatform},
};
use crate::net::address::Peer;

/// Credential of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Brings {
    Secret,
    Token,
}

/// Returns the code with which the account refuses the address of the call.
pub(super) fn refusal(call: ApiCall<'_>, appid: &str, brings: Brings) -> Option<i64> {
    let state = &call.shared.state;
    if !state.lists_addresses.load(Ordering::Relaxed) {
        return None;
    }
    let ledger = state.ledger();
    let list = ledger.whitelists.get(appid)?;
    if list.addresses.iter().any(|net| net.contains(&call.peer)) {
        return None;
    }
    let platform = ledger.platform_of(appid)?;
    let default = match platform {
        SandboxPlatform::Wechat => (CheckedCalls::All, 40164),
        SandboxPlatform::Wecom => (CheckedCalls::ExceptTokens, 60020),
    };
    let is_checked = match list.checked.unwrap_or(default.0) {
        CheckedCalls::All => true,
        CheckedCalls::WithSecret => brings == Brings::Secret,
        CheckedCalls::ExceptTokens => brings == Brings::Token,
    };
    is_checked.then_some(list.code.unwrap_or(default.1))
}

/// Returns the address of a peer; loopback for a Unix socket.
pub(super) fn seen(peer: Peer) -> IpAddr {
    match peer {
        Peer::Ip(ip) => ip.to_canonical(),
        Peer::Unix => IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}
