//! One HTTP/1.1 connection from its first byte to its close, with the limits that hyper does not
//! have.
//!
//! hyper parses and frames; this folder watches: a client that says nothing, never finishes its
//! head, stops reading or just idles is cut. One coarse timer per connection does all of it, so
//! that a request costs no timer. While a connection is idle it is parked: hyper's state and
//! buffers go, and come back with its next byte. What is answered is the caller's business.

mod activity;
mod io;
mod malformed;
mod timer;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming, SizeHint},
    header::{CONNECTION, HeaderValue},
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::sleep,
};

pub(in crate::net) use self::malformed::{PROXY_V1, PROXY_V2, TLS_HANDSHAKE};
use self::{
    activity::{Activity, TICK},
    io::{LargeReads, MeteredStream},
    timer::{ConnectionTimer, HyperEnd},
};
pub(crate) use self::{
    activity::{ConnectionLimits, CutReason},
    malformed::Malformed,
};

/// The most header lines of a request; more is answered 431.
const MAX_HEADERS: usize = 100;
/// The most bytes of a request head; more is answered 431.
const MAX_HEAD: usize = 64 * 1024;
/// Largest size of the buffers of a connection, the one that a long body fills and the one that waits
/// for its client to read. Each read of a fast upload costs the same.
const MAX_BUFFER: usize = 128 * 1024;
/// Connections that may read in pieces as large as that, for each [`Connections`].
const LARGE_READS: usize = 64;

/// A mark on requests that say twice how long they are, or in a way that another parser could read
/// differently. They must be refused; their connection is closed behind the answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OddFraming;

/// The connections of one listener or worker, so that they can be told to finish and waited for.
#[derive(Debug, Default, Clone)]
pub struct Connections(Rc<ConnectionSet>);

#[derive(Debug)]
struct ConnectionSet {
    limits: ConnectionLimits,
    open: RefCell<OpenTable>,
    gone: Notify,
    /// Bytes per second; 0 = none.
    min_rate: Cell<u64>,
    /// Number of further connections that may read in large pieces.
    large_reads: Rc<Cell<usize>>,
}

impl Default for ConnectionSet {
    fn default() -> Self {
        Self {
            limits: ConnectionLimits::default(),
            open: RefCell::default(),
            gone: Notify::default(),
            min_rate: Cell::default(),
            large_reads: Rc::new(Cell::new(LARGE_READS)),
        }
    }
}

#[derive(Debug, Default)]
struct OpenTable {
    next: u64,
    closing: bool,
    by_id: HashMap<u64, Rc<Activity>>,
}

impl Connections {
    /// Connections that are cut at these deadlines.
    pub fn with_limits(limits: ConnectionLimits) -> Self {
        Self(Rc::new(ConnectionSet {
            limits,
            ..ConnectionSet::default()
        }))
    }

    /// Number of open connections.
    pub fn count(&self) -> usize {
        self.0.open.borrow().by_id.len()
    }

    /// Number of idle connections that have given back the memory that a request needs.
    pub fn parked(&self) -> usize {
        self.0
            .open
            .borrow()
            .by_id
            .values()
            .filter(|activity| activity.parked.get())
            .count()
    }

    /// Sets the least bytes per second of a body, in both directions, also for those that are open;
    /// 0 = none.
    pub fn set_min_rate(&self, rate: u64) {
        self.0.min_rate.set(rate);
    }

    /// Closes idle connections. Those that have begun a request, and those that have sent nothing so
    /// far, get one answer, and so does every later one.
    pub fn close_idle(&self) {
        let mut open = self.0.open.borrow_mut();
        open.closing = true;
        for activity in open.by_id.values() {
            activity.closing.set(true);
            activity.waker.wake();
        }
    }

    /// Closes all that are not being answered, and the rest behind their answer.
    pub fn close_unanswered(&self) {
        self.close_idle();
        let open = self.0.open.borrow();
        for activity in open.by_id.values().filter(|a| !a.is_busy()) {
            activity.evict();
        }
    }

    /// Closes the oldest connection that is not being answered, to make room for another one.
    pub fn shed(&self) {
        let open = self.0.open.borrow();
        let unanswered = open
            .by_id
            .iter()
            .filter(|(_, activity)| !activity.is_busy() && !activity.evicted.get());
        if let Some((_, oldest)) = unanswered.min_by_key(|(id, _)| **id) {
            oldest.evict();
        }
    }

    /// Number of connections that are being answered.
    pub fn answering(&self) -> usize {
        let open = self.0.open.borrow();
        open.by_id.values().filter(|a| a.is_busy()).count()
    }

    /// Returns when none is open.
    pub async fn all_gone(&self) {
        loop {
            let gone = self.0.gone.notified();
            let mut gone = pin!(gone);
            gone.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            gone.await;
        }
    }

