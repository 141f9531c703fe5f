//! Causes of connections that could not be opened, from the errors of the libraries that dial.
//!
//! The texts hold no host name and no URL, so that every log and answer may show them; the caller
//! names the host.

use std::{error::Error, fmt, io, iter};

use rustls::CertificateError;

#[cfg(test)]
mod tests;

/// Cause of a connection that could not be opened. Nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectError {
    /// No TCP connection to the host.
    Host(TcpFailure),
    /// No TCP connection to `upstream.proxy`.
    Proxy(TcpFailure),
    /// `upstream.proxy` opened no tunnel.
    Tunnel(TunnelFailure),
    /// No TLS session with the host.
    Tls(TlsFailure),
}

/// Cause of a missing TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TcpFailure {
    /// DNS knows no address of the name.
    UnknownName,
    /// No DNS server answered.
    DnsSilent,
    /// Nobody listens at the port.
    Refused,
    /// No route to the address.
    NoRoute,
    /// No answer within the time limit.
    TimedOut,
    /// Reset by the other end, or by something in between.
    Reset,
    /// The source address belongs to another machine.
    SourceAddress,
    /// Any other error of the system.
    Other(io::ErrorKind),
}

/// Cause of a tunnel that an egress proxy does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TunnelFailure {
    /// HTTP status other than 200; 407 asks for a login.
    Status(u16),
    /// Refusal without a known status.
    Refused,
    /// End of the connection instead of an answer.
    Closed,
}

/// Cause of a TLS handshake that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsFailure {
    /// Issuer outside the trusted roots.
    Untrusted,
    /// Certificate past its end.
    Expired,
    /// Certificate before its begin.
    NotYetValid,
    /// Certificate of another name.
    WrongName,
    /// Certificate that is unusable for another reason.
    BadCertificate,
    /// Bytes that are no TLS.
    NotTls,
    /// Alert of the server.
    Alert,
    /// End of the connection within the handshake.
    Closed,
    /// No end of the handshake within the time limit.
    TimedOut,
}

impl ConnectError {
    /// Cause behind an error of a dialling library; `with_proxy` if the connection leads through
    /// `upstream.proxy`.
    pub(crate) fn of(error: &(dyn Error + 'static), with_proxy: bool) -> Self {
        let tcp = |failure| {
            if with_proxy {
                Self::Proxy(failure)
            } else {
                Self::Host(failure)
            }
        };
        let mut system = None;
        let mut stage = Stage::Tls;
        // The outermost error is the HTTP library's own, whose text may hold a URL with a token.
        for error in causes(error).skip(1) {
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Self::Tls(TlsFailure::of(tls));
            }
            if let Some(error) = error.downcast_ref::<io::Error>() {
                // The outermost error of the system may wrap the one with the kind.
                if system.is_none_or(|kind| kind == io::ErrorKind::Other) {
                    system = Some(error.kind());
                }
                if stage == Stage::Dns {
                    return tcp(TcpFailure::of_lookup(error));
                }
            }
            // The connectors of hyper-util have no public error types, only fixed texts.
            match error.to_string().as_str() {
                "dns error" => stage = Stage::Dns,
                "tcp bind local error" => return tcp(TcpFailure::SourceAddress),
                "tcp connect error" | "tcp open error" => stage = Stage::Tcp,
                "tunnel error: proxy authorization required" => {
                    return Self::Tunnel(TunnelFailure::Status(407));
                }
                "tunnel error: unexpected end of file"
                | "tunnel error: io error establishing tunnel" => {
                    return Self::Tunnel(TunnelFailure::Closed);
                }
                "tunnel error: unsuccessful" | "tunnel error: proxy response headers too long" => {
                    return Self::Tunnel(TunnelFailure::Refused);
                }
                // reqwest's limit for connecting, which covers every step.
                "operation timed out" => system = Some(io::ErrorKind::TimedOut),
                _ => {}
            }
        }
        match (stage, system) {
            (Stage::Dns, _) => tcp(TcpFailure::UnknownName),
            (_, Some(io::ErrorKind::TimedOut)) => tcp(TcpFailure::TimedOut),
            (Stage::Tcp, kind) => tcp(TcpFailure::of_kind(kind.unwrap_or(io::ErrorKind::Other))),
            (Stage::Tls, _) => Self::Tls(TlsFailure::Closed),
        }
    }
}

/// Step of a connection attempt that an error belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Dns,
    Tcp,
    Tls,
}

impl TcpFailure {
    /// Cause of a look-up that failed.
    pub(crate) fn of_lookup(error: &io::Error) -> Self {
        // The codes of getaddrinfo have no kinds: EAI_AGAIN in the words of glibc and of musl.
        let text = error.to_string();
        if error.kind() == io::ErrorKind::TimedOut
            || text.contains("Temporary failure")
            || text.contains("Try again")
        {
            Self::DnsSilent
        } else {
            Self::UnknownName
        }
    }

    /// Cause by the kind of the system's error.
    pub(crate) fn of_kind(kind: io::ErrorKind) -> Self {
        match kind {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NotConnected => Self::NoRoute,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Self::Reset,
            io::ErrorKind::AddrNotAvailable => Self::SourceAddress,
            other => Self::Other(other),
        }
    }
}

