//! TLS handshakes with clients, and the reasons why some fail.

use std::{io, time::Duration};

use rustls::{AlertDescription, Error as TlsError};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    connection::{PROXY_V1, PROXY_V2, TLS_HANDSHAKE},
    listen::ClientStream,
};

/// A client that has not finished its handshake by then is cut.
const MAX_HANDSHAKE: Duration = Duration::from_secs(10);
/// Bytes of the first look at a client; the signature of the PROXY protocol fits in.
const FIRST_LOOK: usize = 16;

/// Reason why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The client does not accept our certificate.
    Untrusted,
    /// The client has shown no certificate, and must.
    NoClientCertificate,
    /// The certificate of the client is not good.
    BadClientCertificate,
    /// No version, cipher or protocol in common.
    Incompatible,
    /// HTTP without TLS.
    PlainHttp,
    /// The PROXY protocol, version 1 or 2.
    ProxyProtocol,
    /// The client went away.
    Closed,
    /// The client took too long.
    Timeout,
    /// Neither TLS nor anything else that is known here.
    Other,
}

/// Does the handshake.
///
/// # Errors
/// The reason; `None` if the client has not said a byte, as those that only look for an open port.
pub(crate) async fn accept(
    acceptor: &TlsAcceptor,
    stream: ClientStream,
) -> Result<TlsStream<ClientStream>, Option<HandshakeFailure>> {
    let mut first = [0; FIRST_LOOK];
    let mut length = 0;
    let shake = async {
        // rustls takes these bytes and does not give them back.
        length = stream.peek(&mut first).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        acceptor.accept(stream).await
    };
    let shaken = timeout(MAX_HANDSHAKE, shake).await;
    let first = &first[..length];
    match shaken {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(_)) | Err(_) if first.is_empty() => Err(None),
        Ok(Err(error)) => Err(Some(HandshakeFailure::of(&error, first))),
        Err(_) => Err(Some(HandshakeFailure::Timeout)),
    }
}

impl HandshakeFailure {
    /// All reasons.
    pub(crate) const ALL: [Self; 9] = [
        Self::Untrusted,
        Self::NoClientCertificate,
        Self::BadClientCertificate,
        Self::Incompatible,
        Self::PlainHttp,
        Self::ProxyProtocol,
        Self::Closed,
        Self::Timeout,
        Self::Other,
    ];

    fn of(error: &io::Error, first: &[u8]) -> Self {
        if first.starts_with(PROXY_V1) || first.starts_with(PROXY_V2) {
            return Self::ProxyProtocol;
        }
        // A method, or at least its begin.
        if first.iter().take(3).all(u8::is_ascii_uppercase) {
            return Self::PlainHttp;
        }
        let tls = error.get_ref().and_then(|error| error.downcast_ref());
        match tls {
            Some(TlsError::NoCertificatesPresented) => Self::NoClientCertificate,
            Some(TlsError::InvalidCertificate(_)) => Self::BadClientCertificate,
            Some(TlsError::PeerIncompatible(_) | TlsError::NoApplicationProtocol) => {
                Self::Incompatible
            }
            Some(TlsError::AlertReceived(alert)) => Self::of_alert(*alert),
            None if first.starts_with(TLS_HANDSHAKE) => Self::Closed,
            _ => Self::Other,
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            // Decrypt error: a name that the client knows, with a signature that does not fit.
            AlertDescription::UnknownCA
            | AlertDescription::DecryptError
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown => Self::Untrusted,
            AlertDescription::ProtocolVersion
            | AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity
            | AlertDescription::NoApplicationProtocol => Self::Incompatible,
            AlertDescription::CloseNotify | AlertDescription::UserCanceled => Self::Closed,
            _ => Self::Other,
        }
    }

    /// The word for metrics and log.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Self::Untrusted => "untrusted",
            Self::NoClientCertificate => "no_client_certificate",
            Self::BadClientCertificate => "bad_client_certificate",
            Self::Incompatible => "incompatible",
            Self::PlainHttp => "plain_http",
            Self::ProxyProtocol => "proxy_protocol",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Other => "other",
        }
    }

    /// Says to the operator what is to be done.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Untrusted => {
                "it refuses the certificate of server.tls: give it the authority, and look at names and end of the certificate"
            }
            Self::NoClientCertificate => {
                "it shows no certificate, and server.tls.client_ca demands one"
            }
            Self::BadClientCertificate => {
                "its certificate is not from server.tls.client_ca, has ended, or is not for clients"
            }
            Self::Incompatible => {
                "it has no TLS version, cipher or protocol in common with wxgate (TLS 1.2 or later, http/1.1)"
            }
            Self::PlainHttp => "it speaks http:// to a TLS port: use https://",
            Self::ProxyProtocol => {
                "it speaks the PROXY protocol, which wxgate does not read: switch it off there, and use \
                 X-Forwarded-For with server.trusted_proxies"
            }
            Self::Closed => {
                "it closed the connection, as clients do that refuse the certificate of server.tls without a word"
            }
            Self::Timeout => "it did not finish within 10 s",
            Self::Other => "it speaks no TLS, or breaks its rules",
        }
    }
}
