//! Reasons why keys, calls and answers are refused, and the refusals of WeChat's signature layer.

/// Reason for refusing a key. Each text tells the operator the remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// Not PEM, or PEM without a private key.
    #[error("is no private key in PEM: take the file as the console of WeChat gave it")]
    NoPrivateKey,
    /// A key of another algorithm.
    #[error(
        "is no RSA key of 2048 bits or more: choose RSAwithSHA256 at WeChat under API 安全; SM2 is not supported"
    )]
    NotRsa,
    /// Not base64.
    #[error("is not base64: copy the symmetric key as the console of WeChat shows it")]
    AesNotBase64,
    /// 16 bytes, the length of an SM4 key.
    #[error(
        "has 16 bytes, as SM4 keys have: choose AES256_GCM at WeChat under API 安全; SM4 is not supported"
    )]
    Sm4,
    /// Neither 32 nor 16 bytes.
    #[error("has not 32 bytes: copy the symmetric key as the console of WeChat shows it")]
    AesLength,
    /// Not a certificate.
    #[error(
        "is no certificate in PEM with an RSA key: download the platform certificate at WeChat under API 安全"
    )]
    NoCertificate,
    /// No certificate, or more than two.
    #[error(
        "must hold one or two certificates: the one in use, and the next one while WeChat changes it"
    )]
    Certificates,
}

/// Reason for not signing a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The body is no JSON object.
    #[error("the body is no JSON object, and only JSON objects can be signed")]
    NotAnObject,
    /// A member of the call has a name that the envelope reserves.
    #[error(
        "the call has a parameter _n, _appid or _timestamp, which API signing uses itself; leave it out"
    )]
    Reserved,
    /// The system gave no random bytes, or the key failed.
    #[error("the call could not be signed with the account's key")]
    Crypto,
}

/// Reason for not passing an answer on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Neither of the two signature headers.
    #[error("WeChat's answer to a signed call is not signed")]
    Unsigned,
    /// A header of the signature is missing.
    #[error("WeChat's answer is signed but lacks the header {0}")]
    Incomplete(&'static str),
    /// Signed for another appid.
    #[error(
        "WeChat's answer is signed for another appid; compare signing with the account's appid"
    )]
    OtherAppid,
    /// Signed by a certificate that is not configured.
    #[error(
        "WeChat's answer is signed with the platform certificate {0}, which signing.platform_certs does not have; \
         download it at WeChat under API 安全"
    )]
    UnknownSerial(String),
    /// The header is no number.
    #[error("the timestamp of WeChat's signed answer is not a number of seconds")]
    Timestamp,
    /// More than five minutes old.
    #[error(
        "WeChat's signed answer is {0} seconds old, and 300 are allowed; check this machine's clock"
    )]
    Old(u64),
    /// More than five minutes ahead.
    #[error("WeChat's signed answer is from {0} seconds ahead; check this machine's clock")]
    Ahead(u64),
    /// Signature, body and key do not match.
    #[error(
        "the signature of WeChat's answer does not fit; the certificate under this number is another one, or the \
         answer was changed on its way"
    )]
    Signature,
    /// Not an envelope with the three fields.
    #[error("WeChat's signed answer is no envelope of iv, data and authtag")]
    NotAnEnvelope,
    /// Wrong symmetric key or wrong serial number.
    #[error(
        "WeChat's signed answer cannot be decrypted; compare signing.aes_key and signing.aes_serial with the console"
    )]
    Undecryptable,
    /// The content is no JSON object.
    #[error("the content of WeChat's signed answer is no JSON object")]
    Content,
    /// The content names another appid than the envelope.
    #[error("the content of WeChat's signed answer is meant for another appid")]
    ContentAppid,
    /// The content has another timestamp than the envelope.
    #[error("the content of WeChat's signed answer has another timestamp than its header")]
    ContentTimestamp,
}

/// Explains a refusal of the signature layer. Such a refusal is final: neither a new token nor a
/// second attempt helps.
pub(crate) fn explain(code: i64) -> Option<&'static str> {
    Some(match code {
        40230..=40233 => {
            "a header of API signing is missing: add the path to the account's signing.paths"
        }
        40234 => {
            "WeChat refuses the signature: the private key does not belong to the public key at WeChat, or the call \
             must be signed and is not in the account's signing.paths"
        }
        40235 => {
            "WeChat cannot decrypt the call: compare signing.aes_key and signing.aes_serial with the console, or add \
             the path to signing.paths if the call went unsigned"
        }
        40236 => "WeChat does not know the appid of the signature: correct the account's appid",
        40237 => {
            "the call is signed for another appid than that of its token: correct the account's appid"
        }
        40238 => "WeChat has no symmetric key of this account: make one under API 安全",
        40239 => "WeChat has no public key of this account: upload one under API 安全",
        40240 => "the signature is too old: check this machine's clock",
        _ => return None,
    })
}
