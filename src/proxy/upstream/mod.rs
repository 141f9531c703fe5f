//! Sending a request to an API host and getting the head of its answer.
//!
//! Decides whether a request that failed on a reused connection may move to a fresh one; knows
//! nothing of tokens or of replays after a stale answer. One instance per worker thread.

pub(super) mod bench;
mod candidates;
mod counted_stream;
mod dial;
mod dial_error;
mod driver;
mod health;
mod origins;
mod pool;
mod timer;

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    header::{self, HeaderName, HeaderValue},
    http::uri::PathAndQuery,
};
use tokio::time::Instant;

pub(crate) use self::{
    candidates::Candidate,
    dial::{DialSetupError, Dialer, UpstreamOrigin},
    dial_error::DialError,
    origins::UpstreamOrigins,
};
use self::{
    candidates::Candidates,
    pool::{UpstreamConnection, UpstreamPool},
    timer::Timer,
};
use super::body::{NotReplayable, OutBody, Pace, Payload};

/// The connections of one worker, a pool for each API host that it has called.
pub(crate) struct Upstream {
    /// By the index of their origin.
    pools: RefCell<Vec<Option<Rc<UpstreamPool>>>>,
    dialer: Dialer,
    pool_idle: Duration,
}

/// A request as it goes out, without its body.
pub(crate) struct Outgoing<'r> {
    pub(crate) method: &'r Method,
    pub(crate) target: RequestTarget<'r>,
    pub(crate) headers: &'r mut Headers,
    pub(crate) attempt: AttemptCount<'r>,
}

/// An attempt's place in the count of attempts. It is taken before the first byte of the request is
/// written, since the request may be dropped at any moment from then on, and given back if nothing
/// was written.
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

    /// Returns false if an earlier connection of the same attempt has written something already.
    fn begin(&mut self) -> bool {
        if self.is_counted {
            return false;
        }
        self.is_counted = true;
        *self.count += 1;
        true
    }

    fn take_back(&mut self) {
        self.is_counted = false;
        *self.count -= 1;
    }
}

/// The target of a request that may have to be sent more than once.
pub(crate) struct RequestTarget<'r> {
    whole: Option<PathAndQuery>,
    again: &'r dyn Fn() -> Option<PathAndQuery>,
}

impl<'r> RequestTarget<'r> {
    /// `again` makes the same target anew: that is rare, and a copy for it would cost every
    /// request.
    pub(crate) fn new(whole: PathAndQuery, again: &'r dyn Fn() -> Option<PathAndQuery>) -> Self {
        Self {
            whole: Some(whole),
            again,
        }
    }

    fn take(&mut self) -> Result<PathAndQuery, SendError> {
        self.whole
            .take()
            .or_else(self.again)
            .ok_or(SendError::RequestTarget)
    }
}

/// The headers of a request that may have to be sent more than once.
#[derive(Debug)]
pub(crate) struct Headers {
    /// Until the first time. It has the room that it came with, which a copy has not.
    whole: Option<HeaderMap>,
    /// A list instead of a map: no header is looked up here.
    spare: Vec<(HeaderName, HeaderValue)>,
}

impl Headers {
    pub(crate) fn new(whole: HeaderMap) -> Self {
        let spare = whole
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Self {
            whole: Some(whole),
            spare,
        }
    }

    /// Returns the first value of this name, in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&HeaderValue> {
        let mut all = self.spare.iter();
        all.find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Removes headers from the attempts to come.
    pub(crate) fn remove(&mut self, goes: impl Fn(&HeaderName) -> bool) {
        self.spare.retain(|(name, _)| !goes(name));
        // The list is the whole truth, and the map is made from it again.
        self.whole = None;
    }

    /// Adds a header to the attempts to come.
    pub(crate) fn add(&mut self, name: HeaderName, value: HeaderValue) {
        self.spare.push((name, value));
        self.whole = None;
    }

