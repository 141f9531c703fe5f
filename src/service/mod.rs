//! What wxgate answers itself instead of WeChat: phantom tokens, and the service API below `/-/`.
//!
//! Knows nothing of how a request came in or whether its caller may: `proxy` asks for both first.

mod answer;
mod call;
mod jssdk;
pub mod phantom;
#[cfg(test)]
mod tests;

pub use answer::{Account, Reply};
pub use call::{Call, Refusal};

/// An extra that a client may have beyond proxying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Read the real token.
    Token,
    /// Ask for a refresh.
    Refresh,
    /// Read tickets and have signatures made.
    Ticket,
}

impl Scope {
    /// The word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Refresh => "refresh",
            Self::Ticket => "ticket",
        }
    }
}
