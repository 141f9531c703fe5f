//! One HTTP/1.1 connection from its first byte to its close, with the limits that hyper does not have.
//!
//! hyper parses and frames; this file watches: a client that says nothing, never finishes its head, stops reading or
//! just idles is cut. One coarse timer per connection does all of it, so that a request costs no timer. What is
//! answered is the caller's business.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use super::framing::FramingWatch;

/// How often a connection is looked at. Limits are multiples of it, so each is reached up to one tick late.
const TICK: Duration = Duration::from_secs(5);
/// No first byte, or no complete first head: closed after 5 to 10 s.
const FIRST_HEAD_TICKS: u32 = 2;
/// A later head that has begun and does not end: closed after 10 to 15 s.
const HEAD_TICKS: u32 = 3;
/// Keep-alive without a request, or a response that makes no progress: closed after 70 to 75 s.
const IDLE_TICKS: u32 = 15;
/// A handler that neither reads nor writes for so long is stuck behind every timeout of its own.
const HANDLER_TICKS: u32 = 36;

/// How long the rest of a request is thrown away after the last answer. Closing earlier would reset the connection under
/// a client that still sends, and its answer with it.
const LINGER: Duration = Duration::from_secs(2);

/// The most header lines of a request; more is answered 431.
const MAX_HEADERS: usize = 100;
/// The most bytes of a request head; more is answered 431.
const MAX_HEAD: usize = 64 * 1024;

/// A mark on requests that say twice how long they are, or in a way that another parser could read differently. They
/// must be refused; their connection is closed behind the answer.
#[derive(Debug, Clone, Copy)]
pub struct OddFraming;

/// What the timer looks at. Written by one thread; atomics only because the connection may move between threads.
#[derive(Debug, Default)]
struct Activity {
    requests: AtomicU64,
    handling: AtomicU32,
    read: AtomicU64,
    read_when_idle: AtomicU64,
    written: AtomicU64,
    /// The first request that [`FramingWatch`] found odd; 0 for none.
    odd: AtomicU64,
    closing: AtomicBool,
    waker: AtomicWaker,
}

/// The connections of one listener or worker, so that they can be told to finish and waited for.
#[derive(Debug, Default, Clone)]
pub struct Connections(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Open>,
    gone: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    closing: bool,
    by_id: HashMap<u64, Arc<Activity>>,
}

impl Connections {
    /// How many are open.
    pub fn count(&self) -> usize {
        self.lock().by_id.len()
    }

    /// Lets each finish what it is doing and closes the idle ones; later ones are closed after one answer.
    pub fn close_gracefully(&self) {
        let mut open = self.lock();
        open.closing = true;
        for activity in open.by_id.values() {
            activity.closing.store(true, Relaxed);
            activity.waker.wake();
        }
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

    fn enter(&self) -> Entered {
        let activity = Arc::new(Activity::default());
        let mut open = self.lock();
        activity.closing.store(open.closing, Relaxed);
        let id = open.next;
        open.next += 1;
        open.by_id.insert(id, Arc::clone(&activity));
        Entered { connections: self.clone(), activity, id }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the open connections, given back when dropped.
struct Entered {
    connections: Connections,
    activity: Arc<Activity>,
    id: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let empty = {
            let mut open = self.connections.lock();
            open.by_id.remove(&self.id);
            open.by_id.is_empty()
        };
        if empty {
            self.connections.0.gone.notify_waiters();
        }
    }
}

/// Serves one connection until either side is done with it. `handler` never fails; `leaving` says whether answers
/// should ask their client to close.
pub async fn serve<I, H, F, B>(io: I, connections: &Connections, leaving: impl Fn() -> bool, handler: H)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let entered = connections.enter();
    let activity = &entered.activity;
    let service = service_fn(|mut request: Request<Incoming>| {
        let number = activity.requests.fetch_add(1, Relaxed) + 1;
        let odd = (1..=number).contains(&activity.odd.load(Relaxed));
        if odd {
            request.extensions_mut().insert(OddFraming);
        }
        let handling = Handling::begin(activity);
        let answer = handler(request);
        let leaving = &leaving;
        async move {
            let mut response = answer.await;
            if odd || leaving() || activity.closing.load(Relaxed) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            drop(handling);
            Ok::<_, Infallible>(response)
        }
    });
    let framing = FramingWatch::default();
    let io = TokioIo::new(Metered { io, activity: Arc::clone(activity), framing, lingering: None });
    let mut connection = pin!(
        http1::Builder::new()
            .half_close(false)
            .header_read_timeout(None)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(io, service)
    );
    let mut watch = Watch::default();
    let mut tick = pin!(tokio::time::sleep(TICK));
    // Closing a connection that comes late before it has said anything would lose its request.
    let mut told = activity.closing.load(Relaxed);
    poll_fn(|cx| {
        activity.waker.register(cx.waker());
        if !told && activity.closing.load(Relaxed) {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended early");
            }
            return Poll::Ready(());
        }
        while tick.as_mut().poll(cx).is_ready() {
            if watch.must_close(activity) {
                return Poll::Ready(());
            }
            tick.as_mut().reset(tokio::time::Instant::now() + TICK);
        }
        Poll::Pending
    })
    .await;
}

