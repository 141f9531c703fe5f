//! Errors of the data path, and their answers, which are made here only.
//!
//! The answers follow the contract: a slug in `x-wxgate-error`, a real status unless
//! `server.error_style` wants 200, and a body in WeChat's shape with a code outside WeChat's range. No text here ever holds a token, a secret or
//! an upstream URL.

use std::time::Duration;

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};

use super::{inject::QueryError, path::PathError};
use crate::{
    base::AccountName,
    service::Scope,
    token::TokenError,
    wechat::{api::Platform, codes, signing::SignError},
};

/// Header that marks an error of wxgate's own.
pub(crate) const X_WXGATE_ERROR: HeaderName = HeaderName::from_static("x-wxgate-error");

/// Longest wait that is asked of a caller for a token. HTTP libraries sleep as long as they are told,
/// and an operator may have mended the account long before its next fetch.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Reasons why wxgate answers with an error of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("{0}")]
    Path(#[from] PathError),
    #[error("{0}")]
    Query(#[from] QueryError),
    #[error(
        "no account is named {0:?} here; check the path prefix /@NAME or the header X-Wxgate-Account against the configuration"
    )]
    AccountUnknown(String),
    #[error(
        "the request does not say which account it is for; add /@NAME before the path, send X-Wxgate-Account, or set default_account"
    )]
    AccountMissing,
    #[error("path prefix, X-Wxgate-Account and Host name different accounts; keep one of them")]
    AccountConflict,
    #[error(
        "the host that the request names is {host}'s, and account {account} is of {of}; name a host of {of}, or an \
             account of {host}",
        host = host.as_str(), of = of.as_str()
    )]
    PlatformConflict {
        host: Platform,
        account: AccountName,
        of: Platform,
    },
    #[error(
        "no account here is of {platform}, whose API this call is for; add an [[account]] with platform = \"{key}\"",
        platform = .0.as_str(), key = .0.key()
    )]
    PlatformUnknown(Platform),
    #[error(
        "no account here has the appid {0:?} of this login, so wxgate has no AppSecret for it; compare the [[account]] \
             sections"
    )]
    AppidUnknown(String),
    #[error(
        "the access_token in the query is that of another account here; leave it out, or select its account"
    )]
    TokenOfOtherAccount,
    #[error(
        "the access_token in the query is not one of account {0}, whose foreign_token refuses such tokens; leave it out, \
             or send the call to WeChat itself"
    )]
    ForeignToken(AccountName),
    #[error(
        "this token is not known here: ask wxgate for one, by the token call that this program makes"
    )]
    TokenUnknown(Platform),
    #[error("{0}")]
    ClientUnknown(&'static str),
    #[error(
        "client {client} may not use account {account}; add it to accounts in its [[client]] section"
    )]
    AccountDenied {
        client: AccountName,
        account: AccountName,
    },
    #[error(
        "client {client} may not call this path; compare allow and deny in its [[client]] section"
    )]
    PathDenied { client: AccountName },
    #[error("client {client} lacks the scope {scope}; give it by may = [\"{scope}\"] in its [[client]] section", scope = scope.as_str())]
    ScopeDenied { client: AccountName, scope: Scope },
    #[error(
        "this call repeats the URL of another one, and the token in it cannot be masked once it is encrypted; send the \
             call without Wechatmp-Signature, or give client {client} may = [\"token\"] in its [[client]] section"
    )]
    EncryptedRepetition { client: AccountName },
    #[error(
        "client {client} calls faster than its rate allows; slow down, or raise rate in its [[client]] section"
    )]
    RateLimited {
        client: AccountName,
        retry_after: Duration,
    },
    #[error(
        "this token is no longer good or never was: fetch another one from cgi-bin/token, cgi-bin/stable_token or \
             cgi-bin/gettoken of wxgate"
    )]
    PhantomRefused(Platform),
    #[error(
        "wxgate keeps the token itself, so this endpoint is not forwarded; call the API without a token instead"
    )]
    TokenEndpoint,
    #[error(
        "this endpoint {effect}, so it is forwarded for a client only whose [[client]] section says allow = [\"{path}\"], \
             beside what else it may call"
    )]
    GuardedEndpoint { path: String, effect: &'static str },
    #[error(
        "calls without a key are more than 20 a second from this address; slow down, or send a client's key"
    )]
    KeylessTooFast { retry_after: Duration },
    #[error(
        "calls without a key have an eighth of upstream.max_in_flight in flight; try again shortly, or send a client's key"
    )]
    KeylessTaken,
    #[error("there is nothing at this address below /-/")]
    NotFound,
    #[error(
        "nothing is served at this path here: probe /-/livez or /-/readyz; page, /livez, /readyz and /metrics are on the \
             admin listener (admin.listen)"
    )]
    ProbeElsewhere,
    #[error("the request body is larger than {limit} bytes; raise server.max_body{hint}")]
    BodyTooLarge { limit: u64, hint: &'static str },
    #[error(
        "the body of a signed call may have 1 MiB at most; send less, or take the path out of the account's signing.paths if WeChat takes it unsigned"
    )]
    SignedBodyTooLarge,
    #[error("{0}")]
    Signing(#[from] SignError),
    #[error("the body of this call is larger than 64 KiB; it holds an order of a few lines")]
    OrderTooLarge,
    #[error("{0}")]
    TokenUnavailable(TokenError),
    #[error("too many requests are in flight; try again shortly, or raise {0}")]
    Overloaded(&'static str),
    #[error(
        "{0} has its upstream.max_share of the requests in flight while others ask too; try again shortly, send fewer at \
         a time, or raise upstream.max_share or upstream.max_in_flight"
    )]
    ShareTaken(String),
    #[error(
        "client {client} has server.max_connections_per_client connections open; keep fewer, or raise it"
    )]
    ConnectionsTaken { client: AccountName },
    #[error("{reason}")]
    UpstreamFailed { reason: String },
    #[error("{0}")]
    Loop(&'static str),
    #[error("WeChat did not answer within upstream.response_timeout")]
    UpstreamTimeout,
}

