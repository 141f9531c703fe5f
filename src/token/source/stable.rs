//! `POST /cgi-bin/stable_token`: the same token on repeated calls, a forced mode, the secret in the
//! body.
//!
//! Source of the protocol: the page of getStableAccessToken. The body always goes with
//! `Content-Length`; WeChat answers 412 to a chunked one.

use serde_json::json;

use super::{
    BoxFuture, FetchError, Fetched, Mode, Probe, TokenClient, TokenSource, endpoint::Endpoint,
};
use crate::{
    base::Secret,
    token::{AccountSettings, pacer::Turn},
};

/// The stable endpoint of one account.
#[derive(Debug)]
pub struct Stable(Endpoint);

impl Stable {
    /// For the account's appid and secret, at its API hosts.
    pub fn new(account: &AccountSettings, client: TokenClient) -> Self {
        Self(Endpoint::new(account, client))
    }
}

impl TokenSource for Stable {
    fn fetch(&self, mode: Mode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let body = json!({
                "grant_type": "client_credential",
                "appid": self.0.appid,
                "secret": self.0.secret.expose(),
                "force_refresh": mode == Mode::Forced,
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

    fn turn(&self) -> Turn {
        self.0.turn()
    }

    fn probe<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(self.0.probe(token))
    }
}
