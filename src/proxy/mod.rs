//! The data path: a caller's request to WeChat's API and back, with the account's token in it.
//!
//! A request goes through these files in this order, called by `pipeline` alone: `access` and
//! `route` (who, for which account), `path` (what may be called), `body` (kept for a replay),
//! `inject` and `headers` (the token in, everything private out), `upstream` (there and back),
//! `inspect` and `retry` (what the answer says about the token). Of tokens it knows what
//! [`TokenRefresher`](crate::token::TokenRefresher) offers: the current one, and one past a rejected
//! one.

mod access;
mod access_log;
mod answer;
mod body;
mod bulkhead;
mod error;
pub mod headers;
pub mod inject;
mod inspect;
mod live;
mod loops;
mod metrics;
pub mod path;
mod pipeline;
mod request_id;
mod retry;
pub mod route;
pub mod settings;
mod spool;
mod upstream;
mod watchdog;
mod worker;

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hyper::{
    HeaderMap, Response,
    body::{Body, Frame, Incoming, SizeHint},
    header::{CONNECTION, HeaderName, HeaderValue},
    http::request::Parts,
};
use tokio::{sync::Semaphore, time::Instant};

pub use self::live::{Control, Plan};
// Doors for the benches, no part of the interface.
#[doc(hidden)]
pub use self::{access::bench::Callers, upstream::bench::PoolBench};
use self::{
    access_log::{AccessLog, AccessRecord},
    bulkhead::{Load, Peers, Place},
    error::ProxyError,
    headers::{Present, Read},
    inspect::Answer,
    live::{InFlight, Live},
    loops::LoopMark,
    metrics::{AccountMetrics, Metrics},
    pipeline::{Origin, Outcome, Trail},
    request_id::{RequestId, X_REQUEST_ID},
    settings::Settings,
    upstream::{Dialer, UpstreamOrigins},
    worker::Worker,
};
use crate::{
    net::{
        bind::BindError,
        connection::CutReason,
        drain::{Drain, Phase},
        listen::{BoundAddr, Listener},
    },
    telemetry::{logging::Format, output::Output, registry, workers::StuckWorkers},
    token::{AccountSettings, AccountTokens},
};

const X_WXGATE_ACCOUNT: HeaderName = HeaderName::from_static("x-wxgate-account");
const X_WXGATE_ATTEMPTS: HeaderName = HeaderName::from_static("x-wxgate-attempts");
const X_WXGATE_SENT: HeaderName = HeaderName::from_static("x-wxgate-sent");
const X_WXGATE_REPLAY: HeaderName = HeaderName::from_static("x-wxgate-replay");

/// Where the access log goes; `None` when nobody wants it.
#[derive(Debug, Clone)]
pub struct AccessLogSettings {
    /// Text or JSON.
    pub format: Format,
    /// The sink.
    pub output: Output,
}

/// Why the data path could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A listener could not be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// As configured.
        address: String,
        /// The cause.
        error: BindError,
    },
    /// `server.tls` cannot be used.
    #[error("server.tls: {0}")]
    Tls(io::Error),
    /// `upstream` or an account's `api` cannot be used.
    #[error("upstream: {0}")]
    Upstream(String),
}

/// The data path, shared by its workers.
pub struct Proxy {
    live: ArcSwap<Live>,
    peers: Arc<Peers>,
    nobody: AccountMetrics,
    metrics: Metrics,
    origins: UpstreamOrigins,
    dialer: Dialer,
    pool_idle: Duration,
    copies: Arc<spool::CopyBudget>,
    log: Option<AccessLogSettings>,
    loop_mark: LoopMark,
    stuck: StuckWorkers,
}

/// The addresses of the data path, taken. Connections wait until it runs.
pub struct Listeners {
    list: Vec<Listener>,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

/// The data path with its listeners bound, ready to run.
pub struct Bound {
    proxy: Arc<Proxy>,
    listeners: Vec<Listener>,
    workers: usize,
    max_connections: usize,
}

impl Listeners {
    /// Takes the addresses.
    ///
    /// # Errors
    /// When one is taken already, or `server.tls` cannot be used.
    pub fn bind(settings: &Settings) -> Result<Self, BuildError> {
        let tls = settings
            .tls
            .as_ref()
            .map(|tls| tls.acceptor().map_err(BuildError::Tls))
            .transpose()?;
        let listen = |address| {
            Listener::bind(address).map_err(|error| BuildError::Listen {
                address: address.to_string(),
                error,
            })
        };
        let list = settings
            .listen
            .iter()
            .map(listen)
            .collect::<Result<_, _>>()?;
        Ok(Self { list, tls })
    }

