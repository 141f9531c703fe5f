//! Reasons of a refresh, and what follows from them for the fetch and the budget.

use crate::token::{budget::Forcer, source::FetchMode};

/// Reason of a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// There is no token yet.
    Start,
    /// The token comes to its end.
    Timer,
    /// A token that another server keeps is read again. Costs nothing at WeChat.
    Poll,
    /// WeChat rejected the token.
    Rejected,
    /// WeChat rejected the token and gives it again.
    Forced,
    /// A person wants it.
    Operator { force: bool },
}

impl Trigger {
    /// Label for metrics; bounded.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Timer => "timer",
            Self::Poll => "poll",
            Self::Rejected => "rejected",
            Self::Forced => "forced",
            Self::Operator { .. } => "operator",
        }
    }

    /// True if a rejection is the reason.
    pub(super) fn is_rejection(self) -> bool {
        matches!(self, Self::Rejected | Self::Forced)
    }

    pub(super) fn is_operator(self) -> bool {
        matches!(self, Self::Operator { .. })
    }

    /// Mode of the fetch.
    pub(crate) fn mode(self) -> FetchMode {
        match self {
            Self::Forced | Self::Operator { force: true } => FetchMode::Forced,
            _ => FetchMode::Normal,
        }
    }

    /// Share of the forced budget that pays.
    pub(crate) fn forcer(self) -> Forcer {
        if self.is_operator() {
            Forcer::Operator
        } else {
            Forcer::Refresher
        }
    }
}
