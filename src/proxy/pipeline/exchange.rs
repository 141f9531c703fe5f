//! The context of one request: what its answer is made from, and where the facts about it are noted.

use std::sync::Arc;

use hyper::{
    HeaderMap, Method, Uri, Version,
    http::{Extensions, request::Parts},
};

use super::request_log::{LogFields, RequestLog};
use crate::proxy::{
    access::{Admitted, Client, Decision, Denial, Right},
    client_conn::ClientConn,
    error::ProxyError,
    headers::{HeaderKind, PresentHeaders},
    route::Account,
    runtime_config::RuntimeConfig,
    worker_state::Worker,
};

/// Everything that answers one request, except its body.
pub(super) struct Exchange<'r> {
    pub(super) worker: &'r Worker,
    /// Configuration of this request, from its begin to its end.
    pub(super) config: &'r RuntimeConfig,
    pub(super) conn: &'r ClientConn,
    pub(super) method: &'r Method,
    pub(super) uri: &'r Uri,
    pub(super) version: Version,
    /// Headers as they came. Apart from `uri`, because a call takes them over while its path and
    /// query are still borrowed.
    pub(super) headers: &'r mut HeaderMap,
    pub(super) extensions: &'r Extensions,
    pub(super) present: PresentHeaders,
    pub(super) log: &'r mut LogFields,
}

impl<'r> Exchange<'r> {
    /// Borrows everything from the log of the request, which outlives the answer's head.
    pub(super) fn new(
        log: &'r mut RequestLog,
        config: &'r RuntimeConfig,
        present: PresentHeaders,
    ) -> Self {
        let Parts {
            method,
            uri,
            version,
            headers,
            extensions,
            ..
        } = &mut *log.head;
        Self {
            worker: &log.worker,
            config,
            conn: &log.conn,
            method,
            uri,
            version: *version,
            headers,
            extensions,
            present,
            log: &mut log.fields,
        }
    }

    /// Notes the client, and counts the connection as one of this client's.
    pub(super) fn set_client(&mut self, client: &Arc<Client>) -> Result<(), ProxyError> {
        self.log.client = Some(Arc::clone(client));
        let limit = self.config.max_connections_per_client;
        // Without [[client]] sections, connections count for their address, from their begin.
        if self.config.access.is_open() || self.conn.of_client.belongs_to(client.holder(), limit) {
            return Ok(());
        }
        self.log.must_close = true;
        Err(ProxyError::ConnectionsTaken {
            client: client.name().clone(),
        })
    }

    /// Notes the account, and checks that an absolute-form target is meant for it.
    pub(super) fn set_account(&mut self, account: &Arc<Account>) -> Result<(), ProxyError> {
        self.log.account = Some(Arc::clone(account));
        check_authority(account, self.uri)
    }

    /// Asks whether the client may, and notes a denial that is overlooked.
    pub(super) fn admit(
        &mut self,
        client: &Client,
        account: &Account,
        right: Right<'_>,
    ) -> Result<Admitted, ProxyError> {
        match client.admit(&account.name, right) {
            Decision::Admitted(admitted) => Ok(admitted),
            Decision::Reported(admitted, denial) => {
                self.log.overlooked = Some(denied(client, account, denial).slug());
                Ok(admitted)
            }
            Decision::Denied(denial) => Err(denied(client, account, denial)),
        }
    }

    /// Returns the headers if one of this kind is among them.
    pub(super) fn headers_with(&self, kind: HeaderKind) -> Option<&HeaderMap> {
        self.present.has(kind).then_some(&*self.headers)
    }
}

fn denied(client: &Client, account: &Account, denial: Denial) -> ProxyError {
    let (client, account) = (client.name().clone(), account.name.clone());
    match denial {
        Denial::Account => ProxyError::AccountDenied { client, account },
        Denial::Path => ProxyError::PathDenied { client },
        Denial::Guarded => ProxyError::GuardedEndpoint,
        Denial::Scope(scope) => ProxyError::ScopeDenied { client, scope },
        Denial::Rate { retry_after } => ProxyError::RateLimited {
            client,
            retry_after,
        },
    }
}

/// Checks `GET http://api.weixin.qq.com/… HTTP/1.1`, which clients send that take wxgate for an
/// HTTP proxy: it may name the account's own hosts only. The address to dial comes from the
/// configuration in any case.
fn check_authority(account: &Account, uri: &Uri) -> Result<(), ProxyError> {
    let Some(authority) = uri.authority() else {
        return Ok(());
    };
    let (host, port) = (authority.host(), authority.port_u16());
    // Neither a user before the host, nor text behind it that is no port.
    let behind = authority.as_str().strip_prefix(host);
    let is_plain =
        behind.is_some_and(|port_text| port_text.is_empty() || port_text == ":" || port.is_some());
    if is_plain && account.serves(host, port) {
        Ok(())
    } else {
        Err(ProxyError::BadRequest(
            "wxgate is no proxy for this host; it serves the account's own API hosts only",
        ))
    }
}
