//! `GET /cgi-bin/token`: a new token with every call, the secret in the query, as WeChat demands it.
//!
//! Source of the protocol: the page of getAccessToken. The probe that both kinds share lives here too.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{BoxFuture, FetchError, Fetched, Mode, Probe, TokenClient, TokenSource, answer};
use crate::{base::Secret, net::address::BaseUrl, token::AccountSettings, wechat::api::Platform};

/// The classic endpoint of one account.
#[derive(Debug)]
pub struct Classic {
    client: TokenClient,
    api: Vec<BaseUrl>,
    platform: Platform,
    appid: String,
    secret: Secret,
}

impl Classic {
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

impl TokenSource for Classic {
    /// Both modes are the same here: every call makes a new token.
    fn fetch(&self, _: Mode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let query = Secret::new(format!(
                "grant_type=client_credential&appid={}&secret={}",
                encoded(&self.appid),
                encoded(self.secret.expose())
            ));
            let (status, body) = self
                .client
                .call(&self.api, |http, base| http.get(format!("{base}/cgi-bin/token?{}", query.expose())))
                .await?;
            answer::token(status, &body)
        })
    }

    fn probe<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(probe(&self.client, &self.api, self.platform, token))
    }
}

/// `GET /cgi-bin/get_api_domain_ip`: takes a token, has no effect and a generous quota.
pub(super) async fn probe(client: &TokenClient, api: &[BaseUrl], platform: Platform, token: &Secret) -> Probe {
    let query = Secret::new(format!("access_token={}", encoded(token.expose())));
    let answer =
        client.call(api, |http, base| http.get(format!("{base}/cgi-bin/get_api_domain_ip?{}", query.expose()))).await;
    answer.map_or(Probe::Unknown, |(status, body)| answer::probe(platform, status, &body))
}

fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}
