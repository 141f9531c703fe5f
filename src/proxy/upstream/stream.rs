//! The stream to WeChat, TCP or TLS, and its socket.
//!
//! Says when there is nothing to read without going down through TLS, and hands out bytes that came
//! where they lie. Knows nothing of HTTP.

use std::{
    io::{self, IoSlice, Read as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncBufRead as _, AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// A TCP stream that saves the system calls which would only find the socket empty.
#[derive(Debug)]
pub(super) struct Tcp {
    socket: TcpStream,
    /// Any byte was written since the latest request began. Noted here, since TLS may write a part
    /// of a request and return an error for all of it.
    has_written: bool,
}

impl Tcp {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            has_written: false,
        }
    }

    fn poll_read_into(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut got = 0;
            let read = self.socket.try_io(Interest::READABLE, || {
                got = (&*socket2::SockRef::from(&self.socket)).read(room)?;
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
                Err(_) if got == 0 => ready!(self.socket.poll_read_ready(cx))?,
                Ok(()) | Err(_) => return Poll::Ready(Ok(got)),
            }
        }
    }

    fn poll_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match write(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.has_written |= matches!(done, Ok(1..));
                    return Poll::Ready(done);
                }
            }
            ready!(self.socket.poll_write_ready(cx))?;
        }
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let got = ready!(self.poll_read_into(cx, buf.initialize_unfilled()))?;
        buf.advance(got);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_with(cx, |tcp| tcp.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_with(cx, |tcp| tcp.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = socket2::SockRef::from(&self.socket);
        Poll::Ready(match socket.shutdown(std::net::Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}

/// Stream to WeChat.
#[derive(Debug)]
pub(super) enum UpstreamStream {
    Plain(Tcp),
    Tls(Box<TlsStream<Tcp>>),
}

impl UpstreamStream {
    pub(super) fn tls(tls: TlsStream<Tcp>) -> Self {
        Self::Tls(Box::new(tls))
    }

    fn tcp(&self) -> &Tcp {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Notes that a request begins.
    pub(super) fn begin_request(&mut self) {
        match self {
            Self::Plain(tcp) => tcp.has_written = false,
            Self::Tls(tls) => tls.get_mut().0.has_written = false,
        }
    }

    /// True if any byte was written since the latest request began, even one of TLS.
    pub(super) fn has_written(&self) -> bool {
        self.tcp().has_written
    }

    /// True if the other end has neither closed nor sent anything unasked, as the kernel tells.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = socket2::SockRef::from(&self.tcp().socket).peek(&mut byte);
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Bytes that came, empty at the end of the stream. Those of a plain stream are put into
    /// `buffer`. They come again until they are [consumed](Self::consume).
    pub(super) fn poll_fill<'s>(
        &'s mut self,
        cx: &mut Context<'_>,
        buffer: &'s mut [u8],
    ) -> Poll<io::Result<&'s [u8]>> {
        match self {
            Self::Plain(tcp) => {
                let got = ready!(tcp.poll_read_into(cx, buffer))?;
                Poll::Ready(Ok(buffer.get(..got).unwrap_or_default()))
            }
            Self::Tls(tls) => {
                let (tcp, session) = tls.get_ref();
                // Neither text nor the end is waiting in the session, so only the socket can bring
                // something. Asking it here saves the way down.
                if session.wants_read() {
                    ready!(tcp.socket.poll_read_ready(cx))?;
                }
                Pin::new(&mut **tls).poll_fill_buf(cx)
            }
        }
    }

    /// Takes bytes away that [`Self::poll_fill`] has handed out: all of them.
    pub(super) fn consume(&mut self, count: usize) {
        if let Self::Tls(tls) = self {
            Pin::new(&mut **tls).consume(count);
        }
    }

    /// Writes the beginning of two pieces that follow each other.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        second: &[u8],
    ) -> Poll<io::Result<usize>> {
        let both = [IoSlice::new(first), IoSlice::new(second)];
        match self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, &both),
            Self::Tls(tls) if second.is_empty() => Pin::new(&mut **tls).poll_write(cx, first),
            Self::Tls(tls) if first.is_empty() => Pin::new(&mut **tls).poll_write(cx, second),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, &both),
        }
    }

    /// Writes what TLS still holds.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tls(tls) if tls.get_ref().1.wants_write() => Pin::new(&mut **tls).poll_flush(cx),
            Self::Plain(_) | Self::Tls(_) => Poll::Ready(Ok(())),
        }
    }
}
