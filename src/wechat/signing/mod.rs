//! API signing and encryption (服务端 API 签名与加密): seals a plain call into a signed envelope and opens
//! a signed envelope into a plain answer.
//!
//! RSA with AES-256-GCM; SM2 and SM4 are refused when the keys are read. Pure but for the random
//! bytes of nonces and signatures: the caller passes the time and does the sending.
//!
//! Source: the page `getting_started/api_signature` of the mini-program documentation, whose
//! printed examples are among the tests. The signed text holds no serial number; the additional
//! data of the cipher holds that of the symmetric key.

mod error;
mod json;
mod keys;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, fmt};

use aws_lc_rs::{
    aead::{Aad, LessSafeKey, NONCE_LEN, Nonce},
    rand::{SecureRandom as _, SystemRandom},
    signature::{ParsedPublicKey, RSA_PSS_SHA256, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

pub(crate) use self::error::{AnswerError, SignError, SigningKeyError, explain};
use self::json::{RESERVED, content, members};
use super::verdict;

/// Keys of an account as configured.
#[derive(Clone, Copy)]
pub struct KeyTexts<'t> {
    /// PEM, PKCS#1 (the console's form) or PKCS#8.
    pub private_key: &'t [u8],
    /// Symmetric key in base64.
    pub aes_key: &'t str,
    /// Serial number of the symmetric key in the console.
    pub aes_serial: &'t str,
    /// WeChat's certificates: serial number in the console, and PEM.
    pub platform_certs: &'t [(String, Vec<u8>)],
}

/// Keys of an account, parsed.
pub struct SigningKeys {
    appid: String,
    aes_serial: String,
    aes: LessSafeKey,
    rsa: RsaKeyPair,
    platform: Vec<PlatformKey>,
    random: SystemRandom,
}

struct PlatformKey {
    serial: String,
    key: ParsedPublicKey,
}

/// Signed call. The value of [`APPID`] is that of the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// JSON, which must be sent byte for byte.
    pub body: String,
    /// Value of [`TIMESTAMP`].
    pub timestamp: u64,
    /// Value of [`SIGNATURE`].
    pub signature: String,
}

/// Signature headers of an answer; `None` for absent ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnswerHeaders<'h> {
    /// Value of [`APPID`].
    pub appid: Option<&'h str>,
    /// Value of [`TIMESTAMP`].
    pub timestamp: Option<&'h str>,
    /// Value of [`SERIAL`].
    pub serial: Option<&'h str>,
    /// Value of [`SIGNATURE`].
    pub signature: Option<&'h str>,
    /// Value of [`SERIAL_DEPRECATED`].
    pub serial_deprecated: Option<&'h str>,
    /// Value of [`SIGNATURE_DEPRECATED`].
    pub signature_deprecated: Option<&'h str>,
}

/// Answer that may be passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// Refusal in plain text; the body is passed on unchanged.
    Refusal,
    /// Verified and decrypted answer.
    Content {
        /// Decrypted JSON.
        body: Vec<u8>,
        /// True if the signature is by the certificate that WeChat is about to retire.
        by_deprecated: bool,
    },
}

/// Header of call and answer: the appid of the account.
pub(crate) const APPID: &str = "wechatmp-appid";
/// Header of call and answer: Unix time of the signature, in seconds.
pub(crate) const TIMESTAMP: &str = "wechatmp-timestamp";
/// Header of call and answer: the signature in base64.
pub(crate) const SIGNATURE: &str = "wechatmp-signature";
/// Header of an answer: serial number of the certificate of [`SIGNATURE`].
pub(crate) const SERIAL: &str = "wechatmp-serial";
/// Header of an answer while WeChat changes its certificate: a second signature, by the old
/// certificate.
pub(crate) const SIGNATURE_DEPRECATED: &str = "wechatmp-signature-deprecated";
/// Header of an answer: serial number of the certificate of [`SIGNATURE_DEPRECATED`].
pub(crate) const SERIAL_DEPRECATED: &str = "wechatmp-serial-deprecated";
/// Maximum age of an answer in seconds, as in WeChat's own samples. The samples do not check the
/// other direction; wxgate does, because with a slow clock every replay would look fresh.
const MAX_SKEW: u64 = 300;
const TAG_LEN: usize = 16;

/// Returns the address in the signed text of a call, whichever API host the call is sent to.
pub(crate) fn signed_url(path: &str) -> String {
    format!("https://api.weixin.qq.com{path}")
}

/// Returns true if a body can be signed: a JSON object, or nothing.
pub(crate) fn is_signable(body: &[u8]) -> bool {
    body.trim_ascii().is_empty() || members(body).is_some()
}