    /// Where those on TCP really stand.
    pub fn tcp(&self) -> Vec<SocketAddr> {
        self.list
            .iter()
            .filter_map(|listener| listener.address().tcp())
            .collect()
    }
}

impl Proxy {
    /// Prepares everything that requests need.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(
        listeners: Listeners,
        settings: &Settings,
        accounts: Vec<(AccountSettings, AccountTokens)>,
        log: Option<AccessLogSettings>,
        registry: &registry::MetricsRegistry,
    ) -> Result<Bound, BuildError> {
        let metrics = registry.register(Metrics::register);
        let Listeners {
            list: listeners,
            tls,
        } = listeners;
        let (accounts, refreshers): (Vec<_>, Vec<_>) = accounts.into_iter().unzip();
        let origins = UpstreamOrigins::default();
        let plan = Plan::new(settings, &accounts, &origins, tls)?;
        let live = Live::new(
            plan,
            refreshers,
            &metrics,
            None,
            Load::new(metrics.in_flight.clone()),
        );
        let proxy = Self {
            live: ArcSwap::from_pointee(live),
            peers: Arc::default(),
            nobody: metrics.for_none(),
            metrics,
            origins,
            dialer: Dialer::new(&settings.upstream.egress)
                .map_err(|error| BuildError::Upstream(error.to_string()))?,
            pool_idle: settings.upstream.pool_idle,
            copies: spool::CopyBudget::new(settings.replay.memory_total),
            log,
            loop_mark: LoopMark::random(),
            stuck: registry.register(StuckWorkers::register),
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = if settings.workers == 0 {
            cores
        } else {
            settings.workers
        };
        Ok(Bound {
            proxy: Arc::new(proxy),
            listeners,
            workers,
            max_connections: settings.max_connections,
        })
    }

    fn access_log(&self) -> Option<AccessLog> {
        self.log
            .as_ref()
            .map(|log| AccessLog::new(log.format, log.output.clone()))
    }
}

impl Bound {
    /// Where the listeners really stand.
    pub fn addresses(&self) -> Vec<BoundAddr> {
        self.listeners
            .iter()
            .map(|listener| listener.address().clone())
            .collect()
    }

    /// The workers that the watchdog finds stuck.
    pub fn stuck_workers(&self) -> StuckWorkers {
        self.proxy.stuck.clone()
    }

    /// Changes the configuration from now on, also while it runs.
    pub fn control(&self) -> Control {
        Control::of(&self.proxy)
    }

