//! Errors of a request that gets no token, in words for the operator.

use std::{fmt, net::IpAddr, time::Duration};

use super::{ProviderKind, budget::BudgetKind, credential::CredentialType, source::FetchError};
use crate::base::AccountName;

/// Error of a missing token or ticket. `Display` is one sentence with the remedy, and without
/// token, secret or URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenError {
    account: AccountName,
    credential: CredentialType,
    cause: Cause,
    retry_after: Duration,
}

/// Cause of a [`TokenError`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The last fetch failed.
    Fetch(FetchError),
    /// The day's budget for this kind of call is spent.
    Budget(BudgetKind),
    /// A forced refresh was ordered from an endpoint without a forced mode.
    CannotForce(ProviderKind),
    /// The first answer of the endpoint is not there yet.
    Waiting,
    /// The refresher has ended, because the account was removed or wxgate is stopping.
    Stopped,
}

impl TokenError {
    /// Error about an access token that lasts for `retry_after` at least.
    pub fn new(account: AccountName, cause: Cause, retry_after: Duration) -> Self {
        Self {
            account,
            credential: CredentialType::Token,
            cause,
            retry_after,
        }
    }

    /// The same error about another credential.
    #[must_use]
    pub fn about(self, credential: CredentialType) -> Self {
        Self { credential, ..self }
    }

    /// Label for metrics, from a closed set.
    pub fn label(&self) -> &'static str {
        self.cause.label()
    }

    /// Cause of the error.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// WeChat's `errcode`, if WeChat refused.
    pub fn errcode(&self) -> Option<i64> {
        self.cause.errcode()
    }

    /// Time for `Retry-After`: 1 s to 10 min, rounded up to whole seconds.
    pub fn retry_after(&self) -> Duration {
        let seconds = self.retry_after.as_secs() + u64::from(self.retry_after.subsec_nanos() > 0);
        Duration::from_secs(seconds.clamp(1, 600))
    }
}

impl Cause {
    /// Label for metrics, from a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.label(),
            Self::Budget(_) => "budget",
            Self::CannotForce(_) => "cannot_force",
            Self::Waiting => "waiting",
            Self::Stopped => "stopped",
        }
    }

    /// WeChat's `errcode`, if WeChat refused.
    pub fn errcode(&self) -> Option<i64> {
        match self {
            Self::Fetch(FetchError::Refused { code, .. } | FetchError::NoTicket { code, .. }) => {
                Some(*code)
            }
            _ => None,
        }
    }
}

impl Cause {
    /// Source address of the call as WeChat saw it, if WeChat refused that.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Fetch(FetchError::Refused { ip, .. }) => *ip,
            _ => None,
        }
    }

    /// Text of WeChat's answer to a call for a ticket, without credentials.
    pub(crate) fn words(&self) -> Option<&str> {
        match self {
            Self::Fetch(FetchError::NoTicket { said, .. }) => said.as_deref(),
            _ => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fetch(FetchError::Refused { platform, code, ip: Some(ip) }) => {
                let advice = crate::wechat::codes::token_code(*platform, *code).advice;
                write!(f, "{} refused the IP {ip} with errcode {code}: {advice}", platform.as_str())
            }
            Self::Fetch(error @ (FetchError::Refused { platform, .. } | FetchError::NoTicket { platform, .. })) => {
                write!(f, "{} refused with {error}", platform.as_str())
            }
            Self::Fetch(error) => error.fmt(f),
            Self::Budget(kind) => write!(
                f,
                "today's budget of {} fetches is spent or the last one is too recent: find out who makes tokens die, or wait",
                kind.as_str()
            ),
            Self::CannotForce(ProviderKind::External) => f.write_str(
                "another server keeps this token, so it cannot be forced from here: have it refreshed there, or ask without force",
            ),
            Self::CannotForce(_) => f.write_str(
                "this token endpoint has no forced refresh and gives the same token until its end: ask without force",
            ),
            Self::Waiting => f.write_str("the token endpoint has not answered yet: try again in a moment"),
            Self::Stopped => f.write_str("the account is being removed or wxgate is stopping: try again in a moment"),
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no {} for account {}: {}",
            self.credential, self.account, self.cause
        )
    }
}

impl std::error::Error for TokenError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wechat::api::Platform;

    fn error(cause: Cause) -> TokenError {
        TokenError::new(
            AccountName::new("shop").unwrap(),
            cause,
            Duration::from_millis(4200),
        )
    }

    #[test]
    fn a_refused_address_is_named_with_the_code_and_the_place_to_go() {
        let ip = Some("47.94.148.108".parse().unwrap());
        let error = error(Cause::Fetch(FetchError::Refused {
            platform: Platform::Wechat,
            code: 40164,
            ip,
        }));
        let text = error.to_string();
        for part in ["shop", "47.94.148.108", "40164", "whitelist"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(
            (
                error.label(),
                error.errcode(),
                error.retry_after().as_secs()
            ),
            ("40164", Some(40164), 5)
        );
    }

    #[test]
    fn every_sentence_says_what_to_do_and_waits_a_bounded_time() {
        for cause in [
            Cause::Fetch(FetchError::REFUSED),
            Cause::Fetch(FetchError::Timeout),
            Cause::Fetch(FetchError::Malformed("no JSON")),
            Cause::Fetch(FetchError::Refused {
                platform: Platform::Wechat,
                code: 40125,
                ip: None,
            }),
            Cause::Fetch(FetchError::Phantom),
            Cause::CannotForce(ProviderKind::Wecom),
            Cause::CannotForce(ProviderKind::External),
            Cause::Budget(BudgetKind::Classic),
            Cause::Waiting,
            Cause::Stopped,
        ] {
            let text = error(cause).to_string();
            assert!(text.contains(": "), "{text}");
            assert!(!text.contains("://"), "{text}");
        }
        let long = TokenError::new(
            AccountName::new("a").unwrap(),
            Cause::Waiting,
            Duration::from_secs(86_400),
        );
        assert_eq!(long.retry_after(), Duration::from_secs(600));
        assert_eq!(
            TokenError {
                retry_after: Duration::ZERO,
                ..long
            }
            .retry_after(),
            Duration::from_secs(1)
        );
    }
}