    fn take(&mut self) -> HeaderMap {
        self.whole.take().unwrap_or_else(|| {
            let mut again = HeaderMap::with_capacity(self.spare.len());
            for (name, value) in &self.spare {
                again.append(name, value.clone());
            }
            again
        })
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
    /// The request has to be sent again and its target cannot be made anew.
    #[error("the target of the request could not be made a second time")]
    RequestTarget,
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
        let now = Instant::now();
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
            UpstreamPool::new(Arc::clone(origin), self.dialer.clone(), self.pool_idle)
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
    let mut connection = match pool.idle(now) {
        Some(connection) => connection,
        // Waiting is rare, and needs so much room that every request would pay for it.
        None => {
            let checkout = Box::pin(pool.checkout(patience.may_move_on));
            patience.with(&mut Timer::default(), checkout).await??
        }
    };
    let before = connection.begin();
    let body = match payload.ready_body() {
        Some(body) => body,
        None => {
            patience
                .with(&mut Timer::default(), Box::pin(payload.body()))
                .await??
        }
    };
    // In one place from here on: a request is large, and so is what hyper makes of it.
    let answer = pin!(
        connection
            .sender
            .send_request(request(pool, outgoing, body)?)
    );
    let is_first = outgoing.attempt.begin();
    let failure = match answered(&mut connection, answer, patience).await {
        Ok(Ok(answer)) => return deliver(pool, connection, answer, payload),
        Ok(Err(error)) => Ok(error),
        Err(error) => Err(error),
    };
    let after = connection.mark();
    if is_first && after.written == before.written {
        outgoing.attempt.take_back();
    }
    let error = failure?;
    let unanswered = connection.is_reused() && after.read == before.read;
    let harmless = matches!(*outgoing.method, Method::GET | Method::HEAD) && payload.len() == 0;
    let may_move = unanswered && (after.written == before.written || harmless);
    // The body's first reader must be gone before a second one starts.
    drop(connection);
    if payload.caller_failed() {
        return Err(SendError::Caller);
    }
    if !may_move {
        return Err(broken(pool, &error));
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
    let body = patience
        .with(&mut Timer::default(), pin!(payload.body()))
        .await??;
    let dialling = pin!(pool.dial_fresh(patience.may_move_on));
    let mut connection = patience.with(&mut Timer::default(), dialling).await??;
    let before = connection.begin();
    let answer = pin!(
        connection
            .sender
            .send_request(request(pool, outgoing, body)?)
    );
    let is_first = outgoing.attempt.begin();
    let failure = match answered(&mut connection, answer, patience).await {
        Ok(Ok(answer)) => return deliver(pool, connection, answer, payload),
        Ok(Err(error)) => broken(pool, &error),
        Err(error) => error,
    };
    if is_first && connection.mark().written == before.written {
        outgoing.attempt.take_back();
    }
    if payload.caller_failed() {
        return Err(SendError::Caller);
    }
    Err(failure)
}

/// The outer error: there was no answer in time. The inner one: the connection broke.
async fn answered<A: Future>(
    connection: &mut UpstreamConnection,
    mut answer: Pin<&mut A>,
    patience: &mut Patience,
) -> Result<A::Output, SendError> {
    let UpstreamConnection { timer, driver, .. } = connection;
    let answer = poll_fn(|cx| driver.turn(cx, |cx| answer.as_mut().poll(cx)));
    patience.with(timer, answer).await
}

fn request(
    pool: &UpstreamPool,
    outgoing: &mut Outgoing<'_>,
    body: OutBody,
) -> Result<Request<OutBody>, SendError> {
    let length = body.size_hint().exact().unwrap_or_default();
    let mut request = Request::new(body);
    *request.method_mut() = outgoing.method.clone();
    *request.uri_mut() = outgoing.target.take()?.into();
    *request.headers_mut() = outgoing.headers.take();
    request
        .headers_mut()
        .insert(header::HOST, pool.origin().host.clone());
    // WeChat answers 412 to a body without a length, so every request that may have one states it.
    if length > 0 || !matches!(*outgoing.method, Method::GET | Method::HEAD) {
        request
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(request)
}

fn broken(pool: &UpstreamPool, error: &hyper::Error) -> SendError {
    let what = if error.is_parse() {
        "answered with something that is not HTTP"
    } else if error.is_incomplete_message() {
        "closed the connection before it answered"
    } else {
        "broke the connection before it answered"
    };
    SendError::Broken {
        host: pool.origin().name().to_owned(),
        what,
    }
}

fn deliver(
    pool: &Rc<UpstreamPool>,
    mut connection: Box<UpstreamConnection>,
    answer: Response<Incoming>,
    payload: &Payload,
) -> Result<Response<AnswerBody>, SendError> {
    let unusable = |what| {
        Err(SendError::Unusable {
            host: pool.origin().name().to_owned(),
            what,
        })
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return unusable("101 was not asked for");
    }
    let headers = answer.headers();
    if headers.contains_key(header::TRANSFER_ENCODING)
        && headers.contains_key(header::CONTENT_LENGTH)
    {
        return unusable("both Transfer-Encoding and Content-Length");
    }
    // While the upload still runs, the connection cannot carry another request.
    let reusable = payload.is_complete();
    if !reusable {
        // A caller may want to get rid of all of it before it reads anything.
        connection.driver.set_apart();
    }
    let held = BorrowedConnection {
        connection,
        pool: Rc::clone(pool),
        reusable,
    };
    Ok(answer.map(|incoming| AnswerBody::new(incoming, held)))
}

/// The body of an answer. Its connection goes back to the pool when the body has been read to its
/// end, and is closed when it has not.
pub(crate) struct AnswerBody {
    incoming: Incoming,
    held: Option<BorrowedConnection>,
}

struct BorrowedConnection {
    connection: Box<UpstreamConnection>,
    pool: Rc<UpstreamPool>,
    reusable: bool,
}

impl AnswerBody {
    fn new(incoming: Incoming, held: BorrowedConnection) -> Self {
        let mut body = Self {
            incoming,
            held: Some(held),
        };
        body.release_at_end();
        body
    }

    /// The next frame; the outer `None` when the deadline comes first, which is asked for once it
    /// matters.
    pub(crate) async fn frame_before(
        &mut self,
        mut deadline: impl FnMut() -> Instant,
    ) -> Option<Option<hyper::Result<Frame<Bytes>>>> {
        poll_fn(|cx| match Pin::new(&mut *self).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending => match &mut self.held {
                Some(held) => held
                    .connection
                    .timer
                    .poll_passed(cx, deadline())
                    .map(|()| None),
                None => Poll::Pending,
            },
        })
        .await
    }

    fn release_at_end(&mut self) {
        if self.incoming.is_end_stream()
            && let Some(held) = self.held.take()
            && held.reusable
        {
            held.pool.give_back(held.connection);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { incoming, held } = &mut *self;
        let mut ask = |cx: &mut Context<'_>| Pin::new(&mut *incoming).poll_frame(cx);
        let polled = match held {
            Some(held) => held.connection.driver.turn(cx, ask),
            None => ask(cx),
        };
        match &polled {
            // hyper's server stops asking at the stated length, so the end may never be polled for.
            Poll::Ready(Some(Ok(_)) | None) => self.release_at_end(),
            // The connection carries nothing more.
            Poll::Ready(Some(Err(_))) => drop(self.held.take()),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