    /// Counts a new connection, for [`OpenConnection::serve`].
    pub(crate) fn enter(&self) -> OpenConnection {
        let activity = Rc::new(Activity::default());
        let mut open = self.0.open.borrow_mut();
        activity.closing.set(open.closing);
        let id = open.next;
        open.next += 1;
        open.by_id.insert(id, Rc::clone(&activity));
        OpenConnection {
            connections: self.clone(),
            activity,
            id,
        }
    }
}

/// A place among the open connections, given back when dropped.
pub(crate) struct OpenConnection {
    connections: Connections,
    activity: Rc<Activity>,
    id: u64,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let empty = {
            let mut open = self.connections.0.open.borrow_mut();
            open.by_id.remove(&self.id);
            open.by_id.is_empty()
        };
        if empty {
            self.connections.0.gone.notify_waiters();
        }
    }
}

/// State of a connection, for the handlers of its requests.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionState(Rc<Activity>);

impl ConnectionState {
    /// True if the body of the current request comes below the minimum rate. The handler is polled
    /// when that becomes true; if the handler goes on reading, the connection is cut.
    pub(crate) fn is_too_slow(&self) -> bool {
        self.0.too_slow.get()
    }

    /// The reason why the connection was cut.
    pub(crate) fn cut(&self) -> Option<CutReason> {
        self.0.cut.get()
    }

    /// The reason why the last bytes of the client are no request.
    pub(crate) fn malformed(&self) -> Option<Malformed> {
        self.0.malformed.get()
    }

    /// State of a connection without a watch.
    #[cfg(test)]
    pub(crate) fn unwatched() -> Self {
        Self(Rc::default())
    }
}

/// Stream of a connection.
pub trait ClientStream: AsyncRead + AsyncWrite + Unpin + 'static {}

impl<I: AsyncRead + AsyncWrite + Unpin + 'static> ClientStream for I {}

/// Handler of the requests of a connection, which never fails: any function of head and body with
/// an answer.
pub trait RequestHandler {
    /// Body of an answer. If it fails, the answer breaks off.
    type Body: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static;

    /// Answers a request.
    fn handle(
        &self,
        head: Box<Parts>,
        body: Incoming,
    ) -> impl Future<Output = Response<Self::Body>>;
}

impl<H, F, B> RequestHandler for H
where
    H: Fn(Box<Parts>, Incoming) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
{
    type Body = B;

    fn handle(&self, head: Box<Parts>, body: Incoming) -> impl Future<Output = Response<B>> {
        self(head, body)
    }
}

/// Serves one connection until either side is done with it. `leaving` says whether answers should
/// ask their client to close. Returns the stream if the body of an answer broke off: closed as it
/// is, it could look like the end of a whole one.
pub async fn serve<I: ClientStream>(
    io: I,
    connections: &Connections,
    leaving: impl Fn() -> bool,
    handler: impl RequestHandler,
) -> Option<I> {
    connections.enter().serve(io, leaving, handler).await
}

impl OpenConnection {
    /// The state of the connection, for its handler.
    pub(crate) fn state(&self) -> ConnectionState {
        ConnectionState(Rc::clone(&self.activity))
    }

    /// Serves this connection, see [`serve`].
    pub(crate) async fn serve<I: ClientStream>(
        &self,
        io: I,
        leaving: impl Fn() -> bool,
        handler: impl RequestHandler,
    ) -> Option<I> {
        let ConnectionSet {
            limits,
            large_reads,
            min_rate,
            ..
        } = &*self.connections.0;
        let activity = &self.activity;
        let mut io = MeteredStream::new(io, Rc::clone(activity), LargeReads::new(large_reads));
        let sleep = pin!(sleep(TICK));
        let mut timer = ConnectionTimer::new(activity, min_rate, *limits, leaving(), sleep);
        let requests = RequestLoop {
            activity,
            leaving,
            handler,
        };
        loop {
            // On the heap, so that a parked connection holds none of this memory.
            match Box::pin(requests.run(io, &mut timer)).await {
                RequestsEnd::Idle(idle) => io = idle,
                RequestsEnd::Broken(io) => return Some(io.into_inner()),
                RequestsEnd::Over => return None,
            }
            if !parked(&mut io, activity, &mut timer).await {
                return None;
            }
        }
    }
}

/// The requests of a connection, from one time in which it is parked to the next.
struct RequestLoop<'a, L, H> {
    activity: &'a Rc<Activity>,
    /// True if answers should ask their client to close.
    leaving: L,
    handler: H,
}

/// The state in which [`RequestLoop::run`] leaves a connection.
enum RequestsEnd<I> {
    Idle(MeteredStream<I>),
    /// The body of an answer broke off.
    Broken(MeteredStream<I>),
    Over,
}

