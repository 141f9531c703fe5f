//! The wire of a client: counted, followed request by request, and closed in a way that leaves the
//! client time to read.
//!
//! Knows no limits; `activity` judges the counts.

use std::{
    cell::Cell,
    io,
    mem::MaybeUninit,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};

use super::{super::framing::FramingWatch, activity::Activity};

/// Time for which the rest of a request is thrown away after the last answer. Closing earlier would reset
/// the connection under a client that still sends, and its answer with it.
const LINGER: Duration = Duration::from_secs(2);

/// The first look at what a parked connection has to say, in bytes.
const PEEK: usize = 1024;

/// The most bytes of a read of a connection that may not read in large pieces. hyper doubles its
/// buffer at each read that fills it and keeps it until the request is over; below 16 KiB, it stays
/// at that.
const MAX_SMALL_READ: u64 = 16 * 1024 - 1;

/// The right to read in large pieces, which a fast upload is cheaper with. A few connections have
/// it at a time: a thousand slow uploads would hold as many large buffers.
pub(super) struct LargeReads {
    left: Rc<Cell<usize>>,
    held: bool,
}

impl LargeReads {
    pub(super) fn new(left: &Rc<Cell<usize>>) -> Self {
        Self {
            left: Rc::clone(left),
            held: false,
        }
    }

    fn acquire(&mut self) {
        if let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            self.held = true;
        }
    }

    fn release(&mut self) {
        if std::mem::take(&mut self.held) {
            self.left.update(|left| left + 1);
        }
    }
}

impl Drop for LargeReads {
    fn drop(&mut self) {
        self.release();
    }
}

/// Stream of a client that counts bytes and follows requests.
pub(super) struct MeteredStream<I> {
    /// With the limit of the next read.
    io: Take<I>,
    large: LargeReads,
    activity: Rc<Activity>,
    framing: FramingWatch,
    /// Bytes that were counted and that hyper has not read.
    ahead: Bytes,
    /// Since the sending side was closed.
    lingering: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<I: AsyncRead> MeteredStream<I> {
    pub(super) fn new(io: I, activity: Rc<Activity>, large: LargeReads) -> Self {
        Self {
            io: io.take(MAX_SMALL_READ),
            large,
            activity,
            framing: FramingWatch::default(),
            ahead: Bytes::new(),
            lingering: None,
        }
    }

    pub(super) fn into_inner(self) -> I {
        self.io.into_inner()
    }

    /// Gives back the right to read in large pieces.
    pub(super) fn read_small(&mut self) {
        self.large.release();
    }

    /// Bytes that were read and not used. Behind them nothing has been put back yet.
    pub(super) fn put_back(&mut self, unused: Bytes) {
        self.ahead = unused;
    }
}

impl<I: AsyncRead + Unpin> MeteredStream<I> {
    /// Reads the first bytes of the next request and keeps them for hyper; `false` at the end of the
    /// stream.
    pub(super) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.ahead.is_empty() {
            let mut bytes = [MaybeUninit::uninit(); PEEK];
            let mut bytes = ReadBuf::uninit(&mut bytes);
            if ready!(Pin::new(&mut *self).poll_read(cx, &mut bytes)).is_err() {
                return Poll::Ready(false);
            }
            self.ahead = Bytes::copy_from_slice(bytes.filled());
        }
        Poll::Ready(!self.ahead.is_empty())
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for MeteredStream<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.ahead.is_empty() {
            let count = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..count]);
            this.ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        // hyper's first buffer is smaller than the limit, and most requests fit into that.
        let polled = if this.large.held || (buf.remaining() as u64) < MAX_SMALL_READ {
            Pin::new(this.io.get_mut()).poll_read(cx, buf)
        } else {
            this.io.set_limit(MAX_SMALL_READ);
            let polled = Pin::new(&mut this.io).poll_read(cx, buf);
            if this.io.limit() == 0 {
                this.large.acquire();
            }
            polled
        };
        this.activity.starved.set(polled.is_pending());
        let new = &buf.filled()[before..];
        let is_end = matches!(polled, Poll::Ready(Ok(()))) && new.is_empty();
        if is_end && buf.remaining() > 0 && this.withholds_end() {
            this.activity.half_closed.set(true);
            return Poll::Pending;
        }
        this.activity.read.update(|read| read + new.len() as u64);
        if let Some(number) = this.framing.feed(new) {
            this.activity.odd.set(number);
        }
        this.activity
            .between
            .set(this.framing.is_between_requests());
        polled
    }
}

impl<I> MeteredStream<I> {
    /// True if the end of the client's bytes must be kept from hyper, which would drop the request. A client that closes its sending side behind a whole request (`nc -N`) still reads
    /// the answer; one that has gone looks the same until something is written to it. An end inside
    /// a request is passed on: the rest will never come.
    fn withholds_end(&self) -> bool {
        self.framing.is_between_requests() && self.activity.is_busy()
    }
}

impl<I: AsyncWrite + Unpin> MeteredStream<I> {
    fn count(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.activity.blocked.set(polled.is_pending());
        if let Poll::Ready(Ok(count)) = &polled {
            self.activity
                .written
                .update(|written| written + *count as u64);
        }
        // Also when nothing was taken: hyper has bytes that the client has not.
        self.activity.unflushed.set(true);
        polled
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for MeteredStream<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(self.io.get_mut()).poll_write(cx, buf);
        self.count(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(self.io.get_mut()).poll_write_vectored(cx, bufs);
        self.count(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(self.io.get_mut()).poll_flush(cx))?;
        // hyper flushes at each poll, so only a flush that changes something may wake it again.
        if self.activity.unflushed.get() {
            self.activity.unflushed.set(false);
            self.activity.wake_half_closed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(self.io.get_mut()).poll_shutdown(cx))?;
            self.activity.shut.set(true);
            if self.framing.is_over() {
                return Poll::Ready(Ok(()));
            }
            self.lingering = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        self.poll_linger(cx).map(Ok)
    }
}

impl<I: AsyncRead + Unpin> MeteredStream<I> {
    /// Ends with the client's side of the connection, and at the latest after [`LINGER`].
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scrap = [MaybeUninit::uninit(); 8 * 1024];
        loop {
            if self
                .lingering
                .as_mut()
                .is_none_or(|lingering| lingering.as_mut().poll(cx).is_ready())
            {
                return Poll::Ready(());
            }
            let mut scrap = ReadBuf::uninit(&mut scrap);
            match ready!(Pin::new(self.io.get_mut()).poll_read(cx, &mut scrap)) {
                Ok(()) if !scrap.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}
