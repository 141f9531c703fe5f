//! `POST /cgi-bin/stable_token`: the same token on repeated calls, a forced mode, the secret in the body.
//!
//! Source of the protocol: the page of getStableAccessToken. The body always goes with `Content-Length`; WeChat answers
//! 412 to a chunked one.

use serde_json::json;

use super::{BoxFuture, FetchError, Fetched, Mode, Probe, TokenClient, TokenSource, answer};
use crate::{base::Secret, net::address::BaseUrl, token::AccountSettings, wechat::api::Platform};

/// The stable endpoint of one account.
#[derive(Debug)]
pub struct Stable {
    client: TokenClient,
    api: Vec<BaseUrl>,
    platform: Platform,
    appid: String,
    secret: Secret,
}

impl Stable {
    /// For the account's appid and secret, at its API hosts.
    pub fn new(account: &AccountSettings, client: TokenClient) -> Self {
        Self {
            client,
            api: account.api.clone(),
            platform: account.platform,
            appid: account.appid.clone(),
            secret: account.secret.clone(),
        }
    }
}

impl TokenSource for Stable {
    fn fetch(&self, mode: Mode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let body = json!({
                "grant_type": "client_credential",
                "appid": self.appid,
                "secret": self.secret.expose(),
                "force_refresh": mode == Mode::Forced,
            })
            .to_string();
            let (status, body) = self
                .client
                .call(&self.api, |http, base| {
                    http.post(format!("{base}/cgi-bin/stable_token"))
                        .header("content-type", "application/json")
                        .body(body.clone())
                })
                .await?;
            answer::token(status, &body)
        })
    }

    fn probe<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(super::classic::probe(&self.client, &self.api, self.platform, token))
    }
}
