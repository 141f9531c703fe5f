//! Common part of the token endpoints of WeChat and WeCom: the account's credentials, its API
//! hosts, and the probe.
//!
//! The request for a token differs and is left to `stable`, `classic` and `wecom`.

use std::sync::{Arc, Mutex, PoisonError};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder};

use super::{FetchError, Fetched, Probe, TokenClient, Trial, answer};
use crate::{
    base::{
        AccountName, Secret,
        secret_finder::{self, SecretFinder},
    },
    net::address::BaseUrl,
    token::{AccountSettings, pacer::Turn},
    wechat::api::Platform,
};

/// Account at the API hosts of its platform.
#[derive(Debug)]
pub(super) struct TokenEndpoint {
    account: AccountName,
    client: TokenClient,
    api: Vec<BaseUrl>,
    platform: Platform,
    pub(super) appid: String,
    pub(super) secret: Secret,
    /// Text of the latest refusal.
    words: Mutex<Option<Arc<str>>>,
}

impl TokenEndpoint {
    /// Endpoint with the settings of an account.
    pub(super) fn new(account: &AccountSettings, client: TokenClient) -> Self {
        Self {
            account: account.name.clone(),
            client,
            api: account.api.clone(),
            platform: account.platform,
            appid: account.appid.clone(),
            // The configuration refuses these accounts without a secret. WeChat would answer that
            // the secret is missing.
            secret: account.secret.clone().unwrap_or_else(|| Secret::new("")),
            words: Mutex::default(),
        }
    }

    /// Turn among the first fetches of the account's first API host.
    pub(super) fn turn(&self) -> Turn {
        let host = self.api.first().map(BaseUrl::authority);
        self.client.pacer().turn(&host.unwrap_or_default())
    }

    /// Sends `request` to the first API host that can be reached, and reads the token of the
    /// answer.
    pub(super) async fn ask(
        &self,
        request: impl Fn(&Client, &BaseUrl) -> RequestBuilder,
    ) -> Result<Fetched, FetchError> {
        // Those of the former answer would not fit an error of the connection.
        self.set_words(None);
        let (status, body) = self.client.call(&self.account, &self.api, request).await?;
        let token = answer::token(self.platform, status, &body);
        if token.is_err() {
            self.set_words(self.refusal_words(&body));
        }
        token
    }

    /// Text with which the latest call was refused, without credentials.
    pub(super) fn words(&self) -> Option<Arc<str>> {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.clone()
    }

    /// Text of a refusal. [`answer::words`] hides long words, and this the secret of any length.
    fn refusal_words(&self, body: &[u8]) -> Option<Arc<str>> {
        let words = answer::words(body)?;
        let finder = SecretFinder::new(&self.secret);
        match secret_finder::masked(words.as_bytes(), &finder.iter()) {
            Some(masked) => Some(String::from_utf8_lossy(&masked).into()),
            None => Some(words),
        }
    }

    fn set_words(&self, words: Option<Arc<str>>) {
        *self.words.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    /// Asks by a harmless call if WeChat accepts a token.
    pub(super) async fn probe(&self, token: &Secret) -> Probe {
        let answer = self.harmless_call(token).await;
        answer.map_or(Probe::Unknown, |(status, body)| {
            answer::probe(self.platform, status, &body)
        })
    }

    /// The same, with all that WeChat says.
    pub(super) async fn try_token(&self, token: &Secret) -> Trial {
        match self.harmless_call(token).await {
            Ok((status, body)) => answer::trial(self.platform, status, &body),
            Err(error) => Trial::Failed(error),
        }
    }

    /// Calls `GET /cgi-bin/get_api_domain_ip`, which needs a token, has no effect and a large quota
    /// on both platforms.
    async fn harmless_call(&self, token: &Secret) -> Result<(u16, Vec<u8>), FetchError> {
        let query = Secret::new(format!("access_token={}", encoded(token.expose())));
        self.client
            .call(&self.account, &self.api, |http, base| {
                http.get(format!(
                    "{base}/cgi-bin/get_api_domain_ip?{}",
                    query.expose()
                ))
            })
            .await
    }
}

/// Percent-encodes a query value.
pub(super) fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}
