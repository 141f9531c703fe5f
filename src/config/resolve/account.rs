//! `[[account]]` and `default_account`; tokens that another server keeps are in `external`.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    base::AccountName,
    config::{problem::KeyPlace, raw, read::At, secret::ConfigResolver},
    net::address::BaseUrl,
    token::{AccountSettings, ForeignToken, TokenProvider},
    wechat::api::Platform,
};

/// Names of the accounts, indexed once for all keys that refer to an account.
pub(super) struct AccountNames<'a> {
    ordered: Vec<&'a str>,
    known: HashSet<&'a str>,
    /// Set if no account of the file is wrong: then a name that is not here belongs to no account.
    complete: bool,
}

/// Account names that a message lists at most.
const MAX_LISTED: usize = 10;

impl<'a> AccountNames<'a> {
    pub(super) fn new(accounts: &'a [Option<AccountSettings>]) -> Self {
        let valid = accounts.iter().flatten();
        let ordered: Vec<&str> = valid.map(|account| account.name.as_str()).collect();
        Self {
            known: ordered.iter().copied().collect(),
            complete: !accounts.is_empty() && ordered.len() == accounts.len(),
            ordered,
        }
    }

    /// Returns the first names for a message, and the number of the others.
    fn listed(&self) -> String {
        let some = self.ordered.get(..MAX_LISTED).unwrap_or(&self.ordered);
        match self.ordered.len() - some.len() {
            0 => some.join(", "),
            more => format!("{} and {more} more", some.join(", ")),
        }
    }
}

impl ConfigResolver<'_> {
    /// Resolves all accounts, in the order of the file; `None` for an account that is wrong.
    pub(super) fn accounts(
        &mut self,
        raw: Option<At<Vec<At<raw::Account>>>>,
        whole: &KeyPlace,
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

    /// Returns the name of the default account, and reports a name that no account has.
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
        // With a wrong account in the file, the name may be that of the wrong account.
        if accounts.complete && !accounts.known.contains(name.value.as_str()) {
            let message = format!("no account has this name; there is: {}", accounts.listed());
            self.report.problem(&name.place, message);
        }
    }

    /// Reports names and hosts that two accounts share, and warns of shared appids.
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
            // WeCom has one corpid for all agents of a corp, so sharing is no mistake there.
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
        let platform = self.platform(raw.platform.as_ref())?;
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
        let is_external = matches!(
            &raw.token,
            Some(At {
                value: raw::TokenChoice::External(_),
                ..
            })
        );
        let origin = self.origin(raw.token, platform);
        if raw.secret.is_none() && !is_external {
            self.missing(
                &place.child("secret"),
                "must be set: { env = \"NAME\" } or { file = \"path\" }",
            );
        }
        // `None` also for a secret that cannot be found: a problem has been reported then.
        let secret = raw.secret.and_then(|form| {
            let secret = self.app_secret(&form)?;
            self.judge_secret(&form.place, &secret, platform);
            Some(secret)
        });
        if let Some(at) = &raw.appid {
            self.judge_appid(&at.place, &at.value.0, platform);
        }
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
            foreign_token: raw.foreign_token.map(|at| match at.value {
                raw::ForeignToken::Replace => ForeignToken::Replace,
                raw::ForeignToken::Keep => ForeignToken::Keep,
                raw::ForeignToken::Refuse => ForeignToken::Refuse,
            }),
        })
    }

    /// Returns the platform; `None` after a platform that is not built yet was reported.
    fn platform(&mut self, raw: Option<&At<raw::Platform>>) -> Option<Platform> {
        let Some(At { value, place }) = raw else {
            return Some(Platform::Wechat);
        };
        match value {
            raw::Platform::Wechat => Some(Platform::Wechat),
            raw::Platform::Wecom => Some(Platform::Wecom),
            raw::Platform::Component => {
                self.not_built(place, "component (第三方平台) is", "remove the account");
                None
            }
        }
    }

    fn origin(
        &mut self,
        raw: Option<At<raw::TokenChoice>>,
        platform: Platform,
    ) -> Option<TokenProvider> {
        let Some(At { value, place }) = raw else {
            return Some(match platform {
                Platform::Wechat => TokenProvider::Stable,
                Platform::Wecom => TokenProvider::Wecom,
            });
        };
        match (value, platform) {
            (raw::TokenChoice::External(form), _) => self
                .external_token(*form, &place)
                .map(TokenProvider::External),
            (raw::TokenChoice::Kind(raw::TokenKind::Stable), Platform::Wechat) => {
                Some(TokenProvider::Stable)
            }
            (raw::TokenChoice::Kind(raw::TokenKind::Classic), Platform::Wechat) => {
                Some(TokenProvider::Classic)
            }
            (raw::TokenChoice::Kind(_), Platform::Wecom) => {
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
            return default_api(platform).parse().ok().map(|url| vec![url]);
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

/// Default of `api`.
const fn default_api(platform: Platform) -> &'static str {
    match platform {
        Platform::Wechat => "https://api.weixin.qq.com",
        Platform::Wecom => "https://qyapi.weixin.qq.com",
    }
}
