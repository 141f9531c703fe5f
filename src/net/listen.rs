//! Bound listeners that hand out plain sockets.
//!
//! An address is taken first and answered later, on whatever runtime will do so. A socket that was
//! accepted there can move to the runtime of another thread. An accept error (out of file
//! descriptors, say) is logged, waited out and never ends the listener.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockFilter, SockRef};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::Instant,
};

use super::{
    address::{ListenAddr, Peer},
    bind::{self, BindError, SocketFile},
};

/// Time between two log lines about connections that cannot be accepted.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// A classic BPF program that drops what begins a TCP connection (SYN without ACK, in byte 13 of
/// the TCP header) and lets everything else through, handshakes under way among it.
const DROP_SYN: [SockFilter; 5] = [
    SockFilter::new(0x30, 0, 0, 13),       // ldb [13]
    SockFilter::new(0x54, 0, 0, 0x12),     // and #SYN|ACK
    SockFilter::new(0x15, 0, 1, 0x02),     // jeq #SYN
    SockFilter::new(0x06, 0, 0, 0),        // ret #0: drop
    SockFilter::new(0x06, 0, 0, u32::MAX), // ret #-1: keep
];

/// A listener that is bound: connections wait until it is started.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: ListenerSocket<StdTcpListener, StdUnixListener>,
    address: BoundAddr,
    custody: Custody,
}

/// Party that closes the socket of a listener for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Custody {
    /// This process, unless another wxgate replaces it.
    Own,
    /// The service manager, which passes the socket to the next process too.
    Manager,
}

#[derive(Debug)]
enum ListenerSocket<T, U> {
    Tcp(T),
    Unix(U, Option<SocketFile>),
}

/// A listener that takes connections, watched by the runtime in which it was started.
#[derive(Debug)]
pub(crate) struct Acceptor {
    socket: ListenerSocket<TcpListener, UnixListener>,
    address: BoundAddr,
    custody: Custody,
    errors: AcceptErrors,
}

/// Errors of `accept` (no descriptors left, say): waited out, and told once a minute.
#[derive(Debug, Default)]
struct AcceptErrors {
    told: Option<Instant>,
    untold: u64,
}

/// Address of a bound listener, port included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoundAddr {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

impl BoundAddr {
    /// The TCP address, if it is one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for BoundAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Watched by the runtime that accepted it.
    pub stream: ClientStream,
    /// Client.
    pub peer: Peer,
}

/// An accepted connection on its way to another runtime.
#[derive(Debug)]
pub(crate) struct DetachedConnection {
    socket: Socket,
    peer: Peer,
}

#[derive(Debug)]
enum Socket {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

impl Accepted {
    /// Takes the connection from the runtime that accepted it.
    ///
    /// # Errors
    /// When that runtime does not let it go.
    pub(crate) fn detach(self) -> io::Result<DetachedConnection> {
        let socket = match self.stream {
            ClientStream::Tcp(stream) => Socket::Tcp(stream.into_std()?),
            ClientStream::Unix(stream) => Socket::Unix(stream.into_std()?),
        };
        Ok(DetachedConnection {
            socket,
            peer: self.peer,
        })
    }
}

impl DetachedConnection {
    /// Registers the connection with the current runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it (no file descriptors left, say).
    pub(crate) fn watch(self) -> io::Result<Accepted> {
        let stream = match self.socket {
            Socket::Tcp(socket) => ClientStream::Tcp(TcpStream::from_std(socket)?),
            Socket::Unix(socket) => ClientStream::Unix(UnixStream::from_std(socket)?),
        };
        Ok(Accepted {
            stream,
            peer: self.peer,
        })
    }
}

impl Listener {
    /// Takes the address.
    ///
    /// # Errors
    /// See [`BindError`].
    pub(crate) fn bind(address: &ListenAddr) -> Result<Self, BindError> {
        match address {
            ListenAddr::Tcp(address) => {
                let listener = bind::tcp(address)?;
                let address = listener.local_addr().map_err(BindError::Other)?;
                Ok(Self {
                    socket: ListenerSocket::Tcp(listener),
                    address: BoundAddr::Tcp(address),
                    custody: Custody::Own,
                })
            }
            ListenAddr::Unix(path) => {
                let (listener, file) = bind::unix(path)?;
                Ok(Self {
                    socket: ListenerSocket::Unix(listener, Some(file)),
                    address: BoundAddr::Unix(path.clone()),
                    custody: Custody::Own,
                })
            }
        }
    }

    /// Goes on with a socket that another process has bound.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub(super) fn adopt(socket: OwnedFd, address: BoundAddr, custody: Custody) -> io::Result<Self> {
        let socket = match &address {
            BoundAddr::Tcp(_) => {
                let listener = StdTcpListener::from(socket);
                listener.set_nonblocking(true)?;
                bind::set_options(&SockRef::from(&listener))?;
                ListenerSocket::Tcp(listener)
            }
            BoundAddr::Unix(path) => {
                let listener = StdUnixListener::from(socket);
                listener.set_nonblocking(true)?;
                let file = (custody == Custody::Own).then(|| SocketFile::of(path));
                ListenerSocket::Unix(listener, file)
            }
        };
        Ok(Self {
            socket,
            address,
            custody,
        })
    }

    /// Duplicates the socket, for the process that replaces this one.
    ///
    /// # Errors
    /// When there is no file descriptor left.
    pub(crate) fn duplicate(&self) -> io::Result<(OwnedFd, Custody)> {
        let socket = match &self.socket {
            ListenerSocket::Tcp(listener) => listener.as_fd().try_clone_to_owned()?,
            ListenerSocket::Unix(listener, _) => listener.as_fd().try_clone_to_owned()?,
        };
        Ok((socket, self.custody))
    }