/// Marks a request as being handled; a panic or a hang-up ends it too.
struct Handling<'a>(&'a Activity);

impl<'a> Handling<'a> {
    fn begin(activity: &'a Activity) -> Self {
        activity.handling.fetch_add(1, Relaxed);
        Self(activity)
    }
}

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        self.0.handling.fetch_sub(1, Relaxed);
        self.0.read_when_idle.store(self.0.read.load(Relaxed), Relaxed);
    }
}

/// What was seen at the last tick.
#[derive(Debug, Default)]
struct Watch {
    requests: u64,
    read: u64,
    written: u64,
    quiet: u32,
    head: u32,
}

impl Watch {
    fn must_close(&mut self, activity: &Activity) -> bool {
        let (requests, read, written) =
            (activity.requests.load(Relaxed), activity.read.load(Relaxed), activity.written.load(Relaxed));
        let still = requests == self.requests && read == self.read && written == self.written;
        let handling = activity.handling.load(Relaxed) > 0;
        let new_request = requests != self.requests;
        let answering = written != self.written && !new_request;
        (self.requests, self.read, self.written) = (requests, read, written);
        self.quiet = if still { self.quiet + 1 } else { 0 };
        if handling {
            self.head = 0;
            return self.quiet >= HANDLER_TICKS;
        }
        let head_begun = requests == 0 || read > activity.read_when_idle.load(Relaxed);
        // Bytes that came behind a request wait while its answer goes on.
        self.head = if !head_begun || answering {
            0
        } else if new_request {
            1
        } else {
            self.head + 1
        };
        let head_limit = if requests == 0 { FIRST_HEAD_TICKS } else { HEAD_TICKS };
        self.head >= head_limit || self.quiet >= IDLE_TICKS
    }
}

/// Counts what goes through, and closes in a way that leaves the client time to read.
struct Metered<I> {
    io: I,
    activity: Arc<Activity>,
    framing: FramingWatch,
    /// Since the sending side was closed.
    lingering: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Metered<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let this = &mut *self;
        let new = &buf.filled()[before..];
        this.activity.read.fetch_add(new.len() as u64, Relaxed);
        if let Some(number) = this.framing.feed(new) {
            this.activity.odd.store(number, Relaxed);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> Metered<I> {
    fn count(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &polled {
            self.activity.written.fetch_add(*count as u64, Relaxed);
        }
        polled
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Metered<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            self.lingering = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        self.poll_linger(cx).map(Ok)
    }
}

impl<I: AsyncRead + Unpin> Metered<I> {
    /// Ends with the client's side of the connection, and at the latest after [`LINGER`].
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scrap = [std::mem::MaybeUninit::uninit(); 8 * 1024];
        loop {
            if self.lingering.as_mut().is_none_or(|lingering| lingering.as_mut().poll(cx).is_ready()) {
                return Poll::Ready(());
            }
            let mut scrap = ReadBuf::uninit(&mut scrap);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut scrap)) {
                Ok(()) if !scrap.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}
