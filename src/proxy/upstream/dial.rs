//! Opening a connection to an API host: DNS or fixed addresses, egress proxy, TCP, TLS.
//!
//! Where to dial comes from the configuration alone; nothing a caller sends reaches this file.
//! Certificates are always verified, and no byte of HTTP is written before they are.

use std::{
    collections::HashMap, fmt::Write as _, future::Future, io, net::IpAddr, pin::Pin, sync::Arc,
    task, time::Duration,
};

use hyper::{Uri, header::HeaderValue, http::uri};
use hyper_util::client::legacy::connect::{
    HttpConnector,
    dns::{GaiResolver, Name},
    proxy::Tunnel,
};
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::{
    dial_error::DialError,
    health::HostHealth,
    stream::{Tcp, UpstreamStream},
};
use crate::net::{
    address::BaseUrl,
    egress::{Egress, RootsError},
};

/// An API host as the data path needs it.
#[derive(Debug)]
pub(crate) struct UpstreamOrigin {
    /// Place among all hosts that this process has known.
    pub(super) index: usize,
    base: BaseUrl,
    uri: Uri,
    server_name: ServerName<'static>,
    /// Value of the `Host` header.
    pub(crate) host: HeaderValue,
    pub(super) health: HostHealth,
}

/// Reason why the dialler could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialSetupError {
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error("{0} is not a host name that can be called")]
    Host(String),
    #[error("upstream.proxy is not an address that can be called")]
    Proxy,
}

impl UpstreamOrigin {
    pub(super) fn new(index: usize, base: BaseUrl) -> Result<Self, DialSetupError> {
        let bad = || DialSetupError::Host(base.host.clone());
        let authority = base.authority();
        // The scheme of the dialled URI only decides the default port; TLS is added here.
        let uri = format!("http://{}:{}/", bracketed(&base.host), base.port)
            .parse()
            .map_err(|_| bad())?;
        let server_name = ServerName::try_from(base.host.clone()).map_err(|_| bad())?;
        let host = HeaderValue::from_str(&authority).map_err(|_| bad())?;
        Ok(Self {
            index,
            base,
            uri,
            server_name,
            host,
            health: HostHealth::new(),
        })
    }

    /// Host name, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.base.host
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// Opens connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dialer {
    connect: ConnectMode,
    tls: TlsConnector,
    timeout: Duration,
}

#[derive(Clone)]
enum ConnectMode {
    Direct(HttpConnector<Resolver>),
    Through(Tunnel<HttpConnector<Resolver>>),
}

impl Dialer {
    pub(crate) fn new(egress: &Egress) -> Result<Self, DialSetupError> {
        let resolver = Resolver {
            fixed: Arc::new(egress.resolve.clone()),
            dns: GaiResolver::new(),
        };
        let mut http = HttpConnector::new_with_resolver(resolver);
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(Duration::from_secs(60)));
        http.set_local_address(egress.local_address);
        http.set_connect_timeout(Some(egress.connect_timeout));
        let connect = match &egress.proxy {
            None => ConnectMode::Direct(http),
            Some(proxy) => {
                let address = format!("http://{}:{}", bracketed(&proxy.host), proxy.port);
                let mut tunnel = Tunnel::new(
                    address
                        .parse::<Uri>()
                        .map_err(|_: uri::InvalidUri| DialSetupError::Proxy)?,
                    http,
                );
                if let Some(authorization) = proxy.basic_authorization() {
                    tunnel = tunnel.with_auth(authorization);
                }
                ConnectMode::Through(tunnel)
            }
        };
        Ok(Self {
            connect,
            tls: TlsConnector::from(egress.tls()?),
            timeout: egress.connect_timeout,
        })
    }

    /// The longest time that an attempt takes.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Opens one connection within `upstream.connect_timeout`.
    pub(super) async fn dial(&self, origin: &UpstreamOrigin) -> Result<UpstreamStream, DialError> {
        timeout(self.timeout, self.dial_untimed(origin))
            .await
            .unwrap_or_else(|_| {
                Err(DialError::Timeout {
                    host: origin.name().to_owned(),
                })
            })
    }

    async fn dial_untimed(&self, origin: &UpstreamOrigin) -> Result<UpstreamStream, DialError> {
        let host = || origin.name().to_owned();
        let failed = |error: &(dyn std::error::Error + 'static)| {
            if is_timeout(error) {
                DialError::Timeout { host: host() }
            } else {
                DialError::Connect {
                    host: host(),
                    reason: chain(error),
                }
            }
        };
        let connected = match self.connect.clone() {
            ConnectMode::Direct(mut http) => http
                .call(origin.uri.clone())
                .await
                .map_err(|error| failed(&error)),
            ConnectMode::Through(mut tunnel) => tunnel
                .call(origin.uri.clone())
                .await
                .map_err(|error| failed(&error)),
        };
        let tcp = Tcp::new(connected?.into_inner());
        if !origin.base.tls {
            return Ok(UpstreamStream::Plain(tcp));
        }
        let tls = self.tls.connect(origin.server_name.clone(), tcp).await;
        let tls = tls.map_err(|error| DialError::Tls {
            host: host(),
            reason: chain(&error),
        })?;
        Ok(UpstreamStream::tls(tls))
    }
}

/// An error and its causes in one line. Dialling knows no token, so none can be in it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// The connector shares its time among the addresses, so it may give up just before
/// [`Dialer::dial`] does.
fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    let of_time = |error: &(dyn std::error::Error + 'static)| {
        let error = error.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
    };
    std::iter::successors(Some(error), |error| error.source()).any(of_time)
}

/// DNS, with the fixed addresses of `upstream.resolve` before it.
#[derive(Clone)]
struct Resolver {
    fixed: Arc<HashMap<String, Vec<IpAddr>>>,
    dns: GaiResolver,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<std::net::SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> task::Poll<Result<(), io::Error>> {
        self.dns.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        if let Some(addresses) = self.fixed.get(&name.as_str().to_ascii_lowercase()) {
            let addresses: Vec<_> = addresses.iter().map(|ip| (*ip, 0).into()).collect();
            return Box::pin(std::future::ready(Ok(addresses.into_iter())));
        }
        let found = self.dns.call(name);
        Box::pin(async { Ok(found.await?.collect::<Vec<_>>().into_iter()) })
    }
}