impl TlsFailure {
    /// Cause behind an error of the TLS library.
    pub(crate) fn of(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => match error {
                // The second where another authority has the name of a trusted one.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::Untrusted,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Self::Expired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
                _ => Self::BadCertificate,
            },
            rustls::Error::AlertReceived(_) => Self::Alert,
            rustls::Error::InvalidMessage(_)
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InappropriateHandshakeMessage { .. } => Self::NotTls,
            _ => Self::BadCertificate,
        }
    }

    /// Cause behind an error of a handshake.
    pub(crate) fn of_io(error: &io::Error) -> Self {
        match causes(error).find_map(|error| error.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::of(tls),
            None if error.kind() == io::ErrorKind::TimedOut => Self::TimedOut,
            None => Self::Closed,
        }
    }
}

/// An error and its causes, errors inside an [`io::Error`] included.
pub(crate) fn causes<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    iter::successors(Some(error), |error| {
        // `source` of an `io::Error` skips the error that it wraps.
        let error: &'e (dyn Error + 'static) = *error;
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        match wrapped {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(failure) => f.write_str(failure.at_host()),
            Self::Proxy(failure) => f.write_str(failure.at_proxy()),
            Self::Tunnel(failure) => failure.fmt(f),
            Self::Tls(failure) => failure.fmt(f),
        }
    }
}

impl TcpFailure {
    fn at_host(self) -> &'static str {
        match self {
            Self::UnknownName => {
                "the host name does not resolve; check the account's api and the DNS servers of this machine, or set \
                 upstream.resolve, or upstream.proxy if a proxy resolves names here"
            }
            Self::DnsSilent => {
                "DNS does not answer; check the DNS servers of this machine (/etc/resolv.conf), or set upstream.resolve"
            }
            Self::Refused => {
                "the host refuses the connection; check the account's api, upstream.resolve and the firewall"
            }
            Self::NoRoute => {
                "there is no route to the host; check the network of this machine, or set upstream.proxy if calls leave \
                 through a proxy"
            }
            Self::TimedOut => {
                "the host did not answer within upstream.connect_timeout; check the firewall and the routes, or set \
                 upstream.proxy if calls leave through a proxy"
            }
            Self::Reset => {
                "the connection was reset while it was opened; check the firewall between this machine and the host"
            }
            Self::SourceAddress => {
                "upstream.local_address is not an address of this machine; correct it, or leave it out"
            }
            Self::Other(_) => {
                "the system does not open the connection; check the limits and the network of this machine"
            }
        }
    }

    fn at_proxy(self) -> &'static str {
        match self {
            Self::UnknownName => {
                "the host name of upstream.proxy does not resolve; correct it, or check the DNS servers of this machine"
            }
            Self::DnsSilent => {
                "DNS does not answer for the host name of upstream.proxy; check the DNS servers of this machine, or \
                 write the proxy's IP address"
            }
            Self::Refused => {
                "upstream.proxy refuses the connection; check whether the proxy runs, and its address and port"
            }
            Self::NoRoute => {
                "there is no route to upstream.proxy; check its address and the network of this machine"
            }
            Self::TimedOut => {
                "upstream.proxy did not answer within upstream.connect_timeout; check whether it runs, its address and \
                 the firewall, and whether it reaches the host"
            }
            Self::Reset => {
                "upstream.proxy reset the connection; check whether this machine may use the proxy"
            }
            Self::SourceAddress => {
                "upstream.local_address is not an address of this machine; correct it, or leave it out"
            }
            Self::Other(_) => {
                "the system does not open the connection to upstream.proxy; check its address and the limits of this \
                 machine"
            }
        }
    }
}

impl fmt::Display for TunnelFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(407) => f.write_str(
                "upstream.proxy wants a user and password (HTTP status 407); write them before its host, as in \
                 user:password@host:port, or correct them",
            ),
            Self::Status(403) => f.write_str(
                "upstream.proxy does not let this machine through to the host (HTTP status 403); have the proxy allow \
                 CONNECT to the account's api",
            ),
            Self::Status(status @ (502..=504)) => write!(
                f,
                "upstream.proxy cannot reach the host itself (HTTP status {status}); check the DNS and the routes of the \
                 proxy"
            ),
            Self::Status(status) => write!(
                f,
                "upstream.proxy answers CONNECT with HTTP status {status}; check that it is a proxy for CONNECT, and its \
                 address and port"
            ),
            Self::Refused => f.write_str(
                "upstream.proxy refuses to connect to the host; have the proxy allow CONNECT to the account's api, and \
                 check that what answers there is a proxy",
            ),
            Self::Closed => f.write_str(
                "upstream.proxy ends the connection without an answer; check that it is a proxy for \
                 plain HTTP (not TLS, not SOCKS), and its address and port",
            ),
        }
    }
}

impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untrusted => {
                "the certificate of the host comes from an authority that is not trusted here; if a proxy of this network \
                 opens TLS, put its root into upstream.ca_file"
            }
            Self::Expired => {
                "the certificate of the host has expired; check the clock of this machine and what answers for the host"
            }
            Self::NotYetValid => {
                "the certificate of the host is not valid yet; the clock of this machine is behind: set it by NTP"
            }
            Self::WrongName => {
                "the certificate is for another name than the host's; check the account's api, upstream.resolve and what \
                 answers for the host"
            }
            Self::BadCertificate => {
                "the certificate of the host is not usable; check what answers for the host"
            }
            Self::NotTls => {
                "what answers for the host speaks no TLS; check the port in the account's api and what stands in between"
            }
            Self::Alert => {
                "the host refuses the TLS handshake; check the account's api and what answers for the host"
            }
            Self::Closed => {
                "the connection ended within the TLS handshake; a firewall that goes by host names does that: have it \
                 let the host through"
            }
            Self::TimedOut => {
                "the TLS handshake did not end within upstream.connect_timeout; check the firewall, and the MTU of this \
                 network"
            }
        })
    }
}
