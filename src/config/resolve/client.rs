//! `[[client]]`: callers and their rights, with warnings about rights that can never be used.
//!
//! `proxy::access` recognises callers. The warnings here repeat its rule: a key belongs to exactly
//! one client; a caller without a key is the first keyless client that fits, clients with a
//! certificate before clients with networks only.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
};

use super::{account::AccountNames, server::set};
use crate::{
    base::AccountName,
    config::{
        leaf::{BoundedInteger, Network},
        problem::KeyPlace,
        raw,
        read::At,
        secret::ConfigResolver,
    },
    net::address::NetworkSet,
    proxy::settings::{ClientKey, ClientSettings, KeyDigest, Mode, PathPattern, Rate},
    service::Scope,
    token::AccountSettings,
    wechat::credential::{self, CallClass, Minting, Parameters},
};

/// Settings of other tables that the checks of clients need.
pub(super) struct ClientContext<'a> {
    pub(super) accounts: &'a AccountNames<'a>,
    /// Digests of all AppSecrets, see [`app_secrets`].
    pub(super) app_secrets: HashSet<KeyDigest>,
    /// Set if callers are asked for certificates.
    pub(super) certificates: bool,
    /// Set if the file sets `server.allow`.
    pub(super) allow_is_set: bool,
    /// Place of a network in `server.allow` that holds every address.
    pub(super) everybody: Option<KeyPlace>,
    /// Set if users may log in to an account: one of WeChat's.
    pub(super) has_logins: bool,
}

/// Client, with the places of the keys that are compared with those of other clients.
struct ResolvedClient {
    client: ClientSettings,
    path: String,
    /// Place of each key, in the order of the client's keys.
    keys: Vec<KeyPlace>,
    from: KeyPlace,
    cert: KeyPlace,
}

/// Names in metrics for callers that are no client: those of `server.allow`, and unknown callers.
const RESERVED_NAMES: [&str; 2] = ["network", "-"];
/// Length in characters of the shortest key without a warning; shorter keys can be found by trying.
const MIN_KEY_LENGTH: usize = 16;

/// Returns the digests of all AppSecrets, to find the key of a client among them by a single
/// look-up.
pub(super) fn app_secrets(accounts: &[Option<AccountSettings>]) -> HashSet<KeyDigest> {
    let secrets = accounts
        .iter()
        .flatten()
        .filter_map(|account| account.secret.as_ref());
    secrets
        .map(|secret| KeyDigest::of(secret.expose()))
        .collect()
}

