//! What wxgate answers itself instead of WeChat: phantom tokens, and the service API below `/-/`.
//!
//! Knows nothing of how a request came in or whether its caller may: `proxy` asks for both first.

pub mod phantom;

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

impl std::fmt::Display for Scope {
    /// The word of the configuration.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token => "token",
            Self::Refresh => "refresh",
            Self::Ticket => "ticket",
        })
    }
}
