//! The keepers of all accounts by name, in the order of the configuration.
//!
//! Built once per configuration and never changed; a reload builds another one, in which unchanged
//! accounts keep their keepers.

use std::collections::HashMap;

use super::refresher::TokenRefresher;
use crate::base::AccountName;

/// Account name → keeper.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    order: Vec<(AccountName, TokenRefresher)>,
    places: HashMap<AccountName, usize>,
}

impl Accounts {
    /// The keeper of an account, if there is such an account.
    pub fn get(&self, name: &AccountName) -> Option<&TokenRefresher> {
        self.places
            .get(name)
            .and_then(|at| self.order.get(*at))
            .map(|(_, keeper)| keeper)
    }

    /// All of them, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = (&AccountName, &TokenRefresher)> {
        self.order.iter().map(|(name, keeper)| (name, keeper))
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

impl FromIterator<(AccountName, TokenRefresher)> for Accounts {
    /// Of two accounts with one name, the first counts; the configuration makes sure that there are
    /// none.
    fn from_iter<I: IntoIterator<Item = (AccountName, TokenRefresher)>>(accounts: I) -> Self {
        let mut all = Self::default();
        for (name, keeper) in accounts {
            if !all.places.contains_key(&name) {
                all.places.insert(name.clone(), all.order.len());
                all.order.push((name, keeper));
            }
        }
        all
    }
}