    /// Serves until the drain is over and every worker has ended. Returns how many requests were cut.
    ///
    /// # Errors
    /// When a worker thread cannot be started.
    pub async fn run(self, mut drain: Drain) -> io::Result<usize> {
        let (mut workers, mut ends) = (Vec::new(), Vec::new());
        for index in 0..self.workers {
            let (worker, ended) =
                worker::spawn(index, Arc::clone(&self.proxy), drain.clone()).await?;
            workers.push(worker);
            ends.push(ended);
        }
        let workers = workers.into();
        worker::start(
            self.listeners,
            &workers,
            &Arc::new(Semaphore::new(self.max_connections)),
        );
        tokio::select! {
            () = drain.reached(Phase::Closing) => {}
            () = watchdog::watch(workers, self.proxy.stuck.clone()) => {
                // Every worker has ended; the stop finds that out.
                drain.reached(Phase::Closing).await;
            }
        }
        let mut cut = 0;
        for ended in ends {
            cut += ended.await.unwrap_or(0);
        }
        Ok(cut)
    }
}

/// Answers one request. Never fails: errors become answers here, and everything is counted and
/// logged here.
async fn handle(
    worker: &Rc<Worker>,
    origin: &Rc<Origin>,
    head: Box<Parts>,
    body: Incoming,
) -> Response<Delivery> {
    let present = Present::in_request(&head.headers);
    let adopted = if present.has(Read::RequestId) {
        RequestId::adopted(&head.headers)
    } else {
        None
    };
    let id = adopted.unwrap_or_else(|| worker.request_id());
    let mut journey = Journey {
        worker: Rc::clone(worker),
        origin: Rc::clone(origin),
        head,
        id,
        trail: Trail::default(),
        started: Instant::now(),
        decided: None,
        is_recorded: false,
    };
    let Journey { head, trail, .. } = &mut journey;
    trail.body_unread = !body.is_end_stream();
    let live = worker.proxy.live.load_full();
    let error_style = live.error_style;
    let guard = live.begin();
    let ran = pipeline::run(worker, &guard, origin, head, present, body, trail).await;
    let refused = trail.refused;
    let denied = ran
        .as_ref()
        .err()
        .filter(|error| error.is_denial())
        .map(ProxyError::slug)
        .or(refused);
    let (mut response, outcome) = match ran {
        Ok(Outcome::Upstream(answer, place)) => (
            answer.map(|body| Delivery::Upstream {
                answer: body,
                journey: None,
                _under_way: guard,
                _place: place,
            }),
            "ok",
        ),
        Ok(Outcome::Own(answer)) => (
            answer.map(|body| Delivery::Own(Some(body))),
            refused.unwrap_or("ok"),
        ),
        Err(error) => {
            let mut response = error.response(error_style);
            let sent = if trail.attempts == 0 { "no" } else { "maybe" };
            response
                .headers_mut()
                .insert(X_WXGATE_SENT, HeaderValue::from_static(sent));
            (response.map(|body| Delivery::Own(Some(body))), error.slug())
        }
    };
    journey.audit(denied);
    journey.decide(response.status().as_u16(), outcome);
    let is_begun = matches!(
        response.body(),
        Delivery::Upstream {
            answer: Answer::Begun(..),
            ..
        }
    );
    if is_begun && !response.body().is_end_stream() {
        let id = journey.id.value();
        mark(response.headers_mut(), id, &journey.trail);
        if let Delivery::Upstream {
            journey: carried, ..
        } = response.body_mut()
        {
            *carried = Some(Box::new(journey));
        }
    } else {
        journey.record();
        mark(response.headers_mut(), journey.id.take(), &journey.trail);
    }
    response
}

/// A request from its arrival until its answer is known: until the head goes out, or, where the
/// body is still to come, until that has ended. Counted and logged exactly once, when dropped.
struct Journey {
    worker: Rc<Worker>,
    origin: Rc<Origin>,
    head: Box<Parts>,
    id: RequestId,
    trail: Trail,
    started: Instant,
    decided: Option<Decided>,
    is_recorded: bool,
}

/// The answer to a request.
struct Decided {
    status: u16,
    outcome: &'static str,
    /// Until the head of the answer was there.
    took: Duration,
}

/// The label of callers that nobody knows.
const NO_CLIENT: &str = "-";

/// The status that nginx logs for a request whose caller went away; never sent.
const NOBODY_LEFT: u16 = 499;

/// The outcome of an answer that broke off behind its head.
const UPSTREAM_BROKEN: &str = "upstream_broken";

impl Journey {
    fn decide(&mut self, status: u16, outcome: &'static str) {
        self.decided = Some(Decided {
            status,
            outcome,
            took: self.started.elapsed(),
        });
    }

    /// WeChat's answer has broken off; its head, at least, is on the way to the caller.
    fn break_off(&mut self, error: &hyper::Error) {
        if let Some(decided) = &mut self.decided {
            decided.outcome = UPSTREAM_BROKEN;
        }
        tracing::warn!(
            account = self.trail.account.as_ref().map_or("-", |account| account.name.as_str()),
            id = self.id.as_str(),
            %error,
            "WeChat's answer broke off behind its head; the caller's connection is reset",
        );
    }

