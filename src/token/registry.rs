//! Registry of the tokens of all accounts by name, in the order of the configuration.
//!
//! Built once per configuration and never changed. A reload builds the next registry, in which
//! unchanged accounts keep their refreshers.

use std::{collections::HashMap, sync::Arc};

use super::{phantom_keys::PhantomKeys, refresher::TokenRefresher, tickets::Tickets};
use crate::base::AccountName;

/// Access token of one account, and the tickets that are fetched with that token. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct AccountTokens {
    /// Refresher of the access token.
    pub token: TokenRefresher,
    /// Refreshers of the tickets; `None` where the account gives none.
    pub tickets: Option<Arc<Tickets>>,
    /// Keys that verify the account's phantom tokens.
    pub phantoms: Arc<PhantomKeys>,
}

/// Map from account names to tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenRegistry {
    order: Vec<(AccountName, AccountTokens)>,
    places: HashMap<AccountName, usize>,
}

impl AccountTokens {
    /// Retires the refreshers of the token and of all tickets, see [`TokenRefresher::retire`].
    pub(crate) fn retire(&self) {
        self.token.retire();
        if let Some(tickets) = &self.tickets {
            tickets.retire();
        }
    }
}

impl From<TokenRefresher> for AccountTokens {
    /// Tokens of an account without tickets and without an AppSecret.
    fn from(token: TokenRefresher) -> Self {
        Self {
            token,
            tickets: None,
            phantoms: PhantomKeys::none(),
        }
    }
}

impl TokenRegistry {
    /// Returns the tokens of an account, if there is such an account.
    pub(crate) fn get(&self, name: &AccountName) -> Option<&AccountTokens> {
        self.places
            .get(name)
            .and_then(|at| self.order.get(*at))
            .map(|(_, tokens)| tokens)
    }

    /// Iterates over all accounts in the order of the configuration.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&AccountName, &AccountTokens)> {
        self.order.iter().map(|(name, tokens)| (name, tokens))
    }
}

impl FromIterator<(AccountName, AccountTokens)> for TokenRegistry {
    /// Of two accounts with the same name the first counts. The configuration refuses such a pair.
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