    /// Bound address.
    pub(crate) fn address(&self) -> &BoundAddr {
        &self.address
    }

    /// Begins to take connections. Must be called inside the runtime that will do so.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub(crate) fn start(self) -> io::Result<Acceptor> {
        let socket = match self.socket {
            ListenerSocket::Tcp(socket) => ListenerSocket::Tcp(TcpListener::from_std(socket)?),
            ListenerSocket::Unix(socket, file) => {
                ListenerSocket::Unix(UnixListener::from_std(socket)?, file)
            }
        };
        Ok(Acceptor {
            socket,
            address: self.address,
            custody: self.custody,
            errors: AcceptErrors::default(),
        })
    }

    /// The next connection that the kernel holds, if any, without waiting for one. Before
    /// [`Listener::start`], or after [`Acceptor::stop`].
    ///
    /// # Errors
    /// Errors of `accept`; the kernel still holds the connection then.
    pub(crate) fn take_waiting(&self) -> io::Result<Option<DetachedConnection>> {
        loop {
            let taken = match &self.socket {
                ListenerSocket::Tcp(listener) => listener.accept().and_then(|(socket, peer)| {
                    socket.set_nonblocking(true)?;
                    Ok(DetachedConnection {
                        socket: Socket::Tcp(socket),
                        peer: Peer::Ip(peer.ip()),
                    })
                }),
                ListenerSocket::Unix(listener, _) => listener.accept().and_then(|(socket, _)| {
                    socket.set_nonblocking(true)?;
                    Ok(DetachedConnection {
                        socket: Socket::Unix(socket),
                        peer: Peer::Unix,
                    })
                }),
            };
            return match taken {
                Ok(unwatched) => Ok(Some(unwatched)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                // The client has gone again, or a signal came: the next one may be waiting.
                Err(error) if is_passing(&error) => continue,
                Err(error) => Err(error),
            };
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

impl Acceptor {
    /// The next connection. Errors are waited out, so this only returns with a connection in hand.
    pub(crate) async fn accept(&mut self) -> Accepted {
        let mut wait = Duration::from_millis(5);
        loop {
            match self.try_accept().await {
                Ok(accepted) => return accepted,
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    self.errors.tell(&self.address, &error);
                    // The connection stays in the queue, so that without a pause this would spin.
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    /// Lets no new connection into the queue, as far as the system can do that: a client that comes
    /// from now on is refused, or asks again and meets a successor. Connections in the queue, and
    /// those whose handshake is under way, can still be accepted.
    pub(crate) fn close_entrance(&mut self) {
        match &mut self.socket {
            ListenerSocket::Tcp(listener) => {
                // Between the last `accept` and the close, a connection could enter the queue and
                // be reset by the kernel although its client had seen it succeed.
                if let Err(error) = SockRef::from(&*listener).attach_filter(&DROP_SYN) {
                    tracing::debug!(%error, "connections cannot be kept out of the queue");
                }
            }
            ListenerSocket::Unix(_, file) => drop(file.take()),
        }
    }

    /// Returns to a listener that no runtime watches; its queue stays as it is.
    ///
    /// # Errors
    /// When the runtime does not let it go.
    pub(crate) fn stop(self) -> io::Result<Listener> {
        let socket = match self.socket {
            ListenerSocket::Tcp(socket) => ListenerSocket::Tcp(socket.into_std()?),
            ListenerSocket::Unix(socket, file) => ListenerSocket::Unix(socket.into_std()?, file),
        };
        Ok(Listener {
            socket,
            address: self.address,
            custody: self.custody,
        })
    }

    /// True if the queue of the listener outlives this process, so that it must be left as it is.
    pub(crate) fn is_the_managers(&self) -> bool {
        self.custody == Custody::Manager
    }

    /// Takes no more connections, and leaves the queue and the socket file to other processes that
    /// listen on the same socket.
    pub(crate) fn leave(self) {
        if let ListenerSocket::Unix(_, Some(file)) = self.socket {
            file.leave();
        }
    }

    async fn try_accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            ListenerSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Accepted {
                    stream: ClientStream::Tcp(stream),
                    peer: Peer::Ip(peer.ip()),
                })
            }
            ListenerSocket::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted {
                    stream: ClientStream::Unix(stream),
                    peer: Peer::Unix,
                })
            }
        }
    }
}

impl AcceptErrors {
    fn tell(&mut self, listener: &BoundAddr, error: &io::Error) {
        let now = Instant::now();
        if self.told.is_some_and(|told| now - told < WARN_EVERY) {
            self.untold += 1;
            return;
        }
        tracing::warn!(%listener, %error, again = self.untold,
            "cannot accept connections; is the file descriptor limit too low?");
        *self = Self {
            told: Some(now),
            untold: 0,
        };
    }
}

/// A connection that the current runtime watches.
#[derive(Debug)]
pub(crate) enum ClientStream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl ClientStream {
    /// Has the other end see a reset where it would see a clean end. A Unix socket knows none.
    pub(crate) fn reset_on_close(&self) {
        if let Self::Tcp(stream) = self {
            // Of no use if the connection has gone already, and it fails only then.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl ClientStream {
    /// Waits for the first bytes and returns how many there are, without taking them.
    pub(crate) async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.peek(bytes).await,
            Self::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            ClientStream::Tcp($inner) => $call,
            ClientStream::Unix($inner) => $call,
        }
    };
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, s => Pin::new(s).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}
