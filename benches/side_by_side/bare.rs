//! Bare hyper proxies: the minimum of work on this stack, without stale tokens, limits, rights, log
//! or metrics.
//!
//! `bare` keeps connections in a pool of its own; `bare-copy` also copies each request body to a
//! file; `legacy` leaves connections to the client of hyper-util.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc};

use bytes::BytesMut;
use clap::ValueEnum;
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderValue},
    http::uri::PathAndQuery,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::runtime;

use super::{
    Failure,
    connector::Connector,
    copied::{Copied, Files},
    listener::listen,
    pool::{Body, Pool},
    tls,
};

/// Command line of the hidden subcommand.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Kind of proxy.
    kind: Kind,
    /// Port on loopback to listen on.
    #[arg(long)]
    port: u16,
    /// Port on loopback to call.
    #[arg(long)]
    upstream: u16,
    /// Root certificate to trust.
    #[arg(long)]
    ca: PathBuf,
    /// Token to add.
    #[arg(long)]
    token: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Bare,
    BareCopy,
    Legacy,
}

enum Upstream {
    Pool(Arc<Pool>, Option<Files>),
    Legacy {
        client: Client<Connector, Incoming>,
        authority: String,
    },
}

struct Proxy {
    upstream: Upstream,
    token: String,
}

/// Serves until the process is killed.
pub(crate) fn serve(options: &Options) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let proxy = Arc::new(Proxy::new(options)?);
        let listener = listen(options.port)?;
        loop {
            let (tcp, _) = listener.accept().await?;
            tcp.set_nodelay(true)?;
            let proxy = Arc::clone(&proxy);
            let answer = service_fn(move |request| {
                let proxy = Arc::clone(&proxy);
                async move { Ok::<_, Infallible>(proxy.answer(request).await) }
            });
            let mut server = http1::Builder::new();
            server.pipeline_flush(true).header_read_timeout(None);
            tokio::spawn(server.serve_connection(TokioIo::new(tcp), answer));
        }
    })
}

impl Proxy {
    fn new(options: &Options) -> io::Result<Self> {
        let upstream = SocketAddr::from(([127, 0, 0, 1], options.upstream));
        let connector = Connector::new(upstream, tls::client(&options.ca)?);
        let upstream = match options.kind {
            Kind::Bare => Upstream::Pool(Arc::new(Pool::new(connector)), None),
            Kind::BareCopy => {
                Upstream::Pool(Arc::new(Pool::new(connector)), Some(Files::default()))
            }
            Kind::Legacy => Upstream::Legacy {
                client: Client::builder(TokioExecutor::new()).build(connector),
                authority: format!("{}:{}", tls::HOST, upstream.port()),
            },
        };
        Ok(Self {
            upstream,
            token: options.token.clone(),
        })
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let mut answer = self.forward(request).await.unwrap_or_else(|_| {
            let mut answer = Response::new(Body::Empty);
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
            answer
        });
        strip(answer.headers_mut());
        answer
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let target = self.inject(request.uri())?;
        strip(request.headers_mut());
        request
            .headers_mut()
            .insert(header::HOST, HeaderValue::from_static(tls::HOST));
        match &self.upstream {
            Upstream::Pool(pool, files) => {
                *request.uri_mut() = Uri::from(target);
                let copy = files.as_ref().map(Files::lend).transpose()?;
                pool.send(request.map(|incoming| Copied::new(incoming, copy)))
                    .await
            }
            Upstream::Legacy { client, authority } => {
                let uri = Uri::builder()
                    .scheme("https")
                    .authority(authority.as_str())
                    .path_and_query(target);
                *request.uri_mut() = uri.build()?;
                Ok(client.request(request).await?.map(Body::Plain))
            }
        }
    }

    fn inject(&self, uri: &Uri) -> Result<PathAndQuery, Failure> {
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let mut target = BytesMut::with_capacity(path.len() + query.len() + self.token.len() + 16);
        target.extend_from_slice(path.as_bytes());
        target.extend_from_slice(b"?access_token=");
        target.extend_from_slice(self.token.as_bytes());
        if !query.is_empty() {
            target.extend_from_slice(b"&");
            target.extend_from_slice(query.as_bytes());
        }
        Ok(PathAndQuery::from_maybe_shared(target.freeze())?)
    }
}

fn strip(headers: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::PROXY_AUTHORIZATION,
    ] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}
