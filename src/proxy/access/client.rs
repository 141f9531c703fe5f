//! A client as the path of a request needs it: what it may, and how fast.

use std::{fmt, sync::Arc, time::Duration};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock as _};
use rustc_hash::FxHashSet;

use super::Admitted;
use crate::{
    base::AccountName,
    net::address::NetworkSet,
    proxy::{
        bulkhead::Holder,
        settings::{self, KeyDigest, Mode, Rate},
    },
    service::Scope,
};

/// Least length of a key that the configuration gives as a digest, for it to be looked for among
/// the parameters of a call. Shorter values are too many to take the digest of each.
const MIN_DIGESTED_KEY: usize = 8;

/// A client and the state of its rate limit.
pub(crate) struct Client {
    settings: settings::Client,
    /// Those of the settings, for a look-up that does not grow with their number; `None` for all.
    accounts: Option<FxHashSet<AccountName>>,
    limiter: Option<DefaultDirectRateLimiter>,
    holder: Arc<Holder>,
}

/// What a call needs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right<'r> {
    /// To call a path of WeChat's API; `guarded` ones have to be allowed by their exact name.
    Path { path: &'r str, guarded: bool },
    /// An extra.
    Scope(Scope),
    /// A phantom token, which costs WeChat nothing.
    Phantom,
}

/// Why a client may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial {
    Account,
    Path,
    Guarded,
    Scope(Scope),
    Rate { retry_after: Duration },
}

/// What became of a call that asked to be let in.
#[derive(Debug)]
pub(crate) enum Decision {
    Admitted(Admitted),
    /// It would have been denied, if the client were not on trial.
    Reported(Admitted, Denial),
    Denied(Denial),
}

