//! What follows from an answer: deliver it, or refresh and send once more.
//!
//! Pure. That there is no third time is the shape of the pipeline, not a count kept here.

use hyper::StatusCode;

use crate::wechat::{address, api::Platform, codes};

/// What to do with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It goes to the caller; the token was good.
    DeliverAccepted,
    /// It goes to the caller and says nothing about the token.
    Deliver,
    /// The token was refused before anything was executed.
    Refresh {
        /// The stale code.
        errcode: i64,
    },
}

/// `injected` is whether the account's token was in the request: a refusal of somebody else's token
/// is not ours to cure.
pub(crate) fn after(
    platform: Platform,
    injected: bool,
    status: StatusCode,
    errcode: Option<i64>,
) -> Next {
    match errcode {
        _ if !injected => Next::Deliver,
        Some(errcode) if codes::is_stale(platform, errcode) => Next::Refresh { errcode },
        // The token did not arrive, which proves nothing.
        Some(codes::TOKEN_MISSING) => Next::Deliver,
        // The address is looked at before the token, so this is no proof either.
        Some(errcode) if address::may_be_refused(platform, errcode) => Next::Deliver,
        _ if status == StatusCode::OK => Next::DeliverAccepted,
        _ => Next::Deliver,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_of_our_own_token_is_cured() {
        let ok = StatusCode::OK;
        for (platform, injected, status, errcode, next) in [
            (
                Platform::Wechat,
                true,
                ok,
                Some(40001),
                Next::Refresh { errcode: 40001 },
            ),
            (Platform::Wechat, false, ok, Some(40001), Next::Deliver),
            (
                Platform::Wecom,
                true,
                ok,
                Some(40001),
                Next::DeliverAccepted,
            ),
            (
                Platform::Wechat,
                true,
                ok,
                Some(48001),
                Next::DeliverAccepted,
            ),
            (Platform::Wechat, true, ok, None, Next::DeliverAccepted),
            (Platform::Wechat, true, ok, Some(40164), Next::Deliver),
            (Platform::Wecom, true, ok, Some(60020), Next::Deliver),
            (
                Platform::Wechat,
                true,
                ok,
                Some(60020),
                Next::DeliverAccepted,
            ),
            (Platform::Wechat, true, ok, Some(41001), Next::Deliver),
            (
                Platform::Wechat,
                true,
                StatusCode::BAD_GATEWAY,
                None,
                Next::Deliver,
            ),
        ] {
            assert_eq!(
                after(platform, injected, status, errcode),
                next,
                "{platform:?} {injected} {status} {errcode:?}"
            );
        }
    }
}
