//! Parsers for the keys in the forms that WeChat's console gives, run once at start.

use aws_lc_rs::{
    aead::{AES_256_GCM, LessSafeKey, UnboundKey},
    signature::{ParsedPublicKey, RSA_PSS_2048_8192_SHA256, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::SigningKeyError;

pub(super) fn private(pem: &[u8]) -> Result<RsaKeyPair, SigningKeyError> {
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| SigningKeyError::NoPrivateKey)?;
    let key = match &key {
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        _ => return Err(SigningKeyError::NotRsa),
    };
    key.map_err(|_| SigningKeyError::NotRsa)
}

pub(super) fn symmetric(text: &str) -> Result<LessSafeKey, SigningKeyError> {
    let key = STANDARD
        .decode(text.trim())
        .map_err(|_| SigningKeyError::AesNotBase64)?;
    match key.len() {
        32 => UnboundKey::new(&AES_256_GCM, &key)
            .map(LessSafeKey::new)
            .map_err(|_| SigningKeyError::AesLength),
        16 => Err(SigningKeyError::Sm4),
        _ => Err(SigningKeyError::AesLength),
    }
}

pub(super) fn platform(pem: &[u8]) -> Result<ParsedPublicKey, SigningKeyError> {
    let der = CertificateDer::from_pem_slice(pem).map_err(|_| SigningKeyError::NoCertificate)?;
    let cert = webpki::EndEntityCert::try_from(&der).map_err(|_| SigningKeyError::NoCertificate)?;
    ParsedPublicKey::new(
        &RSA_PSS_2048_8192_SHA256,
        cert.subject_public_key_info().as_ref(),
    )
    .map_err(|_| SigningKeyError::NoCertificate)
}
