//! TLS for listeners.
//!
//! Certificates are read when a listener is built; whether a client certificate means anything is
//! decided elsewhere.

use std::{io, path::PathBuf, sync::Arc, time::SystemTime};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, ServerConnection, WebPkiClientVerifier},
};
use tokio_rustls::TlsAcceptor;

use super::{certificate::CertificateFacts, egress::read_certificates};

/// Where the certificate and key of a listener lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// PEM, leaf first.
    pub cert: PathBuf,
    /// PEM.
    pub key: PathBuf,
    /// With it, every client must show a certificate of this authority.
    pub client_ca: Option<PathBuf>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn acceptor(&self) -> io::Result<TlsAcceptor> {
        let named = |path: &PathBuf, error: String| {
            io::Error::other(format!("{}: {error}", path.display()))
        };
        let chain = read_certificates(&self.cert).map_err(|e| named(&self.cert, e.to_string()))?;
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|e| named(&self.key, e.to_string()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in
                    read_certificates(path).map_err(|e| named(path, e.to_string()))?
                {
                    roots
                        .add(certificate)
                        .map_err(|e| named(path, e.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|e| named(path, e.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|e| named(&self.cert, e.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if self.client_ca.is_some() {
            // A resumed session would go by a certificate that nobody looks at any more.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ServerTls {
    /// Reads when the certificate of the listener ends.
    pub(crate) fn certificate_end(&self) -> Option<SystemTime> {
        let chain = read_certificates(&self.cert).ok()?;
        CertificateFacts::of(chain.first()?).map(|facts| facts.end)
    }
}

/// The DNS and URI names in the certificate that the client has shown and that was verified, in
/// lower case; none without one.
pub(crate) fn names_of(connection: &ServerConnection) -> Vec<String> {
    let leaf = connection.peer_certificates().and_then(<[_]>::first);
    let Some(Ok(certificate)) = leaf.map(webpki::EndEntityCert::try_from) else {
        return Vec::new();
    };
    certificate
        .valid_dns_names()
        .chain(certificate.valid_uri_names())
        .map(str::to_ascii_lowercase)
        .collect()
}
