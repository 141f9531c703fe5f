//! A client: its rights and its rate limit.

use std::{fmt, sync::Arc, time::Duration};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock as _};
use rustc_hash::FxHashSet;

use super::Admitted;
use crate::{
    base::AccountName,
    net::address::NetworkSet,
    proxy::{
        bulkhead::Holder,
        settings::{self, ClientKey, KeyDigest, Mode, Rate},
    },
    service::Scope,
};

/// Shortest parameter, in bytes, that is compared with a key of which only the digest is known.
/// Shorter parameters are too many to take the digest of each.
const MIN_DIGESTED_KEY: usize = 8;

/// A client and the state of its rate limit.
pub(crate) struct Client {
    settings: settings::ClientSettings,
    /// Accounts of the settings, for a look-up in constant time; `None` for all.
    accounts: Option<FxHashSet<AccountName>>,
    limiter: Option<DefaultDirectRateLimiter>,
    holder: Arc<Holder>,
}

/// Right that a call needs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right<'r> {
    /// A path of WeChat's API; a guarded path has to be allowed by its exact name.
    Path {
        path: &'r str,
        /// Effect of a guarded path, as a phrase.
        guarded: Option<&'static str>,
    },
    /// A permission beyond proxying.
    Scope(Scope),
    /// A phantom token, which costs WeChat nothing.
    Phantom,
}

/// Reasons why a client is denied a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial<'r> {
    Account,
    Path,
    Guarded { path: &'r str, effect: &'static str },
    Scope(Scope),
    Rate { retry_after: Duration },
}

