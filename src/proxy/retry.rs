//! The evidence that an answer gives about the token that was sent with its request.
//!
//! Pure. The consequences, and that nothing is sent a third time, are the business of the pipeline.

use std::net::IpAddr;

use hyper::StatusCode;

use crate::wechat::{
    address,
    api::Platform,
    codes,
    verdict::{Code, Finding},
};

/// Evidence about the token of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenVerdict {
    /// WeChat has taken the token.
    Accepted,
    /// The answer says nothing about the token.
    Unproven,
    /// The address of this node was refused. WeChat looks at it before the token, so the answer
    /// says nothing about the token.
    AddressRefused { errcode: i64, ip: Option<IpAddr> },
    /// The token was refused before anything was executed.
    Stale { errcode: i64 },
}

/// Judges the account's own token by the answer to a call that carried it.
pub(crate) fn judge(
    platform: Platform,
    status: StatusCode,
    finding: Option<&Finding>,
) -> TokenVerdict {
    // An error status may come from behind the call's execution, so it is never replayed.
    let finding = finding.filter(|_| status.is_success());
    // A `ret` is a code of the interface's own: the numbers of refused tokens mean something else.
    if let Some(Finding {
        code: Code::Errcode(errcode),
        message,
    }) = finding
    {
        let (errcode, message) = (*errcode, message.as_deref().unwrap_or_default());
        if codes::is_stale(platform, errcode) {
            return TokenVerdict::Stale { errcode };
        }
        if address::is_refused(platform, errcode, message) {
            let ip = address::named_in(message);
            return TokenVerdict::AddressRefused { errcode, ip };
        }
        if errcode == codes::TOKEN_MISSING {
            // The token did not arrive, which proves nothing.
            return TokenVerdict::Unproven;
        }
    }
    if status == StatusCode::OK {
        TokenVerdict::Accepted
    } else {
        TokenVerdict::Unproven
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errcode(code: i64, message: &str) -> Finding {
        Finding {
            code: Code::Errcode(code),
            message: Some(message.to_owned()),
        }
    }

    #[test]
    fn an_answer_accepts_or_refuses_the_token_or_proves_nothing() {
        use {Platform::*, TokenVerdict::*};
        let ok = StatusCode::OK;
        let refused = |errcode| AddressRefused { errcode, ip: None };
        for (platform, status, finding, verdict) in [
            (
                Wechat,
                ok,
                Some(errcode(40001, "")),
                Stale { errcode: 40001 },
            ),
            (
                Wechat,
                StatusCode::BAD_GATEWAY,
                Some(errcode(40001, "")),
                Unproven,
            ),
            (
                Wechat,
                StatusCode::INTERNAL_SERVER_ERROR,
                Some(errcode(40164, "")),
                Unproven,
            ),
            (Wecom, ok, Some(errcode(40001, "")), Accepted),
            (Wechat, ok, Some(errcode(48001, "")), Accepted),
            (Wechat, ok, None, Accepted),
            (Wechat, ok, Some(errcode(40164, "")), refused(40164)),
            (Wechat, ok, Some(errcode(45035, "")), refused(45035)),
            (
                Wechat,
                ok,
                Some(errcode(61004, "no clientip")),
                refused(61004),
            ),
            (
                Wechat,
                ok,
                Some(errcode(61004, "api unauthorized")),
                Accepted,
            ),
            (Wecom, ok, Some(errcode(60020, "")), refused(60020)),
            (Wechat, ok, Some(errcode(60020, "")), Accepted),
            (Wechat, ok, Some(errcode(41001, "")), Unproven),
            (Wechat, StatusCode::BAD_GATEWAY, None, Unproven),
        ] {
            assert_eq!(
                judge(platform, status, finding.as_ref()),
                verdict,
                "{platform:?} {status} {finding:?}"
            );
        }
    }

    #[test]
    fn the_refused_address_is_the_one_that_wechat_names() {
        let message = "invalid ip 203.0.113.9 ipv6 ::ffff:203.0.113.9, not in whitelist";
        assert_eq!(
            judge(
                Platform::Wechat,
                StatusCode::OK,
                Some(&errcode(40164, message))
            ),
            TokenVerdict::AddressRefused {
                errcode: 40164,
                ip: Some([203, 0, 113, 9].into()),
            }
        );
    }

    #[test]
    fn a_ret_says_nothing_against_the_token() {
        for number in [40001, 40014, 42001, 41001, 40164, 45035, 60020, 61004, 2009] {
            let finding = Finding {
                code: Code::Ret(number),
                message: None,
            };
            for platform in [Platform::Wechat, Platform::Wecom] {
                assert_eq!(
                    judge(platform, StatusCode::OK, Some(&finding)),
                    TokenVerdict::Accepted,
                    "{platform:?} {number}"
                );
            }
        }
    }
}
