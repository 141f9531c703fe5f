//! Egress settings: trusted roots, source address, egress proxy, fixed addresses.
//!
//! One settings value for everything that dials WeChat (the data path and the token sources), so
//! that both always leave by the same way. They do the dialling.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hyper::header::HeaderValue;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::base::Secret;

/// The part of `[upstream]` that every dialler needs.
#[derive(Debug, Clone)]
pub struct Egress {
    /// A PEM file with roots in addition to the platform's.
    pub ca_file: Option<PathBuf>,
    /// Time limit for TCP and TLS together.
    pub connect_timeout: Duration,
    /// A CONNECT proxy.
    pub proxy: Option<EgressProxy>,
    /// The source address of outgoing connections.
    pub local_address: Option<IpAddr>,
    /// Fixed addresses instead of DNS, by lower-case host name.
    pub resolve: HashMap<String, Vec<IpAddr>>,
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            ca_file: None,
            connect_timeout: Duration::from_secs(3),
            proxy: None,
            local_address: None,
            resolve: HashMap::new(),
        }
    }
}

/// `http://[user:password@]host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressProxy {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `user:password`, sent as `Proxy-Authorization: Basic`.
    pub credentials: Option<Secret>,
}

impl EgressProxy {
    /// The value of `Proxy-Authorization`, marked as sensitive.
    pub fn basic_authorization(&self) -> Option<HeaderValue> {
        let credentials = self.credentials.as_ref()?;
        let mut value =
            HeaderValue::from_str(&format!("Basic {}", BASE64.encode(credentials.expose())))
                .ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Reason why the roots could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// `upstream.ca_file` cannot be read or holds no certificate.
    #[error("cannot use the certificates in {path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Fault of the file.
        reason: String,
    },
    /// Neither the platform nor `upstream.ca_file` gave any root.
    #[error(
        "no trusted root certificate found: install the package ca-certificates, or set upstream.ca_file"
    )]
    None,
}

impl Egress {
    /// The trusted roots: the platform's and those of `ca_file`.
    ///
    /// # Errors
    /// When `ca_file` cannot be used, or there is no root at all.
    pub(crate) fn roots(&self) -> Result<RootCertStore, RootsError> {
        let mut roots = RootCertStore::empty();
        // A broken entry in the platform's store is not ours to complain about; an empty store is.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = &self.ca_file {
            let certificates = read_certificates(path).map_err(|reason| RootsError::File {
                path: path.clone(),
                reason: reason.to_string(),
            })?;
            for certificate in certificates {
                roots.add(certificate).map_err(|error| RootsError::File {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
            }
        }
        if roots.is_empty() {
            return Err(RootsError::None);
        }
        Ok(roots)
    }

    /// The TLS client settings: platform roots and `ca_file`, TLS 1.2 and 1.3, HTTP/1.1 only.
    ///
    /// # Errors
    /// When `ca_file` cannot be used, or there is no root at all.
    pub fn tls(&self) -> Result<Arc<ClientConfig>, RootsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| RootsError::File {
                path: PathBuf::new(),
                reason: error.to_string(),
            })?
            .with_root_certificates(self.roots()?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Certificates of a PEM file.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn read_certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    if certificates.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no certificate in it (expected PEM)",
        ));
    }
    Ok(certificates)
}
