//! Bound listeners that hand out plain sockets.
//!
//! An address is taken first and answered later, on whatever runtime will do so. A socket that was
//! accepted there can move to the runtime of another thread. An accept error (out of file
//! descriptors, say) is logged, waited out and never ends the listener.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream, ToSocketAddrs},
    os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

use super::address::{ListenAddr, Peer};

/// How many connections the kernel may hold for us before they are accepted.
const BACKLOG: i32 = 4096;

/// The most bytes of an answer that the kernel holds beyond what it may send at the moment.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 64 * 1024;

/// A listener that is bound: connections wait until it is started.
#[derive(Debug)]
pub struct Listener {
    socket: Bound<StdTcpListener, StdUnixListener>,
    address: BoundAddr,
}

#[derive(Debug)]
enum Bound<T, U> {
    Tcp(T),
    Unix(U, SocketFile),
}

/// A listener that takes connections, watched by the runtime in which it was started.
#[derive(Debug)]
pub struct Acceptor {
    socket: Bound<TcpListener, UnixListener>,
    address: BoundAddr,
}

/// Where a listener really stands, port included.
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

/// Removes the socket file when the listener goes.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// Watched by the runtime that accepted it.
    pub stream: Stream,
    /// Who connected.
    pub peer: Peer,
}

/// An accepted connection on its way to another runtime.
#[derive(Debug)]
pub struct Unwatched {
    socket: Socket,
    peer: Peer,
}

#[derive(Debug)]
enum Socket {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

impl Accepted {
    /// Takes it out of the hands of the runtime that accepted it.
    ///
    /// # Errors
    /// When that runtime does not let it go.
    pub fn unwatch(self) -> io::Result<Unwatched> {
        let socket = match self.stream {
            Stream::Tcp(stream) => Socket::Tcp(stream.into_std()?),
            Stream::Unix(stream) => Socket::Unix(stream.into_std()?),
        };
        Ok(Unwatched {
            socket,
            peer: self.peer,
        })
    }
}

impl Unwatched {
    /// Registers it with the current runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it (no file descriptors left, say).
    pub fn watch(self) -> io::Result<Accepted> {
        let stream = match self.socket {
            Socket::Tcp(socket) => Stream::Tcp(TcpStream::from_std(socket)?),
            Socket::Unix(socket) => Stream::Unix(UnixStream::from_std(socket)?),
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
    /// When the name cannot be resolved, the address is taken, or the socket file belongs to a
    /// living process.
    pub fn bind(address: &ListenAddr) -> io::Result<Self> {
        match address {
            ListenAddr::Tcp(address) => Self::bind_tcp(address),
            ListenAddr::Unix(path) => Self::bind_unix(path),
        }
    }

    fn bind_tcp(address: &str) -> io::Result<Self> {
        let mut last = io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "the host name has no address",
        );
        for address in address.to_socket_addrs()? {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address(address),
                socket2::Type::STREAM.nonblocking().cloexec(),
                None,
            )?;
            socket.set_reuse_address(true)?;
            // Handed down to every connection that is accepted.
            socket.set_tcp_nodelay(true)?;
            // Else the kernel takes megabytes of an answer at once, and nobody sees that its caller
            // reads them slowly, or not at all.
            #[cfg(target_os = "linux")]
            let _ = socket.set_tcp_notsent_lowat(MAX_UNSENT);
            match socket
                .bind(&address.into())
                .and_then(|()| socket.listen(BACKLOG))
            {
                Ok(()) => {
                    let listener = StdTcpListener::from(socket);
                    let address = BoundAddr::Tcp(listener.local_addr()?);
                    return Ok(Self {
                        socket: Bound::Tcp(listener),
                        address,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn bind_unix(path: &Path) -> io::Result<Self> {
        let listener = match StdUnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
                std::fs::remove_file(path)?;
                StdUnixListener::bind(path)?
            }
            other => other?,
        };
        let file = SocketFile(path.to_owned());
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: Bound::Unix(listener, file),
            address: BoundAddr::Unix(path.to_owned()),
        })
    }

    /// Where it stands.
    pub fn address(&self) -> &BoundAddr {
        &self.address
    }

    /// Begins to take connections. Must be called inside the runtime that will do so.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn start(self) -> io::Result<Acceptor> {
        let socket = match self.socket {
            Bound::Tcp(socket) => Bound::Tcp(TcpListener::from_std(socket)?),
            Bound::Unix(socket, file) => Bound::Unix(UnixListener::from_std(socket)?, file),
        };
        Ok(Acceptor {
            socket,
            address: self.address,
        })
    }
}

impl Acceptor {
    /// The next connection. Errors are waited out, so this only returns with a connection in hand.
    pub async fn accept(&self) -> Accepted {
        let mut wait = Duration::from_millis(5);
        loop {
            match self.try_accept().await {
                Ok(accepted) => return accepted,
                // The client was gone before we came: the next one is already waiting.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(listener = %self.address, %error, wait_ms = wait.as_millis(),
                        "cannot accept connections; is the file descriptor limit too low?");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    async fn try_accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Bound::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Accepted {
                    stream: Stream::Tcp(stream),
                    peer: Peer::Ip(peer.ip()),
                })
            }
            Bound::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted {
                    stream: Stream::Unix(stream),
                    peer: Peer::Unix,
                })
            }
        }
    }
}

/// A socket file that nobody answers at is left over from a process that died.
fn is_stale(path: &Path) -> bool {
    matches!(StdUnixStream::connect(path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A connection that the current runtime watches.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($inner) => $call,
            Stream::Unix($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
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