impl ConfigResolver<'_> {
    /// Resolves all clients, without those that are wrong.
    pub(super) fn clients(
        &mut self,
        raw: Option<At<Vec<At<raw::Client>>>>,
        context: &ClientContext<'_>,
    ) -> Vec<ClientSettings> {
        let raw = raw.map(|at| at.value).unwrap_or_default();
        if let (Some(place), false) = (&context.everybody, raw.is_empty()) {
            self.report.warning(
                place,
                "has no effect: with a [[client]] in the file, only clients may call, and calls that need no key are \
                 taken from narrower networks only",
            );
        }
        let names = self.client_names(&raw);
        let mut found = Vec::with_capacity(raw.len());
        for (at, name) in raw.into_iter().zip(names) {
            found.extend(self.client(at, name, context));
        }
        self.same_keys(&found);
        self.shadows(&found);
        self.unreachable_logins(&found, context);
        found.into_iter().map(|found| found.client).collect()
    }

    /// Warns if all clients are known by their keys only: the calls with a user's token that follow
    /// a login carry no key, since no SDK has a place for one there.
    fn unreachable_logins(&mut self, clients: &[ResolvedClient], context: &ClientContext<'_>) {
        let by_key_only =
            |found: &ResolvedClient| found.client.from.is_none() && found.client.cert.is_none();
        if let Some(place) = clients.first().and_then(|first| first.keys.first())
            && context.has_logins
            && !context.allow_is_set
            && clients.iter().all(by_key_only)
        {
            self.report.warning(
                place,
                "every client is known by its key only, so calls of SDKs with a user's token (sns/userinfo, sns/auth, \
                 sns/oauth2/refresh_token) are refused: they have no place for a key; set server.allow, or from",
            );
        }
    }

    /// Returns the name of each client, as configured or by its position; `None` for a wrong name.
    fn client_names(&mut self, raw: &[At<raw::Client>]) -> Vec<Option<AccountName>> {
        let mut taken: HashMap<AccountName, &str> = HashMap::new();
        let mut names = Vec::with_capacity(raw.len());
        for (index, at) in raw.iter().enumerate() {
            let place = at
                .value
                .name
                .as_ref()
                .map_or_else(|| at.place.child("name"), |name| name.place.clone());
            let name = match &at.value.name {
                Some(name) => Some(name.value.clone()),
                None => self.default_name(index, &place),
            };
            if let Some(name) = &name {
                if RESERVED_NAMES.contains(&name.as_str()) {
                    self.report.problem(
                        &place,
                        "is what metrics call callers that are no client: take another name",
                    );
                }
                if let Some(first) = taken.insert(name.clone(), &at.place.path) {
                    self.report
                        .problem(&place, format!("is the name of {first} already"));
                }
            }
            names.push(name);
        }
        names
    }

    /// Returns `client-N` for a client without a name, with a warning.
    fn default_name(&mut self, index: usize, place: &KeyPlace) -> Option<AccountName> {
        if self.report.concerns(place) {
            return None;
        }
        let name = format!("client-{}", index + 1);
        self.report.warning(
            place,
            format!("is not set: logs and metrics say {name}, its place in the file"),
        );
        AccountName::new(&name)
    }

    fn client(
        &mut self,
        at: At<raw::Client>,
        name: Option<AccountName>,
        context: &ClientContext<'_>,
    ) -> Option<ResolvedClient> {
        let At { value: raw, place } = at;
        self.recognisable(&raw, &place, context);
        let place_of =
            |key: &str, set: Option<&KeyPlace>| set.cloned().unwrap_or_else(|| place.child(key));
        let from_place = place_of("from", raw.from.as_ref().map(|at| &at.place));
        let cert_place = place_of("cert", raw.cert.as_ref().map(|at| &at.place));
        let keys = self.client_keys(raw.key, raw.keys, context);
        let rate = raw.rate.map(|rate| self.rate(&rate).ok_or(())).transpose();
        let deny: Vec<_> = raw
            .deny
            .map(|at| at.value)
            .unwrap_or_default()
            .into_iter()
            .map(|at| at.value)
            .collect();
        let (keys, key_places) = keys?.into_iter().unzip();
        let client = ClientSettings {
            from: raw.from.map(|from| self.client_networks(&from)),
            cert: raw.cert.map(|at| at.value.0),
            accounts: self.client_accounts(raw.accounts, &place, context.accounts),
            allow: raw.allow.map(|allow| self.client_paths(allow, &deny)),
            deny,
            may: raw
                .may
                .map(|may| may.value.into_iter().map(|at| scope(at.value)).collect())
                .unwrap_or_default(),
            mode: self.client_mode(raw.mode),
            name: name?,
            keys,
            rate: rate.ok()?,
        };
        self.open_to_everybody(&client, &from_place);
        Some(ResolvedClient {
            client,
            path: place.path,
            keys: key_places,
            from: from_place,
            cert: cert_place,
        })
    }

    /// Warns of a client that every caller is.
    fn open_to_everybody(&mut self, client: &ClientSettings, from: &KeyPlace) {
        let is_everybody = client
            .from
            .as_ref()
            .is_some_and(NetworkSet::holds_everybody);
        if is_everybody && client.keys.is_empty() && client.cert.is_none() {
            let message = "everybody who can reach server.listen is this client, without a key: name the networks of \
                           the caller, or give it a key";
            self.report.warning(from, message);
        }
    }

    /// Reports a client that no caller can be.
    fn recognisable(&mut self, raw: &raw::Client, place: &KeyPlace, context: &ClientContext<'_>) {
        let has_key = raw.key.is_some() || raw.keys.is_some();
        if !has_key && raw.from.is_none() && raw.cert.is_none() {
            let said = ["key", "keys", "from", "cert"]
                .iter()
                .any(|key| self.report.concerns(&place.child(key)));
            if !said {
                let message =
                    "nobody can be this client: set key, from or cert, or several of them";
                self.report.problem(place, message);
            }
        }
        if let Some(at) = &raw.cert
            && !context.certificates
        {
            let message = "no caller can show a certificate: set server.tls.client_ca, the authority that signs them";
            self.report.problem(&at.place, message);
        }
    }

    /// Returns the keys of `key` or `keys` with their places; `None` if one of them is wrong, as
    /// opposed to none at all: that client is left out.
    fn client_keys(
        &mut self,
        key: Option<At<raw::KeyForm>>,
        keys: Option<At<Vec<At<raw::KeyForm>>>>,
        context: &ClientContext<'_>,
    ) -> Option<Vec<(ClientKey, KeyPlace)>> {
        let forms = match (key, keys) {
            (Some(_), Some(keys)) => {
                let message =
                    "stands beside key: put every key of the client into keys, and take key out";
                self.report.problem(&keys.place, message);
                return None;
            }
            (None, Some(keys)) if keys.value.is_empty() => {
                let message = "the list is empty: name the keys of the client, or leave keys out";
                self.report.problem(&keys.place, message);
                return None;
            }
            (None, Some(keys)) => keys.value,
            (key, None) => key.into_iter().collect(),
        };
        // Each form is looked at, also after a wrong one: all problems are told at once.
        let found: Vec<_> = forms
            .iter()
            .map(|form| Some((self.client_key(form, context)?, form.place.clone())))
            .collect();
        found.into_iter().collect()
    }

    fn client_key(
        &mut self,
        form: &At<raw::KeyForm>,
        context: &ClientContext<'_>,
    ) -> Option<ClientKey> {
        let raw::KeyForm {
            env,
            file,
            value,
            sha256,
        } = &form.value;
        let given = [
            ("env", env),
            ("file", file),
            ("value", value),
            ("sha256", sha256),
        ];
        let (kind, text) = self.only_one(&form.place, given)?;
        let key = if kind == "sha256" {
            let digest = KeyDigest::from_hex(&text.value.0);
            if digest.is_none() {
                self.report.problem(
                    &text.place,
                    "expected 64 hex digits, as `printf %s \"$KEY\" | sha256sum` prints them",
                );
            }
            ClientKey {
                digest: digest?,
                length: None,
            }
        } else {
            let key = self.look_up(kind, text)?;
            let key = key.expose();
            if !key.bytes().all(|b| b.is_ascii_graphic()) {
                let message = "a key travels in a header: it must be visible ASCII without blanks";
                self.report.problem(&text.place, message);
                return None;
            }
            if key.len() < MIN_KEY_LENGTH {
                let message = "the key is shorter than 16 characters and can be found by trying: take what `openssl \
                               rand -hex 16` prints";
                self.report.warning(&text.place, message);
            }
            ClientKey::of(key)
        };
        if context.app_secrets.contains(&key.digest) {
            let message = "is an account's AppSecret, with which the caller can get tokens from WeChat past wxgate: give it \
                           a key of its own";
            self.report.warning(&form.place, message);
        }
        Some(key)
    }

    fn client_networks(&mut self, from: &At<Vec<At<Network>>>) -> NetworkSet {
        if from.value.is_empty() {
            self.report
                .warning(&from.place, "nobody is this client: the list is empty");
        }
        set(&from.value)
    }

    fn client_accounts(
        &mut self,
        raw: Option<At<Vec<At<AccountName>>>>,
        place: &KeyPlace,
        accounts: &AccountNames<'_>,
    ) -> Option<Vec<AccountName>> {
        let Some(At { value, place: list }) = raw else {
            let place = place.child("accounts");
            if !self.report.concerns(&place) {
                let message = "is not set: this client may use every account, also those to come";
                self.report.warning(&place, message);
            }
            return None;
        };
        if value.is_empty() {
            self.report
                .warning(&list, "this client may use no account: the list is empty");
        }
        for name in &value {
            self.existing_account(name, accounts);
        }
        Some(value.into_iter().map(|at| at.value).collect())
    }

    fn client_paths(
        &mut self,
        allow: At<Vec<At<PathPattern>>>,
        deny: &[PathPattern],
    ) -> Vec<PathPattern> {
        if allow.value.is_empty() {
            self.report.warning(
                &allow.place,
                "this client may call nothing: the list is empty",
            );
        }
        for At { value, place } in &allow.value {
            let class = credential::of_path(value.as_str()).class(Parameters::default());
            let message = match class {
                _ if deny.iter().any(|deny| deny.denies_all_of(value)) => {
                    "has no effect: deny takes away all of it"
                }
                CallClass::Minting(Minting::Classic | Minting::Stable | Minting::Wecom) => {
                    "has no effect: wxgate answers this endpoint itself, for every client"
                }
                CallClass::Guarded => {
                    "is open to this client, since it is named exactly: it resets what all callers share, or hands out \
                     a credential"
                }
                _ => continue,
            };
            self.report.warning(place, message);
        }
        allow.value.into_iter().map(|at| at.value).collect()
    }

    fn client_mode(&mut self, raw: Option<At<raw::Mode>>) -> Mode {
        match raw {
            Some(At {
                value: raw::Mode::Report,
                place,
            }) => {
                let message = "what this client may not do is logged and counted, and done all the same; set \"enforce\" \
                               when the log shows nothing more";
                self.report.warning(&place, message);
                Mode::Report
            }
            Some(At {
                value: raw::Mode::Enforce,
                ..
            })
            | None => Mode::Enforce,
        }
    }

    fn rate(&mut self, At { value: raw, place }: &At<raw::Rate>) -> Option<Rate> {
        if raw.per_second.is_none() {
            self.missing(
                &place.child("per_second"),
                "must be set: requests per second in the long run",
            );
        }
        let number = |count: &At<BoundedInteger<1, { u32::MAX as u64 }>>| {
            NonZeroU32::new(u32::try_from(count.value.0).ok()?)
        };
        let per_second = number(raw.per_second.as_ref()?)?;
        Some(Rate {
            per_second,
            burst: raw.burst.as_ref().and_then(number).unwrap_or(per_second),
        })
    }

    /// Reports keys that two clients share, and keys that one client has twice.
    fn same_keys(&mut self, found: &[ResolvedClient]) {
        let mut keys: HashMap<KeyDigest, &str> = HashMap::new();
        for found in found {
            for (key, place) in found.client.keys.iter().zip(&found.keys) {
                let message = match keys.insert(key.digest, &found.path) {
                    None => continue,
                    Some(first) if first == found.path => {
                        "stands in the list already: each key once".to_owned()
                    }
                    Some(first) => format!(
                        "is the key of {first} too: a key names one client, so each needs its own"
                    ),
                };
                self.report.problem(place, message);
            }
        }
    }

    /// Warns of keyless clients that no caller can be, because an earlier client takes all of their
    /// callers.
    fn shadows(&mut self, found: &[ResolvedClient]) {
        // Clients can take callers of each other only if both have the same certificate, or none.
        let mut by_certificate: HashMap<Option<&str>, Vec<&ResolvedClient>> = HashMap::new();
        for later in found.iter().filter(|found| found.client.keys.is_empty()) {
            let earlier = by_certificate
                .entry(later.client.cert.as_deref())
                .or_default();
            earlier.push(later);
            let (_, earlier) = earlier.split_last().unwrap_or((&later, &[]));
            if later.client.from.as_ref().is_some_and(NetworkSet::is_empty) {
                continue;
            }
            let takes_all =
                |earlier: &&&ResolvedClient| match (&earlier.client.from, &later.client.from) {
                    (None, _) => true,
                    (Some(wide), Some(narrow)) => wide.includes(narrow),
                    (Some(_), None) => false,
                };
            let Some(earlier) = earlier.iter().find(takes_all) else {
                continue;
            };
            let (place, what) = if later.client.cert.is_some() {
                (&later.cert, "callers with this certificate")
            } else {
                (&later.from, "callers from these networks")
            };
            let message = format!(
                "nobody can be this client: {what} are {} already, which stands before it; put the narrower one first, \
                 or give each a key",
                earlier.path
            );
            self.report.warning(place, message);
        }
    }
}

fn scope(raw: raw::Scope) -> Scope {
    match raw {
        raw::Scope::Token => Scope::Token,
        raw::Scope::Refresh => Scope::Refresh,
        raw::Scope::Ticket => Scope::Ticket,
    }
}
