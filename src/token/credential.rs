//! Credential that a refresher keeps fresh: an account's token, or one of the tickets that are
//! fetched with it.
//!
//! Names only. What follows from the difference stands where it follows.

use std::fmt;

use crate::{base::AccountName, wechat::ticket::TicketType};

/// One of the things that expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CredentialType {
    /// The access token.
    Token,
    /// A ticket. Costs no token budget, and WeChat never rejects it towards wxgate.
    Ticket(TicketType),
}

/// Under which name a store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecordKey {
    /// Whose it is.
    pub account: AccountName,
    /// What it is.
    pub credential: CredentialType,
}

impl CredentialType {
    /// In words, for logs and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "access token",
            Self::Ticket(TicketType::Jsapi) => "jsapi ticket",
            Self::Ticket(TicketType::WxCard) => "wx_card ticket",
            Self::Ticket(TicketType::AgentConfig) => "agent_config ticket",
        }
    }
}

impl RecordKey {
    /// The key of an account's token.
    pub fn token(account: &AccountName) -> Self {
        Self {
            account: account.clone(),
            credential: CredentialType::Token,
        }
    }
}

impl fmt::Display for CredentialType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `shop` or `shop.jsapi`: unambiguous, since names hold no dots.
impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.credential {
            CredentialType::Token => self.account.fmt(f),
            CredentialType::Ticket(kind) => write!(f, "{}.{}", self.account, kind.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_name_of_its_own_and_tokens_keep_their_old_one() {
        let account = AccountName::new("shop").unwrap();
        let name = |credential| {
            RecordKey {
                account: account.clone(),
                credential,
            }
            .to_string()
        };
        assert_eq!(
            (
                name(CredentialType::Token),
                RecordKey::token(&account).to_string()
            ),
            ("shop".to_owned(), "shop".to_owned())
        );
        assert_eq!(
            TicketType::ALL.map(|kind| name(CredentialType::Ticket(kind))),
            ["shop.jsapi", "shop.wx_card", "shop.agent_config"]
        );
    }
}
