//! Binds listeners, and says in an operator's terms why an address cannot be had.
//!
//! A file in the place of a socket is never removed, unless it is a socket on which nobody listens.

use std::{
    fmt, fs, io,
    net::{TcpListener, ToSocketAddrs},
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

/// Connections that the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;
/// Bytes of an answer that the kernel holds beyond what it may send at the moment.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 64 * 1024;

/// Reason why an address cannot be listened on, with the way out.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// `EADDRINUSE`, or a socket file on which somebody listens.
    #[error("another process is using it; stop that one, or choose another address")]
    InUse,
    /// `EADDRNOTAVAIL`.
    #[error(
        "it is not an address of this machine; use one that is, or 0.0.0.0 or [::] for all of them"
    )]
    NotLocal,
    /// `EACCES` on a port.
    #[error(
        "this user may not take the port; ports below 1024 need CAP_NET_BIND_SERVICE (systemd: \
         AmbientCapabilities=CAP_NET_BIND_SERVICE), or choose a higher port"
    )]
    PortDenied,
    /// The host name has no address.
    #[error("the host name cannot be resolved: {0}")]
    Unresolved(io::Error),
    /// Something that is no socket stands at the path.
    #[error("there is {0} at this path, which is left alone; remove it, or choose another path")]
    NotASocket(FileKind),
    /// The folder of a socket does not exist.
    #[error("the folder of the socket does not exist; create it, or choose another path")]
    NoFolder,
    /// `EACCES` on a path.
    #[error(
        "this user may not make or reach a socket there; give it the folder, or choose another path"
    )]
    PathDenied,
    /// Anything else, in the system's words.
    #[error("{0}")]
    Other(io::Error),
}

/// What stands at a path in place of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, whatever it points to.
    Link,
    /// A named pipe.
    Pipe,
    /// A device.
    Device,
    /// A socket that takes no stream connections.
    OtherSocket,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "a file",
            Self::Folder => "a folder",
            Self::Link => "a symbolic link",
            Self::Pipe => "a named pipe",
            Self::Device => "a device",
            Self::OtherSocket => "a socket of another kind",
        })
    }
}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        Self::other(error)
    }
}

/// Removes the socket file of a listener when dropped, unless another one has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    pub(super) fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            identity: identity(path),
        }
    }

    /// Leaves the file to another process that listens on the same socket.
    pub(super) fn leave(mut self) {
        self.identity = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of a path, links not followed.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Binds the first address of a host that can be had.
pub(super) fn tcp(address: &str) -> Result<TcpListener, BindError> {
    let mut last = BindError::Unresolved(io::Error::other("it has no address"));
    for address in address.to_socket_addrs().map_err(BindError::Unresolved)? {
        match listen_tcp(&address.into()) {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                last = match error.kind() {
                    io::ErrorKind::AddrInUse => BindError::InUse,
                    io::ErrorKind::AddrNotAvailable => BindError::NotLocal,
                    io::ErrorKind::PermissionDenied => BindError::PortDenied,
                    _ => BindError::Other(error),
                };
            }
        }
    }
    Err(last)
}

fn listen_tcp(address: &SockAddr) -> io::Result<TcpListener> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(address.domain(), kind, None)?;
    socket.set_reuse_address(true)?;
    set_options(&SockRef::from(&socket))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sets the options of a TCP listener that are handed down to every connection that is accepted.
pub(super) fn set_options(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    // Else the kernel takes megabytes of an answer at once, and nothing shows that its caller reads
    // slowly, or not at all.
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_notsent_lowat(MAX_UNSENT);
    Ok(())
}

/// Binds a socket file, in the place of one that a dead process has left behind.
pub(super) fn unix(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_abandoned(path)?;
            UnixListener::bind(path)
        }
        other => other,
    };
    let listener = listener.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse,
        io::ErrorKind::NotFound => BindError::NoFolder,
        io::ErrorKind::PermissionDenied => BindError::PathDenied,
        _ => BindError::Other(error),
    })?;
    let file = SocketFile::of(path);
    listener.set_nonblocking(true).map_err(BindError::Other)?;
    Ok((listener, file))
}