impl Client {
    pub(super) fn new(settings: settings::Client) -> Self {
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

    /// Goes on counting where the client of this name was before a reload.
    pub(super) fn continuing(self, before: Option<&Self>) -> Self {
        match before {
            Some(before) => Self {
                holder: Arc::clone(&before.holder),
                ..self
            },
            None => self,
        }
    }

    /// Its part of what is in flight, and of the connections.
    pub(crate) fn holder(&self) -> &Arc<Holder> {
        &self.holder
    }

    /// For metrics and log.
    pub(crate) fn name(&self) -> &AccountName {
        &self.settings.name
    }

    /// The digest of its key.
    pub(crate) fn key(&self) -> Option<&KeyDigest> {
        self.settings.key.as_ref()
    }

    /// Whether a text has the form of its key. Of a key that the configuration gives as a digest
    /// only the least length is known.
    pub(crate) fn key_may_be(&self, text: &str) -> bool {
        let settings = &self.settings;
        settings.key.is_some()
            && match settings.key_length {
                Some(length) => text.len() == length,
                None => {
                    text.len() >= MIN_DIGESTED_KEY && text.bytes().all(|b| b.is_ascii_graphic())
                }
            }
    }

    /// Whether a text is its key.
    pub(crate) fn has_key(&self, text: &str) -> bool {
        self.key()
            .is_some_and(|own| own.matches(&KeyDigest::of(text)))
    }

    /// Whether its `may` names this extra.
    pub(super) fn may(&self, scope: Scope) -> bool {
        self.settings.may.contains(scope)
    }

    /// The one account it may use, if it is exactly one.
    pub(crate) fn only_account(&self) -> Option<&AccountName> {
        match self.settings.accounts.as_deref() {
            Some([only]) => Some(only),
            _ => None,
        }
    }

    /// Whether it may use this account.
    pub(crate) fn may_use(&self, account: &AccountName) -> bool {
        self.accounts
            .as_ref()
            .is_none_or(|accounts| accounts.contains(account))
    }

    /// Whether a call is let in. Spends from the rate limit if nothing else stands in the way.
    pub(crate) fn admit(&self, account: &AccountName, right: Right<'_>) -> Decision {
        let is_free = matches!(right, Right::Phantom);
        let denial = self
            .denial(account, right)
            .or_else(|| if is_free { None } else { self.too_fast() });
        match (denial, self.settings.mode) {
            (None, _) => Decision::Admitted(Admitted(())),
            (Some(denial), Mode::Report) if denial.can_be_overlooked(right) => {
                Decision::Reported(Admitted(()), denial)
            }
            (Some(denial), _) => Decision::Denied(denial),
        }
    }

    fn denial(&self, account: &AccountName, right: Right<'_>) -> Option<Denial> {
        let settings = &self.settings;
        if !self.may_use(account) {
            return Some(Denial::Account);
        }
        match right {
            Right::Phantom => None,
            Right::Scope(scope) => (!settings.may.contains(scope)).then_some(Denial::Scope(scope)),
            Right::Path { path, guarded } => {
                let allowed = settings
                    .allow
                    .as_ref()
                    .is_none_or(|allow| allow.iter().any(|p| p.allows(path)));
                let denied = settings.deny.iter().any(|pattern| pattern.denies(path));
                let named = || {
                    settings
                        .allow
                        .iter()
                        .flatten()
                        .any(|pattern| pattern.names(path))
                };
                if denied || !allowed {
                    Some(Denial::Path)
                } else {
                    (guarded && !named()).then_some(Denial::Guarded)
                }
            }
        }
    }

    fn too_fast(&self) -> Option<Denial> {
        let limiter = self.limiter.as_ref()?;
        let until = limiter.check().err()?;
        Some(Denial::Rate {
            retry_after: until.wait_time_from(limiter.clock().now()),
        })
    }

    /// Whether all that identifies it without a key fits the caller.
    pub(super) fn fits(&self, network: impl Fn(&NetworkSet) -> bool, names: &[String]) -> bool {
        self.settings.from.as_ref().is_none_or(network)
            && self
                .settings
                .cert
                .as_ref()
                .is_none_or(|cert| names.contains(cert))
    }

    pub(super) fn settings(&self) -> &settings::Client {
        &self.settings
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

impl Denial {
    /// A client on trial is still kept from what cannot be taken back: the real token, and what all
    /// callers share. Not even another reason to deny those is overlooked, since it may hide this
    /// one.
    fn can_be_overlooked(self, right: Right<'_>) -> bool {
        let is_grave = matches!(
            right,
            Right::Scope(Scope::Token) | Right::Path { guarded: true, .. }
        );
        !is_grave || matches!(self, Self::Rate { .. })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::proxy::settings::{PathPattern, Scopes};

    pub(in crate::proxy::access) fn client(name: &str) -> settings::Client {
        settings::Client::named(AccountName::new(name).unwrap())
    }

    fn patterns(texts: &[&str]) -> Vec<PathPattern> {
        texts
            .iter()
            .map(|text| PathPattern::parse(text).unwrap())
            .collect()
    }

    fn outcome(client: &Client, account: &str, right: Right<'_>) -> String {
        match client.admit(&AccountName::new(account).unwrap(), right) {
            Decision::Admitted(_) => "in".to_owned(),
            Decision::Reported(_, denial) => format!("reported {denial:?}"),
            Decision::Denied(denial) => format!("{denial:?}"),
        }
    }

    fn path(path: &str) -> Right<'_> {
        Right::Path {
            path,
            guarded: false,
        }
    }

    #[test]
    fn accounts_paths_and_extras_are_asked_in_this_order_and_deny_beats_allow() {
        let client = Client::new(settings::Client {
            accounts: Some(vec![AccountName::new("shop").unwrap()]),
            allow: Some(patterns(&["/cgi-bin/message/**", "/cgi-bin/clear_quota"])),
            deny: patterns(&["/cgi-bin/message/mass/**"]),
            may: Scopes::default().with(Scope::Ticket),
            ..client("crm")
        });
        let guarded = |path| Right::Path {
            path,
            guarded: true,
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
        let client = Client::new(settings::Client {
            accounts: Some(Vec::new()),
            mode: Mode::Report,
            ..client("new")
        });
        assert_eq!(outcome(&client, "shop", path("/a")), "reported Account");
        let client = Client::new(settings::Client {
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
                    guarded: true
                }
            ),
            "Guarded"
        );
        let client = Client::new(settings::Client {
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
                    guarded: true
                }
            ),
            "Account"
        );
        let client = Client::new(settings::Client {
            accounts: None,
            ..client.settings().clone()
        });
        assert_eq!(
            outcome(
                &client,
                "shop",
                Right::Path {
                    path: "/a",
                    guarded: true
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
                        guarded: true
                    }
                ),
                "Path"
            );
        }
    }

    #[test]
    fn calls_beyond_the_burst_are_told_when_to_come_back() {
        let (one, three) = (NonZeroU32::MIN, NonZeroU32::new(3).unwrap());
        let client = Client::new(settings::Client {
            rate: Some(Rate {
                per_second: one,
                burst: three,
            }),
            ..client("fast")
        });
        let shop = AccountName::new("shop").unwrap();
        let denied: Vec<_> = (0..5)
            .filter(|_| matches!(client.admit(&shop, path("/a")), Decision::Denied(_)))
            .collect();
        assert_eq!(denied, [3, 4]);
        let Decision::Denied(Denial::Rate { retry_after }) = client.admit(&shop, path("/a")) else {
            unreachable!("the bucket is empty")
        };
        assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(1));
    }
}
