//! What the token endpoints of WeChat and WeCom have in common: an account's credentials, its API
//! hosts, the probe.
//!
//! Says nothing of how a token is asked for; that is what the endpoints differ in.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder};

use super::{FetchError, Fetched, Probe, TokenClient, answer};
use crate::{
    base::Secret,
    net::address::BaseUrl,
    token::{AccountSettings, pacer::Turn},
    wechat::api::Platform,
};

/// One account at the API hosts of its platform.
#[derive(Debug)]
pub(super) struct TokenEndpoint {
    client: TokenClient,
    api: Vec<BaseUrl>,
    platform: Platform,
    pub(super) appid: String,
    pub(super) secret: Secret,
}

impl TokenEndpoint {
    /// The configuration lets no account without a secret come here; WeChat would say that it is
    /// missing.
    pub(super) fn new(account: &AccountSettings, client: TokenClient) -> Self {
        Self {
            client,
            api: account.api.clone(),
            platform: account.platform,
            appid: account.appid.clone(),
            secret: account.secret.clone().unwrap_or_else(|| Secret::new("")),
        }
    }

    /// A turn among the first fetches of the account's first API host.
    pub(super) fn turn(&self) -> Turn {
        let host = self.api.first().map(BaseUrl::authority);
        self.client.pacer().turn(&host.unwrap_or_default())
    }

    /// The verdict on what the first API host that can be reached answers.
    pub(super) async fn ask(
        &self,
        request: impl Fn(&Client, &BaseUrl) -> RequestBuilder,
    ) -> Result<Fetched, FetchError> {
        let (status, body) = self.client.call(&self.api, request).await?;
        answer::token(self.platform, status, &body)
    }

    /// `GET /cgi-bin/get_api_domain_ip`: takes a token, has no effect and a generous quota, on both
    /// platforms.
    pub(super) async fn probe(&self, token: &Secret) -> Probe {
        let query = Secret::new(format!("access_token={}", encoded(token.expose())));
        let answer = self
            .client
            .call(&self.api, |http, base| {
                http.get(format!(
                    "{base}/cgi-bin/get_api_domain_ip?{}",
                    query.expose()
                ))
            })
            .await;
        answer.map_or(Probe::Unknown, |(status, body)| {
            answer::probe(self.platform, status, &body)
        })
    }
}

/// As a value in a query.
pub(super) fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}
