//! Token behind an HTTP endpoint, as JSON or plain text. Another wxgate can also be asked to
//! refresh the token.
//!
//! Follows no redirect and uses no proxy; the configured headers are sent to the configured URL
//! only.

use std::time::Duration;

use reqwest::{
    Client, RequestBuilder, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use serde_json::json;

use super::{ExternalError, ExternalSettingsError, life, translated, value};
use crate::{
    base::Secret,
    net::address::is_loopback_host,
    token::{
        clock::WallClock,
        source::{BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenClient, TokenSource},
    },
};

/// Settings of `token = { from = "http", … }`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalHttpSettings {
    url: Secret,
    headers: Vec<Header>,
    field: Option<String>,
}

/// Header of the request; the value may be a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header(String, Secret);

/// Source that reads the URL of an [`ExternalHttpSettings`].
#[derive(Debug)]
pub(super) struct HttpTokenSource {
    settings: ExternalHttpSettings,
    client: TokenClient,
}

/// End of the path at which a wxgate gives its token: `/-/accounts/NAME/token`.
const WXGATE_TOKEN_SUFFIX: &str = "/token";

impl Header {
    /// Header `name: value`.
    ///
    /// # Errors
    /// Name or value hold characters that a header cannot have.
    pub fn new(name: &str, value: Secret) -> Result<Self, ExternalSettingsError> {
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| ExternalSettingsError::HeaderName)?;
        HeaderValue::from_str(value.expose()).map_err(|_| ExternalSettingsError::HeaderValue)?;
        Ok(Self(name.to_owned(), value))
    }
}

impl ExternalHttpSettings {
    /// Endpoint at `url`. `field` is the dotted path of the member that holds the token.
    ///
    /// # Errors
    /// The URL has no usable form.
    pub fn new(
        url: Secret,
        headers: Vec<Header>,
        field: Option<String>,
    ) -> Result<Self, ExternalSettingsError> {
        let parsed = Url::parse(url.expose()).map_err(|_| ExternalSettingsError::HttpForm)?;
        match parsed.scheme() {
            "https" => {}
            "http" if parsed.host_str().is_some_and(is_loopback_host) => {}
            _ => return Err(ExternalSettingsError::HttpForm),
        }
        Ok(Self {
            url,
            headers,
            field,
        })
    }

    /// URL for a passive refresh of the token by a wxgate; `None` for any other server.
    fn refresh_url(&self) -> Option<Secret> {
        let url = Url::parse(self.url.expose()).ok()?;
        let (_, account) = url.path().rsplit_once("/-/accounts/")?;
        let name = account.strip_suffix(WXGATE_TOKEN_SUFFIX)?;
        let is_wxgate = !name.is_empty()
            && !name.contains('/')
            && url.query().is_none()
            && url.fragment().is_none();
        is_wxgate.then(|| Secret::new(format!("{}/refresh", self.url.expose())))
    }
}

impl HttpTokenSource {
    pub(super) fn new(settings: ExternalHttpSettings, client: TokenClient) -> Self {
        Self { settings, client }
    }

    async fn read(&self) -> Result<Fetched, FetchError> {
        let get = |http: &Client| http.get(self.settings.url.expose()).headers(self.headers());
        let (status, body) = self.client.direct(get).await.map_err(translated)?;
        match status {
            200 => self.parse(&body),
            401 | 403 => Err(ExternalError::Denied.into()),
            404 => Err(ExternalError::Missing.into()),
            other => Err(ExternalError::Status(other).into()),
        }
    }

    fn parse(&self, body: &[u8]) -> Result<Fetched, FetchError> {
        let text = std::str::from_utf8(body).map_err(|_| ExternalError::Shape("no text"))?;
        let found = value::find(text, self.settings.field.as_deref())?;
        let now = WallClock::system().now_ms();
        let until_end = found
            .ends_ms
            .map(|end| Duration::from_millis(end.saturating_sub(now)));
        Ok(Fetched {
            expires_in: life([found.written_life, until_end])?,
            token: found.token,
        })
    }

    /// Asks the other wxgate for a passive refresh, which replaces the token only if it is still
    /// `rejected`. The answer is not needed, since the token is read again.
    async fn request_refresh(&self, url: &Secret, rejected: &Secret) {
        let body = Secret::new(json!({ "rejected": rejected.expose() }).to_string());
        let post = |http: &Client| -> RequestBuilder {
            http.post(url.expose())
                .headers(self.headers())
                .header(CONTENT_TYPE, "application/json")
                .body(body.expose().to_owned())
        };
        let _ = self.client.direct(post).await;
    }

    fn headers(&self) -> HeaderMap {
        let parsed = self
            .settings
            .headers
            .iter()
            .filter_map(|Header(name, value)| {
                let mut value = HeaderValue::from_str(value.expose()).ok()?;
                value.set_sensitive(true);
                Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
            });
        parsed.collect()
    }
}

impl TokenSource for HttpTokenSource {
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(self.read())
    }

    fn fetch_past<'a>(
        &'a self,
        rejected: &'a Secret,
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let found = self.read().await?;
            match self.settings.refresh_url() {
                Some(url) if found.token == *rejected => {
                    self.request_refresh(&url, rejected).await;
                    self.read().await
                }
                _ => Ok(found),
            }
        })
    }

    /// Returns `Unknown`: WeChat is not asked about a token that another server keeps.
    fn probe<'a>(&'a self, _: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(std::future::ready(Probe::Unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<ExternalHttpSettings, ExternalSettingsError> {
        ExternalHttpSettings::new(Secret::new(url), Vec::new(), None)
    }

    #[test]
    fn only_tls_leaves_the_machine() {
        for url in [
            "https://tokens.internal/wx?app=1",
            "http://127.0.0.1:8080/t",
            "http://[::1]/t",
            "http://localhost/t",
        ] {
            assert!(settings(url).is_ok(), "{url}");
        }
        for url in [
            "http://tokens.internal/t",
            "http://127.0.0.1.example.com/",
            "ftp://localhost/",
            "tokens",
            "",
        ] {
            assert!(settings(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_wxgate_is_known_by_its_path() {
        let refresh = |url: &str| {
            settings(url)
                .unwrap()
                .refresh_url()
                .map(|url| url.expose().to_owned())
        };
        assert_eq!(
            refresh("https://gate:8443/-/accounts/shop/token").as_deref(),
            Some("https://gate:8443/-/accounts/shop/token/refresh")
        );
        for other in [
            "/-/accounts/token",
            "/-/accounts/a/b/token",
            "/-/accounts/shop/token?x=1",
            "/shop/token",
        ] {
            assert_eq!(refresh(&format!("https://gate{other}")), None, "{other}");
        }
    }

    #[test]
    fn headers_are_checked_before_they_are_used() {
        assert!(Header::new("X-Key", Secret::new("k")).is_ok());
        assert!(Header::new("no name", Secret::new("k")).is_err());
        assert!(Header::new("X-Key", Secret::new("line\nbreak")).is_err());
    }
}
