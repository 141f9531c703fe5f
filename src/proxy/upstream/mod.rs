//! Sending a request to an API host and getting the head of its answer.
//!
//! Decides whether a request that failed on a reused connection may move to a fresh one; knows
//! nothing of tokens or of replays after a stale answer. One instance per worker thread.

mod answer_body;
mod answer_decoder;
mod answer_head;
pub(super) mod bench;
mod candidates;
mod dial;
mod dial_error;
mod health;
mod http1;
mod idle_watch;
mod origins;
mod pool;
mod stream;
#[cfg(test)]
mod tests;
mod timer;

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use hyper::{Method, Response};
use tokio::time::Instant;

pub(crate) use self::{
    answer_body::AnswerBody,
    candidates::Candidate,
    dial::{DialSetupError, Dialer, UpstreamOrigin},
    dial_error::DialError,
    http1::ExchangeError,
    origins::UpstreamOrigins,
};
use self::{
    candidates::Candidates,
    http1::{Buffers, RequestHead},
    pool::{UpstreamConnection, UpstreamPool},
    timer::Timer,
};
use super::body::{NotReplayable, Pace, Payload};

/// The connections of one worker, a pool for each API host that it has called.
pub(crate) struct Upstream {
    /// By the index of their origin.
    pools: RefCell<Vec<Option<Rc<UpstreamPool>>>>,
    dialer: Dialer,
    buffers: Rc<Buffers>,
    pool_idle: Duration,
}

/// A request as it goes out, without its body.
pub(crate) struct Outgoing<'r> {
    pub(crate) method: &'r Method,
    pub(crate) target: &'r str,
    /// Appends the lines of the headers, save those of the host and of the length.
    pub(crate) headers: &'r dyn Fn(&mut Vec<u8>),
    pub(crate) attempt: AttemptCount<'r>,
    /// Begin of the attempt.
    pub(crate) sent_at: Instant,
}

/// An attempt's place in the count of attempts, taken with the first byte that is written: the
/// request may be dropped at any moment from then on.
pub(crate) struct AttemptCount<'r> {
    count: &'r mut u8,
    is_counted: bool,
}

impl<'r> AttemptCount<'r> {
    pub(crate) fn new(count: &'r mut u8) -> Self {
        Self {
            count,
            is_counted: false,
        }
    }

    fn take(&mut self) {
        if !self.is_counted {
            self.is_counted = true;
            *self.count += 1;
        }
    }
}

