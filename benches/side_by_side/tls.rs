//! Certificates that are valid for an hour: a root, and a leaf for the name of WeChat. The proxies
//! verify them as they would verify those of WeChat.

use std::{fs, io, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::{
    ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider, pki_types::CertificateDer,
};
use wxgate::internals::net::{egress::read_certificates, tls::ServerTls};

/// Host name in the leaf certificate.
pub(crate) const HOST: &str = "api.weixin.qq.com";

/// Writes `ca.pem`, `leaf.pem` and `leaf.key`.
pub(crate) fn write_certificates(folder: &Path) -> io::Result<()> {
    let (ca, leaf, key) = certificates().map_err(io::Error::other)?;
    for (name, text) in [("ca.pem", ca), ("leaf.pem", leaf), ("leaf.key", key)] {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

fn certificates() -> Result<(String, String, String), rcgen::Error> {
    let mut root = CertificateParams::new(Vec::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name
        .push(DnType::CommonName, "root of a benchmark");
    let root_key = KeyPair::generate()?;
    let ca = root.self_signed(&root_key)?.pem();
    let mut leaf = CertificateParams::new(vec![HOST.to_owned(), "127.0.0.1".to_owned()])?;
    leaf.distinguished_name.push(DnType::CommonName, HOST);
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key))?.pem();
    Ok((ca, leaf, key.serialize_pem()))
}

/// Returns the TLS configuration of the upstream.
pub(crate) fn acceptor(folder: &Path) -> io::Result<tokio_rustls::TlsAcceptor> {
    ServerTls {
        cert: folder.join("leaf.pem"),
        key: folder.join("leaf.key"),
        client_ca: None,
    }
    .acceptor()
}

/// Returns the TLS configuration of the bare proxies, which trusts this root alone.
pub(crate) fn client(ca: &Path) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(ca)? {
        roots
            .add(CertificateDer::from(certificate.to_vec()))
            .map_err(io::Error::other)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
