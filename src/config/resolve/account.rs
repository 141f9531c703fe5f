//! `[[account]]` and `default_account`, but for tokens that another server keeps.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    base::AccountName,
    config::{problem::Place, raw, read::At, secret::Context},
    net::address::BaseUrl,
    token::{AccountSettings, TokenProvider},
    wechat::api::Platform,
};

/// Default API host of the platform.
const fn api_of(platform: Platform) -> &'static str {
    match platform {
        Platform::Wechat => "https://api.weixin.qq.com",
        Platform::Wecom => "https://qyapi.weixin.qq.com",
    }
}

/// Most account names that a message lists.
const MAX_LISTED: usize = 10;

/// Names of the accounts, indexed once for all keys that refer to one.
pub(super) struct AccountNames<'a> {
    ordered: Vec<&'a str>,
    known: HashSet<&'a str>,
    /// No account of the file is wrong, so a name that is not here is nobody's.
    complete: bool,
}

impl<'a> AccountNames<'a> {
    pub(super) fn of(accounts: &'a [Option<AccountSettings>]) -> Self {
        let right = accounts.iter().flatten();
        let ordered: Vec<&str> = right.map(|account| account.name.as_str()).collect();
        Self {
            known: ordered.iter().copied().collect(),
            complete: !accounts.is_empty() && ordered.len() == accounts.len(),
            ordered,
        }
    }

    /// Names for a message, so few that they fit in a line.
    fn listed(&self) -> String {
        let some = self.ordered.get(..MAX_LISTED).unwrap_or(&self.ordered);
        match self.ordered.len() - some.len() {
            0 => some.join(", "),
            more => format!("{} and {more} more", some.join(", ")),
        }
    }
}

impl Context<'_> {
    /// One entry per account of the file; `None` for one that is wrong.
    pub(super) fn accounts(
        &mut self,
        raw: Option<At<Vec<At<raw::Account>>>>,
        whole: &Place,
    ) -> Vec<Option<AccountSettings>> {
        let place = raw
            .as_ref()
            .map_or_else(|| whole.child("account"), |at| at.place.clone());
        let raw = raw.map(|at| at.value).unwrap_or_default();
        if raw.is_empty() {
            self.missing(
                &place,
                "at least one account is needed: add [[account]] with name, appid and secret",
            );
        }
        self.unique(&raw);
        raw.into_iter()
            .map(|account| self.account(account))
            .collect()
    }

    /// The name, if there is an account of that name.
    pub(super) fn default_account(
        &mut self,
        raw: Option<At<AccountName>>,
        accounts: &AccountNames<'_>,
    ) -> Option<AccountName> {
        let name = raw?;
        self.existing_account(&name, accounts);
        Some(name.value)
    }

    /// Reports a name that no account has.
    pub(super) fn existing_account(&mut self, name: &At<AccountName>, accounts: &AccountNames<'_>) {
        // A wrong account may be the one that is meant.
        if accounts.complete && !accounts.known.contains(name.value.as_str()) {
            let message = format!("no account has this name; there is: {}", accounts.listed());
            self.report.problem(&name.place, message);
        }
    }

    fn unique(&mut self, accounts: &[At<raw::Account>]) {
        let mut names = HashMap::new();
        let mut appids: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
        let mut hosts: HashMap<&str, &str> = HashMap::new();
        for account in accounts {
            if let Some(name) = &account.value.name
                && let Some(first) = names.insert(name.value.as_str(), &account.place.path)
            {
                self.report
                    .problem(&name.place, format!("is the name of {first} already"));
            }
            let is_wecom = account
                .value
                .platform
                .as_ref()
                .is_some_and(|platform| platform.value == raw::Platform::Wecom);
            // Several agents of one corp are the rule, not a mistake.
            if let Some(appid) = &account.value.appid
                && let Some((first, first_is_wecom)) =
                    appids.insert(&appid.value.0, (&account.place.path, is_wecom))
                && !(is_wecom && first_is_wecom)
            {
                let message =
                    format!("is the appid of {first} too: only their names can tell the two apart");
                self.report.warning(&appid.place, message);
            }
            for host in account.value.hosts.iter().flat_map(|hosts| &hosts.value) {
                if let Some(first) = hosts.insert(&host.value.0, &account.place.path) {
                    self.report
                        .problem(&host.place, format!("selects {first} already"));
                }
            }
        }
    }

    fn account(&mut self, At { value: raw, place }: At<raw::Account>) -> Option<AccountSettings> {
        let platform = match raw
            .platform
            .as_ref()
            .map(|platform| (platform.value, &platform.place))
        {
            None | Some((raw::Platform::Wechat, _)) => Platform::Wechat,
            Some((raw::Platform::Wecom, _)) => Platform::Wecom,
            Some((raw::Platform::Component, place)) => {
                self.not_built(place, "component (第三方平台) is", "remove the account");
                return None;
            }
        };
        if raw.name.is_none() {
            self.missing(
                &place.child("name"),
                "must be set: what the account is called here, such as \"shop\"",
            );
        }
        if raw.appid.is_none() {
            self.missing(
                &place.child("appid"),
                "must be set: the appid, such as \"wx0123456789abcdef\"",
            );
        }
        let elsewhere = matches!(
            &raw.token,
            Some(At {
                value: raw::TokenForm::Elsewhere(_),
                ..
            })
        );
        let origin = self.origin(raw.token, platform);
        if raw.secret.is_none() && !elsewhere {
            self.missing(
                &place.child("secret"),
                "must be set: { env = \"NAME\" } or { file = \"path\" }",
            );
        }
        // A secret that is given and cannot be found is a mistake in any case; it has been reported
        // then.
        let secret = raw.secret.and_then(|form| self.secret(&form));
        let api = self.api(raw.api, platform);
        let hosts = raw
            .hosts
            .map(|hosts| hosts.value.into_iter().map(|host| host.value.0).collect());
        Some(AccountSettings {
            name: raw.name?.value,
            platform,
            appid: raw.appid?.value.0,
            secret,
            provider: origin?,
            api: api?,
            hosts: hosts.unwrap_or_default(),
        })
    }

    fn origin(
        &mut self,
        raw: Option<At<raw::TokenForm>>,
        platform: Platform,
    ) -> Option<TokenProvider> {
        let Some(At { value, place }) = raw else {
            return Some(match platform {
                Platform::Wechat => TokenProvider::Stable,
                Platform::Wecom => TokenProvider::Wecom,
            });
        };
        match (value, platform) {
            (raw::TokenForm::Elsewhere(form), _) => {
                self.elsewhere(*form, &place).map(TokenProvider::External)
            }
            (raw::TokenForm::Kind(raw::TokenKind::Stable), Platform::Wechat) => {
                Some(TokenProvider::Stable)
            }
            (raw::TokenForm::Kind(raw::TokenKind::Classic), Platform::Wechat) => {
                Some(TokenProvider::Classic)
            }
            (raw::TokenForm::Kind(_), Platform::Wecom) => {
                self.report
                    .problem(&place, "wecom has one token endpoint only: remove the key");
                None
            }
        }
    }

    fn api(
        &mut self,
        raw: Option<At<Vec<At<BaseUrl>>>>,
        platform: Platform,
    ) -> Option<Vec<BaseUrl>> {
        let Some(raw) = raw else {
            return api_of(platform).parse().ok().map(|url| vec![url]);
        };
        if raw.value.is_empty() {
            self.report.problem(
                &raw.place,
                "at least one base URL is needed, such as \"https://api.weixin.qq.com\"",
            );
        }
        Some(raw.value.into_iter().map(|at| at.value).collect())
    }
}
