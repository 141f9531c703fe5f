//! Credential that a refresher keeps fresh: an account's access token, or a ticket that is fetched
//! with that token.
//!
//! Names only. `refresher::policy` has the differences in behaviour.

use std::fmt;

use crate::{base::AccountName, wechat::ticket::TicketType};

/// Type of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CredentialType {
    /// Access token.
    Token,
    /// Ticket. Costs no token budget, and WeChat never rejects a ticket towards wxgate.
    Ticket(TicketType),
    /// Keys that verify phantom tokens. No refresher has them.
    PhantomKeys,
}

/// Key of a credential's record in a store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecordKey {
    /// Account that owns the credential.
    pub account: AccountName,
    /// Type of the credential.
    pub credential: CredentialType,
}

impl CredentialType {
    /// Words for logs and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "access token",
            Self::Ticket(TicketType::Jsapi) => "jsapi ticket",
            Self::Ticket(TicketType::WxCard) => "wx_card ticket",
            Self::Ticket(TicketType::AgentConfig) => "agent_config ticket",
            Self::PhantomKeys => "keys of phantom tokens",
        }
    }
}

impl RecordKey {
    /// Key of an account's access token.
    pub fn token(account: &AccountName) -> Self {
        Self {
            account: account.clone(),
            credential: CredentialType::Token,
        }
    }

    /// Reads the text that [`fmt::Display`] writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (account, credential) = match text.split_once('.') {
            None => (text, CredentialType::Token),
            Some((account, "phantoms")) => (account, CredentialType::PhantomKeys),
            Some((account, ticket)) => {
                let mut types = TicketType::ALL.into_iter();
                let ticket = types.find(|kind| kind.as_str() == ticket)?;
                (account, CredentialType::Ticket(ticket))
            }
        };
        let account = AccountName::new(account)?;
        Some(Self {
            account,
            credential,
        })
    }
}

impl fmt::Display for CredentialType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Formats as `shop` or `shop.jsapi`: unambiguous, since account names hold no dots.
impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.credential {
            CredentialType::Token => self.account.fmt(f),
            CredentialType::Ticket(kind) => write!(f, "{}.{}", self.account, kind.as_str()),
            CredentialType::PhantomKeys => write!(f, "{}.phantoms", self.account),
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
        for credential in [CredentialType::Token, CredentialType::PhantomKeys]
            .into_iter()
            .chain(TicketType::ALL.map(CredentialType::Ticket))
        {
            let key = RecordKey {
                account: account.clone(),
                credential,
            };
            assert_eq!(RecordKey::parse(&key.to_string()), Some(key));
        }
        assert_eq!(RecordKey::parse("shop.other"), None);
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
        assert_eq!(name(CredentialType::PhantomKeys), "shop.phantoms");
    }
}
