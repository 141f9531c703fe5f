//! The endpoints of tickets: a business call like any other, made with the account's token and
//! cured like any other.
//!
//! Source of the protocol: WeChat's page of api_getticket; WeCom's 96909 and 90506. Unlike its
//! siblings this source asks the account's refresher, and has it replace a token that WeChat calls
//! stale, once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{BoxFuture, FetchError, Fetched, Mode, Probe, TokenClient, TokenSource, answer};
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

/// One type of ticket of one account.
#[derive(Debug)]
pub struct TicketSource {
    client: TokenClient,
    api: Vec<BaseUrl>,
    platform: Platform,
    endpoint: Option<TicketEndpoint>,
    refresher: TokenRefresher,
    made_with: Arc<AtomicU64>,
}

impl TicketSource {
    /// `refresher` is that of the account's token. The generation of the token that was last asked
    /// with is left in `made_with`.
    pub fn new(
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

    async fn fetch_and_cure(&self, endpoint: TicketEndpoint) -> Result<Fetched, FetchError> {
        let token = self
            .refresher
            .current()
            .await
            .map_err(|_| FetchError::NoToken)?;
        let first = self.ask(endpoint, &token).await;
        let Some(code) = self.stale(&first) else {
            return first.map_err(as_ticket);
        };
        let Refresh::Replay(newer) = self
            .refresher
            .refresh_past(token.generation(), endpoint.path)
            .await
        else {
            return Err(FetchError::NoTicket {
                platform: self.platform,
                code,
            });
        };
        let second = self.ask(endpoint, &newer).await;
        if self.stale(&second).is_some() {
            self.refresher
                .replay_was_stale(newer.generation(), endpoint.path);
        }
        second.map_err(as_ticket)
    }

    async fn ask(&self, endpoint: TicketEndpoint, token: &Token) -> Result<Fetched, FetchError> {
        self.made_with
            .store(token.generation().0, Ordering::Relaxed);
        let kind = endpoint
            .kind
            .map(|kind| format!("&type={kind}"))
            .unwrap_or_default();
        let query = Secret::new(format!("access_token={}{kind}", token.query_value()));
        let path = endpoint.path;
        let call = self.client.call(&self.api, |http, base| {
            http.get(format!("{base}{path}?{}", query.expose()))
        });
        let (status, body) = call.await?;
        let answer = answer::ticket(self.platform, status, &body);
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
        answer
    }

    fn stale(&self, answer: &Result<Fetched, FetchError>) -> Option<i64> {
        match answer {
            Err(FetchError::Refused { code, .. }) if codes::is_stale(self.platform, *code) => {
                Some(*code)
            }
            _ => None,
        }
    }
}

/// What a refusal means is another thing here than at the token endpoint, except for the address.
fn as_ticket(error: FetchError) -> FetchError {
    match error {
        FetchError::Refused { platform, code, .. }
            if error.class() != Some(RefusalClass::Address) =>
        {
            FetchError::NoTicket { platform, code }
        }
        other => other,
    }
}

impl TokenSource for TicketSource {
    /// Both modes are the same here: WeChat alone decides whether there is another ticket.
    fn fetch(&self, _: Mode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            match self.endpoint {
                Some(endpoint) => self.fetch_and_cure(endpoint).await,
                None => Err(FetchError::Malformed("the platform has no such ticket")),
            }
        })
    }

    /// Nobody rejects a ticket towards wxgate, so there is nothing to ask.
    fn probe<'a>(&'a self, _: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(std::future::ready(Probe::Unknown))
    }
}
