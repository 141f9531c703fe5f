//! The evidence that an answer gives about the token that was sent with its request.
//!
//! Pure. The consequences, and that nothing is sent a third time, are the business of the pipeline.

use hyper::StatusCode;

use crate::wechat::{address, api::Platform, codes};

/// Evidence about the token of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenVerdict {
    /// WeChat has taken the token.
    Accepted,
    /// The answer says nothing about the token.
    Unproven,
    /// The token was refused before anything was executed.
    Stale { errcode: i64 },
}

/// Judges the account's own token by the answer to a call that carried it.
pub(crate) fn judge(platform: Platform, status: StatusCode, errcode: Option<i64>) -> TokenVerdict {
    match errcode {
        Some(errcode) if codes::is_stale(platform, errcode) => TokenVerdict::Stale { errcode },
        // The token did not arrive, which proves nothing.
        Some(codes::TOKEN_MISSING) => TokenVerdict::Unproven,
        // The address is looked at before the token, so this is no proof either.
        Some(errcode) if address::may_be_refused(platform, errcode) => TokenVerdict::Unproven,
        _ if status == StatusCode::OK => TokenVerdict::Accepted,
        _ => TokenVerdict::Unproven,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_accepts_or_refuses_the_token_or_proves_nothing() {
        use {Platform::*, TokenVerdict::*};
        let ok = StatusCode::OK;
        for (platform, status, errcode, verdict) in [
            (Wechat, ok, Some(40001), Stale { errcode: 40001 }),
            (Wecom, ok, Some(40001), Accepted),
            (Wechat, ok, Some(48001), Accepted),
            (Wechat, ok, None, Accepted),
            (Wechat, ok, Some(40164), Unproven),
            (Wecom, ok, Some(60020), Unproven),
            (Wechat, ok, Some(60020), Accepted),
            (Wechat, ok, Some(41001), Unproven),
            (Wechat, StatusCode::BAD_GATEWAY, None, Unproven),
        ] {
            assert_eq!(
                judge(platform, status, errcode),
                verdict,
                "{platform:?} {status} {errcode:?}"
            );
        }
    }
}