impl ProxyError {
    /// Returns status, errcode and slug.
    fn row(&self) -> (StatusCode, u32, &'static str) {
        match self {
            Self::BadRequest(_)
            | Self::Path(_)
            | Self::Query(_)
            | Self::Signing(SignError::NotAnObject | SignError::Reserved) => {
                (StatusCode::BAD_REQUEST, 990_400, "bad_request")
            }
            Self::AccountUnknown(_)
            | Self::AccountMissing
            | Self::PlatformUnknown(_)
            | Self::AppidUnknown(_) => (StatusCode::BAD_REQUEST, 990_400, "account_unknown"),
            Self::AccountConflict | Self::PlatformConflict { .. } | Self::TokenOfOtherAccount => {
                (StatusCode::BAD_REQUEST, 990_400, "account_conflict")
            }
            Self::ForeignToken(_) => (StatusCode::BAD_REQUEST, 990_400, "foreign_token"),
            // The platform's own words, so that an SDK asks for another token.
            Self::PhantomRefused(platform) => (
                StatusCode::OK,
                codes::stale_code(*platform),
                "phantom_refused",
            ),
            // The same, for a caller that is no client yet.
            Self::TokenUnknown(platform) => (
                StatusCode::OK,
                codes::stale_code(*platform),
                "client_unknown",
            ),
            Self::ClientUnknown(_) => (StatusCode::UNAUTHORIZED, 990_401, "client_unknown"),
            Self::AccountDenied { .. } => (StatusCode::FORBIDDEN, 990_403, "account_denied"),
            Self::PathDenied { .. } => (StatusCode::FORBIDDEN, 990_403, "path_denied"),
            Self::ScopeDenied { .. } | Self::EncryptedRepetition { .. } => {
                (StatusCode::FORBIDDEN, 990_403, "scope_denied")
            }
            Self::RateLimited { .. } | Self::KeylessTooFast { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, 990_429, "rate_limited")
            }
            Self::TokenEndpoint | Self::GuardedEndpoint { .. } => {
                (StatusCode::FORBIDDEN, 990_403, "endpoint_blocked")
            }
            Self::NotFound | Self::ProbeElsewhere => (StatusCode::NOT_FOUND, 990_404, "not_found"),
            Self::BodyTooLarge { .. } | Self::OrderTooLarge | Self::SignedBodyTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, 990_413, "body_too_large")
            }
            Self::UpstreamFailed { .. } | Self::Loop(_) | Self::Signing(SignError::Crypto) => {
                (StatusCode::BAD_GATEWAY, 990_502, "upstream_failed")
            }
            Self::TokenUnavailable(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                990_503,
                "token_unavailable",
            ),
            Self::Overloaded(_)
            | Self::ShareTaken(_)
            | Self::KeylessTaken
            | Self::ConnectionsTaken { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, 990_503, "overloaded")
            }
            Self::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, 990_504, "upstream_timeout"),
        }
    }

    /// Returns the slug, which is also the outcome in metrics and log.
    pub(crate) fn slug(&self) -> &'static str {
        self.row().2
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TokenUnavailable(error) => Some(error.retry_after().min(MAX_RETRY_AFTER)),
            Self::Overloaded(_)
            | Self::ShareTaken(_)
            | Self::KeylessTaken
            | Self::ConnectionsTaken { .. } => Some(Duration::from_secs(1)),
            Self::RateLimited { retry_after, .. } | Self::KeylessTooFast { retry_after } => {
                Some(*retry_after + Duration::from_millis(999))
            }
            _ => None,
        }
    }

    /// Returns true if the caller was denied something, which the audit log records.
    pub(crate) fn is_denial(&self) -> bool {
        matches!(
            self.row().0,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS
        ) || matches!(self, Self::PhantomRefused(_) | Self::TokenUnknown(_))
    }

    /// Makes the answer, without the headers that every answer gets; with status 200 if `is_ok`.
    pub(crate) fn response(&self, is_ok: bool) -> Response<Bytes> {
        let (status, errcode, slug) = self.row();
        let prefix = match self {
            Self::PhantomRefused(Platform::Wechat) | Self::TokenUnknown(Platform::Wechat) => {
                "invalid credential, access_token is invalid or not latest, "
            }
            Self::PhantomRefused(Platform::Wecom) | Self::TokenUnknown(Platform::Wecom) => {
                "invalid access_token, "
            }
            _ => "",
        };
        let message = serde_json::Value::from(format!("{prefix}wxgate: {self}"));
        let mut response = Response::new(Bytes::from(format!(
            "{{\"errcode\":{errcode},\"errmsg\":{message}}}"
        )));
        *response.status_mut() = if is_ok { StatusCode::OK } else { status };
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        if !matches!(self, Self::PhantomRefused(_)) {
            headers.insert(X_WXGATE_ERROR, HeaderValue::from_static(slug));
        }
        if let Some(after) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Cause, budget::BudgetKind};

    #[test]
    fn a_caller_without_a_token_is_never_told_to_sleep_for_minutes() {
        let name = AccountName::new("shop").unwrap();
        for (wait, told) in [(4, "4"), (30, "30"), (31, "30"), (600, "30")] {
            let cause = Cause::Budget(BudgetKind::Forced);
            let error = TokenError::new(name.clone(), cause, Duration::from_secs(wait));
            let response = ProxyError::TokenUnavailable(error).response(false);
            assert_eq!(response.headers()[RETRY_AFTER], told);
        }
    }
}
