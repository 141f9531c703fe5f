//! A call that can be sent, and one attempt of it: to the first API host that can be reached, and a look at the answer.

use std::mem;

use hyper::{
    Method, Response, Version,
    ext::ReasonPhrase,
    http::{response, uri::PathAndQuery},
};

use super::{exchange::Exchange, request_log::LogFields, signed};
use crate::{
    base::Secret,
    proxy::{
        body::Payload,
        error::ProxyError,
        headers,
        inject::QueryError,
        inspect::{self, InspectedBody},
        metrics::AccountMetrics,
        path::ApiPath,
        route::{Account, AccountSigning},
        runtime_config::RuntimeConfig,
        upstream::{AttemptCount, DialError, Headers, Outgoing, RequestTarget, SendError},
        worker_state::Worker,
    },
};

/// A call, ready to be sent.
pub(super) struct OutboundCall<'c> {
    pub(super) worker: &'c Worker,
    pub(super) config: &'c RuntimeConfig,
    /// Account that the call uses, or that lends its way to WeChat.
    pub(super) account: &'c Account,
    /// Counters of the account, unless the call uses none.
    pub(super) metrics: &'c AccountMetrics,
    pub(super) method: &'c Method,
    pub(super) path: &'c ApiPath<'c>,
    pub(super) query: Option<&'c str>,
    pub(super) headers: Headers,
    pub(super) payload: Payload,
    /// Set if each attempt is signed.
    pub(super) signing: Option<&'c AccountSigning>,
    pub(super) log: &'c mut LogFields,
}

/// WeChat's answer, and the code that it holds.
pub(super) struct Inspected {
    pub(super) answer: Response<InspectedBody>,
    pub(super) errcode: Option<i64>,
}

impl<'c> OutboundCall<'c> {
    /// Makes the call, whose headers go out of the exchange.
    pub(super) fn new(
        exchange: &'c mut Exchange<'_>,
        account: &'c Account,
        path: &'c ApiPath<'c>,
        payload: Payload,
    ) -> Self {
        exchange.log.body_unread = !payload.is_complete();
        headers::to_upstream(exchange.headers, exchange.present, &exchange.config.headers);
        exchange.worker.proxy.loop_mark.put(exchange.headers);
        Self {
            worker: exchange.worker,
            config: exchange.config,
            account,
            metrics: &account.metrics,
            method: exchange.method,
            path,
            query: exchange.uri.query(),
            headers: Headers::new(mem::take(exchange.headers)),
            payload,
            signing: None,
            log: exchange.log,
        }
    }

    /// Sends once, to the first API host that can be reached, and looks at the answer.
    pub(super) async fn attempt(
        &mut self,
        target: &dyn Fn() -> Result<PathAndQuery, QueryError>,
    ) -> Result<Inspected, ProxyError> {
        let again = || target().ok();
        let mut outgoing = Outgoing {
            method: self.method,
            target: RequestTarget::new(target()?, &again),
            headers: &mut self.headers,
            attempt: AttemptCount::new(&mut self.log.attempts),
        };
        let patience = self.config.response_timeout;
        let mut unreachable = None;
        for candidate in self.worker.upstream.candidates(self.account.origins()) {
            let sent = self
                .worker
                .upstream
                .send(&candidate, &mut outgoing, &mut self.payload, patience)
                .await;
            self.log.body_unread = !self.payload.is_complete();
            let (mut head, body) = match sent {
                Ok(answer) => answer.into_parts(),
                // Nothing was sent, so another host may have it.
                Err(SendError::Dial(error)) => {
                    unreachable = Some(error);
                    continue;
                }
                Err(error) => return Err(proxy_error(error)),
            };
            let held_back = self.config.longest_hold();
            let (answer, errcode) = inspect::look(self.method, &mut head, body, held_back)
                .await
                .map_err(|_| proxy_error(SendError::broken_body(&candidate)))?;
            headers::to_client(&mut head.headers);
            // An answer in HTTP/1.0 would be passed on as such, and its body end with the
            // connection: the caller could not tell a broken one from a whole one.
            head.version = Version::HTTP_11;
            mask(self.account, &mut head);
            self.note_errcode(errcode);
            return Ok(Inspected {
                answer: Response::from_parts(head, answer),
                errcode,
            });
        }
        Err(unreachable.map_or(ProxyError::UpstreamTimeout, |error| {
            proxy_error(error.into())
        }))
    }
}

impl OutboundCall<'_> {
    /// Counts and logs the code in an answer.
    pub(super) fn note_errcode(&mut self, errcode: Option<i64>) {
        if let Some(errcode) = errcode {
            self.metrics.errcode(errcode);
            signed::explain_refusal(self.account, errcode);
        }
        self.log.errcode = errcode;
    }
}

/// Masks the account's credentials in the head of an answer: servers echo what they were asked.
fn mask(account: &Account, head: &mut response::Parts) {
    // Nobody needs the reason phrase, so it goes unread.
    head.extensions.remove::<ReasonPhrase>();
    let longest = headers::longest_value(&head.headers);
    for token in account.refresher.known_tokens(longest) {
        headers::mask(&mut head.headers, token.query_value());
    }
    if let Some(secret) = account.secret.as_ref().map(Secret::expose)
        && longest >= secret.len()
    {
        headers::mask(&mut head.headers, secret);
    }
}

/// Logs a failure of the upstream, and turns it into the error for the caller.
fn proxy_error(error: SendError) -> ProxyError {
    match error {
        SendError::Timeout => ProxyError::UpstreamTimeout,
        SendError::Dial(error @ DialError::Timeout { .. }) => {
            tracing::warn!(%error, "upstream is unreachable");
            ProxyError::UpstreamTimeout
        }
        SendError::Caller => {
            ProxyError::BadRequest("the request body broke off or came too slowly")
        }
        error => {
            tracing::warn!(%error, "upstream failed");
            ProxyError::UpstreamFailed {
                reason: error.to_string(),
            }
        }
    }
}
