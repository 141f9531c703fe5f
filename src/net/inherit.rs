//! Listeners that another process has bound: the service manager, which passes them by
//! `LISTEN_FDS`, or the wxgate that this process replaces.
//!
//! Which of them stands for which address of the configuration is decided here.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    os::fd::OwnedFd,
    path::PathBuf,
};

use socket2::{SockRef, Type};

use super::{
    address::ListenAddr,
    listen::{BoundAddr, Custody, Listener},
};

/// Use of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenerRole {
    /// `server.listen`.
    Data,
    /// `admin.listen`.
    Admin,
}

/// Listeners that were passed and are not in use yet.
#[derive(Debug, Default)]
pub(crate) struct InheritedListeners(Vec<InheritedListener>);

/// A socket that listens, with all that is known of its use.
#[derive(Debug)]
pub(crate) struct InheritedListener {
    socket: OwnedFd,
    bound: BoundAddr,
    label: ListenerLabel,
}

/// Label under which a listener was passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenerLabel {
    /// `FileDescriptorName=` of the service manager.
    Named(String),
    /// Use and address in the configuration of the process that is replaced.
    Configured {
        role: ListenerRole,
        address: String,
        custody: Custody,
    },
}

/// Reason why a descriptor that was passed is no listener.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAListener {
    /// No TCP or Unix stream socket, or not listening.
    #[error("it is no TCP or Unix stream socket that listens")]
    OtherKind,
    /// The system refused to tell.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl ListenerRole {
    /// Name of the role in `FileDescriptorName=` and between two processes.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Admin => "admin",
        }
    }

    /// Key of the configuration.
    fn key(self) -> &'static str {
        match self {
            Self::Data => "server.listen",
            Self::Admin => "admin.listen",
        }
    }
}

impl InheritedListener {
    /// Checks a descriptor.
    ///
    /// # Errors
    /// See [`NotAListener`].
    pub(crate) fn new(socket: OwnedFd, label: ListenerLabel) -> Result<Self, NotAListener> {
        let bound = {
            let socket = SockRef::from(&socket);
            if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
                return Err(NotAListener::OtherKind);
            }
            let address = socket.local_addr()?;
            match address.as_socket() {
                Some(address) => BoundAddr::Tcp(address),
                None if address.is_unix() => {
                    // A socket without a path has an abstract name, and can be chosen by name only.
                    BoundAddr::Unix(address.as_pathname().map(PathBuf::from).unwrap_or_default())
                }
                None => return Err(NotAListener::OtherKind),
            }
        };
        Ok(Self {
            socket,
            bound,
            label,
        })
    }

    fn is_at(&self, address: &ListenAddr) -> bool {
        match (&self.bound, address) {
            (BoundAddr::Unix(bound), ListenAddr::Unix(path)) => bound == path,
            (BoundAddr::Tcp(bound), ListenAddr::Tcp(text)) => text
                .to_socket_addrs()
                .is_ok_and(|mut wanted| wanted.any(|wanted| serves(*bound, wanted))),
            _ => false,
        }
    }

    fn was_configured_as(&self, wanted: ListenerRole, text: &str) -> bool {
        matches!(&self.label, ListenerLabel::Configured { role, address, .. }
            if *role == wanted && address == text)
    }

    fn is_named(&self, role: ListenerRole) -> bool {
        matches!(&self.label, ListenerLabel::Named(name) if name == role.as_str())
    }

    fn into_listener(self) -> io::Result<Listener> {
        let custody = match self.label {
            ListenerLabel::Named(_) => Custody::Manager,
            ListenerLabel::Configured { custody, .. } => custody,
        };
        Listener::adopt(self.socket, self.bound, custody)
    }
}

/// True if a socket at `bound` takes the connections to `wanted`. A service manager that is given a
/// port alone listens on `[::]` for both families.
fn serves(bound: SocketAddr, wanted: SocketAddr) -> bool {
    let any = (
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    );
    bound == wanted || bound.port() == wanted.port() && (bound.ip(), wanted.ip()) == any
}

impl InheritedListeners {
    pub(crate) fn new(list: Vec<InheritedListener>) -> Self {
        Self(list)
    }

    /// Takes the listeners that stand for these addresses, each in its place. Names count for what
    /// no address decides.
    ///
    /// # Errors
    /// When a socket cannot be set up.
    pub(crate) fn take(
        &mut self,
        role: ListenerRole,
        addresses: &[ListenAddr],
    ) -> io::Result<Vec<Option<Listener>>> {
        let mut taken: Vec<Option<Listener>> = Vec::new();
        for address in addresses {
            let text = address.to_string();
            let found = self
                .remove(|one| one.was_configured_as(role, &text))
                .or_else(|| self.remove(|one| one.is_at(address)));
            taken.push(found.map(InheritedListener::into_listener).transpose()?);
        }
        for place in taken.iter_mut().filter(|place| place.is_none()) {
            let found = self.remove(|one| one.is_named(role));
            *place = found.map(InheritedListener::into_listener).transpose()?;
        }
        for (listener, address) in taken.iter().zip(addresses) {
            if let Some(listener) = listener {
                tracing::info!(
                    address = %listener.address(), key = role.key(), configured = %address,
                    "goes on with a listener that was passed"
                );
            }
        }
        Ok(taken)
    }