impl<L: Fn() -> bool, H: RequestHandler> RequestLoop<'_, L, H> {
    /// Serves requests until the connection is over or idle.
    async fn run<I: ClientStream>(
        &self,
        io: MeteredStream<I>,
        timer: &mut ConnectionTimer<'_>,
    ) -> RequestsEnd<I> {
        let service = service_fn(|request| self.answer(request));
        let mut connection = limited().serve_connection(TokioIo::new(io), service);
        timer.start();
        let ended =
            poll_fn(|cx| timer.poll_requests(cx, |cx| Pin::new(&mut connection).poll(cx))).await;
        if matches!(ended, HyperEnd::Over) {
            return RequestsEnd::Over;
        }
        let parts = connection.into_parts();
        if let HyperEnd::Malformed(error) = &ended {
            let malformed = Malformed::of(error, &parts.read_buf);
            self.activity.malformed.set(Some(malformed));
            return RequestsEnd::Over;
        }
        let mut io = parts.io.into_inner();
        if matches!(ended, HyperEnd::Broken) {
            return RequestsEnd::Broken(io);
        }
        // hyper's buffer is gone, and with it the reason for large reads.
        io.read_small();
        io.put_back(parts.read_buf);
        RequestsEnd::Idle(io)
    }

    /// Answers a request, and follows it until hyper has all of the answer.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<TrackedBody<H::Body>>, Infallible>> {
        let (mut head, body) = request.into_parts();
        let odd = self.activity.count_request();
        if odd {
            head.extensions.insert(OddFraming);
        }
        // In a box, because each future that it goes through would keep a place for it.
        let head = Box::new(head);
        let handling = HandlingGuard::begin(self.activity);
        async move {
            // Called in here, so that its future is made where it will stay: it is large.
            let mut response = self.handler.handle(head, body).await;
            if odd || (self.leaving)() || self.activity.closing.get() {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            drop(handling);
            let delivery = DeliveryGuard::begin(self.activity);
            Ok(response.map(|body| TrackedBody {
                body,
                _delivery: delivery,
            }))
        }
    }
}

/// hyper with the limits that it can watch itself; its timer would be set for each request.
fn limited() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.half_close(false).header_read_timeout(None);
    builder
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER);
    builder
}

/// Waits until the client of an idle connection sends something; `false` if it does not.
async fn parked<I: ClientStream>(
    io: &mut MeteredStream<I>,
    activity: &Activity,
    timer: &mut ConnectionTimer<'_>,
) -> bool {
    timer.start_parked();
    activity.parked.set(true);
    let woken = poll_fn(|cx| {
        activity.waker.register(cx.waker());
        if activity.evicted.get() {
            return Poll::Ready(ParkedEnd::TimedOut);
        }
        match io.poll_ahead(cx) {
            // Whoever has said something is answered, even if all the others are told to leave.
            Poll::Ready(true) => Poll::Ready(ParkedEnd::Woken),
            Poll::Ready(false) => Poll::Ready(ParkedEnd::Closing),
            Poll::Pending if activity.closing.get() => Poll::Ready(ParkedEnd::Closing),
            Poll::Pending => timer.poll_parked(cx).map(|()| ParkedEnd::TimedOut),
        }
    });
    let woken = woken.await;
    activity.parked.set(false);
    match woken {
        ParkedEnd::Woken => true,
        ParkedEnd::TimedOut => false,
        ParkedEnd::Closing => {
            let _ = tokio::io::AsyncWriteExt::shutdown(io).await;
            false
        }
    }
}

/// End of the time in which a connection is parked.
enum ParkedEnd {
    /// Its client has said something.
    Woken,
    /// The client or a stop closes the connection.
    Closing,
    /// The connection was idle for too long, or was evicted.
    TimedOut,
}

/// Marks a request as being handled; a panic or a hang-up ends it too.
struct HandlingGuard<'a>(&'a Activity);

impl<'a> HandlingGuard<'a> {
    fn begin(activity: &'a Activity) -> Self {
        activity.handling.update(|count| count + 1);
        Self(activity)
    }
}

impl Drop for HandlingGuard<'_> {
    fn drop(&mut self) {
        self.0.handling.update(|count| count - 1);
        self.0.read_when_idle.set(self.0.read.get());
    }
}

/// Marks a body as being sent.
struct DeliveryGuard(Rc<Activity>);

impl DeliveryGuard {
    fn begin(activity: &Rc<Activity>) -> Self {
        activity.delivering.update(|count| count + 1);
        Self(Rc::clone(activity))
    }
}

impl Drop for DeliveryGuard {
    fn drop(&mut self) {
        self.0.delivering.update(|count| count - 1);
        self.0.wake_half_closed();
    }
}

pin_project! {
    /// The body of an answer; gone when hyper has all of it.
    struct TrackedBody<B> {
        #[pin]
        body: B,
        _delivery: DeliveryGuard,
    }
}

impl<B: Body> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