/// Checks a private key in PEM, apart from the other keys, so that a problem can name its place.
pub(crate) fn check_private_key(pem: &[u8]) -> Result<(), SigningKeyError> {
    keys::private(pem).map(drop)
}

/// Checks a symmetric key in base64.
pub(crate) fn check_aes_key(text: &str) -> Result<(), SigningKeyError> {
    keys::symmetric(text).map(drop)
}

/// Checks a platform certificate in PEM.
pub(crate) fn check_platform_cert(pem: &[u8]) -> Result<(), SigningKeyError> {
    keys::platform(pem).map(drop)
}

impl SigningKeys {
    /// Parses the keys of the account with this appid.
    pub fn new(appid: &str, texts: KeyTexts<'_>) -> Result<Self, SigningKeyError> {
        if !matches!(texts.platform_certs.len(), 1 | 2) {
            return Err(SigningKeyError::Certificates);
        }
        let platform = texts.platform_certs.iter().map(|(serial, pem)| {
            let key = keys::platform(pem)?;
            Ok(PlatformKey {
                serial: serial.clone(),
                key,
            })
        });
        Ok(Self {
            appid: appid.to_owned(),
            aes_serial: texts.aes_serial.to_owned(),
            aes: keys::symmetric(texts.aes_key)?,
            rsa: keys::private(texts.private_key)?,
            platform: platform.collect::<Result<_, _>>()?,
            random: SystemRandom::new(),
        })
    }

    /// Signs and encrypts a call. `url` is WeChat's own, without query; `parameters` are the
    /// decoded query parameters except the token; an empty body counts as `{}`.
    pub fn sign(
        &self,
        url: &str,
        parameters: &[(Cow<'_, str>, Cow<'_, str>)],
        body: &[u8],
        now: u64,
    ) -> Result<Signed, SignError> {
        let mut random = [0; 16];
        self.random
            .fill(&mut random)
            .map_err(|_| SignError::Crypto)?;
        let nonce = STANDARD.encode(random);
        // A random nonce of 96 bits: an account signs far fewer than the 2^32 calls per key that
        // NIST SP 800-38D allows.
        let mut iv = [0; NONCE_LEN];
        self.random.fill(&mut iv).map_err(|_| SignError::Crypto)?;
        let head = json!({"_n": nonce, "_appid": self.appid, "_timestamp": now}).to_string();
        let content = content(head, parameters, body)?;
        let body = self.seal(url, now, iv, content.into_bytes())?;
        let text = self.signed_text(url, now, body.as_bytes());
        let mut signature = vec![0; self.rsa.public_modulus_len()];
        self.rsa
            .sign(&RSA_PSS_SHA256, &self.random, &text, &mut signature)
            .map_err(|_| SignError::Crypto)?;
        Ok(Signed {
            body,
            timestamp: now,
            signature: STANDARD.encode(signature),
        })
    }

    /// Verifies and decrypts an answer. A plain body with an `errcode` is WeChat's refusal.
    pub fn open(
        &self,
        url: &str,
        headers: AnswerHeaders<'_>,
        body: &[u8],
        now: u64,
    ) -> Result<Opened, AnswerError> {
        if headers.signature.is_none() && headers.signature_deprecated.is_none() {
            let is_refusal = verdict::errcode(body).is_some_and(|code| code != 0);
            return if is_refusal {
                Ok(Opened::Refusal)
            } else {
                Err(AnswerError::Unsigned)
            };
        }
        let appid = headers.appid.ok_or(AnswerError::Incomplete(APPID))?;
        if appid != self.appid {
            return Err(AnswerError::OtherAppid);
        }
        let (key, signature, by_deprecated) = self.choose(headers)?;
        let timestamp = headers
            .timestamp
            .ok_or(AnswerError::Incomplete(TIMESTAMP))?;
        let timestamp: u64 = timestamp.parse().map_err(|_| AnswerError::Timestamp)?;
        if now > timestamp.saturating_add(MAX_SKEW) {
            return Err(AnswerError::Old(now - timestamp));
        }
        if timestamp > now.saturating_add(MAX_SKEW) {
            return Err(AnswerError::Ahead(timestamp - now));
        }
        let signature = STANDARD
            .decode(signature)
            .map_err(|_| AnswerError::Signature)?;
        key.key
            .verify_sig(&self.signed_text(url, timestamp, body), &signature)
            .map_err(|_| AnswerError::Signature)?;
        let content = self.unseal(url, timestamp, body)?;
        let body = self.plain(&content, timestamp)?;
        Ok(Opened::Content {
            body,
            by_deprecated,
        })
    }

