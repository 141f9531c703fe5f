//! HTTP client of the token endpoints, with one time limit for a whole call.
//!
//! Calls of WeChat use the egress proxy and the source address of proxied requests; calls of
//! another server that keeps a token go directly. The client follows no redirect, reads no proxy
//! from the environment and returns no error of the HTTP library, which may hold a URL with a
//! secret.

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
    base::AccountName,
    net::{
        address::BaseUrl,
        connect_error::{ConnectError, TcpFailure, TunnelFailure},
        egress::{Egress, RootsError},
        trace,
    },
    token::pacer::Pacer,
};

/// HTTP client for all accounts. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct TokenClient {
    http: Client,
    /// Client without the egress proxy and the source address that WeChat expects.
    direct: Client,
    tls: Arc<ClientConfig>,
    egress: Arc<Egress>,
    timeout: Duration,
    silent: Arc<SilentHosts>,
    /// Shared by all clones, since all accounts use the same API hosts.
    pacer: Pacer,
}

/// Hosts that lately gave no connection or no answer in time. They are asked last for a while,
/// since two of them in front would use up the time of every call.
#[derive(Debug, Default)]
struct SilentHosts(Mutex<Vec<(BaseUrl, Instant)>>);

/// Error of settings that no client can be made of.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The trusted roots cannot be loaded.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The address of the egress proxy is not usable.
    #[error("upstream.proxy is no usable address: write \"http://host:port\"")]
    Proxy,
    /// The HTTP library refuses the settings.
    #[error(
        "the HTTP client for the token endpoints cannot be built from the settings in [upstream]"
    )]
    Build,
}

/// Time for which a silent host is asked last. Longer than the life of a token, which is the usual
/// time between two calls.
const DEMOTED_FOR: Duration = Duration::from_secs(3 * 3600);
/// Limit for the body of an answer, in bytes. The answer of a token endpoint has a few hundred.
const MAX_BODY: usize = 64 * 1024;

impl TokenClient {
    /// Client that connects through `egress`, with the limit `timeout` for each call from connect
    /// to the last byte.
    ///
    /// # Errors
    /// The roots cannot be loaded, or a setting is not usable.
    pub(crate) fn new(egress: &Egress, timeout: Duration) -> Result<Self, ClientError> {
        let tls = egress.tls()?;
        let direct = plain(egress, &tls)
            .build()
            .map_err(|_| ClientError::Build)?;
        let mut builder = plain(egress, &tls).local_address(egress.local_address);
        if let Some(proxy) = &egress.proxy {
            // The configuration allows http to this machine only, so only https uses the proxy.
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
            egress: Arc::new(egress.clone()),
            timeout,
            silent: Arc::default(),
            pacer: Pacer::default(),
        })
    }

    /// Same client with another limit for a call.
    #[must_use]
    pub(crate) fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Pacer of first fetches.
    pub(super) fn pacer(&self) -> &Pacer {
        &self.pacer
    }

    /// Limit for one call.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// TLS settings with the same roots for connections of other protocols than HTTP.
    pub(crate) fn tls(&self) -> Arc<ClientConfig> {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols.clear();
        Arc::new(tls)
    }

    /// Sends a request directly, without egress proxy. Returns status and body of the answer.
    pub(super) async fn direct(
        &self,
        request: impl FnOnce(&Client) -> RequestBuilder,
    ) -> Result<(u16, Vec<u8>), FetchError> {
        let attempt = async {
            match request(&self.direct).send().await {
                Ok(response) => read(response).await,
                Err(error) if error.is_connect() => {
                    Err(FetchError::Connect(ConnectError::of(&error, false)))
                }
                Err(error) => Err(lost(&error)),
            }
        };
        tokio::time::timeout(self.timeout, attempt)
            .await
            .unwrap_or(Err(FetchError::Timeout))
    }

    /// Sends a request of an account to the first base URL that can be reached, silent hosts last.
    /// Returns status and body of the answer.
    pub(super) async fn call(
        &self,
        account: &AccountName,
        bases: &[BaseUrl],
        request: impl Fn(&Client, &BaseUrl) -> RequestBuilder,
    ) -> Result<(u16, Vec<u8>), FetchError> {
        // Outside the future, which the time limit drops in the middle of an attempt.
        let mut asked = None;
        let mut failure = ConnectError::Host(TcpFailure::UnknownName);
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
                        failure = self.cause(&error, base).await;
                        tracing::warn!(%account, host = %base.host, "no connection to the token endpoint: {failure}");
                    }
                    // Once sent, a request may have made a token: no second host is asked.
                    Err(error) => return Err(lost(&error)),
                }
            }
            Err(FetchError::Connect(failure))
        };
        match tokio::time::timeout(self.timeout, attempts).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if let Some(base) = asked {
                    self.silent.note(base);
                }
                Err(FetchError::Timeout)
            }
        }
    }

    /// Cause of a connection that could not be opened.
    async fn cause(&self, error: &reqwest::Error, base: &BaseUrl) -> ConnectError {
        let with_proxy = base.tls && self.egress.proxy.is_some();
        let cause = ConnectError::of(error, with_proxy);
        if cause != ConnectError::Tunnel(TunnelFailure::Refused) {
            return cause;
        }
        // The HTTP library hides the proxy's status, which is what its administrator asks for.
        let status = trace::refusal_of_tunnel(&self.egress, base).await;
        status.unwrap_or(cause)
    }
}

impl SilentHosts {
    /// Sorts silent hosts behind the others.
    fn order<'b>(&self, bases: &'b [BaseUrl]) -> Vec<&'b BaseUrl> {
        let mut hosts = self.lock();
        hosts.retain(|(_, since)| since.elapsed() < DEMOTED_FOR);
        let mut ordered: Vec<_> = bases.iter().collect();
        // The sort is stable, so each group stays in the order of the configuration.
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
        // WeChat closes idle connections after about 20 s, and fetches are an hour apart: no idle
        // connection is worth keeping.
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(Duration::from_secs(5));
    for (host, addresses) in &egress.resolve {
        // Port 0 stands for the port of the URL.
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
