//! Answers that wxgate gives itself instead of WeChat: phantom tokens, the service API below `/-/`,
//! and the readiness of the node.
//!
//! Independent of HTTP and of permissions: `proxy` reads the request and checks the caller first.

mod answer;
mod call;
mod jssdk;
pub(crate) mod phantom;
pub(crate) mod readiness;
#[cfg(test)]
mod tests;

pub(crate) use answer::{ServedAccount, ServiceReply, sdk_ticket};
pub(crate) use call::{ServiceCall, ServiceError};

/// Permission of a client beyond proxying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Read the real token.
    Token,
    /// Request a refresh.
    Refresh,
    /// Read tickets and request signatures.
    Ticket,
}

impl Scope {
    /// Returns the name used in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Refresh => "refresh",
            Self::Ticket => "ticket",
        }
    }
}