    /// Chooses the signature to verify: that of a configured certificate.
    fn choose<'s>(
        &'s self,
        headers: AnswerHeaders<'s>,
    ) -> Result<(&'s PlatformKey, &'s str, bool), AnswerError> {
        let known = |serial: &str| self.platform.iter().find(|key| key.serial == serial);
        let serial = headers.serial.ok_or(AnswerError::Incomplete(SERIAL))?;
        if let Some(key) = known(serial) {
            let signature = headers
                .signature
                .ok_or(AnswerError::Incomplete(SIGNATURE))?;
            return Ok((key, signature, false));
        }
        match headers.serial_deprecated.and_then(known) {
            Some(key) => {
                let signature = headers
                    .signature_deprecated
                    .ok_or(AnswerError::Incomplete(SIGNATURE_DEPRECATED))?;
                Ok((key, signature, true))
            }
            // Sanitised, because the value comes from the network and ends up in a log.
            None => Err(AnswerError::UnknownSerial(
                serial
                    .chars()
                    .filter(char::is_ascii_alphanumeric)
                    .take(64)
                    .collect(),
            )),
        }
    }

    fn signed_text(&self, url: &str, timestamp: u64, body: &[u8]) -> Vec<u8> {
        let mut text = format!("{url}\n{}\n{timestamp}\n", self.appid).into_bytes();
        text.extend_from_slice(body);
        text
    }

    fn additional_data(&self, url: &str, timestamp: u64) -> Aad<String> {
        let (appid, serial) = (&self.appid, &self.aes_serial);
        Aad::from(format!("{url}|{appid}|{timestamp}|{serial}"))
    }

    fn seal(
        &self,
        url: &str,
        timestamp: u64,
        iv: [u8; NONCE_LEN],
        mut content: Vec<u8>,
    ) -> Result<String, SignError> {
        let aad = self.additional_data(url, timestamp);
        let tag = self
            .aes
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), aad, &mut content)
            .map_err(|_| SignError::Crypto)?;
        let (iv, data) = (STANDARD.encode(iv), STANDARD.encode(content));
        let tag = STANDARD.encode(tag.as_ref());
        Ok(format!(
            r#"{{"iv":"{iv}","data":"{data}","authtag":"{tag}"}}"#
        ))
    }

    fn unseal(&self, url: &str, timestamp: u64, body: &[u8]) -> Result<Vec<u8>, AnswerError> {
        #[derive(Deserialize)]
        struct Envelope {
            iv: String,
            data: String,
            authtag: String,
        }
        let envelope: Envelope =
            serde_json::from_slice(body).map_err(|_| AnswerError::NotAnEnvelope)?;
        let decoded = |text: &str| {
            STANDARD
                .decode(text)
                .map_err(|_| AnswerError::NotAnEnvelope)
        };
        let iv = decoded(&envelope.iv)?;
        let tag = decoded(&envelope.authtag)?;
        // A shorter tag is easier to forge.
        if tag.len() != TAG_LEN {
            return Err(AnswerError::NotAnEnvelope);
        }
        let nonce =
            Nonce::try_assume_unique_for_key(&iv).map_err(|_| AnswerError::NotAnEnvelope)?;
        let mut data = decoded(&envelope.data)?;
        data.extend_from_slice(&tag);
        let aad = self.additional_data(url, timestamp);
        let length = self
            .aes
            .open_in_place(nonce, aad, &mut data)
            .map_err(|_| AnswerError::Undecryptable)?
            .len();
        data.truncate(length);
        Ok(data)
    }

    /// Removes the envelope's own members from the content; keeps all others byte for byte.
    fn plain(&self, content: &[u8], timestamp: u64) -> Result<Vec<u8>, AnswerError> {
        let members = members(content).ok_or(AnswerError::Content)?;
        let is = |name: &str, right: &Value| {
            let mut same_name = members.iter().filter(|member| member.name == name);
            let value = |text| serde_json::from_slice::<Value>(text).ok();
            let first = same_name.next().and_then(|member| value(member.value));
            first.as_ref() == Some(right) && same_name.next().is_none()
        };
        if !is("_appid", &json!(self.appid)) {
            return Err(AnswerError::ContentAppid);
        }
        if !is("_timestamp", &json!(timestamp)) {
            return Err(AnswerError::ContentTimestamp);
        }
        let mut plain = vec![b'{'];
        for member in members
            .iter()
            .filter(|member| !RESERVED.contains(&&*member.name))
        {
            if plain.len() > 1 {
                plain.push(b',');
            }
            plain.extend_from_slice(member.text);
        }
        plain.push(b'}');
        Ok(plain)
    }
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKeys")
            .field("appid", &self.appid)
            .finish_non_exhaustive()
    }
}
