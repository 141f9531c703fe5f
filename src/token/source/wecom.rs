//! `GET /cgi-bin/gettoken` of WeCom (企业微信): one token per agent, the same on repeated calls, no
//! forced mode.
//!
//! Source of the protocol: the WeCom page 91039. The secret belongs to an agent, so several
//! accounts may have one corpid.

use super::{
    BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenClient, TokenSource,
    endpoint::{TokenEndpoint, encoded},
};
use crate::{
    base::Secret,
    token::{AccountSettings, pacer::Turn},
};

/// Token endpoint of one WeCom agent.
#[derive(Debug)]
pub(crate) struct WecomSource(TokenEndpoint);

impl WecomSource {
    /// Source with the account's corpid and the agent's secret, at the account's API hosts.
    pub(crate) fn new(account: &AccountSettings, client: TokenClient) -> Self {
        Self(TokenEndpoint::new(account, client))
    }
}

impl TokenSource for WecomSource {
    /// Ignores the mode: WeCom alone decides when the token changes.
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let query = Secret::new(format!(
                "corpid={}&corpsecret={}",
                encoded(&self.0.appid),
                encoded(self.0.secret.expose())
            ));
            self.0
                .ask(|http, base| http.get(format!("{base}/cgi-bin/gettoken?{}", query.expose())))
                .await
        })
    }

    fn words(&self) -> Option<std::sync::Arc<str>> {
        self.0.words()
    }

    fn turn(&self) -> Turn {
        self.0.turn()
    }

    fn probe<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(self.0.probe(token))
    }
}