    fn record(&mut self) {
        self.is_recorded = true;
        let Self {
            worker,
            origin,
            head,
            id,
            trail,
            started,
            decided,
            ..
        } = self;
        // A connection that was cut ends the answer that was on its way.
        let cut = origin.connection.cut().map(CutReason::slug);
        let (status, outcome, took) = match decided {
            Some(decided) => (decided.status, cut.unwrap_or(decided.outcome), decided.took),
            None => (NOBODY_LEFT, cut.unwrap_or("abandoned"), started.elapsed()),
        };
        let metrics = trail
            .account
            .as_ref()
            .map_or(&worker.proxy.nobody, |account| &account.metrics);
        let client = trail
            .client
            .as_ref()
            .map_or(NO_CLIENT, |client| client.name().as_str());
        metrics.finished(client, outcome, took.as_secs_f64());
        if let Some(log) = &worker.access_log {
            let forwarded = trail
                .caller
                .filter(|caller| *caller != origin.peer)
                .map(|caller| caller.to_string());
            log.write(&AccessRecord {
                id: id.as_str(),
                caller: forwarded.as_deref().unwrap_or(&origin.shown),
                client,
                account: trail
                    .account
                    .as_ref()
                    .map_or("-", |account| account.name.as_str()),
                method: head.method.as_str(),
                path: head.uri.path(),
                query: head.uri.query(),
                status,
                outcome,
                attempts: trail.attempts,
                errcode: trail.errcode,
                replay_skipped: trail.replay_skipped,
                took,
            });
        }
    }
}

impl Journey {
    /// One line for a call that was denied, or would have been, and one more in the count.
    fn audit(&self, denied: Option<&'static str>) {
        let Self {
            worker,
            origin,
            head,
            id,
            trail,
            ..
        } = self;
        let (reason, mode) = match (denied, trail.overlooked) {
            (Some(reason), _) => (reason, "enforce"),
            (None, Some(reason)) => (reason, "report"),
            (None, None) => return,
        };
        let client = trail
            .client
            .as_ref()
            .map_or(NO_CLIENT, |client| client.name().as_str());
        worker.proxy.metrics.denied(client, reason, mode);
        tracing::warn!(
            target: "audit",
            mode,
            reason,
            client,
            account = trail.account.as_ref().map_or("-", |account| account.name.as_str()),
            caller = %trail.caller.unwrap_or(origin.peer),
            method = %head.method,
            path = ?head.uri.path(),
            id = id.as_str(),
            "{}",
            if mode == "report" { "would be denied" } else { "denied" },
        );
    }
}

impl Drop for Journey {
    /// Also where the caller hung up, or a stop cut the request: WeChat may have executed it all
    /// the same, so it must be seen.
    fn drop(&mut self) {
        if !self.is_recorded {
            self.record();
        }
    }
}

/// The headers that every answer gets.
fn mark(headers: &mut HeaderMap, id: HeaderValue, trail: &Trail) {
    headers.insert(X_REQUEST_ID, id);
    if trail.body_unread || trail.must_close {
        // The connection ends with this answer; a caller that is not told would send its next
        // request into it.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(account) = &trail.account {
        headers.insert(X_WXGATE_ACCOUNT, account.label.clone());
    }
    if trail.attempts > 0 {
        headers.insert(
            X_WXGATE_ATTEMPTS,
            HeaderValue::from_static(if trail.attempts == 1 { "1" } else { "2" }),
        );
    }
    if let Some(reason) = trail.replay_skipped
        && let Ok(value) = HeaderValue::try_from(format!("skipped; reason={reason}"))
    {
        headers.insert(X_WXGATE_REPLAY, value);
    }
}

/// What goes to the caller: WeChat's answer or our own.
enum Delivery {
    Upstream {
        answer: Answer,
        /// Of an answer whose body is still to come.
        journey: Option<Box<Journey>>,
        /// The request is over when the body is dropped.
        _under_way: InFlight,
        _place: Place,
    },
    Own(Option<Bytes>),
}

impl Body for Delivery {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Upstream {
                answer, journey, ..
            } => {
                let polled = Pin::new(answer).poll_frame(cx);
                if let (Poll::Ready(Some(Err(error))), Some(journey)) = (&polled, journey) {
                    journey.break_off(error);
                }
                polled
            }
            Self::Own(body) => Poll::Ready(body.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream { answer, .. } => answer.is_end_stream(),
            Self::Own(body) => body.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Upstream { answer, .. } => answer.size_hint(),
            Self::Own(body) => {
                SizeHint::with_exact(body.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}
