//! Tokens of all accounts by name, in the order of the configuration.
//!
//! Built once per configuration and never changed; a reload builds another one, in which unchanged
//! accounts keep their tokens.

use std::{collections::HashMap, sync::Arc};

use super::{refresher::TokenRefresher, tickets::Tickets};
use crate::base::AccountName;

/// Access token of one account, and the tickets that are fetched with it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccountTokens {
    /// Refresher of the access token.
    pub token: TokenRefresher,
    /// Refreshers of the tickets; `None` where the account gives none.
    pub tickets: Option<Arc<Tickets>>,
}

/// Account name → tokens.
#[derive(Debug, Clone, Default)]
pub struct TokenRegistry {
    order: Vec<(AccountName, AccountTokens)>,
    places: HashMap<AccountName, usize>,
}

impl AccountTokens {
    /// See [`TokenRefresher::retire`]. Concerns the tickets too.
    pub fn retire(&self) {
        self.token.retire();
        if let Some(tickets) = &self.tickets {
            tickets.retire();
        }
    }
}

impl From<TokenRefresher> for AccountTokens {
    /// An account that gives no tickets.
    fn from(token: TokenRefresher) -> Self {
        Self {
            token,
            tickets: None,
        }
    }
}

impl TokenRegistry {
    /// The tokens of an account, if there is such an account.
    pub fn get(&self, name: &AccountName) -> Option<&AccountTokens> {
        self.places
            .get(name)
            .and_then(|at| self.order.get(*at))
            .map(|(_, tokens)| tokens)
    }

    /// All of them, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = (&AccountName, &AccountTokens)> {
        self.order.iter().map(|(name, tokens)| (name, tokens))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

impl FromIterator<(AccountName, AccountTokens)> for TokenRegistry {
    /// Of two accounts with one name, the first counts; the configuration makes sure that there are
    /// none.
    fn from_iter<I: IntoIterator<Item = (AccountName, AccountTokens)>>(accounts: I) -> Self {
        let mut all = Self::default();
        for (name, tokens) in accounts {
            if !all.places.contains_key(&name) {
                all.places.insert(name.clone(), all.order.len());
                all.order.push((name, tokens));
            }
        }
        all
    }
}
