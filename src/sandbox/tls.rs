//! Certificate of the TLS listener, read from files or generated at start by a root of its own.

use std::{io, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio_rustls::TlsAcceptor;

use super::settings::CertificateFiles;
use crate::net::tls::ServerTls;

/// Acceptor of the TLS listener, and the root that clients must trust.
pub(super) struct SandboxCertificate {
    pub(super) acceptor: TlsAcceptor,
    pub(super) ca_pem: String,
}

/// Names in a generated certificate.
const NAMES: [&str; 5] = [
    "api.weixin.qq.com",
    "qyapi.weixin.qq.com",
    "localhost",
    "127.0.0.1",
    "::1",
];

/// Reads the files, or generates a root and a leaf for WeChat's API names and this machine.
pub(super) fn identity(files: Option<&CertificateFiles>) -> io::Result<SandboxCertificate> {
    match files {
        Some(files) => {
            let tls = ServerTls {
                cert: files.cert.clone(),
                key: files.key.clone(),
                client_ca: None,
            };
            Ok(SandboxCertificate {
                acceptor: tls.acceptor()?,
                ca_pem: std::fs::read_to_string(&files.cert)?,
            })
        }
        None => make().map_err(io::Error::other)?,
    }
}

// Two layers of errors: rcgen's for keys and certificates, rustls' for the configuration.
fn make() -> Result<io::Result<SandboxCertificate>, rcgen::Error> {
    let mut root = CertificateParams::new(Vec::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(
        DnType::CommonName,
        "wxgate sandbox root (trust it in tests only)",
    );
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root_key = KeyPair::generate()?;
    let ca_pem = root.self_signed(&root_key)?.pem();
    let issuer = Issuer::new(root, root_key);

    let mut leaf = CertificateParams::new(NAMES.map(str::to_owned))?;
    leaf.distinguished_name
        .push(DnType::CommonName, "wxgate sandbox");
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf_key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&leaf_key, &issuer)?;

    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(vec![leaf.der().clone()], key)
        });
    Ok(config.map_err(io::Error::other).map(|mut config| {
        // Like WeChat's servers, the sandbox does not offer HTTP/2.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        SandboxCertificate {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            ca_pem,
        }
    }))
}
