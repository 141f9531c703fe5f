//! The stream to WeChat, TCP or TLS, with counters and with access to its socket.
//!
//! hyper owns the connection while it speaks; the pool keeps the socket beside it to see whether
//! the other end has hung up, and the counters to know whether a failed request was written or
//! answered at all, and whether an answer came before its request was all sent. What follows from
//! that is for the pool to decide.

use std::{
    cell::Cell,
    io::{self, Read as _},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// A TCP stream whose socket the pool can examine while hyper reads and writes.
#[derive(Debug)]
pub(super) struct SharedTcp(pub(super) Rc<TcpStream>);

impl AsyncRead for SharedTcp {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            let mut got = 0;
            let read = self.0.try_io(Interest::READABLE, || {
                got = (&*socket2::SockRef::from(&*self.0)).read(room)?;
                // Less than there was room for: the socket is empty. Saying so here saves the
                // system call that would find it out.
                if 0 < got && got < room.len() {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    Ok(())
                }
            });
            match read {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                Err(_) if got == 0 => {}
                Ok(()) | Err(_) => {
                    buf.advance(got);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl SharedTcp {
    fn poll_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for SharedTcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |tcp| tcp.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |tcp| tcp.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = socket2::SockRef::from(&*self.0);
        Poll::Ready(match socket.shutdown(std::net::Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}

/// True if the other end has neither closed nor sent anything unasked.
pub(super) fn is_quiet(tcp: &TcpStream) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let peeked = socket2::SockRef::from(tcp).peek(&mut byte);
    matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Bytes of HTTP that went over a connection, TLS not counted.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    read: Cell<u64>,
    written: Cell<u64>,
    /// Bytes that had been read when the latest request began.
    read_before: Cell<u64>,
    /// Some of a request was written after its answer had begun. An interim answer counts too:
    /// nothing that is sent asks for one.
    overlapped: Cell<bool>,
}

/// Bytes of a connection up to a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ByteCounts {
    pub(super) read: u64,
    pub(super) written: u64,
}

impl Traffic {
    pub(super) fn mark(&self) -> ByteCounts {
        ByteCounts {
            read: self.read.get(),
            written: self.written.get(),
        }
    }

    /// Marks the begin of a request: bytes read from here on answer it.
    pub(super) fn begin(&self) -> ByteCounts {
        let mark = self.mark();
        self.read_before.set(mark.read);
        mark
    }

    /// True if an answer began before all of its request was written.
    pub(super) fn has_overlapped(&self) -> bool {
        self.overlapped.get()
    }

    fn count_written(&self, count: usize) {
        self.written.update(|written| written + count as u64);
        if self.read.get() > self.read_before.get() {
            self.overlapped.set(true);
        }
    }
}

/// Stream that counts the bytes of HTTP.
#[derive(Debug)]
pub(super) struct CountedStream {
    wire: Transport,
    traffic: Rc<Traffic>,
    /// All that came has been read, so there is nothing to look for until the socket has more.
    /// hyper asks several times for each answer, and each time TLS would go all the way down to
    /// find nothing.
    drained: bool,
    /// Nothing was written since the last flush.
    flushed: bool,
}

#[derive(Debug)]
enum Transport {
    Plain(SharedTcp),
    Tls(Box<TlsStream<SharedTcp>>),
}

impl CountedStream {
    pub(super) fn plain(tcp: SharedTcp) -> Self {
        Self::new(Transport::Plain(tcp))
    }

    pub(super) fn tls(tls: TlsStream<SharedTcp>) -> Self {
        Self::new(Transport::Tls(Box::new(tls)))
    }

    fn new(wire: Transport) -> Self {
        Self {
            wire,
            traffic: Rc::default(),
            drained: false,
            flushed: false,
        }
    }

    pub(super) fn traffic(&self) -> Rc<Traffic> {
        Rc::clone(&self.traffic)
    }

    fn socket(&self) -> &TcpStream {
        match &self.wire {
            Transport::Plain(tcp) => &tcp.0,
            Transport::Tls(tls) => &tls.get_ref().0.0,
        }
    }

    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.flushed = false;
        if let Poll::Ready(Ok(count)) = &written {
            self.traffic.count_written(*count);
        }
        written
    }
}

macro_rules! wire {
    ($stream:expr, $io:ident => $call:expr) => {
        match &mut $stream.wire {
            Transport::Plain($io) => $call,
            Transport::Tls($io) => $call,
        }
    };
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.drained {
            ready!(self.socket().poll_read_ready(cx))?;
        }
        let before = buf.filled().len();
        let polled = wire!(self, io => Pin::new(io).poll_read(cx, buf));
        self.drained = polled.is_pending();
        let new = (buf.filled().len() - before) as u64;
        self.traffic.read.update(|read| read + new);
        polled
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = wire!(self, io => Pin::new(io).poll_write(cx, buf));
        self.count(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = wire!(self, io => Pin::new(io).poll_write_vectored(cx, bufs));
        self.count(polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.flushed {
            ready!(wire!(self, io => Pin::new(io).poll_flush(cx)))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        wire!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
