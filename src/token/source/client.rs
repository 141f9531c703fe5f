//! The HTTP client of the token endpoints: small, patient for one call only, and silent about what
//! it carries.
//!
//! It goes out by the same way as the proxied requests do, and directly to a server that keeps a
//! token. It follows no redirect, reads no proxy from the environment and hands out no foreign
//! error, since those may hold a URL with a secret in it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{Client, ClientBuilder, Proxy, RequestBuilder, Response, redirect};
use rustls::ClientConfig;
use tokio::time::Instant;

use super::FetchError;
use crate::{
    net::{
        address::BaseUrl,
        egress::{Egress, RootsError},
    },
    token::pacer::Pacer,
};

/// Cheap to clone; one serves all accounts.
#[derive(Debug, Clone)]
pub struct TokenClient {
    http: Client,
    /// Without the egress proxy and the source address that WeChat wants to see.
    direct: Client,
    tls: Arc<ClientConfig>,
    timeout: Duration,
    silent: Arc<SilentHosts>,
    /// Common to all clones, since all accounts share the API hosts.
    pacer: Pacer,
}

/// The hosts that gave no connection or no answer in time. They are asked behind the others for a
/// while: two of them in front would use up the time of every call.
#[derive(Debug, Default)]
struct SilentHosts(Mutex<Vec<(BaseUrl, Instant)>>);

/// Why no client can be made of the settings.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The trusted roots.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The proxy's address.
    #[error("upstream.proxy is no usable address: write \"http://host:port\"")]
    Proxy,
    /// Anything else.
    #[error(
        "the HTTP client for the token endpoints cannot be built from the settings in [upstream]"
    )]
    Build,
}

/// How long a host that kept silent is asked behind the others. Longer than a token lives, since
/// that is how far apart calls are when all is well.
const BEHIND_FOR: Duration = Duration::from_secs(3 * 3600);
/// A token answer has a few hundred bytes; what is longer is something else.
const MAX_BODY: usize = 64 * 1024;

impl TokenClient {
    /// A client that leaves by `egress` and gives each call `timeout` from connect to the last
    /// byte.
    ///
    /// # Errors
    /// When the roots cannot be loaded or a setting is unusable.
    pub fn new(egress: &Egress, timeout: Duration) -> Result<Self, ClientError> {
        let tls = egress.tls()?;
        let direct = plain(egress, &tls)
            .build()
            .map_err(|_| ClientError::Build)?;
        let mut builder = plain(egress, &tls).local_address(egress.local_address);
        if let Some(proxy) = &egress.proxy {
            // Only https leaves this machine, so only https takes the proxy.
            let authority = BaseUrl {
                tls: false,
                host: proxy.host.clone(),
                port: proxy.port,
            }
            .authority();
            let mut rule =
                Proxy::https(format!("http://{authority}")).map_err(|_| ClientError::Proxy)?;
            if let Some(authorization) = proxy.basic_authorization() {
                rule = rule.custom_http_auth(authorization);
            }
            builder = builder.proxy(rule);
        }
        Ok(Self {
            http: builder.build().map_err(|_| ClientError::Build)?,
            direct,
            tls,
            timeout,
            silent: Arc::default(),
            pacer: Pacer::default(),
        })
    }

    /// The same way out with another limit for a call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The pace of first fetches.
    pub(super) fn pacer(&self) -> &Pacer {
        &self.pacer
    }

    /// The limit for one call.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// For connections that speak something else than HTTP, to servers that have roots in common
    /// with WeChat.
    pub(crate) fn tls(&self) -> Arc<ClientConfig> {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols.clear();
        Arc::new(tls)
    }

    /// Sends what `request` makes, not by the way to WeChat; status and body of the answer.
    pub(super) async fn direct(
        &self,
        request: impl FnOnce(&Client) -> RequestBuilder,
    ) -> Result<(u16, Vec<u8>), FetchError> {
        let attempt = async {
            match request(&self.direct).send().await {
                Ok(response) => read(response).await,
                Err(error) if error.is_connect() => Err(FetchError::Connect),
                Err(error) => Err(lost(&error)),
            }
        };
        tokio::time::timeout(self.timeout, attempt)
            .await
            .unwrap_or(Err(FetchError::Timeout))
    }

    /// Sends what `request` makes for the first base URL that can be reached, those that kept silent
    /// of late behind the others; status and body of the answer.
    pub(super) async fn call(
        &self,
        bases: &[BaseUrl],
        request: impl Fn(&Client, &BaseUrl) -> RequestBuilder,
    ) -> Result<(u16, Vec<u8>), FetchError> {
        let mut asked = None;
        let attempts = async {
            for base in self.silent.order(bases) {
                asked = Some(base);
                match request(&self.http, base).send().await {
                    Ok(response) => {
                        self.silent.remove(base);
                        return read(response).await;
                    }
                    Err(error) if error.is_connect() => {
                        self.silent.note(base);
                        tracing::warn!(host = %base.host, "no connection to the token endpoint");
                    }
                    Err(error) => return Err(lost(&error)),
                }
            }
            Err(FetchError::Connect)
        };
        let outcome = tokio::time::timeout(self.timeout, attempts).await;
        outcome.unwrap_or_else(|_| {
            if let Some(base) = asked {
                self.silent.note(base);
            }
            Err(FetchError::Timeout)
        })
    }
}

impl SilentHosts {
    fn order<'b>(&self, bases: &'b [BaseUrl]) -> Vec<&'b BaseUrl> {
        let mut hosts = self.lock();
        hosts.retain(|(_, since)| since.elapsed() < BEHIND_FOR);
        let mut ordered: Vec<_> = bases.iter().collect();
        // The sort is stable: among themselves they stay as configured.
        ordered.sort_by_key(|base| hosts.iter().any(|(silent, _)| silent == *base));
        ordered
    }

    fn note(&self, base: &BaseUrl) {
        self.remove(base);
        self.lock().push((base.clone(), Instant::now()));
    }

    fn remove(&self, base: &BaseUrl) {
        self.lock().retain(|(silent, _)| silent != base);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(BaseUrl, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn plain(egress: &Egress, tls: &ClientConfig) -> ClientBuilder {
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .http1_only()
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .user_agent(concat!("wxgate/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(egress.connect_timeout)
        // WeChat closes idle connections at about 20 s, and fetches are an hour apart: nothing is
        // worth keeping.
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(Duration::from_secs(5));
    for (host, addresses) in &egress.resolve {
        let addresses: Vec<_> = addresses.iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
        builder = builder.resolve_to_addrs(host, &addresses);
    }
    builder
}

async fn read(mut response: Response) -> Result<(u16, Vec<u8>), FetchError> {
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(FetchError::Malformed("more than 64 KiB"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}

fn lost(error: &reqwest::Error) -> FetchError {
    if error.is_timeout() {
        FetchError::Timeout
    } else {
        FetchError::Broken
    }
}
