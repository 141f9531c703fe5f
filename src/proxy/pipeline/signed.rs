//! Calls with API signing: which calls are signed, one attempt with the sealed body, and the plain
//! answer for the caller.
//!
//! `wechat::signing` knows the form of the envelope. Each attempt is sealed anew, so that a replay
//! has its own nonce and timestamp.

use std::{io::Read as _, mem};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Response,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue},
};
use tokio::time::timeout;

use super::attempt::{Inspected, OutboundCall};
use crate::{
    proxy::{
        body::{NotReplayable, Payload},
        error::ProxyError,
        inject,
        inspect::InspectedBody,
        query,
        route::AccountSigning,
    },
    token::Token,
    wechat::{
        signing::{
            self, APPID, AnswerHeaders, Opened, SERIAL, SERIAL_DEPRECATED, SIGNATURE,
            SIGNATURE_DEPRECATED, TIMESTAMP,
        },
        verdict,
    },
};

/// Longest plain body of a signed call, in bytes. The body is in memory as a whole while it is
/// sealed.
const MAX_BODY: u64 = 1 << 20;
/// Longest signed answer, in bytes. It is in memory as a whole while it is verified.
const MAX_ANSWER: usize = 4 << 20;
/// Beginning of the names of all headers of API signing.
const PREFIX: &str = "wechatmp-";

const NO_ROOM: ProxyError = ProxyError::Overloaded(
    "replay.memory_total or replay.disk, where the bodies of signed calls are kept",
);

impl<'c> OutboundCall<'c> {
    /// Decides if the call is signed, and reads the body of a call that is. The attempts see the
    /// decision in `self.signing`.
    pub(super) async fn prepare_signing(
        &mut self,
        signing: &'c AccountSigning,
    ) -> Result<(), ProxyError> {
        if !signing.settings.covers(self.path.as_str()) {
            return Ok(());
        }
        let metrics = &self.account.metrics;
        if self.headers.get(SIGNATURE).is_some() {
            // The caller has keys of its own and opens the answer by itself.
            metrics.signing("by_caller");
            return Ok(());
        }
        let (result, reason) = if *self.method != Method::POST {
            ("unsigned_method", "only POST can be signed")
        } else if self.has_json_object().await? {
            self.signing = Some(signing);
            return Ok(());
        } else {
            (
                "unsigned_type",
                "only a JSON object can be signed, and uploads never are",
            )
        };
        self.account.metrics.signing(result);
        if signing.unsigned_log.allows() {
            tracing::warn!(
                account = %self.account.name,
                id = self.id.as_str(),
                method = %self.method,
                path = self.path.as_str(),
                "a call below signing.paths goes to WeChat unsigned: {reason}; take the path out of signing.paths if \
                 WeChat takes it unsigned",
            );
        }
        Ok(())
    }

    /// Reads the body, unless its type says that it is no JSON. Returns true for a JSON object and
    /// for no body.
    async fn has_json_object(&mut self) -> Result<bool, ProxyError> {
        if !may_be_json(self.headers.get(CONTENT_TYPE.as_str())) {
            return Ok(false);
        }
        if self.payload.len() > MAX_BODY {
            return Err(ProxyError::SignedBodyTooLarge);
        }
        self.payload.make_replayable().await.map_err(unreadable)?;
        let body = self.payload.whole().map_err(unreadable)?;
        Ok(signing::is_signable(&body))
    }

    /// Sends once, sealed and signed, and opens the answer. The code is that of the opened answer.
    pub(super) async fn signed_attempt(
        &mut self,
        signing: &AccountSigning,
        token: &Token,
    ) -> Result<Inspected, ProxyError> {
        let url = signing::signed_url(self.path.as_str());
        // All other parameters are inside the envelope.
        let target = inject::inject(self.path, None, 0, token.query_value())?;
        let sealed = self.sealed(signing, &url)?;
        // The caller's body is needed again for a replay.
        let plain = mem::replace(&mut self.payload, sealed);
        let sent = self.attempt(&target).await;
        self.payload = plain;
        self.opened(signing, &url, sent?).await
    }

    /// Seals the caller's parameters and body, and sets the headers of the signature.
    fn sealed(&mut self, signing: &AccountSigning, url: &str) -> Result<Payload, ProxyError> {
        let parameters: Vec<_> = query::pairs(self.query)
            .filter(|pair| !pair.is_empty())
            .map(query::decoded)
            .filter(|(name, _)| name != "access_token")
            .collect();
        let plain = self.payload.whole().map_err(unreadable)?;
        let now = self.config.now().as_secs();
        let keys = &signing.settings.keys;
        let signed = keys.sign(url, &parameters, &plain, now)?;
        self.headers.sign([
            (CONTENT_TYPE.as_str(), "application/json".to_owned()),
            (APPID, self.account.appid.clone()),
            (TIMESTAMP, signed.timestamp.to_string()),
            (SIGNATURE, signed.signature),
        ]);
        let (replay, spool) = (&self.config.replay, &self.worker.spool);
        Payload::captured(signed.body.as_bytes(), replay, spool).map_err(|_| NO_ROOM)
    }

