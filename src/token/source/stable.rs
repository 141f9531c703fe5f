//! `POST /cgi-bin/stable_token`: the same token on repeated calls, a forced mode, the secret in the
//! body.
//!
//! Source of the protocol: the page of getStableAccessToken. The body is sent with
//! `Content-Length`, since WeChat answers 412 to a chunked body.

use serde_json::json;

use super::{
    BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenClient, TokenSource,
    endpoint::TokenEndpoint,
};
use crate::{
    base::Secret,
    token::{AccountSettings, pacer::Turn},
};

/// Stable token endpoint of one account.
#[derive(Debug)]
pub(crate) struct StableSource(TokenEndpoint);

impl StableSource {
    /// Source with the account's appid and secret, at the account's API hosts.
    pub(crate) fn new(account: &AccountSettings, client: TokenClient) -> Self {
        Self(TokenEndpoint::new(account, client))
    }
}

impl TokenSource for StableSource {
    fn fetch(&self, mode: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let body = json!({
                "grant_type": "client_credential",
                "appid": self.0.appid,
                "secret": self.0.secret.expose(),
                "force_refresh": mode == FetchMode::Forced,
            })
            .to_string();
            self.0
                .ask(|http, base| {
                    http.post(format!("{base}/cgi-bin/stable_token"))
                        .header("content-type", "application/json")
                        .body(body.clone())
                })
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
