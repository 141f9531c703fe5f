//! A call that carries its own credential, or takes none: forwarded as it came.
//!
//! No account is used: the call waits for no token, its answer is not judged, it is not sent again,
//! and no account's rights or share are asked for. An account of its platform lends the way to WeChat.

use std::{sync::Arc, time::Duration};

use hyper::{Response, body::Incoming};

use super::{
    Answered,
    attempt::{Inspected, OutboundCall},
    exchange::{Exchange, check_authority},
    request::{Request, unknown_client},
};
use crate::{
    proxy::{
        access::{AuthError, Client, KeylessDenial, Right},
        error::ProxyError,
        inject::{self, RemovedParameters},
        inspect::InspectedBody,
        route::Selection,
    },
    wechat::credential,
};

/// Takes a call to WeChat and brings the answer back. `may_be_keyless` says that the call may be made
/// without a key.
pub(super) async fn answer<'r>(
    exchange: &mut Exchange<'r>,
    request: &Request<'r>,
    may_be_keyless: bool,
    incoming: Incoming,
) -> Result<Answered, ProxyError> {
    let (phantom_account, phantom_client) = request.phantom(exchange)?;
    let client = match request.identify(exchange, None, phantom_client) {
        Ok(client) => Some(client),
        Err(AuthError::NoKey) if may_be_keyless => None,
        // What stands in `Authorization` may be meant for others.
        Err(AuthError::UnknownKey)
            if may_be_keyless && !exchange.headers.contains_key("x-wxgate-key") =>
        {
            None
        }
        Err(error) => return Err(unknown_client(error)),
    };
    if let Some(client) = client {
        exchange.set_client(client)?;
    }
    let selection = request.selection(exchange, phantom_account)?;
    forward(exchange, request, client, selection, incoming).await
}

/// Forwards the call of a client, or of a caller without a key.
pub(super) async fn forward<'r>(
    exchange: &mut Exchange<'r>,
    request: &Request<'r>,
    client: Option<&'r Arc<Client>>,
    selection: Selection<'r>,
    incoming: Incoming,
) -> Result<Answered, ProxyError> {
    let (config, query) = (exchange.config, exchange.uri.query());
    if client.is_none() {
        admit_keyless(exchange, request)?;
    }
    let path = request.path.check()?;
    if let Some(client) = client {
        let right = Right::Path {
            path: path.as_str(),
            guarded: None,
        };
        exchange.admit(client, None, right)?;
    }
    let lender = config.accounts.lender(
        selection,
        credential::platform_of(path.as_str()),
        client.and_then(|client| client.accounts()),
    )?;
    check_authority(lender, exchange.uri)?;
    // The key of any client must stay here. These calls are few, so the digest of every value is
    // affordable.
    inject::keep_secrets(
        query,
        RemovedParameters::Phantom,
        |value| !value.is_empty(),
        |value| config.access.with_key(value).is_some(),
    )?;
    let client = client.map(|client| &**client);
    let (payload, permit) = exchange.accept_body(None, client, incoming).await?;
    let mut call = OutboundCall::new(exchange, lender, &path, payload);
    call.metrics = &call.worker.proxy.no_account;
    call.untouched()
        .await
        .map(|answer| Answered::Upstream(answer, permit))
}

/// Checks that a caller without a key may make this call, and counts the call.
fn admit_keyless(exchange: &Exchange<'_>, request: &Request<'_>) -> Result<(), ProxyError> {
    let (access, path) = (&exchange.config.access, request.path.unchecked());
    access
        .admit_keyless(&exchange.conn.peer, &request.caller, exchange.headers, path)
        .map_err(|denial| match denial {
            KeylessDenial::Unknown => ProxyError::ClientUnknown(
                "this call needs nothing of wxgate, but its sender is unknown: send X-Wxgate-Key, or add the \
                 sender's network to server.allow",
            ),
            KeylessDenial::Path(client) => ProxyError::PathDenied {
                client: client.name().clone(),
            },
        })?;
    let rate = &exchange.worker.proxy.keyless_rate;
    rate.admit(request.caller)
        .map_err(|retry_after: Duration| ProxyError::KeylessTooFast { retry_after })
}

impl OutboundCall<'_> {
    /// Sends a call as it came, once; its answer is not judged.
    pub(super) async fn untouched(&mut self) -> Result<Response<InspectedBody>, ProxyError> {
        let target = inject::untouched(self.path, self.query)?;
        let Inspected { answer, .. } = self.attempt(&target).await?;
        Ok(answer)
    }
}
