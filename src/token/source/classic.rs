//! `GET /cgi-bin/token`: a new token with every call, the secret in the query, as WeChat requires.
//!
//! Source of the protocol: the page of getAccessToken.

use super::{
    BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenClient, TokenSource,
    endpoint::{TokenEndpoint, encoded},
};
use crate::{
    base::Secret,
    token::{AccountSettings, pacer::Turn},
};

/// Classic token endpoint of one account.
#[derive(Debug)]
pub(crate) struct ClassicSource(TokenEndpoint);

impl ClassicSource {
    /// Source with the account's appid and secret, at the account's API hosts.
    pub(crate) fn new(account: &AccountSettings, client: TokenClient) -> Self {
        Self(TokenEndpoint::new(account, client))
    }
}

impl TokenSource for ClassicSource {
    /// Ignores the mode: every call makes a new token.
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let query = Secret::new(format!(
                "grant_type=client_credential&appid={}&secret={}",
                encoded(&self.0.appid),
                encoded(self.0.secret.expose())
            ));
            self.0
                .ask(|http, base| http.get(format!("{base}/cgi-bin/token?{}", query.expose())))
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
