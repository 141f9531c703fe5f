//! Ticket endpoints: business calls with the account's access token, repeated once after a
//! rejection of the token, as proxied calls are.
//!
//! Source of the protocol: WeChat's page of api_getticket; WeCom's 96909 and 90506. Unlike the
//! other sources, this source asks the account's token refresher, for the token and for its
//! replacement.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenClient, TokenSource, answer};
use crate::{
    base::Secret,
    net::address::BaseUrl,
    token::{
        AccountSettings, Token,
        refresher::{Refresh, TokenRefresher},
    },
    wechat::{
        api::Platform,
        codes::{self, RefusalClass},
        ticket::{TicketEndpoint, TicketType},
    },
};

/// Source of one type of ticket of one account.
#[derive(Debug)]
pub(crate) struct TicketSource {
    client: TokenClient,
    api: Vec<BaseUrl>,
    platform: Platform,
    /// `None` if the platform has no such ticket.
    endpoint: Option<TicketEndpoint>,
    refresher: TokenRefresher,
    made_with: Arc<AtomicU64>,
}

impl TicketSource {
    /// Source that uses the tokens of `refresher`, and stores the generation of the token of its
    /// last call in `made_with`.
    pub(crate) fn new(
        kind: TicketType,
        account: &AccountSettings,
        client: TokenClient,
        refresher: TokenRefresher,
        made_with: Arc<AtomicU64>,
    ) -> Self {
        let endpoint = kind.endpoint(account.platform);
        Self {
            client,
            api: account.api.clone(),
            platform: account.platform,
            endpoint,
            refresher,
            made_with,
        }
    }

    /// Fetches the ticket; with a replaced token once more, if WeChat rejects the first token.
    async fn fetch_with_retry(&self, endpoint: TicketEndpoint) -> Result<Fetched, FetchError> {
        let token = self
            .refresher
            .current()
            .await
            .map_err(|_| FetchError::NoToken)?;
        let (first, said) = self.ask(endpoint, &token).await;
        let Some(code) = self.stale(&first) else {
            return first.map_err(|error| as_ticket(error, said));
        };
        let Refresh::Replay(newer) = self
            .refresher
            .refresh_past(token.generation(), endpoint.path)
            .await
        else {
            return Err(FetchError::NoTicket {
                platform: self.platform,
                code,
                said,
            });
        };
        let (second, said) = self.ask(endpoint, &newer).await;
        if self.stale(&second).is_some() {
            self.refresher
                .replay_was_stale(newer.generation(), endpoint.path);
        }
        second.map_err(|error| as_ticket(error, said))
    }

    /// Asks for the ticket; returns WeChat's words for a refusal too.
    async fn ask(
        &self,
        endpoint: TicketEndpoint,
        token: &Token,
    ) -> (Result<Fetched, FetchError>, Option<Arc<str>>) {
        // Stored before the call, for the refresher that compares it after the answer. Relaxed is
        // enough: the task that reads it is woken by the end of this call.
        self.made_with
            .store(token.generation().0, Ordering::Relaxed);
        let kind = endpoint
            .kind
            .map(|kind| format!("&type={kind}"))
            .unwrap_or_default();
        let query = Secret::new(format!("access_token={}{kind}", token.query_value()));
        let path = endpoint.path;
        let account = self.refresher.name();
        let call = self.client.call(account, &self.api, |http, base| {
            http.get(format!("{base}{path}?{}", query.expose()))
        });
        let (status, body) = match call.await {
            Ok(answered) => answered,
            Err(error) => return (Err(error), None),
        };
        let answer = answer::ticket(self.platform, status, &body);
        // 41001 says that the token got lost on the way, so it proves nothing about the token.
        let arrived = !matches!(
            answer,
            Err(FetchError::Refused {
                code: codes::TOKEN_MISSING,
                ..
            })
        );
        if status == 200 && arrived && self.stale(&answer).is_none() {
            self.refresher.accepted(token.generation());
        }
        let is_refusal = matches!(answer, Err(FetchError::Refused { .. }));
        let said = is_refusal.then(|| answer::words(&body)).flatten();
        (answer, said)
    }

    /// `errcode` of an answer that calls the token stale.
    fn stale(&self, answer: &Result<Fetched, FetchError>) -> Option<i64> {
        match answer {
            Err(FetchError::Refused { code, .. }) if codes::is_stale(self.platform, *code) => {
                Some(*code)
            }
            _ => None,
        }
    }
}

/// Turns a refusal into one of a ticket: codes have other meanings here than at the token endpoint,
/// except for those about the address.
fn as_ticket(error: FetchError, said: Option<Arc<str>>) -> FetchError {
    match error {
        FetchError::Refused { platform, code, .. }
            if error.class() != Some(RefusalClass::Address) =>
        {
            FetchError::NoTicket {
                platform,
                code,
                said,
            }
        }
        other => other,
    }
}

impl TokenSource for TicketSource {
    /// Ignores the mode: WeChat alone decides when the ticket changes.
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            match self.endpoint {
                Some(endpoint) => self.fetch_with_retry(endpoint).await,
                None => Err(FetchError::Malformed("the platform has no such ticket")),
            }
        })
    }

    /// Returns `Unknown`: WeChat never rejects a ticket towards wxgate.
    fn probe<'a>(&'a self, _: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(std::future::ready(Probe::Unknown))
    }
}