    fn remove(&mut self, fits: impl Fn(&InheritedListener) -> bool) -> Option<InheritedListener> {
        let at = self.0.iter().position(fits)?;
        Some(self.0.remove(at))
    }

    /// Closes the rest and tells of it.
    pub(crate) fn close_unused(self) {
        for listener in self.0 {
            let name = match &listener.label {
                ListenerLabel::Named(name) => name.as_str(),
                ListenerLabel::Configured { address, .. } => address.as_str(),
            };
            tracing::warn!(
                address = %listener.bound, name,
                "a listener was passed that is neither in server.listen nor in admin.listen: nobody answers there; \
                 add its address, or name it data or admin (systemd: FileDescriptorName=)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, UdpSocket},
        os::unix::net::{UnixListener, UnixStream},
    };

    use super::*;

    fn named(socket: impl Into<OwnedFd>, name: &str) -> Result<InheritedListener, NotAListener> {
        InheritedListener::new(socket.into(), ListenerLabel::Named(name.to_owned()))
    }

    fn tcp() -> (TcpListener, ListenAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = ListenAddr::Tcp(socket.local_addr().unwrap().to_string());
        (socket, address)
    }

    #[test]
    fn only_stream_sockets_that_listen_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        assert!(named(tcp().0, "x").is_ok());
        assert!(named(UnixListener::bind(folder.path().join("s")).unwrap(), "x").is_ok());
        assert!(named(UdpSocket::bind("127.0.0.1:0").unwrap(), "x").is_err());
        assert!(named(UnixStream::pair().unwrap().0, "x").is_err());
        let connected = std::net::TcpStream::connect(tcp().0.local_addr().unwrap());
        drop(connected);
        assert!(named(tempfile::tempfile().unwrap(), "x").is_err());
    }

    #[test]
    fn addresses_decide_before_names_and_the_rest_is_left() {
        let (first, at_first) = tcp();
        let (second, at_second) = tcp();
        let (third, at_third) = tcp();
        let bound = |address: &ListenAddr| address.to_string();
        let mut passed = InheritedListeners::new(vec![
            named(first, "data").unwrap(),
            named(second, "data").unwrap(),
            named(third, "other").unwrap(),
        ]);
        let elsewhere = ListenAddr::Tcp("127.0.0.1:1".to_owned());
        // The name decides for an address that nobody listens on; the first is taken by address.
        let taken = passed
            .take(ListenerRole::Data, &[elsewhere, at_first.clone()])
            .unwrap();
        let at: Vec<_> = taken
            .iter()
            .map(|one| one.as_ref().map(|one| one.address().to_string()))
            .collect();
        assert_eq!(at, [Some(bound(&at_second)), Some(bound(&at_first))]);
        assert!(passed.take(ListenerRole::Admin, &[at_first]).unwrap()[0].is_none());
        assert!(passed.take(ListenerRole::Admin, &[at_third]).unwrap()[0].is_some());
    }

    #[test]
    fn a_port_of_the_replaced_process_is_found_by_its_place_in_the_configuration() {
        let label = |role| ListenerLabel::Configured {
            role,
            address: "127.0.0.1:0".to_owned(),
            custody: Custody::Own,
        };
        let (data, at_data) = tcp();
        let (admin, at_admin) = tcp();
        let mut passed = InheritedListeners::new(vec![
            InheritedListener::new(admin.into(), label(ListenerRole::Admin)).unwrap(),
            InheritedListener::new(data.into(), label(ListenerRole::Data)).unwrap(),
        ]);
        let any = [ListenAddr::Tcp("127.0.0.1:0".to_owned())];
        for (role, at) in [
            (ListenerRole::Data, at_data),
            (ListenerRole::Admin, at_admin),
        ] {
            let taken = passed.take(role, &any).unwrap().remove(0).unwrap();
            assert_eq!(taken.address().to_string(), at.to_string());
        }
    }

    #[test]
    fn a_port_on_all_addresses_of_both_families_serves_both() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(serves(at("[::]:80"), at("0.0.0.0:80")));
        assert!(!serves(at("[::]:80"), at("0.0.0.0:81")));
        assert!(!serves(at("[::]:80"), at("127.0.0.1:80")));
        assert!(!serves(at("0.0.0.0:80"), at("[::]:80")));
    }
}