    /// Verifies and decrypts an answer. Only a refusal in plain text passes without a signature.
    async fn opened(
        &mut self,
        signing: &AccountSigning,
        url: &str,
        inspected: Inspected,
    ) -> Result<Inspected, ProxyError> {
        let Inspected { answer, finding } = inspected;
        let (mut head, body) = answer.into_parts();
        let packed = head.headers.contains_key(CONTENT_ENCODING);
        let body = self.whole_answer(body, packed).await?;
        let now = self.config.now().as_secs();
        let keys = &signing.settings.keys;
        let opened = keys.open(url, signature_headers(&head.headers), &body, now);
        let (body, finding) = match opened {
            Ok(Opened::Refusal) => {
                self.account.metrics.signing("refused");
                (body, finding)
            }
            Ok(Opened::Content {
                body,
                by_deprecated,
            }) => {
                self.account.metrics.signing("signed");
                if by_deprecated && signing.deprecated_log.allows() {
                    tracing::warn!(
                        account = %self.account.name,
                        id = self.id.as_str(),
                        "WeChat signs with a new platform certificate, and with the one of signing.platform_certs for \
                         some time only: download the new one under API 安全 and add it",
                    );
                }
                let body = self.account.mask().masked(&body).unwrap_or(body);
                let finding = (body.len() <= verdict::WINDOW)
                    .then(|| verdict::find(&body))
                    .flatten();
                self.note_code(finding.as_ref());
                (body.into(), finding)
            }
            Err(error) => return Err(self.unverified(&error)),
        };
        plain_headers(&mut head.headers, body.len());
        Ok(Inspected {
            answer: Response::from_parts(head, InspectedBody::Whole(body)),
            finding,
        })
    }

    /// Reads an answer as a whole; `packed` if it is compressed.
    async fn whole_answer(&self, body: InspectedBody, packed: bool) -> Result<Bytes, ProxyError> {
        let patience = self.config.response_timeout;
        let body = match timeout(patience, Limited::new(body, MAX_ANSWER).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(self.unverified(&"WeChat's signed answer is longer than 4 MiB"));
            }
            Ok(Err(_)) => {
                return Err(self.unverified(&"WeChat's signed answer broke off"));
            }
            Err(_) => return Err(ProxyError::UpstreamTimeout),
        };
        if !packed {
            return Ok(body);
        }
        // gzip was not asked for. A proxy on the way may have packed the answer all the same.
        gunzip(&body).ok_or_else(|| {
            self.unverified(&"WeChat's signed answer is compressed in a way that is not gzip")
        })
    }

    /// Counts and logs an answer that is not passed on, and makes the error for the caller.
    fn unverified(&self, reason: &dyn std::fmt::Display) -> ProxyError {
        self.account.metrics.signing("unverified");
        tracing::warn!(
            account = %self.account.name,
            id = self.id.as_str(),
            path = self.path.as_str(),
            "a signed call has no answer that can be passed on: {reason}",
        );
        ProxyError::UpstreamFailed {
            reason: reason.to_string(),
        }
    }
}

/// Returns false for types that are never JSON, such as those of uploads. SDKs send JSON as text
/// and as a form, too.
fn may_be_json(content_type: Option<&HeaderValue>) -> bool {
    let Some(value) = content_type else {
        return true;
    };
    let value = value.as_bytes().to_ascii_lowercase();
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default();
    let essence = essence.trim_ascii();
    essence.is_empty()
        || essence.ends_with(b"json")
        || essence.starts_with(b"text/")
        || essence == b"application/x-www-form-urlencoded"
}

fn signature_headers(headers: &HeaderMap) -> AnswerHeaders<'_> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    AnswerHeaders {
        appid: text(APPID),
        timestamp: text(TIMESTAMP),
        serial: text(SERIAL),
        signature: text(SIGNATURE),
        serial_deprecated: text(SERIAL_DEPRECATED),
        signature_deprecated: text(SIGNATURE_DEPRECATED),
    }
}

/// Makes the headers those of the plain answer.
fn plain_headers(headers: &mut HeaderMap, length: usize) {
    let of_signature = |name: &&HeaderName| name.as_str().starts_with(PREFIX);
    let names: Vec<HeaderName> = headers.keys().filter(of_signature).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    headers.remove(CONTENT_ENCODING);
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    headers.insert(CONTENT_TYPE, json);
    headers.insert(CONTENT_LENGTH, length.into());
}

/// Decompresses a body; a body that is labelled gzip and is not stays as it is. `None` for a broken
/// or too long one.
fn gunzip(body: &Bytes) -> Option<Bytes> {
    if !body.starts_with(&[0x1f, 0x8b]) {
        return Some(body.clone());
    }
    let mut decoded = Vec::new();
    GzDecoder::new(&body[..])
        .take(MAX_ANSWER as u64 + 1)
        .read_to_end(&mut decoded)
        .ok()?;
    (decoded.len() <= MAX_ANSWER).then(|| decoded.into())
}

fn unreadable(reason: NotReplayable) -> ProxyError {
    match reason {
        NotReplayable::Incomplete => {
            ProxyError::BadRequest("the request body broke off or came too slowly")
        }
        NotReplayable::TooLarge | NotReplayable::Disk => NO_ROOM,
    }
}
