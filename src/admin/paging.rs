//! `GET /api/accounts` with a query: a page of the accounts, found by name or trouble.
//!
//! Without a query the answer stays the plain list of all accounts that scripts know.

use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::accounts::AccountRow;

/// Part of the list of accounts that a query asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageRequest {
    /// Text in name, fingerprint, error or address; in lower case.
    text: String,
    state: Option<String>,
    /// Accounts in trouble first, instead of the order of the configuration.
    trouble_first: bool,
    offset: usize,
    limit: usize,
}

/// Answer to a [`PageRequest`].
#[derive(Debug, Serialize)]
pub(super) struct AccountPage {
    /// All accounts.
    total: usize,
    /// Accounts that the query finds.
    matching: usize,
    offset: usize,
    limit: usize,
    accounts: Vec<AccountRow>,
}

const USUAL_LIMIT: usize = 50;
const MAX_LIMIT: usize = 500;

impl PageRequest {
    /// Reads `query`, `state`, `order=trouble`, `offset` and `limit`; `None` without any of them.
    /// Numbers that cannot be read count as absent.
    pub(super) fn read(query: Option<&str>) -> Option<Self> {
        let mut request = Self {
            text: String::new(),
            state: None,
            trouble_first: false,
            offset: 0,
            limit: USUAL_LIMIT,
        };
        let mut is_page = false;
        for pair in query?.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.replace('+', " ");
            let value = percent_decode_str(&value).decode_utf8_lossy();
            match name {
                "query" => request.text = value.trim().to_lowercase(),
                "state" => request.state = Some(value.into_owned()).filter(|s| !s.is_empty()),
                "order" => request.trouble_first = value == "trouble",
                "offset" => request.offset = value.parse().unwrap_or(0),
                "limit" => {
                    request.limit = value.parse().unwrap_or(USUAL_LIMIT).clamp(1, MAX_LIMIT);
                }
                _ => continue,
            }
            is_page = true;
        }
        is_page.then_some(request)
    }

    /// Picks the page from all accounts.
    pub(super) fn pick(&self, rows: Vec<AccountRow>) -> AccountPage {
        let total = rows.len();
        let mut found: Vec<_> = rows.into_iter().filter(|row| self.finds(row)).collect();
        if self.trouble_first {
            // Stable: within a state the order of the configuration stays.
            found.sort_by_key(|row| severity(row.state));
        }
        AccountPage {
            total,
            matching: found.len(),
            offset: self.offset,
            limit: self.limit,
            accounts: found
                .into_iter()
                .skip(self.offset)
                .take(self.limit)
                .collect(),
        }
    }

    fn finds(&self, row: &AccountRow) -> bool {
        if self.state.as_ref().is_some_and(|state| row.state != state) {
            return false;
        }
        let holds = |text: &str| text.to_lowercase().contains(&self.text);
        let error = row.last_error.as_ref();
        self.text.is_empty()
            || holds(&row.name)
            || row.fingerprint.as_deref().is_some_and(holds)
            || error.is_some_and(|error| {
                holds(error.label)
                    || error.errcode.is_some_and(|code| holds(&code.to_string()))
                    || error.ip.is_some_and(|ip| holds(&ip.to_string()))
            })
    }
}

fn severity(state: &str) -> u8 {
    match state {
        "fatal" => 0,
        "failing" => 1,
        "degraded" => 2,
        "waiting" => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::accounts::{Budgets, LastFailure};

    fn row(name: &str, state: &'static str) -> AccountRow {
        AccountRow {
            name: name.into(),
            warning: None,
            state,
            usable: state == "ok",
            generation: 1,
            fingerprint: Some("ba7816bf".into()),
            expires_in: None,
            age: None,
            next_attempt_in: None,
            budgets: Budgets {
                classic: None,
                forced: None,
            },
            conflicts: 0,
            last_error: (state == "fatal").then(|| LastFailure {
                label: "40164",
                errcode: Some(40164),
                ip: Some([198, 51, 100, 7].into()),
                sentence: String::new(),
                failures: 1,
                words: None,
            }),
            tickets: Vec::new(),
        }
    }

    fn names(query: &str) -> (usize, Vec<String>) {
        let mut rows: Vec<_> = (0..3000).map(|n| row(&format!("shop-{n}"), "ok")).collect();
        rows[2999] = row("Frozen", "fatal");
        let page = PageRequest::read(Some(query)).unwrap().pick(rows);
        assert_eq!(page.total, 3000);
        let names = page.accounts.into_iter().map(|row| row.name).collect();
        (page.matching, names)
    }

    #[test]
    fn a_page_is_a_part_of_what_is_found() {
        assert_eq!(
            names("offset=2998&limit=9"),
            (3000, vec!["shop-2998".into(), "Frozen".into()])
        );
        assert_eq!(names("query=SHOP-299&limit=1&offset=1").1, ["shop-2990"]);
        assert_eq!(names("offset=5000").1.len(), 0);
        assert_eq!(names("limit=100000").1.len(), MAX_LIMIT);
        assert_eq!(names("limit=x&offset=-1").1.len(), USUAL_LIMIT);
        for found in [
            "query=frozen",
            "query=40164",
            "query=198.51",
            "state=fatal",
            "query=f%72ozen",
        ] {
            assert_eq!(names(found), (1, vec!["Frozen".into()]), "{found}");
        }
        assert_eq!(names("order=trouble&limit=2").1, ["Frozen", "shop-0"]);
    }

    #[test]
    fn without_a_query_of_its_own_the_list_stays_plain() {
        for plain in [None, Some(""), Some("pretty"), Some("x=1&y")] {
            assert_eq!(PageRequest::read(plain), None, "{plain:?}");
        }
    }
}