/// Removes a socket on which nobody listens; anything else is an error.
fn remove_abandoned(path: &Path) -> Result<(), BindError> {
    // The type of the path itself: a link is refused even if it leads to a socket.
    let kind = fs::symlink_metadata(path)
        .map_err(BindError::Other)?
        .file_type();
    let kind = if kind.is_socket() {
        return match connect(path).map_err(|error| error.kind()) {
            Err(io::ErrorKind::ConnectionRefused) => {
                fs::remove_file(path).map_err(BindError::Other)
            }
            Err(io::ErrorKind::PermissionDenied) => Err(BindError::PathDenied),
            // EPROTOTYPE has no kind of its own.
            Err(kind) if kind != io::ErrorKind::WouldBlock => {
                Err(BindError::NotASocket(FileKind::OtherSocket))
            }
            _ => Err(BindError::InUse),
        };
    } else if kind.is_file() {
        FileKind::File
    } else if kind.is_dir() {
        FileKind::Folder
    } else if kind.is_symlink() {
        FileKind::Link
    } else if kind.is_fifo() {
        FileKind::Pipe
    } else {
        FileKind::Device
    };
    Err(BindError::NotASocket(kind))
}

/// Asks whether somebody listens. Without blocking, for a queue that is full is an answer too.
fn connect(path: &Path) -> io::Result<()> {
    let kind = Type::STREAM.nonblocking().cloexec();
    Socket::new(Domain::UNIX, kind, None)?.connect(&SockAddr::unix(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixDatagram};

    use super::*;

    #[track_caller]
    fn refused(path: &Path) -> BindError {
        let before = identity(path);
        let error = unix(path).expect_err("it is not free");
        assert!(before.is_some() && identity(path) == before, "{path:?}");
        error
    }

    #[test]
    fn only_a_socket_on_which_nobody_listens_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let kind = |error| match error {
            BindError::NotASocket(kind) => Some(kind),
            _ => None,
        };
        fs::write(at("file"), "precious").unwrap();
        assert_eq!(kind(refused(&at("file"))), Some(FileKind::File));
        assert_eq!(fs::read(at("file")).unwrap(), b"precious");
        fs::create_dir(at("folder")).unwrap();
        assert_eq!(kind(refused(&at("folder"))), Some(FileKind::Folder));
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), mode).unwrap();
        assert_eq!(kind(refused(&at("pipe"))), Some(FileKind::Pipe));
        let _datagrams = UnixDatagram::bind(at("datagrams")).unwrap();
        assert_eq!(kind(refused(&at("datagrams"))), Some(FileKind::OtherSocket));

        let living = UnixListener::bind(at("socket")).unwrap();
        assert!(matches!(refused(&at("socket")), BindError::InUse));
        for target in ["socket", "file", "nothing"] {
            let link = at(&format!("link-to-{target}"));
            symlink(at(target), &link).unwrap();
            assert_eq!(kind(refused(&link)), Some(FileKind::Link));
        }
        drop(living);
        assert_eq!(kind(refused(&at("link-to-socket"))), Some(FileKind::Link));
        let (again, file) = unix(&at("socket")).expect("what a dead process left is replaced");
        drop((again, file));
        assert!(!at("socket").exists());
        assert!(matches!(
            unix(&at("missing/socket")),
            Err(BindError::NoFolder)
        ));
    }

    #[test]
    fn a_socket_whose_queue_is_full_is_a_living_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let full = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        full.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        full.listen(0).unwrap();
        let kind = Type::STREAM.nonblocking();
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let socket = Socket::new(Domain::UNIX, kind, None).unwrap();
                let _ = socket.connect(&SockAddr::unix(&path).unwrap());
                socket
            })
            .collect();
        assert!(matches!(refused(&path), BindError::InUse));
        drop(waiting);
    }

    #[test]
    fn the_file_of_a_successor_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (_old, file) = unix(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        let successor = identity(&path);
        drop(file);
        assert_eq!(identity(&path), successor);
    }

    #[test]
    fn the_cause_is_named() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap().to_string();
        assert!(matches!(tcp(&taken), Err(BindError::InUse)));
        // TEST-NET-1 is nobody's.
        assert!(matches!(tcp("192.0.2.1:8080"), Err(BindError::NotLocal)));
    }
}
