//! Connections opened step by step, so that each step has its own result: for the doctor, and for
//! causes that the dialling libraries keep to themselves.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    address::{BaseUrl, without_brackets},
    connect_error::{ConnectError, TcpFailure, TlsFailure, TunnelFailure},
    egress::{Egress, EgressProxy, RootsError},
};

/// Limit for the head of a proxy's answer.
const MAX_HEAD: usize = 8192;

/// Addresses of a name: fixed ones, or those of DNS.
pub(crate) async fn lookup(
    egress: &Egress,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, TcpFailure> {
    let host = without_brackets(host);
    if let Some(fixed) = egress.resolve.get(&host.to_ascii_lowercase()) {
        return Ok(fixed.iter().map(|ip| (*ip, port).into()).collect());
    }
    let found = timeout(egress.connect_timeout, lookup_host((host, port)))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let found: Vec<SocketAddr> = found
        .map_err(|error| TcpFailure::of_lookup(&error))?
        .collect();
    if found.is_empty() {
        return Err(TcpFailure::UnknownName);
    }
    Ok(found)
}

/// Connects to the first of the addresses that takes the connection, within `limit` for all.
pub(crate) async fn tcp(
    addresses: &[SocketAddr],
    source: Option<IpAddr>,
    limit: Duration,
) -> Result<TcpStream, TcpFailure> {
    let attempts = async {
        let mut last = TcpFailure::UnknownName;
        for address in addresses {
            match connect(*address, source).await {
                Ok(stream) => return Ok(stream),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    };
    timeout(limit, attempts)
        .await
        .unwrap_or(Err(TcpFailure::TimedOut))
}

async fn connect(address: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream, TcpFailure> {
    let of = |error: io::Error| TcpFailure::of_kind(error.kind());
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4().map_err(of)?,
        SocketAddr::V6(_) => TcpSocket::new_v6().map_err(of)?,
    };
    if let Some(source) = source {
        socket
            .bind((source, 0).into())
            .map_err(|_| TcpFailure::SourceAddress)?;
    }
    socket.connect(address).await.map_err(of)
}

/// Asks the proxy at the other end of `stream` for a tunnel.
pub(crate) async fn tunnel(
    stream: &mut TcpStream,
    proxy: &EgressProxy,
    target: &BaseUrl,
    limit: Duration,
) -> Result<(), TunnelFailure> {
    timeout(limit, ask_for_tunnel(stream, proxy, target))
        .await
        .unwrap_or(Err(TunnelFailure::Closed))
}

async fn ask_for_tunnel(
    stream: &mut TcpStream,
    proxy: &EgressProxy,
    target: &BaseUrl,
) -> Result<(), TunnelFailure> {
    let host = if target.host.contains(':') {
        format!("[{}]", without_brackets(&target.host))
    } else {
        target.host.clone()
    };
    let port = target.port;
    let mut request =
        format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
    if let Some(authorization) = proxy.basic_authorization() {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let closed = |_| TunnelFailure::Closed;
    stream.write_all(&request).await.map_err(closed)?;
    let mut head = Vec::new();
    // Byte by byte, so that nothing behind the head is taken from TLS.
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.map_err(closed)?);
        if head.len() > MAX_HEAD {
            return Err(TunnelFailure::Refused);
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut answer = httparse::Response::new(&mut headers);
    match (answer.parse(&head), answer.code) {
        (Ok(_), Some(200)) => Ok(()),
        (Ok(_), Some(status)) => Err(TunnelFailure::Status(status)),
        _ => Err(TunnelFailure::Refused),
    }
}

/// Asks the proxy once more for a tunnel whose refusal came without a status.
pub(crate) async fn refusal_of_tunnel(egress: &Egress, target: &BaseUrl) -> Option<ConnectError> {
    let proxy = egress.proxy.as_ref()?;
    let addresses = lookup(egress, &proxy.host, proxy.port).await.ok()?;
    let mut stream = tcp(&addresses, egress.local_address, egress.connect_timeout)
        .await
        .ok()?;
    let refusal = tunnel(&mut stream, proxy, target, egress.connect_timeout).await;
    refusal.err().map(ConnectError::Tunnel)
}

/// Certificate that a server has shown, trusted or not.
#[derive(Debug, Default, Clone)]
pub(crate) struct ShownCertificate(Arc<Mutex<Option<CertificateDer<'static>>>>);

impl ShownCertificate {
    pub(crate) fn get(&self) -> Option<CertificateDer<'static>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Opens a TLS session.
pub(crate) async fn tls(
    stream: TcpStream,
    host: &str,
    config: Arc<ClientConfig>,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, TlsFailure> {
    let name = ServerName::try_from(without_brackets(host).to_owned())
        .map_err(|_| TlsFailure::WrongName)?;
    timeout(limit, TlsConnector::from(config).connect(name, stream))
        .await
        .map_err(|_| TlsFailure::TimedOut)?
        .map_err(|error| TlsFailure::of_io(&error))
}

/// Certificates that a session is opened with.
pub(crate) enum Trust {
    /// Those that webpki verifies.
    Roots(Arc<WebPkiServerVerifier>),
    /// This one alone, whatever its names: that of a listener here, for a probe without any secret.
    Only(CertificateDer<'static>),
}

impl Trust {
    /// Trusts the roots of the egress settings.
    ///
    /// # Errors
    /// When they cannot be loaded, or there are none.
    pub(crate) fn roots(egress: &Egress) -> Result<Self, RootsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        WebPkiServerVerifier::builder_with_provider(Arc::new(egress.roots()?), provider)
            .build()
            .map(Self::Roots)
            .map_err(|_| RootsError::None)
    }
}

/// TLS settings that also keep the certificate which the server shows.
pub(crate) fn tls_settings(
    trust: Trust,
    shown: &ShownCertificate,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = RecordingVerifier {
        trust,
        algorithms: provider.signature_verification_algorithms,
        shown: shown.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Verifier that keeps the certificate. It decides nothing itself: webpki does, or the comparison
/// with the one certificate that is trusted.
struct RecordingVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
    shown: ShownCertificate,
}

impl fmt::Debug for RecordingVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingVerifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for RecordingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.shown.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(end_entity.clone().into_owned());
        match &self.trust {
            Trust::Roots(verifier) => verifier.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
            Trust::Only(certificate) if certificate == end_entity => {
                Ok(ServerCertVerified::assertion())
            }
            Trust::Only(_) => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
