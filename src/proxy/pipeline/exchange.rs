//! The context of one request: what its answer is made from, and where the facts about it are noted.

use std::sync::Arc;

use hyper::{
    HeaderMap, Method, Uri, Version,
    body::Incoming,
    http::{Extensions, request::Parts},
};

use super::request_log::{LogFields, RequestLog};
use crate::{
    base::AccountName,
    proxy::{
        access::{Admitted, Client, Decision, Denial, Right},
        body::{self, Payload},
        bulkhead::InFlightPermit,
        client_conn::ClientConn,
        error::ProxyError,
        headers::{HeaderKind, PresentHeaders},
        request_id::RequestId,
        route::Account,
        runtime_config::RuntimeConfig,
        worker_state::Worker,
    },
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
    pub(super) id: &'r RequestId,
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
            id: &log.id,
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

    /// Asks whether the client may, on this account unless the call uses none, and notes a denial
    /// that is overlooked.
    pub(super) fn admit(
        &mut self,
        client: &Client,
        account: Option<&Account>,
        right: Right<'_>,
    ) -> Result<Admitted, ProxyError> {
        let account = account.map(|account| &account.name);
        match client.admit(account, right) {
            Decision::Admitted(admitted) => Ok(admitted),
            Decision::Reported(admitted, denial) => {
                self.log.overlooked = Some(denied(client, account, denial).slug());
                Ok(admitted)
            }
            Decision::Denied(denial) => Err(denied(client, account, denial)),
        }
    }

    /// Takes the body over, and a permit for the account and the client; `None` for a call that uses
    /// no account, and for one without a key.
    pub(super) async fn accept_body(
        &self,
        account: Option<&Account>,
        client: Option<&Client>,
        incoming: Incoming,
    ) -> Result<(Payload, InFlightPermit), ProxyError> {
        let (config, conn) = (self.config, self.conn);
        let terms = body::Terms {
            max_body: config.max_body,
            min_rate: config.min_rate,
            replay: &config.replay,
            spool: &self.worker.spool,
            sender: &conn.state,
            account: account.map_or("-", |account| account.name.as_str()),
            id: self.id.as_str(),
        };
        let enter = || config.enter(account, client, conn);
        Payload::accept(incoming, terms, enter).await
    }

    /// Returns the headers if one of this kind is among them.
    pub(super) fn headers_with(&self, kind: HeaderKind) -> Option<&HeaderMap> {
        self.present.has(kind).then_some(&*self.headers)
    }
}

fn denied(client: &Client, account: Option<&AccountName>, denial: Denial<'_>) -> ProxyError {
    let client = client.name().clone();
    match (denial, account) {
        (Denial::Account, Some(account)) => ProxyError::AccountDenied {
            client,
            account: account.clone(),
        },
        (Denial::Account | Denial::Path, _) => ProxyError::PathDenied { client },
        (Denial::Guarded { path, effect }, _) => ProxyError::GuardedEndpoint {
            path: path.to_owned(),
            effect,
        },
        (Denial::Scope(scope), _) => ProxyError::ScopeDenied { client, scope },
        (Denial::Rate { retry_after }, _) => ProxyError::RateLimited {
            client,
            retry_after,
        },
    }
}

/// Checks `GET http://api.weixin.qq.com/… HTTP/1.1`, which clients send that take wxgate for an
/// HTTP proxy: it may name the account's own hosts only. The address to dial comes from the
/// configuration in any case.
pub(super) fn check_authority(account: &Account, uri: &Uri) -> Result<(), ProxyError> {
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