/// Reason why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// No connection; nothing was sent.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke before an answer, or the answer was no HTTP.
    #[error("{host} {what}; the request was not repeated because it may have been executed")]
    Broken { host: String, what: &'static str },
    /// The answer cannot be passed on.
    #[error("{host} sent an answer that cannot be passed on: {what}")]
    Unusable { host: String, what: &'static str },
    /// No head within `upstream.response_timeout`.
    #[error("no answer in time")]
    Timeout,
    /// The caller's body broke off or came too slowly.
    #[error("the caller's body broke off")]
    Caller,
    /// The body is needed again and there is no copy.
    #[error("the request body cannot be sent again")]
    NotReplayable(#[from] NotReplayable),
}

impl SendError {
    /// An answer whose head came and whose body did not end.
    pub(crate) fn broken_body(candidate: &Candidate<'_>) -> Self {
        Self::Broken {
            host: candidate.origin.name().to_owned(),
            what: "broke the connection within its answer",
        }
    }
}

impl Upstream {
    /// No connection yet; `pool_idle` is how long one may be idle.
    pub(crate) fn new(dialer: Dialer, pool_idle: Duration) -> Self {
        Self {
            pools: RefCell::default(),
            dialer,
            buffers: Buffers::new(),
            pool_idle,
        }
    }

    /// Closes connections that have been idle for too long. `warm` keeps one ready for each host in
    /// use.
    pub(crate) fn run_housekeeping(&self, warm: bool) {
        for pool in self.pools.borrow().iter().flatten() {
            pool.reap();
            if warm && !self.pool_idle.is_zero() {
                pool.keep_warm();
            }
        }
    }

    /// The hosts of an account in the order to try them.
    pub(crate) fn candidates<'c>(&'c self, hosts: &'c [Arc<UpstreamOrigin>]) -> Candidates<'c> {
        Candidates::new(self, hosts)
    }

    /// Sends to this host. `response_timeout`, the time until the head, counts from the last sign
    /// of life of the request body.
    pub(crate) async fn send(
        &self,
        candidate: &Candidate<'_>,
        outgoing: &mut Outgoing<'_>,
        payload: &mut Payload,
        response_timeout: Duration,
    ) -> Result<Response<AnswerBody>, SendError> {
        let pool = self.pool(candidate.origin);
        let now = outgoing.sent_at;
        let mut patience = Patience {
            window: response_timeout,
            deadline: now + response_timeout,
            pace: payload.pace(),
            may_move_on: !candidate.is_last,
        };
        exchange(&pool, now, outgoing, payload, &mut patience).await
    }

    fn probe(&self, origin: &Arc<UpstreamOrigin>) {
        self.pool(origin).probe();
    }

    fn pool(&self, origin: &Arc<UpstreamOrigin>) -> Rc<UpstreamPool> {
        let mut pools = self.pools.borrow_mut();
        if origin.index >= pools.len() {
            pools.resize(origin.index + 1, None);
        }
        let pool = pools[origin.index].get_or_insert_with(|| {
            UpstreamPool::new(
                Arc::clone(origin),
                self.dialer.clone(),
                Rc::clone(&self.buffers),
                self.pool_idle,
            )
        });
        Rc::clone(pool)
    }
}

/// Deadline of an exchange, which moves while the caller's body keeps coming.
struct Patience {
    window: Duration,
    deadline: Instant,
    pace: Option<Pace>,
    /// A connection is not waited for once its host is down: another one is left.
    may_move_on: bool,
}

impl Patience {
    /// Waits for a part of the exchange, for as long as the caller's body keeps coming or the
    /// deadline is ahead.
    async fn with<W: Future + Unpin>(
        &mut self,
        timer: &mut Timer,
        mut work: W,
    ) -> Result<W::Output, SendError> {
        loop {
            let pace = &self.pace;
            // The inner error: the caller's connection was judged to be too slow meanwhile.
            let watched = poll_fn(|cx| match Pin::new(&mut work).poll(cx) {
                Poll::Pending if pace.as_ref().is_some_and(Pace::is_too_slow) => {
                    Poll::Ready(Err(SendError::Caller))
                }
                polled => polled.map(Ok),
            });
            if let Some(done) = timer.within(self.deadline, watched).await {
                return done;
            }
            if self
                .pace
                .as_mut()
                .is_some_and(|pace| pace.keeps_up(self.window))
            {
                self.deadline = Instant::now() + self.window;
            } else if self.pace.as_ref().is_some_and(Pace::waits_for_caller) {
                return Err(SendError::Caller);
            } else {
                return Err(SendError::Timeout);
            }
        }
    }
}

/// One exchange, moved to a fresh connection where that cannot execute anything twice: a reused
/// connection died without a byte of an answer, and either nothing was written or the request is a
/// GET or HEAD without a body.
async fn exchange(
    pool: &Rc<UpstreamPool>,
    now: Instant,
    outgoing: &mut Outgoing<'_>,
    payload: &mut Payload,
    patience: &mut Patience,
) -> Result<Response<AnswerBody>, SendError> {
    let connection = match pool.idle(now) {
        Some(connection) => connection,
        None => {
            // In a box, since it is rare: it would be the largest part of each request's future.
            let checkout = Box::pin(pool.checkout(patience.may_move_on));
            patience.with(&mut Timer::default(), checkout).await??
        }
    };
    if let Some(answer) = answer(pool, connection, outgoing, payload, patience).await? {
        return Ok(answer);
    }
    tracing::debug!(
        host = pool.origin().name(),
        "a kept connection had died; the request moves to a fresh one"
    );
    Box::pin(once_more(pool, outgoing, payload, patience)).await
}

/// Sends the request once more, over a connection that has carried nothing yet.
async fn once_more(
    pool: &Rc<UpstreamPool>,
    outgoing: &mut Outgoing<'_>,
    payload: &mut Payload,
    patience: &mut Patience,
) -> Result<Response<AnswerBody>, SendError> {
    // Before the connection, which may not be kept waiting.
    patience
        .with(&mut Timer::default(), pin!(payload.body()))
        .await??;
    let dialling = pin!(pool.dial_fresh(patience.may_move_on));
    let connection = patience.with(&mut Timer::default(), dialling).await??;
    let answer = answer(pool, connection, outgoing, payload, patience).await?;
    answer.ok_or_else(|| broken(pool, &ExchangeError::Closed))
}

/// Sends the request over this connection. Returns `None` if it may move to another one.
async fn answer(
    pool: &Rc<UpstreamPool>,
    mut connection: Box<UpstreamConnection>,
    outgoing: &mut Outgoing<'_>,
    payload: &mut Payload,
    patience: &mut Patience,
) -> Result<Option<Response<AnswerBody>>, SendError> {
    let body = match payload.ready_body() {
        Some(body) => body,
        None => {
            patience
                .with(&mut Timer::default(), Box::pin(payload.body()))
                .await??
        }
    };
    let request = RequestHead {
        method: outgoing.method,
        target: outgoing.target,
        host: &pool.origin().host,
        headers: outgoing.headers,
    };
    connection.http.begin(request, body);
    let UpstreamConnection { http, timer, .. } = &mut *connection;
    let answered = poll_fn(|cx| {
        let answered = http.poll_answer(cx);
        if http.has_written() {
            outgoing.attempt.take();
        }
        answered
    });
    let error = match patience.with(timer, answered).await? {
        Ok((head, beginning)) => {
            let body = AnswerBody::new(connection, pool, head.decoder, beginning);
            let mut answer = Response::new(body);
            *answer.status_mut() = head.status;
            *answer.headers_mut() = head.headers;
            return Ok(Some(answer));
        }
        Err(error) => error,
    };
    let harmless = matches!(*outgoing.method, Method::GET | Method::HEAD) && payload.len() == 0;
    let may_move = connection.is_reused()
        && !connection.http.is_answered()
        && (!connection.http.has_written() || harmless);
    // The body's first reader must be gone before a second one starts.
    drop(connection);
    if payload.caller_failed() {
        Err(SendError::Caller)
    } else if may_move {
        Ok(None)
    } else {
        Err(broken(pool, &error))
    }
}

fn broken(pool: &UpstreamPool, error: &ExchangeError) -> SendError {
    let host = pool.origin().name().to_owned();
    let what = match error {
        ExchangeError::Unusable(what) => return SendError::Unusable { host, what },
        ExchangeError::NotHttp => "answered with something that is not HTTP",
        ExchangeError::Closed => "closed the connection before it answered",
        ExchangeError::Io(_) | ExchangeError::Body(_) => "broke the connection before it answered",
    };
    SendError::Broken { host, what }
}