/// Decision about a call.
#[derive(Debug)]
pub(crate) enum Decision<'r> {
    Admitted(Admitted),
    /// Let in because of `mode = "report"`; else the call would have been denied.
    Reported(Admitted, Denial<'r>),
    Denied(Denial<'r>),
}

impl Client {
    pub(super) fn new(settings: settings::ClientSettings) -> Self {
        let limiter = settings.rate.map(|Rate { per_second, burst }| {
            RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst))
        });
        let accounts = settings
            .accounts
            .as_ref()
            .map(|accounts| accounts.iter().cloned().collect());
        Self {
            holder: Holder::named(settings.name.as_str()),
            settings,
            accounts,
            limiter,
        }
    }

    /// Keeps the counters of the client of this name before a reload.
    pub(super) fn continuing(self, before: Option<&Self>) -> Self {
        match before {
            Some(before) => Self {
                holder: Arc::clone(&before.holder),
                ..self
            },
            None => self,
        }
    }

    /// Returns the counters of requests in flight and connections.
    pub(crate) fn holder(&self) -> &Arc<Holder> {
        &self.holder
    }

    /// Returns the name, which is also the label in metrics and log.
    pub(crate) fn name(&self) -> &AccountName {
        &self.settings.name
    }

    /// Returns the keys in the order of the file; none for a client that is known otherwise.
    pub(crate) fn keys(&self) -> &[ClientKey] {
        &self.settings.keys
    }

    /// Returns true if a text has the form of a key. If the configuration has only the digest of a
    /// key, any text of [`MIN_DIGESTED_KEY`] or more has.
    pub(crate) fn key_may_be(&self, text: &str) -> bool {
        self.keys().iter().any(|key| match key.length {
            Some(length) => text.len() == length,
            None => text.len() >= MIN_DIGESTED_KEY && text.bytes().all(|b| b.is_ascii_graphic()),
        })
    }

    /// Returns true if a text is one of the keys.
    pub(crate) fn has_key(&self, text: &str) -> bool {
        !self.keys().is_empty() && self.place_of(&KeyDigest::of(text)).is_some()
    }

    /// Returns the place of a key among the keys.
    pub(super) fn place_of(&self, digest: &KeyDigest) -> Option<usize> {
        self.keys()
            .iter()
            .position(|own| own.digest.matches(digest))
    }

    /// Returns true if `may` names this scope.
    pub(crate) fn may(&self, scope: Scope) -> bool {
        self.settings.may.contains(scope)
    }

    /// Returns the accounts that the client may use; `None` for all.
    pub(crate) fn accounts(&self) -> Option<&[AccountName]> {
        self.settings.accounts.as_deref()
    }

    /// Returns true if the client may use this account.
    pub(crate) fn may_use(&self, account: &AccountName) -> bool {
        self.accounts
            .as_ref()
            .is_none_or(|accounts| accounts.contains(account))
    }

    /// Decides about a call, of an account unless it uses none. Only a call that is not denied for another reason counts for the rate
    /// limit.
    pub(crate) fn admit<'r>(
        &self,
        account: Option<&AccountName>,
        right: Right<'r>,
    ) -> Decision<'r> {
        let denial = match (self.denial(account, right), right) {
            (Some(denial), _) => Some(denial),
            // Phantoms cost WeChat nothing, so they cost the client nothing either.
            (None, Right::Phantom) => None,
            (None, _) => self.too_fast(),
        };
        match (denial, self.settings.mode) {
            (None, _) => Decision::Admitted(Admitted(())),
            (Some(denial), Mode::Report) if denial.can_be_overlooked(right) => {
                Decision::Reported(Admitted(()), denial)
            }
            (Some(denial), _) => Decision::Denied(denial),
        }
    }

    /// Returns true if `allow` and `deny` let a path through.
    pub(super) fn lets_through(&self, path: &str) -> bool {
        let settings = &self.settings;
        let allowed = settings
            .allow
            .as_ref()
            .is_none_or(|allow| allow.iter().any(|p| p.allows(path)));
        allowed && !settings.deny.iter().any(|pattern| pattern.denies(path))
    }

    fn denial<'r>(&self, account: Option<&AccountName>, right: Right<'r>) -> Option<Denial<'r>> {
        let settings = &self.settings;
        if account.is_some_and(|account| !self.may_use(account)) {
            return Some(Denial::Account);
        }
        match right {
            Right::Phantom => None,
            Right::Scope(scope) => (!settings.may.contains(scope)).then_some(Denial::Scope(scope)),
            Right::Path { path, guarded } => {
                let named = || {
                    settings
                        .allow
                        .iter()
                        .flatten()
                        .any(|pattern| pattern.names(path))
                };
                if self.lets_through(path) {
                    let effect = guarded.filter(|_| !named())?;
                    Some(Denial::Guarded { path, effect })
                } else {
                    Some(Denial::Path)
                }
            }
        }
    }

    fn too_fast(&self) -> Option<Denial<'static>> {
        let limiter = self.limiter.as_ref()?;
        let until = limiter.check().err()?;
        Some(Denial::Rate {
            retry_after: until.wait_time_from(limiter.clock().now()),
        })
    }

    /// Returns true if network and certificate of the caller are those of the client.
    pub(super) fn fits(&self, network: impl Fn(&NetworkSet) -> bool, names: &[String]) -> bool {
        self.settings.from.as_ref().is_none_or(network)
            && self
                .settings
                .cert
                .as_ref()
                .is_none_or(|cert| names.contains(cert))
    }

    pub(super) fn settings(&self) -> &settings::ClientSettings {
        &self.settings
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

impl Denial<'_> {
    /// Returns true if `mode = "report"` lets the call in all the same. Not for the real token and
    /// guarded paths, whose use cannot be undone, whatever the denial: it may hide another one.
    fn can_be_overlooked(self, right: Right<'_>) -> bool {
        let is_irreversible = matches!(
            right,
            Right::Scope(Scope::Token)
                | Right::Path {
                    guarded: Some(_),
                    ..
                }
        );
        !is_irreversible || matches!(self, Self::Rate { .. })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::proxy::settings::{PathPattern, Scopes};

    pub(in crate::proxy::access) fn client(name: &str) -> settings::ClientSettings {
        settings::ClientSettings::named(AccountName::new(name).unwrap())
    }

    fn patterns(texts: &[&str]) -> Vec<PathPattern> {
        texts
            .iter()
            .map(|text| PathPattern::parse(text).unwrap())
            .collect()
    }

    const EFFECT: &str = "clears a quota";

    fn outcome(client: &Client, account: &str, right: Right<'_>) -> String {
        let word = |denial| match denial {
            Denial::Guarded { .. } => "Guarded".to_owned(),
            denial => format!("{denial:?}"),
        };
        match client.admit(Some(&AccountName::new(account).unwrap()), right) {
            Decision::Admitted(_) => "in".to_owned(),
            Decision::Reported(_, denial) => format!("reported {}", word(denial)),
            Decision::Denied(denial) => word(denial),
        }
    }

    fn path(path: &str) -> Right<'_> {
        Right::Path {
            path,
            guarded: None,
        }
    }

    #[test]
    fn accounts_paths_and_extras_are_asked_in_this_order_and_deny_beats_allow() {
        let client = Client::new(settings::ClientSettings {
            accounts: Some(vec![AccountName::new("shop").unwrap()]),
            allow: Some(patterns(&["/cgi-bin/message/**", "/cgi-bin/clear_quota"])),
            deny: patterns(&["/cgi-bin/message/mass/**"]),
            may: Scopes::default().with(Scope::Ticket),
            ..client("crm")
        });
        let guarded = |path| Right::Path {
            path,
            guarded: Some(EFFECT),
        };
        for (account, right, expected) in [
            ("shop", path("/cgi-bin/message/custom/send"), "in"),
            ("mall", path("/cgi-bin/message/custom/send"), "Account"),
            ("shop", path("/cgi-bin/message/mass/send"), "Path"),
            ("shop", path("/cgi-bin/message/MASS/send"), "Path"),
            ("shop", path("/cgi-bin/menu/get"), "Path"),
            ("shop", guarded("/cgi-bin/clear_quota"), "in"),
            ("shop", Right::Scope(Scope::Ticket), "in"),
            ("shop", Right::Scope(Scope::Token), "Scope(Token)"),
            ("mall", Right::Scope(Scope::Token), "Account"),
        ] {
            assert_eq!(
                outcome(&client, account, right),
                expected,
                "{account} {right:?}"
            );
        }
        let open = Client::new(super::tests::client("open"));
        assert_eq!(
            outcome(&open, "shop", guarded("/cgi-bin/clear_quota")),
            "Guarded",
            "all paths is not by name"
        );
    }

    #[test]
    fn a_client_on_trial_is_let_in_but_not_to_what_cannot_be_taken_back() {
        let client = Client::new(settings::ClientSettings {
            accounts: Some(Vec::new()),
            mode: Mode::Report,
            ..client("new")
        });
        assert_eq!(outcome(&client, "shop", path("/a")), "reported Account");
        let client = Client::new(settings::ClientSettings {
            mode: Mode::Report,
            ..super::tests::client("new")
        });
        assert_eq!(
            outcome(&client, "shop", Right::Scope(Scope::Refresh)),
            "reported Scope(Refresh)"
        );
        assert_eq!(
            outcome(&client, "shop", Right::Scope(Scope::Token)),
            "Scope(Token)"
        );
        assert_eq!(
            outcome(
                &client,
                "shop",
                Right::Path {
                    path: "/a",
                    guarded: Some(EFFECT)
                }
            ),
            "Guarded"
        );
        let client = Client::new(settings::ClientSettings {
            accounts: Some(Vec::new()),
            may: Scopes::default().with(Scope::Token).with(Scope::Ticket),
            allow: Some(patterns(&["/a", "/b"])),
            deny: patterns(&["/b"]),
            mode: Mode::Report,
            ..super::tests::client("new")
        });
        assert_eq!(
            outcome(&client, "shop", Right::Scope(Scope::Ticket)),
            "reported Account"
        );
        assert_eq!(
            outcome(&client, "shop", Right::Scope(Scope::Token)),
            "Account",
            "the token of another account"
        );
        assert_eq!(
            outcome(
                &client,
                "shop",
                Right::Path {
                    path: "/a",
                    guarded: Some(EFFECT)
                }
            ),
            "Account"
        );
        let client = Client::new(settings::ClientSettings {
            accounts: None,
            ..client.settings().clone()
        });
        assert_eq!(
            outcome(
                &client,
                "shop",
                Right::Path {
                    path: "/a",
                    guarded: Some(EFFECT)
                }
            ),
            "in"
        );
        for path in ["/b", "/c"] {
            assert_eq!(
                outcome(
                    &client,
                    "shop",
                    Right::Path {
                        path,
                        guarded: Some(EFFECT)
                    }
                ),
                "Path"
            );
        }
    }

    #[test]
    fn calls_beyond_the_burst_are_told_when_to_come_back() {
        let (one, three) = (NonZeroU32::MIN, NonZeroU32::new(3).unwrap());
        let client = Client::new(settings::ClientSettings {
            rate: Some(Rate {
                per_second: one,
                burst: three,
            }),
            ..client("fast")
        });
        let shop = AccountName::new("shop").unwrap();
        let denied: Vec<_> = (0..5)
            .filter(|_| matches!(client.admit(Some(&shop), path("/a")), Decision::Denied(_)))
            .collect();
        assert_eq!(denied, [3, 4]);
        let Decision::Denied(Denial::Rate { retry_after }) = client.admit(Some(&shop), path("/a"))
        else {
            unreachable!("the bucket is empty")
        };
        assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(1));
    }
}
