//! A call that can be sent, and one attempt of it: to the first API host that can be reached, and a look at the answer.

use hyper::{Method, Response, http::response};

use tokio::time::Instant;

use super::{exchange::Exchange, request_log::LogFields};
use crate::{
    proxy::{
        body::Payload,
        error::ProxyError,
        headers::RequestHeaders,
        inspect::{self, InspectedBody, Masking},
        metrics::AccountMetrics,
        path::ApiPath,
        request_id::RequestId,
        route::{Account, AccountSigning},
        runtime_config::RuntimeConfig,
        upstream::{AnswerBody, AttemptCount, DialError, Outgoing, SendError},
        worker_state::Worker,
    },
    wechat::{api::Platform, signing, verdict::Finding},
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
    pub(super) headers: RequestHeaders<'c>,
    pub(super) payload: Payload,
    /// Set if each attempt is signed.
    pub(super) signing: Option<&'c AccountSigning>,
    pub(super) masked: MaskedPart,
    pub(super) id: &'c RequestId,
    pub(super) log: &'c mut LogFields,
}

/// Part of an answer's body in which the account's credentials are masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MaskedPart {
    /// The JSON that is searched for a code anyway.
    Window,
    /// All of the body; a body that cannot be masked is refused.
    All,
    /// All of the body; one that cannot be masked goes to the caller, who may have the token.
    AllIfPossible,
}

/// WeChat's answer, and the code that it holds.
pub(super) struct Inspected {
    pub(super) answer: Response<InspectedBody>,
    pub(super) finding: Option<Finding>,
}

impl<'c> OutboundCall<'c> {
    /// Makes the call.
    pub(super) fn new(
        exchange: &'c mut Exchange<'_>,
        account: &'c Account,
        path: &'c ApiPath<'c>,
        payload: Payload,
    ) -> Self {
        exchange.log.body_unread = !payload.is_complete();
        let headers = RequestHeaders::new(
            exchange.headers,
            exchange.present,
            &exchange.config.headers,
            exchange.worker.proxy.loop_mark.value(),
        );
        Self {
            worker: exchange.worker,
            config: exchange.config,
            account,
            metrics: &account.metrics,
            method: exchange.method,
            path,
            query: exchange.uri.query(),
            headers,
            payload,
            signing: None,
            masked: MaskedPart::Window,
            id: exchange.id,
            log: exchange.log,
        }
    }

    /// Sends once, to the first API host that can be reached, and looks at the answer.
    pub(super) async fn attempt(&mut self, target: &str) -> Result<Inspected, ProxyError> {
        let headers = &self.headers;
        let mut outgoing = Outgoing {
            method: self.method,
            target,
            headers: &|head| headers.write(head),
            attempt: AttemptCount::new(&mut self.log.attempts),
            // The one look at the clock for time-out, pool and metrics.
            sent_at: Instant::now(),
        };
        self.log.sent_at = None;
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
                    outgoing.sent_at = Instant::now();
                    continue;
                }
                Err(error) => return Err(self.proxy_error(error)),
            };
            let sent_at = outgoing.sent_at;
            let (answer, finding) =
                self.look(&mut head, body)
                    .await
                    .map_err(|error| match error {
                        LookError::Broken => self.proxy_error(SendError::broken_body(&candidate)),
                        LookError::Unmaskable(reason) => unmaskable(reason),
                    })?;
            self.account.mask().mask_headers(&mut head.headers);
            self.note_code(finding.as_ref());
            self.log.sent_at = Some(sent_at);
            return Ok(Inspected {
                answer: Response::from_parts(head, answer),
                finding,
            });
        }
        Err(unreachable.map_or(ProxyError::UpstreamTimeout, |error| {
            self.proxy_error(error.into())
        }))
    }

    /// Logs a failure of the upstream, and turns it into the error for the caller.
    fn proxy_error(&self, error: SendError) -> ProxyError {
        let (account, id) = (&self.account.name, self.id.as_str());
        match error {
            SendError::Timeout => ProxyError::UpstreamTimeout,
            SendError::Dial(error @ DialError::Timeout { .. }) => {
                tracing::warn!(%account, id, %error, "upstream is unreachable");
                ProxyError::UpstreamTimeout
            }
            SendError::Caller => {
                ProxyError::BadRequest("the request body broke off or came too slowly")
            }
            error => {
                tracing::warn!(%account, id, %error, "upstream failed");
                ProxyError::UpstreamFailed {
                    reason: error.to_string(),
                }
            }
        }
    }

    /// Looks at the body of an answer, and masks it.
    async fn look(
        &self,
        head: &mut response::Parts,
        body: AnswerBody,
    ) -> Result<(InspectedBody, Option<Finding>), LookError> {
        let (patience, mask) = (self.config.longest_hold(), self.account.mask());
        if self.masked == MaskedPart::Window || *self.method == Method::HEAD {
            return inspect::look(self.method, head, body, patience, mask)
                .await
                .map_err(|_| LookError::Broken);
        }
        // Rare; in a box, so that the future of the others stays small.
        let patience = self.config.response_timeout;
        match Box::pin(inspect::look_at_all(head, body, patience, mask)).await {
            Ok(Masking::Complete(body, finding)) => Ok((body, finding)),
            Ok(Masking::Impossible(body, _)) if self.masked == MaskedPart::AllIfPossible => {
                Ok((body, None))
            }
            Ok(Masking::Impossible(_, reason)) => Err(LookError::Unmaskable(reason)),
            Err(_) => Err(LookError::Broken),
        }
    }
}

impl OutboundCall<'_> {
    /// Counts and logs the code in an answer.
    pub(super) fn note_code(&mut self, finding: Option<&Finding>) {
        let code = finding.map(|finding| finding.code.number());
        if let Some(code) = code {
            self.metrics.errcode(code);
            explain_refusal(self.account, code, self.id);
        }
        self.log.errcode = code;
    }
}

/// Reasons why an answer that has come does not go on.
enum LookError {
    Broken,
    Unmaskable(&'static str),
}

fn unmaskable(reason: &str) -> ProxyError {
    ProxyError::UpstreamFailed {
        reason: format!(
            "WeChat's answer repeats another call and {reason}, so the token in it cannot be masked; \
             a client with may = [\"token\"] gets it all the same"
        ),
    }
}

/// Explains a refusal of WeChat's signature layer in the log, once a minute. Accounts without
/// `signing` meet these refusals too, for calls that must be signed.
fn explain_refusal(account: &Account, errcode: i64, id: &RequestId) {
    if account.platform != Platform::Wechat {
        return;
    }
    let Some(advice) = signing::explain(errcode) else {
        return;
    };
    if !account.signature_log.allows() {
        return;
    }
    let settings = account.signing.as_ref().map(|signing| &signing.settings);
    tracing::warn!(
        account = %account.name,
        id = id.as_str(),
        errcode,
        serial = settings.and_then(|settings| settings.serial.as_deref()),
        aes_serial = settings.map(|settings| settings.aes_serial.as_str()),
        "{advice}",
    );
}
